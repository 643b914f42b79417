//! When tables are built: one at a time in the process, on a blocking thread, and not too often.
//!
//! A change is not built at once if a table was built a moment ago. What changes meanwhile goes into the same table: a
//! thousand ejections within a moment lead to two tables and not to a thousand.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Semaphore,
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep_until},
};

use super::{
    BuildError,
    build::{Cause, Change, Rebuild},
};
use crate::{
    budget::{Budget, Permit, Use},
    endpoint::Endpoints,
    ring::{Table, memory},
};

/// The least time between two builds of a pool. A single change waits for nothing.
pub(super) const LEAST_PAUSE: Duration = Duration::from_millis(20);

/// A pause is so many times as long as the build before it: builds of large pools take at most a tenth of one
/// processor's time.
const PAUSE_PER_BUILD: u32 = 9;

/// The longest pause, after which a failed backend's traces still go elsewhere before their clients give up.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The least time between two tables of a pool that discovery causes. Each of them opens a window of a hand-off, and only
/// so many are kept ([`crate::ring::history::MOST_KEPT`]). A single change waits for nothing.
pub(super) const PLANNED_PAUSE: Duration = Duration::from_secs(2);

/// The part of the requests' share of memory that the replaced tables of all pools may take, beyond one table of each: a
/// fourth. If pools change often while memory is tight, their tables must leave room for requests.
const KEPT_PART: usize = 4;

/// What the builds of all pools share: only one runs at a time, and their memory is counted. Clones share it.
#[derive(Clone, Debug)]
pub struct Builder {
    turn: Arc<Semaphore>,
    /// The account of the process.
    pub budget: Budget,
}

/// The builds of one pool.
#[derive(Debug)]
pub(super) struct Builds {
    builder: Builder,
    /// The latest request that is not being built yet.
    wanted: Option<Rebuild>,
    running: Option<JoinHandle<Built>>,
    /// The members of the table that is built, or was built last.
    members: Endpoints,
    not_before: Instant,
    /// The earliest time of the next table that discovery causes.
    planned_not_before: Instant,
    /// The memory of the published table, and of the tables that it replaced and still needs.
    held: Option<(Permit, Permit)>,
}

/// A finished build and how long it took.
pub(super) type Built = Result<(Change, Duration), BuildError>;

// === impl Builder ===

impl Builder {
    /// Counts the memory of tables in `budget`.
    pub fn new(budget: Budget) -> Self {
        Self { turn: Arc::new(Semaphore::new(1)), budget }
    }
}

// === impl Builds ===

impl Builds {
    pub(super) fn new(builder: Builder) -> Self {
        let (members, now) = (Arc::default(), Instant::now());
        Self { builder, wanted: None, running: None, members, not_before: now, planned_not_before: now, held: None }
    }

    /// Requests a table instead of the one that was requested before, unless that is being built already. The end of a window
    /// gives way to both, since any table forgets what is due. It is requested again if there is none in the end.
    pub(super) fn want(&mut self, rebuild: Rebuild) {
        let gives_way = rebuild.cause == Cause::WindowEnd && (self.wanted.is_some() || self.running.is_some());
        if !gives_way {
            self.replace(Some(rebuild));
        }
    }

    /// Requests a table, or none, instead of the one that was requested before.
    pub(super) fn replace(&mut self, rebuild: Option<Rebuild>) {
        self.wanted = rebuild;
    }

    /// Returns whether the table that is requested has other members than the one that was built last.
    pub(super) fn has_other_members(&self) -> bool {
        self.wanted.as_ref().is_some_and(|wanted| wanted.view().endpoints != self.members)
    }

    /// Returns whether the members are again as `table` has them, so that the table that was built in between is not
    /// needed. The request is withdrawn then.
    pub(super) fn is_back_at(&mut self, table: Option<&Arc<Table>>) -> bool {
        let is_back = self.wanted.as_ref().zip(table).is_some_and(|(wanted, table)| wanted.is_for(table));
        if is_back {
            self.wanted = None;
        }
        is_back
    }

    /// Waits for the next table; for ever while none is requested. `published` is the current one.
    ///
    /// Cancel safety: a build that has begun goes on, and the next call waits for it.
    pub(super) async fn next(&mut self, published: Option<&Arc<Table>>) -> Built {
        loop {
            if let Some(running) = &mut self.running {
                let built = running.await.unwrap_or_else(|error| Err(BuildError::Thread(error)));
                self.running = None;
                let took = built.as_ref().map_or(Duration::ZERO, |(_, took)| *took);
                self.not_before = Instant::now() + (took * PAUSE_PER_BUILD).clamp(LEAST_PAUSE, LONGEST_PAUSE);
                return built;
            }
            let Some(wanted) = &self.wanted else { return std::future::pending().await };
            let current = published.map(|table| &**table);
            let pause = if wanted.can_wait(current) { self.planned_not_before } else { self.not_before };
            sleep_until(pause.max(self.not_before)).await;
            let Ok(turn) = Arc::clone(&self.builder.turn).acquire_owned().await else { continue };
            let Some(rebuild) = self.wanted.take().and_then(|wanted| wanted.after(published)) else { continue };
            let rebuild = Rebuild { room: self.room(), ..rebuild };
            // A table is never refused for lack of room: without it, records would go to backends that are gone.
            let permit = self.builder.budget.count_for(Use::Builds, rebuild.memory());
            self.members = Arc::clone(&rebuild.view().endpoints);
            if rebuild.is_of_discovery(current) {
                self.planned_not_before = Instant::now() + PLANNED_PAUSE;
            }
            self.running = Some(spawn_blocking(move || {
                let begun = Instant::now();
                let built = rebuild.run(begun).map_err(BuildError::Ring);
                drop((permit, turn));
                built.map(|change| (change, begun.elapsed()))
            }));
        }
    }

    /// Counts the memory of a table that is published instead of the one before.
    pub(super) fn hold(&mut self, table: &Table) {
        let Builder { budget, .. } = &self.builder;
        self.held = Some((
            budget.count_for(Use::Tables, memory::of_table(table)),
            budget.count_for(Use::KeptTables, memory::of_kept(table)),
        ));
    }

    /// Returns how much memory the replaced tables of this pool may take.
    fn room(&self) -> usize {
        let Builder { budget, .. } = &self.builder;
        let own = self.held.as_ref().map_or(0, |(_, kept)| kept.bytes());
        let of_others = budget.used_for(Use::KeptTables).saturating_sub(own);
        (budget.limit() / KEPT_PART).saturating_sub(of_others)
    }
}
