//! Decides how long to pause after a connection could not be accepted, and logs such failures.

use std::{io, time::Duration};

use super::{Limits, admission};
use crate::telemetry::LogLimit;

/// The first pause when there is no file descriptor or memory for a connection. It doubles with each failure, up to
/// `LONGEST_PAUSE` times this.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: u32 = 64;

/// The consecutive failures of one listener to accept a connection.
pub(super) struct AcceptFailures {
    listener: &'static str,
    /// The last pause as a multiple of the first; 0 after a successful accept.
    factor: u32,
    log_limit: LogLimit,
}

impl AcceptFailures {
    pub(super) fn new(listener: &'static str) -> Self {
        Self { listener, factor: 0, log_limit: LogLimit::few() }
    }

    /// Resets the pause, after a connection was accepted.
    pub(super) fn reset(&mut self) {
        self.factor = 0;
    }

    /// Returns the pause after a failed accept, or `None` if the error concerns only that connection.
    pub(super) fn pause_after(&mut self, error: &io::Error) -> Option<Duration> {
        if is_of_one_connection(error) {
            return None;
        }
        self.factor = self.factor.saturating_mul(2).clamp(1, LONGEST_PAUSE);
        if let Some(unlogged) = self.log_limit.admit() {
            tracing::error!(
                listener = self.listener,
                %error,
                unlogged,
                "cannot accept new connections; open ones are not affected; raise the limit of open files (ulimit -n)"
            );
        }
        Some(FIRST_PAUSE * self.factor)
    }

    /// Logs that the limit is reached: a connection is refused, or an idle one is closed for it.
    pub(super) fn log_refusal(&mut self, limits: &Limits) {
        let (max_connections, descriptors) = (limits.max_connections, (limits.descriptors)());
        if let Some(unlogged) = self.log_limit.admit() {
            let has_memory = |account| admission::connection(account, admission::CONNECTION).is_some();
            let bound = match &limits.account {
                Some(account) if !has_memory(account) => "memory_limiter",
                _ if descriptors < max_connections => "the limit of open files",
                _ => "max_connections",
            };
            tracing::warn!(
                listener = self.listener,
                max_connections,
                open = limits.most(),
                unlogged,
                "connection refused, or an idle one closed for it: {bound} allows no more than are open"
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
    fn the_pause_doubles_with_each_failure_and_a_success_resets_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut failures = AcceptFailures::new("test");
            let error = io::Error::from_raw_os_error(NO_DESCRIPTORS);
            let pauses: Vec<u128> =
                (0..9).filter_map(|_| failures.pause_after(&error)).map(|pause| pause.as_millis()).collect();
            assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 640, 640]);
            failures.reset();
            assert_eq!(failures.pause_after(&error), Some(FIRST_PAUSE));
            assert_eq!(failures.pause_after(&io::ErrorKind::ConnectionAborted.into()), None);
        });
    }
}
