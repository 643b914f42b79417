//! The report of the demo: compares the acknowledged spans with those that the backends received.

use std::{
    collections::HashMap,
    io::{self, Write},
};

use serde::Serialize;

use super::Args;
use crate::tools::{grouped, grouped_rate, ids::TraceKey, load::LoadRun, ratio, sink::Sink};

/// Report of a demo.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DemoReport {
    /// Number of proxies.
    pub proxies: u64,
    /// Requests sent.
    pub requests: u64,
    /// Requests that were not acknowledged.
    pub requests_failed: u64,
    /// Traces of which a span was acknowledged or received.
    pub traces: u64,
    /// Traces whose acknowledged spans are all on the same backend, with no span on another one.
    pub traces_whole: u64,
    /// Traces with spans on several backends.
    pub traces_split: u64,
    /// Average number of proxies through which the spans of a trace were sent.
    pub proxies_per_trace: f64,
    /// Acknowledged spans.
    pub spans_acknowledged: u64,
    /// Acknowledged spans that no backend received.
    pub spans_missing: u64,
    /// Spans received more than once.
    pub spans_duplicate: u64,
    /// Acknowledged spans per second.
    pub spans_per_second: f64,
    /// Duration of the load in seconds.
    pub seconds: f64,
    /// Median latency of a request, in milliseconds.
    pub latency_p50_ms: f64,
    /// 99th percentile of the latency of a request, in milliseconds.
    pub latency_p99_ms: f64,
    /// Spans of the busiest backend ÷ mean of all backends.
    pub busiest_to_mean: f64,
    /// Share of each backend.
    pub backends: Vec<BackendShare>,
}

/// The share of the load that a backend received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendShare {
    /// Address of the backend.
    pub id: String,
    /// Spans received, duplicates included.
    pub spans: u64,
    /// Traces of which spans were received.
    pub traces: u64,
}

/// A trace as the load generator and all backends saw it. The fields of spans and proxies are bit sets.
#[derive(Clone, Copy, Default)]
struct TraceResult {
    acknowledged: u64,
    delivered: u64,
    twice: u64,
    backends: u32,
    proxies: u64,
}

impl DemoReport {
    /// Compares the spans acknowledged to the load generator with those that the sinks received.
    pub(super) fn of(args: &Args, run: &LoadRun, sinks: &[Sink]) -> Self {
        let traces = trace_results(run, sinks, u64::from(args.proxies));
        let count = |is: &dyn Fn(&TraceResult) -> bool| traces.values().filter(|trace| is(trace)).count() as u64;
        let bits =
            |of: &dyn Fn(&TraceResult) -> u64| traces.values().map(|trace| u64::from(of(trace).count_ones())).sum();
        let backends = sinks.iter().map(share).collect::<Vec<_>>();
        let within: u64 = sinks.iter().filter_map(|sink| sink.report().tracked).map(|tracked| tracked.duplicates).sum();
        let entered: u64 = bits(&|trace| trace.proxies);
        let across: u64 = bits(&|trace| trace.twice);
        Self {
            proxies: u64::from(args.proxies),
            requests: run.report.requests,
            requests_failed: run.report.failed.values().sum(),
            traces: traces.len() as u64,
            traces_whole: count(&|trace| trace.backends == 1 && trace.acknowledged & !trace.delivered == 0),
            traces_split: count(&|trace| trace.backends > 1),
            proxies_per_trace: ratio(entered, traces.len() as u64),
            spans_acknowledged: run.report.spans_acknowledged,
            spans_missing: bits(&|trace| trace.acknowledged & !trace.delivered),
            spans_duplicate: within + across,
            spans_per_second: run.report.spans_per_second,
            seconds: run.report.seconds,
            latency_p50_ms: run.report.latency_ms.p50,
            latency_p99_ms: run.report.latency_ms.p99,
            busiest_to_mean: busiest_to_mean(&backends),
            backends,
        }
    }

    /// Returns whether every trace is whole and no acknowledged span is missing.
    pub fn is_good(&self) -> bool {
        self.traces_whole == self.traces && self.traces_split == 0 && self.spans_missing == 0 && self.traces > 0
    }

