//! The life of the process: parse arguments, load the configuration, start logging, run, drain, return an exit code.
//! Only this file prints to stdout and stderr.

use std::{
    io::{self, Write},
    net::SocketAddr,
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context;
use clap::Parser;
use spanring::{
    cli::{Cli, Command, EXIT_FAILURE, EXIT_USAGE, RunArgs},
    config::{Config, LoadError},
    descriptors::{self, Raised},
    proxy::Proxy,
    settings::Settings,
    signals::{Hangups, Signals},
    telemetry::{logs, panics},
    tools::{self, demo::RunningProxy, ring::RingToolError},
};
#[cfg(not(target_env = "msvc"))]
use tikv_jemallocator::Jemalloc;
use tokio::runtime;
use tracing::{error, info, warn};

/// Freed memory goes back to the system (see `.cargo/config.toml`). With glibc's allocator it stays: 129 MiB after an attack of
/// clients that jemalloc leaves 25 MiB of, at the same cost of a span.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let result = match Cli::parse().into_command() {
        Command::Run(args) => run(args),
        Command::Validate(args) => validate(args),
        Command::PrintConfig(args) => print_config(args),
        Command::Ring(args) => tool(async move |out| Ok(tools::ring::run(args, out, &mut io::stderr()).await?)),
        Command::Convert(args) => convert(&args),
        Command::Healthcheck(args) => tool(async move |out| tools::healthcheck::run(args, out).await),
        Command::Sink(args) => sink(args),
        Command::Load(args) => tool(async move |out| tools::load::run(args, out).await),
        Command::Demo(args) => tool(async move |out| tools::demo::run(args, demo_proxy, out).await),
    };
    result.unwrap_or_else(|error| fail(&error))
}

/// Prints the error with its chain of causes to stderr and returns the exit code for it.
#[expect(clippy::print_stderr, reason = "main is the one place that prints")]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    let is_usage = error.is::<LoadError>() || error.is::<RingToolError>();
    ExitCode::from(if is_usage { EXIT_USAGE } else { EXIT_FAILURE })
}

fn validate(args: RunArgs) -> anyhow::Result<ExitCode> {
    let config = args.draft()?.check()?;
    let mut out = io::stdout().lock();
    for warning in &config.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    writeln!(out, "valid: {} pool(s), {} route(s)", config.pools.len(), config.routes.len())?;
    Ok(ExitCode::SUCCESS)
}

fn print_config(args: RunArgs) -> anyhow::Result<ExitCode> {
    let draft = args.draft()?;
    draft.check()?;
    io::stdout().lock().write_all(draft.print()?.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the converted file to stdout and the findings to stderr, the most important first. Without a single route the
/// conversion has failed and nothing is printed to stdout.
#[expect(clippy::print_stderr, reason = "stdout is the file that came out")]
fn convert(args: &tools::convert::Args) -> anyhow::Result<ExitCode> {
    let converted = args.run()?;
    for line in converted.report() {
        eprintln!("{line}");
    }
    if converted.routes == 0 {
        eprintln!("error: nothing to convert: no pipeline leads to a load-balancing exporter that goes by trace ID");
        return Ok(ExitCode::from(EXIT_USAGE));
    }
    io::stdout().lock().write_all(converted.yaml.as_bytes())?;
    eprintln!(
        "converted {} pool(s) and {} route(s); {} finding(s), listed above",
        converted.pools,
        converted.routes,
        converted.notes.len()
    );
    Ok(ExitCode::SUCCESS)
}

fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let raised = descriptors::raise();
    descriptors::share()?;
    let draft = args.clone().draft()?;
    let config = draft.check()?;
    logs::init(config.logs)?;
    panics::watch();
    match raised {
        Ok(Raised { from, to }) if from != to => info!(?from, ?to, "raised the soft limit of open files"),
        Ok(_) => {}
        Err(error) => warn!(%error, "cannot raise the soft limit of open files"),
    }
    for warning in &config.warnings {
        warn!("{warning}");
    }
    let threads = config.worker_threads;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        worker_threads = threads,
        memory_limit = config.memory_limit,
        "starting"
    );
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("spanring")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(serve(config, args, draft.settings));
    // Running tasks have had their time to end. A blocking DNS look-up must not delay the exit.
    runtime.shutdown_background();
    // Logging is set up by now, so a failure is logged in the configured format instead of printed.
    Ok(result.unwrap_or_else(|error| {
        error!("{error:#}");
        ExitCode::from(EXIT_FAILURE)
    }))
}

/// Runs the proxy until it ends. The first SIGTERM or SIGINT drains it, a second one ends it at once; SIGHUP reloads
/// the configuration.
async fn serve(config: Config, args: RunArgs, read: Settings) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::listen().context("cannot listen to signals")?;
    let mut hangups = Hangups::listen().context("cannot listen to signals")?;
    let proxy = Proxy::start(config).await?;
    let watch = args.watch_config();
    let reload = proxy.reload_from(Arc::new(move || args.clone().draft()), read, watch);
    let signal = loop {
        tokio::select! {
            signal = signals.next() => break signal,
            () = hangups.next() => reload.reload(),
        }
    };
    info!(signal = signal.as_str(), "draining; a second signal ends the process at once");
    tokio::select! {
        () = proxy.drain() => Ok(ExitCode::SUCCESS),
        signal = signals.next() => {
            warn!(signal = signal.as_str(), "ending at once");
            Ok(ExitCode::from(signal.exit_code()))
        }
    }
}

/// Runs the counting backend; it logs to stderr.
fn sink(args: tools::sink::Args) -> anyhow::Result<ExitCode> {
    logs::init(logs::Config::default())?;
    tool(async move |out| tools::sink::run(args, out).await)
}

/// Runs a tool to its end, with stdout as its output.
fn tool<F>(run: F) -> anyhow::Result<ExitCode>
where
    F: AsyncFnOnce(&mut (dyn Write + Send)) -> anyhow::Result<ExitCode>,
{
    // If the limit cannot be raised, the tool runs with the limit it has.
    drop(descriptors::raise());
    let runtime = runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
    let result = runtime.block_on(run(&mut io::stdout()));
    runtime.shutdown_background();
    result
}

/// Starts one of the demo's proxies as `spanring --backends static://…` would, on ports chosen by the system.
async fn demo_proxy(backends: &[SocketAddr]) -> anyhow::Result<RunningProxy> {
    let proxy = Proxy::start(Config::on_free_ports(backends)?).await?;
    proxy.ready().await;
    let grpc = proxy.grpc.context("the proxy serves no OTLP/gRPC")?;
    Ok(RunningProxy { grpc, tasks: proxy.into_tasks().into() })
}
