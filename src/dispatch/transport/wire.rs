//! The stream that h2 reads and writes. It gathers writes, and notes when something was read.
//!
//! h2 writes and flushes each frame by itself. This module gathers frames until the driver has polled everything, or until there
//! are [`GATHER`] bytes; once that many were written, until there are [`GATHER_MUCH`].

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    frames::Frames,
    outgoing::Outgoing,
    silence::Traffic,
    stream::{MAX_PACKET, Stream},
};
use crate::tls::Reason;

/// Bytes that are gathered before they are written. Half and twice as many cost more at 512 spans a request
/// (`deploy/docs/performance.md`).
const GATHER: usize = 256 << 10;

/// The same after [`GATHER`] bytes were written while the driver still polls. A large call then needs fewer writes, each of
/// which wakes its reader. Smaller values save less at 8,192 spans a request (`deploy/docs/performance.md`).
const GATHER_MUCH: usize = 512 << 10;

/// Bytes that are accepted beyond the limit, so that the end of a call that is a little longer is written with the rest of it.
const BEYOND: usize = 16 << 10;

/// Bytes reserved for the headers of frames, which come on top of the limit. With this reserve a buffer hardly ever has to grow.
const HEADS: usize = 1 << 10;

/// The half that h2 owns.
pub(super) struct Wire<S>(Arc<Shared<S>>);

/// The half that the driver keeps.
pub(super) struct Outlet<S>(Arc<Shared<S>>);

struct Shared<S> {
    inner: Mutex<Inner<S>>,
}

struct Inner<S> {
    stream: S,
    out: Outgoing,
    frames: Frames,
    /// The time when something was read last.
    read_at: Option<Instant>,
    /// The number of bytes written in all.
    written: u64,
    mark: Mark,
    /// Bytes that are gathered before they are written.
    limit: usize,
    /// See [`Stream::packet_len`].
    packet_len: fn(&S) -> usize,
}

/// A position in the stream, and whether all bytes before it have been written to the kernel.
#[derive(Clone, Copy)]
enum Mark {
    /// The position is reached once this many bytes were written in all.
    Ahead(u64),
    /// The time when the position was reached; `None` if none was ever marked.
    Passed(Option<Instant>),
}

/// Splits a stream in its two halves. `packet_len` returns the number of bytes in one packet of the stream.
pub(super) fn gather<S>(stream: S, packet_len: fn(&S) -> usize) -> (Wire<S>, Outlet<S>) {
    let inner = Mutex::new(Inner {
        stream,
        out: Outgoing::default(),
        frames: Frames::default(),
        read_at: None,
        written: 0,
        mark: Mark::Passed(None),
        limit: GATHER,
        packet_len,
    });
    let shared = Arc::new(Shared { inner });
    (Wire(Arc::clone(&shared)), Outlet(shared))
}

