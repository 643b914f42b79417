//! Logs: one subscriber, text or JSON, on stderr.

use std::{io::IsTerminal, sync::OnceLock};

use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, fmt, reload};

/// How the process logs. Keys and values are those of the Collector's `service.telemetry.logs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The least level that is written.
    pub level: Level,
    /// How a line looks.
    pub encoding: Encoding,
}

/// The least level that is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing.
    Off,
    /// Data was lost, or an operator must act.
    Error,
    /// Something went wrong and was mended.
    Warn,
    /// Life of the process, changes of membership.
    #[default]
    Info,
    /// Single requests.
    Debug,
    /// Everything.
    Trace,
}

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// For people.
    #[default]
    #[serde(alias = "console")]
    Text,
    /// One JSON object a line.
    Json,
}

impl Level {
    /// Below info only our own lines are wanted: HTTP/2 logs every frame at debug.
    fn directives(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "info,spanring=debug",
            Self::Trace => "debug,spanring=trace",
        }
    }
}

/// Why logs could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up logs")]
pub struct InitError(#[source] Box<dyn std::error::Error + Send + Sync>);

/// How the level is changed while the process runs.
static SET_LEVEL: OnceLock<Box<dyn Fn(Level) + Send + Sync>> = OnceLock::new();

/// Makes the subscriber, for the whole process and once.
pub fn init(config: Config) -> Result<(), InitError> {
    let builder = fmt()
        .with_env_filter(EnvFilter::new(config.level.directives()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match config.encoding {
        Encoding::Text => {
            let builder = builder.with_filter_reloading();
            keep(builder.reload_handle());
            builder.try_init()
        }
        Encoding::Json => {
            let builder = builder.json().flatten_event(true).with_current_span(false).with_span_list(false);
            let builder = builder.with_filter_reloading();
            keep(builder.reload_handle());
            builder.try_init()
        }
    }
    .map_err(InitError)
}

/// Changes the least level that is written; nothing, where [`init`] was not called.
pub fn set_level(level: Level) {
    if let Some(set) = SET_LEVEL.get() {
        set(level);
    }
}

fn keep<S: Send + Sync + 'static>(handle: reload::Handle<EnvFilter, S>) {
    // A second subscriber is refused anyway.
    drop(SET_LEVEL.set(Box::new(move |level| {
        // It can only fail when the subscriber is gone.
        drop(handle.reload(EnvFilter::new(level.directives())));
    })));
}

/// What `body` logs at info and above, as text without times.
#[cfg(test)]
pub(crate) fn captured(body: impl FnOnce()) -> String {
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = fmt()
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .with_max_level(tracing::Level::INFO)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, body);
    String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_is_a_filter() {
        for level in [Level::Off, Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace] {
            assert!(level.directives().parse::<EnvFilter>().is_ok(), "{level:?}");
        }
    }
}
