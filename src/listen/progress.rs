//! What a client has begun and owes the end of: the handshake, and each header block. Nothing else has to come at any time: a
//! connection may idle.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// What is left to a client that owes something when the process drains.
pub(super) const LEFT_AT_DRAIN: Duration = Duration::from_secs(1);

/// What one client owes. Its stream writes to it, its connection waits for it.
#[derive(Debug)]
pub(super) struct Progress {
    since: Mutex<Option<Instant>>,
    begun: Notify,
}

impl Progress {
    /// The handshake has begun at that time.
    pub(super) fn new(since: Instant) -> Self {
        Self { since: Mutex::new(Some(since)), begun: Notify::new() }
    }

    /// Takes note that the client owes something from now on, or no longer.
    pub(super) fn owes(&self, owes: bool) {
        let mut since = self.lock();
        match (&*since, owes) {
            (None, true) => {
                *since = Some(Instant::now());
                self.begun.notify_one();
            }
            (Some(_), false) => *since = None,
            (None, false) | (Some(_), true) => {}
        }
    }

    /// Resolves when the client has owed one thing for `within`, or since the drain for as long as it is left then.
    pub(super) async fn late(&self, within: Duration, drained: Option<Instant>) {
        loop {
            let Some(since) = *self.lock() else {
                self.begun.notified().await;
                continue;
            };
            let by = since + within;
            sleep_until(drained.map_or(by, |drained| by.min(since.max(drained) + LEFT_AT_DRAIN))).await;
            // It may have ended meanwhile, and another one begun.
            if *self.lock() == Some(since) {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        // What it guards is a single value.
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    const WITHIN: Duration = Duration::from_secs(10);

    async fn is_late(progress: &Progress, drained: Option<Instant>, by: u64) -> bool {
        timeout(Duration::from_secs(by), progress.late(WITHIN, drained)).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_was_begun_has_to_end() {
        let progress = Progress::new(Instant::now());
        assert!(!is_late(&progress, None, 9).await);
        progress.owes(false);
        assert!(!is_late(&progress, None, 3_600).await, "nothing is owed");
        progress.owes(true);
        advance(Duration::from_secs(6)).await;
        progress.owes(true);
        assert!(is_late(&progress, None, 5).await, "it goes by the beginning");
        progress.owes(false);
        progress.owes(true);
        assert!(!is_late(&progress, None, 9).await, "another one has a time of its own");
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_leaves_less() {
        let progress = Progress::new(Instant::now());
        assert!(is_late(&progress, Some(Instant::now()), 2).await);
        progress.owes(false);
        let drained = Some(Instant::now());
        assert!(!is_late(&progress, drained, 3_600).await);
        progress.owes(true);
        assert!(!is_late(&progress, drained, 0).await, "there is some time for what begins later");
        assert!(is_late(&progress, drained, 2).await);
    }
}
