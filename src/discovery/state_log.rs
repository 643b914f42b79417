//! Logs changes of a resolver's state: one line when it begins to fail and one when it recovers. Also defines the texts
//! that describe answers.

use std::{collections::BTreeSet, fmt, net::IpAddr, time::Duration};

use super::{
    answer::{Answer, Answers, Failure},
    parts::Joined,
};
use crate::telemetry::LogLimit;

/// The least time between two warnings that answers are parts of a larger set.
const PARTS_LOG_INTERVAL: Duration = Duration::from_secs(600);

/// The number of consecutive good rounds with a single address after which its meaning is logged: a minute at the
/// default interval.
const SINGLE_LOGGED_AFTER: u32 = 12;

/// The number of dropped addresses that one log line names; further ones are only counted.
pub(super) const NAMED_IN_LOG: usize = 20;

/// The state of a name's lookups and what was logged about it.
#[derive(Debug)]
pub(super) struct StateLog {
    failing: bool,
    dropped: BTreeSet<IpAddr>,
    parts: bool,
    parts_log_limit: LogLimit,
    single_rounds: u32,
    /// Whether an unexpected number of addresses was logged: a single one where several may be meant, or several where
    /// one is dialled.
    count_logged: bool,
}

/// The fields of a log line about a name.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogFields<'a> {
    pub(super) pool: &'a str,
    pub(super) hostname: &'a str,
}

impl StateLog {
    /// The state of a name that was not looked up yet.
    pub(super) fn new() -> Self {
        Self {
            failing: false,
            dropped: BTreeSet::new(),
            parts: false,
            parts_log_limit: LogLimit::new(1, PARTS_LOG_INTERVAL),
            single_rounds: 0,
            count_logged: false,
        }
    }

    /// Records whether a round was good, and logs a change.
    pub(super) fn note(&mut self, fields: LogFields<'_>, good: bool, answers: &Answers, known: usize) {
        let LogFields { pool, hostname } = fields;
        match (self.failing, good) {
            (false, false) if known == 0 => {
                tracing::warn!(pool, hostname, reason = %answers, "discovery has no address yet and keeps asking");
            }
            (false, false) => {
                tracing::warn!(pool, hostname, reason = %answers, known, "discovery fails; the last good set stays");
            }
            (true, true) => tracing::info!(pool, hostname, known, "discovery recovered"),
            (true, false) => tracing::debug!(pool, hostname, reason = %answers, known, "discovery still fails"),
            (false, true) => {}
        }
        self.failing = !good;
    }

    /// Records the addresses that cannot be dialled, and logs them when they change.
    pub(super) fn note_dropped(&mut self, fields: LogFields<'_>, dropped: BTreeSet<IpAddr>) {
        if dropped != self.dropped && !dropped.is_empty() {
            let LogFields { pool, hostname } = fields;
            let named: Vec<&IpAddr> = dropped.iter().take(NAMED_IN_LOG).collect();
            tracing::warn!(
                pool,
                hostname,
                addresses = dropped.len(),
                dropped = ?named,
                "discovery leaves out unspecified, reserved, broadcast and multicast addresses"
            );
        }
        self.dropped = dropped;
    }

    /// Records whether answers are parts of a larger set, and logs when that begins or ends.
    pub(super) fn note_parts(&mut self, fields: LogFields<'_>, joined: Option<Joined>) {
        let LogFields { pool, hostname } = fields;
        match joined {
            Some(Joined { answered, known, patience }) if !self.parts && self.parts_log_limit.admit().is_some() => {
                tracing::warn!(
                    pool,
                    hostname,
                    answered,
                    known,
                    rounds = patience,
                    "the name server answers with changing parts of a larger set; they are joined, and a backend that is \
                     missing leaves only after so many rounds: use a name that answers with all backends"
                );
            }
            None if self.parts => tracing::info!(pool, hostname, "the name server answers with whole sets again"),
            _ => {}
        }
        self.parts = joined.is_some();
    }

    /// Records the number of addresses after a good round. Logs once when it stays at one.
    pub(super) fn note_count(&mut self, fields: LogFields<'_>, known: usize) {
        self.single_rounds = if known == 1 { self.single_rounds.saturating_add(1) } else { 0 };
        if self.single_rounds == SINGLE_LOGGED_AFTER && !self.count_logged {
            self.count_logged = true;
            let LogFields { pool, hostname } = fields;
            tracing::info!(
                pool,
                hostname,
                "the name has a single address, so all traces go to one backend; if more stand behind it, as behind a \
                 Kubernetes Service with a cluster IP, name a headless Service (clusterIP: None)"
            );
        }
    }

    /// Records the number of addresses of a static entry's name, of which only one is dialled. Logs once when there are
    /// several.
    pub(super) fn note_unused(&mut self, fields: LogFields<'_>, known: usize) {
        if known > 1 && !self.count_logged {
            self.count_logged = true;
            let LogFields { pool, hostname } = fields;
            tracing::warn!(
                pool,
                hostname,
                known,
                "a static entry is one backend, and its name has several addresses: only one of them is used; the dns \
                 resolver makes each a backend"
            );
        }
    }

    /// Returns whether the last round was not good.
    #[cfg(test)]
    pub(super) fn is_failing(&self) -> bool {
        self.failing
    }

    /// Returns whether the number of addresses was logged.
    #[cfg(test)]
    pub(super) fn is_count_logged(&self) -> bool {
        self.count_logged
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let families = [("A", &self.v4), ("AAAA", &self.v6), ("SRV", &self.srv)];
        for (record, answer) in families.into_iter().filter_map(|(record, answer)| Some((record, answer.as_ref()?))) {
            write!(f, "{record}: {answer}, ")?;
        }
        write!(f, "asked for {}", self.asked)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addresses(addresses) => write!(f, "{} addresses", addresses.len()),
            Self::Services(services) => write!(f, "{} targets", services.len()),
            Self::Empty => f.write_str("no record"),
            Self::NoSuchName => f.write_str("no such name (NXDOMAIN)"),
            Self::Failed(failure) => failure.fmt(f),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "refused by the name server",
            Self::ServFail => "failure of the name server (SERVFAIL)",
            Self::Timeout => "no answer in time",
            Self::Other(reason) => reason,
        })
    }
}
