//! Tracks what a client has begun and has to finish: the handshake, and each header block. Nothing else has a time
//! limit here: a connection may be idle.

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

/// The unfinished element of one client, if any. The client's stream updates it and its connection waits for it.
#[derive(Debug)]
pub(super) struct Progress {
    since: Mutex<Option<Instant>>,
    begun: Notify,
}

impl Progress {
    /// The handshake is unfinished since `since`.
    pub(super) fn new(since: Instant) -> Self {
        Self { since: Mutex::new(Some(since)), begun: Notify::new() }
    }

    /// Records that the client has begun an element which it has to finish, or that it has finished it.
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

    /// Resolves when one element has been unfinished for `within`. If the process drains, it resolves after
    /// [`DRAIN_GRACE`] if that is sooner, counted from the drain or from the beginning of the element, whichever is
    /// later.
    pub(super) async fn stalled(&self, within: Duration, drained: Option<Instant>) {
        loop {
            let Some(since) = *self.lock() else {
                self.begun.notified().await;
                continue;
            };
            let by = since + within;
            sleep_until(drained.map_or(by, |drained| by.min(since.max(drained) + DRAIN_GRACE))).await;
            // The element may have been finished meanwhile, and another one begun.
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
    async fn only_what_was_begun_has_to_end() {
        let progress = Progress::new(Instant::now());
        assert!(!is_stalled(&progress, None, 9).await);
        progress.set_unfinished(false);
        assert!(!is_stalled(&progress, None, 3_600).await, "nothing is unfinished");
        progress.set_unfinished(true);
        advance(Duration::from_secs(6)).await;
        progress.set_unfinished(true);
        assert!(is_stalled(&progress, None, 5).await, "it goes by the beginning");
        progress.set_unfinished(false);
        progress.set_unfinished(true);
        assert!(!is_stalled(&progress, None, 9).await, "another one has a time of its own");
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_leaves_less() {
        let progress = Progress::new(Instant::now());
        assert!(is_stalled(&progress, Some(Instant::now()), 2).await);
        progress.set_unfinished(false);
        let drained = Some(Instant::now());
        assert!(!is_stalled(&progress, drained, 3_600).await);
        progress.set_unfinished(true);
        assert!(!is_stalled(&progress, drained, 0).await, "there is some time for what begins later");
        assert!(is_stalled(&progress, drained, 2).await);
    }
}
