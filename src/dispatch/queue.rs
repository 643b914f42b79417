//! One backend's queue: what waits, when a call may begin, what it carries. Pure: no clock, no lock, no I/O.
//!
//! Group commit with places: the first call takes what is there at once; a further one begins when enough bytes wait or the
//! oldest entry has waited long enough. What arrived meanwhile leaves together. Bytes under way are bounded by themselves.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Config,
    join::Inbox,
    queued::Queued,
    transport::{Contents, MAX_PLACES},
};
use crate::otlp::{Framed, Metadata, Signal};

/// Entries that never share a call: marked so, of a connection under suspicion, profiles (their records point into a
/// dictionary that each part carries).
const ALONE: usize = Signal::ALL.len();

/// Values of forwarded headers that may have a lane of their own at a time. Entries with further ones go alone until a lane
/// is empty: correct, and dearer.
const MAX_KEYED: usize = 64;

/// Parts of one lane that open a further place, if enough bytes wait.
const ENOUGH: usize = 4;

/// The interval of searches for entries that nobody waits for. A search looks at the whole queue.
const PURGE_EVERY: Duration = Duration::from_millis(50);

/// Calls of full size that may be under way to one backend. There are more places than that: most calls are small.
const FULL_CALLS: usize = 8;

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
    /// Lanes of entries that carry forwarded headers: only such as carry the same share a call.
    keyed: Vec<Keyed>,
    /// Entries that went alone because there was no lane for what they carry.
    crowded: u64,
    bytes: usize,
    running: usize,
    running_bytes: usize,
    /// Until this time each entry goes in a call of its own.
    unmerged_until: Option<Instant>,
    /// The earliest time of the next search for entries that nobody waits for.
    purge_at: Option<Instant>,
}

/// A lane for one signal and one value of forwarded headers.
#[derive(Debug)]
struct Keyed {
    signal: Signal,
    metadata: Arc<Metadata>,
    entries: VecDeque<Queued>,
}

/// What one call carries.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) signal: Signal,
    pub(super) parts: Vec<Queued>,
    /// Payload bytes.
    pub(super) bytes: usize,
}

impl Rules {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            places: config.places.clamp(1, MAX_PLACES),
            open_bytes: config.open_place_bytes,
            open_after: config.open_place_after,
            max_bytes: config.keys.max_request_size_mib.bytes,
        }
    }

    /// Calls that may run at once.
    pub(super) fn places(self) -> usize {
        self.places
    }
}

impl Queue {
    pub(super) fn new(rules: Rules) -> Self {
        let lanes = std::array::from_fn(|_| VecDeque::new());
        Self {
            rules,
            lanes,
            keyed: Vec::new(),
            crowded: 0,
            bytes: 0,
            running: 0,
            running_bytes: 0,
            unmerged_until: None,
            purge_at: None,
        }
    }

    pub(super) fn push(&mut self, entry: Queued) {
        self.bytes += entry.cost();
        let lane = self.lane_of(&entry);
        self.lane_mut(lane).push_back(entry);
    }

    /// Puts back what was taken: it has waited longest.
    pub(super) fn push_front(&mut self, entry: Queued) {
        self.bytes += entry.cost();
        let lane = self.lane_of(&entry);
        self.lane_mut(lane).push_front(entry);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all().all(VecDeque::is_empty)
    }

    /// Calls that were taken and are not done.
    pub(super) fn running(&self) -> usize {
        self.running
    }

    /// Their payload bytes: never more than [`FULL_CALLS`] × the size that a call may have, a single record aside that is
    /// larger and runs alone.
    pub(super) fn running_bytes(&self) -> usize {
        self.running_bytes
    }

    /// Whether a call may begin now.
    pub(super) fn opens(&self, now: Instant) -> bool {
        let Some((oldest, lane, size)) = self.oldest() else {
            return false;
        };
        self.running == 0
            || (self.running < self.rules.places
                && self.has_room(size)
                && (self.has_enough(lane) || now.saturating_duration_since(oldest) >= self.rules.open_after))
    }

    /// Whether so much waits that a further call, from that lane, is worth it. Large parts wait until four of them make a call:
    /// two cost more (`deploy/docs/performance.md`). A part that is sent alone does not wait.
    fn has_enough(&self, lane: usize) -> bool {
        let Rules { open_bytes, .. } = self.rules;
        let count = || self.all().nth(lane).map_or(0, VecDeque::len);
        self.bytes >= open_bytes && (lane == ALONE || self.bytes / ENOUGH >= open_bytes || count() >= ENOUGH)
    }

    /// Of the lanes the one that has waited longest: since when, where it is, payload bytes of its first entry.
    fn oldest(&self) -> Option<(Instant, usize, usize)> {
        let firsts = self.all().enumerate().filter_map(|(at, lane)| Some((at, lane.front()?)));
        firsts.map(|(at, first)| (first.since, at, first.message.payload_len())).min()
    }

    /// Whether the bytes under way leave room for a call whose first entry has `size` payload bytes. There is always room for
    /// one that runs alone.
    fn has_room(&self, size: usize) -> bool {
        let Rules { max_bytes, .. } = self.rules;
        let sum = self.running_bytes.saturating_add(size.max(max_bytes));
        self.running == 0 || sum <= max_bytes.saturating_mul(FULL_CALLS)
    }

