//! An in-memory connection for tests that pause the clock. Tests of other modules use it too.

use std::{convert::Infallible, error::Error};

use http::{Request, Response};
use http_body::Body;
use hyper::{body::Incoming, service::Service};
use metrics::Counter;
use tokio::io::DuplexStream;

use super::{Limits, connection, streams};
use crate::lifecycle::Tasks;

/// Serves `service` on an in-memory connection, like on an accepted one. Returns the client's end.
pub(crate) fn serve_in_memory<S, B>(limits: Limits, service: S, tasks: &Tasks) -> DuplexStream
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let (client, server) = tokio::io::duplex(1 << 20);
    let deadlines = connection::Deadlines::new(&limits);
    let watched = tasks.clone();
    drop(tasks.spawn(async move {
        connection::serve(&limits, server, service, deadlines, streams::Tally::new(Counter::noop()), &watched).await;
    }));
    client
}
