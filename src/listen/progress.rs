//! Tracks whether a client has begun a handshake or a header block and not yet finished it, since these have a time
//! limit. A connection on which neither is unfinished may be idle for as long as it likes.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// How long a client has to finish a handshake or a header block once the process drains.
pub(super) const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// Since when a client's handshake or header block is unfinished, if one is. The client's stream updates this, and its
/// connection waits for a stall.
#[derive(Debug)]
pub(super) struct Progress {
    since: Mutex<Option<Instant>>,
    begun: Notify,
}

impl Progress {
    /// Creates the state of a connection whose handshake began at `since`.
    pub(super) fn new(since: Instant) -> Self {
        Self { since: Mutex::new(Some(since)), begun: Notify::new() }
    }

    /// Records whether a handshake or a header block is unfinished.
    pub(super) fn set_unfinished(&self, unfinished: bool) {
        let mut since = self.lock();
        match (&*since, unfinished) {
            (None, true) => {
                *since = Some(Instant::now());
                self.begun.notify_one();
            }
            (Some(_), false) => *since = None,
            (None, false) | (Some(_), true) => {}
        }
    }

    /// Resolves when a handshake or header block has been unfinished for `within`. If the process drains, it resolves
    /// [`DRAIN_GRACE`] after the drain or after the beginning of the handshake or header block, whichever is later, if
    /// that is sooner.
    pub(super) async fn stalled(&self, within: Duration, drained: Option<Instant>) {
        loop {
            let Some(since) = *self.lock() else {
                self.begun.notified().await;
                continue;
            };
            let by = since + within;
            sleep_until(drained.map_or(by, |drained| by.min(since.max(drained) + DRAIN_GRACE))).await;
            // It may have been finished meanwhile, and another one begun.
            if *self.lock() == Some(since) {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        // The guarded value is always consistent, even if the mutex is poisoned.
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    const WITHIN: Duration = Duration::from_secs(10);

    async fn is_stalled(progress: &Progress, drained: Option<Instant>, by: u64) -> bool {
        timeout(Duration::from_secs(by), progress.stalled(WITHIN, drained)).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn only_an_unfinished_handshake_or_header_block_stalls() {
        let progress = Progress::new(Instant::now());
        assert!(!is_stalled(&progress, None, 9).await);
        progress.set_unfinished(false);
        assert!(!is_stalled(&progress, None, 3_600).await, "nothing is unfinished");
        progress.set_unfinished(true);
        advance(Duration::from_secs(6)).await;
        progress.set_unfinished(true);
        assert!(is_stalled(&progress, None, 5).await, "the time counts from the beginning");
        progress.set_unfinished(false);
        progress.set_unfinished(true);
        assert!(!is_stalled(&progress, None, 9).await, "the next one has a time of its own");
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_shortens_the_time_limit() {
        let progress = Progress::new(Instant::now());
        assert!(is_stalled(&progress, Some(Instant::now()), 2).await);
        progress.set_unfinished(false);
        let drained = Some(Instant::now());
        assert!(!is_stalled(&progress, drained, 3_600).await);
        progress.set_unfinished(true);
        assert!(
            !is_stalled(&progress, drained, 0).await,
            "a header block that begins after the drain has some time too"
        );
        assert!(is_stalled(&progress, drained, 2).await);
    }
}
