//! The recorder behind `/metrics`: one for the process, installed before any room takes a handle.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tokio::time::{MissedTickBehavior, interval};

use super::{metrics as page, process};
use crate::lifecycle::Tasks;

/// Seconds. A lone request takes the backend's time and about a millisecond, a loaded one tens of them; deadlines are 5 s
/// (an attempt), 8 s (a request) and 10 s (SDKs), so there is an edge at each. Below half a millisecond nothing is told
/// apart on a network.
const DURATION_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 8.0, 10.0];

/// Parts in a call: 1 is a call that was not merged; doublings above it.
const PARTS_BUCKETS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// How often samples of histograms are folded into their buckets; the exporter's own choice where it spawns this itself.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The process's metrics. Cloning shares them.
#[derive(Clone)]
pub struct Recorder(PrometheusHandle);

/// Why there is no recorder.
#[derive(Debug, thiserror::Error)]
pub enum RecorderError {
    /// The buckets are wrong.
    #[error("cannot build the metrics recorder")]
    Build(#[from] BuildError),
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
        let recorder = build()?;
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).map_err(|_| RecorderError::Foreign)?;
        Ok(installed.insert(Self::describe(handle)).clone())
    }

    /// Runs `body` with a recorder of its own, for this thread alone: what a test needs.
    pub fn scoped<T>(body: impl FnOnce(&Self) -> T) -> Result<T, RecorderError> {
        let recorder = build()?;
        let handle = recorder.handle();
        Ok(metrics::with_local_recorder(&recorder, || body(&Self::describe(handle))))
    }

    fn describe(handle: PrometheusHandle) -> Self {
        page::describe_all();
        metrics::gauge!(page::BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        process::note_start();
        Self(handle)
    }

    /// The page in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut page = self.0.render();
        process::write(&mut page);
        page
    }

    /// Keeps histograms small while nobody scrapes. The task ends when tasks are told to stop.
    pub fn start_upkeep(&self, tasks: &Tasks) {
        let recorder = self.clone();
        let stop = tasks.clone();
        tasks.spawn(async move {
            let mut ticks = interval(UPKEEP_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = ticks.tick() => recorder.0.run_upkeep(),
                    () = stop.stopped() => return,
                }
            }
        });
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}

fn build() -> Result<PrometheusRecorder, BuildError> {
    let builder = PrometheusBuilder::new()
        .set_buckets(&DURATION_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(page::DISPATCH_CALL_PARTS.to_owned()), &PARTS_BUCKETS)?;
    Ok(builder.build_recorder())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::{ALL, Kind};

    #[test]
    fn every_metric_of_the_page_is_rendered_with_its_help_and_type() {
        let text = Recorder::scoped(|recorder| {
            for metric in ALL.iter().filter(|metric| metric.name.starts_with("spanring_")) {
                let labels: Vec<_> = metric.labels.iter().map(|label| metrics::Label::new(*label, "x")).collect();
                match metric.kind {
                    Kind::Counter => metrics::counter!(metric.name, labels).increment(0),
                    Kind::Gauge => metrics::gauge!(metric.name, labels).set(0.0),
                    Kind::Histogram => metrics::histogram!(metric.name, labels).record(0.003),
                }
            }
            recorder.render()
        })
        .expect("a recorder");
        for metric in ALL {
            assert!(text.contains(&format!("# HELP {} {}\n", metric.name, metric.help)), "{}", metric.name);
            assert!(text.contains(&format!("# TYPE {} {}\n", metric.name, metric.kind.as_str())), "{}", metric.name);
        }
        assert!(
            text.contains("spanring_receiver_request_duration_seconds_bucket{signal=\"x\",le=\"0.005\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("spanring_dispatch_call_parts_bucket{pool=\"x\",le=\"256\"} 1\n"), "{text}");
    }

    #[test]
    fn the_first_scrape_knows_the_process() {
        let text = Recorder::scoped(Recorder::render).expect("a recorder");
        let version = env!("CARGO_PKG_VERSION");
        assert!(text.contains(&format!("spanring_build_info{{version=\"{version}\"}} 1\n")), "{text}");
        assert!(text.contains("\nprocess_start_time_seconds "), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn upkeep_ends_with_the_tasks() {
        let tasks = Tasks::new();
        Recorder::scoped(|recorder| recorder.start_upkeep(&tasks)).expect("a recorder");
        tokio::time::sleep(UPKEEP_INTERVAL * 3).await;
        assert_eq!(tasks.len(), 1);
        tasks.stop();
        tasks.wait().await;
    }
}
