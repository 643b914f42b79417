//! One RPC: its header and body go to HTTP/2 whole, then its reply is awaited.

use std::{
    io,
    task::{Context, Poll},
};

use h2::client::SendRequest;
use tokio::time::Instant;

use super::{
    backend::Backend, body, outcome::Verdict, piece::Queued, queue::Batch, reply::Reply, stream::Stream, wire::Outlet,
};
use crate::otlp::Chunk;

/// A call that waits for its reply. Dropping it resets its stream.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) batch: Batch,
    pub(super) started: Instant,
    pub(super) deadline: Instant,
    /// Its deadline has passed and its reply was looked for since.
    pub(super) overdue: bool,
    pub(super) reply: Reply,
}

/// Where a call begins.
pub(super) struct Place<'a> {
    /// Its number.
    pub(super) at: usize,
    pub(super) sender: &'a mut SendRequest<Chunk>,
    pub(super) outlet: &'a Outlet<Stream>,
}

/// A call that could not begin.
pub(super) struct NotBegun {
    pub(super) batch: Batch,
    pub(super) verdict: Verdict,
}

impl Call {
    /// Sends a batch.
    ///
    /// The whole body is handed to h2 at once: its bytes are in memory anyway, and h2 sends them as windows allow.
    pub(super) fn begin(
        batch: Batch,
        backend: &Backend,
        place: &mut Place<'_>,
        now: Instant,
    ) -> Result<Self, NotBegun> {
        let deadline = deadline_of(&batch.parts, now + backend.shared.config.keys.timeout);
        match send(&batch, backend, place, deadline.saturating_duration_since(now)) {
            Ok(reply) => {
                batch.parts.iter().for_each(Queued::begin);
                Ok(Self { batch, started: now, deadline, overdue: false, reply })
            }
            Err(error) => {
                tracing::debug!(backend = %backend.identity, %error, "cannot begin a call");
                // Its header was never written, or its connection is over.
                Err(NotBegun { batch, verdict: Verdict::Unprocessed { refused: false } })
            }
        }
    }

    /// Hears what came.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Verdict> {
        self.reply.poll(cx)
    }
}

fn send(batch: &Batch, backend: &Backend, place: &mut Place<'_>, timeout: std::time::Duration) -> io::Result<Reply> {
    let signal = batch.parts.first().map(|part| part.signal).ok_or(io::ErrorKind::InvalidInput)?;
    let mut request = backend.templates.request(signal, timeout).ok_or(io::ErrorKind::AddrNotAvailable)?;
    // Parts of one call carry the same.
    if let Some(metadata) = batch.parts.first().and_then(|part| part.inbox().metadata.as_deref()) {
        metadata.add_to(request.headers_mut());
    }
    let Place { at, sender, outlet } = place;
    let keys = &backend.shared.config.keys;
    let buffers = body::build(batch, keys.compression, keys.compression_params.level)?;
    // Before h2 hands over the first slice of it. Should the call not begin, the driver takes its buffers back.
    buffers.iter().for_each(|buffer| outlet.lend(*at, buffer));
    let chunk = body::one_chunk(buffers);
    let (response, mut stream) = sender.send_request(request, false).map_err(io::Error::other)?;
    stream.send_data(chunk, true).map_err(io::Error::other)?;
    backend.metrics.bytes.increment(u64::try_from(batch.bytes).unwrap_or(u64::MAX));
    Ok(Reply::Head(response))
}

/// One attempt's timeout, or the latest deadline of its parts.
fn deadline_of(parts: &[Queued], timeout: Instant) -> Instant {
    parts.iter().map(|part| part.inbox().deadline).max().map_or(timeout, |latest| latest.min(timeout))
}