    /// Writes the report as text.
    pub fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(
            out,
            "{} proxies sent to {} backends for {:.1} s, all of them in this process.",
            self.proxies,
            self.backends.len(),
            self.seconds
        )?;
        writeln!(
            out,
            "The spans of a trace were spread over several requests, which entered through {:.1} proxies on average.\n",
            self.proxies_per_trace
        )?;
        let share = 100.0 * ratio(self.traces_whole, self.traces);
        writeln!(out, "  traces              {:>12}", grouped(self.traces))?;
        writeln!(out, "  whole on 1 backend  {:>12}   {share:.3} %", grouped(self.traces_whole))?;
        writeln!(out, "  split               {:>12}", grouped(self.traces_split))?;
        writeln!(out, "  spans acknowledged  {:>12}", grouped(self.spans_acknowledged))?;
        writeln!(out, "  missing             {:>12}", grouped(self.spans_missing))?;
        writeln!(out, "  delivered twice     {:>12}", grouped(self.spans_duplicate))?;
        if self.requests_failed > 0 {
            writeln!(out, "  requests failed     {:>12}", grouped(self.requests_failed))?;
        }
        writeln!(out, "  spans a second      {:>12}", grouped_rate(self.spans_per_second))?;
        writeln!(
            out,
            "  latency             {:>9.1} ms (p50), {:.1} ms (p99)\n",
            self.latency_p50_ms, self.latency_p99_ms
        )?;
        self.write_backends(out)?;
        writeln!(out, "\n{}", self.meaning())
    }

    fn write_backends(&self, out: &mut dyn Write) -> io::Result<()> {
        const WIDTH: u64 = 30;
        let most = self.backends.iter().map(|backend| backend.spans).max().unwrap_or(0).max(1);
        writeln!(out, "  {:<22} {:>12} {:>10}", "backend", "spans", "traces")?;
        for backend in &self.backends {
            let bar = "#".repeat(usize::try_from(backend.spans * WIDTH / most).unwrap_or(0));
            let (spans, traces) = (grouped(backend.spans), grouped(backend.traces));
            writeln!(out, "  {:<22} {spans:>12} {traces:>10}  {bar}", backend.id)?;
        }
        writeln!(out, "  the busiest has {:.2} times the mean", self.busiest_to_mean)
    }

    fn meaning(&self) -> &'static str {
        if self.is_good() {
            "Every trace is whole: the proxies do not talk to each other, and yet all of them sent its spans to the same\n\
             backend. A tail sampler there would see the complete trace. Next, try `spanring demo --backends 10 --proxies 5`,\n\
             or put a proxy in front of your collectors: `spanring --backends dns://collectors.example:4317`."
        } else if self.spans_missing > 0 {
            "Acknowledged spans are missing. This is a defect in Spanring: please report it with the seed."
        } else {
            "Some traces were split over several backends: the proxies did not agree, or a backend failed meanwhile.\n\
             If all backends were healthy, this is a defect in Spanring: please report it with the seed."
        }
    }
}

fn trace_results(run: &LoadRun, sinks: &[Sink], proxies: u64) -> HashMap<TraceKey, TraceResult> {
    let mut traces: HashMap<TraceKey, TraceResult> = HashMap::new();
    for accepted in run.accepted.iter().filter(|accepted| accepted.rejected == 0) {
        for (key, place) in run.bodies.spans(accepted.ticket) {
            let trace = traces.entry(key).or_default();
            trace.acknowledged |= place.bit();
            trace.proxies |= 1 << (accepted.ticket % proxies.max(1)).min(63);
        }
    }
    for sink in sinks {
        for (key, seen) in sink.own_traces() {
            let trace = traces.entry(key).or_default();
            trace.twice |= trace.delivered & seen.bits;
            trace.delivered |= seen.bits;
            trace.backends += 1;
        }
    }
    traces
}

fn share(sink: &Sink) -> BackendShare {
    let report = sink.report();
    let traces = report.tracked.map_or(0, |tracked| tracked.traces);
    BackendShare { id: report.address, spans: report.spans, traces }
}

fn busiest_to_mean(backends: &[BackendShare]) -> f64 {
    let all: u64 = backends.iter().map(|backend| backend.spans).sum();
    let most = backends.iter().map(|backend| backend.spans).max().unwrap_or(0);
    ratio(most * backends.len() as u64, all)
}
