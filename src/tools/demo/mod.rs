//! `spanring demo`: runs counting backends, proxies in front of them and a load generator in one process, then compares
//! what was acknowledged with what the backends received.
//!
//! The spans of each trace are sent in several requests through different proxies. The demo succeeds if every trace is
//! complete on one backend and no acknowledged span is missing.

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

/// Smallest number of traces that a demo sends. With fewer, the shares of the backends would differ by chance.
const MIN_TRACES: u64 = 5_000;

/// Run backends, proxies and load in one process; print how many traces stayed whole.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  spanring demo    with four backends and three proxies, for five seconds
  spanring demo --backends 10 --proxies 5 --seconds 10
  spanring demo --json | jq .traces_whole")]
pub struct Args {
    /// Number of backends, which stand for collectors
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub backends: u16,
    /// Number of proxies in front of them
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub proxies: u16,
    /// How long to send (longer if that is too short for 5,000 traces)
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub seconds: u64,
    /// Spans in each request
    #[arg(long, visible_alias = "batch", value_name = "N", default_value_t = 100)]
    pub spans_per_batch: usize,
    /// Requests in flight through all proxies together
    #[arg(long, value_name = "N", default_value_t = 12)]
    pub in_flight: usize,
    /// Seed of the traces
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// A proxy started for the demo.
#[derive(Debug)]
pub struct RunningProxy {
    /// Address of its OTLP/gRPC receiver.
    pub grpc: SocketAddr,
    /// Its tasks, which are stopped and awaited after the load.
    pub tasks: Vec<Tasks>,
}

/// Runs `spanring demo`. `start_proxy` starts a proxy in front of the given backends and returns when it is ready.
///
/// The exit code is 1 if a trace was split or an acknowledged span is missing.
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

/// Runs the demo until its time is over and `min_traces` traces were sent; returns the report.
pub async fn play<F>(args: &Args, min_traces: u64, start_proxy: F) -> anyhow::Result<DemoReport>
where
    F: AsyncFn(&[SocketAddr]) -> anyhow::Result<RunningProxy>,
{
    // The load has its own tasks: when the demo is interrupted, the load is drained while the backends keep running.
    let (tasks, of_load) = (Tasks::new(), Tasks::new());
    let Args { backends, proxies, seconds, .. } = args;
    let progress = progress_bar(Some(Duration::from_secs(*seconds)));
    progress.set_message(format!("starting {backends} backends and {proxies} proxies"));
    progress.tick();
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
    progress.set_prefix(format!(
        "sending to {backends} backends through {proxies} proxies: ",
        backends = args.backends,
        proxies = args.proxies
    ));
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
    let checking = progress_bar(None);
    checking.set_message("comparing what was acknowledged with what each backend received");
    checking.tick();
    let report = DemoReport::of(args, &run, &sinks);
    checking.finish_and_clear();
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
        // Enough for variety. The span IDs are overwritten when a request is sent, so every span is unique.
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

    /// Stands in for a proxy: the address of a backend, to which the load is sent directly.
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
    async fn a_demo_with_proxies_that_disagree_fails() {
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
