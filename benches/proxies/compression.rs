//! The cost of compressed requests and calls, and how much gzip compresses.

use std::{
    io::Write,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use spanring::{
    codec::{Encoding, compress},
    tools::otlp_body::{Bodies, BodySpec},
};

use super::{
    measure::{Bench, Load, median},
    proxy::{Buffers, Proxy, Setup, Workers},
};

/// Requests like those of a Collector.
const LOAD: Load = Load { spans: 512, traces: 64, connections: 4, in_flight: 16 };

/// How requests come, how calls are compressed, and the number of backends. With one backend, each request has one
/// owner. The first row is what the others are compared with.
const ROWS: [(&str, &str, usize); 9] = [
    ("none", "none", 4),
    ("gzip", "none", 4),
    ("gzip", "gzip", 4),
    ("zstd", "none", 4),
    ("zstd", "zstd", 4),
    ("none", "none", 1),
    ("gzip", "gzip", 1),
    ("zstd", "zstd", 1),
    ("gzip", "zstd", 1),
];

/// Measures all rows in turns, with one worker and with one per CPU. If there is an earlier binary, its cost of the first row is
/// the last row.
pub(crate) fn compression(bench: &Bench, out: &mut impl Write) -> Result<()> {
    writeln!(
        out,
        "### CPU µs per span of compressed requests, {} spans ({} traces) per batch\n",
        LOAD.spans, LOAD.traces
    )?;
    writeln!(
        out,
        "| workers | requests | calls | backends | cost | ÷ uncompressed, 4 backends | ÷ by the cheapest turns |"
    )?;
    writeln!(out, "| --- | --- | --- | --- | --- | --- | --- |")?;
    for workers in Workers::ALL {
        let sinks = bench.sinks::<4>(Duration::ZERO)?;
        let setup = Setup { workers, buffers: Buffers::Packaged };
        let start = |(requests, calls, backends): &(&'static str, &str, usize)| {
            Ok((*requests, bench.compressing(calls, setup, &sinks, *backends)?))
        };
        let mut rows = ROWS.to_vec();
        let mut proxies: Vec<(&str, Proxy)> = ROWS.iter().map(start).collect::<Result<_>>()?;
        if bench.has_before() {
            rows.push(("none, SPANRING_BEFORE", "none", 4));
            proxies.push(("none", bench.proxy_before(setup, &sinks)?));
        }
        // Before the turns that count: contexts and buffers are made, and memory is used for the first time.
        for (requests, proxy) in &proxies {
            bench.cost_of(requests, LOAD, proxy)?;
        }
        let costs = bench.in_turns(&proxies, |(requests, proxy)| bench.cost_of(requests, LOAD, proxy))?;
        let plain = costs.first().cloned().unwrap_or_default();
        for ((requests, calls, backends), costs) in rows.iter().zip(costs) {
            let ratio = median(costs.iter().zip(&plain).map(|(cost, plain)| cost / plain).collect());
            let least = |costs: &[f64]| costs.iter().copied().fold(f64::INFINITY, f64::min);
            let of_least = least(&costs) / least(&plain);
            let (workers, cost) = (workers.name(), median(costs));
            writeln!(
                out,
                "| {workers} | {requests} | {calls} | {backends} | {cost:.3} | {ratio:.2} | {of_least:.2} |"
            )?;
        }
        out.flush()?;
    }
    writeln!(out, "\n{}\n", sizes()?)?;
    Ok(())
}

/// Compares the size of what Spanring writes with that of `gzip -1`, for the bodies of the load.
fn sizes() -> Result<String> {
    let spec = BodySpec { spans: LOAD.spans, traces: LOAD.traces, bodies: 8, ..BodySpec::default() };
    let bodies = Bodies::generate(spec)?;
    let (mut plain, mut ours, mut theirs) = (0, 0, 0);
    for ticket in 0..bodies.len() {
        let body = bodies.compose(ticket as u64, None);
        let message = body.get(5..).unwrap_or_default();
        plain += message.len();
        ours += compress(Encoding::Gzip, 1, [message].into_iter(), message.len())?.len() - 5;
        theirs += by_gzip(message)?;
    }
    #[expect(clippy::cast_precision_loss, reason = "a few MB")]
    let ratio = ours as f64 / theirs as f64;
    Ok(format!("gzip with level 1: {plain} bytes become {ours}; with `gzip -1` {theirs}: {ratio:.3} × as much"))
}

fn by_gzip(message: &[u8]) -> Result<usize> {
    let mut command = Command::new("gzip");
    let mut child = command.arg("-1").arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    // The compressed message is shorter than what a pipe holds, so writing all of it first cannot block for ever.
    child.stdin.take().context("gzip has no input")?.write_all(message)?;
    Ok(child.wait_with_output()?.stdout.len())
}
