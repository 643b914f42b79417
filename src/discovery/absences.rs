//! Absences that are not confirmed yet. Pure.
//!
//! Caches between this process and the name server's source repeat an answer until its TTL is over. If one answer lacks
//! a backend by mistake, all answers lack it for so long. So a backend that an answer lacks stays in the set, marked as
//! missing, until an answer that was fetched after that TTL lacks it too. Membership holds missing backends meanwhile,
//! and from the first answer on. One answer that has the backend again ends all this.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::endpoint::Endpoint;

/// The longest TTL that is waited for. A record with a TTL of a day must not make a backend stay for a day: five
/// minutes is the usual TTL of records that change (Route 53 proposes it).
pub(super) const MOST_TTL: Duration = Duration::from_secs(300);

/// How long after the beginning of an absence the resolver asks every second: longer than twice the default `hold_down`, for
/// which membership holds the backends that an answer lacks if that answer halves the pool, and than the usual TTL after
/// which the absence is confirmed.
pub(super) const OFTEN_FOR: Duration = Duration::from_secs(60);

/// When a round asked, when it was answered, and for how long caches may repeat its answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round {
    pub(super) asked_at: Instant,
    pub(super) answered_at: Instant,
    pub(super) ttl: Duration,
}

/// The backends that the latest answers lack.
#[derive(Debug, Default)]
pub(super) struct Absences {
    /// The backends of the last set, by identity.
    listed: BTreeMap<Arc<str>, Endpoint>,
    missing: BTreeMap<Arc<str>, Missing>,
    /// When the latest absence began.
    began_at: Option<Instant>,
}

#[derive(Debug)]
struct Missing {
    endpoint: Endpoint,
    /// The absence is confirmed by an answer to a question that was asked at this instant or later.
    confirmed_from: Instant,
}

impl Absences {
    /// Processes the set that is known after a round. `tells` returns whether the round's answers tell that a backend,
    /// which they lack, is absent: a question that failed tells nothing. Returns the set to publish, sorted by identity.
    pub(super) fn absorb(
        &mut self,
        set: Vec<Endpoint>,
        round: Round,
        tells: impl Fn(&Endpoint) -> bool,
    ) -> Vec<Endpoint> {
        let set: BTreeMap<Arc<str>, Endpoint> = set.into_iter().map(|it| (Arc::clone(&it.identity), it)).collect();
        self.missing.retain(|identity, missing| {
            let is_confirmed = round.asked_at >= missing.confirmed_from && tells(&missing.endpoint);
            !is_confirmed && !set.contains_key(identity)
        });
        let confirmed_from = round.answered_at + round.ttl.min(MOST_TTL);
        for (identity, endpoint) in std::mem::take(&mut self.listed) {
            if !set.contains_key(&identity) {
                let endpoint = Endpoint { is_missing: true, ..endpoint };
                self.missing.insert(identity, Missing { endpoint, confirmed_from });
                self.began_at = Some(round.answered_at);
            }
        }
        self.listed = set;
        let missing = self.missing.values().map(|missing| &missing.endpoint);
        let mut all: Vec<Endpoint> = self.listed.values().chain(missing).cloned().collect();
        all.sort_unstable();
        all
    }

    /// Returns whether an absence began a short time ago, so that the resolver asks often.
    pub(super) fn are_recent(&self, now: Instant) -> bool {
        self.began_at.is_some_and(|at| now < at + OFTEN_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Rounds with a clock that only the test advances.
    struct Rounds {
        absences: Absences,
        now: Instant,
        ttl: Duration,
    }

    impl Rounds {
        fn new(ttl: Duration) -> Self {
            Self { absences: Absences::default(), now: Instant::now(), ttl }
        }

        /// Returns the set after a round whose answers took half a second; missing backends have a `?`.
        fn round(&mut self, set: &[&str], tells: bool) -> String {
            let asked_at = self.now;
            self.now += SECOND / 2;
            let round = Round { asked_at, answered_at: self.now, ttl: self.ttl };
            let set = set.iter().map(|identity| Endpoint::new(*identity, None)).collect();
            let all = self.absences.absorb(set, round, |_| tells);
            let text = |it: &Endpoint| format!("{}{}", it.identity, if it.is_missing { "?" } else { "" });
            all.iter().map(text).collect::<Vec<_>>().join(" ")
        }
    }

    #[test]
    fn an_absence_is_confirmed_by_an_answer_past_the_ttl_of_the_first_that_lacked_the_backend() {
        let mut rounds = Rounds::new(SECOND * 5);
        assert_eq!(rounds.round(&["a", "b"], true), "a b");
        assert_eq!(rounds.round(&["a"], true), "a b?");
        let first = rounds.now;
        rounds.ttl = SECOND * 60;
        while rounds.now < first + SECOND * 5 {
            assert_eq!(rounds.round(&["a"], true), "a b?", "the question was asked before the TTL was over");
        }
        assert_eq!(rounds.round(&["a"], true), "a", "the TTL of later answers does not matter");
    }

    #[test]
    fn one_answer_that_has_the_backend_ends_the_absence() {
        let mut rounds = Rounds::new(SECOND * 5);
        rounds.round(&["a", "b"], true);
        assert_eq!(rounds.round(&["a"], true), "a b?");
        assert_eq!(rounds.round(&["a", "b"], true), "a b");
        rounds.now += SECOND * 60;
        assert_eq!(rounds.round(&["a"], true), "a b?", "the next absence begins anew");
    }

    #[test]
    fn with_ttl_0_the_second_answer_confirms() {
        let mut rounds = Rounds::new(Duration::ZERO);
        rounds.round(&["a", "b"], true);
        assert_eq!(rounds.round(&["a"], true), "a b?");
        assert_eq!(rounds.round(&["a"], true), "a");
    }

    #[test]
    fn a_failure_confirms_nothing() {
        let mut rounds = Rounds::new(Duration::ZERO);
        rounds.round(&["a", "b"], true);
        rounds.round(&["a"], true);
        for _ in 0..9 {
            assert_eq!(rounds.round(&["a"], false), "a b?");
        }
        assert_eq!(rounds.round(&["a"], true), "a");
    }

    #[test]
    fn the_longest_ttl_is_bounded() {
        let mut rounds = Rounds::new(SECOND * 86_400);
        rounds.round(&["a", "b"], true);
        rounds.round(&["a"], true);
        rounds.now += MOST_TTL - SECOND / 2;
        assert_eq!(rounds.round(&["a"], true), "a b?");
        assert_eq!(rounds.round(&["a"], true), "a");
    }

    #[test]
    fn absences_are_recent_for_a_minute_after_the_latest_began() {
        let mut rounds = Rounds::new(Duration::ZERO);
        rounds.round(&["a", "b", "c"], true);
        assert!(!rounds.absences.are_recent(rounds.now), "nothing is absent");
        rounds.round(&["a", "b"], true);
        rounds.now += OFTEN_FOR - SECOND;
        assert!(rounds.absences.are_recent(rounds.now));
        rounds.round(&["a"], true);
        rounds.now += OFTEN_FOR - SECOND;
        assert!(rounds.absences.are_recent(rounds.now));
        rounds.now += SECOND;
        assert!(!rounds.absences.are_recent(rounds.now));
    }
}
