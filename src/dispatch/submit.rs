//! Room for all parts of a request, or for none; then each into its owner's queue.

use std::{
    cell::Cell,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::time::Instant;

use super::{Config, Join, Part, RetryConfig, backend::Backend, piece::Queued};
use crate::ring::Table;

/// One table and the queues of its backends. Parts are submitted to the view of the table that they were cut by.
pub struct View {
    table: Arc<Table>,
    /// By shard, then by backend index.
    shards: Box<[Box<[Arc<Backend>]>]>,
    max_request_size: usize,
    retry: RetryConfig,
}

/// A queue had no room: nothing was queued.
#[derive(Debug, thiserror::Error)]
#[error("the queue of a backend is full")]
pub struct Full {
    /// Index of the backend.
    pub backend: u32,
    /// The parts, given back in their order.
    pub parts: Vec<Part>,
}

impl View {
    pub(super) fn new(table: Arc<Table>, shards: Box<[Box<[Arc<Backend>]>]>, config: &Config) -> Self {
        Self { table, shards, max_request_size: config.max_request_size, retry: config.retry }
    }

    /// The table.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Payload bytes that a part may have: a larger one would find no backend that takes it.
    pub fn max_request_size(&self) -> usize {
        self.max_request_size
    }

    /// How retries space themselves.
    pub fn retry(&self) -> RetryConfig {
        self.retry
    }

    /// Whether the backend of that identity is there and its slots are its own.
    pub fn serves(&self, identity: &str) -> bool {
        self.table.position(identity).is_some_and(|at| !self.is_away(at))
    }

    /// The identity of the backend of that index.
    pub fn identity_of(&self, backend: u32) -> Arc<str> {
        self.table.backends().get(backend as usize).map_or_else(|| "?".into(), |backend| Arc::clone(&backend.identity))
    }

    /// Whether the slots of a backend go elsewhere. When all are away nobody is: there is nowhere to go.
    fn is_away(&self, at: u16) -> bool {
        let away = self.table.overlay().away();
        away.contains(&at) && away.len() < self.table.backends().len()
    }

    /// Readmits the backends whose slots are their own. To be called before anyone is shown this view: who goes by it must
    /// not be turned back.
    pub(super) fn readmit(&self) {
        self.backends_that(false).for_each(|backend| backend.readmit());
    }

    /// Ejects the backends whose slots go elsewhere. To be called once this view is shown: what they hand back is placed by
    /// it.
    pub(super) fn eject(&self) {
        self.backends_that(true).for_each(|backend| backend.eject());
    }

    fn backends_that(&self, are_away: bool) -> impl Iterator<Item = &Arc<Backend>> {
        let backends = self.shards.iter().flat_map(|shard| (0..).zip(shard));
        backends.filter(move |(at, _)| self.is_away(*at) == are_away).map(|(_, backend)| backend)
    }

    pub(super) fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.shards.iter().flatten()
    }

    /// Queues all parts, or none when one of their owners' queues has no room. Their outcomes arrive at `join`.
    ///
    /// What is larger than a whole queue is taken when that queue is empty.
    pub fn submit(&self, parts: Vec<Part>, join: &Join) -> Result<(), Full> {
        let Some(shard) = self.shards.get(shard_of_thread() % self.shards.len().max(1)) else {
            return Err(Full { backend: 0, parts });
        };
        let owner = |backend: u32| shard.get(usize::try_from(backend).unwrap_or(usize::MAX));
        let needs = needs_of(&parts);
        let admits = |need: &Need| owner(need.backend).is_some_and(|backend| backend.admit(need.bytes));
        if let Some(at) = needs.iter().position(|need| !admits(need)) {
            for Need { backend, bytes } in needs.iter().take(at) {
                if let Some(backend) = owner(*backend) {
                    backend.release(*bytes);
                }
            }
            let backend = needs.get(at).map_or(0, |need| need.backend);
            if let Some(full) = owner(backend) {
                full.metrics.queue_full.increment(1);
            }
            return Err(Full { backend, parts });
        }
        let inbox = join.inbox();
        inbox.expect(parts.len());
        let now = Instant::now();
        for part in parts {
            // Room was made by its owner, so there is one.
            let Some(backend) = owner(part.backend) else { continue };
            backend.push(std::iter::once(Queued::from_part(part, inbox, now)), now);
        }
        Ok(())
    }
}

/// Room that a request takes in one queue.
struct Need {
    backend: u32,
    bytes: usize,
}

/// What parts take, each backend named once: two parts for one queue get room together or not at all.
fn needs_of(parts: &[Part]) -> Vec<Need> {
    let need = |part: &Part| Need { backend: part.backend, bytes: part.message.framed_len() };
    let mut needs: Vec<Need> = parts.iter().map(need).collect();
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

/// A number that a thread keeps: threads take turns.
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
