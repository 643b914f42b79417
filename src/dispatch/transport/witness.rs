//! A call that outlives its clients: it stays open to show whether the backend answers calls at all.
//!
//! A call ends at its clients' deadline, which may come before any slow backend answers. Whoever saw only such calls could not
//! tell a backend that takes 3 s from one that never answers. So a connection keeps one of them open until it has had the
//! whole attempt timeout. Its records were handed back meanwhile.

use std::task::{Context, Poll};

use tokio::time::Instant;

use super::reply::Reply;

/// A call that is kept open for what it shows of its backend.
#[derive(Debug)]
pub(super) struct Witness<H> {
    reply: Reply,
    /// When it has had its whole time.
    pub(super) until: Instant,
    /// Covers what HTTP/2 still has of the body in the memory budget. One call of a connection may hold more than was counted
    /// for up to the attempt's timeout.
    _held: H,
}

impl<H> Witness<H> {
    /// Keeps the call that waits for `reply` open until `until`.
    pub(super) fn new(reply: Reply, until: Instant, held: H) -> Self {
        Self { reply, until, _held: held }
    }

    /// Whether the backend answered it; a call that ended otherwise shows nothing.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.reply.poll(cx).map(|verdict| verdict.is_answer())
    }
}
