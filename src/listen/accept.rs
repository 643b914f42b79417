//! The accept loop of every listener, plain or TLS.

use std::{
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

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
    connection::{self, Deadlines},
    first_bytes::{self, FirstBytes, Foreign, ForeignConnections, Preface, Replayed},
    metrics::ListenerMetrics,
    service::HttpService,
    silent::{Room, SilentConnection, SilentConnections},
    streams::Tally,
};
use crate::{
    budget::{Budget, Permit},
    lifecycle::Tasks,
    shortage::Shortage,
};

/// The limits of a listener.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The HTTP versions that its clients may use.
    pub protocol: Protocol,
    /// The most connections that may be open. Further ones are closed as soon as they are accepted.
    pub max_connections: usize,
    /// Returns for how many connections there are file descriptors at the moment.
    pub descriptors: fn() -> usize,
    /// The time limit of a connection's handshake, and of each header block once it has begun.
    pub header_timeout: Duration,
    /// The most concurrent requests on an HTTP/2 connection.
    pub max_concurrent_streams: u32,
    /// The account that connections and their streams are taken from; `None` if they are not accounted for.
    pub account: Option<Budget>,
    /// The largest headers of an HTTP/2 request, in bytes.
    pub max_header_list_size: u32,
    /// The age at which a connection's client is told to finish, plus or minus 10 %.
    pub max_connection_age: Option<Duration>,
    /// How long its requests may take after that; `None` means no limit.
    pub max_connection_age_grace: Option<Duration>,
}

/// The HTTP versions that a listener's clients may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/2 with prior knowledge.
    Http2 {
        /// The answer to a client that sends an HTTP/1 request: which protocol this port expects, and what to set.
        for_http1: &'static str,
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

/// A place for one open connection and its memory, given back on drop.
struct Place {
    open: Arc<AtomicUsize>,
    /// `None` if connections are not accounted for.
    _memory: Option<Permit>,
}

impl Place {
    /// Takes a place if fewer connections are open than may be and the account has room for `bytes` more. Only one task
    /// takes places.
    fn take(open: &Arc<AtomicUsize>, limits: &Limits, bytes: usize) -> Option<Self> {
        if open.load(Ordering::Relaxed) >= limits.most() {
            return None;
        }
        let memory = match &limits.account {
            None => None,
            Some(account) => Some(admission::connection(account, bytes)?),
        };
        open.fetch_add(1, Ordering::Relaxed);
        Some(Self { open: Arc::clone(open), _memory: memory })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
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
    let open = Arc::default();
    let mut silent = SilentConnections::default();
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
                        pause = listener.free_descriptor(&mut silent, pause);
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
        let place = Place::take(&open, &limits, admission::CONNECTION + C::MEMORY).or_else(|| {
            // The limit is reached, so one connection is refused: the oldest silent one if there is one, else this one.
            listener.metrics.refused();
            failures.log_refusal(&limits);
            silent.make_room().freed()
        });
        let Some(place) = place else { continue };
        let shared = Arc::clone(&listener);
        let service = (listener.make_service)(peer);
        let connection = silent.add(stream, place);
        drop(listener.tasks.spawn(async move { shared.connection(connection, peer, service, &limits).await }));
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
    /// Closes a silent connection, so that its descriptor can be used for a new one. Returns how long to wait before the
    /// next attempt to accept.
    fn free_descriptor(&self, silent: &mut SilentConnections<Place>, pause: Duration) -> Duration {
        match silent.make_room() {
            Room::Freed(_) => {
                self.metrics.refused();
                Duration::ZERO
            }
            Room::After(left) => pause.min(left),
            Room::None => pause,
        }
    }

    async fn connection<S: HttpService>(
        &self,
        connection: SilentConnection<Place>,
        peer: SocketAddr,
        service: S,
        limits: &Limits,
    ) {
        let open = self.metrics.opened();
        let deadlines = Deadlines::new(limits);
        let connection = tokio::select! {
            () = self.tasks.stopped() => return,
            connection = connection.first_byte() => connection,
            () = deadlines.handshake_timed_out(&self.tasks) => connection.take(),
        };
        let Some((stream, _place)) = connection else {
            tracing::debug!(%peer, "connection closed: its client has sent nothing, and there is no room for a new connection otherwise");
            return;
        };
        if let Err(error) = set_options(&stream) {
            tracing::debug!(%error, "cannot set the options of a connection");
        }
        let connected = tokio::select! {
            // Check the timeout first: where nothing has to be read, `greet` always succeeds.
            biased;
            () = self.tasks.stopped() => return,
            () = deadlines.handshake_timed_out(&self.tasks) => Err(io::ErrorKind::TimedOut.into()),
            connected = self.greet(stream, limits.protocol) => connected,
        };
        match connected {
            Ok((_, FirstBytes::Silent)) => self.metrics.accepted(),
            Ok((mut stream, FirstBytes::Foreign(kind, first))) => {
                self.metrics.failed();
                self.foreign.note(kind, peer);
                if let (Foreign::Http1, Protocol::Http2 { for_http1 }) = (kind, limits.protocol) {
                    tokio::select! {
                        () = self.tasks.stopped() => {}
                        () = first_bytes::answer(&mut stream, first, for_http1) => {}
                    }
                }
            }
            Ok((stream, FirstBytes::Http2)) => {
                self.metrics.accepted();
                let tally = Tally::new(self.metrics.refused_streams());
                connection::serve(limits, stream, service, deadlines, tally, &self.tasks).await;
            }
            Err(error) => {
                self.metrics.failed();
                self.connector.failed(peer, &error);
            }
        }
        drop(open);
    }

    /// Performs the handshake. If the protocol has to be HTTP/2, reads the first bytes too.
    async fn greet(&self, stream: TcpStream, protocol: Protocol) -> io::Result<(Replayed<C::Stream>, FirstBytes)> {
        let mut stream = self.connector.connect(stream).await?;
        match protocol {
            Protocol::Any => Ok((Replayed::new(stream, Preface::not_read()), FirstBytes::Http2)),
            Protocol::Http2 { .. } => {
                // A client that has left meanwhile counts as silent.
                let first_bytes = FirstBytes::read(&mut stream).await.unwrap_or(FirstBytes::Silent);
                let is_http2 = matches!(first_bytes, FirstBytes::Http2);
                let preface = if is_http2 { Preface::to_replay() } else { Preface::not_read() };
                Ok((Replayed::new(stream, preface), first_bytes))
            }
        }
    }
}
