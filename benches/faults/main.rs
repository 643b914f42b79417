//! Fault scenarios under load, with real processes and checks of what must hold: `cargo bench --bench faults --
//! SCENARIO`.
//!
//! A scenario runs `spanring sink` processes that record each span before they acknowledge it, three `spanring run` in
//! front of them, and the load of `spanring load`, in which no span occurs twice. It prints a table; the bench exits
//! with 1 if a check fails. `SPANRING_BIN` names another proxy to test; sinks and load always come from this build.
//! With `--profile dev` everything is built as for tests, which builds faster and uses more CPU.
//!
//! As root, with iproute2 and util-linux, the bench runs in a network of its own ([`network`]). Otherwise `vanish` and
//! `kill` are skipped, and `soak` leaves out vanishing nodes and reports that.

#[path = "../../tests/it/memory/beside.rs"]
#[allow(dead_code, reason = "tests need more of it")]
mod beside;
mod container;
mod evidence;
mod gone;
#[path = "../../tests/it/harness.rs"]
#[allow(dead_code, reason = "tests need more of it")]
mod harness;
#[path = "../../tests/it/memory/hostile.rs"]
mod hostile;
mod memory;
#[path = "../../tests/it/nameserver.rs"]
#[allow(dead_code, reason = "tests need more of it")]
mod nameserver;
mod network;
mod plan;
mod refusals;
mod shortage;
mod silent;
mod soak;
mod strange;
mod table;
#[path = "../../tests/it/wire.rs"]
#[allow(dead_code, reason = "tests need more of it")]
mod wire;
mod world;

use std::{error::Error, io::Write, process::ExitCode, str::FromStr, time::Duration};

use anyhow::{Context, Result};

use table::Findings;

const HELP: &str = "cargo bench --bench faults -- SCENARIO… [--quick] [--minutes N] [--row N]

  kill             kill -9 of one of 4 sinks for 30 s; DNS drops it after 3 s (needs root)
  hang             SIGSTOP of one of 4 sinks for 15 s, with clients that wait 2, 3, 5 and 10 s
  vanish           the same with a node whose packets are dropped (needs root and iproute2)
  outage           all sinks down for 20 s
  half             one of 4 sinks refuses half of its calls with a retryable code
  invalid          one of 4 sinks answers every call with INVALID_ARGUMENT
  refused-streams  one of 2 sinks has every stream refused, or is behind a proxy that answers 502 or 503
  slow             sinks that answer calls after 3 s and PINGs at once; sinks that are paused for 0.8 s
  overload         requests that need far more memory than limit_mib, over two connections
  descriptors      300 idle clients at a soft limit of 256, 100 busy ones at a limit of 64
  memory           hostile clients beside a good one, at limit_mib: 128, and with SPANRING_BEFORE an earlier build too
  container        the proxy in a memory cgroup of 512, 256 and 128 MiB, under overload (needs root)
  soak             all of these and more in turn for --minutes N (default 30)
  all              all except memory, container and soak

--quick shortens every phase, to check that the bench works; --row N runs only this row of memory.
";

/// The scenarios of `all`.
const ALL: [&str; 10] =
    ["kill", "hang", "vanish", "outage", "half", "invalid", "refused-streams", "slow", "overload", "descriptors"];

/// How long the phases of a scenario take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) is_quick: bool,
    pub(crate) soak: Duration,
    /// The only row of `memory` that is run, if one is chosen.
    pub(crate) row: Option<usize>,
}

impl Pace {
    /// Returns the usual length of a phase, or the short one with `--quick`.
    pub(crate) fn seconds(self, usual: u64, quick: u64) -> Duration {
        Duration::from_secs(if self.is_quick { quick } else { usual })
    }
}

fn main() -> Result<ExitCode> {
    network::enter()?;
    let mut out = std::io::stdout();
    // Cargo adds the argument `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let minutes = number(&arguments, "--minutes")?.unwrap_or(30.0);
    let pace = Pace {
        is_quick: arguments.iter().any(|argument| argument == "--quick"),
        soak: Duration::try_from_secs_f64(minutes * 60.0)?,
        row: number(&arguments, "--row")?,
    };
    let is_name = |word: &&str| word.starts_with(|first: char| first.is_ascii_alphabetic());
    let mut names: Vec<&str> = arguments.iter().map(String::as_str).filter(is_name).collect();
    if names == ["all"] {
        names = ALL.to_vec();
    }
    if names.is_empty() {
        write!(out, "{HELP}")?;
        return Ok(ExitCode::from(2));
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let mut holds = true;
    for name in names {
        let findings = runtime.block_on(run(name, pace))?;
        let Some(findings) = findings else {
            write!(out, "{HELP}")?;
            return Ok(ExitCode::from(2));
        };
        findings.write(name, &mut out)?;
        holds &= findings.hold();
    }
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the number behind an argument.
fn number<T: FromStr<Err: Error + Send + Sync + 'static>>(arguments: &[String], name: &str) -> Result<Option<T>> {
    let Some(at) = arguments.iter().position(|argument| argument == name) else { return Ok(None) };
    let value = arguments.get(at + 1).with_context(|| format!("{name} needs a number"))?;
    Ok(Some(value.parse().with_context(|| format!("{name} {value}"))?))
}

async fn run(name: &str, pace: Pace) -> Result<Option<Findings>> {
    Ok(Some(match name {
        "kill" => gone::kill(pace).await?,
        "hang" => silent::hang(pace).await?,
        "vanish" => silent::vanish(pace).await?,
        "outage" => gone::outage(pace).await?,
        "half" => refusals::half(pace).await?,
        "invalid" => refusals::invalid(pace).await?,
        "refused-streams" => strange::refused_streams(pace).await?,
        "slow" => strange::slow(pace).await?,
        "overload" => shortage::overload(pace).await?,
        "descriptors" => shortage::descriptors(pace).await?,
        "memory" => memory::memory(pace).await?,
        "container" => container::container(pace).await?,
        "soak" => soak::soak(pace).await?,
        _ => return Ok(None),
    }))
}
