//! The interface between a connection and its user: where calls come from, and where results and events go.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use tokio::time::Instant;

use super::{Failure, Verdict, Wakeups, client::Templates, http1};
use crate::{
    access::Access,
    codec::Encoding,
    endpoint::Endpoint,
    otlp::{Framed, Metadata, Signal},
    settings::{Compression, Delivery},
};

/// The source of a connection's calls and the receiver of their results.
///
/// Each connection owns one. The connection calls it inside of `poll`, so that no method may block.
pub(in crate::dispatch) trait Work: Send + Unpin + 'static {
    /// The contents of one call.
    type Contents: Contents;

    /// The backend to connect to.
    fn peer(&self) -> &Peer;

    /// Whether something waits to be sent. The connection asks often, so this has to be cheap.
    fn waits(&self) -> bool;

    /// Takes the contents of the next call, if one may begin now. The connection gives them back to [`Work::done`].
    fn take(&mut self, now: Instant) -> Option<Self::Contents>;

    /// Called when a call has begun.
    fn began(&mut self, contents: &Self::Contents, now: Instant);

    /// Called when a call has ended. `started` is the time it began; it is `None` if the call could not begin.
    fn done(&mut self, contents: Self::Contents, started: Option<Instant>, verdict: Verdict, now: Instant);

    /// Whether calls are to be given up, including those in flight. The connection asks when it is woken for
    /// [`GIVE_UP`](super::GIVE_UP).
    fn is_given_up(&mut self) -> bool;

    /// Whether nothing more will wait to be sent. The connection then ends after its last call.
    fn is_finished(&self) -> bool;

    /// Called when something has happened to the connection.
    fn note(&mut self, event: Event);
}

/// The contents of one call: messages of one signal, whose requests forward the same headers.
pub(in crate::dispatch) trait Contents: Send + Unpin + 'static {
    /// A value that keeps the messages' share of the memory budget.
    type Held: Send + Unpin;

    /// The signal of the messages.
    fn signal(&self) -> Signal;

    /// Forwarded headers, which are sent in addition to those of every call.
    fn metadata(&self) -> Option<&Metadata>;

    /// The latest deadline of the requests that wait for this call.
    fn deadline(&self) -> Option<Instant>;

    /// The number of payload bytes of all messages.
    fn payload_len(&self) -> usize;

    /// The messages. Their payloads are concatenated to one message.
    fn messages(&self) -> impl ExactSizeIterator<Item = &Framed>;

    /// The encoding of the call, in a pool with this compression.
    fn encoding(&self, compression: Compression) -> Option<Encoding> {
        compression.encoding_for(None)
    }

    /// The whole message with its prefix as a client compressed it in this encoding, if that is what the call carries.
    fn as_it_came(&self, _encoding: Encoding) -> Option<Bytes> {
        None
    }

    /// Keeps the share of the memory budget while HTTP/2 may hold the bytes of a call whose contents were given back.
    fn hold(&self) -> Self::Held;
}

/// The properties of a backend that its connections need.
#[derive(Debug)]
pub(in crate::dispatch) struct Peer {
    pub(in crate::dispatch) identity: Arc<str>,
    pub(in crate::dispatch) address: Option<SocketAddr>,
    /// TLS and headers.
    pub(in crate::dispatch) access: Access,
    /// The configured keys of the pool.
    pub(in crate::dispatch) keys: Delivery,
    /// The number of calls that may be in flight on one connection, at most [`MAX_PLACES`](super::MAX_PLACES).
    pub(super) places: usize,
    pub(super) templates: Templates,
    /// `None` if the backend is called by gRPC.
    pub(super) http: Option<Arc<http1::Target>>,
}

/// Something that has happened to a connection.
#[derive(Debug)]
pub(in crate::dispatch) enum Event {
    /// The connection is up and takes calls. The value wakes it.
    Connected(Arc<Wakeups>),
    /// The connection has ended while it had no call, which says nothing about the backend: either side closes connections that
    /// have been idle for long, or that a call has to be given up with.
    Closed,
    /// The connection could not be established.
    NotConnected(Failure),
    /// The backend has answered a call.
    Answered,
    /// A call was not answered within the whole timeout of an attempt. Calls that end early because of their clients' deadlines
    /// are not reported: they do not show that the backend is slow.
    Unanswered(Instant),
    /// The connection takes no more calls, because the backend sent GOAWAY or no more calls will come. Calls in flight go on.
    Left,
    /// The call was answered, and the connection cannot take another one: the request is still being written, or the backend
    /// closes the connection. Until [`Event::Written`], it is up and takes no calls.
    Writing,
    /// The request was written, so that the connection takes calls again.
    Written,
    /// The connection takes no more calls, because the backend is silent and a probe on a connection of its own asks it, or because
    /// it is kept open for a call whose clients have left.
    InDoubt,
    /// The connection has ended, with a failure or without. `lost` says whether calls were lost with it, or the backend did not
    /// answer a PING.
    Ended { failure: Option<Failure>, lost: bool },
    /// The calls were given up, and the connection has ended.
    GaveUp,
    /// The process is ending.
    Stopped,
}

impl Peer {
    /// Describes the backend of `endpoint`. `places` is the number of calls that may be in flight on one connection.
    pub(in crate::dispatch) fn new(endpoint: &Endpoint, keys: &Delivery, places: usize) -> Self {
        let Endpoint { identity, address, access, .. } = endpoint;
        let templates = Templates::new(identity, *address, keys, access);
        let http = keys.protocol.http().map(|http| http1::Target::new(identity, *address, http, access));
        let (identity, access) = (Arc::clone(identity), access.clone());
        Self { identity, address: *address, access, keys: keys.clone(), places, templates, http: http.map(Arc::new) }
    }

    /// The bytes of memory that one connection takes in the account. Those of gRPC are bounded, and not accounted for.
    pub(in crate::dispatch) fn connection_memory(&self) -> usize {
        let of_tls = if self.access.tls().is_some() { http1::TLS_MEMORY } else { 0 };
        if self.http.is_some() { http1::CONNECTION_MEMORY + of_tls } else { 0 }
    }
}
