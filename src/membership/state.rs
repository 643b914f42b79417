//! The membership of one pool as a pure state machine: inputs in, effects out. It spawns nothing and reads no clock.
//!
//! Each input updates the backends it is about. Then everything that is due is done: names without an address are
//! ejected, absent members are removed, and panic begins or ends. If the view of the pool has changed after that, a new
//! table is requested.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Config,
    absence::{Patience, Verdict},
    backend::{Backend, BackendState, Ejected, Probe, UNRESOLVED},
    build::{Cause, Change, Rebuild, View},
    formers::Formers,
};
use crate::{
    endpoint::{Endpoint, Endpoints},
    health::{HealthEvent, HealthKind},
    ring::Table,
    settings::Ring,
    wall_clock::steady,
};

/// An event that changes the state.
#[derive(Clone, Debug)]
pub enum Input {
    /// Discovery reports this full set. An empty set is ignored.
    Discovered(Endpoints),
    /// A delivery observed the health of a backend.
    Seen(HealthEvent),
    /// A probe has ended.
    Probed {
        /// The probe.
        probe: Probe,
        /// Whether the backend answered.
        answered: bool,
    },
    /// The configuration changed. What is known about backends is kept.
    Configured(Config),
    /// Time has passed.
    Timer,
}

/// The effects of an input.
#[derive(Debug, Default)]
pub struct Effects {
    /// The table to build, if the view of the pool changed. A later request replaces an earlier one.
    pub rebuild: Option<Rebuild>,
    /// Probes to start.
    pub probes: Vec<Probe>,
    /// Changes of state, for metrics and the log.
    pub notes: Vec<Note>,
    /// When [`Input::Timer`] is due.
    pub timer: Option<Instant>,
}

/// A change of state, for metrics and the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A backend was ejected. During panic, it keeps its slots.
    Ejected {
        /// The backend.
        identity: Arc<str>,
        /// The reason.
        reason: &'static str,
        /// The time until its first probe.
        period: Duration,
    },
    /// An ejected backend did not answer a probe.
    ProbeFailed(Arc<str>),
    /// A backend answered and takes records again.
    Returned(Arc<str>),
    /// A backend is no longer in discovery and is held for a while.
    Held(Arc<str>),
    /// A held backend with a stable name is still not in discovery: it stays a member, and others take its slots.
    Away(Arc<str>),
    /// A backend left the membership.
    Left {
        /// The backend.
        identity: Arc<str>,
        /// Whether it was ejected, so that it was removed without being held to the end.
        ejected: bool,
    },
    /// Members that left discovery, or drain, begin or cease to stay because fewer than `min_backends` would be left.
    Floor {
        /// Whether they begin to stay.
        begins: bool,
        /// The number of members that would be left.
        left: usize,
        /// The floor.
        min_backends: usize,
    },
    /// Panic began or ended. During panic, more backends fail than may be ejected, so none is.
    Panic {
        /// Whether panic began.
        begins: bool,
        /// The number of backends that fail.
        failing: usize,
        /// The number of backends that may be ejected.
        allowed: usize,
    },
}

/// Everything that decides about the next table.
#[derive(Debug)]
pub struct State {
    config: Config,
    random: fastrand::Rng,
    /// The members: those that discovery lists and those that are held.
    backends: BTreeMap<Arc<str>, Backend>,
    /// Backends that left the membership, which may still take what began with them.
    formers: Formers,
    panic: bool,
    /// Whether absent members stay because of `min_backends`.
    is_floor: bool,
    /// The view for which a table was last requested, and the keys of the ring.
    requested: Option<(Ring, View)>,
    /// The table that was last published.
    table: Option<Arc<Table>>,
    /// When the oldest table that the published one keeps is to be forgotten.
    forgets_at: Option<Instant>,
}

/// The pause after which a table without what is to be forgotten is requested again. The request gives way to any other
/// one, and that one may be withdrawn.
const FORGETS_AGAIN_AFTER: Duration = Duration::from_secs(1);

