//! What a ring says of itself: handles of one pool, resolved once, and the series of its backends.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use metrics::{Counter, Gauge};

use super::{
    BackendState,
    state::{Note, State},
};
use crate::{ring::Table, telemetry::metrics as page};

/// The series of one pool.
pub(super) struct Metrics {
    pool: Arc<str>,
    members: [(BackendState, Gauge); 4],
    panic: Gauge,
    returns: Counter,
    probes_answered: Counter,
    probes_failed: Counter,
    generation: Gauge,
    fingerprint: Gauge,
    placement_fingerprint: Gauge,
    moved: Gauge,
    build_duration: Gauge,
    changes: Counter,
    /// Backends that have an ownership series, so that it falls to 0 when they leave.
    known: BTreeSet<Arc<str>>,
    /// Backends that have a series for each state.
    states: BTreeMap<Arc<str>, BackendState>,
}

impl Metrics {
    pub(super) fn new(pool: &Arc<str>) -> Self {
        let gauge = |name: &'static str| metrics::gauge!(name, "pool" => Arc::clone(pool));
        let members = |state: BackendState| {
            (state, metrics::gauge!(page::RING_MEMBERS, "pool" => Arc::clone(pool), "state" => state.as_str()))
        };
        let probes = |result: &'static str| metrics::counter!(page::MEMBERSHIP_PROBES_TOTAL, "pool" => Arc::clone(pool), "result" => result);
        // Reasons are the words of dispatch; the one that is sure to come is there from the start.
        ejections(pool, crate::health::HealthKind::Refused.as_str()).increment(0);
        Self {
            pool: Arc::clone(pool),
            members: BackendState::ALL.map(members),
            panic: gauge(page::MEMBERSHIP_PANIC),
            returns: metrics::counter!(page::MEMBERSHIP_RETURNS_TOTAL, "pool" => Arc::clone(pool)),
            probes_answered: probes("answered"),
            probes_failed: probes("failed"),
            generation: gauge(page::RING_GENERATION),
            fingerprint: gauge(page::RING_FINGERPRINT),
            placement_fingerprint: gauge(page::RING_PLACEMENT_FINGERPRINT),
            moved: gauge(page::RING_MOVED_RATIO),
            build_duration: gauge(page::RING_BUILD_DURATION_SECONDS),
            changes: metrics::counter!(page::RING_CHANGES_TOTAL, "pool" => Arc::clone(pool)),
            known: BTreeSet::new(),
            states: BTreeMap::new(),
        }
    }

    /// Shows `table`, of whose slots `moved` have another owner than before.
    pub(super) fn show(&mut self, table: &Table, moved: f64, took: Duration) {
        self.generation.set(table.generation as f64);
        self.fingerprint.set(table.membership_fingerprint() as f64);
        self.placement_fingerprint.set(table.placement_fingerprint() as f64);
        self.moved.set(moved);
        self.build_duration.set(took.as_secs_f64());
        if table.generation > 1 {
            self.changes.increment(1);
        }
        self.show_ownership(table);
    }

    /// Counts a change of state.
    pub(super) fn note(&self, note: &Note) {
        match note {
            Note::Ejected { reason, .. } => ejections(&self.pool, reason).increment(1),
            Note::Returned(_) => self.returns.increment(1),
            Note::Panic { .. } | Note::Held(_) | Note::Left { .. } | Note::ProbeFailed(_) => {}
        }
    }

    /// Counts a probe.
    pub(super) fn probed(&self, answered: bool) {
        if answered { &self.probes_answered } else { &self.probes_failed }.increment(1);
    }

    /// Shows what is believed of every member. In panic the failing ones stand as ejected, though they are tried.
    pub(super) fn show_states(&mut self, state: &State) {
        self.panic.set(f64::from(u8::from(state.is_panicking())));
        let now: BTreeMap<Arc<str>, BackendState> =
            state.states().map(|(identity, state)| (Arc::clone(identity), state)).collect();
        for (state, gauge) in &self.members {
            gauge.set(now.values().filter(|it| *it == state).count() as f64);
        }
        for gone in self.states.keys().filter(|identity| !now.contains_key(*identity)) {
            BackendState::ALL.into_iter().for_each(|state| self.state(gone, state).set(0.0));
        }
        for (identity, is) in now.iter().filter(|(identity, is)| self.states.get(*identity) != Some(*is)) {
            for state in BackendState::ALL {
                self.state(identity, state).set(f64::from(u8::from(*is == state)));
            }
        }
        self.states = now;
    }

    fn state(&self, backend: &Arc<str>, state: BackendState) -> Gauge {
        metrics::gauge!(
            page::MEMBERSHIP_BACKEND_STATE,
            "pool" => Arc::clone(&self.pool), "backend" => Arc::clone(backend), "state" => state.as_str()
        )
    }

    fn show_ownership(&mut self, table: &Table) {
        let now = table.backends().iter().map(|backend| Arc::clone(&backend.identity)).collect();
        for gone in self.known.difference(&now) {
            self.ownership(gone).set(0.0);
        }
        for (backend, share) in table.backends().iter().zip(table.ownership()) {
            self.ownership(&backend.identity).set(share);
        }
        self.known = now;
    }

    fn ownership(&self, backend: &Arc<str>) -> Gauge {
        metrics::gauge!(page::RING_OWNERSHIP_RATIO, "pool" => Arc::clone(&self.pool), "backend" => Arc::clone(backend))
    }
}

/// Rare enough to be looked up each time.
fn ejections(pool: &Arc<str>, reason: &'static str) -> Counter {
    metrics::counter!(page::MEMBERSHIP_EJECTIONS_TOTAL, "pool" => Arc::clone(pool), "reason" => reason)
}
