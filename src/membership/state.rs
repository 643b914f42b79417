//! What membership believes, as a pure state machine: inputs in, effects out. No task, no clock.
//!
//! Every input changes what is believed of single backends; then what is due by now is done, it is settled whether so many
//! fail that none counts as ejected, and a table is wished for if the view of the pool became another one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Config,
    backend::{Backend, BackendState, Ejected, Probe, UNRESOLVED},
    build::{Cause, Change, Rebuild, View},
};
use crate::{
    endpoint::{Endpoint, Endpoints},
    health::{HealthEvent, HealthKind},
    ring::Table,
};

/// Something that membership learned.
#[derive(Clone, Debug)]
pub enum Input {
    /// Discovery reports this full set. An empty one is not believed.
    Discovered(Endpoints),
    /// A delivery saw something of a backend.
    Seen(HealthEvent),
    /// A probe has ended.
    Probed {
        /// The probe.
        probe: Probe,
        /// Whether there was an answer.
        answered: bool,
    },
    /// The operator chose otherwise; what is known of backends stays.
    Configured(Config),
    /// Time has passed.
    Timer,
}

/// What is to be done now.
#[derive(Debug, Default)]
pub struct Effects {
    /// The table to build, if the view of the pool changed. A later wish makes an earlier one void.
    pub rebuild: Option<Rebuild>,
    /// Probes to start.
    pub probes: Vec<Probe>,
    /// Changes of state, for metrics and the log.
    pub notes: Vec<Note>,
    /// When [`Input::Timer`] is due.
    pub timer: Option<Instant>,
}

/// A change of state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A backend takes no records for now.
    Ejected {
        /// The backend.
        identity: Arc<str>,
        /// Why.
        reason: &'static str,
        /// Until its first probe.
        period: Duration,
    },
    /// A probe had no answer.
    ProbeFailed(Arc<str>),
    /// A backend answered and takes records again.
    Returned(Arc<str>),
    /// A backend has left discovery and is held for a while.
    Held(Arc<str>),
    /// A backend left the membership.
    Left {
        /// The backend.
        identity: Arc<str>,
        /// Whether it was ejected, so that its absence was believed at once.
        ejected: bool,
    },
    /// Panic begins (or ends): so many backends fail that none counts as ejected.
    Panic {
        /// Whether it begins.
        begins: bool,
        /// Backends that fail.
        failing: usize,
        /// How many of them may be ejected.
        allowed: usize,
    },
}

/// All that decides about the next table.
#[derive(Debug)]
pub struct State {
    config: Config,
    random: fastrand::Rng,
    /// Members: those that discovery lists and those that are held.
    backends: BTreeMap<Arc<str>, Backend>,
    panic: bool,
    /// What was wished for last.
    asked: Option<View>,
    /// The table that was published last.
    table: Option<Arc<Table>>,
}

// === impl State ===

impl State {
    /// Nothing is known yet. `random` spreads the periods of ejections, and nothing else.
    pub fn new(config: Config, random: fastrand::Rng) -> Self {
        Self { config, random, backends: BTreeMap::new(), panic: false, asked: None, table: None }
    }

    /// Takes note of `input` at the instant `now`.
    pub fn apply(&mut self, input: Input, now: Instant) -> Effects {
        let mut effects = Effects::default();
        let source = match &input {
            Input::Discovered(_) => Some(Cause::Discovery),
            Input::Configured(_) => Some(Cause::Configuration),
            Input::Seen(_) | Input::Probed { .. } | Input::Timer => None,
        };
        match input {
            Input::Discovered(endpoints) => self.discovered(&endpoints, now, &mut effects.notes),
            Input::Seen(event) => self.seen(&event, now, &mut effects.notes),
            Input::Probed { probe, answered } => self.probed(&probe, answered, now, &mut effects.notes),
            Input::Configured(config) => self.configured(config),
            Input::Timer => {}
        }
        self.give_up_on_names(now, &mut effects.notes);
        self.let_go(now, &mut effects.notes);
        self.settle_panic(&mut effects.notes);
        effects.probes = self.due_probes(now);
        effects.timer = self.next_due();
        effects.rebuild = self.wish(source.unwrap_or_else(|| cause_of(&effects.notes)));
        effects
    }

