//! The record of a pool's membership for the admin pages: the state of each backend since when, and the latest changes
//! of the ring.
//!
//! The pool's task writes the record and the admin pages read it. No decision depends on it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use super::{
    BackendState,
    build::{Cause, Change},
    state::{Note, State},
};
use crate::{
    health::{HealthEvent, HealthKind},
    ring::{History, Table},
    wall_clock::Moment,
};

/// The number of changes that are kept.
pub const KEPT_CHANGES: usize = 64;

/// The number of backends that one list of a change names; further ones are only counted. With all names, 64 changes of
/// 2,048 backends would take megabytes.
pub const NAMED: usize = 100;

/// The record of one pool. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Record(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    standings: BTreeMap<Arc<str>, Standing>,
    panicking: bool,
    changes: VecDeque<Arc<RingChange>>,
}

/// The state of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The state.
    pub state: BackendState,
    /// When the backend entered this state.
    pub since: SystemTime,
    /// When a draining backend will be removed.
    pub held_until: Option<SystemTime>,
    /// The reason of the last ejection.
    pub ejected_for: Option<&'static str>,
    /// The last failure to reach the backend, by its name in metrics, and when it was reported.
    pub last_failure: Option<(&'static str, SystemTime)>,
}

/// A change of the ring that has happened.
#[derive(Clone, Debug)]
pub struct RingChange {
    /// When the table was published.
    pub at: SystemTime,
    /// The reason of the change.
    pub cause: Cause,
    /// The generation of the table.
    pub generation: u64,
    /// How long the table took to build.
    pub took: Duration,
    /// The share of slots that changed their owner.
    pub moved: f64,
    /// Members that joined.
    pub added: Names,
    /// Members that left.
    pub removed: Names,
    /// Members that were ejected, so that their slots go to others.
    pub ejected: Names,
    /// Members that got their slots back.
    pub returned: Names,
    /// The membership fingerprints before (`None` for the first table) and after.
    pub membership: (Option<u64>, u64),
    /// The placement fingerprints before and after.
    pub placement: (Option<u64>, u64),
    /// Until when the table before counts for traces that began with it, if slots moved and they are handed off.
    pub handoff_until: Option<SystemTime>,
}

/// A list of backends, of which at most [`NAMED`] are named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The first [`NAMED`] backends, sorted.
    pub named: Vec<Arc<str>>,
    /// The number of all backends in the list.
    pub count: usize,
}

// === impl Record ===

impl Record {
    /// Creates an empty record.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the states of all members.
    pub fn standings(&self) -> BTreeMap<Arc<str>, Standing> {
        self.lock().standings.clone()
    }

    /// Returns the state of one member.
    pub fn standing(&self, identity: &str) -> Option<Standing> {
        self.lock().standings.get(identity).cloned()
    }

    /// Returns whether more backends fail than may be ejected, so that none is.
    pub fn is_panicking(&self) -> bool {
        self.lock().panicking
    }

    /// Returns the latest changes, the oldest first; at most [`KEPT_CHANGES`].
    pub fn changes(&self) -> Vec<Arc<RingChange>> {
        self.lock().changes.iter().cloned().collect()
    }

    /// Returns the latest change.
    pub fn last_change(&self) -> Option<Arc<RingChange>> {
        self.lock().changes.back().cloned()
    }

    /// Records a failure that a delivery observed.
    pub(super) fn note_failure(&self, event: &HealthEvent) {
        if event.kind == HealthKind::Answered {
            return;
        }
        if let Some(standing) = self.lock().standings.get_mut(&event.identity) {
            standing.last_failure = Some((event.kind.as_str(), SystemTime::now()));
        }
    }

    /// Records the states of all members.
    pub(super) fn update(&self, state: &State) {
        let now = SystemTime::now();
        let mut inner = self.lock();
        let Inner { standings, panicking, .. } = &mut *inner;
        *panicking = state.is_panicking();
        standings.retain(|identity, _| state.state_of(identity).is_some());
        for (identity, its_state) in state.states() {
            stand(standings, identity, its_state, state, now);
        }
    }

