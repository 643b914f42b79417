//! What a run of load found.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::Duration,
};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::tools::{grouped, h2client::Answer, otlp_body::BodySpec, ratio};

/// What a run of load found. Counts are of what came after the warm-up.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LoadReport {
    /// Distinct requests that were sent in turn.
    pub distinct_bodies: u64,
    /// Spans in each.
    pub spans_per_batch: u64,
    /// Traces in each.
    pub traces_per_batch: u64,
    /// Seconds from the end of the warm-up to the last answer.
    pub seconds: f64,
    /// Requests answered or given up.
    pub requests: u64,
    /// Spans in them.
    pub spans: u64,
    /// Spans acknowledged, those that `partial_success` took back counted off.
    pub spans_acknowledged: u64,
    /// Spans that `partial_success` took back.
    pub spans_rejected: u64,
    /// Spans in requests that failed.
    pub spans_failed: u64,
    /// Requests that failed for good, by code.
    pub failed: BTreeMap<String, u64>,
    /// What the first of these said.
    pub first_failure: Option<String>,
    /// Attempts beyond the first.
    pub retries: u64,
    /// Requests acknowledged a second.
    pub requests_per_second: f64,
    /// Spans acknowledged a second.
    pub spans_per_second: f64,
    /// Milliseconds from when a request was due (closed loop: sent) to its last answer.
    pub latency_ms: Latency,
}

/// Latency in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "percentiles, as their names say")]
pub struct Latency {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
}

impl LoadReport {
    /// Writes it for people.
    pub fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let latency = &self.latency_ms;
        writeln!(
            out,
            "{} requests of {} spans in {} traces each, out of {} distinct ones, in {:.1} s",
            grouped(self.requests),
            grouped(self.spans_per_batch),
            grouped(self.traces_per_batch),
            grouped(self.distinct_bodies),
            self.seconds
        )?;
        let share = 100.0 * ratio(self.spans_acknowledged, self.spans);
        writeln!(out, "  spans acknowledged {:>15}  {share:.3} %", grouped(self.spans_acknowledged))?;
        writeln!(out, "  spans rejected     {:>15}", grouped(self.spans_rejected))?;
        writeln!(out, "  spans failed       {:>15}", grouped(self.spans_failed))?;
        for (code, requests) in &self.failed {
            writeln!(out, "    requests failed with {code}: {}", grouped(*requests))?;
        }
        if let Some(first) = &self.first_failure {
            writeln!(out, "    the first: {first}")?;
        }
        if self.retries > 0 {
            writeln!(out, "  retries            {:>15}", grouped(self.retries))?;
        }
        writeln!(out, "  spans a second     {:>15.0}", self.spans_per_second)?;
        writeln!(out, "  requests a second  {:>15.0}", self.requests_per_second)?;
        writeln!(
            out,
            "  latency in ms: p50 {:.2}, p90 {:.2}, p99 {:.2}, p99.9 {:.2}, max {:.2}",
            latency.p50, latency.p90, latency.p99, latency.p99_9, latency.max
        )
    }
}

/// Gathers a report while the run lasts.
#[derive(Debug)]
pub(crate) struct Stats {
    report: LoadReport,
    accepted_requests: u64,
    latency: Histogram<u64>,
}

impl Stats {
    pub(crate) fn new(spec: &BodySpec, bodies: usize) -> Result<Self, hdrhistogram::errors::CreationError> {
        let report = LoadReport {
            distinct_bodies: bodies as u64,
            spans_per_batch: spec.spans as u64,
            traces_per_batch: spec.traces as u64,
            ..LoadReport::default()
        };
        // Microseconds up to an hour, to three digits.
        Ok(Self { report, accepted_requests: 0, latency: Histogram::new_with_max(3_600_000_000, 3)? })
    }

    pub(crate) fn record(&mut self, answer: &Answer, retries: u64, latency: Duration) {
        let report = &mut self.report;
        let spans = report.spans_per_batch;
        report.requests += 1;
        report.spans += spans;
        report.retries += retries;
        if let Answer::Accepted { rejected } = answer {
            let rejected = (*rejected).min(spans);
            report.spans_rejected += rejected;
            report.spans_acknowledged += spans - rejected;
            self.accepted_requests += 1;
        } else {
            report.spans_failed += spans;
            report.first_failure.get_or_insert_with(|| answer.to_string());
            *report.failed.entry(label(answer)).or_default() += 1;
        }
        self.latency.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    pub(crate) fn spans_acknowledged(&self) -> u64 {
        self.report.spans_acknowledged
    }

    pub(crate) fn finish(&self, elapsed: Duration) -> LoadReport {
        #[expect(clippy::cast_precision_loss, reason = "microseconds of an hour fit")]
        let at = |quantile: f64| self.latency.value_at_quantile(quantile) as f64 / 1e3;
        let seconds = elapsed.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        LoadReport {
            seconds,
            requests_per_second: per_second(self.accepted_requests),
            spans_per_second: per_second(self.report.spans_acknowledged),
            latency_ms: Latency {
                mean: self.latency.mean() / 1e3,
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p99_9: at(0.999),
                max: at(1.0),
            },
            ..self.report.clone()
        }
    }
}

/// The name under which a failure is counted.
fn label(answer: &Answer) -> String {
    match answer {
        Answer::Accepted { .. } => "ok".to_owned(),
        Answer::Status(status) => snake_case(&format!("{:?}", status.code())),
        Answer::NoConnection(_) => "no connection".to_owned(),
        Answer::Lost(_) => "connection lost".to_owned(),
        Answer::TimedOut => "no answer in time".to_owned(),
    }
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for (i, c) in name.chars().enumerate() {
        if c.is_ascii_uppercase() && i > 0 {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}
