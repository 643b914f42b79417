//! Metrics of a pool's ring and backends.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use metrics::{Counter, Gauge};

use super::{
    BackendState,
    build::{Cause, Change},
    state::{Note, State},
};
use crate::{health, ring::Table, telemetry::metrics as page};

/// The metrics of one pool. The series of a backend are held while it is a member. They are set to 0 when it leaves,
/// and the recorder removes them some time later.
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
    windows: Gauge,
    /// Counters by the label `reason`.
    ejections: BTreeMap<&'static str, Counter>,
    /// The share of slots of each backend in the table.
    ownership: BTreeMap<Arc<str>, Gauge>,
    /// Each member's state, and its series for each of the states.
    states: BTreeMap<Arc<str>, (BackendState, [Gauge; BackendState::ALL.len()])>,
}

impl Metrics {
    pub(super) fn new(pool: &Arc<str>) -> Self {
        let gauge = |name: &'static str| metrics::gauge!(name, "pool" => Arc::clone(pool));
        let members = |state: BackendState| {
            (state, metrics::gauge!(page::RING_MEMBERS, "pool" => Arc::clone(pool), "state" => state.as_str()))
        };
        let probes = |result: &'static str| metrics::counter!(page::MEMBERSHIP_PROBES_TOTAL, "pool" => Arc::clone(pool), "result" => result);
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
            windows: gauge(page::HANDOFF_WINDOWS),
            ejections: health::REASONS.into_iter().map(|reason| (reason, ejections(pool, reason))).collect(),
            ownership: BTreeMap::new(),
            states: BTreeMap::new(),
        }
    }

    /// Records a published table. `took` is the build time.
    pub(super) fn show(&mut self, change: &Change, took: Duration) {
        let table = &*change.table;
        self.generation.set(table.generation as f64);
        self.windows.set(table.history().len() as f64);
        if change.cause == Cause::WindowEnd {
            return;
        }
        self.fingerprint.set(table.membership_fingerprint() as f64);
        self.placement_fingerprint.set(table.placement_fingerprint() as f64);
        self.moved.set(change.moved);
        self.build_duration.set(took.as_secs_f64());
        if table.generation > 1 {
            self.changes.increment(1);
        }
        self.show_ownership(table);
    }

    /// Counts a change of state.
    pub(super) fn note(&mut self, note: &Note) {
        match note {
            Note::Ejected { reason, .. } => {
                self.ejections.entry(reason).or_insert_with(|| ejections(&self.pool, reason)).increment(1);
            }
            Note::Returned(_) => self.returns.increment(1),
            Note::Panic { .. }
            | Note::Floor { .. }
            | Note::Held(_)
            | Note::Away(_)
            | Note::Left { .. }
            | Note::ProbeFailed(_) => {}
        }
    }

    /// Counts a finished probe.
    pub(super) fn probed(&self, answered: bool) {
        if answered { &self.probes_answered } else { &self.probes_failed }.increment(1);
    }

    /// Records the state of every member. During panic, failing backends still count as ejected here, although they get
    /// records.
    pub(super) fn show_states(&mut self, state: &State) {
        self.states.retain(|identity, (_, series)| {
            let stays = state.state_of(identity).is_some();
            if !stays {
                series.iter().for_each(|gauge| gauge.set(0.0));
            }
            stays
        });
        for (identity, is) in state.states() {
            self.show_state(identity, is);
        }
        self.show_pool(state);
    }

    /// Records the states of the members that `notes` are about; those of the others have not changed.
    pub(super) fn show_changed(&mut self, state: &State, notes: &[Note]) {
        for identity in notes.iter().filter_map(Note::identity) {
            match state.state_of(identity) {
                Some(is) => self.show_state(identity, is),
                None => {
                    let gone = self.states.remove(identity);
                    gone.iter().flat_map(|(_, series)| series).for_each(|gauge| gauge.set(0.0));
                }
            }
        }
        self.show_pool(state);
    }

    fn show_state(&mut self, identity: &Arc<str>, is: BackendState) {
        match self.states.get_mut(identity) {
            Some((was, series)) if *was != is => {
                set_state(series, is);
                *was = is;
            }
            Some(_) => {}
            None => {
                let series = states(&self.pool, identity);
                // Set in any case: the series may be left from a member that had the identity before.
                set_state(&series, is);
                self.states.insert(Arc::clone(identity), (is, series));
            }
        }
    }

    fn show_pool(&self, state: &State) {
        self.panic.set(f64::from(u8::from(state.is_panicking())));
        for (state, gauge) in &self.members {
            gauge.set(self.states.values().filter(|(is, _)| is == state).count() as f64);
        }
    }

    fn show_ownership(&mut self, table: &Table) {
        let mut before = std::mem::take(&mut self.ownership);
        for (backend, share) in table.backends().iter().zip(table.ownership()) {
            let identity = &backend.identity;
            let gauge = before.remove(identity).unwrap_or_else(|| {
                metrics::gauge!(page::RING_OWNERSHIP_RATIO, "pool" => Arc::clone(&self.pool), "backend" => Arc::clone(identity))
            });
            gauge.set(share);
            self.ownership.insert(Arc::clone(identity), gauge);
        }
        before.values().for_each(|gone| gone.set(0.0));
    }
}

fn set_state(series: &[Gauge; BackendState::ALL.len()], is: BackendState) {
    for (state, gauge) in BackendState::ALL.iter().zip(series) {
        gauge.set(f64::from(u8::from(is == *state)));
    }
}

fn states(pool: &Arc<str>, backend: &Arc<str>) -> [Gauge; BackendState::ALL.len()] {
    BackendState::ALL.map(|state| {
        metrics::gauge!(
            page::MEMBERSHIP_BACKEND_STATE,
            "pool" => Arc::clone(pool), "backend" => Arc::clone(backend), "state" => state.as_str()
        )
    })
}

fn ejections(pool: &Arc<str>, reason: &'static str) -> Counter {
    metrics::counter!(page::MEMBERSHIP_EJECTIONS_TOTAL, "pool" => Arc::clone(pool), "reason" => reason)
}
