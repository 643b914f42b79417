//! The running pools. The proxy adds and removes them; every page reads them.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;

use crate::{dispatch::Dispatch, membership::Published, otlp::Signal};

/// All pools by name. Readers always see a complete set. Clones share it.
#[derive(Clone, Debug)]
pub struct Pools(watch::Sender<PoolSet>);

/// The pools at one moment.
pub type PoolSet = Arc<BTreeMap<Arc<str>, Pool>>;

/// A pool as the pages need it.
#[derive(Clone, Debug)]
pub struct Pool {
    /// The signals that are routed to it.
    pub signals: Vec<Signal>,
    /// Its tables, and the record of its backends and changes.
    pub membership: Published,
    /// Its queues and connections.
    pub dispatch: Arc<Dispatch>,
}

impl Pools {
    /// Creates an empty set.
    pub fn new() -> Self {
        Self(watch::Sender::new(PoolSet::default()))
    }

    /// Adds a pool, replacing one with the same name.
    pub fn insert(&self, name: &str, pool: Pool) {
        self.0.send_modify(|pools| drop(Arc::make_mut(pools).insert(name.into(), pool)));
    }

    /// Removes a pool.
    pub fn remove(&self, name: &str) {
        self.0.send_if_modified(|pools| pools.contains_key(name) && Arc::make_mut(pools).remove(name).is_some());
    }

    /// Returns the current pools.
    pub fn current(&self) -> PoolSet {
        Arc::clone(&self.0.borrow())
    }

    /// Returns the current pools and a notification of every later set.
    pub fn watch(&self) -> watch::Receiver<PoolSet> {
        self.0.subscribe()
    }
}

impl Default for Pools {
    fn default() -> Self {
        Self::new()
    }
}
