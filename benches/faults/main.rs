//! Faults under load, with real processes, and what must hold: `cargo bench --bench faults -- SCENARIO`.
//!
//! `spanring sink` processes that note each span before they acknowledge it, three `spanring run` before them, the load of
//! `spanring load` in front with spans that are never sent twice. Each scenario prints a table and ends with 1 when a line of
//! it does not hold. `SPANRING_BIN` names another binary to try.

mod evidence;
mod gone;
#[path = "../../tests/it/harness.rs"]
#[allow(dead_code, reason = "tests need more of it")]
mod harness;
#[path = "../../tests/it/nameserver.rs"]
#[allow(dead_code, reason = "tests need more of it")]
mod nameserver;
mod refusals;
mod soak;
mod stopped;
mod table;
mod world;

use std::{io::Write, process::ExitCode, time::Duration};

use anyhow::{Context, Result};

use table::Lines;

const HELP: &str = "cargo bench --bench faults -- SCENARIO… [--quick] [--minutes N]

  kill     kill -9 of one of 4 sinks, which DNS drops 3 s later, left dead for 30 s (needs root)
  hang     SIGSTOP of one of 4 sinks for 15 s
  outage   all sinks dead for 20 s
  half     one of 4 sinks refuses half of its calls retryably
  invalid  one of 4 sinks calls everything invalid
  soak     all of these and more in turn for --minutes N (30)
  all      the first five

--quick shortens every phase, to see that it works.
";

/// How long the phases of a scenario are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) is_quick: bool,
    pub(crate) soak: Duration,
}

impl Pace {
    /// One length when there is time, another when there is none.
    pub(crate) fn seconds(self, usual: u64, quick: u64) -> Duration {
        Duration::from_secs(if self.is_quick { quick } else { usual })
    }
}

fn main() -> Result<ExitCode> {
    let mut out = std::io::stdout();
    // Cargo adds --bench of its own.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let minutes = arguments.iter().position(|argument| argument == "--minutes");
    let minutes = minutes
        .map(|at| arguments.get(at + 1).context("--minutes needs a number")?.parse::<f64>().context("--minutes"));
    let minutes = minutes.transpose()?.unwrap_or(30.0);
    let pace = Pace {
        is_quick: arguments.iter().any(|argument| argument == "--quick"),
        soak: Duration::try_from_secs_f64(minutes * 60.0)?,
    };
    let mut names: Vec<&str> =
        arguments.iter().map(String::as_str).filter(|name| name.chars().all(char::is_alphabetic)).collect();
    if names == ["all"] {
        names = vec!["kill", "hang", "outage", "half", "invalid"];
    }
    if names.is_empty() {
        write!(out, "{HELP}")?;
        return Ok(ExitCode::from(2));
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let mut holds = true;
    for name in names {
        let lines = runtime.block_on(run(name, pace))?;
        let Some(lines) = lines else {
            write!(out, "{HELP}")?;
            return Ok(ExitCode::from(2));
        };
        lines.write(name, &mut out)?;
        holds &= lines.hold();
    }
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn run(name: &str, pace: Pace) -> Result<Option<Lines>> {
    Ok(Some(match name {
        "kill" => gone::kill(pace).await?,
        "hang" => stopped::hang(pace).await?,
        "outage" => gone::outage(pace).await?,
        "half" => refusals::half(pace).await?,
        "invalid" => refusals::invalid(pace).await?,
        "soak" => soak::soak(pace).await?,
        _ => return Ok(None),
    }))
}
