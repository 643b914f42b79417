//! The log lines of membership: one for each change of state, with a limited rate.

use std::sync::Arc;

use super::{build::Change, state::Note};
use crate::telemetry::LogLimit;

/// The number of backends that one log line names; further ones are only counted.
const NAMED_IN_LOG: usize = 20;

/// The log lines about one pool.
pub(super) struct ChangeLog {
    pool: Arc<str>,
    /// The limit for lines about the state of backends.
    states: LogLimit,
    /// The limit for lines about the ring.
    changes: LogLimit,
}

// === impl ChangeLog ===

impl ChangeLog {
    pub(super) fn new(pool: &Arc<str>) -> Self {
        Self { pool: Arc::clone(pool), states: LogLimit::many(), changes: LogLimit::many() }
    }

    /// Logs a change of state, unless there were too many lines lately. `panicking` is whether the pool is in panic after the
    /// change: backends that fail keep their slots then.
    pub(super) fn state_changed(&self, note: &Note, panicking: bool) {
        // Panic is always logged, since an operator must not miss it.
        let allowed_to_log = matches!(note, Note::Panic { .. }) || self.is_allowed();
        let pool = &*self.pool;
        if !allowed_to_log {
            return;
        }
        match note {
            Note::Ejected { identity, reason, period } if panicking => {
                tracing::warn!(
                    pool,
                    backend = %identity,
                    reason,
                    ?period,
                    "backend fails and keeps its slots: too many others fail too"
                );
            }
            Note::Ejected { identity, reason, period } => {
                tracing::warn!(pool, backend = %identity, reason, ?period, "backend ejected");
            }
            Note::ProbeFailed(identity) => {
                tracing::debug!(pool, backend = %identity, "ejected backend does not answer")
            }
            Note::Returned(identity) => tracing::info!(pool, backend = %identity, "backend answers again"),
            Note::Held(identity) => {
                tracing::info!(pool, backend = %identity, "backend left discovery: held for a while");
            }
            Note::Away(identity) => {
                tracing::info!(
                    pool,
                    backend = %identity,
                    "backend is still not in discovery: it stays a member by its name, and others take its traces"
                );
            }
            Note::Left { identity, ejected } => {
                tracing::info!(pool, backend = %identity, ejected, "backend left the membership");
            }
            Note::Floor { begins: true, left, min_backends } => {
                tracing::warn!(
                    pool,
                    left,
                    min_backends,
                    "so many backends left discovery that fewer than min_backends would be left: none is removed"
                );
            }
            Note::Floor { begins: false, left, min_backends } => {
                tracing::info!(pool, left, min_backends, "there are min_backends again: absent ones are removed");
            }
            Note::Panic { begins: true, failing, allowed } => {
                tracing::warn!(
                    pool,
                    failing,
                    allowed,
                    "more backends fail than may be ejected: none is, and all keep their slots"
                );
            }
            Note::Panic { begins: false, failing, allowed } => {
                tracing::info!(
                    pool,
                    failing,
                    allowed,
                    "no more backends fail than may be ejected: those that fail are ejected now"
                );
            }
        }
    }

    /// Logs a change of the ring, unless there were too many lines lately.
    pub(super) fn ring_changed(&self, of: &Change) {
        let pool = &*self.pool;
        if self
            .changes
            .admit_or_report(|lines| tracing::warn!(pool, lines, "more changes of the ring than the log takes"))
        {
            log_change(pool, of);
        }
    }

    fn is_allowed(&self) -> bool {
        self.states.admit_or_report(|lines| {
            tracing::warn!(pool = &*self.pool, lines, "more changes of backends' state than the log takes");
        })
    }
}

/// Logs a change of the ring.
pub(super) fn log_change(pool: &str, change: &Change) {
    let table = &change.table;
    tracing::info!(
        pool,
        cause = change.cause.as_str(),
        generation = table.generation,
        backends = table.backends().len(),
        away = table.overlay().away().len(),
        added = names(&change.added()),
        removed = names(&change.removed()),
        moved = format_args!("{:.4}", change.moved),
        membership_fingerprint = format_args!("{:012x}", table.membership_fingerprint()),
        placement_fingerprint = format_args!("{:012x}", table.placement_fingerprint()),
        "ring changed"
    );
}

fn names(identities: &[Arc<str>]) -> String {
    let mut names: Vec<&str> = identities.iter().take(NAMED_IN_LOG).map(|identity| &**identity).collect();
    let rest = identities.len().saturating_sub(NAMED_IN_LOG);
    let more = format!("and {rest} more");
    if rest > 0 {
        names.push(&more);
    }
    names.join(",")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::logs::captured;

    #[test]
    fn log_lines_name_few_backends_and_count_the_rest() {
        let identities: Vec<Arc<str>> = (0..22).map(|index| index.to_string().into()).collect();
        assert_eq!(names(&identities[..2]), "0,1");
        assert!(names(&identities).ends_with(",19,and 2 more"));
    }

    #[test]
    fn a_backend_that_fails_in_panic_is_not_said_to_be_ejected() {
        let log = ChangeLog::new(&"tail".into());
        let ejected = Note::Ejected { identity: "a".into(), reason: "refused", period: Duration::from_secs(1) };
        let line = |panicking| captured(|| log.state_changed(&ejected, panicking));
        assert_eq!(line(false), " WARN backend ejected pool=\"tail\" backend=a reason=\"refused\" period=1s\n");
        let expected = " WARN backend fails and keeps its slots: too many others fail too pool=\"tail\" backend=a \
                        reason=\"refused\" period=1s\n";
        assert_eq!(line(true), expected);
    }

    #[test]
    fn lines_about_states_are_limited() {
        let log = ChangeLog::new(&"tail".into());
        let returned = Note::Returned("a".into());
        let lines = captured(|| (0..1_000).for_each(|_| log.state_changed(&returned, false))).lines().count();
        assert!((20..500).contains(&lines), "{lines}");
    }
}
