//! One RPC to the backend: sends its header and its whole body, then polls its reply.

use std::{
    io,
    task::{Context, Poll},
    time::Duration,
};

use h2::client::SendRequest;
use http::HeaderValue;
use tokio::time::Instant;

use super::{Contents, Peer, Verdict, body, client::GRPC_ENCODING, reply::Reply, stream::Stream, wire::Outlet};
use crate::{otlp::Chunk, settings::Compression};

/// A call that waits for its reply. Dropping it resets its stream.
#[derive(Debug)]
pub(super) struct Call<C> {
    pub(super) contents: C,
    pub(super) started: Instant,
    pub(super) deadline: Instant,
    /// Whether its deadline had passed at the last check. The next check ends the call.
    pub(super) overdue: bool,
    pub(super) reply: Reply,
}

/// A free place of a connection, which a call can begin in.
pub(super) struct Place<'a> {
    /// The index of the place.
    pub(super) at: usize,
    pub(super) sender: &'a mut SendRequest<Chunk>,
    pub(super) outlet: &'a Outlet<Stream>,
}

impl<C: Contents> Call<C> {
    /// Sends `contents`. Returns them if the call could not begin: then its header was not sent, or the connection has ended.
    ///
    /// The whole body is handed to h2 at once: its bytes are in memory anyway, and h2 sends them as the windows allow.
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

    /// Polls the reply.
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
    let encoding = contents.encoding(peer.keys.compression);
    if let (Compression::AsReceived, Some(encoding)) = (peer.keys.compression, encoding) {
        request.headers_mut().insert(GRPC_ENCODING, HeaderValue::from_static(encoding.as_str()));
    }
    let buffers = body::build(contents, encoding, peer.keys.compression_params.level)?;
    // The buffers are lent before h2 writes the first slice of them. If the call cannot begin, the driver takes them back.
    buffers.iter().for_each(|buffer| outlet.lend(*at, buffer));
    let chunk = body::one_chunk(buffers);
    let (response, mut stream) = sender.send_request(request, false).map_err(io::Error::other)?;
    stream.send_data(chunk, true).map_err(io::Error::other)?;
    Ok(Reply::Head(response))
}
