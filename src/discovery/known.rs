//! Keeps the last good addresses of one name, for each address family, and decides what an answer may change. Pure.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    IpFamily,
    answer::{Answer, Answers},
    parts::{Joined, Parts},
};

/// The number of consecutive rounds after which "the name has no record of this family" is believed, while the other
/// family has addresses. Without this limit, the addresses of a family that was removed would be kept for ever, and
/// replicas started before and after the removal would disagree. It is a minute at the default interval, which is
/// longer than the restart of a name server.
pub(super) const EMPTY_BELIEVED_AFTER: u32 = 12;

/// The number of consecutive rounds without an answer about A records after which `auto` begins to use AAAA records.
/// One lost packet must not decide which family is used.
pub(super) const DOUBTED_FOR: u32 = 3;

/// The known addresses of one name.
#[derive(Debug, Default)]
pub(super) struct Known {
    v4: Kept,
    v6: Kept,
    /// Whether `auto` uses AAAA records at present.
    v6_in_use: bool,
}

#[derive(Debug, Default)]
struct Kept {
    addresses: BTreeSet<IpAddr>,
    parts: Parts,
    /// Consecutive rounds without an answer about this family.
    failed_rounds: u32,
    /// Consecutive rounds in which this family had no record while the other one had addresses.
    empty_rounds: u32,
}

impl Known {
    /// Processes one round of answers. Returns whether all of them were good, so that the known addresses are up to
    /// date.
    pub(super) fn absorb(&mut self, family: IpFamily, answers: &Answers) -> bool {
        let v4_answered = matches!(answers.v4, Some(Answer::Addresses(_)));
        let v6_answered = matches!(answers.v6, Some(Answer::Addresses(_)));
        let v4_good = answers.v4.as_ref().is_none_or(|answer| self.v4.absorb(answer, v6_answered));
        let v6_good = answers.v6.as_ref().is_none_or(|answer| self.v6.absorb(answer, v4_answered));
        // With `auto`, AAAA records do not matter where there are A records.
        let v6_idle = family == IpFamily::Auto && v4_answered;
        let is_chosen = family != IpFamily::Auto || !self.is_v6_idle(family);
        self.v6_in_use = self.v4.addresses.is_empty() && is_chosen && !self.v6.addresses.is_empty();
        v4_good && (v6_good || v6_idle) && (v4_answered || v6_answered)
    }

    /// Returns the addresses to use now; none until the first good answer.
    pub(super) fn addresses(&self, family: IpFamily) -> impl Iterator<Item = IpAddr> {
        let v6 = (!self.is_v6_idle(family)).then_some(&self.v6.addresses);
        self.v4.addresses.iter().chain(v6.into_iter().flatten()).copied()
    }

    /// Returns whether `answers`, which were processed last, tell that an address which is not known is absent. A question
    /// about its family that failed tells nothing.
    pub(super) fn tells_about(&self, family: IpFamily, answers: &Answers, ip: IpAddr) -> bool {
        let is_idle = ip.is_ipv6() && self.is_v6_idle(family);
        let (kept, answer) = if ip.is_ipv4() || is_idle { (&self.v4, &answers.v4) } else { (&self.v6, &answers.v6) };
        match answer {
            Some(Answer::Addresses(_)) => true,
            Some(Answer::Failed(_)) => false,
            // What the other answers say was believed if the family has no address any more.
            _ => kept.addresses.is_empty(),
        }
    }

    /// Returns whether rounds are counted until "the name has no record of this family" is believed. They must not follow
    /// each other too soon.
    pub(super) fn counts_rounds(&self) -> bool {
        [&self.v4, &self.v6].into_iter().any(|kept| kept.empty_rounds > 0 && !kept.addresses.is_empty())
    }

    /// Returns details of partial answers, if one of the families in use gets them.
    pub(super) fn joined(&self, family: IpFamily) -> Option<Joined> {
        let v6 = || if self.is_v6_idle(family) { None } else { self.v6.parts.joined() };
        self.v4.parts.joined().or_else(v6)
    }

    fn is_v6_idle(&self, family: IpFamily) -> bool {
        let doubted = (1..DOUBTED_FOR).contains(&self.v4.failed_rounds) && !self.v6_in_use;
        family == IpFamily::Auto && (!self.v4.addresses.is_empty() || doubted)
    }
}

