//! A call that outlives its clients: it stays open to show whether the backend answers calls at all.
//!
//! A call ends at its clients' deadline, which may come before any slow backend answers. Whoever saw only such calls could not
//! tell a backend that takes 3 s from one that never answers. So a connection keeps one of them open until it has had the
//! whole attempt timeout. Its records were handed back meanwhile.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::Instant;

use super::{join::Inbox, reply::Reply};

/// A call that is kept open for what it shows of its backend.
#[derive(Debug)]
pub(super) struct Witness {
    reply: Reply,
    /// When it has had its whole time.
    pub(super) until: Instant,
    /// Its requests: while their cut holds its share of the memory budget, that covers what HTTP/2 still has of the body. One
    /// call of a connection may hold more than was counted for up to the attempt's timeout.
    _inboxes: Vec<Arc<Inbox>>,
}

impl Witness {
    /// Keeps the call that waits for `reply` open until `until`.
    pub(super) fn new(reply: Reply, until: Instant, inboxes: Vec<Arc<Inbox>>) -> Self {
        Self { reply, until, _inboxes: inboxes }
    }

    /// Whether the backend answered it; a call that ended otherwise shows nothing.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.reply.poll(cx).map(|verdict| verdict.is_answer())
    }
}
