//! Builds the next table from a view of the pool, on a blocking thread. Parts that did not change are shared with the
//! previous table.

use std::{collections::BTreeSet, sync::Arc};

use tokio::time::Instant;

use crate::{
    endpoint::Endpoints,
    ring::{Base, Overlay, RingError, Table, members_of, memory},
    settings::Ring,
    wall_clock::steady,
};

/// The reason why a table was replaced, for the log and the admin pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Discovery reported other backends, addresses or access.
    Discovery,
    /// A backend left the membership: its `hold_down` ended, or it was ejected while it was absent. Or one with a stable
    /// name is away for so long.
    Departure,
    /// The pool's configuration changed.
    Configuration,
    /// A backend was ejected.
    Ejection,
    /// A backend answered and takes records again.
    Return,
    /// Panic began or ended: more backends fail than may be ejected, so none is.
    Panic,
    /// A table that was replaced some time ago is forgotten. Nothing else changes: neither members nor owners.
    WindowEnd,
}

/// The members and which of them are away. A table depends on nothing else but the algorithm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The members, sorted by identity.
    pub endpoints: Endpoints,
    /// The members whose slots go elsewhere. They are identities, since indexes change with the membership.
    pub away: BTreeSet<Arc<str>>,
    /// The backends that left the membership and fail: they take no more of what began with them.
    pub lost: BTreeSet<Arc<str>>,
}

/// A request for a new table, with everything that is needed to build it on another thread.
#[derive(Debug)]
pub struct Rebuild {
    pub(super) cause: Cause,
    pub(super) ring: Ring,
    pub(super) view: View,
    pub(super) previous: Option<Arc<Table>>,
    /// The memory that the tables may take, in bytes, which the new one replaced and still needs.
    pub(super) room: usize,
}

/// A table that is ready to be published, and the one that it replaces.
#[derive(Debug)]
pub struct Change {
    /// The reason of the change.
    pub cause: Cause,
    /// The new table.
    pub table: Arc<Table>,
    /// The previous table.
    pub previous: Option<Arc<Table>>,
    /// The share of slots with another owner than before; 0 for the first table.
    pub moved: f64,
}

// === impl Cause ===

impl Cause {
    /// Returns the word used in the log and on the admin pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Discovery => "discovery",
            Self::Departure => "departure",
            Self::Configuration => "configuration",
            Self::Ejection => "ejection",
            Self::Return => "return",
            Self::Panic => "panic",
            Self::WindowEnd => "window_end",
        }
    }

    /// Whether the change is announced by discovery, so that it can wait for others.
    pub(super) fn is_planned(self) -> bool {
        matches!(self, Self::Discovery | Self::Departure)
    }
}

// === impl View ===

impl View {
    /// Returns the view that `table` was built from.
    pub(super) fn of(table: &Table) -> Self {
        let identity = |index: &u16| table.backends().get(usize::from(*index)).map(|it| Arc::clone(&it.identity));
        let away = table.overlay().away().iter().filter_map(identity).collect();
        Self { endpoints: table.backends().into(), away, lost: table.lost().cloned().collect() }
    }
}

// === impl Rebuild ===

impl Rebuild {
    /// Requests `table` anew without the tables before it that are to be forgotten.
    pub(super) fn forgetting(table: &Arc<Table>) -> Self {
        let (ring, view, previous) = (Self::ring_of(table), View::of(table), Some(Arc::clone(table)));
        Self { cause: Cause::WindowEnd, ring, view, previous, room: usize::MAX }
    }

    /// Returns the keys of the ring that `table` was built with.
    pub(super) fn ring_of(table: &Table) -> Ring {
        Ring { algorithm: table.base().algorithm(), handoff: table.history().handoff() }
    }

    /// Returns whether the build can wait for other changes, if `table` is the published one: discovery announced the
    /// change, and the same backends fail as in that table.
    pub(super) fn can_wait(&self, table: Option<&Table>) -> bool {
        self.cause.is_planned() && table.is_none_or(|table| self.has_failures_of(table))
    }

    /// Returns whether the build changes what discovery tells of, if `table` is the published one.
    pub(super) fn is_of_discovery(&self, table: Option<&Table>) -> bool {
        self.cause.is_planned() || table.is_some_and(|table| *table.backends() != *self.view.endpoints)
    }

