//! A backend that counts what it receives: OTLP/gRPC and OTLP/HTTP of every signal. It is cheap, since it often runs on the machine
//! on which something else is measured. Spans are identified one by one; data points, log records and profiles are only
//! counted.
//!
//! It recognises the complete traces of our generator by their IDs ([`super::ids`]). It can be configured to answer
//! late, to fail and to reject records.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::net::TcpListener;

mod behaviour;
mod count;
mod http;
mod journal;
mod page;
mod serve;
#[cfg(test)]
mod tests;

pub(crate) use self::journal::now_ns;
use self::{behaviour::Sequence, count::Counters, journal::Journal};
pub use self::{
    behaviour::{Behaviour, FailureCode},
    count::{RecordsReport, Report, SeenTrace, SpanId, TraceId, TrackedReport},
    journal::{JournalEntry, read_journal},
};
use super::{grouped, ids::TraceKey, parse_duration, parse_share};
pub use crate::tools::tls::ServerArgs;
use crate::{lifecycle::Tasks, tls};

/// A counting OTLP backend.
///
/// Takes traces, metrics, logs and profiles. Spans are identified by their IDs; data points, log records and profiles
/// are only counted.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  spanring sink --grpc 127.0.0.1:15001 --grpc 127.0.0.1:15002    two backends in one process, report on Ctrl-C
  spanring sink --delay 20ms --failure-rate 0.1 --http 127.0.0.1:15080    slow and failing; curl 127.0.0.1:15080/report
  spanring sink --count-only --json    cheapest, for measurements")]
pub struct Args {
    /// Address for OTLP/gRPC and OTLP/HTTP. May be repeated; each address is a backend with its own counters
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4317")]
    pub grpc: Vec<SocketAddr>,
    /// Address for GET /report (JSON), GET /spans and PUT /behaviour
    #[arg(long, value_name = "ADDR")]
    pub http: Option<SocketAddr>,
    /// Write every span to this file before it is acknowledged: trace ID, span ID, time sent, time received (40 bytes)
    #[arg(long, value_name = "FILE", conflicts_with = "count_only")]
    pub journal: Option<PathBuf>,
    /// Count spans without reading their IDs; traces and duplicates are not reported
    #[arg(long)]
    pub count_only: bool,
    /// Largest number of traces to track, at about 24 bytes each; spans of further traces are only counted
    #[arg(long, value_name = "N", default_value_t = 20_000_000)]
    pub max_tracked_traces: usize,
    /// Delay before each answer
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    pub delay: Duration,
    /// Share of requests to refuse, from 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = parse_share)]
    pub failure_rate: f64,
    /// Status code of a refusal, or how the transport is to fail
    #[arg(long, value_name = "CODE", value_enum, default_value = "unavailable")]
    pub failure_code: FailureCode,
    /// RetryInfo of a refusal
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub failure_retry_after: Option<Duration>,
    /// Share of spans, data points, log records or profiles to reject by partial_success, from 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = parse_share)]
    pub reject_rate: f64,
    /// Seed that decides which requests and records are refused
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Largest decompressed message, like the Collector's setting of that name
    #[arg(long, value_name = "MIB", default_value_t = 4)]
    pub max_recv_msg_size_mib: usize,
    /// HTTP/2 frame size to advertise (16384 is grpc-go's)
    #[arg(long, value_name = "BYTES", default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(16_384..=16_777_215))]
    pub max_frame_size: u32,
    /// TLS options.
    #[command(flatten)]
    pub tls: ServerArgs,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// Configuration of one sink.
#[derive(Clone, Debug, PartialEq)]
pub struct SinkConfig {
    /// Listening address; port 0 picks a free port.
    pub grpc: SocketAddr,
    /// Largest number of traces to track; `None` to only count spans.
    pub max_tracked_traces: Option<usize>,
    /// Largest message in bytes after decompression.
    pub max_recv_msg_size: usize,
    /// HTTP/2's `SETTINGS_MAX_FRAME_SIZE`.
    pub max_frame_size: u32,
    /// HTTP/2's `SETTINGS_MAX_CONCURRENT_STREAMS`.
    pub max_concurrent_streams: u32,
    /// File in which every span is recorded; requires tracking.
    pub journal: Option<PathBuf>,
    /// TLS, or `None` for plaintext.
    pub tls: Option<tls::ServerConfig>,
    /// Initial behaviour.
    pub behaviour: Behaviour,
}

impl Default for SinkConfig {
    /// Listens on a free port of 127.0.0.1, tracks traces and has a Collector's limits.
    fn default() -> Self {
        Self {
            grpc: SocketAddr::from(([127, 0, 0, 1], 0)),
            max_tracked_traces: Some(20_000_000),
            max_recv_msg_size: 4 << 20,
            max_frame_size: 16_384,
            max_concurrent_streams: 10_000,
            journal: None,
            tls: None,
            behaviour: Behaviour::default(),
        }
    }
}

#[derive(Debug)]
struct Inner {
    config: SinkConfig,
    behaviour: ArcSwap<Behaviour>,
    sequence: Sequence,
    counters: Counters,
    journal: Option<Journal>,
    tls: Option<tls::Server>,
}

/// A running sink. Clones share its state. It runs until the tasks that it was started with end.
#[derive(Clone, Debug)]
pub struct Sink {
    /// Listening address.
    pub addr: SocketAddr,
    inner: Arc<Inner>,
}

impl Sink {
    /// Binds the address and serves it. When `tasks` drain, the listener is closed and GOAWAY is sent; when they stop,
    /// connections are cut.
    pub async fn start(config: SinkConfig, tasks: &Tasks) -> io::Result<Self> {
        let listener = TcpListener::bind(config.grpc).await?;
        let addr = listener.local_addr()?;
        let inner = Arc::new(Inner {
            behaviour: ArcSwap::from_pointee(config.behaviour.clone()),
            sequence: Sequence::default(),
            counters: Counters::new(config.max_tracked_traces),
            journal: config.journal.as_deref().map(Journal::open).transpose()?,
            tls: config
                .tls
                .clone()
                .map(|tls| tls::Server::load("sink", tls, &[b"h2", b"http/1.1"]))
                .transpose()
                .map_err(io::Error::other)?,
            config,
        });
        tasks.spawn(serve::accept(listener, Arc::clone(&inner), tasks.clone()));
        Ok(Self { addr, inner })
    }

