//! A stream layer that yields to other tasks: after many bytes were read, and before a short write.
//!
//! HTTP/2 reads for as long as bytes arrive. Two reasons speak for pausing: a large request is cheapest to cut right
//! after it was read, while it is in the CPU's caches, and clients that send little should not wait for those that send
//! much.
//!
//! One call to a backend holds parts of many requests, so their answers become ready together. The runtime polls a
//! connection as soon as the first answer is ready, and without the pause each answer would be a write of its own.
//!
//! Writes longer than such answers do not wait: HTTP/2 flushes large frames one by one, so each of them would wait.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, ReadBuf};

use super::layers::Layer;

/// The bytes that are read in one turn: about a batch of 512 spans, so that a batch is cut as soon as it has arrived.
const TURN: usize = 192 << 10;

/// The longest write that waits, in bytes. An answer of full success has 35.
const SHORT: usize = 256;

/// The layer that ends a read turn after [`TURN`] bytes, and delays the first short write after a flush.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The bytes read in this turn.
    read: usize,
    /// Whether a write was delayed since the last flush.
    waited: bool,
}

impl<I: AsyncRead + Unpin> Layer<I> for Turns {
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
        if !self.waited && bytes <= SHORT {
            self.waited = true;
            cx.waker().wake_by_ref();
            return true;
        }
        false
    }

    fn flushes(&mut self) {
        self.waited = false;
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
    async fn a_turn_ends_after_so_many_bytes_and_the_next_one_follows() {
        let (near, mut far) = duplex(1 << 20);
        let sent: Vec<u8> = (0..TURN + TURN / 2).map(|at| at.to_le_bytes()[1]).collect();
        far.write_all(&sent).await.unwrap();
        let (mut stream, wakes) = (Layered::new(near, Turns::default()), Arc::new(Wakes::default()));
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
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1, "nobody else wakes it: bytes are there already");
        let second = turn();
        assert!([first, second].concat() == sent);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1, "the stream wakes it now");
        // A turn that ended because no bytes were left does not count for the next one.
        far.write_all(&sent[..TURN - 1]).await.unwrap();
        assert!(turn() == sent[..TURN - 1]);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn what_is_written_waits_for_others_once_until_it_is_flushed() {
        let (near, mut far) = duplex(1 << 20);
        let (mut stream, wakes) = (Layered::new(near, Turns::default()), Arc::new(Wakes::default()));
        let waker = Arc::clone(&wakes).into();
        let cx = &mut Context::from_waker(&waker);
        for flushed in 1..=2 {
            assert!(Pin::new(&mut stream).poll_write(cx, b"answer").is_pending());
            assert_eq!(wakes.0.load(Ordering::Relaxed), flushed, "nobody else wakes it: there is room already");
            let slices = [IoSlice::new(b"answer")];
            assert!(matches!(Pin::new(&mut stream).poll_write_vectored(cx, &slices), Poll::Ready(Ok(6))));
            assert!(matches!(Pin::new(&mut stream).poll_write(cx, b"s"), Poll::Ready(Ok(1))), "its turn goes on");
            assert!(matches!(Pin::new(&mut stream).poll_flush(cx), Poll::Ready(Ok(()))));
        }
        let (short, long) = ([IoSlice::new(&[0; SHORT])], [IoSlice::new(&[0; SHORT]), IoSlice::new(b"+")]);
        assert!(Pin::new(&mut stream).poll_write_vectored(cx, &long).is_ready());
        assert!(Pin::new(&mut stream).poll_write_vectored(cx, &short).is_pending());
        let mut seen = [0; 14];
        far.read_exact(&mut seen).await.unwrap();
        assert_eq!(&seen, b"answersanswers");
    }
}
