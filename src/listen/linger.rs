//! The end of a connection whose client may still be sending: what it sends is read and dropped for a while.
//!
//! If its bytes stayed unread, TCP would reset the connection, and the client might lose the last answer.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::{Sleep, sleep},
};

/// How much is read, in bytes, and for how long. Go's servers wait for half a second.
const MOST: usize = 1 << 20;
const TIME: Duration = Duration::from_secs(1);

/// What may still be read of a connection whose side of the server is closed.
#[derive(Debug)]
pub(super) struct Linger {
    until: Pin<Box<Sleep>>,
    /// How much more may be read, in bytes.
    left: usize,
}

impl Linger {
    pub(super) fn new() -> Self {
        Self { until: Box::pin(sleep(TIME)), left: MOST }
    }

    /// Is ready when the client has closed its side, or the bounds are reached.
    pub(super) fn poll<I: AsyncRead + Unpin>(&mut self, stream: &mut I, cx: &mut Context<'_>) -> Poll<()> {
        while self.left > 0 && self.until.as_mut().poll(cx).is_pending() {
            let mut room = [0; 4 << 10];
            let mut rest = ReadBuf::new(&mut room);
            match ready!(Pin::new(&mut *stream).poll_read(cx, &mut rest)) {
                Ok(()) if !rest.filled().is_empty() => self.left = self.left.saturating_sub(rest.filled().len()),
                // The client's errors do not matter.
                _ => break,
            }
        }
        Poll::Ready(())
    }
}
