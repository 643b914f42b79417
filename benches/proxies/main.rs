//! The end-to-end cost of a span in Spanring, nginx and HAProxy, measured in one run:
//! `cargo bench --profile dist --bench proxies`.
//!
//! All three forward the same requests to the same sinks; only Spanring splits them by trace. A measurement is the
//! processor time of the proxy's processes divided by the number of spans acknowledged meanwhile. The proxies take
//! turns (A B C A B C …). The result is the median of all turns; a ratio is the median of each turn's ratios. `--
//! --quick` measures for a fraction of a second, to check that the bench works.
//!
//! `SPANRING_BIN` names another Spanring binary to measure. nginx and HAProxy are searched in `$SPANRING_PEERS/bin` and
//! `PATH` (`tests/peers/proxies.sh` installs them). The load generator is `spanring load`, the sinks are `spanring
//! sink`.

mod compression;
#[path = "../../tests/it/harness.rs"]
#[allow(dead_code, reason = "tests need more of it")]
mod harness;
mod http;
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

const HELP: &str = "cargo bench --profile dist --bench proxies -- [--quick] [--turns N] [cost [SPANS]...] [before [SPANS]...] [backends] [handoff] [latency] [tls] [compression] [http]

  cost      processor time per span and memory, compared with nginx and HAProxy, for 10, 100, 512 and
            8192 spans per batch or for the given sizes of these
  before    processor time per span compared with the binary of SPANRING_BEFORE, in paired turns
  backends  processor time per span with 100 backends and with 4
  handoff   processor time per span while a hand-off's window is open on all slots, and without a window
  latency   latency added to slow backends, and to a lone request
  tls       processor time per span with TLS on both sides and without TLS
  compression  processor time per span of compressed requests and calls, and without compression
  http      processor time per span of OTLP/HTTP towards clients and backends, of gRPC, and of nginx

Without a name, all except `before` are measured, which takes about 15 minutes. --turns sets the number of
measurements per proxy.
";

fn main() -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    // Cargo adds the argument `--bench`.
    let mut arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let at = arguments.iter().position(|argument| argument == "--turns");
    let asked: Vec<String> =
        at.map_or_else(Vec::new, |at| arguments.drain(at..(at + 2).min(arguments.len())).collect());
    let is_quick = arguments.iter().any(|argument| argument == "--quick");
    let chosen: Vec<&str> = arguments.iter().map(String::as_str).filter(|argument| *argument != "--quick").collect();
    let (sizes, chosen): (Vec<&str>, Vec<&str>) =
        chosen.into_iter().partition(|argument| argument.bytes().all(|byte| byte.is_ascii_digit()));
    let sizes: Vec<usize> = sizes.into_iter().flat_map(str::parse).collect();
    if chosen
        .iter()
        .any(|name| !["cost", "before", "backends", "handoff", "latency", "tls", "compression", "http"].contains(name))
    {
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
    if wants("handoff") {
        tables::handoff(&bench, &mut out)?;
    }
    if wants("latency") {
        tables::latency(&bench, &mut out)?;
    }
    if wants("tls") {
        tables::tls(&bench, &mut out)?;
    }
    if wants("compression") {
        compression::compression(&bench, &mut out)?;
    }
    if wants("http") {
        http::http(&bench, &mut out)?;
    }
    Ok(ExitCode::SUCCESS)
}
