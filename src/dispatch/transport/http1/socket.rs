//! The stream that hyper reads and writes. It notes when bytes were read and written, and the session keeps a half of it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use crate::{dispatch::transport::stream::Stream, tls::Reason};

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
}

/// Splits a stream in its two halves.
pub(super) fn watch(stream: Stream) -> (Socket, Seen) {
    let inner = Arc::new(Mutex::new(Inner { stream, read_at: None, written_at: None, written: 0 }));
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
            self.written_at = Some(Instant::now());
            self.written = self.written.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
        }
        result
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let mut inner = lock(&self.0);
        let result = Pin::new(&mut inner.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            inner.read_at = Some(Instant::now());
        }
        result
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = lock(&self.0);
        let result = Pin::new(&mut inner.stream).poll_write(cx, data);
        inner.written(result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = lock(&self.0);
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
