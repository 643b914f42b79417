//! Detects the protocol of a client on a gRPC port from the first bytes that it sends: HTTP/2 begins with its preface.
//!
//! The server sends nothing before the protocol is known, so an HTTP/1 client can be answered with a text. Connections
//! that begin with TLS, the PROXY protocol or unknown bytes are closed. Each protocol has a counter, and at most every
//! ten seconds a log line names a client.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use metrics::{Counter, counter};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::timeout,
};

use super::{
    layers::{Layer, Layered},
    linger::Linger,
    streams::PREFACE,
};
use crate::telemetry::{LogLimit, metrics::RECEIVER_FOREIGN_CONNECTIONS_TOTAL};

/// The first bytes of TLS: a handshake record with the major version 3 (RFC 8446, 5.1).
const TLS: &[u8] = &[0x16, 0x03];

/// The first bytes of the PROXY protocol, versions 1 and 2.
const PROXY: [&[u8]; 2] = [b"PROXY ", b"\r\n\r\n\0\r\nQUIT\n"];

/// The longest HTTP/1 method that is recognised, in bytes.
const LONGEST_METHOD: usize = 20;

/// How much of an HTTP/1 request is read before it is answered, in bytes. Usual servers accept heads of up to 8 KiB.
const HTTP1_MAX_HEAD: usize = 16 << 10;

/// How long reading the head of an HTTP/1 request may take, and how long writing the answer may take.
const HTTP1_TIMEOUT: Duration = Duration::from_secs(2);

/// The protocol of a client that does not speak HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Foreign {
    /// A request of HTTP/1.
    Http1,
    /// A TLS handshake.
    Tls,
    /// The PROXY protocol, with which a load balancer passes on its client's address.
    Proxy,
    /// Anything else.
    Garbage,
}

/// The result of reading the first bytes of a connection.
#[derive(Debug)]
pub(super) enum FirstBytes {
    /// The preface of HTTP/2.
    Http2,
    /// Another protocol, and the bytes that were read.
    Foreign(Foreign, Vec<u8>),
    /// None: the client closed the connection without sending a byte, as port checks do.
    Silent,
}

/// A stream whose preface was read, and which replays it to the next reader.
pub(super) type Replayed<I> = Layered<I, Preface>;

/// The layer that replays the preface.
#[derive(Debug)]
pub(super) struct Preface {
    /// How many bytes at the end of the preface are still to be replayed.
    left: usize,
}

/// Counts the connections that do not speak HTTP/2, and logs some of them.
#[derive(Debug)]
pub(super) struct ForeignConnections {
    listener: &'static str,
    counters: [Counter; Foreign::ALL.len()],
    log_limit: LogLimit,
}

// === impl Foreign ===

impl Foreign {
    pub(super) const ALL: [Self; 4] = [Self::Http1, Self::Tls, Self::Proxy, Self::Garbage];

    /// Returns the value of the metric label.
    fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Tls => "tls",
            Self::Proxy => "proxy",
            Self::Garbage => "garbage",
        }
    }

    /// Returns the advice in the log line.
    fn advice(self) -> &'static str {
        match self {
            Self::Http1 => {
                "the client speaks HTTP/1, and this port is for gRPC: set the client's protocol to grpc, or let the probe ask the admin port"
            }
            Self::Tls => {
                "the client speaks TLS, and this port does not: let the client send plaintext (insecure), or give the receiver a tls section"
            }
            Self::Proxy => {
                "the PROXY protocol is not supported: switch it off at the load balancer (send-proxy, proxy_protocol)"
            }
            Self::Garbage => "the client speaks neither HTTP/2 nor another protocol that is recognised here",
        }
    }

    /// Returns the protocol that begins with `bytes`, or `None` if more bytes are needed. `bytes` must not be the
    /// beginning of the preface.
    fn of(bytes: &[u8]) -> Option<Self> {
        for (start, kind) in [(TLS, Self::Tls), (PROXY[0], Self::Proxy), (PROXY[1], Self::Proxy)] {
            if bytes.starts_with(start) {
                return Some(kind);
            }
            if start.starts_with(bytes) {
                return None;
            }
        }
        let method = bytes.iter().take_while(|byte| byte.is_ascii_uppercase() || **byte == b'-').count();
        match bytes.get(method) {
            None if method <= LONGEST_METHOD => None,
            Some(b' ') if method > 0 => Some(Self::Http1),
            _ => Some(Self::Garbage),
        }
    }
}

