//! What a scenario asks for: which processes, where, and what is sent.

use spanring::tools::load::Pace;

/// Seconds that clients wait for an answer: an agent's short timeout, the Collector's default, an SDK's.
pub(crate) static PATIENCE: [u64; 4] = [2, 3, 5, 10];

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
    /// `max_connection_age` of the proxies.
    pub(crate) age: &'static str,
    /// Arguments of the shell's `ulimit` for proxies, such as `-Sn 256`.
    pub(crate) ulimit: Option<&'static str>,
}

impl Default for Plan {
    fn default() -> Self {
        let (sinks, proxies, limit_mib) = (4, 3, BUDGET_MIB);
        Self { sinks, place: Place::Here, journals: true, proxies, limit_mib, age: "10m", ulimit: None }
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
    /// Seconds that clients wait for an answer; connections take these in turn.
    pub(crate) patience: &'static [u64],
    /// Whether no span is ever sent twice; needed by journals, and work for the load.
    pub(crate) unique: bool,
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
            patience: &[10],
            unique: true,
            connections: 60,
            in_flight: 5_000,
        }
    }
}
