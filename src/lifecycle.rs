//! Tasks and their end: who is running, when to drain, when to stop. Depends on nothing of ours.

use std::future::Future;

use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The tasks of one process and the two moments they watch for. Cloning shares them.
///
/// Everything that runs beside a request is spawned here, so that shutdown can wait for it.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    draining: CancellationToken,
    stopped: CancellationToken,
}

impl Tasks {
    /// Creates an empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Spawns a task that shutdown waits for.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that spawns")]
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        tokio::spawn(self.tracker.track_future(future))
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
