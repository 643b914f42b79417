//! The heart: admit → split → route → dispatch → join. Read this first.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    budget::Permit,
    otlp::{Framed, Outcome, Signal},
};

/// An export request as a receiver hands it over: read whole, inflated, framed, not looked at.
#[derive(Debug)]
pub struct Request {
    /// The signal of the method or path that it came by.
    pub signal: Signal,
    /// The message.
    pub message: Framed,
    /// What its bytes hold of the memory budget.
    pub permit: Permit,
    /// When its client is to have an answer: the margin is already taken off.
    pub deadline: Instant,
    /// The connection it came by.
    pub connection: Arc<ClientConnection>,
}

/// What is remembered of a client's connection: whether its parts may share calls with those of others.
#[derive(Debug, Default)]
pub struct ClientConnection {
    /// Milliseconds since `epoch()` until which parts of this connection go in calls of their own; 0 for never.
    unmerged_until: AtomicU64,
}

impl ClientConnection {
    /// Keeps parts of this connection out of merged calls until `now + span`.
    pub fn keep_unmerged(&self, now: Instant, span: Duration) {
        let until = millis(now + span);
        self.unmerged_until.fetch_max(until, Ordering::Relaxed);
    }

    /// Whether parts of this connection may be merged with those of others. Reads no clock unless it was marked.
    pub fn may_merge(&self) -> bool {
        match self.unmerged_until.load(Ordering::Relaxed) {
            0 => true,
            until => millis(Instant::now()) >= until,
        }
    }
}

fn millis(at: Instant) -> u64 {
    static EPOCH: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let epoch = *EPOCH.get_or_init(Instant::now);
    u64::try_from(at.saturating_duration_since(epoch).as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

/// What receivers call: the pipeline, or a test's stand-in.
pub trait Export: Send + Sync + 'static {
    /// Delivers a request and says what became of it.
    ///
    /// Cancel safety: dropping the future is how a receiver says that its client is gone; what was not sent yet is then
    /// dropped and counted.
    fn export(&self, request: Request) -> impl Future<Output = Outcome> + Send;
}
