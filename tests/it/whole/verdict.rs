//! Counts how many traces are whole: traces of which at least one backend got every span.
//!
//! A backend that restarts has lost what it held, so it counts as a new backend from then on.

use std::time::Duration;

use serde::Serialize;
use spanring::tools::ids::SpanPosition;

use super::traces::Trace;

/// How often each span of one trace was delivered, and where.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deliveries {
    /// The spans that each backend got, as a bit set.
    by_backend: Vec<(usize, u64)>,
    /// By position, how often a span was delivered.
    times: Vec<u64>,
    /// When the last span came.
    last: Duration,
    /// Whether a backend with a span of it ended before the last span came, so that no proxy could keep it whole.
    is_excused: bool,
}

/// A change of the pool.
#[derive(Clone, Debug)]
pub(crate) struct Change<M> {
    /// When the first replica could know of it.
    pub(crate) at: Duration,
    /// Says whether a trace has another owner since then.
    pub(crate) moved: M,
}

/// Which traces and spans count as near a change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// A trace is near a change if it had a span within this time of it.
    pub(crate) near: Duration,
    /// A span is late if it started this time after the last change.
    pub(crate) later: Duration,
}

/// Traces of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Traces {
    pub(crate) traces: u64,
    /// Traces of which at least one backend got every span.
    pub(crate) whole: u64,
    /// Traces of which every span was delivered, but not all of them to one backend.
    pub(crate) split: u64,
    /// Traces of which a span was not delivered at all.
    pub(crate) incomplete: u64,
    /// Those of the split and incomplete traces that had a span on a backend which stopped before their last span came.
    pub(crate) excusable: u64,
}

/// Spans of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Spans {
    pub(crate) spans: u64,
    /// Spans that were delivered more than once.
    pub(crate) twice: u64,
    pub(crate) deliveries: u64,
}

/// What became of all traces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Verdict {
    /// Traces near a change.
    pub(crate) near: Traces,
    /// Those of them whose owner the change moved.
    pub(crate) moved: Traces,
    /// All other traces.
    pub(crate) far: Traces,
    /// Spans near a change.
    pub(crate) near_spans: Spans,
    /// Spans long after the last change.
    pub(crate) later_spans: Spans,
    pub(crate) all_spans: Spans,
    /// Acknowledged spans that no backend got.
    pub(crate) lost: u64,
    /// Spans that no request acknowledged in the end.
    pub(crate) refused: u64,
}

// === impl Deliveries ===

impl Deliveries {
    /// Adds a delivery, which came at `arrival` by any clock that is the same for all.
    pub(crate) fn add(&mut self, backend: usize, position: SpanPosition, arrival: Duration) {
        self.last = self.last.max(arrival);
        let (bit, index) = (position.bit(), usize::from(position.index));
        if self.times.len() <= index {
            self.times.resize(index + 1, 0);
        }
        if let Some(times) = self.times.get_mut(index) {
            *times += 1;
        }
        match self.by_backend.iter_mut().find(|(known, _)| *known == backend) {
            Some((_, bits)) => *bits |= bit,
            None => self.by_backend.push((backend, bit)),
        }
    }

    /// Notes when each backend stopped, if it did. Called after all deliveries were added.
    pub(crate) fn note_stopped(&mut self, stopped: impl Fn(usize) -> Option<Duration>) {
        let mut ends = self.by_backend.iter().filter_map(|(backend, _)| stopped(*backend));
        self.is_excused = ends.any(|end| end < self.last);
    }

    /// The spans that were delivered, as a bit set.
    fn bits(&self) -> u64 {
        self.by_backend.iter().fold(0, |all, (_, bits)| all | bits)
    }

    fn times(&self, position: SpanPosition) -> u64 {
        self.times.get(usize::from(position.index)).copied().unwrap_or(0)
    }

    /// Returns whether one backend got all of `count` spans.
    pub(crate) fn is_whole(&self, count: u8) -> bool {
        self.by_backend.iter().any(|(_, bits)| *bits == SpanPosition::full(count))
    }
}