impl<S: AsyncWrite + Unpin> Outlet<S> {
    /// Writes the gathered bytes. Returns whether all of them were written. If not, a last, partial packet is held back for the
    /// next call of this method; the caller should let other tasks run before.
    ///
    /// Holding it back saves timers. If TCP paces its packets (BBR), it starts a timer for each packet that comes too soon after
    /// the one before. A full packet hardly ever does, since its bytes have to be copied first, but a short packet behind it does.
    /// Over loopback, timers and their interrupts took a tenth of all time at 512 spans a batch; without them a span costs 12 %
    /// less.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut inner = self.0.lock();
        ready!(inner.poll_packets(cx))?;
        inner.rest();
        let is_all = inner.out.len() == 0;
        Pin::new(&mut inner.stream).poll_flush(cx).map_ok(|()| is_all)
    }

    /// Lends a body, or the next piece of one, before it goes to h2. `place` is the place of its call.
    pub(super) fn lend(&self, place: usize, bytes: &Bytes) {
        self.0.lock().out.lend(place, bytes);
    }

    /// Called when the call in `place` has ended, so that h2 writes no more of its body.
    pub(super) fn take_back(&self, place: usize) {
        self.0.lock().out.take_back(place);
    }

    /// Whether anything was ever read.
    pub(super) fn has_read(&self) -> bool {
        self.0.lock().read_at.is_some()
    }

    /// Marks the end of the bytes gathered so far, which is the end of a PING. [`Outlet::traffic`] then tells when it was
    /// written.
    pub(super) fn mark(&self) {
        let mut inner = self.0.lock();
        let ahead = u64::try_from(inner.out.len()).unwrap_or(u64::MAX);
        inner.mark = if ahead == 0 {
            Mark::Passed(Some(Instant::now()))
        } else {
            Mark::Ahead(inner.written.saturating_add(ahead))
        };
    }

    /// Returns what was read and written so far.
    pub(super) fn traffic(&self) -> Traffic {
        let inner = self.0.lock();
        let ping_written_at = match inner.mark {
            Mark::Ahead(_) => None,
            Mark::Passed(at) => at,
        };
        Traffic { read_at: inner.read_at, ping_written_at, written: inner.written }
    }
}

impl Outlet<Stream> {
    /// Makes closing reset the connection: see [`Stream::reset_on_close`].
    pub(super) fn reset_on_close(&self) {
        self.0.lock().stream.reset_on_close();
    }

    /// The TLS failure that ended the stream, if one did.
    pub(super) fn tls_failure(&self) -> Option<Reason> {
        self.0.lock().stream.tls_failure()
    }
}

