//! A client connection's stream, which lets others run once it has read much, and before it writes.
//!
//! HTTP/2 reads for as long as something comes. A large request is cut cheapest right after it was read, while it is in the
//! nearest caches; and clients that send little are not to wait for those that send much.
//!
//! One call to a backend holds parts of many requests, so that their answers are ready together. The runtime lets a
//! connection run as soon as the first of them is, and each would take a write of its own.
//!
//! What is longer than answers are goes at once: HTTP/2 flushes large frames one by one, and each would wait.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, ReadBuf};

use super::layers::Layer;

/// Bytes that are read in a turn: about a batch of 512 spans, which then is cut as soon as it is here. It costs 1 to 4 % less for
/// that; with 64 or 256 KiB nothing was gained.
const TURN: usize = 192 << 10;

/// Bytes of a write, at most, that waits; an answer has 35 where all was accepted.
const SHORT: usize = 256;

/// The layer whose reads come in turns, and whose writes come after others' turns.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Bytes read in this turn.
    read: usize,
    /// Whether others had a turn since the last flush.
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

    /// Whether what is to be written waits until others have run: with 64 requests in flight over four connections a span costs
    /// 12 % less for that in requests of 10 spans, 5 % in those of 100. One at a time on each costs what it did.
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
        // A turn that ended for want of bytes counts no further.
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
