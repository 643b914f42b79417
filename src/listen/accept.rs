//! The accept loop of every listener, plain or TLS.

use std::{fmt, future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::sleep,
};

use super::{
    accept_failures::AcceptFailures,
    admission,
    bind::{Bound, set_options},
    connection::{self, Windows},
    deadlines::Deadlines,
    first_bytes::{self, FirstBytes, Foreign, ForeignConnections, Preface, Replayed},
    http1,
    idle::Connection,
    metrics::ListenerMetrics,
    places::{OpenConnections, Place, Places, Taken, WhenFull},
    service::HttpService,
    silent::SilentConnection,
};
use crate::{budget::Budget, lifecycle::Tasks, shortage::Shortage};

/// The limits of a listener.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The HTTP versions that its clients may use.
    pub protocol: Protocol,
    /// The most connections that may be open.
    pub max_connections: usize,
    /// What happens to further ones.
    pub when_full: WhenFull,
    /// Returns for how many connections there are file descriptors at the moment.
    pub descriptors: fn() -> usize,
    /// The connections that these descriptors are for, of this listener and of others.
    pub open: OpenConnections,
    /// The time limit of a connection's handshake, and of each header block once it has begun.
    pub header_timeout: Duration,
    /// The most concurrent requests on an HTTP/2 connection.
    pub max_concurrent_streams: u32,
    /// The account that connections and their streams are taken from; `None` if they are not accounted for.
    pub account: Option<Budget>,
    /// The bytes that an HTTP/2 client may send before the service reads them.
    pub windows: Windows,
    /// The largest headers of an HTTP/2 request, in bytes.
    pub max_header_list_size: u32,
    /// The age at which a connection's client is told to finish, plus or minus 10 %.
    pub max_connection_age: Option<Duration>,
    /// How long its requests may take after that; `None` means no limit.
    pub max_connection_age_grace: Option<Duration>,
    /// How long a connection may have no request in progress until its client is told to finish.
    pub max_connection_idle: Option<Duration>,
    /// How long a client may take to receive its answers, or the pieces of an endless one, until its connection is
    /// closed. A connection that always has another answer to receive in that time is closed too.
    pub write_timeout: Option<Duration>,
}

/// The HTTP versions that a listener's clients may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/2 with prior knowledge.
    Http2 {
        /// The answer to a client that sends an HTTP/1 request: which protocol this port expects, and what to set.
        for_http1: Arc<str>,
    },
    /// HTTP/1 or HTTP/2, according to the first bytes.
    Any,
}

/// Makes the stream that HTTP runs on from an accepted connection. TLS is implemented by this trait.
pub trait Connector: Send + Sync + 'static {
    /// The stream that HTTP runs on.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The memory that it adds to a connection, in bytes.
    const MEMORY: usize;

    /// Performs the handshake. The caller bounds its time by [`Limits::header_timeout`].
    fn connect(&self, stream: TcpStream) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Called when a handshake has failed. An error of kind `TimedOut` means that it took too long.
    fn failed(&self, peer: SocketAddr, error: &io::Error);
}

/// A [`Connector`] without TLS.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

impl Connector for Plain {
    type Stream = TcpStream;

    const MEMORY: usize = 0;

    async fn connect(&self, stream: TcpStream) -> io::Result<TcpStream> {
        Ok(stream)
    }

    fn failed(&self, _peer: SocketAddr, _error: &io::Error) {}
}

// === impl Bound ===

impl Bound {
    /// Accepts connections until the drain begins. `make_service` makes the service of each connection from the peer's
    /// address.
    pub fn serve<C, M, S>(self, limits: Limits, connector: C, make_service: M, tasks: &Tasks) -> Handle
    where
        C: Connector,
        M: Fn(SocketAddr) -> S + Send + Sync + 'static,
        S: HttpService,
    {
        let limits = Arc::new(ArcSwap::from_pointee(limits));
        let listener = Arc::new(Listener {
            limits: Arc::clone(&limits),
            metrics: ListenerMetrics::new(self.name),
            foreign: ForeignConnections::new(self.name),
            connector,
            make_service,
            tasks: tasks.clone(),
        });
        drop(tasks.spawn(accept(self, listener)));
        Handle { limits }
    }
}

/// A handle that changes the limits of a serving listener.
pub struct Handle {
    limits: Arc<ArcSwap<Limits>>,
}

impl Handle {
    /// Sets the limits for all connections from now on; open connections keep theirs.
    pub fn set(&self, limits: Limits) {
        self.limits.store(Arc::new(limits));
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("limits", &self.limits.load()).finish_non_exhaustive()
    }
}

/// State that all connections of a listener share.
struct Listener<C, M> {
    /// The limits of new connections.
    limits: Arc<ArcSwap<Limits>>,
    metrics: ListenerMetrics,
    foreign: ForeignConnections,
    connector: C,
    make_service: M,
    tasks: Tasks,
}