// === impl State ===

impl State {
    /// Creates a state without members. `random` is used only to vary the periods of ejections.
    pub fn new(config: Config, random: fastrand::Rng) -> Self {
        Self {
            config,
            random,
            backends: BTreeMap::new(),
            formers: Formers::default(),
            panic: false,
            is_floor: false,
            requested: None,
            table: None,
            forgets_at: None,
        }
    }

    /// Applies `input` at the time `now`.
    pub fn apply(&mut self, input: Input, now: Instant) -> Effects {
        self.apply_all([input], now)
    }

    /// Applies `inputs` at the time `now`. The members are gone through once, however many inputs there are.
    pub fn apply_all(&mut self, inputs: impl IntoIterator<Item = Input>, now: Instant) -> Effects {
        let mut effects = Effects::default();
        let mut source = None;
        for input in inputs {
            match input {
                Input::Discovered(endpoints) => {
                    source = Some(Cause::Discovery);
                    self.discovered(&endpoints, now, &mut effects.notes);
                }
                Input::Seen(event) => self.seen(&event, now, &mut effects.notes),
                Input::Probed { probe, answered } => self.probed(&probe, answered, now, &mut effects.notes),
                Input::Configured(config) => {
                    source = Some(Cause::Configuration);
                    self.config = config;
                }
                Input::Timer => {}
            }
        }
        self.eject_unresolved(now, &mut effects.notes);
        self.remove_absent(now, &mut effects.notes);
        let are_fewer = self.formers.forget(self.table.as_deref(), now);
        self.update_panic(&mut effects.notes);
        effects.probes = self.due_probes(now);
        // Making a view and comparing it takes long if there are thousands of members, of which many are probed in vain.
        let mut notes = effects.notes.iter();
        let may_differ = source.is_some() || are_fewer || notes.any(|note| !matches!(note, Note::ProbeFailed(_)));
        if may_differ {
            effects.rebuild = self.request_table(source.unwrap_or_else(|| cause_of(&effects.notes)));
        }
        if effects.rebuild.is_none() && self.forgets_at.is_some_and(|at| now >= at) {
            effects.rebuild = self.request_forgetting(now);
        }
        effects.timer = self.next_due(now);
        effects
    }

    /// Returns the table that was published last.
    pub fn table(&self) -> Option<&Arc<Table>> {
        self.table.as_ref()
    }

    /// Notes that the table of `change` was published, at `now`.
    pub fn commit(&mut self, change: &Change, now: Instant) {
        let left = |at: u64| now + Duration::from_nanos(at.saturating_sub(steady(now)));
        self.forgets_at = change.table.history().next_end().map(left);
        self.formers.forget(Some(&change.table), now);
        self.table = Some(Arc::clone(&change.table));
    }

    /// Notes that the last requested table cannot be built: the members of the published table are restored. Returns the
    /// table to build instead if the restored view is not that of the published table: a backend may have been ejected in
    /// the meantime. A view that has just failed is not requested again.
    pub fn revert(&mut self, now: Instant) -> Option<Rebuild> {
        let failed = self.requested.take();
        let endpoints: &[Endpoint] = self.table.as_ref().map_or(&[], |table| table.backends());
        let mut before = std::mem::take(&mut self.backends);
        for endpoint in endpoints {
            let former = self.formers.remove(&endpoint.identity);
            let backend = match before.remove(&endpoint.identity).or(former) {
                Some(mut backend) => {
                    backend.listed(endpoint, false, now);
                    backend
                }
                None => Backend::new(endpoint.clone(), now),
            };
            self.backends.insert(Arc::clone(&endpoint.identity), backend);
        }
        self.update_panic(&mut Vec::new());
        let published = self.table.as_deref().map(|table| (Rebuild::ring_of(table), View::of(table)));
        let request = self.request();
        let cause = match (&request, &published) {
            _ if self.panic => Cause::Panic,
            (Some((_, view)), Some((_, published))) if !view.away.is_subset(&published.away) => Cause::Ejection,
            _ => Cause::Return,
        };
        self.requested = if request == failed { failed } else { published };
        self.request_table(cause)
    }

