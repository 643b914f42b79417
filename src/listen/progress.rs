//! Tracks what a client has begun and has to finish in time: its handshake, each header block, the frame that it is
//! sending, and the receipt of answers. A connection on which nothing is unfinished may be idle for as long as it likes.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// How long a client has to finish a handshake or a header block once the process drains.
pub(super) const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// What a client has to finish. The connection's stream and tasks update this, and the connection waits for what takes
/// too long.
#[derive(Debug)]
pub(super) struct Progress {
    /// Since when a handshake or a header block is unfinished.
    pub(super) unfinished: Since,
    /// When the last byte of a frame came that was begun and is unfinished.
    pub(super) frame: LastByte,
    /// Since when the client has taken no answer, although streams were reset for that.
    pub(super) untaken: Since,
    /// Notified when its headers keep more memory than there is room for.
    pub(super) pinned: Notify,
}

/// The time of the last byte of an unfinished frame, if there is one. It changes with almost every read, so nobody is
/// notified of it: the connection looks at it from time to time.
#[derive(Debug)]
pub(super) struct LastByte {
    base: Instant,
    /// Milliseconds since `base`, and one more; 0 if no frame is unfinished.
    at: AtomicU64,
}

/// The time since which something has lasted, if it does.
#[derive(Debug, Default)]
pub(super) struct Since {
    since: Mutex<Option<Instant>>,
    /// Whether `since` has a time.
    is_set: AtomicBool,
    begun: Notify,
}

// === impl Progress ===

impl Progress {
    /// Creates the state of a connection whose handshake began at `since`.
    pub(super) fn new(since: Instant) -> Self {
        let [unfinished, untaken] = [(); 2].map(|()| Since::default());
        let progress = Self { unfinished, frame: LastByte::new(since), untaken, pinned: Notify::new() };
        progress.unfinished.set(since);
        progress
    }

    /// Resolves when a handshake or header block has been unfinished for `within`. If the process drains, it resolves
    /// [`DRAIN_GRACE`] after the drain or after the beginning of the handshake or header block, whichever is later, if
    /// that is sooner.
    pub(super) async fn stalled(&self, within: Duration, drained: Option<Instant>) {
        let by = |since: Instant| {
            let by = since + within;
            drained.map_or(by, |drained| by.min(since.max(drained) + DRAIN_GRACE))
        };
        self.unfinished.is_over(by).await;
    }
}

// === impl LastByte ===

impl LastByte {
    fn new(base: Instant) -> Self {
        Self { base, at: AtomicU64::new(0) }
    }

    /// A byte has come now.
    pub(super) fn set(&self) {
        let millis = u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.at.store(millis + 1, Relaxed);
    }

    /// No frame is unfinished.
    pub(super) fn end(&self) {
        self.at.store(0, Relaxed);
    }

    /// Resolves when the last byte of an unfinished frame came `limit` ago, at the latest half of `limit` later.
    pub(super) async fn is_older_than(&self, limit: Duration) {
        loop {
            let now = Instant::now();
            let by = match self.at.load(Relaxed).checked_sub(1) {
                Some(millis) => self.base + Duration::from_millis(millis) + limit,
                None => now + limit / 2,
            };
            if by <= now {
                return;
            }
            sleep_until(by).await;
        }
    }
}

// === impl Since ===

impl Since {
    /// It begins now, unless it has begun already.
    pub(super) fn begin(&self) {
        if !self.is_set.load(Relaxed) {
            self.set(Instant::now());
        }
    }

    /// It begins at `since`, whether it has begun already or not.
    pub(super) fn set(&self, since: Instant) {
        let is_new = self.lock().replace(since).is_none();
        if is_new {
            self.is_set.store(true, Relaxed);
            self.begun.notify_one();
        }
    }

    /// It is over.
    pub(super) fn end(&self) {
        if self.is_set.load(Relaxed) {
            let mut since = self.lock();
            *since = None;
            self.is_set.store(false, Relaxed);
        }
    }

    /// Resolves when it has lasted for `limit`.
    pub(super) async fn lasts(&self, limit: Duration) {
        self.is_over(|since| since + limit).await;
    }

    /// Resolves at the time `by` of the time since which it has lasted.
    async fn is_over(&self, by: impl Fn(Instant) -> Instant) {
        loop {
            let Some(since) = *self.lock() else {
                self.begun.notified().await;
                continue;
            };
            sleep_until(by(since)).await;
            // It may have ended meanwhile, and begun again.
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
        progress.unfinished.end();
        assert!(!is_stalled(&progress, None, 3_600).await, "nothing is unfinished");
        progress.unfinished.begin();
        advance(Duration::from_secs(6)).await;
        progress.unfinished.begin();
        assert!(is_stalled(&progress, None, 5).await, "the time counts from the beginning");
        progress.unfinished.end();
        progress.unfinished.begin();
        assert!(!is_stalled(&progress, None, 9).await, "the next one has a time of its own");
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_shortens_the_time_limit() {
        let progress = Progress::new(Instant::now());
        assert!(is_stalled(&progress, Some(Instant::now()), 2).await);
        progress.unfinished.end();
        let drained = Some(Instant::now());
        assert!(!is_stalled(&progress, drained, 3_600).await);
        progress.unfinished.begin();
        assert!(
            !is_stalled(&progress, drained, 0).await,
            "a header block that begins after the drain has some time too"
        );
        assert!(is_stalled(&progress, drained, 2).await);
    }

    #[tokio::test(start_paused = true)]
    async fn each_new_byte_of_a_frame_begins_its_time_again() {
        let progress = Progress::new(Instant::now());
        let is_late = |by| {
            let late = progress.frame.is_older_than(WITHIN);
            async move { timeout(Duration::from_secs(by), late).await.is_ok() }
        };
        progress.frame.set();
        assert!(!is_late(9).await);
        progress.frame.set();
        assert!(!is_late(9).await);
        assert!(is_late(2).await);
        progress.frame.end();
        assert!(!is_late(3_600).await);
    }
}
