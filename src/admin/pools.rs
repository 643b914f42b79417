//! The pools that there are: put in by who starts them, taken out by who ends them, read by every page.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;

use crate::{dispatch::Dispatch, membership::Published, otlp::Signal};

/// All pools by name, whole at every moment. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Pools(watch::Sender<PoolSet>);

/// The pools of one moment.
pub type PoolSet = Arc<BTreeMap<Arc<str>, Pool>>;

/// A pool as its pages need it.
#[derive(Clone, Debug)]
pub struct Pool {
    /// The signals that are routed to it.
    pub signals: Vec<Signal>,
    /// Its tables, and what is remembered of its backends.
    pub membership: Published,
    /// Its queues and connections.
    pub dispatch: Arc<Dispatch>,
}

impl Pools {
    /// None yet.
    pub fn new() -> Self {
        Self(watch::Sender::new(PoolSet::default()))
    }

    /// Puts a pool in, in the place of the one that had the name.
    pub fn insert(&self, name: &str, pool: Pool) {
        self.0.send_modify(|pools| drop(Arc::make_mut(pools).insert(name.into(), pool)));
    }

    /// Takes a pool out.
    pub fn remove(&self, name: &str) {
        self.0.send_if_modified(|pools| pools.contains_key(name) && Arc::make_mut(pools).remove(name).is_some());
    }

    /// The pools of this moment.
    pub fn current(&self) -> PoolSet {
        Arc::clone(&self.0.borrow())
    }

    /// The pools of this moment, and the news of every later set.
    pub fn watch(&self) -> watch::Receiver<PoolSet> {
        self.0.subscribe()
    }
}

impl Default for Pools {
    fn default() -> Self {
        Self::new()
    }
}
