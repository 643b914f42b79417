//! TLS on a listener. Each handshake uses the certificates that are current at that moment.

use std::{io, net::SocketAddr};

use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    accept::Connector,
    first_bytes::{self, FirstBytes, Foreign},
};
use crate::{
    telemetry::metrics::RECEIVER_TLS_HANDSHAKE_FAILURES_TOTAL,
    tls::{Failures, Reason, Server},
};

/// The first byte of every TLS connection: a handshake record (RFC 8446, 5.1).
const HANDSHAKE: u8 = 0x16;

/// The memory of a TLS connection, in bytes: its keys, and the buffers of rustls for one record in each direction. Measured
/// as the resident memory of idle connections with TLS, less those without.
const MEMORY: usize = 24 << 10;

/// The error for a client that does not speak TLS.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotTls(&'static str);

/// A [`Connector`] that speaks TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    server: Server,
    failures: Failures,
    /// The answer to a client that sends an HTTP/1 request without TLS.
    for_http1: &'static str,
}

impl Tls {
    /// Creates a connector that uses the certificates of `server`. `listener` is the label of the metric that counts
    /// failed handshakes. `for_http1` is the answer to a client that sends an HTTP/1 request without TLS.
    pub fn new(listener: &'static str, server: Server, for_http1: &'static str) -> Self {
        let failures = Failures::new(RECEIVER_TLS_HANDSHAKE_FAILURES_TOTAL, "listener", listener);
        Self { server, failures, for_http1 }
    }
}

impl Connector for Tls {
    type Stream = TlsStream<TcpStream>;

    const MEMORY: usize = MEMORY;

    async fn connect(&self, mut stream: TcpStream) -> io::Result<Self::Stream> {
        let mut first = [HANDSHAKE];
        stream.peek(&mut first).await?;
        if first != [HANDSHAKE] {
            return Err(io::Error::new(io::ErrorKind::InvalidData, not_tls(&mut stream, self.for_http1).await?));
        }
        TlsAcceptor::from(self.server.current()).accept(stream).await
    }

    fn failed(&self, peer: SocketAddr, error: &io::Error) {
        let is_plaintext = error.get_ref().is_some_and(|inner| inner.is::<NotTls>());
        self.failures.note(if is_plaintext { Reason::NotTls } else { Reason::of_io(error) }, peer, error);
    }
}

/// Returns the error for a client without TLS, according to its first bytes. A client that speaks HTTP/1 is answered
/// with `for_http1` first.
async fn not_tls(stream: &mut TcpStream, for_http1: &str) -> io::Result<NotTls> {
    Ok(NotTls(match FirstBytes::read(stream).await? {
        FirstBytes::Http2 => "it sent HTTP/2 in plaintext: let the exporter use TLS (https://, or insecure: false)",
        FirstBytes::Foreign(Foreign::Http1, first) => {
            first_bytes::answer(stream, first, for_http1).await;
            "it sent HTTP/1 in plaintext: let it use https://, and let probes ask the admin port"
        }
        FirstBytes::Foreign(Foreign::Proxy, _) => {
            "it sent the PROXY protocol, which is not supported: switch it off at the load balancer"
        }
        FirstBytes::Foreign(..) | FirstBytes::Silent => "it sent neither TLS nor HTTP",
    }))
}