    /// Records the states of the members that `notes` are about; those of the others have not changed.
    pub(super) fn update_changed(&self, state: &State, notes: &[Note]) {
        let now = SystemTime::now();
        let mut inner = self.lock();
        let Inner { standings, panicking, .. } = &mut *inner;
        *panicking = state.is_panicking();
        for identity in notes.iter().filter_map(Note::identity) {
            match state.state_of(identity) {
                Some(its_state) => stand(standings, identity, its_state, state, now),
                None => drop(standings.remove(identity)),
            }
        }
    }

    /// Records the reasons of new ejections.
    pub(super) fn note_ejections(&self, notes: &[Note]) {
        let mut inner = self.lock();
        for note in notes {
            if let Note::Ejected { identity, reason, .. } = note
                && let Some(standing) = inner.standings.get_mut(identity)
            {
                standing.ejected_for = Some(reason);
            }
        }
    }

    /// Records a change. It is called before the table is published.
    pub(super) fn note_change(&self, change: &Change, took: Duration) {
        let change = Arc::new(RingChange::of(change, took));
        let mut inner = self.lock();
        if inner.changes.len() == KEPT_CHANGES {
            inner.changes.pop_front();
        }
        inner.changes.push_back(change);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The data under the lock are consistent after every statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Records the state of one member.
fn stand(
    standings: &mut BTreeMap<Arc<str>, Standing>,
    identity: &Arc<str>,
    its_state: BackendState,
    state: &State,
    now: SystemTime,
) {
    let stays_for = state.stays_for(identity);
    match standings.get_mut(identity) {
        Some(standing) => standing.set_state(its_state, now, stays_for),
        None => {
            let mut standing = Standing::new(its_state, now);
            standing.set_state(its_state, now, stays_for);
            standings.insert(Arc::clone(identity), standing);
        }
    }
}

// === impl Standing ===

impl Standing {
    fn new(state: BackendState, now: SystemTime) -> Self {
        Self { state, since: now, held_until: None, ejected_for: None, last_failure: None }
    }

    fn set_state(&mut self, state: BackendState, now: SystemTime, stays_for: Option<Duration>) {
        if self.state != state {
            (self.state, self.since) = (state, now);
        }
        let held = state == BackendState::Draining;
        self.held_until = stays_for.filter(|_| held).and_then(|time| self.since.checked_add(time));
    }
}

// === impl RingChange ===

impl RingChange {
    fn of(change: &Change, took: Duration) -> Self {
        let (table, previous) = (&change.table, change.previous.as_ref());
        let away = |table: &Table| -> Vec<Arc<str>> {
            let backends = table.overlay().away().iter().filter_map(|index| table.backends().get(usize::from(*index)));
            backends.map(|backend| Arc::clone(&backend.identity)).collect()
        };
        let (away_now, away_before) = (away(table), previous.map(|table| away(table)).unwrap_or_default());
        let is_member = |identity: &Arc<str>| table.position(identity).is_some();
        // The table before is the last of those that are kept.
        let kept = Some(table.history()).filter(|_| previous.is_some() && change.moved > 0.0);
        let until = kept.and_then(History::last_end).map(|end| Moment::now().unix_at(end));
        Self {
            at: SystemTime::now(),
            cause: change.cause,
            generation: table.generation,
            took,
            moved: change.moved,
            added: Names::of(change.added().into_iter()),
            removed: Names::of(change.removed().into_iter()),
            ejected: Names::of(away_now.iter().filter(|it| !away_before.contains(it)).cloned()),
            returned: Names::of(away_before.iter().filter(|it| !away_now.contains(it) && is_member(it)).cloned()),
            membership: (previous.map(|table| table.membership_fingerprint()), table.membership_fingerprint()),
            placement: (previous.map(|table| table.placement_fingerprint()), table.placement_fingerprint()),
            handoff_until: until.map(|until| SystemTime::UNIX_EPOCH + Duration::from_nanos(until)),
        }
    }
}

// === impl Names ===

impl Names {
    fn of(mut identities: impl Iterator<Item = Arc<str>>) -> Self {
        let named: Vec<Arc<str>> = identities.by_ref().take(NAMED).collect();
        Self { count: named.len() + identities.count(), named }
    }
}