async fn accept<C, M, S>(bound: Bound, listener: Arc<Listener<C, M>>)
where
    C: Connector,
    M: Fn(SocketAddr) -> S + Send + Sync + 'static,
    S: HttpService,
{
    let mut places = Places::default();
    let mut failures = AcceptFailures::new(bound.name);
    loop {
        let accepted = tokio::select! {
            // Check the drain first: once it has begun, clients have to connect elsewhere.
            biased;
            () = listener.tasks.drained() => return,
            accepted = bound.socket.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                listener.metrics.failed();
                if let Some(mut pause) = failures.pause_after(&error) {
                    if Shortage::of(&error) == Some(Shortage::Descriptors) {
                        pause = places.free_descriptor(&listener.limits.load(), &listener.metrics, pause);
                    }
                    tokio::select! {
                        () = listener.tasks.drained() => return,
                        () = sleep(pause) => {}
                    }
                }
                continue;
            }
        };
        failures.reset();
        let limits = listener.limits.load_full();
        let place = match places.take(&limits, admission::CONNECTION + C::MEMORY, &listener.metrics) {
            Taken::Free(place) => place,
            Taken::Instead(place) => {
                failures.log_refusal(&limits);
                place
            }
            Taken::None => {
                failures.log_refusal(&limits);
                continue;
            }
        };
        let shared = Arc::clone(&listener);
        let service = (listener.make_service)(peer);
        let (silent, connection) = places.add(stream, place);
        drop(listener.tasks.spawn(async move { shared.connection(silent, &connection, peer, service, &limits).await }));
    }
}

// === impl Protocol ===

impl Protocol {
    /// Returns whether a connection that begins like this is served as HTTP/1. What is no protocol that is recognised
    /// gets HTTP's answer to it.
    fn takes(&self, kind: Foreign) -> bool {
        *self == Self::Any && matches!(kind, Foreign::Http1 | Foreign::Garbage)
    }
}

// === impl Limits ===

impl Limits {
    /// Returns how many connections may be open.
    pub(super) fn most(&self) -> usize {
        self.max_connections.min((self.descriptors)())
    }
}

// === impl Listener ===

impl<C: Connector, M> Listener<C, M> {
    async fn connection<S: HttpService>(
        &self,
        silent: SilentConnection<Place>,
        connection: &Connection<Place>,
        peer: SocketAddr,
        service: S,
        limits: &Limits,
    ) {
        let open = self.metrics.opened();
        let deadlines = Deadlines::new(limits);
        let accepted = tokio::select! {
            () = self.tasks.stopped() => return,
            accepted = silent.first_byte() => accepted,
            () = deadlines.handshake_timed_out(&self.tasks) => silent.take(),
        };
        let Some((stream, place)) = accepted else {
            tracing::debug!(%peer, "connection closed: its client has sent nothing, and there is no room for a new connection otherwise");
            return;
        };
        connection.keep(place);
        if let Err(error) = set_options(&stream) {
            tracing::debug!(%error, "cannot set the options of a connection");
        }
        let connected = tokio::select! {
            // Check the timeout first: where nothing has to be read, `greet` always succeeds.
            biased;
            () = self.tasks.stopped() => return,
            () = connection.activity.closing() => return,
            () = deadlines.handshake_timed_out(&self.tasks) => Err(io::ErrorKind::TimedOut.into()),
            connected = self.greet(stream) => connected,
        };
        let activity = &connection.activity;
        match connected {
            Ok((_, FirstBytes::Silent)) => self.metrics.accepted(),
            Ok((stream, FirstBytes::Foreign(kind, first))) if limits.protocol.takes(kind) => {
                self.metrics.accepted();
                let (metrics, tasks) = (&self.metrics, &self.tasks);
                let serving = http1::serve(limits, stream, &first, service, deadlines, activity, metrics, tasks);
                // It is boxed, so that it does not make the tasks of HTTP/2 connections larger.
                Box::pin(serving).await;
            }
            Ok((mut stream, FirstBytes::Foreign(kind, first))) => {
                self.metrics.failed();
                self.foreign.note(kind, peer);
                if let (Foreign::Http1, Protocol::Http2 { for_http1 }) = (kind, &limits.protocol) {
                    tokio::select! {
                        () = self.tasks.stopped() => {}
                        () = first_bytes::answer(&mut stream, first, for_http1) => {}
                    }
                }
            }
            Ok((stream, FirstBytes::Http2)) => {
                self.metrics.accepted();
                let stream = Replayed::new(stream, Preface::to_replay());
                connection::serve(limits, stream, service, deadlines, activity, &self.metrics, &self.tasks).await;
            }
            Err(error) => {
                self.metrics.failed();
                self.connector.failed(peer, &error);
            }
        }
        drop(open);
    }

    /// Performs the handshake and reads the first bytes.
    async fn greet(&self, stream: TcpStream) -> io::Result<(C::Stream, FirstBytes)> {
        let mut stream = self.connector.connect(stream).await?;
        // A client that has left meanwhile counts as silent.
        let first_bytes = FirstBytes::read(&mut stream).await.unwrap_or(FirstBytes::Silent);
        Ok((stream, first_bytes))
    }
}
