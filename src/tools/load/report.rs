//! The report of a load run.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Write},
    time::Duration,
};

use hdrhistogram::Histogram;
use serde::Serialize;
use tonic::Code;

use crate::tools::{grouped, grouped_rate, h2client::Answer, otlp_body::BodySpec, ratio};

/// The report of a load run. Requests of the warm-up are not counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LoadReport {
    /// Number of distinct requests, which are sent in turn.
    pub distinct_bodies: u64,
    /// Spans in each request.
    pub spans_per_batch: u64,
    /// Traces in each request.
    pub traces_per_batch: u64,
    /// Seconds from the end of the warm-up to the last reply.
    pub seconds: f64,
    /// Requests that were acknowledged or failed.
    pub requests: u64,
    /// Spans in these requests.
    pub spans: u64,
    /// Acknowledged spans, without those that `partial_success` rejected.
    pub spans_acknowledged: u64,
    /// Spans that `partial_success` rejected.
    pub spans_rejected: u64,
    /// Spans in requests that failed.
    pub spans_failed: u64,
    /// Failed requests (after retries, if enabled), by status code.
    pub failed: BTreeMap<String, u64>,
    /// Description of the first failure.
    pub first_failure: Option<String>,
    /// The same failures by the clients' timeout and by kind.
    pub clients: Vec<ClientsReport>,
    /// Attempts after the first.
    pub retries: u64,
    /// Acknowledged requests per second.
    pub requests_per_second: f64,
    /// Acknowledged spans per second.
    pub spans_per_second: f64,
    /// Latency in milliseconds, from when a request was due (in a closed loop: sent) to its final reply.
    pub latency_ms: Latency,
}

/// Requests of all connections with the same timeout.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ClientsReport {
    /// The timeout, in seconds.
    pub timeout_seconds: f64,
    /// Requests of these connections that were acknowledged or failed.
    pub requests: u64,
    /// The failed ones, by kind.
    pub failures: BTreeMap<FailureKind, Failures>,
}

/// Failures of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Failures {
    /// Number of requests.
    pub requests: u64,
    /// Seconds from the start of the load (warm-up included) to the first failure counted.
    pub first_seconds: f64,
    /// Seconds from the start of the load to the last failure.
    pub last_seconds: f64,
}

/// Kind of a failure, from a client's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The client's timeout passed, or the reply was `DEADLINE_EXCEEDED`.
    Deadline,
    /// The reply was `UNAVAILABLE`.
    Unavailable,
    /// The connection or the stream ended without a reply.
    ConnectionLost,
    /// No connection could be established.
    NoConnection,
    /// The reply was another error status.
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
    /// Writes the report as text.
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
        writeln!(out, "  spans a second     {:>15}", grouped_rate(self.spans_per_second))?;
        writeln!(out, "  requests a second  {:>15}", grouped_rate(self.requests_per_second))?;
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
    /// Returns the kind of a failed answer, or `None` if the request was acknowledged.
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

/// A request with its final answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended<'a> {
    pub(crate) answer: &'a Answer,
    pub(crate) retries: u64,
    /// Time since the request was due.
    pub(crate) latency: Duration,
    /// Time since the start of the load.
    pub(crate) at: Duration,
    /// Index of the client's timeout in the list of timeouts.
    pub(crate) timeout: usize,
}

/// Collects the numbers of the report during the run.
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
        // From 1 µs to one hour, with three significant digits.
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
        #[expect(clippy::cast_precision_loss, reason = "only printed")]
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

/// Returns the key under which a failure is counted in [`LoadReport::failed`].
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
