//! The recorder behind `/metrics`: one for the process, installed before any room takes a handle.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

use super::{
    metrics as page, process,
    series::{Handles, Store},
};
use crate::lifecycle::Tasks;

/// How often it is looked for series that nobody holds any more.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The process's metrics. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Recorder(Arc<Store>);

/// Why there is no recorder.
#[derive(Debug, thiserror::Error)]
pub enum RecorderError {
    /// The process has one that is not ours.
    #[error("cannot install the metrics recorder: there is another already")]
    Foreign,
}

impl Recorder {
    /// The recorder of the whole process: made at the first call, the same at every other.
    pub fn install() -> Result<Self, RecorderError> {
        static INSTALLED: Mutex<Option<Recorder>> = Mutex::new(None);
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(recorder) = &*installed {
            return Ok(recorder.clone());
        }
        let recorder = Self::new();
        metrics::set_global_recorder(recorder.handles()).map_err(|_| RecorderError::Foreign)?;
        Ok(installed.insert(recorder).clone())
    }

    /// Runs `body` with a recorder of its own, for this thread alone: what a test needs.
    pub fn scoped<T>(body: impl FnOnce(&Self) -> T) -> T {
        let recorder = Self::new();
        metrics::with_local_recorder(&recorder.handles(), || body(&recorder))
    }

    fn new() -> Self {
        process::note_start();
        let recorder = Self(Arc::new(Store::new()));
        metrics::with_local_recorder(&recorder.handles(), || {
            metrics::gauge!(page::BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        });
        recorder
    }

    fn handles(&self) -> Handles {
        Handles(Arc::clone(&self.0))
    }

    /// The page in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut page = String::new();
        self.0.render(&mut page);
        process::write(&mut page);
        page
    }

    /// Forgets what nobody has held for long enough by then, as the task of [`Self::start_upkeep`] does.
    #[cfg(test)]
    pub(crate) fn sweep(&self, now: tokio::time::Instant) {
        self.0.sweep(now);
    }

    /// Forgets series of backends and pools that are gone. The task ends when tasks are told to stop.
    pub fn start_upkeep(&self, tasks: &Tasks) {
        let recorder = self.clone();
        let stop = tasks.clone();
        tasks.spawn(async move {
            let mut ticks = interval(UPKEEP_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    now = ticks.tick() => recorder.0.sweep(now),
                    () = stop.stopped() => return,
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::series::LINGER;

    #[test]
    fn the_first_scrape_knows_the_process() {
        let text = Recorder::scoped(Recorder::render);
        let version = env!("CARGO_PKG_VERSION");
        assert!(text.contains(&format!("spanring_build_info{{version=\"{version}\"}} 1\n")), "{text}");
        for metric in page::ALL.iter().filter(|metric| metric.name.starts_with("process_")) {
            let heading = format!("# TYPE {} {}\n{} ", metric.name, metric.kind.as_str(), metric.name);
            assert!(text.contains(&heading), "{heading} is not in\n{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn upkeep_forgets_what_is_gone_and_ends_with_the_tasks() {
        let tasks = Tasks::new();
        let recorder = Recorder::scoped(|recorder| {
            recorder.start_upkeep(&tasks);
            metrics::gauge!(page::RING_GENERATION, "pool" => "gone").set(1.0);
            recorder.clone()
        });
        tokio::time::sleep(UPKEEP_INTERVAL * 3).await;
        assert!(recorder.render().contains("pool=\"gone\""));
        tokio::time::sleep(LINGER).await;
        assert!(!recorder.render().contains("pool=\"gone\""));
        assert_eq!(tasks.len(), 1);
        tasks.stop();
        tasks.wait().await;
    }
}
