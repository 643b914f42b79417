//! The log: one subscriber for the process, which writes text or JSON to stderr.

use std::{io::IsTerminal, sync::OnceLock, time::Duration};

use tracing::{Event, Subscriber};
use tracing_subscriber::{
    Layer, Registry,
    filter::{LevelFilter, Targets},
    fmt,
    layer::{Context, SubscriberExt},
    reload,
    util::{SubscriberInitExt, TryInitError},
};

use super::LogLimit;
pub use crate::settings::{LogEncoding as Encoding, LogLevel as Level, Logs as Config};

/// The first part of the targets of our own lines.
const OURS: &str = "spanring";

/// How many lines all libraries together may write in [`LIBRARY_WINDOW`]. h2, for one, writes a line for each answer to a
/// PING that it did not send.
const LIBRARY_LINES: u32 = 10;

/// The time in which [`LIBRARY_LINES`] may be written.
const LIBRARY_WINDOW: Duration = Duration::from_secs(10);

impl Level {
    /// What is written at this level. At debug and trace, libraries are held one level higher, since h2 logs every frame at
    /// debug.
    fn filter(self) -> Targets {
        let (ours, others) = match self {
            Self::Off => (LevelFilter::OFF, LevelFilter::OFF),
            Self::Error => (LevelFilter::ERROR, LevelFilter::ERROR),
            Self::Warn => (LevelFilter::WARN, LevelFilter::WARN),
            Self::Info => (LevelFilter::INFO, LevelFilter::INFO),
            Self::Debug => (LevelFilter::DEBUG, LevelFilter::INFO),
            Self::Trace => (LevelFilter::TRACE, LevelFilter::DEBUG),
        };
        Targets::new().with_default(others).with_target(OURS, ours)
    }
}

/// The log could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up logs")]
pub struct InitError(#[source] TryInitError);

/// Changes the level while the process runs.
static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Installs the subscriber of the whole process. It can be called once.
pub fn init(config: Config) -> Result<(), InitError> {
    let (filter, handle) = reload::Layer::new(config.level.filter());
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    // It would report a line that cannot be written to stderr by printing to stderr, which panics.
    let lines = lines.log_internal_errors(false);
    let lines = match config.encoding {
        Encoding::Text => lines.boxed(),
        Encoding::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(LibraryLines::new()).with(lines).try_init().map_err(InitError)?;
    // It is not set yet: a second subscriber would have been refused above.
    drop(FILTER.set(handle));
    Ok(())
}

/// Limits the lines of libraries, since clients and backends can make them write a line for every few bytes. Our own lines are
/// limited where they are written.
struct LibraryLines(LogLimit);

impl LibraryLines {
    fn new() -> Self {
        Self(LogLimit::new(LIBRARY_LINES, LIBRARY_WINDOW))
    }
}

impl<S: Subscriber> Layer<S> for LibraryLines {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let left_out =
            |lines| tracing::warn!(lines, "lines of libraries were left out: there were more than the log takes");
        let target = event.metadata().target();
        if target.split("::").next() == Some(OURS) {
            let omitted = self.0.take_omitted();
            if omitted > 0 {
                left_out(omitted);
            }
            return true;
        }
        self.0.admit_or_report(left_out)
    }
}

/// Changes the lowest level that is written. It does nothing if [`init`] was not called.
pub fn set_level(level: Level) {
    if let Some(filter) = FILTER.get() {
        // It fails only if the subscriber no longer exists.
        drop(filter.reload(level.filter()));
    }
}

/// Returns what `body` logs at info and above on this thread, as text without times.
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
    fn lines_of_libraries_are_bounded_and_ours_are_not() {
        #[derive(Default, Clone)]
        struct Seen(std::sync::Arc<std::sync::Mutex<Vec<String>>>);
        impl<S: Subscriber> Layer<S> for Seen {
            fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
                self.0.lock().unwrap().push(event.metadata().target().to_owned());
            }
        }
        let seen = Seen::default();
        let subscriber = tracing_subscriber::registry().with(LibraryLines::new()).with(seen.clone());
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..500 {
                tracing::warn!(target: "h2::proto::ping_pong", "recv PING ack that we never sent");
                tracing::warn!(target: "hyper", "a line");
                tracing::warn!(target: "spanringer", "a line");
                tracing::warn!("one of ours");
            }
        });
        let seen = seen.0.lock().unwrap();
        let ours = seen.iter().filter(|target| target.starts_with("spanring::")).count();
        assert_eq!((ours, seen.len() - ours), (500, LIBRARY_LINES as usize));
    }

    #[test]
    fn below_info_only_our_own_lines_are_wanted() {
        use tracing::Level as Of;
        let least = |level: Level, target| {
            let levels = [Of::TRACE, Of::DEBUG, Of::INFO, Of::WARN, Of::ERROR];
            levels.into_iter().find(|of| level.filter().would_enable(target, of))
        };
        let rows = [
            (Level::Off, None, None),
            (Level::Error, Some(Of::ERROR), Some(Of::ERROR)),
            (Level::Warn, Some(Of::WARN), Some(Of::WARN)),
            (Level::Info, Some(Of::INFO), Some(Of::INFO)),
            (Level::Debug, Some(Of::DEBUG), Some(Of::INFO)),
            (Level::Trace, Some(Of::TRACE), Some(Of::DEBUG)),
        ];
        for (level, ours, others) in rows {
            assert_eq!(least(level, "spanring::membership"), ours, "{level:?}");
            assert_eq!(least(level, "h2::codec"), others, "{level:?}");
        }
    }
}
