//! What a span costs in Spanring, nginx and HAProxy, end to end, in one run: `cargo bench --profile dist --bench proxies`.
//!
//! The three pass the same requests to the same sinks; only Spanring cuts them by trace. Each measurement is the
//! processor time of the proxy's processes over the spans that were acknowledged meanwhile; turns of the three follow
//! each other (A B C A B C …), and the median is taken; of ratios, the median of those of each turn. `-- --quick` measures a fraction of a second, to see that it works.
//!
//! `SPANRING_BIN` names another binary to measure; nginx and HAProxy are looked for in `$SPANRING_PEERS/bin` and `PATH`
//! (`tests/peers/proxies.sh` installs them). Generator and sinks are `spanring load` and `spanring sink`.

#[path = "../../tests/it/harness.rs"]
#[allow(dead_code, reason = "tests need more of it")]
mod harness;
mod measure;
#[path = "../../tests/it/pki.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "tests need more of it, and may panic")]
mod pki;
mod proxy;
mod tables;
mod usage;

use std::{io::Write, process::ExitCode, time::Duration};

use anyhow::Result;

use measure::Bench;
use proxy::Programs;

const HELP: &str = "cargo bench --profile dist --bench proxies -- [--quick] [--turns N] [cost [SPANS]...] [before [SPANS]...] [backends] [latency] [tls]

  cost      processor time of a span, and memory, beside nginx and HAProxy: 10, 100, 512 and 8192 spans
            a batch, or of these the ones that are named
  before    processor time of a span beside the build that SPANRING_BEFORE names, in paired turns
  backends  processor time of a span at 100 backends and at 4
  latency   what the proxy adds to slow backends, and to a lone request
  tls       processor time of a span by TLS on both sides and without it

Without a name all of them but `before` are measured: about 12 minutes. --turns is how often each is measured.
";

fn main() -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    // Cargo adds --bench of its own.
    let mut arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let at = arguments.iter().position(|argument| argument == "--turns");
    let asked: Vec<String> =
        at.map_or_else(Vec::new, |at| arguments.drain(at..(at + 2).min(arguments.len())).collect());
    let is_quick = arguments.iter().any(|argument| argument == "--quick");
    let chosen: Vec<&str> = arguments.iter().map(String::as_str).filter(|argument| *argument != "--quick").collect();
    let (sizes, chosen): (Vec<&str>, Vec<&str>) =
        chosen.into_iter().partition(|argument| argument.bytes().all(|byte| byte.is_ascii_digit()));
    let sizes: Vec<usize> = sizes.into_iter().flat_map(str::parse).collect();
    if chosen.iter().any(|name| !["cost", "before", "backends", "latency", "tls"].contains(name)) {
        write!(out, "{HELP}")?;
        return Ok(ExitCode::from(2));
    }
    let (turns, turn) = if is_quick { (1, Duration::from_millis(300)) } else { (5, Duration::from_secs(2)) };
    let turns = asked.last().and_then(|number| number.parse().ok()).unwrap_or(turns);
    let bench = Bench::new(Programs::find(), turns, turn)?;
    writeln!(out, "{}", bench.describe())?;
    let wants = |name: &str| chosen.is_empty() || chosen.contains(&name);
    if wants("cost") {
        tables::cost(&bench, &sizes, &mut out)?;
    }
    if chosen.contains(&"before") {
        tables::before(&bench, &sizes, &mut out)?;
    }
    if wants("backends") {
        tables::backends(&bench, &mut out)?;
    }
    if wants("latency") {
        tables::latency(&bench, &mut out)?;
    }
    if wants("tls") {
        tables::tls(&bench, &mut out)?;
    }
    Ok(ExitCode::SUCCESS)
}
