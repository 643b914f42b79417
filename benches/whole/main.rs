//! How many traces stay whole while the pool changes: `cargo bench --bench whole -- --help`.
//!
//! Real proxies, each with a name server of its own, stand between services that export spans as SDKs do and backends
//! that note every span ([`whole::world`]). While they work, the pool changes ([`whole::plan`]). Then the bench counts the traces of
//! which one backend got every span ([`whole::verdict`]). `SPANRING_BIN` names another binary to measure.
//!
//! `simulate` applies the rules of the hand-off to thousands of backends and days of changes in simulated time
//! ([`simulate`]).
//!
//! The bench needs root and util-linux, since the proxies must see different name servers.

mod chart;
#[path = "../../tests/it/harness.rs"]
#[allow(dead_code, reason = "tests need more of it")]
mod harness;
#[path = "../../tests/it/nameserver.rs"]
#[allow(dead_code, reason = "tests need more of it")]
mod nameserver;
mod report;
mod simulate;
#[path = "../../tests/it/whole/mod.rs"]
#[allow(dead_code, unused_imports, reason = "tests need more of it")]
mod whole;

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::ExitCode,
    sync::{Mutex, PoisonError, mpsc},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use spanring::settings::Placement;

use whole::{
    plan::{BACKENDS, Event},
    proxy::{MODES, Program},
    run::{Outcome, Run},
    traces::Spec,
};

/// The factor of all times with `--quick`.
const QUICK: f64 = 0.15;

/// The greatest skew with which `dual` must keep every trace whole that can be kept whole.
const KEPT_WHOLE_UP_TO: Duration = Duration::from_secs(5);

