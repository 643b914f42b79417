//! Logs changes of the resolver's state: one line when it begins to fail and one when it recovers.

use super::{failure::Failure, join::LeftOut};

/// What was logged about the resolver of one pool.
pub(super) struct Log {
    pool: String,
    service: String,
    is_failing: bool,
    left_out: LeftOut,
}

impl Log {
    /// The state of a resolver that has asked nothing yet.
    pub(super) fn new(pool: &str, service: &str) -> Self {
        let (pool, service) = (pool.to_owned(), service.to_owned());
        Self { pool, service, is_failing: false, left_out: LeftOut::default() }
    }

    /// Records a good answer. `known` is the number of backends.
    pub(super) fn note_good(&mut self, known: usize) {
        if std::mem::take(&mut self.is_failing) {
            tracing::info!(pool = self.pool, service = self.service, known, "discovery recovered");
        }
    }

    /// Records a failure, while `known` backends are in use. Returns whether it is the first one after a good answer.
    pub(super) fn note_failure(&mut self, failure: &Failure, known: usize) -> bool {
        let (pool, service) = (&*self.pool, &*self.service);
        let was_failing = std::mem::replace(&mut self.is_failing, true);
        match (was_failing, known) {
            (true, _) => tracing::debug!(pool, service, reason = %failure, known, "discovery still fails"),
            (false, 0) => {
                tracing::warn!(pool, service, reason = %failure, "discovery has no address yet and keeps asking");
            }
            (false, _) => {
                tracing::warn!(pool, service, reason = %failure, known, "discovery fails; the last good set stays");
            }
        }
        !was_failing
    }

    /// Logs what is left out and should not be, when it changes. Pods that are not ready are ordinary.
    pub(super) fn note_left_out(&mut self, left_out: LeftOut) {
        let odd = LeftOut { not_serving: 0, ..left_out };
        if odd != self.left_out && odd.is_odd() {
            let (pool, service) = (&*self.pool, &*self.service);
            tracing::warn!(pool, service, %left_out, "discovery leaves out endpoints");
        }
        self.left_out = odd;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::logs::captured;

    #[test]
    fn a_failure_has_one_line_in_the_log_and_its_end_another() {
        let log = captured(|| {
            let mut log = Log::new("tail", "collectors");
            let denied = Failure::of_status(403, "forbidden: no");
            assert!(log.note_failure(&denied, 0));
            assert!(!log.note_failure(&Failure::Timeout, 0));
            for _ in 0..2 {
                log.note_good(3);
            }
            assert!(log.note_failure(&denied, 3));
            assert!(!log.note_failure(&denied, 3));
            for not_serving in [0, 1, 2] {
                log.note_left_out(LeftOut { not_serving, without_hostname: 2, ..LeftOut::default() });
            }
            log.note_left_out(LeftOut::default());
        });
        let fields = "pool=\"tail\" service=\"collectors\"";
        let reason = "reason=denied by the API server (403): forbidden: no";
        let expected = [
            format!(" WARN discovery has no address yet and keeps asking {fields} {reason}"),
            format!(" INFO discovery recovered {fields} known=3"),
            format!(" WARN discovery fails; the last good set stays {fields} {reason} known=3"),
            format!(
                " WARN discovery leaves out endpoints {fields} left_out=0 not ready, 2 without a hostname, 0 without a \
                 usable name or address, 0 with the name or address of another one, 0 \
                 beyond 65535"
            ),
        ];
        assert_eq!(log.lines().collect::<Vec<_>>(), expected);
    }
}