// === impl FirstBytes ===

impl FirstBytes {
    /// Reads until the protocol is known. The caller has to set a time limit.
    ///
    /// Cancel safety: none; the bytes read so far are lost.
    pub(super) async fn read<I: AsyncRead + Unpin>(stream: &mut I) -> io::Result<Self> {
        let (mut room, mut len) = ([0; PREFACE.len()], 0);
        loop {
            let more = stream.read(room.get_mut(len..).unwrap_or_default()).await?;
            len += more;
            let bytes = room.get(..len).unwrap_or_default();
            let kind = match more {
                0 if len == 0 => return Ok(Self::Silent),
                0 => Some(Foreign::Garbage),
                _ if bytes == PREFACE => return Ok(Self::Http2),
                _ if PREFACE.starts_with(bytes) => None,
                _ => Foreign::of(bytes),
            };
            if let Some(kind) = kind {
                return Ok(Self::Foreign(kind, bytes.to_vec()));
            }
        }
    }
}

/// Answers an HTTP/1 request with the text `words` and ends the connection, whether the client reads the answer or not.
///
/// The status is 400, which is also what TLS servers answer to plaintext: the client is misconfigured. OTLP exporters
/// do not retry after a 400, and a 400 is not mistaken for a failure of the proxy, as a 5xx would be.
pub(super) async fn answer<I>(stream: &mut I, first: Vec<u8>, words: &str)
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let mut head = first;
    let read = async {
        while !head.windows(4).any(|four| four == b"\r\n\r\n") && head.len() < HTTP1_MAX_HEAD {
            if stream.read_buf(&mut head).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    };
    // A client whose head is still incomplete at the timeout is answered too.
    drop(timeout(HTTP1_TIMEOUT, read).await);
    let body = if head.starts_with(b"HEAD ") { "" } else { words };
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        words.len()
    );
    let answered = timeout(HTTP1_TIMEOUT, async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    });
    if let Ok(Ok(())) = answered.await {
        let mut linger = Linger::new();
        poll_fn(|cx| linger.poll(stream, cx)).await;
    }
}

// === impl ForeignConnections ===

impl ForeignConnections {
    /// Creates the counters of all kinds, at 0.
    pub(super) fn new(listener: &'static str) -> Self {
        let counters = Foreign::ALL
            .map(|kind| counter!(RECEIVER_FOREIGN_CONNECTIONS_TOTAL, "listener" => listener, "kind" => kind.as_str()));
        Self { listener, counters, log_limit: LogLimit::few() }
    }

    /// Counts a connection of this kind. Logs it too, unless a line was written less than ten seconds ago.
    pub(super) fn note(&self, kind: Foreign, peer: SocketAddr) {
        if let Some((_, counter)) = Foreign::ALL.iter().zip(&self.counters).find(|(of, _)| **of == kind) {
            counter.increment(1);
        }
        if let Some(unlogged) = self.log_limit.admit() {
            let (listener, kind, advice) = (self.listener, kind.as_str(), kind.advice());
            tracing::warn!(listener, %peer, kind, unlogged, "connection closed: {advice}");
        }
    }
}

// === impl Preface ===

impl Preface {
    /// Creates the layer for a stream whose preface [`FirstBytes::read`] has read.
    pub(super) fn to_replay() -> Self {
        Self { left: PREFACE.len() }
    }
}

impl<I: AsyncRead + Unpin> Layer<I> for Preface {
    fn poll_read(&mut self, stream: &mut I, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.left > 0 {
            let rest = PREFACE.get(PREFACE.len() - self.left..).unwrap_or_default();
            let now = rest.get(..buf.remaining()).unwrap_or(rest);
            buf.put_slice(now);
            self.left -= now.len();
            return Poll::Ready(Ok(()));
        }
        Pin::new(stream).poll_read(cx, buf)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::duplex, time::Instant};