    /// Returns whether the backends that fail are those of `table`. One that the table has not as a target does not matter,
    /// nor does one that is gone.
    fn has_failures_of(&self, table: &Table) -> bool {
        let View { endpoints, lost, .. } = &self.view;
        let failed: BTreeSet<&Arc<str>> = table.lost().collect();
        let is_target = |identity: &&Arc<str>| table.target(identity).is_some();
        let is_member = |it: &Arc<str>| endpoints.binary_search_by(|endpoint| endpoint.identity.cmp(it)).is_ok();
        lost.iter().filter(is_target).all(|identity| failed.contains(identity))
            && failed.into_iter().all(|identity| lost.contains(identity) || !is_member(identity))
    }

    /// Returns the view that the table is built from.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Returns about how much memory the build takes.
    pub(super) fn memory(&self) -> usize {
        memory::of_build(self.ring.algorithm, &self.view.endpoints)
    }

    /// Returns the same request for a process that has published `table` meanwhile; `None` if that table is what was
    /// requested.
    pub(super) fn after(self, table: Option<&Arc<Table>>) -> Option<Self> {
        let is_there = table.is_some_and(|table| self.is_for(table));
        (!is_there).then(|| Self { previous: table.cloned(), ..self })
    }

    /// Returns whether `table` is what was requested.
    pub(super) fn is_for(&self, table: &Table) -> bool {
        if self.cause == Cause::WindowEnd {
            // A table that was published meanwhile has forgotten what was due.
            return self.previous.as_ref().is_none_or(|previous| previous.generation != table.generation);
        }
        let View { endpoints, away, lost } = View::of(table);
        let is_lost = |identity: &Arc<str>| self.view.lost.contains(identity);
        let is_needed = |identity: &&Arc<str>| table.target(identity).is_some();
        table.base().algorithm() == self.ring.algorithm
            && table.history().handoff() == self.ring.handoff
            && (endpoints == self.view.endpoints && away == self.view.away)
            && lost.iter().all(is_lost)
            && self.view.lost.iter().filter(is_needed).count() == lost.len()
    }

    /// Builds the table. This takes tens of milliseconds with hundreds of backends, so it belongs on a blocking thread.
    ///
    /// Unchanged parts are shared with the previous table, so that a new address costs almost nothing. The table replaces
    /// the previous one at the time `at`.
    pub fn run(self, at: Instant) -> Result<Change, RingError> {
        let base = self.base()?;
        let overlay = self.overlay(&base);
        let generation = self.previous.as_ref().map_or(1, |table| table.generation + 1);
        let table = Table::new(generation, base, overlay, self.view.endpoints);
        let moved = self.previous.as_ref().map_or(0.0, |previous| table.moved_share(previous));
        let table = match &self.previous {
            Some(previous) => {
                let lost = &self.view.lost;
                table.replacing(previous, steady(at), self.ring.handoff, lost).within(self.room, lost)
            }
            None => table.with_handoff(self.ring.handoff),
        };
        Ok(Change { cause: self.cause, table: Arc::new(table), previous: self.previous, moved })
    }

    fn base(&self) -> Result<Arc<Base>, RingError> {
        let members = members_of(&self.view.endpoints);
        let same = |base: &&Arc<Base>| base.algorithm() == self.ring.algorithm && *base.members() == *members;
        match self.previous.as_ref().map(|table| table.base()).filter(same) {
            Some(base) => Ok(Arc::clone(base)),
            None => Base::build_with(self.ring.algorithm, &members).map(Arc::new),
        }
    }

    fn overlay(&self, base: &Arc<Base>) -> Overlay {
        let indexes = (0..).zip(base.members()).filter(|(_, member)| self.view.away.contains(&member.identity));
        let away = indexes.map(|(index, _)| index).collect();
        let same = |table: &&Arc<Table>| Arc::ptr_eq(table.base(), base) && *table.overlay().away() == away;
        match self.previous.as_ref().filter(same) {
            Some(table) => table.overlay().clone(),
            None => base.overlay(&away),
        }
    }
}

// === impl Change ===

impl Change {
    /// Returns the identities that are in the new table only.
    pub fn added(&self) -> Vec<Arc<str>> {
        difference(Some(&self.table), self.previous.as_ref())
    }

    /// Returns the identities that are in the previous table only.
    pub fn removed(&self) -> Vec<Arc<str>> {
        difference(self.previous.as_ref(), Some(&self.table))
    }
}

fn difference(of: Option<&Arc<Table>>, without: Option<&Arc<Table>>) -> Vec<Arc<str>> {
    let is_new = |identity: &Arc<str>| without.is_none_or(|table| table.position(identity).is_none());
    let identities = of.into_iter().flat_map(|table| table.backends()).map(|backend| Arc::clone(&backend.identity));
    identities.filter(is_new).collect()
}
