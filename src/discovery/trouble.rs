//! What the log hears of a resolver's state: one line when it begins to fail, one when it recovers, and the words.

use std::{collections::BTreeSet, fmt, net::IpAddr, time::Duration};

use tokio::time::Instant;

use super::{
    answer::{Answer, Answers, Failure},
    parts::Joined,
};

/// Answers that begin to be parts again and again are told no more often than that.
const PARTS_TOLD_EVERY: Duration = Duration::from_secs(600);

/// Good rounds in a row with one address, after which it is said what that means: a minute at the default interval.
const SINGLE_TOLD_AFTER: u32 = 12;

/// Whether a name's last round was good, and what was said about it.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    failing: bool,
    dropped: BTreeSet<IpAddr>,
    parts: bool,
    parts_told: Option<Instant>,
    single_rounds: u32,
    /// One address where more may be meant, or more where one is dialled: said once.
    count_told: bool,
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

    /// Notes whether answers are parts of a larger set, and logs when they begin or cease to be.
    pub(super) fn note_parts(&mut self, voice: Voice<'_>, joined: Option<Joined>) {
        let Voice { pool, hostname } = voice;
        let may_tell = self.parts_told.is_none_or(|told| told.elapsed() >= PARTS_TOLD_EVERY);
        match joined {
            Some(Joined { answered, known, patience }) if !self.parts && may_tell => {
                self.parts_told = Some(Instant::now());
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

    /// Notes the number of addresses after a good round; logs once when it stays at one.
    pub(super) fn note_count(&mut self, voice: Voice<'_>, known: usize) {
        self.single_rounds = if known == 1 { self.single_rounds.saturating_add(1) } else { 0 };
        if self.single_rounds == SINGLE_TOLD_AFTER && !self.count_told {
            self.count_told = true;
            let Voice { pool, hostname } = voice;
            tracing::info!(
                pool,
                hostname,
                "the name has a single address, so all traces go to one backend; if more stand behind it, as behind a \
                 Kubernetes Service with a cluster IP, name a headless Service (clusterIP: None)"
            );
        }
    }

    /// Notes the number of addresses of a name of which one is dialled; logs once when there are more.
    pub(super) fn note_unused(&mut self, voice: Voice<'_>, known: usize) {
        if known > 1 && !self.count_told {
            self.count_told = true;
            let Voice { pool, hostname } = voice;
            tracing::warn!(
                pool,
                hostname,
                known,
                "a static entry is one backend, and its name has several addresses: only one of them is used; the dns \
                 resolver makes each a backend"
            );
        }
    }

    /// Whether the last round was not good.
    #[cfg(test)]
    pub(super) fn is_failing(&self) -> bool {
        self.failing
    }

    /// Whether something was said of the number of addresses.
    #[cfg(test)]
    pub(super) fn is_told(&self) -> bool {
        self.count_told
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