// === impl Traces ===

impl Traces {
    pub(crate) fn add(&mut self, count: u8, seen: &Deliveries) {
        self.traces += 1;
        if seen.is_whole(count) {
            self.whole += 1;
        } else if seen.bits() == SpanPosition::full(count) {
            self.split += 1;
        } else {
            self.incomplete += 1;
        }
        self.excusable += u64::from(!seen.is_whole(count) && seen.is_excused);
    }

    /// The number of traces that are not whole, although a proxy could have kept them whole.
    pub(crate) fn inexcusable(&self) -> u64 {
        self.traces - self.whole - self.excusable
    }

    /// The share of whole traces; `None` if there are no traces.
    pub(crate) fn whole_share(&self) -> Option<f64> {
        share(self.whole, self.traces)
    }
}

// === impl Spans ===

impl Spans {
    /// The share of spans that were delivered more than once.
    pub(crate) fn twice_share(&self) -> Option<f64> {
        share(self.twice, self.spans)
    }

    /// Deliveries ÷ spans.
    pub(crate) fn traffic(&self) -> Option<f64> {
        share(self.deliveries, self.spans)
    }

    /// Adds the numbers of others.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.spans += other.spans;
        self.twice += other.twice;
        self.deliveries += other.deliveries;
    }

    /// Adds a span that was delivered this often.
    fn add(&mut self, times: u64) {
        self.merge(&Self { spans: 1, twice: u64::from(times > 1), deliveries: times });
    }
}

// === impl Verdict ===

impl Verdict {
    /// The number of traces that are not whole, although a proxy could have kept them whole.
    pub(crate) fn inexcusable(&self) -> u64 {
        self.near.inexcusable() + self.far.inexcusable()
    }

    /// Adds a trace with its deliveries and its acknowledged spans, as a bit set.
    pub(crate) fn add<M: Fn(&Trace) -> bool>(
        &mut self,
        trace: &Trace,
        seen: &Deliveries,
        acknowledged: u64,
        changes: &[Change<M>],
        limits: Limits,
    ) {
        let count = trace.count();
        let is_near = |change: &&Change<M>| trace.spans.iter().any(|span| span.is_near(change.at, limits.near));
        let mut near = changes.iter().filter(is_near).peekable();
        if near.peek().is_some() {
            self.near.add(count, seen);
            if near.any(|change| (change.moved)(trace)) {
                self.moved.add(count, seen);
            }
        } else {
            self.far.add(count, seen);
        }
        let last = changes.iter().map(|change| change.at).max();
        for (position, span) in trace.positions() {
            let times = seen.times(position);
            self.all_spans.add(times);
            if changes.iter().any(|change| span.is_near(change.at, limits.near)) {
                self.near_spans.add(times);
            }
            if last.is_some_and(|last| span.start >= last + limits.later) {
                self.later_spans.add(times);
            }
        }
        self.lost += u64::from((acknowledged & !seen.bits()).count_ones());
        self.refused += u64::from((SpanPosition::full(count) & !acknowledged).count_ones());
    }
}

