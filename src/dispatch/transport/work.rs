//! What a connection and those it works for say to each other.

use std::{net::SocketAddr, sync::Arc};

use tokio::time::Instant;

use super::{Failure, Verdict, Wakers, client::Templates};
use crate::{
    access::Access,
    endpoint::Endpoint,
    otlp::{Framed, Metadata, Signal},
    settings::Delivery,
};

/// What a connection works for: where its calls come from, and who hears what became of them.
///
/// One connection owns it. It is called from inside the connection's polls, so nothing here may block.
pub(in crate::dispatch) trait Work: Send + Unpin + 'static {
    /// What one call carries.
    type Contents: Contents;

    /// The backend.
    fn peer(&self) -> &Peer;

    /// Whether anything waits to be sent. It is asked often and has to be cheap.
    fn waits(&self) -> bool;

    /// Takes what the next call carries, if one may begin now. The connection gives it back by [`Work::done`].
    fn take(&mut self, now: Instant) -> Option<Self::Contents>;

    /// A call with that has begun.
    fn began(&mut self, contents: &Self::Contents, now: Instant);

    /// A call with that is over; it began at `started`, or could not begin.
    fn done(&mut self, contents: Self::Contents, started: Option<Instant>, verdict: Verdict, now: Instant);

    /// Whether calls are to be given up, those that run too. It is asked when the connection is woken for [`AWAY`](super::AWAY).
    fn is_given_up(&mut self) -> bool;

    /// Whether nothing more will ever wait: the connection ends with its last call.
    fn is_finished(&self) -> bool;

    /// Something was seen of the connection or the backend.
    fn note(&mut self, event: Event);
}

/// What one call carries: messages of one signal whose requests forward the same headers.
pub(in crate::dispatch) trait Contents: Send + Unpin + 'static {
    /// What is kept of it as long as HTTP/2 may still hold its bytes.
    type Held: Send + Unpin;

    /// The signal.
    fn signal(&self) -> Signal;

    /// The headers that go on, besides those of every call.
    fn metadata(&self) -> Option<&Metadata>;

    /// When the last of those who wait for it gives up.
    fn deadline(&self) -> Option<Instant>;

    /// Bytes of all messages, without prefixes.
    fn payload_len(&self) -> usize;

    /// The messages. Sent one after the other, they are one.
    fn messages(&self) -> impl ExactSizeIterator<Item = &Framed>;

    /// Keeps what covers the bytes in the memory budget, for a call that goes on without it.
    fn hold(&self) -> Self::Held;
}

/// A backend as its connections see it.
#[derive(Debug)]
pub(in crate::dispatch) struct Peer {
    pub(in crate::dispatch) identity: Arc<str>,
    pub(in crate::dispatch) address: Option<SocketAddr>,
    /// How it is spoken to, as long as it is there.
    pub(in crate::dispatch) access: Access,
    /// What the operator chose of calls.
    pub(in crate::dispatch) keys: Delivery,
    /// Calls that may run at once on one connection, at most [`MAX_PLACES`](super::MAX_PLACES).
    pub(super) places: usize,
    pub(super) templates: Templates,
}

/// What was seen of a connection or its backend.
#[derive(Debug)]
pub(in crate::dispatch) enum Event {
    /// The connection takes calls. It is woken by that.
    Connected(Arc<Wakers>),
    /// There is no connection.
    NotConnected(Failure),
    /// The backend answered a call.
    Answered,
    /// A call had all of its time and was not answered. It is told apart from a call whose clients wait no longer: that may
    /// be the clients' impatience.
    Unanswered(Instant),
    /// The connection takes no more calls, those that run go on: the backend said so (GOAWAY), or there are no more.
    Left,
    /// The same since the backend says nothing: it is being asked on a fresh connection whether it is alive.
    InDoubt,
    /// The connection is over, with a failure or without; `lost` says whether it took calls with it, or should have answered
    /// and did not.
    Ended { failure: Option<Failure>, lost: bool },
    /// Calls were given up, and the connection with them.
    GaveUp,
    /// The process ends.
    Stopped,
}

impl Peer {
    /// The backend at `endpoint`; without an address it cannot be reached.
    pub(in crate::dispatch) fn new(endpoint: &Endpoint, keys: &Delivery, places: usize) -> Self {
        let Endpoint { identity, address, access, .. } = endpoint;
        let templates = Templates::new(identity, *address, keys, access);
        let (identity, access) = (Arc::clone(identity), access.clone());
        Self { identity, address: *address, access, keys: keys.clone(), places, templates }
    }
}
