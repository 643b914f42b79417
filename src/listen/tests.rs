//! An in-memory connection for tests that pause the clock. Tests of other modules use it too.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, DuplexStream, ReadBuf};

use super::{
    HttpService, Limits, Protocol, connection,
    deadlines::Deadlines,
    first_bytes::{FirstBytes, Preface, Replayed},
    http1,
    idle::Activity,
    metrics::ListenerMetrics,
};
use crate::lifecycle::Tasks;

/// Serves `service` on an in-memory connection, like on an accepted one. Returns the client's end.
pub(crate) fn serve_in_memory(limits: Limits, service: impl HttpService, tasks: &Tasks) -> DuplexStream {
    let (client, server) = tokio::io::duplex(1 << 20);
    let deadlines = Deadlines::new(&limits);
    let watched = tasks.clone();
    drop(tasks.spawn(async move {
        let (activity, metrics) = (Arc::new(Activity::new()), ListenerMetrics::new("test"));
        if limits.protocol != Protocol::Any {
            return connection::serve(&limits, server, service, deadlines, &activity, &metrics, &watched).await;
        }
        let mut server = server;
        match FirstBytes::read(&mut server).await.unwrap() {
            FirstBytes::Http2 => {
                let server = Replayed::new(server, Preface::to_replay());
                connection::serve(&limits, server, service, deadlines, &activity, &metrics, &watched).await;
            }
            FirstBytes::Foreign(_, first) => {
                http1::serve(&limits, server, &first, service, deadlines, &activity, &metrics, &watched).await;
            }
            FirstBytes::Silent => {}
        }
    }));
    client
}

/// A client whose bytes arrive in these pieces.
pub(crate) struct Client(pub(crate) VecDeque<Vec<u8>>);

impl AsyncRead for Client {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(mut piece) = self.0.pop_front() {
            let rest = piece.split_off(piece.len().min(buf.remaining()));
            buf.put_slice(&piece);
            if !rest.is_empty() {
                self.0.push_front(rest);
            }
        }
        Poll::Ready(Ok(()))
    }
}
