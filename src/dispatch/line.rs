//! The life of one connection in its slot: connect, drive, leave.

use std::sync::Arc;

use super::{Failure, backend::Backend, client, driver::Driver};

/// Connects slot `line` and drives its connection to its end.
pub(super) async fn run(backend: Arc<Backend>, line: usize) {
    let Some(address) = backend.address else { return backend.unreachable(line, Failure::ConnectError) };
    let tasks = backend.shared.tasks.clone();
    let connected = tokio::select! {
        // What waits is handed back by the reconciler or by what comes after it.
        () = tasks.stopped() => return backend.stop(),
        connected = client::connect(&backend.access, &backend.identity, address) => connected,
    };
    backend.metrics.connect(connected.as_ref().map(|_| ()).map_err(|failure| *failure));
    match connected {
        Ok(connected) => Driver::new(backend, line, connected).await,
        Err(Failure::Local(shortage)) => backend.short_of(line, shortage),
        Err(failure) => {
            tracing::debug!(backend = %backend.identity, failure = failure.as_str(), "cannot connect");
            backend.unreachable(line, failure);
        }
    }
}
