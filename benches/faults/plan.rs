//! The setup of a scenario: its processes, where they run, and the load.

use spanring::tools::load::Pace;

/// The timeouts of clients, in seconds: short ones of agents, the Collector's default (5) and the SDKs' default (10).
pub(crate) static CLIENT_TIMEOUTS: [u64; 4] = [2, 3, 5, 10];

/// Memory budget of each proxy, in MiB.
pub(crate) const BUDGET_MIB: u64 = 128;

/// The processes of a scenario.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) sinks: usize,
    pub(crate) place: Place,
    /// Whether sinks record each span; otherwise they only count.
    pub(crate) journals: bool,
    pub(crate) proxies: usize,
    pub(crate) build: Build,
    /// `memory_limiter.limit_mib`; without it, the default holds.
    pub(crate) limit_mib: Option<u64>,
    /// `max_connection_age` of the proxies.
    pub(crate) age: &'static str,
    /// Arguments of the shell's `ulimit` for the proxies, such as `-Sn 256`.
    pub(crate) ulimit: Option<&'static str>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            sinks: 4,
            place: Place::Here,
            journals: true,
            proxies: 3,
            build: Build::Tested,
            limit_mib: Some(BUDGET_MIB),
            age: "10m",
            ulimit: None,
        }
    }
}

/// The build of the proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Build {
    /// That of `SPANRING_BIN`, or of this build.
    Tested,
    /// That of `SPANRING_BEFORE`, an earlier one to compare with.
    Before,
}

/// Where sinks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On the machine of the proxies, listed in their configuration.
    Here,
    /// On the machine of the proxies, found through a name server. Needs root.
    Named,
    /// On a node of its own each, which can vanish. Needs root.
    Nodes,
}

/// The load, and how long clients wait for an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) pace: Pace,
    /// Spans per request.
    pub(crate) spans: usize,
    pub(crate) retry: bool,
    /// The timeouts of clients, in seconds. Connections use these in turn.
    pub(crate) timeouts: &'static [u64],
    /// Whether every span is sent only once. Journals need this; it costs the load generator work.
    pub(crate) unique: bool,
    pub(crate) connections: usize,
    pub(crate) in_flight: usize,
    /// The number of different requests that are prepared.
    pub(crate) bodies: usize,
}

impl Default for Load {
    /// 100 requests with 100 spans a second, whether they succeed or not. A connection carries 100 requests at a time,
    /// and requests wait for seconds while a backend hangs, hence the number of connections.
    fn default() -> Self {
        Self {
            pace: Pace::Open { rate: 100.0 },
            spans: 100,
            retry: false,
            timeouts: &[10],
            unique: true,
            connections: 60,
            in_flight: 5_000,
            bodies: 200,
        }
    }
}
