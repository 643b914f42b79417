//! The current load of each backend, for the admin interface. Delivering parts does not use it.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use super::{Dispatch, backend::Backend};

/// The load of one backend of a pool, summed over all shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendLoad {
    /// The address that connections are made to.
    pub address: Option<SocketAddr>,
    /// Whether the table has the backend. If not, it only finishes its remaining parts.
    pub listed: bool,
    /// The number of bytes in its queue.
    pub queued_bytes: usize,
    /// The number of calls in flight.
    pub calls: usize,
    /// The payload bytes of the calls in flight.
    pub call_bytes: usize,
    /// The number of connections that are up.
    pub connections: usize,
}

impl Dispatch {
    /// Returns the load of every backend by identity, including backends that have left the table and are not idle yet.
    ///
    /// A backend whose address has changed has one entry, with the address in the table.
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
