//! Backends that left the membership and still take what began with them. Pure.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::backend::Backend;
use crate::ring::Table;

/// How long a backend that left is kept beyond the time for which tables are kept: its departure is noted before the table
/// without it is built.
const BUILT_WITHIN: Duration = Duration::from_secs(5);

/// The backends that left and may still be targets of a table.
#[derive(Debug, Default)]
pub(super) struct Formers(BTreeMap<Arc<str>, Former>);

/// A backend that left the membership.
#[derive(Debug)]
struct Former {
    backend: Backend,
    /// Until when it is kept even if no table has it as a target.
    until: Instant,
}

// === impl Formers ===

impl Formers {
    /// Adds a backend that leaves now. Nothing is kept where no tables are.
    pub(super) fn insert(&mut self, identity: Arc<str>, backend: Backend, kept_for: Duration, now: Instant) {
        if !kept_for.is_zero() {
            self.0.insert(identity, Former { backend, until: now + kept_for + BUILT_WITHIN });
        }
    }

    /// Removes a backend, which joins again.
    pub(super) fn remove(&mut self, identity: &Arc<str>) -> Option<Backend> {
        self.0.remove(identity).map(|former| former.backend)
    }

    /// Forgets the backends that `table`, which is published, has not as targets, nor any table that may be built yet.
    /// Returns whether there were any. What is known about the health of a target is never forgotten: tables that were
    /// merged, or that a longer window keeps, have targets for longer than others.
    pub(super) fn forget(&mut self, table: Option<&Table>, now: Instant) -> bool {
        let before = self.0.len();
        let is_target = |identity: &Arc<str>| table.is_some_and(|table| table.target(identity).is_some());
        self.0.retain(|identity, former| former.until > now || is_target(identity));
        before != self.0.len()
    }

    pub(super) fn get_mut(&mut self, identity: &Arc<str>) -> Option<&mut Backend> {
        self.0.get_mut(identity).map(|former| &mut former.backend)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&Arc<str>, &mut Backend)> {
        self.0.iter_mut().map(|(identity, former)| (identity, &mut former.backend))
    }

    /// Iterates over those that are ejected.
    pub(super) fn ejected(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.iter().filter(|(_, former)| former.backend.is_ejected()).map(|(identity, _)| identity)
    }

    /// Returns when a probe is due, or something may be forgotten. What is a target for longer is forgotten with its table.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        let due = |former: &Former| [Some(former.until).filter(|at| *at > now), former.backend.next_probe()];
        self.0.values().flat_map(due).flatten().min()
    }
}