impl Kept {
    fn absorb(&mut self, answer: &Answer, other_answered: bool) -> bool {
        let failed = matches!(answer, Answer::Failed(_));
        self.failed_rounds = if failed { self.failed_rounds.saturating_add(1) } else { 0 };
        match answer {
            Answer::Addresses(addresses) => {
                self.addresses = self.parts.absorb(addresses);
                self.empty_rounds = 0;
                true
            }
            Answer::Empty if other_answered => {
                self.empty_rounds = self.empty_rounds.saturating_add(1);
                if self.empty_rounds >= EMPTY_BELIEVED_AFTER {
                    self.addresses.clear();
                    self.parts = Parts::default();
                }
                self.addresses.is_empty()
            }
            Answer::Empty | Answer::NoSuchName | Answer::Services(_) => {
                self.empty_rounds = 0;
                self.addresses.is_empty()
            }
            Answer::Failed(_) => {
                self.empty_rounds = 0;
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::answer::Failure;

    const SERVFAIL: Answer = Answer::Failed(Failure::ServFail);

    fn addresses(written: &[&str]) -> Answer {
        Answer::Addresses(written.iter().map(|ip| ip.parse().unwrap()).collect())
    }

    /// Processes one answer for each family in use. Returns the known addresses after it and whether the round was
    /// good.
    fn round(known: &mut Known, family: IpFamily, v4: &Answer, v6: &Answer) -> (String, bool) {
        let answers = Answers {
            asked: "test.".to_owned(),
            v4: family.wants_v4().then(|| v4.clone()),
            v6: family.wants_v6().then(|| v6.clone()),
            srv: None,
            ttl: std::time::Duration::ZERO,
        };
        let good = known.absorb(family, &answers);
        let addresses: Vec<String> = known.addresses(family).map(|ip| ip.to_string()).collect();
        (addresses.join(" "), good)
    }

    fn is(addresses: &str, good: bool) -> (String, bool) {
        (addresses.to_owned(), good)
    }

    #[test]
    fn each_family_keeps_its_own_last_good_set() {
        let known = &mut Known::default();
        let family = IpFamily::Both;
        assert_eq!(round(known, family, &addresses(&["10.0.0.1"]), &addresses(&["fd::1"])), is("10.0.0.1 fd::1", true));
        assert_eq!(round(known, family, &addresses(&["10.0.0.2"]), &SERVFAIL), is("10.0.0.2 fd::1", false));
        assert_eq!(round(known, family, &SERVFAIL, &addresses(&["fd::2"])), is("10.0.0.2 fd::2", false));
        assert_eq!(round(known, family, &Answer::Empty, &addresses(&["fd::2"])), is("10.0.0.2 fd::2", false));
        assert_eq!(round(known, family, &Answer::NoSuchName, &Answer::NoSuchName), is("10.0.0.2 fd::2", false));
        assert_eq!(round(known, family, &addresses(&["10.0.0.3"]), &addresses(&["fd::3"])), is("10.0.0.3 fd::3", true));
    }

    #[test]
    fn a_family_without_an_answer_does_not_block_the_other() {
        for family in [IpFamily::Auto, IpFamily::Both] {
            let known = &mut Known::default();
            for _ in 0..DOUBTED_FOR {
                round(known, family, &SERVFAIL, &addresses(&["fd::1"]));
            }
            assert_eq!(round(known, family, &SERVFAIL, &addresses(&["fd::1"])), is("fd::1", false));
            let known = &mut Known::default();
            assert_eq!(round(known, family, &Answer::Empty, &addresses(&["fd::1"])), is("fd::1", true));
        }
    }

    #[test]
    fn auto_does_not_begin_with_aaaa_because_an_answer_about_a_was_lost() {
        let known = &mut Known::default();
        let (family, lost, v6) = (IpFamily::Auto, Answer::Failed(Failure::Timeout), addresses(&["fd::1"]));
        assert_eq!(round(known, family, &lost, &v6), is("", false));
        assert_eq!(round(known, family, &addresses(&["10.0.0.1"]), &v6), is("10.0.0.1", true));
        for _ in 0..2 * EMPTY_BELIEVED_AFTER {
            assert_eq!(round(known, family, &lost, &v6), is("10.0.0.1", false), "the last good set holds");
        }

        let known = &mut Known::default();
        assert_eq!(round(known, family, &Answer::Empty, &v6), is("fd::1", true));
        assert_eq!(
            round(known, family, &lost, &v6),
            is("fd::1", false),
            "a failure must not stop the use of AAAA either"
        );

        let known = &mut Known::default();
        for _ in 1..DOUBTED_FOR {
            assert_eq!(round(known, family, &lost, &v6), is("", false));
        }
        assert_eq!(round(known, family, &lost, &v6), is("fd::1", false), "nobody answers about A");
        assert_eq!(round(known, family, &lost, &v6), is("fd::1", false));
    }

    #[test]
    fn parts_are_joined_for_each_family_separately() {
        let known = &mut Known::default();
        let parts = [["10.0.0.1", "10.0.0.2"], ["10.0.0.2", "10.0.0.3"]];
        for part in parts.iter().cycle().take(8) {
            round(known, IpFamily::Both, &addresses(part), &addresses(&["fd::1"]));
        }
        let all = is("10.0.0.1 10.0.0.2 10.0.0.3 fd::1", true);
        for part in &parts {
            assert_eq!(round(known, IpFamily::Both, &addresses(part), &addresses(&["fd::1"])), all);
        }
        assert!(known.joined(IpFamily::Both).is_some());
        assert_eq!(
            round(known, IpFamily::Both, &SERVFAIL, &addresses(&["fd::2"])).0,
            "10.0.0.1 10.0.0.2 10.0.0.3 fd::2"
        );
    }

    #[test]
    fn auto_takes_a_records_and_only_without_them_aaaa() {
        let known = &mut Known::default();
        let family = IpFamily::Auto;
        assert_eq!(round(known, family, &Answer::Empty, &addresses(&["fd::1"])), is("fd::1", true));
        assert_eq!(round(known, family, &addresses(&["10.0.0.1"]), &addresses(&["fd::1"])), is("10.0.0.1", true));
        assert_eq!(round(known, family, &addresses(&["10.0.0.2"]), &SERVFAIL), is("10.0.0.2", true), "AAAA is idle");
        assert_eq!(round(known, family, &SERVFAIL, &addresses(&["fd::1"])), is("10.0.0.2", false));
    }

    #[test]
    fn a_single_family_ignores_the_other_and_is_never_emptied() {
        let known = &mut Known::default();
        let family = IpFamily::Ipv4;
        assert_eq!(round(known, family, &addresses(&["10.0.0.1"]), &addresses(&["fd::1"])), is("10.0.0.1", true));
        for bad in [Answer::Empty, Answer::NoSuchName, SERVFAIL] {
            for _ in 0..=EMPTY_BELIEVED_AFTER {
                assert_eq!(round(known, family, &bad, &SERVFAIL), is("10.0.0.1", false));
            }
        }
    }

    #[test]
    fn a_family_without_records_for_long_is_removed_while_the_other_has_addresses() {
        for family in [IpFamily::Auto, IpFamily::Both] {
            let known = &mut Known::default();
            let v6 = addresses(&["fd::1"]);
            round(known, family, &addresses(&["10.0.0.1"]), &v6);
            for _ in 1..EMPTY_BELIEVED_AFTER {
                assert!(round(known, family, &Answer::Empty, &v6).0.starts_with("10.0.0.1"));
            }
            assert!(!round(known, family, &SERVFAIL, &v6).1, "a failure in between starts the count again");
            for _ in 1..EMPTY_BELIEVED_AFTER {
                assert!(round(known, family, &Answer::Empty, &v6).0.starts_with("10.0.0.1"));
            }
            assert_eq!(round(known, family, &Answer::Empty, &v6), is("fd::1", true), "{family:?}");
        }
    }

    #[test]
    fn a_round_without_any_address_is_not_good() {
        for family in [IpFamily::Auto, IpFamily::Ipv4, IpFamily::Ipv6, IpFamily::Both] {
            let known = &mut Known::default();
            assert_eq!(round(known, family, &Answer::Empty, &Answer::NoSuchName), is("", false), "{family:?}");
        }
    }
}
