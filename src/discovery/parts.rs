//! Recognises answers that are parts of a larger set, and joins them over several rounds. Pure.
//!
//! Some name servers answer with a random or rotating selection of many addresses (AWS Cloud Map with at most 8). If
//! each answer were taken as the whole set, the ring would change in every round. Such answers have a constant size,
//! and addresses that had disappeared come back in the place of others. Once this was seen often enough, the set is the
//! union of the answers of the last rounds, and an address is removed when it has been missing for so many rounds that
//! chance does not explain it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
};

use super::MAX_ENDPOINTS;

/// The number of rounds for which an address is remembered while answers are taken as whole sets: 5 minutes at the
/// default interval.
const MEMORY: u64 = 60;

/// The number of swaps within [`SWAPS_WITHIN`] rounds after which answers count as parts. In a swap, an address returns
/// in the place of another. A few flapping backends or a rolling restart cause one or two.
const SWAPS: usize = 3;
const SWAPS_WITHIN: u64 = 12;

/// The least and the greatest number of rounds for which a missing address stays in a joined set: 1 to 20 minutes at
/// the default interval. The greatest is enough for answers with 8 of 120 addresses.
const LEAST_PATIENCE: u64 = 12;
pub(super) const MOST_PATIENCE: u64 = 240;

/// The probability that an address is missing by chance alone when it is removed.
const CHANCE: f64 = 1e-7;

/// The history of the answers about one name and family.
#[derive(Debug, Default)]
pub(super) struct Parts {
    round: u64,
    last: BTreeSet<IpAddr>,
    /// The round in which each address was last part of an answer.
    seen: BTreeMap<IpAddr, u64>,
    /// The latest rounds with a swap (see [`SWAPS`]).
    swaps: VecDeque<u64>,
    /// The number of consecutive rounds with the same answer.
    steady: u64,
    are_parts: bool,
}

/// Details of a joined set, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Joined {
    /// The number of addresses in the last answer.
    pub(super) answered: usize,
    /// The number of addresses in the joined set.
    pub(super) known: usize,
    /// The number of rounds after which a missing address is removed.
    pub(super) patience: u64,
}

impl Parts {
    /// Processes an answer. Returns the set to use now.
    pub(super) fn absorb(&mut self, answer: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        self.round += 1;
        let same = *answer == self.last;
        self.steady = if same { self.steady + 1 } else { 0 };
        let returned = || answer.difference(&self.last).any(|ip| self.seen.contains_key(ip));
        if !same && answer.len() == self.last.len() && returned() {
            self.swaps.push_back(self.round);
        }
        self.swaps.retain(|swap| self.round - swap < SWAPS_WITHIN);
        self.are_parts |= self.swaps.len() >= SWAPS;
        self.seen.extend(answer.iter().map(|ip| (*ip, self.round)));
        if self.seen.len() > MAX_ENDPOINTS {
            // A pool cannot have that many backends, so only the addresses of this answer are remembered.
            self.seen.retain(|ip, _| answer.contains(ip));
        }
        let patience = self.patience(answer.len());
        self.seen.retain(|_, seen| self.round - *seen < patience);
        self.last.clone_from(answer);
        if self.steady >= patience {
            self.are_parts = false;
        }
        match self.are_parts && self.seen.len() <= MAX_ENDPOINTS {
            true => self.seen.keys().copied().collect(),
            false => answer.clone(),
        }
    }

    /// Returns the details of the joined set, if answers are parts.
    pub(super) fn joined(&self) -> Option<Joined> {
        let (answered, known) = (self.last.len(), self.seen.len());
        self.are_parts.then(|| Joined { answered, known, patience: self.patience(answered) })
    }

