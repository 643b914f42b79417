//! An OTLP load generator, over gRPC or HTTP. It sends requests that were written in advance and whose traces are interleaved, in a
//! closed or an open loop, and counts every answer.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

mod engine;
mod pace;
mod report;
#[cfg(test)]
mod tests;

pub use self::{
    engine::{Accepted, Failed, run as run_load},
    pace::{Pace, Until},
    report::{ClientsReport, FailureKind, Failures, Latency, LoadReport},
};
use super::{
    Compression, grouped,
    ids::{SpanPosition, TraceKey},
    interrupted,
    otlp_body::{Bodies, BodySpec, SpecError, default_traces},
    parse_duration,
};
pub use crate::tools::tls::ClientArgs;
use crate::{
    lifecycle::Tasks,
    tls::{ClientConfig, TlsError},
};

/// Default limit for the requests in flight of an open loop.
const OPEN_LOOP_IN_FLIGHT: usize = 1024;

/// An OTLP load generator.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  spanring load --endpoint 127.0.0.1:4317 --duration 10s    as fast as 16 requests in flight allow
  spanring load --rate 200 --batch 512 --duration 1m    an open loop: latency counts from when a request was due
  spanring load --timeout 2s,5s,10s --rate 200 --duration 1m    clients with different timeouts; failures are reported by timeout
  spanring load --http --endpoint 127.0.0.1:4318 --connections 16    OTLP/HTTP over 16 connections
  spanring load --unique --requests 5000 --endpoint 127.0.0.1:14317 --endpoint 127.0.0.1:14318    no span is sent twice")]
pub struct Args {
    /// Address to send to. May be repeated; the connections and the batches of a trace are spread over all addresses
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:4317")]
    pub endpoint: Vec<String>,
    /// Seed of the requests; equal seeds give equal spans
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Spans in each request
    #[arg(long, visible_alias = "batch", value_name = "N", default_value_t = 100)]
    pub spans_per_batch: usize,
    /// Traces in each request [default: one for 8 spans, at least 5]
    #[arg(long, value_name = "N")]
    pub traces_per_batch: Option<usize>,
    /// Number of requests over which the spans of a trace are spread
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub batches_per_trace: usize,
    /// Number of distinct requests to write, as far as --max-body-mib allows
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub bodies: usize,
    /// Memory for distinct requests
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    pub max_body_mib: usize,
    /// Give the spans new IDs on each pass, so that this run sends none twice; use another --seed for each further run
    #[arg(long)]
    pub unique: bool,
    /// Connections to all endpoints together (at least one for each endpoint and --timeout)
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub connections: usize,
    /// Requests in flight on all connections together [default: 16; with a rate, 1024]
    #[arg(long, value_name = "N")]
    pub in_flight: Option<usize>,
    /// Send this many requests per second, whether or not they are answered (an open loop)
    #[arg(long, value_name = "REQUESTS", conflicts_with = "span_rate")]
    pub rate: Option<f64>,
    /// Send this many spans per second (an open loop)
    #[arg(long, value_name = "SPANS")]
    pub span_rate: Option<f64>,
    /// Compress requests (before the run; with --unique, when they are sent)
    #[arg(long, value_enum, default_value = "none")]
    pub compression: Compression,
    /// How long to run, including the warm-up [default: 10s, unless --requests is given]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Number of requests to send; the last group of batches is completed. With --duration, the run lasts until both
    /// are reached
    #[arg(long, value_name = "N")]
    pub requests: Option<u64>,
    /// Leave the requests of this initial period out of the report
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    pub warmup: Duration,
    /// Timeout of an attempt, which is also sent as grpc-timeout. With several, the connections use them in turn
    #[arg(long, value_name = "DURATION", default_value = "10s", value_delimiter = ',', value_parser = parse_timeout)]
    pub timeout: Vec<Duration>,
    /// Retry as an SDK does: retryable codes only, after 1 s to 5 s or as RetryInfo says, up to five attempts
    #[arg(long)]
    pub retry: bool,
    /// Send OTLP/HTTP (protobuf over HTTP/1.1, one request at a time on a connection), without TLS
    #[arg(long, conflicts_with = "tls_ca")]
    pub http: bool,
    /// TLS options.
    #[command(flatten)]
    pub tls: ClientArgs,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// Configuration of a load run.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadConfig {
    /// `host:port` of each receiver.
    pub endpoints: Vec<String>,
    /// Connections to all of them together. Each endpoint gets at least one for each timeout.
    pub connections: usize,
    /// Requests in flight on all connections together.
    pub in_flight: usize,
    /// Closed or open loop.
    pub pace: Pace,
    /// Shape of the requests.
    pub body: BodySpec,
    /// When the run ends.
    pub until: Until,
    /// Initial period that is left out of the report.
    pub warmup: Duration,
    /// How long a client waits for the answer to one attempt. Each connection is a client with one of these timeouts;
    /// the connections to an endpoint use them in turn.
    pub timeouts: Vec<Duration>,
    /// Whether to retry as an SDK does.
    pub retry: bool,
    /// Whether to send OTLP/HTTP instead of gRPC, in plaintext.
    pub http: bool,
    /// TLS of the connections, or `None` for plaintext. It is for gRPC only.
    pub tls: Option<ClientConfig>,
    /// Whether to keep a list of the acknowledged and the failed requests (40 bytes and more for each).
    pub keep_accepted: bool,
}

impl Default for LoadConfig {
    /// A closed loop of 16 requests in flight without endpoints. It ends when its tasks drain.
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            connections: 1,
            in_flight: 16,
            pace: Pace::Closed,
            body: BodySpec::default(),
            until: Until::default(),
            warmup: Duration::ZERO,
            timeouts: vec![Duration::from_secs(10)],
            retry: false,
            http: false,
            tls: None,
            keep_accepted: false,
        }
    }
}

