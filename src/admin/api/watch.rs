//! Watching rings: a stream that reads the state only when its client asks for more, so that nothing is queued for a
//! slow client.

use std::{
    collections::BTreeMap,
    future::pending,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{Stream, future::select_all};
use metrics::Gauge;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tonic::Status;

use super::{
    super::{Pool, PoolSet, Pools, pb::v1::WatchRingResponse},
    AskError, VERSION, facts,
};
use crate::ring::Tables;

/// The messages of one watcher. The stream ends with an error when the requested pool is removed.
pub(super) struct Watch(Pin<Box<dyn Stream<Item = Result<WatchRingResponse, Status>> + Send>>);

/// Counts one watcher; dropping it frees its permit.
pub(super) struct WatchPermit {
    _permit: OwnedSemaphorePermit,
    gauge: Gauge,
}

/// The state of a watcher between two messages.
struct Watcher {
    pool: String,
    pools: watch::Receiver<PoolSet>,
    sent: BTreeMap<Arc<str>, Sent>,
    _permit: WatchPermit,
}

/// The last message sent about a pool.
struct Sent {
    tables: Tables,
    generation: u64,
}

// === impl Watch ===

impl Watch {
    /// Watches one pool, or all if `pool` is empty.
    pub(super) fn begin(pools: &Pools, pool: &str, permit: WatchPermit) -> Result<Self, AskError> {
        drop(super::chosen(&pools.current(), pool)?);
        let watcher = Watcher { pool: pool.to_owned(), pools: pools.watch(), sent: BTreeMap::new(), _permit: permit };
        let messages = futures_util::stream::unfold(Some(watcher), async |watcher| {
            let mut watcher = watcher?;
            match watcher.next().await {
                Ok(message) => Some((Ok(message), Some(watcher))),
                Err(error) => Some((Err(error.into()), None)),
            }
        });
        Ok(Self(Box::pin(messages)))
    }
}

impl Stream for Watch {
    type Item = Result<WatchRingResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(context)
    }
}

// === impl Watcher ===

impl Watcher {
    /// Returns the next message; waits until a table or the set of pools changes.
    async fn next(&mut self) -> Result<WatchRingResponse, AskError> {
        loop {
            if let Some(message) = self.look()? {
                return Ok(message);
            }
            let tables = self.sent.values_mut().map(|sent| changed(&mut sent.tables));
            let mut events: Vec<Pin<Box<dyn Future<Output = ()> + Send>>> = vec![Box::pin(changed(&mut self.pools))];
            events.extend(tables.map(|event| Box::pin(event) as Pin<Box<dyn Future<Output = ()> + Send>>));
            select_all(events).await;
        }
    }

    /// Returns a message about the first pool that has changed, if any.
    fn look(&mut self) -> Result<Option<WatchRingResponse>, AskError> {
        let pools = Arc::clone(&self.pools.borrow_and_update());
        self.sent.retain(|name, _| pools.contains_key(name));
        for (name, pool) in super::chosen(&pools, &self.pool)? {
            if let Some(message) = self.message_about(name, pool) {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    fn message_about(&mut self, name: &Arc<str>, pool: &Pool) -> Option<WatchRingResponse> {
        let tables = &pool.membership.tables;
        // A pool that was replaced numbers its tables from the start again.
        let before = self.sent.remove(name).filter(|sent| sent.tables.same_channel(tables));
        let mut sent = before.unwrap_or_else(|| Sent { tables: tables.clone(), generation: u64::MAX });
        let (is_first, since) = (sent.generation == u64::MAX, sent.generation);
        let generation = sent.tables.borrow_and_update().as_ref().map_or(0, |table| table.generation);
        let ring = (since != generation).then(|| facts::ring_of_pool(name, pool));
        sent.generation = ring.as_ref().map_or(since, |ring| ring.generation);
        self.sent.insert(Arc::clone(name), sent);
        let ring = ring?;
        let missed = pool.membership.record.changes().into_iter();
        let missed = missed.filter(|past| !is_first && past.generation > since && past.generation <= ring.generation);
        let changes = missed.map(|past| facts::change(&past)).collect();
        Some(WatchRingResponse { api_version: VERSION.into(), ring: Some(ring), changes })
    }
}

/// Resolves when the channel has an unseen value; never, once its sender is gone.
///
/// Cancel safe: an unseen value stays unseen.
async fn changed<T>(channel: &mut watch::Receiver<T>) {
    if channel.changed().await.is_err() {
        pending::<()>().await;
    }
}

// === impl WatchPermit ===

impl WatchPermit {
    pub(super) fn new(permit: OwnedSemaphorePermit, gauge: Gauge) -> Self {
        gauge.increment(1.0);
        Self { _permit: permit, gauge }
    }
}

impl Drop for WatchPermit {
    fn drop(&mut self) {
        self.gauge.decrement(1.0);
    }
}
