//! Counters of a sink, and the spans it received if tracking is on.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    hash::{BuildHasherDefault, Hasher},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use serde::Serialize;

use super::journal::NewEntry;
use crate::{
    otlp::Signal,
    tools::{
        ids::{SpanPosition, TraceKey},
        walk::SpanIds,
    },
};

/// A trace ID.
pub type TraceId = [u8; 16];
/// A span ID.
pub type SpanId = [u8; 8];

/// Counters of one sink.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Listening address.
    pub address: String,
    /// Accepted connections.
    pub connections: u64,
    /// Requests, including failed ones.
    pub requests: u64,
    /// Requests refused because the behaviour says so.
    pub failed_requests: u64,
    /// Requests refused because they were too large, malformed or compressed with an unknown codec.
    pub invalid_requests: u64,
    /// Requests whose stream ended early.
    pub broken_requests: u64,
    /// Bytes of request bodies as received.
    pub wire_bytes: u64,
    /// Spans accepted, duplicates included.
    pub spans: u64,
    /// Spans rejected by `partial_success`.
    pub rejected_spans: u64,
    /// Spans with a trace ID or span ID of the wrong length.
    pub invalid_ids: u64,
    /// Spans made by other generators.
    pub foreign_spans: u64,
    /// Records of the other signals, under the keys `data_points`, `log_records` and `profiles`.
    pub records: BTreeMap<&'static str, RecordsReport>,
    /// Numbers that require tracking; `None` without it.
    #[serde(flatten)]
    pub tracked: Option<TrackedReport>,
}

/// Records of one signal other than traces. They are counted, but not identified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RecordsReport {
    /// Records accepted.
    pub taken: u64,
    /// Records rejected by `partial_success`.
    pub rejected: u64,
}

/// Numbers that are known when the IDs of all spans are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TrackedReport {
    /// Traces of which at least one span was received.
    pub traces: u64,
    /// Traces of our generator of which not all spans were received.
    pub traces_partial: u64,
    /// Spans that were received before.
    pub duplicates: u64,
    /// Spans that were only counted because `max_tracked_traces` was reached.
    pub untracked_spans: u64,
}

/// A trace of our generator, as seen by one sink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeenTrace {
    /// One bit for each span received.
    pub bits: u64,
    /// Number of spans of the whole trace.
    pub count: u8,
}

impl SeenTrace {
    /// Returns whether all spans were received.
    pub fn is_whole(self) -> bool {
        self.bits == SpanPosition::full(self.count)
    }
}

/// The records of one request, collected before a lock is taken. For signals other than traces, `spans` counts their
/// records.
#[derive(Debug)]
pub(super) struct Batch {
    signal: Signal,
    detail: Detail,
    spans: u64,
    rejected: u64,
    invalid: u64,
    own: Vec<(TraceKey, SpanPosition)>,
    foreign: Vec<(TraceId, SpanId)>,
    foreign_spans: u64,
    /// Entries for the journal; `None` without a journal.
    journal_entries: Option<Vec<NewEntry>>,
}

/// How much of each span is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    /// Nothing; spans are counted.
    Count,
    /// The IDs, to decide whether to reject the span.
    Decide,
    /// The IDs, which are stored.
    Keep,
}

impl Batch {
    pub(super) fn new(signal: Signal, detail: Detail, notes: bool) -> Self {
        let (own, foreign, journal_entries) = (Vec::new(), Vec::new(), notes.then(Vec::new));
        Self { signal, detail, spans: 0, rejected: 0, invalid: 0, own, foreign, foreign_spans: 0, journal_entries }
    }

    /// Adds a span, or counts it as rejected if `reject` returns true for its ID.
    pub(super) fn add(&mut self, ids: &SpanIds, reject: impl Fn(u64) -> bool) {
        if self.detail == Detail::Count {
            self.spans += 1;
            return;
        }
        let (Some(trace), Some(span)) = (ids.trace.exactly(), ids.span.exactly()) else {
            self.spans += 1;
            self.invalid += 1;
            return;
        };
        if reject(u64::from_be_bytes(span)) {
            self.rejected += 1;
            return;
        }
        self.spans += 1;
        if let Some(journal_entries) = &mut self.journal_entries {
            journal_entries.push((trace, span, ids.end.exactly().map_or(0, u64::from_le_bytes)));
        }
        match TraceKey::from_bytes(trace).and_then(|key| Some((key, key.position_of(span)?))) {
            Some(own) if self.detail == Detail::Keep => self.own.push(own),
            Some(_) => {}
            None => {
                self.foreign_spans += 1;
                if self.detail == Detail::Keep {
                    self.foreign.push((trace, span));
                }
            }
        }
    }

    /// Counts a record that has no ID, as rejected if `reject` returns true for its index in the request.
    pub(super) fn count(&mut self, reject: impl Fn(u64) -> bool) {
        let count = if reject(self.spans + self.rejected) { &mut self.rejected } else { &mut self.spans };
        *count += 1;
    }

    pub(super) fn rejected(&self) -> u64 {
        self.rejected
    }

    /// Returns the entries for the journal.
    pub(super) fn journal_entries(&self) -> &[NewEntry] {
        self.journal_entries.as_deref().unwrap_or_default()
    }
}

/// Counters of one sink that requests update.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) connections: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) invalid_requests: AtomicU64,
    pub(super) broken: AtomicU64,
    pub(super) wire_bytes: AtomicU64,
    spans: AtomicU64,
    rejected: AtomicU64,
    invalid: AtomicU64,
    foreign: AtomicU64,
    others: [Others; OTHERS.len()],
    tracked: Option<Mutex<Tracked>>,
}

