//! A stream layer that lets other tasks run after many bytes were read, and before a short write.
//!
//! h2 reads for as long as bytes arrive. Pausing has two advantages. A large request is cut right after it was read,
//! while it is still in the CPU's caches. And clients that send little do not wait for those that send much.
//!
//! One call to a backend holds parts of many requests, so the answers to these requests become ready together. The
//! runtime polls a connection as soon as the first of them is ready. If the connection pauses before it writes, it
//! writes several answers at once instead of one by one.
//!
//! Longer writes do not pause: h2 flushes large frames one by one, so each of them would pause.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, ReadBuf};

use super::layers::Layer;

/// The number of bytes after which reading pauses. It is about the size of a batch of 512 spans, so that a batch is cut
/// as soon as it has arrived.
const TURN: usize = 192 << 10;

/// The longest write that is delayed, in bytes. The answer to a request that fully succeeded has 35.
const SHORT_WRITE: usize = 256;

/// The layer that pauses reading after [`TURN`] bytes, and delays the first short write after a flush.
#[derive(Debug, Default)]
pub(super) struct Yielding {
    /// The number of bytes read since the last pause.
    read: usize,
    /// Whether a write was delayed since the last flush.
    has_delayed: bool,
}

impl<I: AsyncRead + Unpin> Layer<I> for Yielding {
    fn poll_read(&mut self, stream: &mut I, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read >= TURN {
            self.read = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let result = Pin::new(stream).poll_read(cx, buf);
        self.read = if result.is_pending() { 0 } else { self.read + buf.filled().len() - before };
        result
    }

    /// Delays the first short write after a flush until other tasks have run, so that several answers are written at
    /// once.
    fn holds_back(&mut self, cx: &Context<'_>, bytes: usize) -> bool {
        if !self.has_delayed && bytes <= SHORT_WRITE {
            self.has_delayed = true;
            cx.waker().wake_by_ref();
            return true;
        }
        false
    }

    fn flushes(&mut self) {
        self.has_delayed = false;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::IoSlice,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex};

    use super::{super::layers::Layered, *};

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl std::task::Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn reading_pauses_after_a_turn_and_then_goes_on() {
        let (near, mut far) = duplex(1 << 20);
        let sent: Vec<u8> = (0..TURN + TURN / 2).map(|at| at.to_le_bytes()[1]).collect();
        far.write_all(&sent).await.unwrap();
        let (mut stream, wakes) = (Layered::new(near, Yielding::default()), Arc::new(Wakes::default()));
        let waker = Arc::clone(&wakes).into();
        let mut turn = || {
            let (mut room, mut seen) = (vec![0; 10_000], Vec::new());
            loop {
                let mut buf = ReadBuf::new(&mut room);
                match Pin::new(&mut stream).poll_read(&mut Context::from_waker(&waker), &mut buf) {
                    Poll::Ready(read) => read.unwrap(),
                    Poll::Pending => return seen,
                }
                seen.extend_from_slice(buf.filled());
            }
        };
        let first = turn();
        assert!((TURN..TURN + 10_000).contains(&first.len()), "{}", first.len());
        assert_eq!(
            wakes.0.load(Ordering::Relaxed),
            1,
            "the layer must wake the task, since the stream has bytes already"
        );
        let second = turn();
        assert!([first, second].concat() == sent);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1, "the layer must not wake it: the stream will");
        // If a turn ends because no bytes are left, the next one starts from zero.
        far.write_all(&sent[..TURN - 1]).await.unwrap();
        assert!(turn() == sent[..TURN - 1]);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn only_the_first_short_write_after_a_flush_is_delayed() {
        let (near, mut far) = duplex(1 << 20);
        let (mut stream, wakes) = (Layered::new(near, Yielding::default()), Arc::new(Wakes::default()));
        let waker = Arc::clone(&wakes).into();
        let cx = &mut Context::from_waker(&waker);
        for flushed in 1..=2 {
            assert!(Pin::new(&mut stream).poll_write(cx, b"answer").is_pending());
            assert_eq!(
                wakes.0.load(Ordering::Relaxed),
                flushed,
                "the layer must wake the task, since the stream has room already"
            );
            let slices = [IoSlice::new(b"answer")];
            assert!(matches!(Pin::new(&mut stream).poll_write_vectored(cx, &slices), Poll::Ready(Ok(6))));
            assert!(
                matches!(Pin::new(&mut stream).poll_write(cx, b"s"), Poll::Ready(Ok(1))),
                "a second write must not be delayed"
            );
            assert!(matches!(Pin::new(&mut stream).poll_flush(cx), Poll::Ready(Ok(()))));
        }
        let (short, long) = ([IoSlice::new(&[0; SHORT_WRITE])], [IoSlice::new(&[0; SHORT_WRITE]), IoSlice::new(b"+")]);
        assert!(Pin::new(&mut stream).poll_write_vectored(cx, &long).is_ready());
        assert!(Pin::new(&mut stream).poll_write_vectored(cx, &short).is_pending());
        let mut seen = [0; 14];
        far.read_exact(&mut seen).await.unwrap();
        assert_eq!(&seen, b"answersanswers");
    }
}
