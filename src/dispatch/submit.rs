//! Submits the parts of a request: takes room for all of them or for none, and then puts each into its owner's queue.

use std::{
    cell::Cell,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::time::Instant;

use super::{Cause, Config, Join, Part, backend::Backend, queued::Queued};
use crate::{
    ring::Table,
    settings::{Compression, RetryOnFailure},
};

/// A view: one table and the queues of its backends. Parts must be submitted to the view of the table that cut them.
pub struct View {
    table: Arc<Table>,
    /// By shard, then by backend index.
    shards: Box<[Box<[Arc<Backend>]>]>,
    max_request_size: usize,
    compression: Compression,
    retry: RetryOnFailure,
}

/// The error of [`View::submit`]: no part was queued.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct NotQueued {
    /// The reason.
    pub why: WhyNotQueued,
    /// The parts, in their order.
    pub parts: Vec<Part>,
}

/// The reason why a request's parts were not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WhyNotQueued {
    /// The queue of the backend with this index has no room.
    #[error("the queue of a backend is full")]
    Full(u32),
    /// A part is for a backend that the view does not have. Since parts are cut by the table of their view, this is a defect of
    /// this program.
    #[error("a part is for a backend that is not in its table")]
    NoSuchBackend,
}

impl View {
    pub(super) fn new(table: Arc<Table>, shards: Box<[Box<[Arc<Backend>]>]>, config: &Config) -> Self {
        Self {
            table,
            shards,
            max_request_size: config.keys.max_request_size_mib.bytes,
            compression: config.keys.compression,
            retry: config.keys.retry_on_failure,
        }
    }

    /// The table.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// The maximum number of payload bytes of a part. Backends would refuse a larger one.
    pub fn max_request_size(&self) -> usize {
        self.max_request_size
    }

    /// The compression of calls.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// The settings for pauses between retries.
    pub fn retry(&self) -> RetryOnFailure {
        self.retry
    }

    /// Whether the backend with this identity takes records.
    pub fn serves(&self, identity: &str) -> bool {
        self.living(identity).is_some()
    }

    /// Whether the backend with this identity owns slots: it is a member, and others do not have its slots.
    pub fn owns_slots(&self, identity: &str) -> bool {
        let is_member = |target: &u16| usize::from(*target) < self.table.backends().len();
        let member = self.table.target(identity).filter(is_member);
        member.is_some_and(|target| !self.table.overlay().away().contains(&target))
    }

    /// The index of the backend with this identity among the table's targets, if it takes records.
    pub fn living(&self, identity: &str) -> Option<u32> {
        self.table.target(identity).filter(|target| !self.table.is_away(*target)).map(u32::from)
    }

    /// The identity of the backend with this index among the table's targets.
    pub fn identity_of(&self, backend: u32) -> Arc<str> {
        self.table.targets().get(backend as usize).map_or_else(|| "?".into(), |backend| Arc::clone(&backend.identity))
    }

    /// Readmits the backends that have their own slots. Must be called before the view is published, so that these backends
    /// accept the parts that are submitted to it.
    pub(super) fn readmit(&self) {
        self.backends_that(false).for_each(|backend| backend.readmit());
    }

    /// Ejects the backends whose slots are assigned to others. Must be called after the view is published, so that the parts
    /// they hand back are placed by it.
    pub(super) fn eject(&self) {
        self.backends_that(true).for_each(|backend| backend.stand_down(Cause::Ejected));
    }

    fn backends_that(&self, are_away: bool) -> impl Iterator<Item = &Arc<Backend>> {
        let backends = self.shards.iter().flat_map(|shard| (0..).zip(shard));
        backends.filter(move |(at, _)| self.table.is_away(*at) == are_away).map(|(_, backend)| backend)
    }

    pub(super) fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.shards.iter().flatten()
    }

    /// Queues all parts, or none if one of their owners' queues has no room. Their outcomes arrive at `join`.
    ///
    /// A part that is larger than a whole queue is accepted if that queue is empty.
    pub fn submit(&self, parts: Vec<Part>, join: &Join) -> Result<(), NotQueued> {
        let Some(owners) = self.owners_of(&parts) else {
            return Err(NotQueued { why: WhyNotQueued::NoSuchBackend, parts });
        };
        let needs = needs_of(&parts, &owners);
        if let Some(at) = needs.iter().position(|need| !need.owner.admit(need.bytes)) {
            for need in needs.iter().take(at) {
                need.owner.capacity.give_back(need.bytes);
            }
            let backend = needs.get(at).map_or(0, |full| {
                full.owner.metrics.queue_full.increment(1);
                full.backend
            });
            return Err(NotQueued { why: WhyNotQueued::Full(backend), parts });
        }
        let inbox = join.inbox();
        inbox.expect(parts.len());
        let now = Instant::now();
        for (part, owner) in parts.into_iter().zip(owners) {
            owner.push(std::iter::once(Queued::from_part(part, inbox, now)), now);
        }
        Ok(())
    }

    /// Queues a copy, if half of its backend's queue stays free for parts that count. Returns whether it did. Its outcome
    /// arrives at `join`.
    pub fn submit_copy(&self, part: Part, join: &Join) -> bool {
        let shard = self.shards.get(shard_of_thread() % self.shards.len().max(1));
        let Some(owner) = shard.and_then(|shard| shard.get(usize::try_from(part.backend).ok()?)) else { return false };
        let is_queued = owner.capacity.take_of_half(part.message.framed_len());
        if is_queued {
            let (inbox, now) = (join.inbox(), Instant::now());
            inbox.expect(1);
            owner.push(std::iter::once(Queued::from_part(part, inbox, now)), now);
        }
        is_queued
    }

    /// The backend of each part, on this thread's shard; `None` if the view lacks one of them.
    fn owners_of(&self, parts: &[Part]) -> Option<Vec<&Arc<Backend>>> {
        let shard = self.shards.get(shard_of_thread() % self.shards.len().max(1))?;
        parts.iter().map(|part| shard.get(usize::try_from(part.backend).ok()?)).collect()
    }
}

/// The room that a request takes in one queue.
struct Need<'a> {
    backend: u32,
    owner: &'a Arc<Backend>,
    bytes: usize,
}

/// Returns the room that the parts take in each queue. There is one entry for each backend, so that several parts for one queue
/// get room together or not at all.
fn needs_of<'a>(parts: &[Part], owners: &[&'a Arc<Backend>]) -> Vec<Need<'a>> {
    let need = |(part, owner): (&Part, &&'a Arc<Backend>)| Need {
        backend: part.backend,
        owner,
        bytes: part.message.framed_len(),
    };
    let mut needs: Vec<Need<'a>> = parts.iter().zip(owners).map(need).collect();
    needs.sort_unstable_by_key(|need| need.backend);
    needs.dedup_by(|next, kept| {
        let same = next.backend == kept.backend;
        kept.bytes += if same { next.bytes } else { 0 };
        same
    });
    needs
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("shards", &self.shards.len()).finish_non_exhaustive()
    }
}

/// Returns this thread's number. Threads are numbered in the order of their first call.
fn shard_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: Cell<Option<usize>> = const { Cell::new(None) };
    }
    SHARD.get().unwrap_or_else(|| {
        let shard = NEXT.fetch_add(1, Ordering::Relaxed);
        SHARD.set(Some(shard));
        shard
    })
}
