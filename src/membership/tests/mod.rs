//! Tests of membership: the state machine one input at a time, random sequences, and the task.

mod absence;
mod draining;
mod ejection;
mod feed;
mod handoff;
mod inputs;
mod record;
mod reports;
mod requests;
mod sequences;
mod tables;
mod task;

use std::{sync::Arc, time::Duration};

pub(crate) use feed::Feed;

use tokio::time::Instant;

use super::{
    build::{Change, Rebuild},
    state::Effects,
    *,
};
use crate::{
    endpoint::{Endpoint, Endpoints},
    health::{HealthEvent, HealthKind},
};

const SECOND: Duration = Duration::from_secs(1);

/// Asserts that a period of ejection is within 10 % of `seconds`.
fn about(period: Duration, seconds: u64) {
    let ratio = period.as_secs_f64() / Duration::from_secs(seconds).as_secs_f64();
    assert!((0.9..=1.1).contains(&ratio), "{period:?} is not about {seconds} s");
}

/// Returns backends with these names, all at the same address and port.
fn endpoints(hosts: &[&str], port: u16) -> Endpoints {
    let endpoint = |host: &&str| Endpoint::new(*host, Some(([127, 0, 0, 1], port).into()));
    hosts.iter().map(endpoint).collect()
}

/// A state with a clock that only the test advances.
struct Rig {
    state: State,
    now: Instant,
    /// The probes that run.
    probes: Vec<Probe>,
    notes: Vec<Note>,
    timer: Option<Instant>,
}

impl Rig {
    fn new(config: Config) -> Self {
        let now = Instant::now();
        let state = State::new(config, fastrand::Rng::with_seed(7));
        Self { state, now, probes: Vec::new(), notes: Vec::new(), timer: None }
    }

    fn with(hosts: &[&str]) -> Self {
        let mut rig = Self::new(Config::default());
        rig.discover(hosts);
        rig
    }

    fn apply(&mut self, input: Input) -> Option<Rebuild> {
        let Effects { rebuild, probes, notes, timer } = self.state.apply(input, self.now);
        self.probes.extend(probes);
        self.notes.extend(notes);
        self.timer = timer;
        rebuild
    }

    /// Applies `input`, builds the requested table and commits it.
    fn step(&mut self, input: Input) -> Option<Change> {
        let change = self.apply(input)?.run(self.now).expect("the set must be placeable");
        self.state.commit(&change, self.now);
        self.timer = self.state.next_due(self.now);
        Some(change)
    }

    fn discover(&mut self, hosts: &[&str]) -> bool {
        self.apply(Input::Discovered(endpoints(hosts, 1))).is_some()
    }

    /// Reports backends that have stable names and this port.
    fn discover_names(&mut self, hosts: &[&str], port: u16) -> bool {
        let stable = |endpoint: &Endpoint| Endpoint { is_stable_name: true, ..endpoint.clone() };
        self.apply(Input::Discovered(endpoints(hosts, port).iter().map(stable).collect())).is_some()
    }

    fn see(&mut self, host: &str, kind: HealthKind) -> bool {
        self.apply(Input::Seen(HealthEvent { identity: host.into(), kind })).is_some()
    }

    /// Ends the running probe of `host`.
    fn answer(&mut self, host: &str, answered: bool) -> bool {
        let at = self.probes.iter().position(|probe| &*probe.identity == host).expect("a probe must run");
        let probe = self.probes.remove(at);
        self.apply(Input::Probed { probe, answered }).is_some()
    }

    fn wait(&mut self, time: Duration) -> bool {
        self.now += time;
        self.apply(Input::Timer).is_some()
    }

    /// Advances the clock to the timer. Returns the time that passed.
    fn wait_for_timer(&mut self) -> Duration {
        let at = self.timer.expect("something must be due");
        let waited = at.saturating_duration_since(self.now);
        self.wait(waited);
        waited
    }

    fn members(&self) -> Vec<String> {
        let view = self.state.view().expect("there are members");
        view.endpoints.iter().map(|endpoint| endpoint.identity.to_string()).collect()
    }

    fn away(&self) -> Vec<String> {
        self.state.view().expect("there are members").away.iter().map(ToString::to_string).collect()
    }

    /// Returns the backends that fail, members or not, and take no records.
    fn lost(&self) -> Vec<String> {
        self.state.view().expect("there are members").lost.iter().map(ToString::to_string).collect()
    }

    fn state_of(&self, host: &str) -> Option<BackendState> {
        self.state.states().find(|(identity, _)| &***identity == host).map(|(_, state)| state)
    }

    fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }
}