/// `part ÷ whole`.
#[expect(clippy::cast_precision_loss, reason = "for reports")]
fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::{
        super::traces::{Span, Spec},
        *,
    };

    const LIMITS: Limits = Limits { near: Duration::from_secs(30), later: Duration::from_secs(60) };

    fn trace(start: u64, spans: usize) -> Trace {
        let start = Duration::from_secs(start);
        let span = Span { service: 0, start, end: start + Duration::from_secs(1) };
        Trace { spans: vec![span; spans], ..Spec::default().trace(&mut fastrand::Rng::with_seed(1), 1, start) }
    }

    /// The verdict on one trace whose spans went to these backends; a change at 100 s moved it.
    fn verdict(trace: &Trace, places: &[&[usize]]) -> Verdict {
        let mut seen = Deliveries::default();
        for ((position, _), backends) in trace.positions().zip(places) {
            backends.iter().for_each(|backend| seen.add(*backend, position, Duration::ZERO));
        }
        let mut verdict = Verdict::default();
        let changes = [Change { at: Duration::from_secs(100), moved: |_: &Trace| true }];
        verdict.add(trace, &seen, SpanPosition::full(trace.count()), &changes, LIMITS);
        verdict
    }

    #[test]
    fn a_trace_is_whole_if_one_backend_got_every_span() {
        let near = trace(80, 3);
        let whole = |places: &[&[usize]]| {
            let Traces { whole, split, incomplete, .. } = verdict(&near, places).moved;
            (whole, split, incomplete)
        };
        assert_eq!(whole(&[&[1], &[1], &[1]]), (1, 0, 0));
        assert_eq!(whole(&[&[1], &[2], &[1]]), (0, 1, 0));
        assert_eq!(whole(&[&[1], &[1, 2], &[1]]), (1, 0, 0), "a copy elsewhere does no harm");
        assert_eq!(whole(&[&[1], &[1, 2], &[2]]), (0, 1, 0), "both lack a span");
        assert_eq!(whole(&[&[1], &[], &[1]]), (0, 0, 1));
    }

    #[test]
    fn spans_and_traces_are_counted_by_their_distance_from_the_change() {
        let places: [&[usize]; 2] = [&[1], &[1, 1]];
        let counted = |start| {
            let Verdict { near, moved, far, near_spans, later_spans, .. } = verdict(&trace(start, 2), &places);
            ([near.traces, moved.traces, far.traces], [near_spans.spans, later_spans.spans])
        };
        assert_eq!(counted(68), ([0, 0, 1], [0, 0]));
        assert_eq!(counted(69), ([1, 1, 0], [2, 0]), "its end is near");
        assert_eq!(counted(130), ([1, 1, 0], [2, 0]));
        assert_eq!(counted(159), ([0, 0, 1], [0, 0]));
        assert_eq!(counted(160), ([0, 0, 1], [0, 2]));
        let all = verdict(&trace(0, 2), &places).all_spans;
        assert_eq!((all.spans, all.twice, all.deliveries), (2, 1, 3));
    }

    #[test]
    fn a_split_is_excusable_if_a_backend_stopped_before_the_last_span_came() {
        let trace = trace(0, 3);
        let excusable = |places: [usize; 3], stopped: &[(usize, u64)]| {
            let mut seen = Deliveries::default();
            for ((position, _), (backend, second)) in trace.positions().zip(places.into_iter().zip(1..)) {
                seen.add(backend, position, Duration::from_secs(second));
            }
            let end = |backend| stopped.iter().find(|(it, _)| *it == backend).map(|(_, at)| Duration::from_secs(*at));
            seen.note_stopped(end);
            let mut traces = Traces::default();
            traces.add(trace.count(), &seen);
            (traces.split, traces.excusable, traces.inexcusable())
        };
        assert_eq!(excusable([1, 1, 2], &[(1, 2)]), (1, 1, 0));
        assert_eq!(excusable([1, 1, 2], &[(1, 3)]), (1, 0, 1), "it stopped when all was there");
        assert_eq!(excusable([1, 1, 2], &[(3, 1)]), (1, 0, 1), "it had no span of the trace");
        assert_eq!(excusable([1, 1, 1], &[(1, 2)]), (0, 0, 0), "a whole trace needs no excuse");
    }

    #[test]
    fn lost_and_refused_spans_are_told_apart() {
        let trace = trace(0, 3);
        let mut seen = Deliveries::default();
        seen.add(1, trace.positions().next().unwrap().0, Duration::ZERO);
        let mut verdict = Verdict::default();
        // The first two spans were acknowledged, and the second of them is nowhere.
        verdict.add::<fn(&Trace) -> bool>(&trace, &seen, 0b011, &[], LIMITS);
        assert_eq!((verdict.lost, verdict.refused), (1, 1));
    }
}
