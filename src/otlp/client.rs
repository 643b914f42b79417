//! State kept for a client's connection.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use http::{HeaderMap, HeaderName};
use tokio::time::Instant;

use super::{Metadata, metadata::TooMuch};

/// State kept for a client's connection: whether its parts may be merged with those of others, and the forwarded
/// headers of its last request.
#[derive(Debug, Default)]
pub struct ClientConnection {
    /// Milliseconds since the epoch of `millis` until which parts of this connection go in calls of their own; 0 when it
    /// was never marked.
    unmerged_until: AtomicU64,
    /// The forwarded headers of the last request. Requests with the same values share them.
    metadata: ArcSwapOption<Metadata>,
}

impl ClientConnection {
    /// Keeps parts of this connection out of merged calls until `now + span`.
    pub fn keep_unmerged(&self, now: Instant, span: Duration) {
        let until = millis(now + span);
        self.unmerged_until.fetch_max(until, Ordering::Relaxed);
    }

    /// Returns the values of the headers `names` in a request's `headers`, or `None` if there are none.
    pub fn metadata(&self, names: &[HeaderName], headers: &HeaderMap) -> Result<Option<Arc<Metadata>>, TooMuch> {
        if let Some(last) = self.metadata.load_full().filter(|last| last.is_of(names, headers)) {
            return Ok(Some(last));
        }
        let metadata = Metadata::of(names, headers)?.map(Arc::new);
        if metadata.is_some() {
            self.metadata.store(metadata.clone());
        }
        Ok(metadata)
    }

    /// Whether parts of this connection may be merged with those of others. Reads the clock only after
    /// [`ClientConnection::keep_unmerged`].
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
