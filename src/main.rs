//! The life of the process: parse, configure, log, run, drain, exit code. The only file that prints.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Context;
use clap::Parser;
use spanring::{
    cli::{Cli, Command, EXIT_FAILURE, EXIT_USAGE, RunArgs},
    config::{Config, LoadError},
    proxy::Proxy,
    signals::Signals,
    telemetry::logs,
};
use tokio::runtime;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

fn main() -> ExitCode {
    let result = match Cli::parse().into_command() {
        Command::Run(args) => run(args),
        Command::Validate(args) => validate(args),
        Command::PrintConfig(args) => print_config(args),
        Command::Sink(_) | Command::Load(_) | Command::Demo(_) => Err(anyhow::anyhow!("not here yet")),
    };
    result.unwrap_or_else(|error| fail(&error))
}

/// Says why on stderr, once: with the whole chain of causes.
#[expect(clippy::print_stderr, reason = "main is the one place that prints")]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(if error.is::<LoadError>() { EXIT_USAGE } else { EXIT_FAILURE })
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

fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let config = args.draft()?.check()?;
    logs::init(config.logs)?;
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
    let result = runtime.block_on(serve(config));
    // What still runs was given its time: a blocked look-up must not hold the process.
    runtime.shutdown_background();
    // From here on the log is where things are said, in its own format.
    Ok(result.unwrap_or_else(|error| {
        error!("{error:#}");
        ExitCode::from(EXIT_FAILURE)
    }))
}

/// From the first port to the last: one signal drains, a second one ends at once.
async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::listen().context("cannot listen to signals")?;
    let proxy = Proxy::start(config).await?;
    let drain = CancellationToken::new();
    let proxy = proxy.run_until(drain.clone().cancelled_owned());
    tokio::pin!(proxy);
    tokio::select! {
        () = &mut proxy => return Ok(ExitCode::SUCCESS),
        signal = signals.next() => info!(signal = signal.as_str(), "draining; a second signal ends the process at once"),
    }
    drain.cancel();
    tokio::select! {
        () = proxy => Ok(ExitCode::SUCCESS),
        signal = signals.next() => {
            warn!(signal = signal.as_str(), "ending at once");
            Ok(ExitCode::from(signal.exit_code()))
        }
    }
}
