//! What a backend's connection slot does when this process cannot open a socket: wait a moment and say so. The backend keeps
//! its good name: membership hears nothing of it.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Cause, Failure,
    backend::Backend,
    state::{Line, Nudge, Phase},
};
use crate::shortage::Shortage;

/// Shortest pause before the next attempt, in milliseconds, and the longest. Descriptors come free with every connection
/// that ends, and an attempt that fails costs one system call.
const PAUSE_MS: std::ops::RangeInclusive<u64> = 100..=200;

impl Backend {
    /// Slot `line` could not connect for want of something of this process. What waits is handed back unless another connection
    /// is up, and may be tried again after a short pause.
    pub(super) fn short_of(self: &Arc<Self>, line: usize, shortage: Shortage) {
        let pause = Duration::from_millis(fastrand::u64(PAUSE_MS));
        let nudge = {
            let mut state = self.lock();
            if let Some(line) = state.lines.get_mut(line) {
                *line = Line::default();
            }
            state.shortage = Some((shortage, Instant::now() + pause));
            if state.lines.iter().all(|line| matches!(line.phase, Phase::Down)) {
                let entries = state.queue.drain();
                Nudge::GiveBack { entries, after: Some(pause), cause: Cause::Transport(Failure::Local(shortage)) }
            } else {
                Nudge::Nothing
            }
        };
        let metrics = &self.shared.metrics;
        if let Some(unlogged) = metrics.shortages.admit() {
            tracing::error!(
                pool = &*metrics.pool,
                backend = %self.identity,
                shortage = shortage.as_str(),
                unlogged,
                "cannot open a connection to a backend: {shortage} on this side; {}",
                shortage.advice()
            );
        }
        self.act(nudge);
    }
}
