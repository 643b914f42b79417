//! What happens in a run: the steps of each event, and the changes of the pool that they make.

use std::{collections::BTreeSet, time::Duration};

use spanring::ring::Algorithm;

/// An event, or a series of the same ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    OneMore,
    ThreeMore,
    Drained,
    RollingAddresses,
    RollingNames,
    Flapping,
    /// A reload from the ring of the Collector's exporter to ours.
    OtherRing,
    Crash,
    Replica,
}

/// What is done at some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A backend begins to serve, at an address of its own.
    Start(usize),
    /// The name's addresses are these backends. Replicas learn of it one after the other.
    List(BTreeSet<usize>),
    /// A backend's own name has a new address. Replicas learn of it one after the other.
    Rename(usize),
    /// A backend finishes what it has and ends.
    Stop(usize),
    /// A backend ends at once.
    Kill(usize),
    /// The configuration file has another `ring.algorithm`, and is read again. Replicas do so one after the other.
    Reload(Algorithm),
    /// A replica of the proxy is restarted.
    RestartReplica(usize),
    /// A replica of the proxy ends at once and stays away.
    KillReplica(usize),
}

/// What decides where a trace belongs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ring {
    /// The backends that serve.
    pub(crate) backends: BTreeSet<usize>,
    pub(crate) algorithm: Algorithm,
}

/// A change of the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) at: Duration,
    pub(crate) before: Ring,
    pub(crate) after: Ring,
}

/// All steps of a run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The steps by time.
    pub(crate) steps: Vec<(Duration, Step)>,
    pub(crate) changes: Vec<Change>,
    /// The number of backends at the beginning.
    pub(crate) backends: usize,
    /// The `ring.algorithm` at the beginning.
    pub(crate) algorithm: Algorithm,
    /// Whether backends are known by names that outlive their addresses.
    pub(crate) has_names: bool,
    /// How long new traces are started.
    pub(crate) length: Duration,
    /// The number of proxies.
    pub(crate) replicas: usize,
}

/// The usual number of backends at the beginning.
pub(crate) const BACKENDS: usize = 4;

/// The usual number of proxies.
const REPLICAS: usize = 3;

/// How long all is quiet before the first event, so that even the longest traces exist when it comes.
const BEFORE: Duration = Duration::from_secs(30);

/// How long traces are started after the last change. The last part of it shows what remains a minute later.
const AFTER: Duration = Duration::from_secs(85);

/// How long a new instance of a rolling restart is listed before an old one leaves.
const OVERLAP: Duration = Duration::from_secs(10);

/// How long an instance that has left DNS goes on serving.
const DRAIN: Duration = Duration::from_secs(45);

/// How long an instance with a stable name is away while it restarts.
const AWAY: Duration = Duration::from_secs(5);

/// The pause between two instances of a rolling restart.
const PAUSE: Duration = Duration::from_secs(10);

/// How long a flapping backend is away, and how long it is there; and how often.
const FLAP: Duration = Duration::from_secs(3);
const FLAPS: u32 = 5;

/// How long DNS lists a backend that has crashed.
const UNNOTICED: Duration = Duration::from_secs(3);

impl Event {
    pub(crate) const ALL: [Self; 9] = [
        Self::OneMore,
        Self::ThreeMore,
        Self::Drained,
        Self::RollingAddresses,
        Self::RollingNames,
        Self::Flapping,
        Self::OtherRing,
        Self::Crash,
        Self::Replica,
    ];

    /// The event's name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::OneMore => "one-more",
            Self::ThreeMore => "three-more",
            Self::Drained => "drained",
            Self::RollingAddresses => "rolling-addresses",
            Self::RollingNames => "rolling-names",
            Self::Flapping => "flapping",
            Self::OtherRing => "other-ring",
            Self::Crash => "crash",
            Self::Replica => "replica",
        }
    }

    /// Whether an operator brings the event about, or it is harmless. No trace need be split by it then.
    pub(crate) fn is_planned(self) -> bool {
        !matches!(self, Self::Crash | Self::Replica)
    }

    /// Returns the steps of the event with this number of backends. `scale` shortens or lengthens all times.
    pub(crate) fn plan(self, backends: usize, scale: f64) -> Plan {
        let mut plan = Plan { has_names: self == Self::RollingNames, backends, ..Plan::default() };
        let at = BEFORE;
        match self {
            Self::OneMore => plan.join(at, 1),
            Self::ThreeMore => plan.join(at, 3),
            Self::Drained => plan.list(at, plan.listed_without(0)),
            Self::RollingAddresses => plan.rolling_addresses(at),
            Self::RollingNames => plan.rolling_names(at),
            Self::Flapping => plan.flapping(at),
            Self::OtherRing => {
                plan.algorithm = Algorithm::OtelcolV2;
                plan.reload(at, Algorithm::SlotsV1);
            }
            Self::Crash => plan.crash(at),
            Self::Replica => plan.steps.push((at, Step::RestartReplica(0))),
        }
        plan.finish(scale)
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            steps: Vec::new(),
            changes: Vec::new(),
            backends: BACKENDS,
            algorithm: Algorithm::default(),
            has_names: false,
            length: Duration::ZERO,
            replicas: REPLICAS,
        }
    }
}

