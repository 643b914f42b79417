//! Who watches: a stream that looks when its reader asks for more, so that nothing is queued for a slow one.

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

/// What one watcher is told. It ends with an error when the pool that it asked for goes.
pub(super) struct Watch(Pin<Box<dyn Stream<Item = Result<WatchRingResponse, Status>> + Send>>);

/// One of the places for watchers, given back when it is dropped.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    gauge: Gauge,
}

/// A watcher between two messages.
struct Watcher {
    pool: String,
    pools: watch::Receiver<PoolSet>,
    told: BTreeMap<Arc<str>, Told>,
    _place: Place,
}

/// The last that was told of a pool.
struct Told {
    tables: Tables,
    generation: u64,
}

// === impl Watch ===

impl Watch {
    /// Watches one pool, or all if `pool` is empty.
    pub(super) fn begin(pools: &Pools, pool: &str, place: Place) -> Result<Self, AskError> {
        drop(super::chosen(&pools.current(), pool)?);
        let watcher = Watcher { pool: pool.to_owned(), pools: pools.watch(), told: BTreeMap::new(), _place: place };
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
    /// The next message; waits for a change, of a table or of the set of pools.
    async fn next(&mut self) -> Result<WatchRingResponse, AskError> {
        loop {
            if let Some(message) = self.look()? {
                return Ok(message);
            }
            let tables = self.told.values_mut().map(|told| news(&mut told.tables));
            let mut events: Vec<Pin<Box<dyn Future<Output = ()> + Send>>> = vec![Box::pin(news(&mut self.pools))];
            events.extend(tables.map(|event| Box::pin(event) as Pin<Box<dyn Future<Output = ()> + Send>>));
            select_all(events).await;
        }
    }

    /// A message about the first pool of which something is new.
    fn look(&mut self) -> Result<Option<WatchRingResponse>, AskError> {
        let pools = Arc::clone(&self.pools.borrow_and_update());
        self.told.retain(|name, _| pools.contains_key(name));
        for (name, pool) in super::chosen(&pools, &self.pool)? {
            if let Some(message) = self.told_of(name, pool) {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    fn told_of(&mut self, name: &Arc<str>, pool: &Pool) -> Option<WatchRingResponse> {
        let tables = &pool.membership.tables;
        // A pool that was replaced counts its tables anew.
        let before = self.told.remove(name).filter(|told| told.tables.same_channel(tables));
        let mut told = before.unwrap_or_else(|| Told { tables: tables.clone(), generation: u64::MAX });
        let (is_first, since) = (told.generation == u64::MAX, told.generation);
        let generation = told.tables.borrow_and_update().as_ref().map_or(0, |table| table.generation);
        let ring = (since != generation).then(|| facts::ring_of_pool(name, pool));
        told.generation = ring.as_ref().map_or(since, |ring| ring.generation);
        self.told.insert(Arc::clone(name), told);
        let ring = ring?;
        let missed = pool.membership.record.changes().into_iter();
        let missed = missed.filter(|past| !is_first && past.generation > since && past.generation <= ring.generation);
        let changes = missed.map(|past| facts::change(&past)).collect();
        Some(WatchRingResponse { api_version: VERSION.into(), ring: Some(ring), changes })
    }
}

/// Resolves when the channel has something that was not looked at; never, once nobody sends.
///
/// Cancel safety: what was not looked at stays new.
async fn news<T>(channel: &mut watch::Receiver<T>) {
    if channel.changed().await.is_err() {
        pending::<()>().await;
    }
}

// === impl Place ===

impl Place {
    pub(super) fn new(permit: OwnedSemaphorePermit, gauge: Gauge) -> Self {
        gauge.increment(1.0);
        Self { _permit: permit, gauge }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gauge.decrement(1.0);
    }
}
