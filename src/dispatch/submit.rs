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

    /// Ejects the backends whose slots go elsewhere and readmits those whose slots have come back.
    pub(super) fn eject_and_readmit(&self) {
        for shard in &self.shards {
            for (at, backend) in (0..).zip(shard) {
                if self.is_away(at) { backend.eject() } else { backend.readmit() }
            }
        }
    }

    pub(super) fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.shards.iter().flatten()
    }

    /// Queues all parts, or none when one of their owners' queues has no room. Their outcomes arrive at `join`.
    ///
    /// A part that is larger than a whole queue is taken when that queue is empty.
    pub fn submit(&self, parts: Vec<Part>, join: &Join) -> Result<(), Full> {
        let Some(shard) = self.shards.get(shard_of_thread() % self.shards.len().max(1)) else {
            return Err(Full { backend: 0, parts });
        };
        let owner = |part: &Part| shard.get(usize::try_from(part.backend).unwrap_or(usize::MAX));
        let admits = |part: &Part| owner(part).is_some_and(|backend| backend.admit(part.message.framed_len()));
        if let Some(at) = parts.iter().position(|part| !admits(part)) {
            for part in parts.iter().take(at) {
                if let Some(backend) = owner(part) {
                    backend.release(part.message.framed_len());
                }
            }
            if let Some(full) = parts.get(at).and_then(owner) {
                full.metrics.queue_full.increment(1);
            }
            let backend = parts.get(at).map_or(0, |part| part.backend);
            return Err(Full { backend, parts });
        }
        let inbox = join.inbox();
        inbox.expect(parts.len());
        let now = Instant::now();
        for part in parts {
            // Room was made by its owner, so there is one.
            let Some(backend) = owner(&part) else { continue };
            if part.message.payload_len() <= self.max_request_size {
                backend.push(std::iter::once(Queued::from_part(part, inbox, now)), now);
            } else {
                let admitted = part.message.framed_len();
                let entries = Queued::cut(part, inbox, self.max_request_size, now);
                // Pieces repeat their envelopes: the difference is theirs to wait for, but no reason to refuse.
                backend.occupy(entries.iter().map(Queued::cost).sum());
                backend.release(admitted);
                backend.push(entries.into_iter(), now);
            }
        }
        Ok(())
    }
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