/// Measures how many traces stay whole while the pool of backends changes.
#[derive(Debug, Parser)]
#[command(name = "whole", after_help = AFTER_HELP, max_term_width = 120)]
struct Args {
    /// `simulate` applies the rules of the hand-off in simulated time instead of running processes
    #[arg(value_parser = ["simulate"])]
    what: Option<String>,
    /// Only this event; may be repeated
    #[arg(long, value_name = "NAME", value_parser = Event::ALL.map(Event::name))]
    event: Vec<String>,
    /// Backends at the beginning [default: 4; 2000 in the simulation]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=10_000))]
    backends: Option<u32>,
    /// Only this hand-off mode; may be repeated
    #[arg(long, value_name = "NAME", value_parser = MODES)]
    mode: Vec<String>,
    /// Only this skew, the time between the first and the last replica that learns of a change, in seconds; may be
    /// repeated. Without it: 0, 1, 5 and 10, and more in the simulation
    #[arg(long, value_name = "SECONDS")]
    skew: Vec<f64>,
    /// `ring.handoff.skew` of the pool, in seconds [default: the window, so that no root span is spared]
    #[arg(long, value_name = "SECONDS")]
    handoff_skew: Option<f64>,
    /// Write the results as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure another proxy: the shell command that starts a replica
    #[arg(long, value_name = "COMMAND")]
    peer: Option<String>,
    /// The configuration file of the other proxy, with the same placeholders
    #[arg(long, value_name = "FILE", requires = "peer")]
    peer_config: Option<PathBuf>,
    /// Shorten all times, to check that the bench works
    #[arg(long)]
    quick: bool,
    /// How many runs take place at the same time [default: 4 for each processor]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Traces that start in a second of a run; each has 6 spans on average
    #[arg(long, value_name = "N", default_value_t = 50.0)]
    rate: f64,
    /// Seed of the traces
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Options of the simulation.
    #[command(flatten)]
    simulation: simulate::Simulation,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

const AFTER_HELP: &str = "Events:
  one-more           4 backends become 5
  three-more         4 backends become 7
  drained            one of 4 leaves DNS and serves on
  rolling-addresses  each backend is replaced by one with a new address: the new one joins, the old one leaves DNS after
                     10 s, serves for 45 s more and ends; one after the other
  rolling-names      backends with stable names: each one stops and is back after 5 s at a new address
  flapping           a healthy backend leaves DNS for 3 s and is back for 3 s, five times
  other-ring         a reload changes ring.algorithm from otelcol_v2 to slots_v1 (the same backends)
  crash              one of 4 ends without notice; it leaves DNS after 3 s
  replica            one of 3 replicas of the proxy is restarted

Placeholders of --peer and --peer-config:
  {listen}    address for OTLP/gRPC        {page}      a further free address
  {name}      DNS name of the backends     {port}      port of all backends
  {backends}  their own names, each as \"name:port\", separated by commas (only in rolling-names)
  {config}    path of the file made from --peer-config

A full run takes about 40 minutes on 2 processors. It ends with exit code 1 if an acknowledged span was lost, or if, with
dual and a skew of at most 5 s, an event other than crash and replica left a trace not whole that had no span on an
instance which stopped before its last span came.";

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let mut out = std::io::stdout();
    if args.what.is_some() {
        simulate::run(&args.simulation, args.backends, &args.skew, args.quick, args.seed, &mut out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let scale = if args.quick { QUICK } else { 1.0 };
    let programs = programs(&args, scale, &mut out)?;
    let first = programs.first().context("there is nothing to measure")?;
    let described = first.describe()?;
    let runs = runs(&args, &programs, scale);
    writeln!(out, "{described}; {} runs\n", runs.len())?;
    report::write_head(&mut out)?;
    let jobs = args.jobs.unwrap_or_else(|| 4 * std::thread::available_parallelism().map_or(1, usize::from));
    let outcomes = execute(&runs, jobs, &mut out)?;
    report::write_notes(&outcomes, &mut out)?;
    if let Some(file) = &args.json {
        report::write_json(&described, &outcomes, file)?;
    }
    let kept_whole_up_to = KEPT_WHOLE_UP_TO.mul_f64(scale).as_secs_f64();
    let is_bad = |outcome: &&Outcome| {
        let is_planned = Event::ALL.iter().any(|event| event.name() == outcome.event && event.is_planned());
        let is_to_be_whole = is_planned && outcome.mode == "dual" && outcome.skew_s <= kept_whole_up_to;
        outcome.verdict.lost > 0 || is_to_be_whole && outcome.verdict.inexcusable() > 0
    };
    let mut bad = outcomes.iter().filter(is_bad).peekable();
    let code = if bad.peek().is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    for Outcome { event, mode, skew_s, verdict, .. } in bad {
        let (lost, split) = (verdict.lost, verdict.inexcusable());
        writeln!(
            out,
            "failed: {event}, {mode}, {skew_s} s: {lost} spans lost, {split} traces not whole without excuse"
        )?;
    }
    Ok(code)
}

/// Returns the programs to measure: Spanring in each mode that the binary has, or the other proxy.
fn programs(args: &Args, scale: f64, out: &mut dyn Write) -> Result<Vec<Program>> {
    if let Some(command) = &args.peer {
        let read = |file| fs::read_to_string(file).context("cannot read the configuration of the other proxy");
        let config = args.peer_config.as_ref().map(read).transpose()?;
        return Ok(vec![Program::Peer { command: command.clone(), config }]);
    }
    let defaults = Placement::default();
    let window = defaults.ring.handoff.window;
    // Without the option as a pool that polls DNS has it.
    let skew = args.handoff_skew.map(Duration::try_from_secs_f64).transpose()?.unwrap_or(window);
    let handoff = [window, skew].map(|time| time.mul_f64(scale));
    let mut programs = Vec::new();
    let wanted = |mode: &&&str| args.mode.is_empty() || args.mode.iter().any(|wanted| wanted == **mode);
    for mode in MODES.iter().filter(wanted) {
        match Program::spanring(mode, handoff, defaults.hold_down.mul_f64(scale))? {
            Ok(program) => programs.push(program),
            Err(reason) => writeln!(out, "skipped: {mode}, since the binary refuses it: {reason}\n")?,
        }
    }
    Ok(programs)
}

fn runs(args: &Args, programs: &[Program], scale: f64) -> Vec<Run> {
    let skews = if args.skew.is_empty() { &[0.0, 1.0, 5.0, 10.0] } else { args.skew.as_slice() };
    let mut runs = Vec::new();
    for event in Event::ALL {
        if !args.event.is_empty() && !args.event.iter().any(|wanted| wanted == event.name()) {
            continue;
        }
        let plan = event.plan(args.backends.map_or(BACKENDS, |backends| backends as usize), scale);
        let spec = Spec { seed: args.seed, traces_per_second: args.rate, ..Spec::default() }.scaled(scale);
        for program in programs.iter().filter(|program| program.can_follow(&plan)) {
            for skew in skews {
                runs.push(Run {
                    event: event.name(),
                    plan: plan.clone(),
                    program: program.clone(),
                    skew: Duration::try_from_secs_f64(skew * scale).unwrap_or_default(),
                    scale,
                    spec: spec.clone(),
                });
            }
        }
    }
    runs
}

/// Executes the runs, some at the same time, and writes the line of each in their order.
fn execute(runs: &[Run], jobs: usize, out: &mut dyn Write) -> Result<Vec<Outcome>> {
    ensure!(jobs > 0, "--jobs must be at least 1");
    let runtime = tokio::runtime::Runtime::new()?;
    let queue = Mutex::new(runs.iter().enumerate());
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(runs.len()) {
            let (sender, queue, handle) = (sender.clone(), &queue, runtime.handle());
            scope.spawn(move || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some((n, run)) = next else { return };
                    let outcome = run.execute(handle).with_context(|| format!("{run:?}"));
                    // The receiver is gone after an error.
                    if sender.send((n, outcome)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut waiting = std::collections::BTreeMap::new();
        let mut outcomes = Vec::new();
        for (n, outcome) in receiver {
            waiting.insert(n, outcome?);
            while let Some(outcome) = waiting.remove(&outcomes.len()) {
                report::write_line(&outcome, out)?;
                outcomes.push(outcome);
            }
        }
        Ok(outcomes)
    })
}