    /// Takes note that `change` was published.
    pub fn commit(&mut self, change: &Change) {
        self.table = Some(Arc::clone(&change.table));
    }

    /// Takes note that what was wished for last cannot be built: the membership of the last table is believed again.
    pub fn revert(&mut self, now: Instant) {
        let endpoints: &[Endpoint] = self.table.as_ref().map_or(&[], |table| table.backends());
        let mut before = std::mem::take(&mut self.backends);
        for endpoint in endpoints {
            let backend = match before.remove(&endpoint.identity) {
                Some(mut backend) => {
                    backend.listed(endpoint, now);
                    backend
                }
                None => Backend::new(endpoint.clone(), now),
            };
            self.backends.insert(Arc::clone(&endpoint.identity), backend);
        }
        self.settle_panic(&mut Vec::new());
        self.asked = self.view();
    }

    /// Every member's state.
    pub fn states(&self) -> impl Iterator<Item = (&Arc<str>, BackendState)> {
        self.backends.iter().map(|(identity, backend)| (identity, backend.state()))
    }

    /// Whether so many backends fail that none counts as ejected.
    pub fn is_panicking(&self) -> bool {
        self.panic
    }

    /// Who is a member now and who of them is away; `None` before the first set.
    pub fn view(&self) -> Option<View> {
        if self.backends.is_empty() {
            return None;
        }
        let endpoints = self.backends.values().map(|backend| backend.endpoint.clone()).collect();
        Some(View { endpoints, away: if self.panic { BTreeSet::new() } else { self.ejected().cloned().collect() } })
    }

    fn discovered(&mut self, endpoints: &Endpoints, now: Instant, notes: &mut Vec<Note>) {
        if endpoints.is_empty() {
            return;
        }
        let listed: BTreeSet<&Arc<str>> = endpoints.iter().map(|endpoint| &endpoint.identity).collect();
        for (identity, backend) in self.backends.iter_mut().filter(|(identity, _)| !listed.contains(identity)) {
            if backend.missed(now) && !backend.is_ejected() {
                notes.push(Note::Held(Arc::clone(identity)));
            }
        }
        for endpoint in endpoints.iter() {
            let known = self.backends.entry(Arc::clone(&endpoint.identity));
            known
                .and_modify(|backend| backend.listed(endpoint, now))
                .or_insert_with(|| Backend::new(endpoint.clone(), now));
        }
    }

    fn configured(&mut self, config: Config) {
        if config.ring != self.config.ring {
            // The same view is placed in another way.
            self.asked = None;
        }
        self.config = config;
    }

    fn seen(&mut self, event: &HealthEvent, now: Instant, notes: &mut Vec<Note>) {
        let jitter = self.random.f64();
        let Some(backend) = self.backends.get_mut(&event.identity) else { return };
        if let Some(ejected) = backend.seen(event.kind, &self.config.outlier_detection, jitter, now) {
            notes.push(Note::ejected(&event.identity, ejected));
        }
        // In panic it is sent records though it counts as failing: what answers them needs no probe.
        let answered = self.panic && event.kind == HealthKind::Answered;
        if answered && backend.come_back(now) {
            notes.push(Note::Returned(Arc::clone(&event.identity)));
        }
    }

    fn probed(&mut self, probe: &Probe, answered: bool, now: Instant, notes: &mut Vec<Note>) {
        let jitter = self.random.f64();
        let of_it = |backend: &&mut Backend| backend.is_ejected() && backend.is_reached_by(probe);
        let Some(backend) = self.backends.get_mut(&probe.identity).filter(of_it) else { return };
        if backend.probed(answered, &self.config.outlier_detection, jitter, now) {
            notes.push(Note::Returned(Arc::clone(&probe.identity)));
        } else {
            notes.push(Note::ProbeFailed(Arc::clone(&probe.identity)));
        }
    }