    use super::*;

    /// Sends these bytes one by one, closes the stream and returns what was detected.
    async fn detected(bytes: &[u8]) -> FirstBytes {
        let (mut far, mut near) = duplex(1);
        let read = async move { FirstBytes::read(&mut near).await.unwrap() };
        let (first_bytes, ()) = tokio::join!(read, async move {
            // The reader stops once it knows the protocol, so the write may fail.
            far.write_all(bytes).await.ok();
        });
        first_bytes
    }

    #[tokio::test]
    async fn the_first_bytes_show_the_protocol() {
        let rows: [(&[u8], Foreign); 14] = [
            (b"GET /v1/traces HTTP/1.1\r\n", Foreign::Http1),
            (b"POST /v1/traces HTTP/1.1\r\n", Foreign::Http1),
            (b"PRI * HTTP/1.1\r\n\r\n", Foreign::Http1),
            (b"M-SEARCH * HTTP/1.1\r\n", Foreign::Http1),
            (b"\x16\x03\x01\x02\x00\x01", Foreign::Tls),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", Foreign::Proxy),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c", Foreign::Proxy),
            (b"\x16\x04", Foreign::Garbage),
            (b"P", Foreign::Garbage),
            (b"get / HTTP/1.1\r\n", Foreign::Garbage),
            (b" GET / HTTP/1.1\r\n", Foreign::Garbage),
            (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Foreign::Garbage),
            (b"\r\n\r\n\r\n", Foreign::Garbage),
            (b"\0\0\0\x04\0\0\0\0\0", Foreign::Garbage),
        ];
        for (bytes, kind) in rows {
            match detected(bytes).await {
                FirstBytes::Foreign(found, first) => {
                    assert_eq!(found, kind, "{}", bytes.escape_ascii());
                    assert!(bytes.starts_with(&first));
                }
                other => panic!("{}: {other:?}", bytes.escape_ascii()),
            }
        }
        assert!(matches!(detected(PREFACE).await, FirstBytes::Http2));
        assert!(matches!(detected(b"").await, FirstBytes::Silent));
    }

    #[tokio::test]
    async fn the_preface_is_replayed_before_the_rest() {
        let (mut far, near) = duplex(100);
        far.write_all(b"frames").await.unwrap();
        drop(far);
        let (mut stream, mut seen) = (Replayed::new(near, Preface::to_replay()), Vec::new());
        loop {
            let mut room = [0; 7];
            match stream.read(&mut room).await.unwrap() {
                0 => break,
                len => seen.extend_from_slice(&room[..len]),
            }
        }
        assert_eq!(seen, [PREFACE, b"frames"].concat());
    }

    const WORDS: &str = "this port speaks something else\n";

    #[tokio::test(start_paused = true)]
    async fn answering_http1_ends_whatever_the_client_does() {
        // The last number is how long it takes in seconds: up to 2 for a head that is not whole, 2 for a client that takes no
        // answer, and 1 until the client closes its side, too.
        for (request, takes, seconds) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], true, 1),
            (b"HEAD / HTTP/1.1\r\n\r\n", true, 1),
            (b"GET / HT", true, 3),
            (b"POST / HTTP/1.1\r\n\r\n", false, 2),
        ] {
            let (mut far, mut near) = duplex(if takes { 4096 } else { 8 });
            let started = Instant::now();
            answer(&mut near, request.to_vec(), WORDS).await;
            let took = started.elapsed().as_secs_f64();
            assert!((f64::from(seconds) - took).abs() < 0.1, "{} took {took}", request.escape_ascii());
            drop(near);
            if takes {
                let mut said = String::new();
                far.read_to_string(&mut said).await.unwrap();
                let (head, body) = said.split_once("\r\n\r\n").unwrap();
                assert!(
                    head.starts_with("HTTP/1.1 400 Bad Request\r\n") && head.contains("connection: close"),
                    "{head}"
                );
                assert!(head.contains(&format!("content-length: {}", WORDS.len())), "{head}");
                assert_eq!(body, if request.starts_with(b"HEAD") { "" } else { WORDS });
            }
        }
    }
}