    /// Returns the number of rounds for which a missing address is remembered.
    fn patience(&self, answered: usize) -> u64 {
        if !self.are_parts {
            return MEMORY;
        }
        // Each answer has a share of the addresses, so the probability that one is missing `n` times in a row is (1 -
        // share)^n.
        let count = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let share = count(answered) / count(self.seen.len()).max(1.0);
        let rounds = CHANCE.ln() / (1.0 - share).ln();
        let most = f64::from(u32::try_from(MOST_PATIENCE).unwrap_or(u32::MAX));
        let enough =
            (LEAST_PATIENCE..MOST_PATIENCE).find(|n| f64::from(u32::try_from(*n).unwrap_or(u32::MAX)) >= rounds);
        if rounds < most { enough.unwrap_or(MOST_PATIENCE) } else { MOST_PATIENCE }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn set(numbers: impl IntoIterator<Item = u8>) -> BTreeSet<IpAddr> {
        numbers.into_iter().map(|n| Ipv4Addr::new(10, 0, 0, n).into()).collect()
    }

    /// Returns `k` of the addresses with the numbers 1 to `n`.
    fn some_of(rng: &mut fastrand::Rng, k: usize, n: u8) -> BTreeSet<IpAddr> {
        set(rng.choose_multiple(1..=n, k))
    }

    /// Returns the rounds, of the first `rounds`, in which the set changed.
    fn changes(parts: &mut Parts, rounds: u64, mut answer: impl FnMut(u64) -> BTreeSet<IpAddr>) -> Vec<u64> {
        let (mut before, mut changed) = (None, Vec::new());
        for round in 1..=rounds {
            let now = parts.absorb(&answer(round));
            if before.as_ref().is_some_and(|before| *before != now) {
                changed.push(round);
            }
            before = Some(now);
        }
        changed
    }

    #[test]
    fn random_parts_become_one_stable_set_after_a_few_rounds() {
        for (k, n, within) in [(3, 6, 20), (1, 3, 40), (8, 20, 40), (8, 100, 120), (2, 30, 200)] {
            for seed in 0..20 {
                let (mut rng, mut parts) = (fastrand::Rng::with_seed(seed), Parts::default());
                let changed = changes(&mut parts, 3000, |_| some_of(&mut rng, k, n));
                let late: Vec<u64> = changed.iter().copied().filter(|round| *round > within).collect();
                assert!(late.is_empty(), "{k} of {n}, seed {seed}: {late:?}");
                assert_eq!(parts.absorb(&some_of(&mut rng, k, n)), set(1..=n), "{k} of {n}");
                assert_eq!(parts.joined().map(|joined| joined.answered), Some(k));
            }
        }
    }

    #[test]
    fn rotating_parts_become_one_stable_set() {
        let mut parts = Parts::default();
        let changed = changes(&mut parts, 1000, |round| set([u8::try_from(round % 20).unwrap()]));
        assert!(changed.iter().all(|round| *round <= 25), "{changed:?}");
    }

    #[test]
    fn an_address_missing_from_all_parts_is_removed_after_a_bounded_time() {
        for (k, n, left) in [(3, 6, 4), (8, 100, 50), (2, 30, 20)] {
            let (mut rng, mut parts) = (fastrand::Rng::with_seed(7), Parts::default());
            changes(&mut parts, 500, |_| some_of(&mut rng, k, n));
            for _ in 0..MOST_PATIENCE {
                parts.absorb(&some_of(&mut rng, k, left));
            }
            assert_eq!(parts.absorb(&some_of(&mut rng, k, left)), set(1..=left), "{k} of {n}");
        }
    }

    #[test]
    fn whole_answers_after_parts_are_taken_as_whole_sets_again() {
        let (mut rng, mut parts) = (fastrand::Rng::with_seed(7), Parts::default());
        changes(&mut parts, 100, |_| some_of(&mut rng, 3, 6));
        assert!(parts.joined().is_some());
        changes(&mut parts, 2 * MOST_PATIENCE, |_| set(1..=6));
        assert_eq!(parts.joined(), None);
        assert_eq!(parts.absorb(&set(1..=5)), set(1..=5), "a missing address must be removed at once");
    }

    #[test]
    fn changing_whole_answers_do_not_count_as_parts() {
        let never = |name: &str, rounds: u64, answer: &dyn Fn(u64) -> BTreeSet<IpAddr>| {
            let mut parts = Parts::default();
            for round in 0..rounds {
                let answer = answer(round);
                assert_eq!(parts.absorb(&answer), answer, "{name}, round {round}");
            }
        };
        let byte = |round: u64| u8::try_from(round % 200).unwrap();
        never("a rolling update with new addresses", 60, &|round| set(byte(round)..byte(round) + 6));
        never("one backend that flaps", 60, &|round| set(if round % 2 == 0 { 1..=6 } else { 1..=5 }));
        never("scaling up and down", 60, &|round| set(1..=6 + byte(round / 10) % 3));
        never("one swap for another and back", 60, &|round| set([1, 2, if (10..20).contains(&round) { 4 } else { 3 }]));
    }
}
