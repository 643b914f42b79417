//! The tables: which loads are compared, and how they are printed.

use std::{io::Write, time::Duration};

use anyhow::Result;

use super::{
    measure::{Bench, Load, Sinks, Way, median},
    proxy::{Kind, Proxy, Setup},
};

/// The same for every proxy. Small requests come from SDKs, which have a connection each and send one request at a time;
/// large ones from Collectors, which have a few in flight on one.
const ROWS: [Load; 4] = [
    Load { spans: 10, traces: 5, connections: 32, in_flight: 32 },
    Load { spans: 100, traces: 12, connections: 32, in_flight: 32 },
    Load { spans: 512, traces: 64, connections: 4, in_flight: 16 },
    Load { spans: 8192, traces: 1024, connections: 4, in_flight: 8 },
];

/// One proxy in one row.
struct Cell {
    kind: Kind,
    setup: Setup,
    /// µs a span.
    cost: f64,
    peak_kib: u64,
    idle_kib: u64,
}

/// Processor time of a span and memory, at four sizes of request over four sinks.
pub(crate) fn cost(bench: &Bench, out: &mut impl Write) -> Result<()> {
    let kinds = bench.kinds();
    writeln!(out, "### CPU µs a span over 4 backends\n")?;
    write!(out, "| spans (traces) a batch |")?;
    for kind in &kinds {
        write!(out, " {} (workers; peak MiB) |", kind.name())?;
    }
    writeln!(out, " spanring ÷ cheapest peer |")?;
    writeln!(out, "| --- |{} --- |", " --- |".repeat(kinds.len()))?;
    let mut idle = Vec::new();
    for load in ROWS {
        let cells = row(bench, load)?;
        write!(out, "| {} ({}) |", load.spans, load.traces)?;
        for cell in &cells {
            write!(out, " {:.3} ({}; {:.0}) |", cell.cost, cell.setup.name(), mib(cell.peak_kib))?;
        }
        let of = |is_ours: bool| {
            let costs = cells.iter().filter(|cell| (cell.kind == Kind::Spanring) == is_ours).map(|cell| cell.cost);
            costs.fold(f64::INFINITY, f64::min)
        };
        writeln!(out, " {:.2} |", of(true) / of(false))?;
        out.flush()?;
        idle = cells.iter().map(|cell| format!("{} {:.1}", cell.kind.name(), mib(cell.idle_kib))).collect();
    }
    writeln!(out, "\nIdle, in MiB: {}\n", idle.join(", "))?;
    Ok(())
}

/// All proxies at one load: the cheapest setup of each, measured in turns.
fn row(bench: &Bench, load: Load) -> Result<Vec<Cell>> {
    let sinks = bench.sinks::<4>(Duration::ZERO)?;
    let mut proxies = Vec::new();
    for kind in bench.kinds() {
        proxies.push(cheapest(bench, kind, load, &sinks)?);
    }
    let idle: Vec<u64> = proxies.iter().map(|proxy| Ok(proxy.usage()?.rss_kib)).collect::<Result<_>>()?;
    let costs = in_turns(bench, load, &proxies)?;
    let cells = proxies.iter().zip(costs).zip(idle).map(|((proxy, cost), idle_kib)| {
        Ok(Cell { kind: proxy.kind, setup: proxy.setup, cost, peak_kib: proxy.usage()?.peak_kib, idle_kib })
    });
    cells.collect()
}

/// Starts a proxy with the setup that is cheapest at this load.
fn cheapest(bench: &Bench, kind: Kind, load: Load, sinks: &Sinks) -> Result<Proxy> {
    let mut best = (f64::INFINITY, Setup::Auto);
    for setup in kind.setups() {
        let proxy = bench.proxy(kind, *setup, sinks)?;
        let costs = [bench.cost(load, &proxy)?, bench.cost(load, &proxy)?];
        let cost = costs.into_iter().fold(f64::INFINITY, f64::min);
        if cost < best.0 {
            best = (cost, *setup);
        }
    }
    bench.proxy(kind, best.1, sinks)
}

/// The median cost of each of several proxies, measured one after the other, again and again.
fn in_turns(bench: &Bench, load: Load, proxies: &[Proxy]) -> Result<Vec<f64>> {
    let mut costs: Vec<Vec<f64>> = proxies.iter().map(|_| Vec::new()).collect();
    for _ in 0..bench.turns {
        for (proxy, costs) in proxies.iter().zip(&mut costs) {
            costs.push(bench.cost(load, proxy)?);
        }
    }
    Ok(costs.into_iter().map(median).collect())
}

