//! TLS on a listener: each handshake uses what the certificates say at its moment.

use std::{io, net::SocketAddr};

use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::accept::Connector;
use crate::{
    telemetry::metrics::RECEIVER_TLS_HANDSHAKE_FAILURES_TOTAL,
    tls::{Failures, Reason, Server},
};

/// Speaks TLS with every client.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    server: Server,
    failures: Failures,
}

impl Tls {
    pub(super) fn new(listener: &'static str, server: Server) -> Self {
        Self { server, failures: Failures::new(RECEIVER_TLS_HANDSHAKE_FAILURES_TOTAL, "listener", listener) }
    }
}

impl Connector for Tls {
    type Stream = TlsStream<TcpStream>;

    async fn connect(&self, stream: TcpStream) -> io::Result<Self::Stream> {
        TlsAcceptor::from(self.server.current()).accept(stream).await
    }

    fn failed(&self, peer: SocketAddr, error: &io::Error) {
        self.failures.note(Reason::of_io(error), peer, error);
    }
}
