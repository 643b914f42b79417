//! A connection's stream as h2 sees it: writes are gathered, reads are noted.
//!
//! h2 hands over each DATA frame by itself and flushes after it: at 16 KiB a frame that is 64 writes for a MiB. Here frames
//! gather until the driver has polled everything, or until [`GATHER`] bytes are there; where more follow, [`GATHER_MUCH`].

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{outgoing::Outgoing, stream::Stream};
use crate::tls::Reason;

/// Bytes that are gathered before they are written. At 512 spans a batch 256 KiB take 8 to 10 % off a span compared with
/// 64 KiB.
const GATHER: usize = 256 << 10;

/// The same once so many were written and the driver has not polled everything yet. A large call then costs fewer writes,
/// each of which wakes its reader. At 8,192 spans a batch 256 KiB take 15 % off a span and these 20 %; 128 KiB take none.
const GATHER_MUCH: usize = 512 << 10;

/// The frame that crosses the limit fits too: the buffer then never grows by copying.
const FRAME: usize = (16 << 10) + 64;

/// The half that h2 owns.
pub(super) struct Wire<S>(Arc<Shared<S>>);

/// The half that the driver keeps.
pub(super) struct Outlet<S>(Arc<Shared<S>>);

struct Shared<S> {
    inner: Mutex<Inner<S>>,
    heard: AtomicBool,
}

struct Inner<S> {
    stream: S,
    out: Outgoing,
    /// Bytes that are gathered before they are written.
    limit: usize,
}

/// Both halves of a stream.
pub(super) fn gather<S>(stream: S) -> (Wire<S>, Outlet<S>) {
    let inner = Mutex::new(Inner { stream, out: Outgoing::default(), limit: GATHER });
    let shared = Arc::new(Shared { inner, heard: AtomicBool::new(false) });
    (Wire(Arc::clone(&shared)), Outlet(shared))
}

impl<S: AsyncWrite + Unpin> Outlet<S> {
    /// Writes what was gathered.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.lock();
        ready!(inner.poll_drain(cx))?;
        inner.rest();
        Pin::new(&mut inner.stream).poll_flush(cx)
    }

    /// The body, or the next piece of it, of the call in that place goes to h2.
    pub(super) fn lend(&self, place: usize, bytes: &Bytes) {
        self.0.lock().out.lend(place, bytes);
    }

    /// The call in that place is over: h2 hands over no more of its body.
    pub(super) fn take_back(&self, place: usize) {
        self.0.lock().out.take_back(place);
    }

    /// Whether anything was read since this was asked last.
    pub(super) fn heard(&self) -> bool {
        self.0.heard.swap(false, Ordering::Relaxed)
    }
}

impl Outlet<Stream> {
    /// Makes the coming close a reset: what the peer has not read yet need not reach it.
    pub(super) fn reset_on_close(&self) {
        self.0.lock().stream.reset_on_close();
    }

    /// What the peer did not like about TLS, if that is how the stream ended.
    pub(super) fn tls_failure(&self) -> Option<Reason> {
        self.0.lock().stream.tls_failure()
    }
}

impl<S> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, Inner<S>> {
        // One task uses both halves: it is never contended, and a panic of the stream ends that task.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.out.len() > 0 {
            let stream = Pin::new(&mut self.stream);
            match ready!(self.out.slices(|slices| stream.poll_write_vectored(cx, slices)))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.out.advance(written),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// All is written.
    fn rest(&mut self) {
        self.limit = GATHER;
        self.out.rest();
    }

    /// Takes bytes to be written later, as many as fit; there is room for a frame of the usual size.
    fn gather(&mut self, slices: &[IoSlice<'_>]) -> usize {
        let large = self.limit + FRAME;
        self.out.add(slices, large - self.out.len(), large)
    }

    /// Makes room when enough was gathered.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.len() < self.limit {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_drain(cx))?;
        if self.limit < GATHER_MUCH {
            self.limit = GATHER_MUCH;
            // The next buffer is made for the new limit.
            self.out.rest();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.0.lock().stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.0.heard.store(true, Ordering::Relaxed);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.0.lock();
        ready!(inner.poll_room(cx))?;
        Poll::Ready(Ok(inner.gather(&[IoSlice::new(data)])))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.0.lock();
        ready!(inner.poll_room(cx))?;
        Poll::Ready(Ok(inner.gather(slices)))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing: the driver flushes once it has polled everything.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.lock();
        ready!(inner.poll_drain(cx))?;
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn writes_gather_until_they_are_flushed_or_many() {
        let (near, mut far) = duplex(1 << 20);
        let (mut wire, outlet) = gather(near);
        wire.write_all(b"head").await.unwrap();
        wire.write_all(b"body").await.unwrap();
        wire.flush().await.unwrap();
        let mut seen = [0; 8];
        let early = tokio::time::timeout(Duration::ZERO, far.read(&mut seen)).await;
        assert!(early.is_err(), "h2's own flush must not write");
        std::future::poll_fn(|cx| outlet.poll_flush(cx)).await.unwrap();
        far.read_exact(&mut seen).await.unwrap();
        assert_eq!(&seen, b"headbody");
        wire.write_all(&vec![7; GATHER]).await.unwrap();
        wire.write_all(b"more").await.unwrap();
        let mut seen = vec![0; GATHER];
        far.read_exact(&mut seen).await.unwrap();
        assert!(!outlet.heard());
        far.write_all(b"answer").await.unwrap();
        wire.read_exact(&mut [0; 6]).await.unwrap();
        assert!(outlet.heard(), "what was read must be noted");
        assert!(!outlet.heard(), "once");
    }

    #[tokio::test]
    async fn what_does_not_fit_one_write_arrives_whole_and_the_buffer_is_given_back() {
        let sent: Vec<u8> = (0..3_000_000_u32).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
        // The far end takes little at a time: most writes are partial.
        let (near, mut far) = duplex(30_000);
        let (mut wire, outlet) = gather(near);
        let reading = async {
            let mut seen = Vec::new();
            far.read_to_end(&mut seen).await.unwrap();
            seen
        };
        let writing = async {
            for (at, piece) in sent.chunks(999_983).enumerate() {
                let mut slices: Vec<IoSlice<'_>> = piece.chunks(1 + 7_919 * at).map(IoSlice::new).collect();
                let mut slices = slices.as_mut_slice();
                while !slices.is_empty() {
                    // As many as h2 asks of a rope at once.
                    let taken = wire.write_vectored(&slices[..slices.len().min(16)]).await.unwrap();
                    IoSlice::advance_slices(&mut slices, taken);
                    let inner = outlet.0.lock();
                    assert!(inner.out.len() <= GATHER_MUCH + FRAME, "more than one write is held");
                }
            }
            std::future::poll_fn(|cx| outlet.poll_flush(cx)).await.unwrap();
            assert!(outlet.0.lock().out.keeps_little(), "a large buffer is for others meanwhile");
            wire.shutdown().await.unwrap();
            drop((wire, outlet));
        };
        let (seen, ()) = tokio::join!(reading, writing);
        assert!(seen == sent);
    }
}
