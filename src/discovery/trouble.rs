//! What the log hears of a resolver's state: one line when it begins to fail, one when it recovers, and the words.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use super::answer::{Answer, Answers, Failure};

/// Whether a name's last round was good, and what was said about it.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    failing: bool,
    dropped: BTreeSet<IpAddr>,
}

/// Who says it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Voice<'a> {
    pub(super) pool: &'a str,
    pub(super) hostname: &'a str,
}

impl Trouble {
    /// Notes how a round went, and logs the change if it is one.
    pub(super) fn note(&mut self, voice: Voice<'_>, good: bool, answers: &Answers, known: usize) {
        let Voice { pool, hostname } = voice;
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

    /// Notes the addresses that no backend can have, and logs them when they are others than before.
    pub(super) fn note_dropped(&mut self, voice: Voice<'_>, dropped: BTreeSet<IpAddr>) {
        if dropped != self.dropped && !dropped.is_empty() {
            let Voice { pool, hostname } = voice;
            tracing::warn!(
                pool,
                hostname,
                ?dropped,
                "discovery ignores unspecified, broadcast and multicast addresses"
            );
        }
        self.dropped = dropped;
    }

    /// Whether the last round was not good.
    #[cfg(test)]
    pub(super) fn is_failing(&self) -> bool {
        self.failing
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let families = [("A", &self.v4), ("AAAA", &self.v6)];
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
            Self::Empty => f.write_str("no record"),
            Self::NoSuchName => f.write_str("no such name (NXDOMAIN)"),
            Self::Failed(Failure::Refused) => f.write_str("refused by the name server"),
            Self::Failed(Failure::ServFail) => f.write_str("failure of the name server (SERVFAIL)"),
            Self::Failed(Failure::Timeout) => f.write_str("no answer in time"),
            Self::Failed(Failure::Other(reason)) => f.write_str(reason),
        }
    }
}
