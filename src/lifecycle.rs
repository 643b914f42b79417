//! The process and its tasks: who is running, when to drain, when to stop, which process this is. Depends on nothing of ours.

use std::{future::Future, sync::OnceLock};

use tokio::task::JoinHandle;
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

/// The header by which a proxy knows its own calls.
pub const INSTANCE_HEADER: &str = "spanring-instance";

/// What this process drew when it was first asked: 16 hex digits that no other process has.
pub fn instance() -> &'static str {
    static INSTANCE: OnceLock<String> = OnceLock::new();
    INSTANCE.get_or_init(|| format!("{:016x}", fastrand::u64(..)))
}

/// The tasks of one process and the two moments they watch for. Cloning shares them.
///
/// Everything that runs beside a request is spawned here, so that shutdown can wait for it.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    /// Those of the sets that this is a part of.
    outer: Vec<TaskTracker>,
    draining: CancellationToken,
    stopped: CancellationToken,
}

impl Tasks {
    /// Creates an empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// A set of its own that can be ended alone: it drains and stops with this one at the latest, and this one waits for its
    /// tasks too.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            tracker: TaskTracker::new(),
            outer: self.outer.iter().chain([&self.tracker]).cloned().collect(),
            draining: self.draining.child_token(),
            stopped: self.stopped.child_token(),
        }
    }

    /// Spawns a task that shutdown waits for.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that spawns")]
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        // None, and no allocation, for the tasks of the process itself.
        let outer: Vec<TaskTrackerToken> = self.outer.iter().map(TaskTracker::token).collect();
        tokio::spawn(self.tracker.track_future(async move {
            let output = future.await;
            drop(outer);
            output
        }))
    }

    /// Says that the process takes no new work: listeners send GOAWAY, readiness is lost.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Whether [`Tasks::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Resolves when draining begins.
    pub async fn drained(&self) {
        self.draining.cancelled().await;
    }

    /// Says that work in hand is over: every task ends.
    pub fn stop(&self) {
        self.draining.cancel();
        self.stopped.cancel();
    }

    /// Whether [`Tasks::stop`] was called.
    pub fn is_stopped(&self) -> bool {
        self.stopped.is_cancelled()
    }

    /// Resolves when [`Tasks::stop`] is called.
    pub async fn stopped(&self) {
        self.stopped.cancelled().await;
    }

    /// Waits until every task has ended. Call [`Tasks::stop`] first.
    pub async fn wait(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Number of tasks that have not ended.
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Whether no task is running.
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_ends_alone_or_with_the_whole_and_the_whole_waits_for_it() {
        let all = Tasks::new();
        let [one, other] = [all.child(), all.child().child()];
        for tasks in [&one, &other] {
            let until = tasks.clone();
            drop(tasks.spawn(async move { until.stopped().await }));
        }
        assert_eq!(all.len(), 2, "the whole counts its parts' tasks");
        one.stop();
        one.wait().await;
        assert!(!all.is_stopped() && !other.is_stopped(), "a part's end must not be the end of others");
        assert_eq!((all.len(), other.len()), (1, 1));
        all.stop();
        all.wait().await;
        assert!(other.is_stopped() && other.is_empty());
    }
}
