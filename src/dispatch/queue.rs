//! The queue of one backend. It decides when a call may begin and which parts it carries. It uses no clock, no lock and no I/O.
//!
//! This is group commit with several places. While no call is in flight, a call begins as soon as a part is queued. A further
//! call begins when enough bytes wait, or when the oldest entry has waited long enough. It carries all entries that arrived in
//! the meantime, up to its maximum size. The bytes in flight have a separate limit.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Config,
    join::Inbox,
    queued::Queued,
    transport::{Contents, MAX_PLACES},
};
use crate::{
    codec::Encoding,
    otlp::{Framed, Metadata, Signal},
    settings::Compression,
};

/// The encodings of calls to one backend. Entries for calls of different encodings have different lanes.
const ENCODINGS: [Option<Encoding>; 3] = [None, Some(Encoding::Gzip), Some(Encoding::Zstd)];

/// The lane of entries that never share a call: those marked so, those of client connections whose data was refused, and
/// profiles, since their records point into a dictionary that each part carries.
const ALONE: usize = Signal::ALL.len() * ENCODINGS.len();

/// A request that came compressed, and has fewer bytes than this once inflated, shares a call with others and is
/// compressed anew with them. From here on that takes longer than a call of its own, which takes some 20 µs (rows of 10
/// and 100 spans in `deploy/docs/performance.md`).
const PASSED_ON_FROM: usize = 8 << 10;

/// Maximum number of different forwarded headers that have their own lanes. Entries with others are sent alone until a lane is
/// empty, which is correct but costs more.
const MAX_KEYED: usize = 64;

/// Number of parts in one lane that begin a further call, if enough bytes wait.
const ENOUGH: usize = 4;

/// Minimum time between two searches for abandoned and late entries. A search goes through the whole queue.
const PURGE_EVERY: Duration = Duration::from_millis(50);

/// Number of calls of maximum size whose bytes may be in flight to one backend. There are more places than that, because most
/// calls are small.
const FULL_CALLS: usize = 8;

/// The settings of [`Config`] that a queue uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    places: usize,
    open_bytes: usize,
    open_after: Duration,
    max_bytes: usize,
    compression: Compression,
}

/// The parts that wait for one backend.
#[derive(Debug)]
pub(super) struct Queue {
    rules: Rules,
    /// One lane for each signal and encoding whose parts may be merged, and one for those that go alone.
    lanes: [VecDeque<Queued>; ALONE + 1],
    /// Lanes of entries with forwarded headers. Only entries with the same headers can share a call.
    keyed: Vec<Keyed>,
    /// The number of entries that are sent alone because there was no lane for their headers.
    crowded: u64,
    /// The number of bytes that wait.
    bytes: usize,
    /// The number of calls in flight.
    running: usize,
    /// The payload bytes of the calls in flight.
    running_bytes: usize,
    /// Until this time each entry is sent in a call of its own.
    unmerged_until: Option<Instant>,
    /// The earliest time of the next search for abandoned and late entries.
    purge_at: Option<Instant>,
}

/// A lane for one signal, one encoding and one set of forwarded headers.
#[derive(Debug)]
struct Keyed {
    signal: Signal,
    encoding: Option<Encoding>,
    metadata: Arc<Metadata>,
    entries: VecDeque<Queued>,
}

/// The parts of one call.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) signal: Signal,
    pub(super) parts: Vec<Queued>,
    /// The payload bytes of all parts.
    pub(super) bytes: usize,
}

