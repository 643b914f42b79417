//! How a backend is dialled: TCP, and TLS over it where the pool has it.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{Failure, stream::Stream};
use crate::{
    telemetry::metrics::DISPATCH_TLS_HANDSHAKE_FAILURES_TOTAL,
    tls::{Client, Failures, Reason},
};

/// How long a connect may take, and a handshake after it: one lost SYN (repeated after 1 s) is borne.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long what was written may stay unacknowledged by the peer's kernel before the connection is given up. Covers a cut
/// cable in both states, idle (with keep-alive) and busy.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(20);

/// Idle time before TCP's own keep-alive, which unlike PING offends no gRPC server.
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);

/// Dials the backends of one pool. Without TLS unless it is given one. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Dialer(Arc<ArcSwapOption<Tls>>);

#[derive(Debug)]
struct Tls {
    client: Client,
    failures: Failures,
}

impl Dialer {
    /// Speaks TLS with every backend of `pool`.
    pub fn new(pool: &str, client: Client) -> Self {
        let dialer = Self::default();
        dialer.set(pool, Some(client));
        dialer
    }

    /// Speaks by `client` with those that are dialled from now on, or without TLS.
    pub fn set(&self, pool: &str, client: Option<Client>) {
        let failures = || Failures::new(DISPATCH_TLS_HANDSHAKE_FAILURES_TOTAL, "pool", pool);
        self.0.store(client.map(|client| Arc::new(Tls { client, failures: failures() })));
    }

    /// Whether it speaks TLS.
    pub(super) fn is_tls(&self) -> bool {
        self.0.load().is_some()
    }

    /// Connects to the backend of that identity at `address`, and shakes hands.
    pub(super) async fn dial(&self, identity: &str, address: SocketAddr) -> Result<Stream, Failure> {
        let stream = match timeout(CONNECT_TIMEOUT, connect(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => return Err(Failure::ConnectRefused),
            // Accepted and reset before we looked.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => return Err(Failure::ResetAtOnce),
            Ok(Err(error)) => {
                tracing::debug!(%address, %error, "cannot connect");
                return Err(Failure::ConnectError);
            }
            Err(_elapsed) => return Err(Failure::ConnectTimeout),
        };
        let Some(tls) = self.0.load_full() else { return Ok(Stream::Plain(stream)) };
        tls.shake(stream, identity, address).await.map_err(|error| {
            let reason = Reason::of_io(&error);
            self.refused(reason, address, &error);
            Failure::Tls(reason)
        })
    }

    /// Notes that TLS with a backend failed.
    pub(super) fn refused(&self, reason: Reason, address: SocketAddr, error: &dyn std::fmt::Display) {
        if let Some(tls) = &*self.0.load() {
            tls.failures.note(reason, address, error);
        }
    }
}

impl Tls {
    async fn shake(&self, stream: TcpStream, identity: &str, address: SocketAddr) -> io::Result<Stream> {
        let name = self.client.name_of(identity).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{identity} at {address} has no name to be checked"))
        })?;
        let connector = TlsConnector::from(self.client.current());
        match timeout(CONNECT_TIMEOUT, connector.connect(name, stream)).await {
            Ok(shaken) => shaken.map(Stream::tls),
            Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    let reference = SockRef::from(&socket);
    reference.set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE).with_interval(TCP_KEEPALIVE))?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    reference.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    socket.connect(address).await
}
