//! Failures of accepting: how long to pause, and when to log.

use std::{io, time::Duration};

use super::Limits;
use crate::telemetry::LogLimit;

/// The first pause when no descriptor or memory is left for a connection. It doubles up to `LONGEST_PAUSE` times this.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: u32 = 64;

/// Tracks the failures of one listener.
pub(super) struct Trouble {
    listener: &'static str,
    /// The last pause as a multiple of the first; 0 after a successful accept.
    factor: u32,
    log_limit: LogLimit,
}

impl Trouble {
    pub(super) fn new(listener: &'static str) -> Self {
        Self { listener, factor: 0, log_limit: LogLimit::few() }
    }

    /// Resets the pause: a connection was accepted.
    pub(super) fn over(&mut self) {
        self.factor = 0;
    }

    /// Returns the pause after a failed accept, or `None` if the error concerns only that connection.
    pub(super) fn with_accept(&mut self, error: &io::Error) -> Option<Duration> {
        if is_of_one_connection(error) {
            return None;
        }
        self.factor = self.factor.saturating_mul(2).clamp(1, LONGEST_PAUSE);
        if let Some(unlogged) = self.log_limit.admit() {
            tracing::error!(
                listener = self.listener,
                %error,
                unlogged,
                "cannot accept connections, those that are open live on; raise the limit of open files (ulimit -n)"
            );
        }
        Some(FIRST_PAUSE * self.factor)
    }

    /// Logs that a connection was refused because there is no room for it.
    pub(super) fn with_room(&mut self, limits: &Limits) {
        let (max_connections, descriptors) = (limits.max_connections, (limits.descriptors)());
        if let Some(unlogged) = self.log_limit.admit() {
            let bound = if descriptors < max_connections { "the limit of open files" } else { "max_connections" };
            tracing::warn!(
                listener = self.listener,
                max_connections,
                open = limits.most(),
                unlogged,
                "connection refused: as many are open as {bound} allows"
            );
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `EMFILE` on Linux.
    const NO_DESCRIPTORS: i32 = 24;

    #[test]
    fn pauses_double_while_descriptors_are_missing_and_start_again_after() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut trouble = Trouble::new("test");
            let error = io::Error::from_raw_os_error(NO_DESCRIPTORS);
            let pauses: Vec<u128> =
                (0..9).filter_map(|_| trouble.with_accept(&error)).map(|pause| pause.as_millis()).collect();
            assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 640, 640]);
            trouble.over();
            assert_eq!(trouble.with_accept(&error), Some(FIRST_PAUSE));
            assert_eq!(trouble.with_accept(&io::ErrorKind::ConnectionAborted.into()), None);
        });
    }
}