impl Rules {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            places: config.places.clamp(1, MAX_PLACES),
            open_bytes: config.open_place_bytes,
            open_after: config.open_place_after,
            max_bytes: config.keys.max_request_size_mib.bytes,
            compression: config.keys.compression,
        }
    }

    /// The maximum number of calls in flight.
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

    /// Puts an entry back that was taken before, in front of the others, since it has waited longest.
    pub(super) fn push_front(&mut self, entry: Queued) {
        self.bytes += entry.cost();
        let lane = self.lane_of(&entry);
        self.lane_mut(lane).push_front(entry);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all().all(VecDeque::is_empty)
    }

    /// The number of calls in flight.
    pub(super) fn running(&self) -> usize {
        self.running
    }

    /// The payload bytes of the calls in flight: at most [`FULL_CALLS`] times the maximum size of a call. Only a single record
    /// that is larger may exceed this, and then its call is the only one in flight.
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

    /// Whether enough bytes wait for a further call from this lane. Large parts wait until there are four of them, since calls of
    /// two cost more (`deploy/docs/performance.md`). A part that is sent alone need not wait for others.
    fn has_enough(&self, lane: usize) -> bool {
        let Rules { open_bytes, .. } = self.rules;
        let count = || self.all().nth(lane).map_or(0, VecDeque::len);
        self.bytes >= open_bytes && (self.goes_alone(lane) || self.bytes / ENOUGH >= open_bytes || count() >= ENOUGH)
    }

    /// Whether the first entry of this lane gets a call of its own. A request that is passed on as it came does while there are
    /// places for all that wait in its lane. If there are not, the backend is slow, and few large calls are faster.
    fn goes_alone(&self, lane: usize) -> bool {
        let Rules { compression, places, .. } = self.rules;
        let is_passed_on = |entry: &Queued| {
            let is_long = entry.message.payload_len() >= PASSED_ON_FROM;
            is_long && entry.as_it_came(compression.encoding_for(entry.encoding)).is_some()
        };
        let has_places = |entries: &VecDeque<Queued>| entries.len() + self.running <= places;
        let passes_on = |entries: &VecDeque<Queued>| has_places(entries) && entries.front().is_some_and(is_passed_on);
        lane == ALONE || self.all().nth(lane).is_some_and(passes_on)
    }

    /// Finds the lane whose first entry has waited longest. Returns the time since when it waits, the number of the lane, and the
    /// payload bytes of the entry.
    fn oldest(&self) -> Option<(Instant, usize, usize)> {
        let firsts = self.all().enumerate().filter_map(|(at, lane)| Some((at, lane.front()?)));
        firsts.map(|(at, first)| (first.since, at, first.message.payload_len())).min()
    }

    /// Whether the limit of bytes in flight allows a call whose first entry has `size` payload bytes. If no other call is in
    /// flight, it is always allowed.
    fn has_room(&self, size: usize) -> bool {
        let Rules { max_bytes, .. } = self.rules;
        let sum = self.running_bytes.saturating_add(size.max(max_bytes));
        self.running == 0 || sum <= max_bytes.saturating_mul(FULL_CALLS)
    }

    /// Takes the parts of a call, and its place, if a call may begin now. Abandoned and late entries are added to `dropped`.
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
            let alone = !merge || self.goes_alone(at);
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
                        // The next entry may be larger, so its room has to be checked.
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

    /// Sends each entry in a call of its own until this time, so that the backend's counts can be attributed.
    pub(super) fn keep_unmerged(&mut self, until: Instant) {
        self.unmerged_until = Some(until);
    }

    /// Gives back the place of a call with this number of payload bytes.
    pub(super) fn done(&mut self, bytes: usize) {
        self.running = self.running.saturating_sub(1);
        self.running_bytes = self.running_bytes.saturating_sub(bytes);
    }

    /// Removes all abandoned and late entries, and returns them. Does nothing if the last search was a moment ago.
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

    /// Removes all entries, and returns them.
    pub(super) fn drain(&mut self) -> Vec<Queued> {
        self.bytes = 0;
        self.all_mut().flat_map(std::mem::take).collect()
    }

    /// Takes the count of entries that are sent alone because there was no lane for their headers.
    pub(super) fn take_crowded(&mut self) -> u64 {
        std::mem::take(&mut self.crowded)
    }

    fn all(&self) -> impl Iterator<Item = &VecDeque<Queued>> {
        self.lanes.iter().chain(self.keyed.iter().map(|lane| &lane.entries))
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut VecDeque<Queued>> {
        self.lanes.iter_mut().chain(self.keyed.iter_mut().map(|lane| &mut lane.entries))
    }

    /// Returns the lane with this number. If there is none, returns the lane of entries that are sent alone, so that no entry is
    /// lost.
    fn lane_mut(&mut self, at: usize) -> &mut VecDeque<Queued> {
        let [merged @ .., alone] = &mut self.lanes;
        let lane = match at.checked_sub(ALONE) {
            None => merged.get_mut(at),
            Some(0) => None,
            Some(keyed) => self.keyed.get_mut(keyed - 1).map(|lane| &mut lane.entries),
        };
        lane.unwrap_or(alone)
    }

    /// Returns the number of the lane for an entry.
    fn lane_of(&mut self, entry: &Queued) -> usize {
        let inbox = entry.inbox();
        let encoding = self.rules.compression.encoding_for(entry.encoding);
        if entry.alone
            || entry.apart
            || entry.reset_elsewhere
            || entry.signal == Signal::Profiles
            || !inbox.connection.may_merge()
        {
            return ALONE;
        }
        let Some(metadata) = &inbox.metadata else {
            let encoding = ENCODINGS.iter().position(|other| *other == encoding).unwrap_or_default();
            return entry.signal.index() + Signal::ALL.len() * encoding;
        };
        match self.keyed_lane(entry.signal, encoding, metadata) {
            Some(at) => self.lanes.len() + at,
            None => {
                self.crowded += 1;
                ALONE
            }
        }
    }

    /// Returns the index of the lane for this signal, encoding and these headers. An empty lane is reused for other headers.
    /// Returns `None` if all lanes are in use.
    fn keyed_lane(&mut self, signal: Signal, encoding: Option<Encoding>, metadata: &Arc<Metadata>) -> Option<usize> {
        let is_it = |lane: &Keyed| (lane.signal, lane.encoding) == (signal, encoding) && lane.metadata == *metadata;
        if let Some(at) = self.keyed.iter().position(is_it) {
            return Some(at);
        }
        if let Some(at) = self.keyed.iter().position(|lane| lane.entries.is_empty()) {
            let lane = self.keyed.get_mut(at)?;
            (lane.signal, lane.encoding, lane.metadata) = (signal, encoding, Arc::clone(metadata));
            return Some(at);
        }
        (self.keyed.len() < MAX_KEYED).then(|| {
            let (metadata, entries) = (Arc::clone(metadata), VecDeque::new());
            self.keyed.push(Keyed { signal, encoding, metadata, entries });
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
        // All parts of a call have the same headers.
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

    fn encoding(&self, compression: Compression) -> Option<Encoding> {
        // All parts of a call have the same one.
        compression.encoding_for(self.parts.first().and_then(|part| part.encoding))
    }

    fn as_it_came(&self, encoding: Encoding) -> Option<Bytes> {
        match self.parts.as_slice() {
            [only] => only.as_it_came(Some(encoding)).cloned(),
            _ => None,
        }
    }

    fn hold(&self) -> Self::Held {
        self.parts.iter().map(|part| Arc::clone(part.inbox())).collect()
    }
}

/// Whether the request of an entry was abandoned, or its deadline has passed.
fn is_dead(entry: &Queued, now: Instant) -> bool {
    entry.inbox().is_abandoned() || entry.inbox().deadline <= now
}
