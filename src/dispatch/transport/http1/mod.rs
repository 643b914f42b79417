//! OTLP/HTTP towards a backend: calls by HTTP/1.1, with hyper's client.
//!
//! HTTP/1.1 carries one call at a time on a connection, so a backend has several of them. `session` is the task of one
//! connection: it rests until something waits to be sent, and begins calls. `flight` is a call in flight, with its deadlines;
//! `silence` says when a backend is silent, and `probe` asks it by `HEAD` on a separate connection. `target` has the prepared
//! requests and what the connections to one backend share. `reply` reads and classifies an answer. `socket` is the stream
//! that hyper reads and writes.

mod flight;
mod probe;
mod reply;
mod session;
mod silence;
mod socket;
mod target;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;

pub(super) use self::{
    probe::head,
    session::Session,
    target::{Target, path_of},
};
use self::{
    socket::{Seen, Socket},
    target::Payload,
};
use super::{Failure, dialer};
use crate::access::Access;

/// The protocol in TLS's handshake (RFC 7301, 6).
const ALPN: &[u8] = b"http/1.1";

/// The most bytes of an answer that are in hyper's buffer at once, and so of its headers: as for HTTP/2.
const MAX_BUFFER: usize = 16 << 10;

/// The memory of a connection: hyper's buffer, and 8 KiB for the heads of messages, the task and the call in flight.
pub(super) const CONNECTION_MEMORY: usize = MAX_BUFFER + (8 << 10);

/// What TLS adds to it, as for clients' connections.
pub(super) const TLS_MEMORY: usize = 24 << 10;

/// A new connection.
pub(super) struct Connected {
    sender: SendRequest<Payload>,
    connection: Connection<TokioIo<Socket>, Payload>,
    seen: Seen,
}

/// Connects to the backend with this identity.
pub(super) async fn connect(access: &Access, identity: &str, address: SocketAddr) -> Result<Connected, Failure> {
    let (socket, seen) = socket::watch(dialer::dial(access, identity, address, ALPN).await?);
    let (sender, connection) =
        Builder::new().max_buf_size(MAX_BUFFER).handshake(TokioIo::new(socket)).await.map_err(|_| Failure::Protocol)?;
    Ok(Connected { sender, connection, seen })
}
