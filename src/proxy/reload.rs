//! Reading the configuration again, when a signal asks for it or the file changed, and saying what came of it.
//!
//! A file that does not hold changes nothing. One that does is taken over but for what takes a restart, which is named in
//! the log and in `spanring_config_restart_required`. The log names each key that changed, never what it was or is.

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
    config::{Draft, FIXED, LoadError, changed_keys},
    lifecycle::Tasks,
    settings::Settings,
    telemetry::metrics as page,
    tls::Reloads,
};

/// A change of the file counts once two looks in a row, that far apart, saw the same: it may be half written at the first.
const SETTLED: Duration = Duration::from_secs(1);

/// Keys that one line names; of more than these their number is said.
const MAX_NAMED: usize = 20;

/// Reads the configuration anew. Called on a thread that may block.
pub type Source = Arc<dyn Fn() -> Result<Draft, LoadError> + Send + Sync>;

/// Asks for a reload; what is asked for while one is under way is one more after it. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Trigger(Arc<Notify>);

/// The task that reloads.
pub(super) struct Reloader {
    running: Arc<Mutex<Running>>,
    certificates: Reloads,
    source: Source,
    trigger: Trigger,
    watch: Option<Duration>,
    /// What was read last: the settings, or what was wrong.
    seen: Seen,
    /// What was taken over last.
    taken: Settings,
    metrics: Metrics,
}

type Seen = Result<Settings, String>;

/// What reloads tell, there from the start: the configuration that the process started with was a success.
struct Metrics {
    success: Counter,
    unchanged: Counter,
    failed: Counter,
    successful: Gauge,
    success_at: Gauge,
}

// === impl Trigger ===

impl Trigger {
    /// Asks.
    pub fn reload(&self) {
        self.0.notify_one();
    }
}

// === impl Reloader ===

impl Reloader {
    /// `read` is what the process started with. Without `watch` only the trigger is heard.
    pub(super) fn new(
        running: Arc<Mutex<Running>>,
        certificates: Reloads,
        source: Source,
        read: Settings,
        watch: Option<Duration>,
        trigger: Trigger,
    ) -> Self {
        let seen = Ok(read.clone());
        Self { running, certificates, source, trigger, watch, seen, taken: read, metrics: Metrics::new() }
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

    /// Resolves when the file says something else than it did; never, if nobody asked to watch it.
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
                tell(&applied, &changed);
            }
            Err(error) => {
                self.metrics.failed();
                error!(error, "configuration refused: the previous one stays in force");
            }
        }
    }

    /// What was taken over, and the keys that differ from what was taken over before.
    async fn attempt(&mut self) -> Result<(Applied, Vec<String>), String> {
        let draft = self.read().await;
        self.seen = draft.as_ref().map(|draft| draft.settings.clone()).map_err(|error| chain(error));
        let draft = draft.map_err(|error| chain(&error))?;
        let settings = draft.settings.clone();
        // Names of listeners are looked up: for a thread that may block.
        let checked = spawn_blocking(move || draft.check()).await.map_err(|error| chain(&error))?;
        let config = checked.map_err(|error| chain(&error))?;
        for warning in &config.warnings {
            warn!("{warning}");
        }
        let applied = self.running.lock().await.apply(config).await.map_err(|error| chain(&error))?;
        // Files beside the configuration: they say themselves what became of them.
        drop(self.certificates.now().await);
        let changed = changed_keys(&self.taken, &settings);
        self.taken = settings;
        Ok((applied, changed))
    }
}

fn tell(applied: &Applied, changed: &[String]) {
    let Applied { added, changed: pools_changed, removed, restart, is_nothing } = applied;
    let keys = named(changed);
    if *is_nothing && restart.is_empty() {
        return info!("configuration unchanged");
    }
    if *is_nothing {
        let keys = restart.join(",");
        return warn!(
            keys,
            "the file differs from what is in force only in keys that take a restart: nothing was changed"
        );
    }
    let [added, pools_changed, removed] = [added, pools_changed, removed].map(|pools| pools.join(","));
    info!(keys, pools_added = added, pools_changed, pools_removed = removed, "configuration taken over");
    if !restart.is_empty() {
        let keys = restart.join(",");
        warn!(keys, "these keys take a restart: they stay as they were, the rest was taken over");
    }
}

/// Keys on one line, not all of very many.
fn named(keys: &[String]) -> String {
    let named: Vec<&str> = keys.iter().map(String::as_str).take(MAX_NAMED).collect();
    match keys.len().saturating_sub(MAX_NAMED) {
        0 => named.join(","),
        more => format!("{} and {more} more", named.join(",")),
    }
}

/// An error with its causes, on one line.
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
        if applied.is_nothing { &self.unchanged } else { &self.success }.increment(1);
        self.good(&applied.restart);
    }

    fn good(&self, restart: &[&str]) {
        self.successful.set(1.0);
        // The wall clock is only shown, never calculated with.
        self.success_at.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        for key in FIXED {
            let required = f64::from(u8::from(restart.contains(&key)));
            gauge!(page::CONFIG_RESTART_REQUIRED, "key" => key).set(required);
        }
    }

    fn failed(&self) {
        self.failed.increment(1);
        self.successful.set(0.0);
    }
}
