//! Traces as services make them: their spans have true times, belong to different services, and are exported after they
//! have ended.

use std::{ops::RangeInclusive, time::Duration};

use spanring::tools::ids::{SpanPosition, TraceKey};

/// The traffic of a run. Equal specifications give equal traces.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) seed: u64,
    pub(crate) traces_per_second: f64,
    /// Number of services.
    pub(crate) services: usize,
    /// How long a service gathers ended spans before it exports them. Services take these values in turn.
    pub(crate) batches: Vec<Duration>,
    /// Number of spans of a trace; at most [`spanring::tools::ids::MAX_SPANS_PER_TRACE`].
    pub(crate) spans: RangeInclusive<u8>,
    /// Length of a trace, distributed log-uniformly.
    pub(crate) lengths: RangeInclusive<Duration>,
}

/// One trace. The first span is the root; the place of a span in the list is its position in the trace.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    pub(crate) key: TraceKey,
    pub(crate) spans: Vec<Span>,
}

/// One span.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) service: usize,
    pub(crate) start: Duration,
    pub(crate) end: Duration,
}

/// The largest number of services that take part in one trace.
const SERVICES_PER_TRACE: usize = 4;

/// The largest number of spans of a trace by default.
const SPANS_PER_TRACE: u8 = 10;

impl Default for Spec {
    /// 50 traces and 300 spans a second of twelve services. The batches are those of SDKs (5 s) and of services that
    /// are set to export sooner.
    fn default() -> Self {
        Self {
            seed: 1,
            traces_per_second: 50.0,
            services: 12,
            batches: vec![Duration::from_secs(5), Duration::from_secs(1)],
            spans: 2..=SPANS_PER_TRACE,
            lengths: Duration::from_millis(10)..=Duration::from_secs(20),
        }
    }
}

impl Spec {
    /// The same traffic with all times of traces and services multiplied by `scale`.
    pub(crate) fn scaled(self, scale: f64) -> Self {
        let batches = self.batches.iter().map(|batch| batch.mul_f64(scale)).collect();
        let [shortest, longest] = [self.lengths.start(), self.lengths.end()].map(|length| length.mul_f64(scale));
        Self { batches, lengths: shortest..=longest, ..self }
    }

    /// Returns the traces that start within `length`, by their start.
    pub(crate) fn traces(&self, length: Duration) -> Vec<Trace> {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let mut start = Duration::ZERO;
        let mut traces = Vec::new();
        for number in 0.. {
            // Exponential pauses: traces start independently of each other.
            start += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / self.traces_per_second);
            if start >= length {
                break;
            }
            traces.push(self.trace(&mut random, number, start));
        }
        traces
    }

    /// Returns trace `number` of the run, which starts at `start`.
    pub(crate) fn trace(&self, random: &mut fastrand::Rng, number: u64, start: Duration) -> Trace {
        let (shortest, longest) = (self.lengths.start().as_secs_f64(), self.lengths.end().as_secs_f64());
        let length = shortest * (longest / shortest).powf(random.f64());
        let count = random.usize(2..=SERVICES_PER_TRACE).min(self.services);
        let services = random.choose_multiple(0..self.services, count);
        let at = |share: f64| start + Duration::from_secs_f64(length * share);
        let root = Span { service: services.first().copied().unwrap_or(0), start, end: at(1.0) };
        let mut spans = vec![root];
        for _ in 1..random.u8(self.spans.clone()) {
            let service = random.choice(services.iter().copied()).unwrap_or(0);
            let from = random.f64();
            let to = from + (1.0 - from) * random.f64();
            spans.push(Span { service, start: at(from), end: at(to) });
        }
        Trace { key: TraceKey::new(self.seed, number), spans }
    }

    /// How long a service gathers spans.
    pub(crate) fn batch(&self, service: usize) -> Duration {
        let turn = service.checked_rem(self.batches.len());
        turn.and_then(|turn| self.batches.get(turn)).copied().unwrap_or(Duration::from_secs(5))
    }

    /// The time of a service's first export. Those of different services are spread over the time of a batch.
    pub(crate) fn first_export(&self, service: usize) -> Duration {
        let part = fastrand::Rng::with_seed(self.seed ^ (service as u64) << 32).f64();
        self.batch(service).mul_f64(part)
    }

    /// Returns when a service exports a span that ended at `end`.
    pub(crate) fn exported(&self, service: usize, end: Duration) -> Duration {
        let (first, batch) = (self.first_export(service), self.batch(service));
        let passed = end.saturating_sub(first).as_secs_f64() / batch.as_secs_f64();
        if end <= first { first } else { first + batch.mul_f64(passed.ceil()) }
    }
}

impl Trace {
    /// The position of each span, and the span.
    pub(crate) fn positions(&self) -> impl Iterator<Item = (SpanPosition, &Span)> {
        let count = self.count();
        (0..count).map(move |index| SpanPosition { index, count }).zip(&self.spans)
    }

    /// The number of spans.
    pub(crate) fn count(&self) -> u8 {
        u8::try_from(self.spans.len()).unwrap_or(u8::MAX)
    }
}

impl Span {
    /// Whether a part of the span lies within `radius` of `at`.
    pub(crate) fn is_near(&self, at: Duration, radius: Duration) -> bool {
        self.start <= at + radius && self.end >= at.saturating_sub(radius)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_lie_within_their_root_and_are_exported_after_they_end() {
        let spec = Spec::default();
        let traces = spec.traces(Duration::from_secs(60));
        assert!((2_500..3_500).contains(&traces.len()), "{}", traces.len());
        for trace in &traces {
            let root = trace.spans[0];
            assert!(trace.spans.iter().all(|span| span.start >= root.start && span.end <= root.end));
            assert!(trace.spans.iter().all(|span| span.start <= span.end && span.service < spec.services));
            for span in &trace.spans {
                let at = spec.exported(span.service, span.end);
                let first = spec.first_export(span.service);
                assert!(at >= span.end && (at == first || at < span.end + spec.batch(span.service)), "{span:?} {at:?}");
            }
        }
        let long = traces.iter().filter(|trace| trace.spans[0].end - trace.spans[0].start > Duration::from_secs(1));
        // ln(20) ÷ ln(2000) of the traces are longer than a second.
        assert!((0.34..0.45).contains(&(long.count() as f64 / traces.len() as f64)));
    }

    #[test]
    fn equal_seeds_give_equal_traces() {
        let ends =
            |seed| Spec { seed, ..Spec::default() }.traces(Duration::from_secs(2)).last().map(|t| t.spans[0].end);
        assert_eq!(ends(3), ends(3));
        assert_ne!(ends(3), ends(4));
    }
}
