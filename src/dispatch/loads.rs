//! What each backend has to do at this moment, for those who ask. Read only; nothing on the way of the data looks here.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use super::{Dispatch, backend::Backend};

/// What one backend of a pool has to do, all shards together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendLoad {
    /// Where it is dialled.
    pub address: Option<SocketAddr>,
    /// Whether the table lists it; else it finishes what it has.
    pub listed: bool,
    /// Bytes that wait for it.
    pub queued_bytes: usize,
    /// Calls that it has not answered.
    pub calls: usize,
    /// Their payload bytes.
    pub call_bytes: usize,
    /// Connections that are up.
    pub connections: usize,
}

impl Dispatch {
    /// What every backend has to do, by identity, those included that left the table and are not done.
    ///
    /// A backend with a new address stands here once, with the address that the table lists.
    pub fn loads(&self) -> BTreeMap<Arc<str>, BackendLoad> {
        let mut loads = BTreeMap::new();
        let view = self.view.load_full();
        for backend in view.iter().flat_map(|view| view.backends()) {
            let load: &mut BackendLoad = loads.entry(Arc::clone(&backend.peer.identity)).or_default();
            (load.address, load.listed) = (backend.peer.address, true);
        }
        for backend in self.shared.all.load().iter() {
            let load = loads
                .entry(Arc::clone(&backend.peer.identity))
                .or_insert_with(|| BackendLoad { address: backend.peer.address, ..BackendLoad::default() });
            load.add(backend);
        }
        loads
    }
}

impl BackendLoad {
    fn add(&mut self, backend: &Backend) {
        let load = backend.load();
        self.queued_bytes += load.waiting_bytes;
        self.calls += load.calls;
        self.call_bytes += load.call_bytes;
        self.connections += load.connections;
    }
}