    /// Iterates over the members and their states.
    pub fn states(&self) -> impl Iterator<Item = (&Arc<str>, BackendState)> {
        self.backends.iter().map(|(identity, backend)| (identity, backend.state()))
    }

    /// Returns the state of a member; `None` if it is none.
    pub(super) fn state_of(&self, identity: &str) -> Option<BackendState> {
        self.backends.get(identity).map(Backend::state)
    }

    /// Returns for how long an absent member that answers stays after the beginning of its absence, if that is known.
    pub(super) fn stays_for(&self, identity: &str) -> Option<Duration> {
        self.backends.get(identity)?.stays_for(Patience::of(&self.config))
    }

    /// Returns whether more backends fail than may be ejected, so that none is.
    pub fn is_panicking(&self) -> bool {
        self.panic
    }

    /// Returns the members and which of them are away; `None` before the first set.
    pub fn view(&self) -> Option<View> {
        if self.backends.is_empty() {
            return None;
        }
        let endpoints = self.backends.values().map(|backend| backend.endpoint.clone()).collect();
        // Panic is about backends that fail. Those that discovery no longer lists are away in any case.
        let fails = |backend: &Backend| backend.is_ejected() && !self.panic;
        let away = self.backends.iter().filter(|(_, backend)| backend.is_away() || fails(backend));
        let lost = self.backends.iter().filter(|(_, backend)| fails(backend));
        let lost = lost.map(|(identity, _)| identity).chain(self.formers.ejected());
        let (away, lost) = (away.map(|(identity, _)| Arc::clone(identity)).collect(), lost.cloned().collect());
        Some(View { endpoints, away, lost })
    }

    fn discovered(&mut self, endpoints: &Endpoints, now: Instant, notes: &mut Vec<Note>) {
        if endpoints.is_empty() {
            return;
        }
        // If all backends drain, they are better than none.
        let all_drain = endpoints.iter().all(|endpoint| endpoint.is_draining);
        let (draining, endpoints): (Vec<_>, Vec<_>) =
            endpoints.iter().partition(|endpoint| endpoint.is_draining && !all_drain);
        // A replica that starts takes those that drain if they stay in the other replicas.
        let takes_draining = self.backends.is_empty() && endpoints.len() < self.config.min_backends;
        for endpoint in &draining {
            if takes_draining {
                self.backends.insert(Arc::clone(&endpoint.identity), Backend::new((*endpoint).clone(), now));
            }
            if let Some(backend) = self.backends.get_mut(&endpoint.identity) {
                backend.drains(endpoint, now);
            }
        }
        let listed: BTreeSet<&Arc<str>> =
            endpoints.iter().chain(&draining).map(|endpoint| &endpoint.identity).collect();
        let there = endpoints.iter().filter(|endpoint| !endpoint.is_missing).count();
        let halves_pool = there * 2 <= self.backends.values().filter(|backend| !backend.is_draining()).count();
        for (identity, backend) in self.backends.iter_mut().filter(|(identity, _)| !listed.contains(identity)) {
            if backend.unlisted(halves_pool, now) && !backend.is_ejected() {
                notes.push(Note::Held(Arc::clone(identity)));
            }
        }
        for endpoint in endpoints {
            // One that joins again starts without failures.
            self.formers.remove(&endpoint.identity);
            let known = self.backends.entry(Arc::clone(&endpoint.identity));
            let backend = known.or_insert_with(|| Backend::new(endpoint.clone(), now));
            if backend.listed(endpoint, halves_pool, now) && !backend.is_ejected() {
                notes.push(Note::Held(Arc::clone(&endpoint.identity)));
            }
        }
    }