    /// Ejects whoever has had no address for a while: another replica may know it, and then knows that it fails.
    fn give_up_on_names(&mut self, now: Instant, notes: &mut Vec<Note>) {
        let config = &self.config.outlier_detection;
        for (identity, backend) in self.backends.iter_mut().filter(|(_, it)| it.is_long_unresolved(config, now)) {
            if let Some(ejected) = backend.eject(UNRESOLVED, config, self.random.f64(), now) {
                notes.push(Note::ejected(identity, ejected));
            }
        }
    }

    /// Drops members whose absence is to be believed.
    fn let_go(&mut self, now: Instant, notes: &mut Vec<Note>) {
        let hold_down = self.config.hold_down;
        self.backends.retain(|identity, backend| {
            let gone = backend.is_gone(hold_down, now);
            if gone {
                notes.push(Note::Left { identity: Arc::clone(identity), ejected: backend.is_ejected() });
            }
            !gone
        });
    }

    fn settle_panic(&mut self, notes: &mut Vec<Note>) {
        let (failing, allowed) = (self.ejected().count(), self.allowed());
        let begins = failing > allowed;
        if begins != self.panic {
            notes.push(Note::Panic { begins, failing, allowed });
        }
        self.panic = begins;
    }

    /// How many may be ejected at once: the configured share, at least one where there are two, never all.
    fn allowed(&self) -> usize {
        let members = self.backends.len();
        let share = members * usize::from(self.config.outlier_detection.max_ejection_percent) / 100;
        share.max(1).min(members.saturating_sub(1))
    }

    fn ejected(&self) -> impl Iterator<Item = &Arc<str>> {
        self.backends.iter().filter(|(_, backend)| backend.is_ejected()).map(|(identity, _)| identity)
    }

    fn due_probes(&mut self, now: Instant) -> Vec<Probe> {
        let probe = |(identity, backend): (&Arc<str>, &mut Backend)| {
            let address = backend.begin_probe(now)?;
            Some(Probe { identity: Arc::clone(identity), address, access: backend.endpoint.access.clone() })
        };
        self.backends.iter_mut().filter_map(probe).collect()
    }

    fn next_due(&self) -> Option<Instant> {
        let Config { outlier_detection, hold_down, .. } = &self.config;
        self.backends.values().filter_map(|backend| backend.next_due(outlier_detection, *hold_down)).min()
    }

    /// The wish for a table of the view, unless that was wished for last.
    fn wish(&mut self, cause: Cause) -> Option<Rebuild> {
        let view = self.view()?;
        if self.asked.as_ref() == Some(&view) {
            return None;
        }
        self.asked = Some(view.clone());
        Some(Rebuild { cause, algorithm: self.config.ring.algorithm, view, previous: self.table.clone() })
    }
}

// === impl Note ===

impl Note {
    fn ejected(identity: &Arc<str>, Ejected { reason, period }: Ejected) -> Self {
        Self::Ejected { identity: Arc::clone(identity), reason, period }
    }
}

/// What a change that discovery did not bring is put down to.
fn cause_of(notes: &[Note]) -> Cause {
    let cause = |note: &Note| match note {
        Note::Panic { .. } => Some(Cause::Panic),
        Note::Left { .. } => Some(Cause::Departure),
        Note::Ejected { .. } => Some(Cause::Ejection),
        Note::Returned(_) => Some(Cause::Return),
        Note::Held(_) | Note::ProbeFailed(_) => None,
    };
    // The last note speaks of the widest change.
    notes.iter().rev().find_map(cause).unwrap_or(Cause::Discovery)
}
