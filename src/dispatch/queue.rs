//! One backend's queue: what waits, when a call may begin, what it carries. Pure: no clock, no lock, no I/O.
//!
//! Group commit with places: the first call takes what is there at once; a further one begins when enough bytes wait or the
//! oldest entry has waited long enough. What arrived meanwhile leaves together.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::{Config, piece::Queued};
use crate::otlp::Signal;

/// Entries that never share a call: marked so, of a connection under suspicion, profiles (their records point into a
/// dictionary that each part carries).
const ALONE: usize = Signal::ALL.len();

/// The rules of [`Config`] that a queue follows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    places: usize,
    open_bytes: usize,
    open_after: Duration,
    max_bytes: usize,
}

/// What waits for one backend.
#[derive(Debug)]
pub(super) struct Queue {
    rules: Rules,
    /// One lane for each signal whose parts may be merged, and one for those that go alone.
    lanes: [VecDeque<Queued>; ALONE + 1],
    bytes: usize,
    running: usize,
    running_bytes: usize,
}

/// What one call carries.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) parts: Vec<Queued>,
    /// Payload bytes.
    pub(super) bytes: usize,
}

impl Rules {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            places: config.places.clamp(1, super::hub::MAX_PLACES),
            open_bytes: config.open_place_bytes,
            open_after: config.open_place_after,
            max_bytes: config.max_request_size,
        }
    }

    pub(super) fn places(self) -> usize {
        self.places
    }
}

impl Queue {
    pub(super) fn new(rules: Rules) -> Self {
        Self { rules, lanes: std::array::from_fn(|_| VecDeque::new()), bytes: 0, running: 0, running_bytes: 0 }
    }

    pub(super) fn push(&mut self, entry: Queued) {
        self.bytes += entry.cost();
        let lane = lane_of(&entry);
        if let Some(lane) = self.lanes.get_mut(lane) {
            lane.push_back(entry);
        }
    }

    /// Puts back what was taken: it has waited longest.
    pub(super) fn push_front(&mut self, entry: Queued) {
        self.bytes += entry.cost();
        let lane = lane_of(&entry);
        if let Some(lane) = self.lanes.get_mut(lane) {
            lane.push_front(entry);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lanes.iter().all(VecDeque::is_empty)
    }

    /// Calls that were taken and are not done.
    pub(super) fn running(&self) -> usize {
        self.running
    }

    /// Their payload bytes: never more than places × the size that a call may have, larger single records aside.
    pub(super) fn running_bytes(&self) -> usize {
        self.running_bytes
    }

    /// Whether a call may begin now.
    pub(super) fn opens(&self, now: Instant) -> bool {
        let Some(oldest) = self.lanes.iter().filter_map(|lane| Some(lane.front()?.since)).min() else {
            return false;
        };
        self.running == 0
            || (self.running < self.rules.places
                && (self.bytes >= self.rules.open_bytes
                    || now.saturating_duration_since(oldest) >= self.rules.open_after))
    }

    /// Takes what one call carries, and its place, if one may begin now. `merge` is false while the backend's counts have
    /// to be told apart. Entries that nobody waits for go to `dropped`.
    pub(super) fn take(&mut self, now: Instant, merge: bool, dropped: &mut Vec<Queued>) -> Option<Batch> {
        if !self.opens(now) {
            return None;
        }
        let mut parts = Vec::new();
        let mut bytes = 0_usize;
        while parts.is_empty() {
            // Of the lanes the one that has waited longest.
            let (_, at) =
                self.lanes.iter().enumerate().filter_map(|(at, lane)| Some((lane.front()?.since, at))).min()?;
            let alone = !merge || at == ALONE;
            let lane = self.lanes.get_mut(at)?;
            while let Some(next) = lane.front() {
                let fits = bytes.saturating_add(next.message.payload_len()) <= self.rules.max_bytes;
                if !parts.is_empty() && (alone || !fits) {
                    break;
                }
                let Some(entry) = lane.pop_front() else { break };
                self.bytes = self.bytes.saturating_sub(entry.cost());
                if is_dead(&entry, now) {
                    dropped.push(entry);
                } else {
                    bytes += entry.message.payload_len();
                    parts.push(entry);
                }
            }
        }
        self.running += 1;
        self.running_bytes += bytes;
        Some(Batch { parts, bytes })
    }

    /// Gives back the place of one call of that many payload bytes.
    pub(super) fn done(&mut self, bytes: usize) {
        self.running = self.running.saturating_sub(1);
        self.running_bytes = self.running_bytes.saturating_sub(bytes);
    }

    /// Takes out everything that nobody waits for.
    pub(super) fn purge(&mut self, now: Instant) -> Vec<Queued> {
        let mut dead = Vec::new();
        for lane in &mut self.lanes {
            let kept = std::mem::take(lane);
            for entry in kept {
                if is_dead(&entry, now) { dead.push(entry) } else { lane.push_back(entry) }
            }
        }
        self.bytes -= dead.iter().map(Queued::cost).sum::<usize>().min(self.bytes);
        dead
    }

    /// Takes out everything.
    pub(super) fn drain(&mut self) -> Vec<Queued> {
        self.bytes = 0;
        self.lanes.iter_mut().flat_map(std::mem::take).collect()
    }
}

fn lane_of(entry: &Queued) -> usize {
    if entry.alone || entry.apart || entry.signal == Signal::Profiles || !entry.inbox().connection.may_merge() {
        ALONE
    } else {
        entry.signal.index()
    }
}

fn is_dead(entry: &Queued, now: Instant) -> bool {
    entry.inbox().is_abandoned() || entry.inbox().deadline <= now
}
