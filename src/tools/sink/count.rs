//! What a sink saw: counters for everybody, and the spans themselves when they are tracked.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    hash::{BuildHasherDefault, Hasher},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use serde::Serialize;

use super::journal::Noted;
use crate::{
    otlp::Signal,
    tools::{
        ids::{Place, TraceKey},
        walk::SpanIds,
    },
};

/// A trace ID.
pub type TraceId = [u8; 16];
/// A span ID.
pub type SpanId = [u8; 8];

/// What one sink, or several together, saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Where it listened.
    pub address: String,
    /// Connections taken.
    pub connections: u64,
    /// Requests, of any outcome.
    pub requests: u64,
    /// Requests refused because a failure was asked for.
    pub failed_requests: u64,
    /// Requests refused because they were too large, malformed or in an unknown codec.
    pub invalid_requests: u64,
    /// Requests that ended before they were whole.
    pub broken_requests: u64,
    /// Bytes of messages, as they came.
    pub wire_bytes: u64,
    /// Spans taken, those that came again included.
    pub spans: u64,
    /// Spans taken back by `partial_success`.
    pub rejected_spans: u64,
    /// Spans whose trace or span ID has a wrong length.
    pub invalid_ids: u64,
    /// Spans that other generators made.
    pub foreign_spans: u64,
    /// Records of the other signals: `data_points`, `log_records` and `profiles`.
    pub records: BTreeMap<&'static str, RecordsReport>,
    /// What only tracking knows; `None` when it is off.
    #[serde(flatten)]
    pub tracked: Option<TrackedReport>,
}

/// Records of one signal other than traces. They are counted, not told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RecordsReport {
    /// Those that were taken.
    pub taken: u64,
    /// Those that `partial_success` took back.
    pub rejected: u64,
}

/// What a sink knows when it keeps every span's ID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TrackedReport {
    /// Traces of which at least one span came.
    pub traces: u64,
    /// Traces of our generator of which not every span came.
    pub traces_partial: u64,
    /// Spans that came once more.
    pub duplicates: u64,
    /// Spans that were only counted, since `max_tracked_traces` was reached.
    pub untracked_spans: u64,
}

/// One trace of our generator, as one sink saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeenTrace {
    /// One bit for each span.
    pub bits: u64,
    /// How many spans it has.
    pub count: u8,
}

impl SeenTrace {
    /// Whether every span came.
    pub fn is_whole(self) -> bool {
        self.bits == Place::full(self.count)
    }
}

/// The records of one request, gathered before any lock is taken. `spans` counts those of any signal.
#[derive(Debug)]
pub(super) struct Batch {
    signal: Signal,
    detail: Detail,
    spans: u64,
    rejected: u64,
    invalid: u64,
    own: Vec<(TraceKey, Place)>,
    foreign: Vec<(TraceId, SpanId)>,
    foreign_spans: u64,
    /// What goes into the journal, if there is one.
    noted: Option<Vec<Noted>>,
}

/// What is wanted of each span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    /// That it was there.
    Count,
    /// Its IDs, to decide on.
    Decide,
    /// Its IDs, to keep.
    Keep,
}

impl Batch {
    pub(super) fn new(signal: Signal, detail: Detail, notes: bool) -> Self {
        let (own, foreign, noted) = (Vec::new(), Vec::new(), notes.then(Vec::new));
        Self { signal, detail, spans: 0, rejected: 0, invalid: 0, own, foreign, foreign_spans: 0, noted }
    }

    /// Takes a span, unless `reject` says that it is one of those to refuse.
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
        if let Some(noted) = &mut self.noted {
            noted.push((trace, span, ids.end.exactly().map_or(0, u64::from_le_bytes)));
        }
        match TraceKey::from_bytes(trace).and_then(|key| Some((key, key.place_of(span)?))) {
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

    /// Takes a record that has no ID of its own, unless `reject` says by its place in the request that it is one to refuse.
    pub(super) fn count(&mut self, reject: impl Fn(u64) -> bool) {
        let count = if reject(self.spans + self.rejected) { &mut self.rejected } else { &mut self.spans };
        *count += 1;
    }

    pub(super) fn rejected(&self) -> u64 {
        self.rejected
    }

    /// What goes into the journal.
    pub(super) fn noted(&self) -> &[Noted] {
        self.noted.as_deref().unwrap_or_default()
    }
}

/// The counters of one sink.
#[derive(Debug, Default)]
pub(super) struct Tally {
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

/// The other signals, and what their records are called.
const OTHERS: [(Signal, &str); 3] =
    [(Signal::Metrics, "data_points"), (Signal::Logs, "log_records"), (Signal::Profiles, "profiles")];

/// The counters of another signal.
#[derive(Debug, Default)]
struct Others {
    taken: AtomicU64,
    rejected: AtomicU64,
}

type Keyed<V> = HashMap<TraceKey, V, BuildHasherDefault<Spread>>;

#[derive(Debug, Default)]
struct Tracked {
    own: Keyed<SeenTrace>,
    foreign: HashMap<TraceId, HashMap<SpanId, ()>>,
    duplicates: u64,
    untracked: u64,
    limit: usize,
}

/// Passes a number on that is spread already: [`TraceKey`] hashes as one `u64`.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
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

impl Tally {
    pub(super) fn new(max_tracked_traces: Option<usize>) -> Self {
        let tracked = max_tracked_traces.map(|limit| Mutex::new(Tracked { limit, ..Tracked::default() }));
        Self { tracked, ..Self::default() }
    }

    /// What a batch must hold.
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

    /// The traces of our generator.
    pub(super) fn own_traces(&self) -> Vec<(TraceKey, SeenTrace)> {
        self.with_tracked(|tracked| tracked.own.iter().map(|(key, seen)| (*key, *seen)).collect()).unwrap_or_default()
    }

    /// Every span that came, by trace.
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
            let places = (0..trace.count).map(|index| Place { index, count: trace.count });
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