/// What 96 more backends cost.
pub(crate) fn backends(bench: &Bench, out: &mut impl Write) -> Result<()> {
    let load = Load { spans: 512, traces: 64, connections: 4, in_flight: 128 };
    let (few, many) = (bench.sinks::<4>(Duration::ZERO)?, bench.sinks::<100>(Duration::ZERO)?);
    writeln!(
        out,
        "### CPU µs a span at 4 and 100 backends: {} spans a batch, {} in flight\n",
        load.spans, load.in_flight
    )?;
    writeln!(out, "| workers | 4 backends | 100 backends | ratio |\n| --- | --- | --- | --- |")?;
    for setup in Kind::Spanring.setups() {
        let proxies = [bench.proxy(Kind::Spanring, *setup, &few)?, bench.proxy(Kind::Spanring, *setup, &many)?];
        let costs = in_turns(bench, load, &proxies)?;
        if let [at_few, at_many] = costs.as_slice() {
            writeln!(out, "| {} | {at_few:.3} | {at_many:.3} | {:.2} |", setup.name(), at_many / at_few)?;
        }
        out.flush()?;
    }
    writeln!(out)?;
    Ok(())
}

/// What TLS with clients and backends costs, certificates shown by all.
pub(crate) fn tls(bench: &Bench, out: &mut impl Write) -> Result<()> {
    writeln!(out, "### CPU µs a span over 4 backends, plain and by TLS on both sides\n")?;
    writeln!(out, "| spans (traces) a batch | plain | TLS | ratio |\n| --- | --- | --- | --- |")?;
    let (plain, secure) =
        (bench.sinks_by::<4>(Way::Plain, Duration::ZERO)?, bench.sinks_by::<4>(Way::Tls, Duration::ZERO)?);
    for load in ROWS {
        let start = |sinks| bench.proxy(Kind::Spanring, Setup::One, sinks);
        let proxies = [start(&plain)?, start(&secure)?];
        if let [plain, secure] = in_turns(bench, load, &proxies)?.as_slice() {
            writeln!(out, "| {} ({}) | {plain:.3} | {secure:.3} | {:.2} |", load.spans, load.traces, secure / plain)?;
        }
        out.flush()?;
    }
    writeln!(out)?;
    Ok(())
}

/// What a proxy adds to a backend's own 20 ms, and to a request that is alone.
pub(crate) fn latency(bench: &Bench, out: &mut impl Write) -> Result<()> {
    let many = Load { spans: 100, traces: 12, connections: 64, in_flight: 64 };
    let lone = Load { spans: 10, traces: 5, connections: 1, in_flight: 1 };
    for (title, load, delay) in [
        ("64 clients of 100 spans a batch, sinks that answer after 20 ms", many, Duration::from_millis(20)),
        ("a lone client of 10 spans a batch", lone, Duration::ZERO),
    ] {
        let sinks = bench.sinks::<4>(delay)?;
        let mut ways = vec![("direct".to_owned(), sinks.addresses.clone(), None)];
        for kind in bench.kinds() {
            let proxy = bench.proxy(kind, Setup::Auto, &sinks)?;
            ways.push((kind.name().to_owned(), vec![proxy.address], Some(proxy)));
        }
        let mut found: Vec<(Vec<f64>, Vec<f64>)> = ways.iter().map(|_| (Vec::new(), Vec::new())).collect();
        for _ in 0..bench.turns {
            for ((_, to, _), (p50, p99)) in ways.iter().zip(&mut found) {
                // Past the proxies, one sink gets what one proxy would.
                let latency = bench.send(load, to.get(..1).unwrap_or(to), Way::Plain)?.latency_ms;
                p50.push(latency.p50);
                p99.push(latency.p99);
            }
        }
        writeln!(out, "### Latency in ms: {title}\n")?;
        writeln!(out, "| way | p50 | p99 | p50 added | p99 added |\n| --- | --- | --- | --- | --- |")?;
        let found: Vec<(f64, f64)> = found.into_iter().map(|(p50, p99)| (median(p50), median(p99))).collect();
        let direct = found.first().copied().unwrap_or_default();
        for ((name, ..), (p50, p99)) in ways.iter().zip(found) {
            writeln!(out, "| {name} | {p50:.2} | {p99:.2} | {:.2} | {:.2} |", p50 - direct.0, p99 - direct.1)?;
        }
        writeln!(out)?;
        out.flush()?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