    /// Returns the counters.
    pub fn report(&self) -> Report {
        self.inner.counters.report(self.addr.to_string())
    }

    /// Returns the spans received, by trace; empty without tracking.
    pub fn seen(&self) -> BTreeMap<TraceId, Vec<SpanId>> {
        self.inner.counters.seen()
    }

    /// Returns the traces of our generator in no particular order; empty without tracking.
    pub fn own_traces(&self) -> Vec<(TraceKey, SeenTrace)> {
        self.inner.counters.own_traces()
    }

    /// Returns the current behaviour.
    pub fn behaviour(&self) -> Arc<Behaviour> {
        self.inner.behaviour.load_full()
    }

    /// Changes the behaviour, from the next request on.
    pub fn set_behaviour(&self, behaviour: Behaviour) {
        self.inner.behaviour.store(Arc::new(behaviour));
    }
}

/// Report of a process with one or more sinks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SinksReport {
    /// Report of each sink.
    pub sinks: Vec<Report>,
    /// Traces all of whose spans came to the same sink; `None` unless all sinks track traces.
    pub traces_whole: Option<u64>,
    /// Traces whose spans came to more than one sink; `None` unless all sinks track traces.
    pub traces_split: Option<u64>,
}

impl SinksReport {
    /// Reads the counters of the sinks.
    pub fn of(sinks: &[Sink]) -> Self {
        let reports: Vec<Report> = sinks.iter().map(Sink::report).collect();
        let is_tracking = reports.iter().all(|report| report.tracked.is_some());
        let placement = is_tracking.then(|| placement(sinks));
        Self {
            traces_whole: placement.map(|(whole, _)| whole),
            traces_split: placement.map(|(_, split)| split),
            sinks: reports,
        }
    }

    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        for report in &self.sinks {
            writeln!(out, "sink {}", report.address)?;
            let mut line = |name: &str, count: u64| writeln!(out, "  {name:<18} {:>15}", grouped(count));
            line("spans", report.spans)?;
            line("requests", report.requests)?;
            line("connections", report.connections)?;
            if let Some(tracked) = report.tracked {
                line("traces", tracked.traces)?;
                line("traces in part", tracked.traces_partial)?;
                line("duplicates", tracked.duplicates)?;
            }
            let exceptions = [
                ("requests failed", report.failed_requests),
                ("requests invalid", report.invalid_requests),
                ("requests broken", report.broken_requests),
                ("spans rejected", report.rejected_spans),
                ("invalid IDs", report.invalid_ids),
                ("foreign spans", report.foreign_spans),
                ("spans untracked", report.tracked.map_or(0, |tracked| tracked.untracked_spans)),
            ];
            for (name, records) in &report.records {
                let name = name.replace('_', " ");
                if records.taken > 0 {
                    line(&name, records.taken)?;
                }
                if records.rejected > 0 {
                    line(&format!("{name} rejected"), records.rejected)?;
                }
            }
            for (name, count) in exceptions.into_iter().filter(|(_, count)| *count > 0) {
                line(name, count)?;
            }
        }
        if let (Some(whole), Some(split)) = (self.traces_whole, self.traces_split)
            && self.sinks.len() > 1
        {
            writeln!(out, "traces whole on one sink {}, split over several {}", grouped(whole), grouped(split))?;
        }
        Ok(())
    }
}

