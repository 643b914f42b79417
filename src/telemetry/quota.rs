//! How many lines of one kind a log can bear.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Lines of one kind in one [`WINDOW`]; the rest is counted.
const LINES: u32 = 20;

/// The time that [`LINES`] are for.
const WINDOW: Duration = Duration::from_secs(1);

/// A bound on lines of one kind, such as those about the backends of one pool.
#[derive(Debug)]
pub struct Quota(Mutex<Window>);

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
        Self(Mutex::new(Window { begun: Instant::now(), lines: 0 }))
    }

    /// Whether one more line may be written now. `left_out` hears how many were not, with the first that may be again.
    pub fn allows(&self, left_out: impl FnOnce(u32)) -> bool {
        let (now, mut silent) = (Instant::now(), 0);
        let lines = {
            let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if now >= window.begun + WINDOW {
                silent = window.lines.saturating_sub(LINES);
                *window = Window { begun: now, lines: 0 };
            }
            window.lines = window.lines.saturating_add(1);
            window.lines
        };
        if silent > 0 {
            left_out(silent);
        }
        lines <= LINES
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
    }
}
