//! Judges the silence of a backend during one call.
//!
//! HTTP/1.1 has no PING. When no byte was read or written for [`SILENCE`] while an answer is due, a probe asks the backend on
//! a connection of its own, and has the same time: so a backend that answers nothing is given up after as long as over HTTP/2.
//! While bytes of the request still leave, the connection is slow but not silent.

use tokio::time::Instant;

use crate::dispatch::transport::silence::SILENCE;

/// How long a backend has been silent during one call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Silence {
    /// The time since which the backend has owed an answer, or when a probe last showed that it is alive.
    since: Instant,
}

impl Silence {
    /// Begins with a call.
    pub(super) fn begin(now: Instant) -> Self {
        Self { since: now }
    }

    /// The time when the backend has to be probed, if no more bytes move until then. `moved_at` is the time when bytes
    /// were last read or written.
    pub(super) fn probe_at(self, moved_at: Option<Instant>) -> Instant {
        moved_at.map_or(self.since, |at| at.max(self.since)) + SILENCE
    }

    /// Notes that a probe showed that the backend is alive.
    pub(super) fn probed(&mut self, now: Instant) {
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_backend_is_probed_a_second_after_the_last_byte_or_probe() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut silence = Silence::begin(at(500));
        assert_eq!(silence.probe_at(None), at(1_500));
        assert_eq!(silence.probe_at(Some(at(100))), at(1_500), "the time before the call does not count");
        assert_eq!(silence.probe_at(Some(at(900))), at(1_900));
        silence.probed(at(2_000));
        assert_eq!(silence.probe_at(Some(at(900))), at(3_000));
    }
}
