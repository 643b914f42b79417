//! One RPC: its header and body go to HTTP/2 whole, then its reply is awaited.

use std::{
    io,
    task::{Context, Poll},
    time::Duration,
};

use h2::client::SendRequest;
use tokio::time::Instant;

use super::{Contents, Peer, Verdict, body, reply::Reply, stream::Stream, wire::Outlet};
use crate::otlp::Chunk;

/// A call that waits for its reply. Dropping it resets its stream.
#[derive(Debug)]
pub(super) struct Call<C> {
    pub(super) contents: C,
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

impl<C: Contents> Call<C> {
    /// Sends `contents`, or gives them back: then the header was never written, or the connection is over.
    ///
    /// The whole body is handed to h2 at once: its bytes are in memory anyway, and h2 sends them as windows allow.
    pub(super) fn begin(contents: C, peer: &Peer, place: &mut Place<'_>, now: Instant) -> Result<Self, C> {
        let timeout = now + peer.keys.timeout;
        let deadline = contents.deadline().map_or(timeout, |latest| latest.min(timeout));
        match send(&contents, peer, place, deadline.saturating_duration_since(now)) {
            Ok(reply) => Ok(Self { contents, started: now, deadline, overdue: false, reply }),
            Err(error) => {
                tracing::debug!(backend = %peer.identity, %error, "cannot begin a call");
                Err(contents)
            }
        }
    }

    /// Hears what came.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Verdict> {
        self.reply.poll(cx)
    }
}

fn send(contents: &impl Contents, peer: &Peer, place: &mut Place<'_>, timeout: Duration) -> io::Result<Reply> {
    let mut request = peer.templates.request(contents.signal(), timeout).ok_or(io::ErrorKind::AddrNotAvailable)?;
    if let Some(metadata) = contents.metadata() {
        metadata.add_to(request.headers_mut());
    }
    let Place { at, sender, outlet } = place;
    let buffers = body::build(contents, peer.keys.compression, peer.keys.compression_params.level)?;
    // Before h2 hands over the first slice of it. Should the call not begin, the driver takes its buffers back.
    buffers.iter().for_each(|buffer| outlet.lend(*at, buffer));
    let chunk = body::one_chunk(buffers);
    let (response, mut stream) = sender.send_request(request, false).map_err(io::Error::other)?;
    stream.send_data(chunk, true).map_err(io::Error::other)?;
    Ok(Reply::Head(response))
}