    /// Keeps a backend that is no member any more for the traces that began with it.
    fn leave(&mut self, identity: Arc<str>, backend: Backend, now: Instant) {
        self.formers.insert(identity, backend, self.config.ring.handoff.kept_for(), now);
    }

    /// Returns a backend that is or was a member.
    fn backend_mut(&mut self, identity: &Arc<str>) -> Option<&mut Backend> {
        self.backends.get_mut(identity).or_else(|| self.formers.get_mut(identity))
    }

    fn seen(&mut self, event: &HealthEvent, now: Instant, notes: &mut Vec<Note>) {
        let (jitter, panic) = (self.random.f64(), self.panic);
        let detection = self.config.outlier_detection.clone();
        let Some(backend) = self.backend_mut(&event.identity) else { return };
        if let Some(ejected) = backend.seen(event.kind, &detection, jitter, now) {
            notes.push(Note::ejected(&event.identity, ejected));
        }
        // During panic, ejected backends get records, so an answered call is as good as an answered probe.
        let answered = panic && event.kind == HealthKind::Answered;
        if answered && backend.come_back(now) {
            notes.push(Note::Returned(Arc::clone(&event.identity)));
        }
    }

    fn probed(&mut self, probe: &Probe, answered: bool, now: Instant, notes: &mut Vec<Note>) {
        let jitter = self.random.f64();
        let detection = self.config.outlier_detection.clone();
        let of_it = |backend: &&mut Backend| backend.is_ejected() && backend.is_reached_by(probe);
        let Some(backend) = self.backend_mut(&probe.identity).filter(of_it) else { return };
        if backend.probed(answered, &detection, jitter, now) {
            notes.push(Note::Returned(Arc::clone(&probe.identity)));
        } else {
            notes.push(Note::ProbeFailed(Arc::clone(&probe.identity)));
        }
    }

    /// Ejects backends that have had no address for a while. Another replica may know the address and eject the backend
    /// because it fails, so that both agree.
    fn eject_unresolved(&mut self, now: Instant, notes: &mut Vec<Note>) {
        let config = &self.config.outlier_detection;
        for (identity, backend) in self.backends.iter_mut().filter(|(_, it)| it.is_long_unresolved(config, now)) {
            if let Some(ejected) = backend.eject(UNRESOLVED, config, self.random.f64(), now) {
                notes.push(Note::ejected(identity, ejected));
            }
        }
    }

    /// Removes members that have been absent for long enough, or drain. Those with a stable name are away for a while
    /// before. If fewer than `min_backends` would be left, none is removed and none becomes away.
    fn remove_absent(&mut self, now: Instant, notes: &mut Vec<Note>) {
        let (min_backends, patience) = (self.config.min_backends, Patience::of(&self.config));
        let is_there = |backend: &&Backend| matches!(backend.verdict(patience, now), None | Some(Verdict::Doubted));
        let left = self.backends.values().filter(is_there).count();
        let is_floor = left < min_backends && left < self.backends.len();
        if is_floor != self.is_floor {
            notes.push(Note::Floor { begins: is_floor, left, min_backends });
            self.is_floor = is_floor;
        }
        if is_floor {
            return;
        }
        let mut gone = Vec::new();
        for (identity, backend) in &mut self.backends {
            match backend.verdict(patience, now) {
                Some(Verdict::Gone) => gone.push(Arc::clone(identity)),
                Some(Verdict::Away) if backend.begin_to_be_away() => notes.push(Note::Away(Arc::clone(identity))),
                _ => {}
            }
        }
        for identity in gone {
            let Some(backend) = self.backends.remove(&identity) else { continue };
            notes.push(Note::Left { identity: Arc::clone(&identity), ejected: backend.is_ejected() });
            self.leave(identity, backend, now);
        }
    }

    fn update_panic(&mut self, notes: &mut Vec<Note>) {
        let (failing, allowed) = (self.listed().filter(|backend| backend.is_ejected()).count(), self.allowed());
        let begins = failing > allowed;
        if begins != self.panic {
            notes.push(Note::Panic { begins, failing, allowed });
        }
        self.panic = begins;
    }

