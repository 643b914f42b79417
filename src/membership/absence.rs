//! The absence of a backend from discovery: how long it is doubted, and what it leads to. Pure.
//!
//! An absence is believed after `hold_down`, or at once if the backend is ejected; never before discovery has confirmed
//! it. If an answer halves the pool, what it lacks is doubted for twice the time. A backend that is identified by its
//! address is then removed. One with a stable name may be a pod that is being restarted, so it stays a member for
//! [`STABLE_NAME_STAYS`], ejected or not: others take its slots, and no other slot moves, neither now nor when it is
//! back.

use std::time::Duration;

use tokio::time::Instant;

/// How long an absent backend with a stable name stays a member at least. A pod of a StatefulSet is back within it: the
/// old one ends within 30 s by Kubernetes' default, and its successor has to be scheduled and become ready.
pub(super) const STABLE_NAME_STAYS: Duration = Duration::from_secs(60);

/// The absence of one backend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Absence {
    since: Instant,
    /// Whether it began with an answer that halves the pool, so that it is doubted for twice the time.
    halves_pool: bool,
    /// Whether discovery has confirmed it: no cache repeats an answer that lacks the backend by mistake.
    is_confirmed: bool,
    /// Whether the backend has a stable name and its absence is believed, so that others have its slots.
    is_away: bool,
}

/// What an absence leads to at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The absence is not believed yet.
    Doubted,
    /// The backend stays a member, and others take its slots.
    Away,
    /// The backend is to be removed.
    Gone,
}

impl Absence {
    /// An absence that begins now, with a set that has half of the members or fewer if it `halves_pool`.
    pub(super) fn new(halves_pool: bool, now: Instant) -> Self {
        Self { since: now, halves_pool, is_confirmed: false, is_away: false }
    }

    /// Notes whether discovery has confirmed the absence.
    pub(super) fn set_confirmed(&mut self, is_confirmed: bool) {
        self.is_confirmed = is_confirmed;
    }

    /// Returns what the absence leads to now. Names that are not stable are removed as soon as they are `ejected`.
    pub(super) fn verdict(&self, is_stable_name: bool, ejected: bool, hold_down: Duration, now: Instant) -> Verdict {
        let is_believed = now >= self.since + self.doubted_for(hold_down);
        match is_stable_name {
            _ if !self.is_confirmed => Verdict::Doubted,
            true if now >= self.since + self.stays_for(true, hold_down) => Verdict::Gone,
            true if is_believed || self.is_away => Verdict::Away,
            false if is_believed || ejected => Verdict::Gone,
            _ => Verdict::Doubted,
        }
    }

    /// Returns whether the backend has a stable name, its absence is believed, and others have its slots.
    pub(super) fn is_away(&self) -> bool {
        self.is_away
    }

    /// Notes that others take the slots of the backend. Returns whether that is new.
    pub(super) fn begin_to_be_away(&mut self) -> bool {
        !std::mem::replace(&mut self.is_away, true)
    }

    /// Returns when the next verdict is due, if that is after `now`.
    pub(super) fn next_due(&self, is_stable_name: bool, hold_down: Duration, now: Instant) -> Option<Instant> {
        let times = [self.doubted_for(hold_down), self.stays_for(is_stable_name, hold_down)];
        times.into_iter().filter(|_| self.is_confirmed).map(|time| self.since + time).filter(|at| *at > now).min()
    }

    /// Returns for how long the backend stays a member.
    pub(super) fn stays_for(&self, is_stable_name: bool, hold_down: Duration) -> Duration {
        let doubted_for = self.doubted_for(hold_down);
        if is_stable_name { doubted_for.max(STABLE_NAME_STAYS) } else { doubted_for }
    }

    fn doubted_for(&self, hold_down: Duration) -> Duration {
        if self.halves_pool { hold_down * 2 } else { hold_down }
    }
}