/// The signals other than traces, and the names of their records in a report.
const OTHERS: [(Signal, &str); 3] =
    [(Signal::Metrics, "data_points"), (Signal::Logs, "log_records"), (Signal::Profiles, "profiles")];

/// Counters of a signal other than traces.
#[derive(Debug, Default)]
struct Others {
    taken: AtomicU64,
    rejected: AtomicU64,
}

type Keyed<V> = HashMap<TraceKey, V, BuildHasherDefault<PassThroughHasher>>;

#[derive(Debug, Default)]
struct Tracked {
    own: Keyed<SeenTrace>,
    foreign: HashMap<TraceId, HashMap<SpanId, ()>>,
    duplicates: u64,
    untracked: u64,
    limit: usize,
}

/// Passes a `u64` on unchanged: [`TraceKey`] hashes as one `u64` that is well distributed already.
#[derive(Default)]
struct PassThroughHasher(u64);

impl Hasher for PassThroughHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

impl Counters {
    pub(super) fn new(max_tracked_traces: Option<usize>) -> Self {
        let tracked = max_tracked_traces.map(|limit| Mutex::new(Tracked { limit, ..Tracked::default() }));
        Self { tracked, ..Self::default() }
    }

    /// Returns how much of each span must be read. `decides` says whether spans may be rejected.
    pub(super) fn detail(&self, decides: bool) -> Detail {
        match (&self.tracked, decides) {
            (Some(_), _) => Detail::Keep,
            (None, true) => Detail::Decide,
            (None, false) => Detail::Count,
        }
    }

    pub(super) fn commit(&self, batch: &Batch) {
        if let Some(n) = OTHERS.iter().position(|(signal, _)| *signal == batch.signal)
            && let Some(others) = self.others.get(n)
        {
            others.taken.fetch_add(batch.spans, Relaxed);
            others.rejected.fetch_add(batch.rejected, Relaxed);
            return;
        }
        self.spans.fetch_add(batch.spans, Relaxed);
        for (counter, value) in
            [(&self.rejected, batch.rejected), (&self.invalid, batch.invalid), (&self.foreign, batch.foreign_spans)]
        {
            if value > 0 {
                counter.fetch_add(value, Relaxed);
            }
        }
        if let Some(tracked) = &self.tracked {
            tracked.lock().unwrap_or_else(PoisonError::into_inner).add(batch);
        }
    }

    pub(super) fn report(&self, address: String) -> Report {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        Report {
            address,
            connections: get(&self.connections),
            requests: get(&self.requests),
            failed_requests: get(&self.failed),
            invalid_requests: get(&self.invalid_requests),
            broken_requests: get(&self.broken),
            wire_bytes: get(&self.wire_bytes),
            spans: get(&self.spans),
            rejected_spans: get(&self.rejected),
            invalid_ids: get(&self.invalid),
            foreign_spans: get(&self.foreign),
            records: OTHERS
                .iter()
                .zip(&self.others)
                .map(|((_, name), of)| (*name, RecordsReport { taken: get(&of.taken), rejected: get(&of.rejected) }))
                .collect(),
            tracked: self.with_tracked(|tracked| tracked.report()),
        }
    }

    /// Returns the traces of our generator.
    pub(super) fn own_traces(&self) -> Vec<(TraceKey, SeenTrace)> {
        self.with_tracked(|tracked| tracked.own.iter().map(|(key, seen)| (*key, *seen)).collect()).unwrap_or_default()
    }

    /// Returns the spans received, by trace.
    pub(super) fn seen(&self) -> BTreeMap<TraceId, Vec<SpanId>> {
        self.with_tracked(|tracked| tracked.seen()).unwrap_or_default()
    }

    fn with_tracked<T>(&self, read: impl FnOnce(&Tracked) -> T) -> Option<T> {
        self.tracked.as_ref().map(|tracked| read(&tracked.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Tracked {
    fn add(&mut self, batch: &Batch) {
        for (key, place) in &batch.own {
            let known = self.own.len() + self.foreign.len();
            let trace = match self.own.entry(*key) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) if known < self.limit => entry.insert(SeenTrace { bits: 0, count: place.count }),
                Entry::Vacant(_) => {
                    self.untracked += 1;
                    continue;
                }
            };
            self.duplicates += u64::from(trace.bits & place.bit() != 0);
            trace.bits |= place.bit();
        }
        for (trace, span) in &batch.foreign {
            if self.own.len() + self.foreign.len() >= self.limit && !self.foreign.contains_key(trace) {
                self.untracked += 1;
                continue;
            }
            let again = self.foreign.entry(*trace).or_default().insert(*span, ()).is_some();
            self.duplicates += u64::from(again);
        }
    }

    fn report(&self) -> TrackedReport {
        let partial = self.own.values().filter(|trace| !trace.is_whole()).count();
        TrackedReport {
            traces: (self.own.len() + self.foreign.len()) as u64,
            traces_partial: partial as u64,
            duplicates: self.duplicates,
            untracked_spans: self.untracked,
        }
    }

    fn seen(&self) -> BTreeMap<TraceId, Vec<SpanId>> {
        let own = self.own.iter().map(|(key, trace)| {
            let places = (0..trace.count).map(|index| SpanPosition { index, count: trace.count });
            let spans = places.filter(|place| trace.bits & place.bit() != 0).map(|place| key.span_id(place)).collect();
            (key.to_bytes(), spans)
        });
        let foreign = self.foreign.iter().map(|(trace, spans)| {
            let mut spans: Vec<SpanId> = spans.keys().copied().collect();
            spans.sort_unstable();
            (*trace, spans)
        });
        let mut seen: BTreeMap<TraceId, Vec<SpanId>> = own.collect();
        for (trace, spans) in foreign {
            seen.entry(trace).or_default().extend(spans);
        }
        seen
    }
}
