//! The stream that hyper reads and writes. It notes when bytes were read and written, and the session keeps a half of it. It
//! writes no request behind bytes that the backend sent before: they would be taken for its answer.

use std::{
    io::{self, IoSlice, Read},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use crate::{
    dispatch::transport::{dialer::begins_http2, stream::Stream},
    tls::Reason,
};

/// The half that hyper owns.
pub(super) struct Socket(Arc<Mutex<Inner>>);

/// The half that the session keeps.
pub(super) struct Seen(Arc<Mutex<Inner>>);

struct Inner {
    stream: Stream,
    read_at: Option<Instant>,
    written_at: Option<Instant>,
    /// The number of bytes that were written so far.
    written: u64,
    /// Whether a part of the request that is to be answered next was written.
    has_asked: bool,
    /// Whether the backend sent something before that.
    has_spoken_first: bool,
    /// The first bytes that the backend sent on this connection, and how many of them there are.
    first: ([u8; 9], usize),
}

/// Splits a stream in its two halves.
pub(super) fn watch(stream: Stream) -> (Socket, Seen) {
    let inner = Inner {
        stream,
        read_at: None,
        written_at: None,
        written: 0,
        has_asked: false,
        has_spoken_first: false,
        first: ([0; 9], 0),
    };
    let inner = Arc::new(Mutex::new(inner));
    (Socket(Arc::clone(&inner)), Seen(inner))
}

// Both halves are used by one task. So the lock is never contended, and a panic while it is held ends that task.
fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seen {
    /// The time when something was read last.
    pub(super) fn read_at(&self) -> Option<Instant> {
        lock(&self.0).read_at
    }

    /// The time when the kernel took or returned bytes last.
    pub(super) fn moved_at(&self) -> Option<Instant> {
        let inner = lock(&self.0);
        inner.read_at.max(inner.written_at)
    }

    /// The number of bytes that were written so far.
    pub(super) fn written(&self) -> u64 {
        lock(&self.0).written
    }

    /// Notes that the answer to a request was read: whatever comes before the next request answers nothing.
    pub(super) fn rest(&self) {
        lock(&self.0).has_asked = false;
    }

    /// Whether a part of the request that is to be answered next was written.
    pub(super) fn has_asked(&self) -> bool {
        lock(&self.0).has_asked
    }

    /// Whether the backend sent something before a request. That ends the connection.
    pub(super) fn has_spoken_first(&self) -> bool {
        lock(&self.0).has_spoken_first
    }

    /// Whether what the backend sent begins as an HTTP/2 server does.
    pub(super) fn begins_http2(&self) -> bool {
        let (first, len) = lock(&self.0).first;
        len == first.len() && begins_http2(first)
    }

    /// The TLS failure that ended the stream, if one did.
    pub(super) fn tls_failure(&self) -> Option<Reason> {
        lock(&self.0).stream.tls_failure()
    }

    /// See [`Stream::reset_on_close`].
    pub(super) fn reset_on_close(&self) {
        lock(&self.0).stream.reset_on_close();
    }
}

impl Inner {
    fn written(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(len @ 1..)) = result {
            self.has_asked = true;
            self.written_at = Some(Instant::now());
            self.written = self.written.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
        }
        result
    }

    /// Notes bytes that were read.
    fn heard(&mut self, data: &[u8]) {
        self.has_spoken_first |= !self.has_asked;
        let (first, len) = &mut self.first;
        for (place, byte) in first.iter_mut().skip(*len).zip(data) {
            *place = *byte;
            *len += 1;
        }
    }

    /// Called before something is written. Fails if the first bytes of a request are to be written and the backend has sent
    /// something already, which answers nothing, or has closed the connection. The runtime may not know yet that there is
    /// something to read, so this asks the kernel. Data of TLS need not be an answer, so there this does nothing.
    fn before_write(&mut self) -> io::Result<()> {
        let Stream::Plain(tcp) = &self.stream else { return Ok(()) };
        if self.has_asked {
            return Ok(());
        }
        let mut data = [0; 9];
        match (&*SockRef::from(tcp)).read(&mut data) {
            Ok(0) => Err(io::ErrorKind::ConnectionReset.into()),
            Ok(len) => {
                self.heard(data.get(..len).unwrap_or_default());
                Err(io::ErrorKind::InvalidData.into())
            }
            // An error of the connection is that of the write.
            Err(_) => Ok(()),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let mut inner = lock(&self.0);
        let result = Pin::new(&mut inner.stream).poll_read(cx, buf);
        if let Some(data @ [_, ..]) = buf.filled().get(before..) {
            inner.read_at = Some(Instant::now());
            inner.heard(data);
        }
        result
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = lock(&self.0);
        inner.before_write()?;
        let result = Pin::new(&mut inner.stream).poll_write(cx, data);
        inner.written(result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = lock(&self.0);
        inner.before_write()?;
        let result = Pin::new(&mut inner.stream).poll_write_vectored(cx, slices);
        inner.written(result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Write},
        net::{TcpListener, TcpStream},
    };

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A connection whose peer is a blocking socket: what it sends is there before this side polls anything.
    fn pair() -> (Socket, Seen, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        near.set_nonblocking(true).unwrap();
        let (socket, seen) = watch(Stream::Plain(tokio::net::TcpStream::from_std(near).unwrap()));
        (socket, seen, listener.accept().unwrap().0)
    }

    #[tokio::test]
    async fn no_request_is_written_behind_bytes_that_came_before_it() {
        let (mut socket, seen, mut peer) = pair();
        peer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        let error = socket.write_all(b"POST /").await.expect_err("must not be written");
        assert_eq!((error.kind(), seen.written()), (ErrorKind::InvalidData, 0));
        assert!(seen.has_spoken_first() && !seen.has_asked() && !seen.begins_http2());
    }

    #[tokio::test]
    async fn an_answer_comes_after_the_first_byte_of_its_request_and_before_the_next_request() {
        let (mut socket, seen, mut peer) = pair();
        socket.write_all(b"POST").await.unwrap();
        peer.write_all(b"one").unwrap();
        socket.write_all(b" /").await.expect("the rest may follow");
        assert_eq!(socket.read_exact(&mut [0; 3]).await.unwrap(), 3);
        assert!(!seen.has_spoken_first());
        seen.rest();
        peer.write_all(b"two").unwrap();
        assert_eq!(socket.write_all(b"POST").await.expect_err("unasked").kind(), ErrorKind::InvalidData);
        assert!(seen.has_spoken_first());
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_gets_no_request() {
        let (mut socket, seen, peer) = pair();
        drop(peer);
        assert_eq!(socket.write_all(b"POST").await.expect_err("closed").kind(), ErrorKind::ConnectionReset);
        assert!(!seen.has_spoken_first() && !seen.has_asked());
    }

    #[tokio::test]
    async fn the_first_frame_of_http2_is_known_in_pieces_too() {
        let (mut socket, seen, mut peer) = pair();
        for piece in [&b"\0\0\x06\x04\0"[..], b"\0\0\0\0\0\x03"] {
            peer.write_all(piece).unwrap();
            socket.read_exact(&mut vec![0; piece.len()]).await.unwrap();
        }
        assert!(seen.begins_http2());
    }
}
