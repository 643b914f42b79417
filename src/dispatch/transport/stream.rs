//! The byte stream of a connection to a backend: plain TCP, or TLS over it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use crate::tls::Reason;

/// The number of bytes that Linux usually hands to a network device at once (generic segmentation offload).
pub(super) const MAX_PACKET: usize = 64 << 10;

/// The byte stream of a connection.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<Tls>),
}

/// A TLS stream. In TLS 1.3 a backend refuses our certificate only after the handshake, by an alert that is found when reading.
pub(super) struct Tls {
    stream: TlsStream<TcpStream>,
    failure: Option<Reason>,
}

impl Stream {
    pub(super) fn tls(stream: TlsStream<TcpStream>) -> Self {
        Self::Tls(Box::new(Tls { stream, failure: None }))
    }

    /// The TLS failure that ended the stream, if one did.
    pub(super) fn tls_failure(&mut self) -> Option<Reason> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(tls) => tls.failure,
        }
    }

    /// The number of bytes that the kernel now sends as one packet: as many whole segments as it hands to a device at once.
    /// `usize::MAX` if it is unknown, and for TLS, where the number of bytes sent differs from the number written. The value can
    /// change: segments over loopback grow with the peer's window.
    pub(super) fn packet_len(&self) -> usize {
        let Self::Plain(tcp) = self else { return usize::MAX };
        match SockRef::from(tcp).tcp_mss().map(usize::try_from) {
            Ok(Ok(segment @ 1..=MAX_PACKET)) => MAX_PACKET - MAX_PACKET % segment,
            _ => usize::MAX,
        }
    }

    /// Makes closing reset the connection, so that bytes that the peer has not read yet may be dropped.
    pub(super) fn reset_on_close(&self) {
        let tcp = match self {
            Self::Plain(stream) => stream,
            Self::Tls(tls) => tls.stream.get_ref().0,
        };
        // If this fails, the peer only gets more bytes that nobody waits for.
        drop(SockRef::from(tcp).set_linger(Some(Duration::ZERO)));
    }
}

impl Tls {
    /// Notes the first error of TLS.
    fn note(&mut self, error: &io::Error) {
        let reason = Reason::of_io(error);
        if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
            self.failure.get_or_insert(reason);
        }
    }

    /// Reads the alert after a failed write: a peer that refuses our certificate sends one and then closes.
    fn read_alert(&mut self, cx: &mut Context<'_>) {
        let mut room = [0; 256];
        let mut buf = ReadBuf::new(&mut room);
        if let Poll::Ready(Err(error)) = Pin::new(&mut self.stream).poll_read(cx, &mut buf) {
            self.note(&error);
        }
    }

    fn written<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if matches!(result, Poll::Ready(Err(_))) {
            self.read_alert(cx);
        }
        result
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(tls) => {
                let result = Pin::new(&mut tls.stream).poll_read(cx, buf);
                if let Poll::Ready(Err(error)) = &result {
                    tls.note(error);
                }
                result
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, data),
            Self::Tls(tls) => {
                let result = Pin::new(&mut tls.stream).poll_write(cx, data);
                tls.written(cx, result)
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Tls(tls) => {
                let result = Pin::new(&mut tls.stream).poll_write_vectored(cx, slices);
                tls.written(cx, result)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(tls) => {
                let result = Pin::new(&mut tls.stream).poll_flush(cx);
                tls.written(cx, result)
            }
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(&mut tls.stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_packet_has_only_whole_segments() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let segment = usize::try_from(SockRef::from(&tcp).tcp_mss().unwrap()).unwrap();
        let packet = Stream::Plain(tcp).packet_len();
        assert!(packet <= MAX_PACKET && packet + segment > MAX_PACKET, "{packet} of {segment}");
        assert_eq!(packet % segment, 0);
    }
}