impl Plan {
    /// The ring after the last step so far.
    fn ring(&self) -> Ring {
        let first = || Ring { backends: (0..self.backends).collect(), algorithm: self.algorithm };
        self.changes.last().map_or_else(first, |change| change.after.clone())
    }

    /// The backends that are listed after the last step so far.
    pub(crate) fn listed(&self) -> BTreeSet<usize> {
        self.ring().backends
    }

    fn listed_without(&self, gone: usize) -> BTreeSet<usize> {
        let mut listed = self.listed();
        listed.remove(&gone);
        listed
    }

    /// Notes that the backends which serve are `after` from now on.
    fn change(&mut self, at: Duration, backends: BTreeSet<usize>) {
        let before = self.ring();
        let after = Ring { backends, algorithm: before.algorithm };
        self.changes.push(Change { at, before, after });
    }

    /// Reads a configuration with another algorithm.
    pub(crate) fn reload(&mut self, at: Duration, algorithm: Algorithm) {
        let before = self.ring();
        let after = Ring { algorithm, ..before.clone() };
        self.steps.push((at, Step::Reload(algorithm)));
        self.changes.push(Change { at, before, after });
    }

    /// Lists these backends.
    pub(crate) fn list(&mut self, at: Duration, backends: BTreeSet<usize>) {
        self.steps.push((at, Step::List(backends.clone())));
        self.change(at, backends);
    }

    /// Starts new backends and lists them.
    pub(crate) fn join(&mut self, at: Duration, count: usize) {
        let mut listed = self.listed();
        let first = self.steps.iter().filter(|(_, step)| matches!(step, Step::Start(_))).count() + self.backends;
        for backend in first..first + count {
            self.steps.push((at.saturating_sub(Duration::from_secs(1)), Step::Start(backend)));
            listed.insert(backend);
        }
        self.list(at, listed);
    }

    fn rolling_addresses(&mut self, mut at: Duration) {
        for old in 0..self.backends {
            self.join(at, 1);
            at += OVERLAP;
            self.list(at, self.listed_without(old));
            at += DRAIN;
            self.steps.push((at, Step::Stop(old)));
            at += PAUSE;
        }
    }

    fn rolling_names(&mut self, mut at: Duration) {
        for backend in 0..self.backends {
            let all = self.listed();
            self.steps.push((at, Step::Stop(backend)));
            self.change(at, self.listed_without(backend));
            at += AWAY;
            self.steps.push((at, Step::Start(backend)));
            self.steps.push((at, Step::Rename(backend)));
            self.change(at, all);
            at += PAUSE;
        }
    }

    fn flapping(&mut self, mut at: Duration) {
        let all = self.listed();
        for _ in 0..FLAPS {
            self.list(at, self.listed_without(0));
            self.list(at + FLAP, all.clone());
            at += 2 * FLAP;
        }
    }

    fn crash(&mut self, at: Duration) {
        let rest = self.listed_without(0);
        self.steps.push((at, Step::Kill(0)));
        self.steps.push((at + UNNOTICED, Step::List(rest.clone())));
        self.change(at, rest);
    }

    /// Sets the length, and scales all times.
    fn finish(mut self, scale: f64) -> Self {
        if self.changes.is_empty() {
            // A restart of a proxy changes nothing of the pool, but what is near it is of interest.
            let at = self.steps.first().map_or(BEFORE, |(at, _)| *at);
            self.change(at, self.listed());
        }
        let last = self.steps.iter().map(|(at, _)| *at).chain(self.changes.iter().map(|change| change.at)).max();
        self.length = (last.unwrap_or_default() + AFTER).mul_f64(scale);
        for (at, _) in &mut self.steps {
            *at = at.mul_f64(scale);
        }
        for change in &mut self.changes {
            change.at = change.at.mul_f64(scale);
        }
        self.steps.sort_by_key(|(at, _)| *at);
        self
    }
}