/// Returns how many traces came to one sink completely, and how many came to several sinks.
fn placement(sinks: &[Sink]) -> (u64, u64) {
    let mut seen: HashMap<TraceKey, (u32, bool)> = HashMap::new();
    for sink in sinks {
        for (key, trace) in sink.own_traces() {
            let entry = seen.entry(key).or_default();
            *entry = (entry.0 + 1, trace.is_whole());
        }
    }
    let whole = seen.values().filter(|(on, is_whole)| *on == 1 && *is_whole).count();
    let split = seen.values().filter(|(on, _)| *on > 1).count();
    (whole as u64, split as u64)
}

/// `spanring sink`: serves until SIGINT or SIGTERM, then prints the report.
pub async fn run(args: Args, out: &mut (dyn Write + Send)) -> anyhow::Result<ExitCode> {
    let tasks = Tasks::new();
    let mut sinks = Vec::new();
    for (n, grpc) in args.grpc.iter().enumerate() {
        let sink = Sink::start(config(&args, *grpc, n as u64), &tasks)
            .await
            .with_context(|| format!("cannot listen on {grpc}"))?;
        tracing::info!(address = %sink.addr, "sink is listening");
        sinks.push(sink);
    }
    let sinks: Arc<[Sink]> = sinks.into();
    if let Some(http) = args.http {
        let listener = TcpListener::bind(http).await.with_context(|| format!("cannot listen on {http}"))?;
        tracing::info!(address = %listener.local_addr()?, "reports are served");
        tasks.spawn(page::serve(listener, Arc::clone(&sinks), tasks.clone()));
    }
    super::interrupted().await.context("cannot wait for signals")?;
    let report = SinksReport::of(&sinks);
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        report.write_text(out)?;
    }
    tasks.stop();
    tasks.wait().await;
    Ok(ExitCode::SUCCESS)
}

fn config(args: &Args, grpc: SocketAddr, n: u64) -> SinkConfig {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    SinkConfig {
        grpc,
        max_tracked_traces: (!args.count_only).then_some(args.max_tracked_traces),
        max_recv_msg_size: args.max_recv_msg_size_mib << 20,
        max_frame_size: args.max_frame_size,
        journal: args.journal.clone(),
        tls: args.tls.clone().config(),
        behaviour: Behaviour {
            delay_ms: millis(args.delay),
            failure_rate: args.failure_rate,
            failure_code: args.failure_code,
            failure_retry_after_ms: args.failure_retry_after.map(millis),
            reject_rate: args.reject_rate,
            seed: args.seed.wrapping_add(n),
            ..Behaviour::default()
        },
        ..SinkConfig::default()
    }
}
