//! How many lines of one kind a log can bear.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Lines of one kind in one [`WINDOW`], unless told otherwise; the rest is counted.
const LINES: u32 = 20;

/// The time that [`LINES`] are for.
const WINDOW: Duration = Duration::from_secs(1);

/// A bound on lines of one kind, such as those about the backends of one pool.
#[derive(Debug)]
pub struct Quota {
    lines: u32,
    window: Duration,
    now: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    begun: Instant,
    lines: u32,
}

// === impl Quota ===

impl Quota {
    /// With all its lines.
    #[expect(clippy::new_without_default, reason = "a default has no clock")]
    pub fn new() -> Self {
        Self::of(LINES, WINDOW)
    }

    /// So many lines in each window.
    pub(super) fn of(lines: u32, window: Duration) -> Self {
        Self { lines, window, now: Mutex::new(Window { begun: Instant::now(), lines: 0 }) }
    }

    /// Whether one more line may be written now. `left_out` hears how many were not, with the first that may be again.
    pub fn allows(&self, left_out: impl FnOnce(u32)) -> bool {
        let (silent, lines) = self.count(1);
        if silent > 0 {
            left_out(silent);
        }
        lines <= self.lines
    }

    /// `left_out` hears how many lines were not written, if they were not of late and may be again.
    pub(super) fn settle(&self, left_out: impl FnOnce(u32)) {
        let (silent, _) = self.count(0);
        if silent > 0 {
            left_out(silent);
        }
    }

    /// Counts lines: how many were left out of a window that is over, and how many there are of this one.
    fn count(&self, more: u32) -> (u32, u32) {
        let now = Instant::now();
        let mut window = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let mut silent = 0;
        if now >= window.begun + self.window {
            silent = window.lines.saturating_sub(self.lines);
            *window = Window { begun: now, lines: 0 };
        }
        window.lines = window.lines.saturating_add(more);
        (silent, window.lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lines_of_one_second_are_bounded_and_the_rest_is_counted() {
        let quota = Quota::new();
        let told = (0..100).filter(|_| quota.allows(|_| panic!("nothing was left out before"))).count();
        assert_eq!(told, LINES as usize);
        tokio::time::advance(WINDOW).await;
        let mut left_out = 0;
        assert!(quota.allows(|silent| left_out = silent), "a new second has lines of its own");
        assert_eq!(left_out, 100 - LINES);
        assert!(quota.allows(|_| panic!("it was said already")));
        assert!((0..LINES).any(|_| !quota.allows(|_| {})));
        quota.settle(|_| panic!("the window is not over"));
        tokio::time::advance(WINDOW).await;
        left_out = 0;
        quota.settle(|silent| left_out = silent);
        assert_eq!(left_out, 1, "it is said without a further line too");
    }
}
