//! A bound on the log lines of one kind, with a count of the lines that it left out.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Allows some lines of one kind in each window of time, and counts the lines that it did not allow.
#[derive(Debug)]
pub struct LogLimit {
    lines: u32,
    window: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the current window began; `None` before the first line.
    begun: Option<Instant>,
    /// Lines that the current window allowed.
    allowed: u32,
    /// Lines that were not allowed and not reported yet.
    omitted: u64,
}

// === impl LogLimit ===

impl LogLimit {
    /// At most 20 lines a second: for changes that can come for all backends of a pool at once.
    pub const fn many() -> Self {
        Self::new(20, Duration::from_secs(1))
    }

    /// At most one line in ten seconds: for trouble that can come with every connection or request.
    pub const fn few() -> Self {
        Self::new(1, Duration::from_secs(10))
    }

    /// At most `lines` in each window. A window begins with its first line.
    pub const fn new(lines: u32, window: Duration) -> Self {
        Self { lines, window, state: Mutex::new(State { begun: None, allowed: 0, omitted: 0 }) }
    }

    /// Asks for one more line. Returns `None` if it must not be written. Otherwise returns how many lines were left out since
    /// the last line that was allowed.
    pub fn admit(&self) -> Option<u64> {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_in_window(&state, now) {
            state.begun = Some(now);
            state.allowed = 0;
        }
        if state.allowed >= self.lines {
            state.omitted += 1;
            return None;
        }
        state.allowed += 1;
        Some(std::mem::take(&mut state.omitted))
    }

    /// Asks for one more line, as [`Self::admit`] does. Calls `report` with the number of lines that were left out, if there
    /// are any and a line may be written again.
    pub fn admit_or_report(&self, report: impl FnOnce(u64)) -> bool {
        let admitted = self.admit();
        if let Some(omitted) = admitted.filter(|omitted| *omitted > 0) {
            report(omitted);
        }
        admitted.is_some()
    }

    /// Returns how many lines were left out, once lines may be written again, without asking for one. Each is returned once.
    pub(super) fn take_omitted(&self) -> u64 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match self.is_in_window(&state, Instant::now()) {
            true => 0,
            false => std::mem::take(&mut state.omitted),
        }
    }

    /// Whether a line was allowed or left out within the last window, so that this limit must be kept.
    pub fn is_in_use(&self) -> bool {
        self.is_in_window(&self.state.lock().unwrap_or_else(PoisonError::into_inner), Instant::now())
    }

    fn is_in_window(&self, state: &State, now: Instant) -> bool {
        state.begun.is_some_and(|begun| now.saturating_duration_since(begun) < self.window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_window_allows_its_lines_and_the_next_one_says_how_many_were_left_out() {
        for (limit, lines, window) in [(LogLimit::many(), 20, 1), (LogLimit::few(), 1, 10)] {
            let admitted = || (0..100).filter_map(|_| limit.admit()).collect::<Vec<_>>();
            assert_eq!(admitted(), vec![0; lines]);
            tokio::time::advance(Duration::from_millis(window * 1000 - 1)).await;
            assert_eq!(admitted(), Vec::<u64>::new());
            tokio::time::advance(Duration::from_millis(1)).await;
            let again = admitted();
            assert_eq!((again.len(), again[0]), (lines, 200 - lines as u64));
            assert!(again[1..].iter().all(|omitted| *omitted == 0), "they were reported already: {again:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_left_out_is_reported_once_and_only_when_lines_are_allowed_again() {
        let limit = LogLimit::new(2, Duration::from_secs(1));
        let asked = |times: u32| {
            let mut reported = Vec::new();
            let admitted = (0..times).filter(|_| limit.admit_or_report(|omitted| reported.push(omitted))).count();
            (admitted, reported)
        };
        assert_eq!(asked(5), (2, vec![]));
        assert_eq!((limit.take_omitted(), limit.is_in_use()), (0, true), "the window is not over");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!limit.is_in_use());
        assert_eq!(asked(5), (2, vec![3]));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((limit.take_omitted(), limit.take_omitted()), (3, 0), "it is reported without a further line too");
        assert_eq!(asked(1), (1, vec![]));
    }
}
