//! Clients that close their side of an HTTP/1 connection behind a whole request, as `nc -N` does, and wait for the answer.
//!
//! To TCP such a client and one that has left look the same, and a request that nobody waits for should not go on for
//! long. So hyper, which drops the request at the end of what the client sends, is told of this end a moment later.
//! Nearly all requests are answered before. Go's `net/http` does much the same: it cancels the request at once, but still
//! writes the answer of a handler that goes on.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Sleep, sleep};

/// How long a request goes on whose client has closed its side. Most backends answer within milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// The end of what a client sends.
#[derive(Debug, Default)]
pub(super) enum End {
    /// It was just read.
    #[default]
    Fresh,
    /// The service had its turn to take the last bytes before it.
    Waited,
    /// A whole request waits for its answer.
    Held(Pin<Box<Sleep>>),
}

impl End {
    /// Is ready once hyper may know. `unfinished` counts the bodies of requests and the answers that have not ended: a
    /// request that waits for its answer is one, and one whose body has not ended as well is two.
    pub(super) fn poll(&mut self, unfinished: usize, cx: &mut Context<'_>) -> Poll<()> {
        match (&*self, unfinished) {
            // hyper looks for the end as soon as it has passed on the last bytes of a body.
            (Self::Fresh, 2..) => {
                *self = Self::Waited;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            (Self::Fresh | Self::Waited, 1) => *self = Self::Held(Box::pin(sleep(PATIENCE))),
            _ => {}
        }
        match self {
            Self::Held(until) if unfinished > 0 => until.as_mut().poll(cx),
            _ => Poll::Ready(()),
        }
    }
}
