//! An in-memory connection for tests that pause the clock. Tests of other modules use it too.

use std::sync::Arc;

use tokio::io::DuplexStream;

use super::{HttpService, Limits, connection, idle::Activity, metrics::ListenerMetrics};
use crate::lifecycle::Tasks;

/// Serves `service` on an in-memory connection, like on an accepted one. Returns the client's end.
pub(crate) fn serve_in_memory(limits: Limits, service: impl HttpService, tasks: &Tasks) -> DuplexStream {
    let (client, server) = tokio::io::duplex(1 << 20);
    let deadlines = connection::Deadlines::new(&limits);
    let watched = tasks.clone();
    drop(tasks.spawn(async move {
        let (activity, metrics) = (Arc::new(Activity::new()), ListenerMetrics::new("test"));
        connection::serve(&limits, server, service, deadlines, &activity, &metrics, &watched).await;
    }));
    client
}