    /// Returns how many backends may be ejected at the same time: the configured percentage, at least one if there are
    /// two or more members, and never all of them. Members that are away because they are absent do not count.
    fn allowed(&self) -> usize {
        let members = self.listed().count();
        let share = members * usize::from(self.config.outlier_detection.max_ejection_percent) / 100;
        share.max(1).min(members.saturating_sub(1))
    }

    /// Iterates over the members that are not away because they are absent.
    fn listed(&self) -> impl Iterator<Item = &Backend> {
        self.backends.values().filter(|backend| !backend.is_away())
    }

    fn due_probes(&mut self, now: Instant) -> Vec<Probe> {
        let probe = |(identity, backend): (&Arc<str>, &mut Backend)| {
            let address = backend.begin_probe(now)?;
            Some(Probe { identity: Arc::clone(identity), address, access: backend.endpoint.access.clone() })
        };
        self.backends.iter_mut().chain(self.formers.iter_mut()).filter_map(probe).collect()
    }

    /// Returns when [`Input::Timer`] is due, after `now`.
    pub fn next_due(&self, now: Instant) -> Option<Instant> {
        let (outlier_detection, patience) = (&self.config.outlier_detection, Patience::of(&self.config));
        let of_member = |backend: &Backend| backend.next_due(outlier_detection, patience, now);
        let others = [self.formers.next_due(now), self.forgets_at].into_iter().flatten();
        self.backends.values().filter_map(of_member).chain(others).min()
    }

    /// Requests a table for the current view, unless that was the last request.
    fn request_table(&mut self, cause: Cause) -> Option<Rebuild> {
        let request = self.request()?;
        if self.requested.as_ref() == Some(&request) {
            return None;
        }
        let (ring, view) = request.clone();
        self.requested = Some(request);
        Some(Rebuild { cause, ring, view, previous: self.table.clone(), room: usize::MAX })
    }

    /// Requests the published table with fewer of the tables before it, again and again until a table is published. What
    /// has changed since is no part of it: that has a request of its own, and its table keeps fewer as well.
    fn request_forgetting(&mut self, now: Instant) -> Option<Rebuild> {
        self.forgets_at = Some(now + FORGETS_AGAIN_AFTER);
        self.table.as_ref().map(Rebuild::forgetting)
    }

    /// Returns all that a table depends on; `None` before the first set.
    fn request(&self) -> Option<(Ring, View)> {
        Some((self.config.ring, self.view()?))
    }
}

// === impl Note ===

impl Note {
    /// Returns the backend that the note is about; `None` if it is about the pool.
    pub(super) fn identity(&self) -> Option<&Arc<str>> {
        match self {
            Self::Ejected { identity, .. } | Self::Left { identity, .. } => Some(identity),
            Self::ProbeFailed(identity) | Self::Returned(identity) | Self::Held(identity) | Self::Away(identity) => {
                Some(identity)
            }
            Self::Floor { .. } | Self::Panic { .. } => None,
        }
    }

    fn ejected(identity: &Arc<str>, Ejected { reason, period }: Ejected) -> Self {
        Self::Ejected { identity: Arc::clone(identity), reason, period }
    }
}

/// Returns the cause of a change that came neither from discovery nor from the configuration.
fn cause_of(notes: &[Note]) -> Cause {
    let cause = |note: &Note| match note {
        Note::Panic { .. } => Some(Cause::Panic),
        Note::Left { .. } | Note::Away(_) => Some(Cause::Departure),
        Note::Ejected { .. } => Some(Cause::Ejection),
        Note::Returned(_) => Some(Cause::Return),
        Note::Held(_) | Note::ProbeFailed(_) | Note::Floor { .. } => None,
    };
    // The last note is about the change with the widest effect.
    notes.iter().rev().find_map(cause).unwrap_or(Cause::Discovery)
}
