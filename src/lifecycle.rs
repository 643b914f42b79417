//! The process and its tasks: spawning, draining and stopping, and the process's own ID. Depends on no other room.

use std::{future::Future, sync::OnceLock};

use futures_util::future::FutureExt;
use tokio::task::JoinHandle;
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

/// The header by which a proxy recognises its own calls.
pub const INSTANCE_HEADER: &str = "spanring-instance";

/// Returns the ID of this process: 16 hexadecimal digits, drawn at random on first use.
pub fn instance() -> &'static str {
    static INSTANCE: OnceLock<String> = OnceLock::new();
    INSTANCE.get_or_init(|| format!("{:016x}", fastrand::u64(..)))
}

/// The tasks of one process, and the signals to drain and to stop. Cloning shares them.
///
/// Everything that runs beside requests is spawned here, so that shutdown can wait for it.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    /// The trackers of the sets that this one was created from.
    outer: Vec<TaskTracker>,
    draining: CancellationToken,
    stopped: CancellationToken,
}

impl Tasks {
    /// Creates an empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a child set, which can be stopped by itself. It drains and stops with this set at the latest, and this
    /// set waits for its tasks too.
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
        // For tasks of the process's own set this is empty and allocates nothing.
        let outer: Vec<TaskTrackerToken> = self.outer.iter().map(TaskTracker::token).collect();
        // Not an async block: that would have room for the future twice, as it is given and as it is polled.
        let tracked = future.map(move |output| {
            drop(outer);
            output
        });
        tokio::spawn(self.tracker.track_future(tracked))
    }

    /// Signals that no new work is accepted: listeners send GOAWAY, and the process is no longer ready.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Returns whether [`Tasks::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Resolves when draining begins.
    pub async fn drained(&self) {
        self.draining.cancelled().await;
    }

    /// Signals that all tasks must end. It includes [`Tasks::drain`].
    pub fn stop(&self) {
        self.draining.cancel();
        self.stopped.cancel();
    }

    /// Returns whether [`Tasks::stop`] was called.
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

    /// Returns the number of tasks that have not ended.
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Returns whether no task is running.
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_stops_by_itself_or_with_its_parent_which_waits_for_it() {
        let all = Tasks::new();
        let [one, other] = [all.child(), all.child().child()];
        for tasks in [&one, &other] {
            let until = tasks.clone();
            drop(tasks.spawn(async move { until.stopped().await }));
        }
        assert_eq!(all.len(), 2, "a parent must count its children's tasks");
        one.stop();
        one.wait().await;
        assert!(!all.is_stopped() && !other.is_stopped(), "stopping a child must not stop others");
        assert_eq!((all.len(), other.len()), (1, 1));
        all.stop();
        all.wait().await;
        assert!(other.is_stopped() && other.is_empty());
    }
}
