//! Everything in one process: backends that count, proxies before them, load before those; then the account.
//!
//! Every trace's spans enter through different proxies in different requests. The demo ends well when each trace is
//! whole on one backend and every span that was acknowledged is there.

use std::{io::Write, net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::{Context, ensure};

mod verdict;

pub use self::verdict::{BackendShare, DemoReport};
use super::{
    interrupted,
    load::{LoadConfig, Until, progress_bar, run_load},
    otlp_body::{BodySpec, default_traces},
    sink::{Sink, SinkConfig},
};
use crate::lifecycle::Tasks;

/// Fewest traces that a demo sends: with fewer, chance alone makes backends unequal.
const MIN_TRACES: u64 = 5_000;

/// Backends, proxies and load in one process; prints how many traces stayed whole.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  spanring demo    four backends, three proxies, five seconds
  spanring demo --backends 10 --proxies 5 --seconds 10
  spanring demo --json | jq .traces_whole")]
pub struct Args {
    /// Collectors to pretend
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub backends: u16,
    /// Proxies in front of them
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub proxies: u16,
    /// How long to send (longer, if that is too short for 5,000 traces)
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub seconds: u64,
    /// Spans in each request
    #[arg(long, visible_alias = "batch", value_name = "N", default_value_t = 100)]
    pub spans_per_batch: usize,
    /// Requests in flight, over all proxies
    #[arg(long, value_name = "N", default_value_t = 12)]
    pub in_flight: usize,
    /// Seed of the traces
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// A proxy that was started for the demo.
#[derive(Debug)]
pub struct RunningProxy {
    /// Where it takes OTLP/gRPC.
    pub grpc: SocketAddr,
    /// What runs it: drained, stopped and awaited when the load is over.
    pub tasks: Vec<Tasks>,
}

/// `spanring demo`. `start_proxy` starts one proxy in front of these backends and returns when it is ready.
///
/// Ends with 1 when a trace was split or an acknowledged span is missing.
pub async fn run<F>(args: Args, start_proxy: F, out: &mut (dyn Write + Send)) -> anyhow::Result<ExitCode>
where
    F: AsyncFn(&[SocketAddr]) -> anyhow::Result<RunningProxy>,
{
    let report = play(&args, MIN_TRACES, start_proxy).await?;
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        report.write_text(out)?;
    }
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the demo until its time is over and `min_traces` were sent, and returns its account.
pub async fn play<F>(args: &Args, min_traces: u64, start_proxy: F) -> anyhow::Result<DemoReport>
where
    F: AsyncFn(&[SocketAddr]) -> anyhow::Result<RunningProxy>,
{
    // The load has tasks of its own: an interrupted demo drains it while the backends go on.
    let (tasks, of_load) = (Tasks::new(), Tasks::new());
    let mut sinks = Vec::new();
    for _ in 0..args.backends {
        sinks.push(Sink::start(SinkConfig::default(), &tasks).await.context("cannot start a backend")?);
    }
    let backends: Vec<SocketAddr> = sinks.iter().map(|sink| sink.addr).collect();
    let mut proxies = Vec::new();
    for _ in 0..args.proxies {
        proxies.push(start_proxy(&backends).await.context("cannot start a proxy")?);
    }
    let endpoints = proxies.iter().map(|proxy| proxy.grpc.to_string()).collect();
    let config = load_config(args, min_traces, endpoints);
    let progress = progress_bar(config.until.elapsed);
    let load = run_load(config, &progress, &of_load);
    tokio::pin!(load);
    let finished = tokio::select! {
        finished = &mut load => finished,
        _ = interrupted() => {
            of_load.drain();
            load.await
        }
    };
    for tasks in std::iter::once(&of_load).chain(proxies.iter().flat_map(|proxy| &proxy.tasks)) {
        tasks.stop();
        tasks.wait().await;
    }
    let run = finished?;
    ensure!(run.sent > 0, "nothing was sent");
    let report = DemoReport::of(args, &run, &sinks);
    tasks.stop();
    tasks.wait().await;
    Ok(report)
}

fn load_config(args: &Args, min_traces: u64, endpoints: Vec<String>) -> LoadConfig {
    let traces = default_traces(args.spans_per_batch);
    let body = BodySpec {
        seed: args.seed,
        spans: args.spans_per_batch,
        traces,
        // Enough for variety; every span gets an ID of its own when it is sent.
        bodies: 64,
        max_bytes: 64 << 20,
        unique: true,
        ..BodySpec::default()
    };
    let requests = min_traces.div_ceil(traces.max(1) as u64) * body.spread as u64;
    LoadConfig {
        connections: endpoints.len(),
        endpoints,
        in_flight: args.in_flight,
        body,
        until: Until { elapsed: Some(Duration::from_secs(args.seconds)), requests: Some(requests) },
        keep_accepted: true,
        ..LoadConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(backends: u16, proxies: u16) -> Args {
        Args { backends, proxies, seconds: 0, spans_per_batch: 100, in_flight: 4, seed: 1, json: true }
    }

    /// Stands for a proxy: the address of one of the backends, so that load goes there unsplit.
    fn straight_to(addr: SocketAddr) -> anyhow::Result<RunningProxy> {
        Ok(RunningProxy { grpc: addr, tasks: Vec::new() })
    }

    #[tokio::test]
    async fn one_backend_gets_every_trace_whole() {
        let report = play(&args(1, 2), 500, async |backends| straight_to(backends[0])).await.unwrap();
        assert!(report.is_good());
        assert!(report.traces >= 500);
        assert_eq!((report.traces_whole, report.spans_missing, report.spans_duplicate), (report.traces, 0, 0));
        assert_eq!(report.backends[0].spans, report.spans_acknowledged);
    }

    #[tokio::test]
    async fn proxies_that_do_not_agree_are_found_out() {
        let turn = std::cell::Cell::new(0);
        let next = async |backends: &[SocketAddr]| {
            turn.set(turn.get() + 1);
            straight_to(backends[turn.get() - 1])
        };
        let mut out = Vec::new();
        let report = play(&args(2, 2), 500, next).await.unwrap();
        assert!(!report.is_good());
        assert_eq!((report.traces_whole, report.spans_missing), (0, 0));
        assert_eq!(report.traces_split, report.traces);
        report.write_text(&mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().contains("split"));
    }

    #[tokio::test]
    async fn the_json_has_the_promised_keys() {
        let mut out = Vec::new();
        let code = run(args(1, 1), async |backends| straight_to(backends[0]), &mut out).await.unwrap();
        assert_eq!(code, ExitCode::SUCCESS);
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        for key in ["traces", "traces_whole", "spans_acknowledged", "spans_missing", "spans_duplicate"] {
            assert!(json[key].is_u64(), "{key}");
        }
        assert!(json["spans_per_second"].is_number());
        for key in ["id", "spans", "traces"] {
            assert!(!json["backends"][0][key].is_null(), "{key}");
        }
    }
}
