//! Handwritten HTTP/2 for peers that do what no library would do: frames, uncompressed headers, and a client on a plain
//! socket.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
/// The same bit in SETTINGS and PING.
pub(crate) const ACK: u8 = 1;

/// Path of the gRPC method that exports traces.
pub(crate) const TRACES: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// Returns a frame in wire format (RFC 9113, 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut frame = vec![a, b, c, kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Returns the payload length in a frame header.
pub(crate) fn length_of(head: &[u8; 9]) -> usize {
    let [a, b, c, ..] = *head;
    u32::from_be_bytes([0, a, b, c]) as usize
}

/// Returns a GOAWAY frame; streams above `last` were not processed.
pub(crate) fn goaway(last: u32, error: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), error.to_be_bytes()].concat())
}

/// Returns headers as literals without indexing (RFC 7541, 6.2.2). Each text must have less than 127 bytes.
pub(crate) fn literals(headers: &[(&str, &str)]) -> Vec<u8> {
    literals_as(0, headers)
}

/// Returns headers as literals of a kind: without indexing, or 0x40 with it (RFC 7541, 6.2.1).
pub(crate) fn literals_as(kind: u8, headers: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap_or(0)], text.as_bytes()].concat();
    headers.iter().flat_map(|(name, value)| [vec![kind], text(name), text(value)].concat()).collect()
}

/// Returns the headers of a request that exports traces.
pub(crate) fn export_headers(more: &[(&str, &str)]) -> Vec<u8> {
    export_headers_as(0, more)
}

/// Returns these headers as literals of a kind, as [`literals_as`] does.
pub(crate) fn export_headers_as(kind: u8, more: &[(&str, &str)]) -> Vec<u8> {
    let usual = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", TRACES),
        (":authority", "proxy.test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    literals_as(kind, &[&usual, more].concat())
}

/// Returns a message with gRPC's prefix.
pub(crate) fn grpc(message: &[u8]) -> Vec<u8> {
    let len = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[0], len.as_slice(), message].concat()
}

/// A received frame.
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// Returns the complete frames in the bytes of a connection after the preface.
pub(crate) fn frames(mut said: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let Some((head, rest)) = said.split_first_chunk::<9>()
        && let Some((payload, rest)) = rest.split_at_checked(length_of(head))
    {
        let [_, _, _, kind, flags, a, b, c, d] = *head;
        frames.push(Frame { kind, flags, stream: u32::from_be_bytes([a, b, c, d]), payload: payload.to_vec() });
        said = rest;
    }
    frames
}

/// A client that writes raw frames.
pub(crate) struct Raw(TcpStream);

impl Raw {
    /// Connects and sends nothing.
    pub(crate) fn silent(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self(stream))
    }

    /// Connects and sends the preface and these settings.
    pub(crate) fn connect(address: SocketAddr, settings: &[(u16, u32)]) -> Result<Self> {
        let mut raw = Self::silent(address)?;
        let settings: Vec<u8> =
            settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
        raw.send(PREFACE)?;
        raw.send(&frame(SETTINGS, 0, 0, &settings))?;
        Ok(raw)
    }

    /// Sets how long to wait until the peer reads or sends something.
    pub(crate) fn set_timeout(&mut self, timeout: Duration) -> Result<()> {
        self.0.set_write_timeout(Some(timeout))?;
        Ok(self.0.set_read_timeout(Some(timeout))?)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.0.write_all(bytes)?)
    }

    /// Reads the next frame; `None` when the peer has closed the connection.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>> {
        let mut head = [0; 9];
        if let Err(error) = self.0.read_exact(&mut head) {
            let closed = [std::io::ErrorKind::UnexpectedEof, std::io::ErrorKind::ConnectionReset];
            return if closed.contains(&error.kind()) { Ok(None) } else { Err(error).context("no frame came") };
        }
        let mut payload = vec![0; length_of(&head)];
        self.0.read_exact(&mut payload)?;
        let [_, _, _, kind, flags, a, b, c, d] = head;
        Ok(Some(Frame { kind, flags, stream: u32::from_be_bytes([a, b, c, d]), payload }))
    }

    /// Sends up to `times` times, until the peer closes the connection; returns whether it did.
    pub(crate) fn send_until_closed(&mut self, times: usize, mut bytes: impl FnMut(usize) -> Vec<u8>) -> bool {
        (0..times).any(|n| self.0.write_all(&bytes(n)).is_err())
    }

    /// Reads until the peer sends GOAWAY, whose error code is returned, or closes the connection.
    pub(crate) fn dismissal(&mut self) -> Result<Option<u32>> {
        while let Some(Frame { kind, payload, .. }) = self.next()? {
            if kind == GOAWAY {
                let error = payload.get(4..8).and_then(|error| error.try_into().ok()).context("a short GOAWAY")?;
                return Ok(Some(u32::from_be_bytes(error)));
            }
        }
        Ok(None)
    }

    /// Reads until the stream ends.
    pub(crate) fn stream_ended(&mut self, stream: u32) -> Result<()> {
        while let Some(Frame { kind, flags, stream: of, .. }) = self.next()? {
            let ends = kind == RST_STREAM || ([DATA, HEADERS].contains(&kind) && flags & END_STREAM != 0);
            if of == stream && ends {
                return Ok(());
            }
        }
        ensure!(stream == 0, "the connection was closed before stream {stream} ended");
        Ok(())
    }
}

/// Sends a framed message, valid or not, in a call on a new connection; returns `grpc-status` and `grpc-message` as
/// received.
pub(crate) async fn call(address: SocketAddr, encoding: Option<&str>, framed: Vec<u8>) -> Result<(String, String)> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    let mut request = http::Request::post(format!("http://{address}{TRACES}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(encoding) = encoding {
        request = request.header("grpc-encoding", encoding);
    }
    let request = request.body(())?;
    let exchange = async {
        let (response, mut body) = sender.ready().await?.send_request(request, false)?;
        body.send_data(framed.into(), true)?;
        let (head, mut reply) = response.await?.into_parts();
        while let Some(piece) = reply.data().await {
            reply.flow_control().release_capacity(piece?.len())?;
        }
        let headers = reply.trailers().await?.unwrap_or(head.headers);
        let text = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        Ok((text("grpc-status").context("no grpc-status")?, text("grpc-message").unwrap_or_default()))
    };
    tokio::select! {
        outcome = exchange => outcome,
        closed = connection => anyhow::bail!("the connection was closed before the answer: {closed:?}"),
    }
}
