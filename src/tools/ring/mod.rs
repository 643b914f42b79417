//! `spanring ring` prints the rings of running proxies, of a configuration file or of a list of backends, as a table or
//! as JSON.
//!
//! `source` obtains rings and `replicas` asks several proxies at once; `plan` and `diff` compute with rings; `show`,
//! `watch`, `plan` and `diff` print. The ring of a running proxy is requested by gRPC. Any other ring is built here,
//! with the code that a proxy uses.

mod diff;
mod plan;
mod replicas;
mod show;
mod source;
mod table;
mod watch;

#[cfg(test)]
mod tests;

use std::{
    io::{self, Read, Write},
    process::ExitCode,
};

use clap::Subcommand;

use self::{
    replicas::Placements,
    source::{Member, MembersArgs, Source, SourceArgs},
};
use super::admin_address::AdminAddress;
use crate::{config::LoadError, discovery::DiscoveryError, otlp::Signal, ring::RingError};

/// Exit code if replicas differ.
const EXIT_DIFFER: u8 = 1;

/// Exit code if one of several proxies gave no answer. If there is only one, that is an error.
const EXIT_UNANSWERED: u8 = 2;

/// `spanring ring`
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show rings: fingerprints, members, their states and shares
    #[command(after_help = "\
Examples:
  spanring ring show                                    the ring of the proxy at 127.0.0.1:8888
  spanring ring show --admin spanring-0:8888 --admin spanring-1:8888
  spanring ring show --config spanring.yaml --pool tail    the ring of a proxy that starts now
  spanring ring show --members a:4317,b:4317 --json
  spanring ring show --members 10.0.0.1,10.0.0.2 --algorithm otelcol_v2    as the Collector's exporter places

Exit codes:
  0    the rings are shown; those of several replicas agree
  1    the rings of several replicas differ
  2    the command line is wrong, or one of them can't be asked; the answers of the others are printed")]
    Show(Show),
    /// Show which backend gets a trace, and why
    #[command(after_help = "\
Examples:
  spanring ring lookup 4bf92f3577b34da6a3ce929d0e0e4736
  spanring ring lookup 4bf92f3577b34da6a3ce929d0e0e4736 --signal traces --json
  spanring ring lookup 4bf92f3577b34da6a3ce929d0e0e4736 --admin spanring-0:8888 --admin spanring-1:8888
  spanring ring lookup - --config spanring.yaml          IDs are read from stdin, one a line

Exit codes:
  0    the owners are shown; several replicas place each trace alike
  1    several replicas place a trace on different backends
  2    the command line is wrong, or one of them can't be asked; the answers of the others are printed")]
    Lookup(Lookup),
    /// Show what adding or removing backends would move
    #[command(after_help = "\
Examples:
  spanring ring plan --add collector-3:4317
  spanring ring plan --config spanring.yaml --remove 10.0.0.7:4317
  spanring ring plan --members a,b,c --add d,e --remove a --json")]
    Plan(Plan),
    /// Print each change of running proxies' rings with its cause; reconnect to proxies that restart
    #[command(after_help = "\
Examples:
  spanring ring watch
  spanring ring watch --admin spanring-0:8888 --admin spanring-1:8888 --json")]
    Watch(Watch),
    /// Show whether two rings agree, and which backends differ
    #[command(after_help = "\
Examples:
  spanring ring diff spanring-0:8888 spanring-1:8888
  spanring ring diff spanring-0:8888 spanring.yaml       a running proxy and its current file
  spanring ring diff spanring-0:8888 static://a,b --pool tail
  spanring ring diff static://a,b static://a,b,c

Exit codes:
  0    they agree
  1    they differ
  2    the command line is wrong, or one of them can't be asked")]
    Diff(Diff),
}

