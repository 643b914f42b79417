//! The recorder behind `/metrics`. There is one for the process, and it is installed before any room takes a handle.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

use super::{metrics as page, process, series::Store};
use crate::lifecycle::Tasks;

/// How often the store is searched for series that nobody holds any more.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The process's metrics. Clones share them.
#[derive(Clone, Debug)]
pub struct Recorder(Arc<Store>);

/// Why the recorder could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum RecorderError {
    /// The process has a recorder that is not ours.
    #[error("cannot install the metrics recorder: there is another already")]
    Foreign,
}

impl Recorder {
    /// Returns the recorder of the whole process. The first call makes and installs it.
    pub fn install() -> Result<Self, RecorderError> {
        static INSTALLED: Mutex<Option<Recorder>> = Mutex::new(None);
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(recorder) = &*installed {
            return Ok(recorder.clone());
        }
        let recorder = Self::new();
        metrics::set_global_recorder(Arc::clone(&recorder.0)).map_err(|_| RecorderError::Foreign)?;
        Ok(installed.insert(recorder).clone())
    }

    /// Runs `body` with a recorder of its own on this thread, for tests.
    pub fn scoped<T>(body: impl FnOnce(&Self) -> T) -> T {
        let recorder = Self::new();
        metrics::with_local_recorder(&*recorder.0, || body(&recorder))
    }

    fn new() -> Self {
        process::note_start();
        let recorder = Self(Arc::new(Store::new()));
        metrics::with_local_recorder(&*recorder.0, || {
            metrics::gauge!(page::BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        });
        recorder
    }

    /// The page in Prometheus' text format.
    pub fn render(&self) -> String {
        self.0.render(&process::observe())
    }

    /// Deletes the series that nobody has held for long enough at `now`, as the task of [`Self::start_upkeep`] does.
    #[cfg(test)]
    pub(crate) fn sweep(&self, now: tokio::time::Instant) {
        self.0.sweep(now);
    }

    /// Starts a task that deletes the series of backends and pools that are gone. It ends when tasks are told to stop.
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
        assert!(text.contains(&format!("{}{{version=\"{version}\"}} 1\n", page::BUILD_INFO)), "{text}");
        for metric in page::ALL.iter().filter(|metric| metric.name.starts_with("process_")) {
            let heading = format!("# TYPE {} {}\n{} ", metric.name, metric.kind.as_str(), metric.name);
            assert!(text.contains(&heading), "{heading} is not in\n{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn upkeep_deletes_what_is_gone_and_ends_with_the_tasks() {
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
