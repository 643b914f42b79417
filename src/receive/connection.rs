//! The receiver's state for one client connection.

use std::sync::Arc;

use crate::{
    budget::{Budget, Portion},
    otlp::ClientConnection,
    places::Queue,
};

/// One client connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// Its state on the way to the backends.
    pub(super) client: Arc<ClientConnection>,
    /// The memory of its requests.
    pub(super) portion: Portion,
    /// Where its large requests wait for a place.
    pub(super) queue: Queue,
}

impl Connection {
    /// Creates the state of a new connection.
    pub(super) fn new(budget: &Budget) -> Self {
        Self { client: Arc::default(), portion: Portion::of(budget), queue: Queue::default() }
    }
}