#[derive(Debug, clap::Args)]
struct Show {
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    of_members: MembersArgs,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Lookup {
    /// Trace IDs of 32 hex digits; - reads IDs from stdin
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// Only pools that this signal is routed to
    #[arg(long, value_name = "SIGNAL", value_parser = parse_signal)]
    signal: Option<Signal>,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    of_members: MembersArgs,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Plan {
    /// Backends to add, host:port
    #[arg(long, value_delimiter = ',', value_name = "BACKENDS")]
    add: Vec<Member>,
    /// Backends to remove
    #[arg(long, value_delimiter = ',', value_name = "BACKENDS")]
    remove: Vec<Member>,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    of_members: MembersArgs,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Watch {
    /// Admin address of a running proxy; may be repeated
    #[arg(long, value_name = "HOST:PORT", default_value = source::DEFAULT_ADMIN)]
    admin: Vec<AdminAddress>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Diff {
    /// An admin address (host:port), a file (*.yaml), static://… or dns://…
    a: Source,
    /// Another one
    b: Source,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Only this pool
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    pool: String,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Reason why a ring command failed.
#[derive(Debug, thiserror::Error)]
pub enum RingToolError {
    /// Nothing listens at the address, or it is not a proxy's admin listener.
    #[error("cannot reach the admin listener at {from}; is the proxy running, and is that its admin.endpoint?")]
    Unreachable {
        /// The admin address.
        from: String,
        /// The cause.
        #[source]
        source: tonic::transport::Error,
    },
    /// The proxy did not answer in time.
    #[error("{from} did not answer within {}s", source::ANSWER_WITHIN.as_secs())]
    Silent {
        /// The admin address.
        from: String,
    },
    /// The proxy answered with an error.
    #[error("{from} answered: {message}")]
    Refused {
        /// The admin address.
        from: String,
        /// The proxy's error message.
        message: String,
    },
    /// The watch of a proxy ended.
    #[error("the watch of {from} ended: {why}")]
    Ended {
        /// The admin address.
        from: String,
        /// The cause.
        why: String,
    },
    /// The answer cannot be used, for example because the proxy has another version.
    #[error("{from}, pool {pool}: {what}")]
    Strange {
        /// The source.
        from: String,
        /// The pool.
        pool: String,
        /// The problem.
        what: String,
    },
    /// The configuration cannot be read.
    #[error(transparent)]
    Config(#[from] LoadError),
    /// The pool's resolver failed.
    #[error("cannot resolve the backends of pool {pool}")]
    Discovery {
        /// The pool.
        pool: String,
        /// The cause.
        #[source]
        source: DiscoveryError,
    },
    /// A ring cannot be built of these backends.
    #[error("pool {pool} has no ring")]
    Ring {
        /// The pool.
        pool: String,
        /// The cause.
        #[source]
        source: RingError,
    },
    /// The arguments make no sense.
    #[error("{0}")]
    Usage(String),
    /// The answer cannot be printed, or IDs cannot be read from stdin.
    #[error("cannot read or write")]
    Io(#[from] io::Error),
}

/// Runs a command to its end; `watch` runs until it fails. Answers are written to `out`. Sources without an answer, and
/// differences between replicas, are reported on `err`.
pub async fn run(
    args: Args,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<ExitCode, RingToolError> {
    match args.command {
        Command::Show(Show { source, of_members, common }) => {
            let sources = source.sources(&of_members);
            let rings = replicas::ask(&sources, |source| source::rings(source, &common.pool), err).await?;
            for rings in &rings.given {
                show::rings(rings, common.json, out)?;
            }
            let agree = replicas::rings_agree(&rings.given, err)?;
            Ok(code(rings.complete, agree))
        }
        Command::Lookup(Lookup { ids, signal, source, of_members, common }) => {
            let (ids, sources) = (source::parsed(&read_ids(ids)?)?, source.sources(&of_members));
            let (asked, pool, signal) = (&ids, &common.pool, signal.map_or("", Signal::as_str));
            let ask = |source| async move {
                let answers = source::lookup(source, asked, pool, signal).await?;
                Ok(Placements { from: source.to_string(), answers })
            };
            let placements = replicas::ask(&sources, ask, err).await?;
            show::placements(&placements.given, sources.len() > 1, common.json, out)?;
            let agree = replicas::placements_agree(&placements.given, err)?;
            Ok(code(placements.complete, agree))
        }
        Command::Plan(Plan { add, remove, source, of_members, common }) => {
            if add.is_empty() && remove.is_empty() {
                return Err(RingToolError::Usage("nothing to plan; write --add or --remove, or both".to_owned()));
            }
            let sources = source.sources(&of_members);
            let (add, remove, pool) = (&add, &remove, &common.pool);
            let ask = |source| async move { plan::of(&source::rings(source, pool).await?, add, remove) };
            let plans = replicas::ask(&sources, ask, err).await?;
            for plan in &plans.given {
                plan::print(plan, common.json, out)?;
            }
            Ok(code(plans.complete, true))
        }
        Command::Watch(Watch { admin, common }) => {
            watch::run(&admin, &common.pool, common.json, out, err).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Diff(Diff { a, b, common }) => {
            let (in_a, in_b) = (a.named(&common.pool), b.named(&common.pool));
            let (rings_a, rings_b) = (source::rings(&a, in_a).await?, source::rings(&b, in_b).await?);
            for (list, other) in [(&a, &rings_b), (&b, &rings_a)] {
                if list.is_list() && other.pools.len() > 1 {
                    return Err(RingToolError::Usage(other.which_pool(list)));
                }
            }
            let diff = diff::of(&rings_a, &rings_b);
            diff::print(&diff, common.json, out)?;
            Ok(code(true, diff.agree))
        }
    }
}

/// Returns the exit code. A missing answer takes precedence over answers that differ.
fn code(is_complete: bool, agree: bool) -> ExitCode {
    match (is_complete, agree) {
        (false, _) => ExitCode::from(EXIT_UNANSWERED),
        (true, false) => ExitCode::from(EXIT_DIFFER),
        (true, true) => ExitCode::SUCCESS,
    }
}

/// Parses the name of a signal. The error says which one is meant by a singular or by the name of a record.
fn parse_signal(text: &str) -> Result<Signal, String> {
    if let Some(signal) = Signal::ALL.into_iter().find(|signal| signal.as_str() == text) {
        return Ok(signal);
    }
    let meant = match text.to_ascii_lowercase().as_str() {
        "trace" | "traces" | "span" | "spans" => "traces",
        "metric" | "metrics" => "metrics",
        "log" | "logs" => "logs",
        "profile" | "profiles" => "profiles",
        _ => "traces, metrics, logs or profiles",
    };
    Err(format!("\"{text}\" is no signal; write {meant}"))
}

/// Returns the IDs; `-` is replaced by the IDs read from stdin.
fn read_ids(ids: Vec<String>) -> io::Result<Vec<String>> {
    let mut all = Vec::new();
    for id in ids {
        if id == "-" {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text)?;
            all.extend(text.split_whitespace().map(str::to_owned));
        } else {
            all.push(id);
        }
    }
    Ok(all)
}

/// Writes a value as one line of JSON.
fn json_line(value: &impl serde::Serialize, out: &mut (dyn Write + Send)) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}

/// Formats a share as a percentage.
fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}
