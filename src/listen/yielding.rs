//! A stream layer that lets other tasks run after many bytes were read.
//!
//! h2 reads for as long as bytes arrive, and keeps them until the service takes them. Pausing bounds the memory of that,
//! cuts a large request right after it was read, while it is still in the CPU's caches, and lets clients that send little
//! not wait for those that send much. How much is read before a pause depends on the room in the account (see
//! [`super::admission`]).

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, ReadBuf};

use super::{admission::Admission, layers::Layer};

/// The layer that pauses reading after a turn.
#[derive(Debug)]
pub(super) struct Yielding {
    admission: Arc<Admission>,
    /// The number of bytes that may be read before the next pause.
    left: usize,
}

impl Yielding {
    pub(super) fn new(admission: Arc<Admission>) -> Self {
        let left = admission.turn();
        Self { admission, left }
    }
}

impl<I: AsyncRead + Unpin> Layer<I> for Yielding {
    fn poll_read(&mut self, stream: &mut I, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.left == 0 {
            self.left = self.admission.turn();
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let result = Pin::new(stream).poll_read(cx, buf);
        self.left = match result {
            Poll::Pending => self.admission.turn(),
            Poll::Ready(_) => self.left.saturating_sub(buf.filled().len() - before),
        };
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncWriteExt, duplex};

    use super::{
        super::{admission::LARGEST_TURN, layers::Layered},
        *,
    };

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
        let sent: Vec<u8> = (0..LARGEST_TURN + LARGEST_TURN / 2).map(|at| at.to_le_bytes()[1]).collect();
        far.write_all(&sent).await.unwrap();
        let (mut stream, wakes) =
            (Layered::new(near, Yielding::new(Arc::new(Admission::new(None, 0)))), Arc::new(Wakes::default()));
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
        assert!((LARGEST_TURN..LARGEST_TURN + 10_000).contains(&first.len()), "{}", first.len());
        assert_eq!(
            wakes.0.load(Ordering::Relaxed),
            1,
            "the layer must wake the task, since the stream has bytes already"
        );
        let second = turn();
        assert!([first, second].concat() == sent);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1, "the layer must not wake it: the stream will");
        // If a turn ends because no bytes are left, the next one starts from zero.
        far.write_all(&sent[..LARGEST_TURN - 1]).await.unwrap();
        assert!(turn() == sent[..LARGEST_TURN - 1]);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 2);
    }
}
