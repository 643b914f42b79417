//! What a ring says of itself: handles of one pool, resolved once, and the series of its backends.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use metrics::{Counter, Gauge};

use crate::ring::Table;

/// Backends in the ring by state.
pub const RING_MEMBERS: &str = "spanring_ring_members";
/// Tables published.
pub const RING_GENERATION: &str = "spanring_ring_generation";
/// The membership fingerprint, 48 bits as a number.
pub const RING_FINGERPRINT: &str = "spanring_ring_fingerprint";
/// The placement fingerprint, 48 bits as a number.
pub const RING_PLACEMENT_FINGERPRINT: &str = "spanring_ring_placement_fingerprint";
/// Each backend's share of the slots.
pub const RING_OWNERSHIP_RATIO: &str = "spanring_ring_ownership_ratio";
/// The share of slots that the last change moved.
pub const RING_MOVED_RATIO: &str = "spanring_ring_moved_ratio";
/// How long the last table took to build.
pub const RING_BUILD_DURATION_SECONDS: &str = "spanring_ring_build_duration_seconds";
/// Tables published after the first.
pub const RING_CHANGES_TOTAL: &str = "spanring_ring_changes_total";

/// The series of one pool.
pub(super) struct Metrics {
    pool: Arc<str>,
    active: Gauge,
    draining: Gauge,
    ejected: Gauge,
    unresolved: Gauge,
    generation: Gauge,
    fingerprint: Gauge,
    placement_fingerprint: Gauge,
    moved: Gauge,
    build_duration: Gauge,
    changes: Counter,
    /// Backends that have an ownership series, so that it falls to 0 when they leave.
    known: BTreeSet<Arc<str>>,
}

impl Metrics {
    pub(super) fn new(pool: &Arc<str>) -> Self {
        let gauge = |name: &'static str| metrics::gauge!(name, "pool" => Arc::clone(pool));
        let members = |state: &'static str| metrics::gauge!(RING_MEMBERS, "pool" => Arc::clone(pool), "state" => state);
        Self {
            pool: Arc::clone(pool),
            active: members("active"),
            draining: members("draining"),
            ejected: members("ejected"),
            unresolved: members("unresolved"),
            generation: gauge(RING_GENERATION),
            fingerprint: gauge(RING_FINGERPRINT),
            placement_fingerprint: gauge(RING_PLACEMENT_FINGERPRINT),
            moved: gauge(RING_MOVED_RATIO),
            build_duration: gauge(RING_BUILD_DURATION_SECONDS),
            changes: metrics::counter!(RING_CHANGES_TOTAL, "pool" => Arc::clone(pool)),
            known: BTreeSet::new(),
        }
    }

    /// Shows `table`, of whose slots `moved` have another owner than before.
    pub(super) fn show(&mut self, table: &Table, moved: f64, took: Duration) {
        self.show_members(table);
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

    /// A backend that is away and has no address counts as ejected only, so that the states add up.
    fn show_members(&self, table: &Table) {
        let away = table.overlay().away();
        let here = (0..).zip(table.backends()).filter(|(index, _)| !away.contains(index));
        let (active, unresolved): (Vec<_>, Vec<_>) = here.partition(|(_, backend)| backend.address.is_some());
        self.active.set(active.len() as f64);
        self.draining.set(0.0);
        self.ejected.set(away.len() as f64);
        self.unresolved.set(unresolved.len() as f64);
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
        metrics::gauge!(RING_OWNERSHIP_RATIO, "pool" => Arc::clone(&self.pool), "backend" => Arc::clone(backend))
    }
}
