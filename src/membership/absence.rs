//! The absence of a backend from discovery: how long it is doubted, and what it leads to. Pure.
//!
//! An absence is believed after `hold_down`, or at once if the backend is ejected. A backend that is identified by its
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
    /// An absence that begins now.
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, is_away: false }
    }

    /// Returns what the absence leads to now. Names that are not stable are removed as soon as they are `ejected`.
    pub(super) fn verdict(&self, is_stable_name: bool, ejected: bool, hold_down: Duration, now: Instant) -> Verdict {
        let is_believed = now >= self.since + hold_down;
        match is_stable_name {
            true if now >= self.since + time(true, hold_down) => Verdict::Gone,
            true if is_believed => Verdict::Away,
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
        let times = [hold_down, time(is_stable_name, hold_down)];
        times.into_iter().map(|time| self.since + time).filter(|at| *at > now).min()
    }
}

/// Returns for how long an absent backend stays a member.
pub(super) fn time(is_stable_name: bool, hold_down: Duration) -> Duration {
    if is_stable_name { hold_down.max(STABLE_NAME_STAYS) } else { hold_down }
}
