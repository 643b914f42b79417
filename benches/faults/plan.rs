//! What a scenario asks for: which processes, where, and what is sent.

use std::time::Duration;

use spanring::tools::load::Pace;

/// What the four kinds of clients of a mixed load wait for: an agent's short timeout, the Collector's default, an SDK's.
pub(crate) const PATIENCE: [Duration; 4] =
    [Duration::from_secs(2), Duration::from_secs(3), Duration::from_secs(5), Duration::from_secs(10)];

/// Budget of each proxy, in MiB.
pub(crate) const BUDGET_MIB: u64 = 128;

/// What processes a scenario has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) sinks: usize,
    pub(crate) place: Place,
    /// Whether sinks note each span; without it they only count.
    pub(crate) journals: bool,
    pub(crate) proxies: usize,
    pub(crate) limit_mib: u64,
    /// Arguments of the shell's `ulimit` for proxies, such as `-Sn 256`.
    pub(crate) ulimit: Option<&'static str>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { sinks: 4, place: Place::Here, journals: true, proxies: 3, limit_mib: BUDGET_MIB, ulimit: None }
    }
}

/// Where sinks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Beside the proxies, listed in their configuration.
    Here,
    /// There, and a name server tells proxies of them. Needs root.
    Named,
    /// Each on a node of its own, which can vanish. Needs root.
    Nodes,
}

/// What to send, and how long to wait for an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) pace: Pace,
    /// Of each request.
    pub(crate) spans: usize,
    pub(crate) retry: bool,
    pub(crate) patience: Duration,
    pub(crate) connections: usize,
    pub(crate) in_flight: usize,
}

impl Default for Load {
    /// 100 requests of 100 spans a second, whatever becomes of them. A connection bears 100 requests at a time, and requests
    /// wait for seconds while a backend hangs.
    fn default() -> Self {
        Self {
            pace: Pace::Open { rate: 100.0 },
            spans: 100,
            retry: false,
            patience: Duration::from_secs(10),
            connections: 60,
            in_flight: 5_000,
        }
    }
}

impl Load {
    /// The same requests, from clients of mixed patience.
    pub(crate) fn mixed(rate: f64) -> [Self; 4] {
        let pace = Pace::Open { rate: rate / 4.0 };
        PATIENCE.map(|patience| Self { pace, patience, connections: 15, in_flight: 1_250, ..Self::default() })
    }
}
