//! What is remembered of a client's connection.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

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