impl<S> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, Inner<S>> {
        // Both halves are used by one task. So the lock is never contended, and a panic while it is held ends that task.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    /// Writes all gathered bytes.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.out.len() > 0 {
            ready!(self.poll_some(cx, self.out.len()))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes full packets and holds back a last, partial one. If there is little to write, it writes everything: behind a single
    /// packet, the additional write would cost more than it saves.
    fn poll_packets(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let len = self.out.len();
        let packet = if len >= 2 * MAX_PACKET { (self.packet_len)(&self.stream) } else { usize::MAX };
        let end = if len > packet { len % packet } else { 0 };
        while self.out.len() > end {
            ready!(self.poll_some(cx, self.out.len() - end))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes once, at most `most` bytes.
    fn poll_some(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<()>> {
        let stream = Pin::new(&mut self.stream);
        match ready!(self.out.slices(most, |slices| stream.poll_write_vectored(cx, slices)))? {
            0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            written => {
                self.out.advance(written);
                self.written = self.written.saturating_add(u64::try_from(written).unwrap_or(u64::MAX));
                if let Mark::Ahead(end) = self.mark
                    && self.written >= end
                {
                    self.mark = Mark::Passed(Some(Instant::now()));
                }
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Resets the limit after everything was written, except for a packet that is held back.
    fn rest(&mut self) {
        self.limit = GATHER;
        self.out.rest();
    }

    /// Takes as many bytes as fit, to be written later. Returns their number.
    fn gather(&mut self, slices: &[IoSlice<'_>]) -> usize {
        let most = (self.limit + BEYOND).saturating_sub(self.out.len());
        let capacity = self.limit + BEYOND + HEADS;
        let mut left = most;
        for slice in slices {
            let bytes = slice.get(..left).unwrap_or(slice);
            left -= bytes.len();
            self.frames.cut(bytes, |bytes| self.out.add(bytes, capacity));
        }
        most - left
    }

    /// Makes room by writing, if the limit is reached.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.len() < self.limit {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_packets(cx))?;
        if self.limit < GATHER_MUCH {
            self.limit = GATHER_MUCH;
            // If nothing is held back, the next buffer is made for the new limit.
            self.out.rest();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let mut inner = self.0.lock();
        let result = Pin::new(&mut inner.stream).poll_read(cx, buf);
        if buf.filled().len() > before && inner.read_at.replace(Instant::now()).is_none() {
            inner.frames.read_settings(buf.filled_mut().get_mut(before..).unwrap_or_default());
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

    /// Does nothing: the driver flushes by [`Outlet::poll_flush`] once it has polled everything.
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

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::{super::frames::PREFACE, *};

    const NO_PACKETS: fn(&DuplexStream) -> usize = |_| usize::MAX;

    /// A frame of an unknown type, which is never cut.
    fn frame(payload: &[u8]) -> Vec<u8> {
        let [_, high, middle, low] = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[high, middle, low, 0xb, 0, 0, 0, 0, 0], payload].concat()
    }

    #[tokio::test]
    async fn writes_are_gathered_until_a_flush_or_the_limit() {
        let (near, mut far) = duplex(1 << 20);
        let (mut wire, outlet) = gather(near, NO_PACKETS);
        wire.write_all(&PREFACE[..4]).await.unwrap();
        wire.write_all(&PREFACE[4..]).await.unwrap();
        wire.flush().await.unwrap();
        let mut seen = [0; PREFACE.len()];
        let early = tokio::time::timeout(Duration::ZERO, far.read(&mut seen)).await;
        assert!(early.is_err(), "h2's own flush must not write");
        std::future::poll_fn(|cx| outlet.poll_flush(cx)).await.unwrap();
        far.read_exact(&mut seen).await.unwrap();
        assert_eq!(&seen, PREFACE);
        wire.write_all(&frame(&vec![7; GATHER])).await.unwrap();
        wire.write_all(&frame(b"more")).await.unwrap();
        let mut seen = vec![0; GATHER];
        far.read_exact(&mut seen).await.unwrap();
        assert!(!outlet.has_read());
        far.write_all(b"answer").await.unwrap();
        wire.read_exact(&mut [0; 6]).await.unwrap();
        assert!(outlet.has_read(), "what was read must be noted");
    }

    #[tokio::test]
    async fn a_mark_is_passed_once_all_bytes_before_it_are_written() {
        let (near, mut far) = duplex(1_000);
        let (mut wire, outlet) = gather(near, NO_PACKETS);
        outlet.mark();
        assert!(outlet.traffic().ping_written_at.is_some(), "nothing waits");
        wire.write_all(PREFACE).await.unwrap();
        wire.write_all(&frame(&[7; 1_500])).await.unwrap();
        outlet.mark();
        let flush = || std::future::poll_fn(|cx| Poll::Ready(outlet.poll_flush(cx).is_ready()));
        assert!(!flush().await, "the far end takes 1,000 bytes");
        let traffic = outlet.traffic();
        assert_eq!((traffic.ping_written_at, traffic.written), (None, 1_000));
        far.read_exact(&mut [0; 600]).await.unwrap();
        assert!(flush().await);
        assert!(outlet.traffic().ping_written_at.is_some());
    }

    #[tokio::test]
    async fn many_bytes_arrive_complete_and_the_large_buffer_is_given_back() {
        arrives_whole(NO_PACKETS).await;
        arrives_whole(|_| 60_000).await;
    }

    async fn arrives_whole(packet_len: fn(&DuplexStream) -> usize) {
        let payload: Vec<u8> = (0..3_000_000_u32).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
        let sent = [PREFACE, &frame(&payload)].concat();
        // The far end accepts few bytes at a time, so that most writes are partial.
        let (near, mut far) = duplex(30_000);
        let (mut wire, outlet) = gather(near, packet_len);
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
                    // h2 takes at most this many slices of a rope at once.
                    let taken = wire.write_vectored(&slices[..slices.len().min(16)]).await.unwrap();
                    IoSlice::advance_slices(&mut slices, taken);
                    let inner = outlet.0.lock();
                    assert!(inner.out.len() <= GATHER_MUCH + BEYOND + HEADS, "must not hold more than one write");
                }
            }
            while !std::future::poll_fn(|cx| outlet.poll_flush(cx)).await.unwrap() {}
            assert!(outlet.0.lock().out.keeps_little(), "must give the large buffer back");
            wire.shutdown().await.unwrap();
            drop((wire, outlet));
        };
        let (seen, ()) = tokio::join!(reading, writing);
        assert!(seen == sent);
    }

    #[tokio::test]
    async fn full_packets_are_written_first_and_the_partial_one_with_the_next_flush() {
        let (near, mut far) = duplex(1 << 20);
        let (mut wire, outlet) = gather(near, |_| 60_000);
        let mut rest = [PREFACE, &frame(&[7; 140_000]), &frame(&[8; 200_000])].concat();
        wire.write_all(&rest[..PREFACE.len() + 9 + 140_000]).await.unwrap();
        let flush = async || std::future::poll_fn(|cx| outlet.poll_flush(cx)).await.unwrap();
        let mut written = async |is_all: bool| {
            assert_eq!(flush().await, is_all);
            let mut seen = vec![0; 1 << 20];
            let len = far.read(&mut seen).await.unwrap();
            assert!(seen[..len] == rest[..len]);
            rest.drain(..len);
            len
        };
        assert_eq!(written(false).await, 120_000);
        wire.write_all(&frame(&[8; 200_000])).await.unwrap();
        // Together with the new bytes, the bytes held back fill packets. Less than one packet is left.
        assert_eq!(written(false).await, 180_000);
        let len = written(true).await;
        assert_eq!((len, rest.len()), (PREFACE.len() + 2 * 9 + 40_000, 0));
        assert!(flush().await, "nothing waits");
    }

    #[tokio::test]
    async fn fewer_bytes_than_two_maximum_packets_are_written_at_once() {
        let (near, mut far) = duplex(1 << 20);
        let (mut wire, outlet) = gather(near, |_| 1_448);
        wire.write_all(PREFACE).await.unwrap();
        wire.write_all(&frame(&[7; 130_000])).await.unwrap();
        assert!(std::future::poll_fn(|cx| outlet.poll_flush(cx)).await.unwrap());
        far.read_exact(&mut vec![0; PREFACE.len() + 9 + 130_000]).await.unwrap();
    }

    #[tokio::test]
    async fn long_frames_are_cut_without_copying_the_body() {
        let (near, mut far) = duplex(1 << 20);
        let (mut wire, outlet) = gather(near, NO_PACKETS);
        // SETTINGS with a maximum frame size of 16,384.
        far.write_all(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 5, 0, 0, 64, 0]).await.unwrap();
        let mut heard = [0; 15];
        wire.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard[11..], (256_u32 << 10).to_be_bytes(), "h2 must be told of longer frames");
        let body: Bytes = (0..52_000_u32).map(|at| at.to_le_bytes()[1]).collect();
        wire.write_all(PREFACE).await.unwrap();
        outlet.lend(0, &body);
        wire.write_all(&[0, 203, 32, 0, 1, 0, 0, 0, 1]).await.unwrap();
        wire.write_all(&body).await.unwrap();
        assert!(outlet.0.lock().out.copied_len() < 100, "must not copy the body");
        std::future::poll_fn(|cx| outlet.poll_flush(cx)).await.unwrap();
        let mut seen = vec![0; PREFACE.len() + 4 * 9 + body.len()];
        far.read_exact(&mut seen).await.unwrap();
        let mut rest = &seen[PREFACE.len()..];
        let mut payload = Vec::new();
        for (len, flags) in [(16_384, 0), (16_384, 0), (16_384, 0), (2_848, 1)] {
            assert_eq!(rest[1..5], [u16::to_be_bytes(len), [0, flags]].concat());
            payload.extend_from_slice(&rest[9..9 + usize::from(len)]);
            rest = &rest[9 + usize::from(len)..];
        }
        assert!(rest.is_empty() && payload == body);
    }
}