impl LoadConfig {
    /// Returns timeout number `n`.
    fn timeout(&self, n: usize) -> Duration {
        self.timeouts.get(n).copied().unwrap_or_default()
    }

    fn check(&self) -> Result<(), LoadError> {
        if self.endpoints.is_empty() || self.in_flight == 0 {
            return Err(LoadError::Nothing);
        }
        if self.timeouts.is_empty() || self.timeouts.contains(&Duration::ZERO) {
            return Err(LoadError::Timeout);
        }
        match self.pace {
            Pace::Open { rate } if !(rate.is_finite() && rate > 0.0) => Err(LoadError::Rate(rate)),
            _ => Ok(()),
        }
    }
}

/// Reason why no load could be sent.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No endpoint, or no request in flight.
    #[error("load needs an endpoint and at least one request in flight")]
    Nothing,
    /// No timeout, or one of 0.
    #[error("load needs a timeout above 0")]
    Timeout,
    /// The rate is not a positive number.
    #[error("{0} is no rate; write a number above 0")]
    Rate(f64),
    /// An endpoint is not a valid address.
    #[error("\"{endpoint}\" is no endpoint; write host:port")]
    Endpoint {
        /// The endpoint as given.
        endpoint: String,
        /// The cause.
        source: ::http::Error,
    },
    /// Certificates cannot be used.
    #[error("cannot speak TLS")]
    Tls(#[from] TlsError),
    /// A connection could not be opened at the start.
    #[error("{0}; is the receiver running?")]
    Connect(String),
    /// The requests cannot be written as specified.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A task panicked, which is a defect of Spanring.
    #[error("a task of the load failed")]
    Task(#[from] tokio::task::JoinError),
    /// The histogram could not be created, which is a defect of Spanring.
    #[error("no histogram")]
    Histogram(#[from] hdrhistogram::errors::CreationError),
}

/// Result of a load run.
#[derive(Debug)]
pub struct LoadRun {
    /// The report.
    pub report: LoadReport,
    /// The requests; `bodies.spans(ticket)` lists the spans of a ticket.
    pub bodies: Arc<Bodies>,
    /// The acknowledged requests, in no particular order; empty unless they were kept.
    pub accepted: Vec<Accepted>,
    /// The failed requests, in no particular order; empty unless they were kept.
    pub failed: Vec<Failed>,
    /// Number of tickets issued.
    pub sent: u64,
    /// Start of the run, in nanoseconds since 1970.
    pub began: u64,
}

impl LoadRun {
    /// Returns the spans that were certainly acknowledged: those of requests of which no span was rejected.
    pub fn acknowledged(&self) -> impl Iterator<Item = (TraceKey, SpanPosition)> + '_ {
        self.accepted.iter().filter(|accepted| accepted.rejected == 0).flat_map(|a| self.bodies.spans(a.ticket))
    }
}

/// `spanring load`: sends load until the run is over or interrupted, then prints the report.
///
/// The exit code is 1 if no span was acknowledged.
pub async fn run(args: Args, out: &mut (dyn Write + Send)) -> anyhow::Result<ExitCode> {
    let is_json = args.json;
    let config = config(args);
    let tasks = Tasks::new();
    let progress = progress_bar(config.until.elapsed);
    let load = run_load(config, &progress, &tasks);
    tokio::pin!(load);
    let finished = tokio::select! {
        finished = &mut load => finished,
        _ = interrupted() => {
            tasks.drain();
            load.await
        }
    };
    tasks.stop();
    let report = finished?.report;
    if is_json {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        report.write_text(out)?;
    }
    tasks.wait().await;
    Ok(if report.spans_acknowledged > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Parses a timeout, which must be above 0.
fn parse_timeout(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("a client that does not wait gets no answer; write a duration above 0".to_owned()),
        timeout => Ok(timeout),
    }
}

#[expect(clippy::cast_precision_loss, reason = "spans of a batch")]
fn config(args: Args) -> LoadConfig {
    let rate = args.rate.or(args.span_rate.map(|spans| spans / args.spans_per_batch.max(1) as f64));
    let pace = rate.map_or(Pace::Closed, |rate| Pace::Open { rate });
    let default_in_flight = if rate.is_some() { OPEN_LOOP_IN_FLIGHT } else { LoadConfig::default().in_flight };
    let elapsed = args.duration.or(args.requests.is_none().then_some(Duration::from_secs(10)));
    LoadConfig {
        endpoints: args.endpoint,
        connections: args.connections,
        in_flight: args.in_flight.unwrap_or(default_in_flight),
        pace,
        body: BodySpec {
            seed: args.seed,
            spans: args.spans_per_batch,
            traces: args.traces_per_batch.unwrap_or_else(|| default_traces(args.spans_per_batch)),
            spread: args.batches_per_trace,
            bodies: args.bodies,
            max_bytes: args.max_body_mib << 20,
            compression: args.compression,
            unique: args.unique,
        },
        until: Until { elapsed, requests: args.requests },
        warmup: args.warmup,
        timeouts: args.timeout,
        retry: args.retry,
        http: args.http,
        tls: args.tls.config(),
        keep_accepted: false,
    }
}

/// Returns a progress bar on stderr, a spinner if the length is not known, or a hidden bar if stderr is not a terminal.
pub(crate) fn progress_bar(length: Option<Duration>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let Some(length) = length else {
        return ProgressBar::new_spinner();
    };
    let bar = ProgressBar::new(u64::try_from(length.as_millis()).unwrap_or(u64::MAX));
    match ProgressStyle::with_template("{bar:40} {percent:>3} %  {prefix}{msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
