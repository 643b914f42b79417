//! The orphan: a call whose clients no longer wait, kept open to find out whether the backend answers calls at all.
//!
//! A call ends at its clients' deadline, which may come before a slow backend answers. If all calls ended that early, a backend
//! that takes 3 s could not be distinguished from one that never answers. So a connection keeps one such call open until the
//! whole timeout of an attempt has passed. The records of the call are handed back at its deadline, as those of other calls are.

use std::task::{Context, Poll};

use tokio::time::Instant;

use super::reply::Reply;

/// A call that is kept open after its clients have left.
#[derive(Debug)]
pub(super) struct Orphan<H> {
    reply: Reply,
    /// The time when the timeout of the attempt has passed.
    pub(super) until: Instant,
    /// Covers the bytes of the body that HTTP/2 still has in the memory budget. One call of each connection may hold more than was
    /// counted for up to the attempt's timeout.
    _held: H,
}

impl<H> Orphan<H> {
    /// Keeps the call with this `reply` open until `until`.
    pub(super) fn new(reply: Reply, until: Instant, held: H) -> Self {
        Self { reply, until, _held: held }
    }

    /// Returns whether the backend answered, once the call has ended. A call that ended otherwise shows nothing.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.reply.poll(cx).map(|verdict| verdict.is_answer())
    }
}
