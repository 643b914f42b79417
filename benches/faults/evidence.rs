//! Compares what clients were answered with what sinks recorded.

use std::{collections::HashMap, ops::Range};

use anyhow::Result;
use spanring::{
    ring::Table,
    tools::{
        load::{Accepted, Failed, LoadRun},
        sink::{JournalEntry, SpanId, TraceId, read_journal},
    },
};

use crate::world::World;

/// A second in the journals' unit, nanoseconds.
pub(crate) const SECOND: u64 = 1_000_000_000;

/// A span that a sink received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) sink: usize,
    /// The sink that owns the trace while no sink is ejected.
    pub(crate) owner: Option<usize>,
    pub(crate) entry: JournalEntry,
}

pub(crate) struct Evidence {
    pub(crate) run: LoadRun,
    pub(crate) arrivals: Vec<Arrival>,
    counts: HashMap<(TraceId, SpanId), u32>,
    table: Table,
    owners: HashMap<TraceId, Option<usize>>,
}

impl Evidence {
    /// Reads the journals. The sinks' processes may have ended.
    pub(crate) fn gather(world: &World, run: LoadRun) -> Result<Self> {
        let table = world.table(&[])?;
        let mut evidence = Self { run, arrivals: Vec::new(), counts: HashMap::new(), table, owners: HashMap::new() };
        for (sink, place) in world.sinks.iter().enumerate() {
            for entry in read_journal(&place.journal)? {
                let owner = evidence.owner(world, entry.trace);
                *evidence.counts.entry((entry.trace, entry.span)).or_default() += 1;
                evidence.arrivals.push(Arrival { sink, owner, entry });
            }
        }
        Ok(evidence)
    }

    /// Returns the sink that owns a trace while no sink is ejected.
    pub(crate) fn owner(&mut self, world: &World, trace: TraceId) -> Option<usize> {
        let table = &self.table;
        *self.owners.entry(trace).or_insert_with(|| world.sink_of(table, &trace))
    }

    fn acknowledged_spans(&self) -> impl Iterator<Item = (TraceId, SpanId)> {
        self.run.acknowledged().map(|(key, place)| (key.to_bytes(), key.span_id(place)))
    }

    /// Number of acknowledged spans.
    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged_spans().count()
    }

    /// Number of acknowledged spans that no sink received.
    pub(crate) fn missing(&self) -> usize {
        self.acknowledged_spans().filter(|span| !self.counts.contains_key(span)).count()
    }

    /// The acknowledged requests.
    pub(crate) fn accepted(&self) -> impl Iterator<Item = &Accepted> {
        self.run.accepted.iter()
    }

    /// The failed requests, in the order of their answers.
    pub(crate) fn failures(&self) -> Vec<&Failed> {
        let mut failures: Vec<_> = self.run.failed.iter().collect();
        failures.sort_by_key(|failed| failed.answered);
        failures
    }

    /// The answer to the first failed request.
    pub(crate) fn first_failure(&self) -> &str {
        self.failures().first().map_or("none", |failed| failed.answer.as_str())
    }

    /// Of the spans sent in this time, the share that was received more than once.
    pub(crate) fn twice(&self, sent: Range<u64>) -> f64 {
        let (mut spans, mut twice) = (0_u32, 0_u32);
        for arrival in self.arrivals.iter().filter(|arrival| sent.contains(&arrival.entry.sent)) {
            // A span that was received n times occurs n times here.
            let count = self.counts.get(&(arrival.entry.trace, arrival.entry.span)).copied().unwrap_or(1);
            spans += 1;
            twice += u32::from(count > 1);
        }
        // Spans received twice were counted twice in both numbers.
        let distinct = spans - twice / 2;
        if distinct == 0 { 0.0 } else { f64::from(twice / 2) / f64::from(distinct) }
    }

    /// Number of repeated receptions of a span by the sinks that `chosen` selects.
    pub(crate) fn duplicates(&self, chosen: impl Fn(usize) -> bool) -> usize {
        let mut seen = HashMap::<(TraceId, SpanId), u32>::new();
        let mut again = 0;
        for arrival in self.arrivals.iter().filter(|arrival| chosen(arrival.sink)) {
            let count = seen.entry((arrival.entry.trace, arrival.entry.span)).or_default();
            again += usize::from(*count > 0);
            *count += 1;
        }
        again
    }

    /// The requests that failed in this time.
    pub(crate) fn failed(&self, answered: Range<u64>) -> impl Iterator<Item = &Failed> {
        self.run.failed.iter().filter(move |failed| answered.contains(&failed.answered))
    }

    /// The arrivals of spans sent in this time that `chosen` selects.
    pub(crate) fn sent(&self, sent: Range<u64>, chosen: impl Fn(&Arrival) -> bool) -> impl Iterator<Item = &Arrival> {
        self.arrivals.iter().filter(move |arrival| sent.contains(&arrival.entry.sent) && chosen(arrival))
    }

    /// The spans sent in this time whose owners `chosen` selects, as `(trace, span)`.
    pub(crate) fn offered(
        &mut self,
        world: &World,
        sent: Range<u64>,
        chosen: impl Fn(usize) -> bool,
    ) -> Vec<(TraceId, SpanId)> {
        let accepted = self.run.accepted.iter().map(|accepted| (accepted.ticket, accepted.sent));
        let failed = self.run.failed.iter().map(|failed| (failed.ticket, failed.sent));
        let tickets: Vec<u64> =
            accepted.chain(failed).filter(|(_, at)| sent.contains(at)).map(|(ticket, _)| ticket).collect();
        let spans: Vec<_> = tickets.iter().flat_map(|ticket| self.run.bodies.spans(*ticket)).collect();
        let mut offered = Vec::new();
        for (key, place) in spans {
            let trace = key.to_bytes();
            if self.owner(world, trace).is_some_and(&chosen) {
                offered.push((trace, key.span_id(place)));
            }
        }
        offered
    }
}

/// A quantile of the time from send to sink, in milliseconds.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "for reports")]
pub(crate) fn latency_ms<'a>(arrivals: impl Iterator<Item = &'a Arrival>, quantile: f64) -> f64 {
    let mut latencies: Vec<u64> =
        arrivals.map(|arrival| arrival.entry.arrived.saturating_sub(arrival.entry.sent)).collect();
    latencies.sort_unstable();
    let at = (latencies.len().saturating_sub(1) as f64 * quantile) as usize;
    latencies.get(at).copied().unwrap_or(0) as f64 / 1e6
}

/// `part ÷ whole`; 1 if `whole` is 0.
#[expect(clippy::cast_precision_loss, reason = "for reports")]
pub(crate) fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

/// The current time in nanoseconds since 1970.
pub(crate) fn now() -> u64 {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX)
}
