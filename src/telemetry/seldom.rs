//! One line of a kind in ten seconds, for trouble that can come with every connection.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// The same trouble is logged at most this often.
const INTERVAL: Duration = Duration::from_secs(10);

/// Says when the next line of one kind may be written, and counts those that were not.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    unlogged: u64,
}

impl Seldom {
    /// Takes note of one more occasion. If a line may be written now: how many occasions passed without one since the last.
    pub fn may_tell(&self) -> Option<u64> {
        let now = Instant::now();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|at| now.saturating_duration_since(at) < INTERVAL) {
            state.unlogged += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_line_in_an_interval_says_how_many_were_left_out() {
        let seldom = Seldom::default();
        let told = || (0..100).filter_map(|_| seldom.may_tell()).collect::<Vec<_>>();
        assert_eq!(told(), [0]);
        tokio::time::advance(INTERVAL).await;
        assert_eq!(told(), [99]);
    }
}
