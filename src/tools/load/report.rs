//! What a run of load found.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Write},
    time::Duration,
};

use hdrhistogram::Histogram;
use serde::Serialize;
use tonic::Code;

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
    /// The failures again, by how long the clients wait and by what the failures mean to a client.
    pub clients: Vec<ClientsReport>,
    /// Attempts beyond the first.
    pub retries: u64,
    /// Requests acknowledged a second.
    pub requests_per_second: f64,
    /// Spans acknowledged a second.
    pub spans_per_second: f64,
    /// Milliseconds from when a request was due (closed loop: sent) to its last answer.
    pub latency_ms: Latency,
}

/// What became of the requests of all connections with one timeout.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ClientsReport {
    /// How many seconds they wait for an answer.
    pub timeout_seconds: f64,
    /// Their requests that were answered or given up.
    pub requests: u64,
    /// Those that failed for good, by kind.
    pub failures: BTreeMap<FailureKind, Failures>,
}

/// Failures of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Failures {
    /// How many requests failed so.
    pub requests: u64,
    /// Seconds from the start of the load (warm-up included) to the first failure that is counted.
    pub first_seconds: f64,
    /// The same to the last.
    pub last_seconds: f64,
}

/// What a failure means to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The time was over: the client gave up, or the answer was `DEADLINE_EXCEEDED`.
    Deadline,
    /// The answer was `UNAVAILABLE`.
    Unavailable,
    /// The connection or the stream ended without an answer.
    ConnectionLost,
    /// No connection could be made.
    NoConnection,
    /// The answer was any other status.
    Other,
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
        for clients in &self.clients {
            clients.write_text(out)?;
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

impl ClientsReport {
    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        for (kind, Failures { requests, first_seconds, last_seconds }) in &self.failures {
            writeln!(
                out,
                "    clients that wait {} s: {} of {} requests failed with {kind}, \
                 the first {first_seconds:.2} s and the last {last_seconds:.2} s after the start",
                self.timeout_seconds,
                grouped(*requests),
                grouped(self.requests)
            )?;
        }
        Ok(())
    }

    fn record(&mut self, failed: Option<FailureKind>, at: Duration) {
        self.requests += 1;
        let Some(kind) = failed else { return };
        let at = at.as_secs_f64();
        let failures = self.failures.entry(kind).or_insert(Failures { first_seconds: at, ..Failures::default() });
        failures.requests += 1;
        failures.last_seconds = at;
    }
}

impl FailureKind {
    /// What an answer is to a client; `None` when it is what the client wanted.
    pub(crate) fn of(answer: &Answer) -> Option<Self> {
        match answer {
            Answer::Accepted { .. } => None,
            Answer::Status(status) if status.code() == Code::DeadlineExceeded => Some(Self::Deadline),
            Answer::Status(status) if status.code() == Code::Unavailable => Some(Self::Unavailable),
            Answer::Status(_) => Some(Self::Other),
            Answer::NoConnection(_) => Some(Self::NoConnection),
            Answer::Lost(_) => Some(Self::ConnectionLost),
            Answer::TimedOut => Some(Self::Deadline),
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deadline => "deadline",
            Self::Unavailable => "unavailable",
            Self::ConnectionLost => "connection lost",
            Self::NoConnection => "no connection",
            Self::Other => "another status",
        })
    }
}

/// One request that came to its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended<'a> {
    pub(crate) answer: &'a Answer,
    pub(crate) retries: u64,
    /// From when it was due.
    pub(crate) latency: Duration,
    /// From the start of the load to now.
    pub(crate) at: Duration,
    /// Which of the timeouts its client has.
    pub(crate) timeout: usize,
}

/// Gathers a report while the run lasts.
#[derive(Debug)]
pub(crate) struct Stats {
    report: LoadReport,
    accepted_requests: u64,
    latency: Histogram<u64>,
}

impl Stats {
    pub(crate) fn new(
        spec: &BodySpec,
        bodies: usize,
        timeouts: &[Duration],
    ) -> Result<Self, hdrhistogram::errors::CreationError> {
        let clients =
            |timeout: &Duration| ClientsReport { timeout_seconds: timeout.as_secs_f64(), ..ClientsReport::default() };
        let report = LoadReport {
            clients: timeouts.iter().map(clients).collect(),
            distinct_bodies: bodies as u64,
            spans_per_batch: spec.spans as u64,
            traces_per_batch: spec.traces as u64,
            ..LoadReport::default()
        };
        // Microseconds up to an hour, to three digits.
        Ok(Self { report, accepted_requests: 0, latency: Histogram::new_with_max(3_600_000_000, 3)? })
    }

    pub(crate) fn record(&mut self, ended: Ended<'_>) {
        let Ended { answer, retries, latency, at, timeout } = ended;
        let report = &mut self.report;
        let spans = report.spans_per_batch;
        report.requests += 1;
        report.spans += spans;
        report.retries += retries;
        if let Some(clients) = report.clients.get_mut(timeout) {
            clients.record(FailureKind::of(answer), at);
        }
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
