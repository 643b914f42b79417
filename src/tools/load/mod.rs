//! An OTLP/gRPC generator: requests written beforehand, interleaved traces, closed or open loop, every answer counted.

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
    ids::{Place, TraceKey},
    interrupted,
    otlp_body::{Bodies, BodySpec, SpecError, default_traces},
    parse_duration,
};
pub use crate::tools::tls::ClientArgs;
use crate::{
    lifecycle::Tasks,
    tls::{ClientConfig, TlsError},
};

/// Most requests in flight of an open loop when nothing else is said.
const OPEN_LOOP_IN_FLIGHT: usize = 1024;

/// An OTLP load generator.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  spanring load --endpoint 127.0.0.1:4317 --duration 10s    as fast as 16 requests in flight go
  spanring load --rate 200 --batch 512 --duration 1m    an open loop: latency counts from when a request was due
  spanring load --timeout 2s,5s,10s --rate 200 --duration 1m    clients of mixed patience; their failures are told apart
  spanring load --unique --requests 5000 --endpoint 127.0.0.1:14317 --endpoint 127.0.0.1:14318    no span sent twice")]
pub struct Args {
    /// Where to send to; repeated: connections and the batches of a trace are spread over all
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:4317")]
    pub endpoint: Vec<String>,
    /// Seed of the requests: the same seed, the same spans
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Spans in each request
    #[arg(long, visible_alias = "batch", value_name = "N", default_value_t = 100)]
    pub spans_per_batch: usize,
    /// Traces in each request [default: one for 8 spans, at least 5]
    #[arg(long, value_name = "N")]
    pub traces_per_batch: Option<usize>,
    /// Over how many requests the spans of a trace are spread
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub batches_per_trace: usize,
    /// Distinct requests to write, as far as --max-body-mib allows
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub bodies: usize,
    /// Memory for distinct requests
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    pub max_body_mib: usize,
    /// Give the spans new IDs on each pass, so that none is ever sent twice
    #[arg(long)]
    pub unique: bool,
    /// Connections, over all endpoints (at least one each, for each --timeout)
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub connections: usize,
    /// Requests in flight, over all connections [default: 16; with a rate at most 1024]
    #[arg(long, value_name = "N")]
    pub in_flight: Option<usize>,
    /// Send so many requests a second, whatever becomes of them (an open loop)
    #[arg(long, value_name = "REQUESTS", conflicts_with = "span_rate")]
    pub rate: Option<f64>,
    /// The same, in spans a second
    #[arg(long, value_name = "SPANS")]
    pub span_rate: Option<f64>,
    /// Compress requests (before the run; with --unique within it)
    #[arg(long, value_enum, default_value = "none")]
    pub compression: Compression,
    /// How long to run, warm-up included [default: 10s, unless --requests is given]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// How many requests to send, and those that complete the traces begun; with --duration the run lasts until both are reached
    #[arg(long, value_name = "N")]
    pub requests: Option<u64>,
    /// Leave requests of the first moments out of the report
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    pub warmup: Duration,
    /// Give a request up after this long (also sent as grpc-timeout); several, for connections that take them in turn
    #[arg(long, value_name = "DURATION", default_value = "10s", value_delimiter = ',', value_parser = parse_timeout)]
    pub timeout: Vec<Duration>,
    /// Retry as an SDK does: retryable codes only, 1 s to 5 s apart or as RetryInfo says, five attempts
    #[arg(long)]
    pub retry: bool,
    /// TLS, if it is wanted.
    #[command(flatten)]
    pub tls: ClientArgs,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// What to send, where, and how fast.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadConfig {
    /// `host:port` of each receiver.
    pub endpoints: Vec<String>,
    /// Connections over all of them; each gets at least one for each timeout.
    pub connections: usize,
    /// Requests in flight over all connections.
    pub in_flight: usize,
    /// Closed or open loop.
    pub pace: Pace,
    /// What is sent.
    pub body: BodySpec,
    /// When it ends.
    pub until: Until,
    /// What is left out of the report.
    pub warmup: Duration,
    /// How long a client waits for the answer to one attempt. A connection is a client and has one of these; the
    /// connections to each endpoint take them in turn.
    pub timeouts: Vec<Duration>,
    /// Whether to retry as an SDK does.
    pub retry: bool,
    /// TLS of the connections; `None` is plaintext.
    pub tls: Option<ClientConfig>,
    /// Whether to keep which requests were acknowledged and which given up (40 bytes each and more).
    pub keep_accepted: bool,
}

impl Default for LoadConfig {
    /// A closed loop of 16 that ends when its tasks drain; no endpoint.
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
            tls: None,
            keep_accepted: false,
        }
    }
}

impl LoadConfig {
    /// Timeout number `n`.
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

/// Why no load could be sent.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Nothing to do.
    #[error("load needs an endpoint and at least one request in flight")]
    Nothing,
    /// Clients that would not wait at all.
    #[error("load needs a timeout above 0")]
    Timeout,
    /// A rate that is none.
    #[error("{0} is no rate; write a number above 0")]
    Rate(f64),
    /// An endpoint that is none.
    #[error("\"{endpoint}\" is no endpoint; write host:port")]
    Endpoint {
        /// As given.
        endpoint: String,
        /// What was wrong with it.
        source: ::http::Error,
    },
    /// Certificates that can't be used.
    #[error("cannot speak TLS")]
    Tls(#[from] TlsError),
    /// Nobody there at the start.
    #[error("{0}; is the receiver running?")]
    Connect(String),
    /// Impossible requests.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A defect of ours.
    #[error("a task of the load failed")]
    Task(#[from] tokio::task::JoinError),
    /// A defect of ours.
    #[error("no histogram")]
    Histogram(#[from] hdrhistogram::errors::CreationError),
}

/// A run that ended.
#[derive(Debug)]
pub struct LoadRun {
    /// What it found.
    pub report: LoadReport,
    /// What was sent: `bodies.spans(ticket)`.
    pub bodies: Arc<Bodies>,
    /// Which requests were acknowledged, in no order; empty unless they were kept.
    pub accepted: Vec<Accepted>,
    /// Which were given up, in no order; empty unless they were kept.
    pub failed: Vec<Failed>,
    /// How many tickets were handed out.
    pub sent: u64,
    /// When it began, in nanoseconds since 1970.
    pub began: u64,
}

impl LoadRun {
    /// Spans that were surely acknowledged: those of replies that took back none.
    pub fn acknowledged(&self) -> impl Iterator<Item = (TraceKey, Place)> + '_ {
        self.accepted.iter().filter(|accepted| accepted.rejected == 0).flat_map(|a| self.bodies.spans(a.ticket))
    }
}

/// `spanring load`: sends until it is over or interrupted, then prints its report.
///
/// Ends with 1 when not a single span was acknowledged.
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

/// Reads how long a client waits.
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
        tls: args.tls.config(),
        keep_accepted: false,
    }
}

/// A bar on stderr, or a spinner when the length is not known; nothing unless stderr is a terminal.
pub(crate) fn progress_bar(length: Option<Duration>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let Some(length) = length else {
        return ProgressBar::new_spinner();
    };
    let bar = ProgressBar::new(u64::try_from(length.as_millis()).unwrap_or(u64::MAX));
    match ProgressStyle::with_template("{bar:40} {percent:>3} %  {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
