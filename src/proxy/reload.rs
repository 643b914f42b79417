//! Reloads the configuration when a signal asks for it or the file has changed, and reports the result.
//!
//! An invalid file changes nothing. A valid one is applied except for keys that need a restart; those are named in the
//! log and in `spanring_config_restart_required`. The log names each key that changed, but never its old or new value.

use std::{
    error::Error,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use metrics::{Counter, Gauge, counter, gauge};
use tokio::{
    sync::{Mutex, Notify},
    task::spawn_blocking,
    time::sleep,
};
use tracing::{error, info, warn};

use super::running::{Applied, Running};
use crate::{
    config::{Draft, LoadError, RESTART_KEYS, changed_keys},
    lifecycle::Tasks,
    settings::Settings,
    telemetry::metrics as page,
    tls::Reloads,
};

/// The time between two reads of a changed file. The change is applied only if both give the same, since the file may
/// be half written at the first.
const SETTLED: Duration = Duration::from_secs(1);

/// The most keys that one log line names. Further ones are only counted.
const MAX_NAMED: usize = 20;

/// Reads the configuration. Called on a thread that may block.
pub type Source = Arc<dyn Fn() -> Result<Draft, LoadError> + Send + Sync>;

/// Requests reloads. Requests during a reload cause one more after it. Clones share the trigger.
#[derive(Clone, Debug, Default)]
pub struct Trigger(Arc<Notify>);

/// The task that reloads the configuration.
pub(super) struct Reloader {
    running: Arc<Mutex<Running>>,
    certificates: Reloads,
    source: Source,
    trigger: Trigger,
    watch: Option<Duration>,
    /// The result of the last read: the settings, or the error.
    seen: Seen,
    /// The settings that were applied last.
    applied: Settings,
    metrics: Metrics,
}

type Seen = Result<Settings, String>;

/// Metrics of reloads. They exist from the start, and the configuration that the process started with counts as a
/// success.
struct Metrics {
    success: Counter,
    unchanged: Counter,
    failed: Counter,
    successful: Gauge,
    success_at: Gauge,
}

// === impl Trigger ===

impl Trigger {
    /// Requests a reload.
    pub fn reload(&self) {
        self.0.notify_one();
    }
}

// === impl Reloader ===

impl Reloader {
    /// `read` is the configuration that the process started with. Without `watch` only the trigger causes reloads.
    pub(super) fn new(
        running: Arc<Mutex<Running>>,
        certificates: Reloads,
        source: Source,
        read: Settings,
        watch: Option<Duration>,
        trigger: Trigger,
    ) -> Self {
        let seen = Ok(read.clone());
        Self { running, certificates, source, trigger, watch, seen, applied: read, metrics: Metrics::new() }
    }

    /// Runs until `tasks` are stopped.
    pub(super) async fn run(mut self, tasks: Tasks) {
        let trigger = self.trigger.clone();
        let reloads = async {
            loop {
                tokio::select! {
                    () = trigger.0.notified() => info!("reading the configuration again"),
                    () = self.changed() => info!("the configuration changed: reading it again"),
                }
                self.reload().await;
            }
        };
        tokio::select! {
            biased;
            () = tasks.stopped() => {}
            () = reloads => {}
        }
    }

    /// Resolves when the file differs from what was read last; never, without `watch`.
    async fn changed(&self) {
        let Some(interval) = self.watch else { return std::future::pending().await };
        loop {
            sleep(interval).await;
            let first = self.look().await;
            if first == self.seen {
                continue;
            }
            sleep(SETTLED.min(interval)).await;
            if self.look().await == first {
                return;
            }
        }
    }

    async fn look(&self) -> Seen {
        self.read().await.map(|draft| draft.settings).map_err(|error| chain(&error))
    }

    async fn read(&self) -> Result<Draft, LoadError> {
        let source = Arc::clone(&self.source);
        spawn_blocking(move || source()).await.unwrap_or_else(|error| Err(LoadError::Thread(error.to_string())))
    }

    async fn reload(&mut self) {
        match self.attempt().await {
            Ok((applied, changed)) => {
                self.metrics.succeeded(&applied);
                log_result(&applied, &changed);
            }
            Err(error) => {
                self.metrics.failed();
                error!(error, "configuration refused: the previous one stays in use");
            }
        }
    }

    /// Reads, checks and applies the configuration. Returns what was applied and the keys that differ from before.
    async fn attempt(&mut self) -> Result<(Applied, Vec<String>), String> {
        let draft = self.read().await;
        self.seen = draft.as_ref().map(|draft| draft.settings.clone()).map_err(|error| chain(error));
        let draft = draft.map_err(|error| chain(&error))?;
        let settings = draft.settings.clone();
        // Checking resolves the host names of listeners, so it runs on a thread that may block.
        let checked = spawn_blocking(move || draft.check()).await.map_err(|error| chain(&error))?;
        let config = checked.map_err(|error| chain(&error))?;
        for warning in &config.warnings {
            warn!("{warning}");
        }
        let applied = self.running.lock().await.apply(config).await.map_err(|error| chain(&error))?;
        // Certificate files are reloaded too; they log and count their own results.
        drop(self.certificates.now().await);
        let changed = changed_keys(&self.applied, &settings);
        self.applied = settings;
        Ok((applied, changed))
    }
}

fn log_result(applied: &Applied, changed: &[String]) {
    let Applied { added, changed: pools_changed, removed, restart, is_unchanged } = applied;
    let keys = named(changed);
    if *is_unchanged && restart.is_empty() {
        return info!("configuration unchanged");
    }
    if *is_unchanged {
        let keys = restart.join(",");
        return warn!(
            keys,
            "the file differs from the configuration in use only in keys that need a restart: nothing was changed"
        );
    }
    let [added, pools_changed, removed] = [added, pools_changed, removed].map(|pools| pools.join(","));
    info!(keys, pools_added = added, pools_changed, pools_removed = removed, "configuration taken over");
    if !restart.is_empty() {
        let keys = restart.join(",");
        warn!(keys, "these keys need a restart: they stay as they were, the rest was taken over");
    }
}

/// Joins keys for one log line, at most [`MAX_NAMED`] of them.
fn named(keys: &[String]) -> String {
    let named: Vec<&str> = keys.iter().map(String::as_str).take(MAX_NAMED).collect();
    match keys.len().saturating_sub(MAX_NAMED) {
        0 => named.join(","),
        more => format!("{} and {more} more", named.join(",")),
    }
}

/// Returns an error with its causes, on one line.
fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    let texts: Vec<String> = causes.map(|error| error.to_string().replace('\n', "; ")).collect();
    texts.join(": ")
}

// === impl Metrics ===

impl Metrics {
    fn new() -> Self {
        let reloads = |result: &'static str| counter!(page::CONFIG_RELOADS_TOTAL, "result" => result);
        let metrics = Self {
            success: reloads("success"),
            unchanged: reloads("unchanged"),
            failed: reloads("failed"),
            successful: gauge!(page::CONFIG_LAST_RELOAD_SUCCESSFUL),
            success_at: gauge!(page::CONFIG_LAST_RELOAD_SUCCESS_TIMESTAMP_SECONDS),
        };
        metrics.good(&[]);
        metrics
    }

    fn succeeded(&self, applied: &Applied) {
        if applied.is_unchanged { &self.unchanged } else { &self.success }.increment(1);
        self.good(&applied.restart);
    }

    fn good(&self, restart: &[&str]) {
        self.successful.set(1.0);
        // The wall clock is only displayed, never used in calculations.
        self.success_at.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        for key in RESTART_KEYS {
            let required = f64::from(u8::from(restart.contains(&key)));
            gauge!(page::CONFIG_RESTART_REQUIRED, "key" => key).set(required);
        }
    }

    fn failed(&self) {
        self.failed.increment(1);
        self.successful.set(0.0);
    }
}