    /// Takes what one call carries, and its place, if one may begin now. Entries that nobody waits for go to `dropped`.
    pub(super) fn take(&mut self, now: Instant, dropped: &mut Vec<Queued>) -> Option<Batch> {
        if !self.opens(now) {
            return None;
        }
        let merge = self.unmerged_until.is_none_or(|until| now >= until);
        let mut parts = Vec::new();
        let mut bytes = 0_usize;
        while parts.is_empty() {
            let (_, at, size) = self.oldest()?;
            if !self.has_room(size) {
                return None;
            }
            let alone = !merge || at == ALONE;
            let Rules { max_bytes, .. } = self.rules;
            let (mut left, lane) = (self.bytes, self.lane_mut(at));
            while let Some(next) = lane.front() {
                let size = next.message.payload_len();
                let fits = !alone && bytes.saturating_add(size) <= max_bytes;
                if !parts.is_empty() && !fits {
                    break;
                }
                let Some(entry) = lane.pop_front() else { break };
                left = left.saturating_sub(entry.cost());
                if is_dead(&entry, now) {
                    dropped.push(entry);
                    if parts.is_empty() {
                        // Whether there is room for the next one is another question.
                        break;
                    }
                } else {
                    bytes += size;
                    parts.push(entry);
                }
            }
            self.bytes = left;
        }
        let signal = parts.first().map(|first: &Queued| first.signal)?;
        self.running += 1;
        self.running_bytes += bytes;
        Some(Batch { signal, parts, bytes })
    }

    /// Sends each entry in a call of its own until then, so that the backend's counts can be attributed.
    pub(super) fn keep_unmerged(&mut self, until: Instant) {
        self.unmerged_until = Some(until);
    }

    /// Gives back the place of one call of that many payload bytes.
    pub(super) fn done(&mut self, bytes: usize) {
        self.running = self.running.saturating_sub(1);
        self.running_bytes = self.running_bytes.saturating_sub(bytes);
    }

    /// Removes all entries that nobody waits for. Does nothing if this was done a moment ago.
    pub(super) fn purge(&mut self, now: Instant) -> Vec<Queued> {
        if self.purge_at.is_some_and(|at| now < at) {
            return Vec::new();
        }
        self.purge_at = Some(now + PURGE_EVERY);
        let mut dead = Vec::new();
        for lane in self.all_mut() {
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
        self.all_mut().flat_map(std::mem::take).collect()
    }

    /// How many entries went alone because there was no lane for what they carry, since this was asked last.
    pub(super) fn take_crowded(&mut self) -> u64 {
        std::mem::take(&mut self.crowded)
    }

    fn all(&self) -> impl Iterator<Item = &VecDeque<Queued>> {
        self.lanes.iter().chain(self.keyed.iter().map(|lane| &lane.entries))
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut VecDeque<Queued>> {
        self.lanes.iter_mut().chain(self.keyed.iter_mut().map(|lane| &mut lane.entries))
    }

    /// The lane of that number; should there be none, the lane of those that go alone, so that no entry is ever lost.
    fn lane_mut(&mut self, at: usize) -> &mut VecDeque<Queued> {
        let [merged @ .., alone] = &mut self.lanes;
        let lane = match at.checked_sub(ALONE) {
            None => merged.get_mut(at),
            Some(0) => None,
            Some(keyed) => self.keyed.get_mut(keyed - 1).map(|lane| &mut lane.entries),
        };
        lane.unwrap_or(alone)
    }

    fn lane_of(&mut self, entry: &Queued) -> usize {
        let inbox = entry.inbox();
        if entry.alone || entry.apart || entry.signal == Signal::Profiles || !inbox.connection.may_merge() {
            return ALONE;
        }
        let Some(metadata) = &inbox.metadata else { return entry.signal.index() };
        match self.keyed_lane(entry.signal, metadata) {
            Some(at) => self.lanes.len() + at,
            None => {
                self.crowded += 1;
                ALONE
            }
        }
    }

    /// The lane of that signal and value; one that is empty takes another value, so that there are as many as wait at once.
    fn keyed_lane(&mut self, signal: Signal, metadata: &Arc<Metadata>) -> Option<usize> {
        let is_it = |lane: &Keyed| lane.signal == signal && lane.metadata == *metadata;
        if let Some(at) = self.keyed.iter().position(is_it) {
            return Some(at);
        }
        if let Some(at) = self.keyed.iter().position(|lane| lane.entries.is_empty()) {
            let lane = self.keyed.get_mut(at)?;
            (lane.signal, lane.metadata) = (signal, Arc::clone(metadata));
            return Some(at);
        }
        (self.keyed.len() < MAX_KEYED).then(|| {
            self.keyed.push(Keyed { signal, metadata: Arc::clone(metadata), entries: VecDeque::new() });
            self.keyed.len() - 1
        })
    }
}

// === impl Batch ===

impl Contents for Batch {
    /// The inboxes of the requests. They hold the requests' shares of the memory budget, which cover the bytes that HTTP/2 still
    /// has.
    type Held = Vec<Arc<Inbox>>;

    fn signal(&self) -> Signal {
        self.signal
    }

    fn metadata(&self) -> Option<&Metadata> {
        // Parts of one call carry the same.
        self.parts.first().and_then(|part| part.inbox().metadata.as_deref())
    }

    fn deadline(&self) -> Option<Instant> {
        self.parts.iter().map(|part| part.inbox().deadline).max()
    }

    fn payload_len(&self) -> usize {
        self.bytes
    }

    fn messages(&self) -> impl ExactSizeIterator<Item = &Framed> {
        self.parts.iter().map(|part| &part.message)
    }

    fn hold(&self) -> Self::Held {
        self.parts.iter().map(|part| Arc::clone(part.inbox())).collect()
    }
}

fn is_dead(entry: &Queued, now: Instant) -> bool {
    entry.inbox().is_abandoned() || entry.inbox().deadline <= now
}
