//! The absence of a backend from discovery: how long it is doubted, and what it leads to. Pure.
//!
//! An absence is believed after `hold_down`, or at once if the backend is ejected; never before discovery has confirmed
//! it. If an answer halves the pool, what it lacks is doubted for twice the time. A backend that discovery lists as
//! draining is believed to end at once.
//!
//! A backend that is identified by its address is then removed. One with a stable name may be a pod that is being
//! restarted, so it stays a member for a while ([`Patience`]), ejected or not: others take its slots, and no other slot
//! moves, neither now nor when it is back.

use std::time::Duration;

use tokio::time::Instant;

use super::Config;

/// How long a pod of a StatefulSet may take to be back once its predecessor is gone: it has to be scheduled, to start and
/// to become ready.
const SUCCESSOR_WITHIN: Duration = Duration::from_secs(60);

/// How long absences last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For how long an absence is doubted.
    hold_down: Duration,
    /// How long a stable name stays a member, at least, once discovery no longer lists it. Its end was not announced, so
    /// all of it lies within this time: the pod goes on serving for as long as tables are kept, and ends then.
    stable_name: Duration,
}

/// The absence of one backend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Absence {
    began: Instant,
    /// When discovery no longer listed the backend, not even as draining.
    unlisted: Instant,
    manner: Manner,
    /// Whether it began with an answer that halves the pool, so that it is doubted for twice the time.
    halves_pool: bool,
    /// Whether discovery has confirmed it: no cache repeats an answer that lacks the backend by mistake.
    is_confirmed: bool,
    /// Whether the backend has a stable name and its absence is believed, so that others have its slots.
    is_away: bool,
}

/// How a backend leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Discovery does not list it.
    Unlisted,
    /// Discovery lists it as draining.
    Drains,
    /// Discovery listed it as draining, and does not list it any more.
    Drained,
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

// === impl Patience ===

impl Patience {
    pub(super) fn of(config: &Config) -> Self {
        let stable_name = SUCCESSOR_WITHIN.saturating_add(config.ring.handoff.kept_for());
        Self { hold_down: config.hold_down, stable_name }
    }
}

// === impl Absence ===

impl Absence {
    /// An absence that begins now, with a set that has half of the members or fewer if it `halves_pool`.
    pub(super) fn new(halves_pool: bool, now: Instant) -> Self {
        let manner = Manner::Unlisted;
        Self { began: now, unlisted: now, manner, halves_pool, is_confirmed: false, is_away: false }
    }

    /// Notes that discovery does not list the backend, and whether it has confirmed that.
    pub(super) fn set_unlisted(&mut self, is_confirmed: bool, now: Instant) {
        if self.manner == Manner::Drains {
            (self.manner, self.unlisted) = (Manner::Drained, now);
        }
        self.is_confirmed = is_confirmed;
    }

    /// Notes that discovery lists the backend as draining.
    pub(super) fn set_draining(&mut self) {
        (self.manner, self.is_confirmed) = (Manner::Drains, true);
    }

    /// Returns whether discovery lists the backend as draining.
    pub(super) fn is_draining(&self) -> bool {
        self.manner == Manner::Drains
    }

    /// Returns what the absence leads to now. Names that are not stable are removed as soon as they are `ejected`.
    pub(super) fn verdict(&self, is_stable_name: bool, ejected: bool, patience: Patience, now: Instant) -> Verdict {
        let is_over = |time: Option<Duration>| time.is_some_and(|time| now >= self.unlisted + time);
        let is_believed = self.manner != Manner::Unlisted || is_over(Some(self.doubted_for(patience)));
        match is_stable_name {
            _ if !self.is_confirmed => Verdict::Doubted,
            true if is_over(self.stays_for_once_unlisted(true, patience)) => Verdict::Gone,
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
    pub(super) fn next_due(&self, is_stable_name: bool, patience: Patience, now: Instant) -> Option<Instant> {
        let doubted_for = (self.manner == Manner::Unlisted).then(|| self.doubted_for(patience));
        let times = [doubted_for, self.stays_for_once_unlisted(is_stable_name, patience)];
        let times = times.into_iter().flatten().filter(|_| self.is_confirmed);
        times.map(|time| self.unlisted + time).filter(|at| *at > now).min()
    }

    /// Returns for how long after the beginning of the absence the backend stays a member; `None` if nobody knows, since
    /// discovery still lists it.
    pub(super) fn stays_for(&self, is_stable_name: bool, patience: Patience) -> Option<Duration> {
        let time = self.stays_for_once_unlisted(is_stable_name, patience)?;
        Some(self.unlisted.saturating_duration_since(self.began) + time)
    }

    fn stays_for_once_unlisted(&self, is_stable_name: bool, patience: Patience) -> Option<Duration> {
        let doubted_for = self.doubted_for(patience);
        match self.manner {
            Manner::Unlisted if is_stable_name => Some(doubted_for.max(patience.stable_name)),
            Manner::Unlisted => Some(doubted_for),
            Manner::Drains => None,
            Manner::Drained if is_stable_name => Some(doubted_for.max(SUCCESSOR_WITHIN)),
            Manner::Drained => Some(Duration::ZERO),
        }
    }

    fn doubted_for(&self, patience: Patience) -> Duration {
        if self.halves_pool { patience.hold_down * 2 } else { patience.hold_down }
    }
}
