//! What a pool's membership remembers for those who ask: how each backend stands and since when, and the last changes.
//!
//! Written by the pool's task, read by the admin pages. Nothing is decided by it.

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
    ring::Table,
};

/// Changes that are kept; older ones are forgotten.
pub const KEPT_CHANGES: usize = 64;

/// Backends that one list of a change names before it only counts: 64 changes of 2,048 backends would be megabytes.
pub const NAMED: usize = 100;

/// The memory of one pool. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Record(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    hold_down: Duration,
    standings: BTreeMap<Arc<str>, Standing>,
    panicking: bool,
    changes: VecDeque<Arc<Past>>,
}

/// How one backend stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its state.
    pub state: BackendState,
    /// Since when it is in it.
    pub since: SystemTime,
    /// When it is let go, if it is held.
    pub held_until: Option<SystemTime>,
    /// Why it was ejected last.
    pub ejected_for: Option<&'static str>,
    /// The last failure of the way to it, as metrics name it, and when it was heard of.
    pub last_failure: Option<(&'static str, SystemTime)>,
}

/// A change of the ring, as it is remembered.
#[derive(Clone, Debug)]
pub struct Past {
    /// When its table was published.
    pub at: SystemTime,
    /// Why.
    pub cause: Cause,
    /// The generation of its table.
    pub generation: u64,
    /// How long the table took to build.
    pub took: Duration,
    /// The share of slots with another owner than before.
    pub moved: f64,
    /// Members since then.
    pub added: Names,
    /// Members until then.
    pub removed: Names,
    /// Members whose slots go elsewhere since then.
    pub ejected: Names,
    /// Members that have their slots back.
    pub returned: Names,
    /// The membership fingerprint before (none before the first table) and after.
    pub membership: (Option<u64>, u64),
    /// The placement fingerprint before and after.
    pub placement: (Option<u64>, u64),
}

/// Some backends, the first [`NAMED`] of them by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Those that are named, sorted.
    pub named: Vec<Arc<str>>,
    /// How many there are.
    pub count: usize,
}

// === impl Record ===

impl Record {
    /// Nothing is known yet; `hold_down` is how long a backend is held that left discovery.
    pub fn new(hold_down: Duration) -> Self {
        let inner = Inner {
            hold_down,
            standings: BTreeMap::new(),
            panicking: false,
            changes: VecDeque::with_capacity(KEPT_CHANGES),
        };
        Self(Arc::new(Mutex::new(inner)))
    }

    /// Another time for those that leave discovery from now on.
    pub(super) fn hold_for(&self, hold_down: Duration) {
        self.lock().hold_down = hold_down;
    }

    /// How every member stands.
    pub fn standings(&self) -> BTreeMap<Arc<str>, Standing> {
        self.lock().standings.clone()
    }

    /// How one member stands.
    pub fn standing(&self, identity: &str) -> Option<Standing> {
        self.lock().standings.get(identity).cloned()
    }

    /// Whether so many fail that none counts as ejected.
    pub fn is_panicking(&self) -> bool {
        self.lock().panicking
    }

    /// The last changes, the oldest first; at most [`KEPT_CHANGES`].
    pub fn changes(&self) -> Vec<Arc<Past>> {
        self.lock().changes.iter().cloned().collect()
    }

    /// The last change.
    pub fn last_change(&self) -> Option<Arc<Past>> {
        self.lock().changes.back().cloned()
    }

    /// Takes note of what a delivery saw.
    pub(super) fn saw(&self, event: &HealthEvent) {
        if event.kind == HealthKind::Answered {
            return;
        }
        if let Some(standing) = self.lock().standings.get_mut(&event.identity) {
            standing.last_failure = Some((event.kind.as_str(), SystemTime::now()));
        }
    }

    /// Takes note of what is believed of every member now, and of what led to it.
    pub(super) fn believe(&self, state: &State, notes: &[Note]) {
        let now = SystemTime::now();
        let mut inner = self.lock();
        let Inner { hold_down, standings, panicking, .. } = &mut *inner;
        *panicking = state.is_panicking();
        let mut before = std::mem::take(standings);
        for (identity, state) in state.states() {
            let mut standing = before.remove(identity).unwrap_or_else(|| Standing::new(state, now));
            standing.become_state(state, now, *hold_down);
            standings.insert(Arc::clone(identity), standing);
        }
        for note in notes {
            if let Note::Ejected { identity, reason, .. } = note
                && let Some(standing) = standings.get_mut(identity)
            {
                standing.ejected_for = Some(reason);
            }
        }
    }

    /// Takes note of a change; to be called before its table is seen.
    pub(super) fn changed(&self, change: &Change, took: Duration) {
        let past = Arc::new(Past::of(change, took));
        let mut inner = self.lock();
        if inner.changes.len() == KEPT_CHANGES {
            inner.changes.pop_front();
        }
        inner.changes.push_back(past);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // What is written under it is whole after every statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Standing ===

impl Standing {
    fn new(state: BackendState, now: SystemTime) -> Self {
        Self { state, since: now, held_until: None, ejected_for: None, last_failure: None }
    }

    fn become_state(&mut self, state: BackendState, now: SystemTime, hold_down: Duration) {
        if self.state != state {
            (self.state, self.since) = (state, now);
        }
        let held = state == BackendState::Draining;
        self.held_until = if held { self.since.checked_add(hold_down) } else { None };
    }
}

// === impl Past ===

impl Past {
    fn of(change: &Change, took: Duration) -> Self {
        let (table, previous) = (&change.table, change.previous.as_ref());
        let away = |table: &Table| -> Vec<Arc<str>> {
            let backends = table.overlay().away().iter().filter_map(|index| table.backends().get(usize::from(*index)));
            backends.map(|backend| Arc::clone(&backend.identity)).collect()
        };
        let (away_now, away_before) = (away(table), previous.map(|table| away(table)).unwrap_or_default());
        let is_member = |identity: &Arc<str>| table.position(identity).is_some();
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
