//! The compared loads and the printed tables.

use std::{io::Write, time::Duration};

use anyhow::Result;

use super::{
    measure::{Bench, Load, Protocol, Sinks, median},
    proxy::{Buffers, Kind, Proxy, Setup, Workers},
};

/// The loads for all proxies. Small requests model SDKs: many connections with one request in flight each. Large
/// requests model Collectors: few connections with several requests in flight.
const ROWS: [Load; 4] = [
    Load { spans: 10, traces: 5, connections: 32, in_flight: 32 },
    Load { spans: 100, traces: 12, connections: 32, in_flight: 32 },
    Load { spans: 512, traces: 64, connections: 4, in_flight: 16 },
    Load { spans: 8192, traces: 1024, connections: 4, in_flight: 8 },
];

/// How long a proxy runs until its idle memory is measured. What the build of the ring freed has gone back to the system
/// by then: jemalloc takes five seconds (`.cargo/config.toml`), and its thread in the background runs now and then.
const SETTLED: Duration = Duration::from_secs(20);

/// One proxy in one row.
struct Cell {
    kind: Kind,
    setup: Setup,
    /// Microseconds per span, for each turn.
    costs: Vec<f64>,
    peak_kib: u64,
}

impl Cell {
    fn cost(&self) -> f64 {
        median(self.costs.clone())
    }

    /// The cost as a multiple of another proxy's: the median of each turn's ratios.
    fn over(&self, other: &Self) -> f64 {
        median(self.costs.iter().zip(&other.costs).map(|(ours, theirs)| ours / theirs).collect())
    }
}

/// Processor time per span and memory over four sinks, for four sizes of requests, or only for those in `sizes`.
pub(crate) fn cost(bench: &Bench, sizes: &[usize], out: &mut impl Write) -> Result<()> {
    let columns = bench.kinds().into_iter().flat_map(|kind| kind.buffers().iter().map(move |buffers| (kind, *buffers)));
    let columns: Vec<(Kind, Buffers)> = columns.collect();
    writeln!(out, "### CPU µs per span, 4 backends (workers; peak MiB)\n")?;
    write!(out, "| spans (traces) per batch |")?;
    for (kind, buffers) in &columns {
        match kind {
            Kind::Spanring => write!(out, " {} |", kind.name())?,
            Kind::Nginx | Kind::Haproxy => write!(out, " {}, {} |", kind.name(), buffers.name())?,
        }
    }
    writeln!(out, " ÷ cheapest packaged | ÷ cheapest of all |")?;
    writeln!(out, "| --- |{} --- | --- |", " --- |".repeat(columns.len()))?;
    for load in ROWS.into_iter().filter(|load| sizes.is_empty() || sizes.contains(&load.spans)) {
        let cells = row(bench, load, &columns)?;
        write!(out, "| {} ({}) |", load.spans, load.traces)?;
        for cell in &cells {
            write!(out, " {:.3} ({}; {:.0}) |", cell.cost(), cell.setup.workers.name(), mib(cell.peak_kib))?;
        }
        let packaged = ratio(&cells, |cell| cell.setup.buffers == Buffers::Packaged);
        writeln!(out, " {packaged:.2} | {:.2} |", ratio(&cells, |_| true))?;
        out.flush()?;
    }
    writeln!(out, "\nIdle, in MiB: {}\n", idle(bench)?)?;
    Ok(())
}

/// Returns the memory of each proxy, as packaged, that has had no request since it started.
fn idle(bench: &Bench) -> Result<String> {
    let sinks = bench.sinks::<4>(Duration::ZERO)?;
    let setup = Setup { workers: Workers::Auto, buffers: Buffers::Packaged };
    let start = |kind| bench.proxy(kind, setup, &sinks);
    let proxies: Vec<Proxy> = bench.kinds().into_iter().map(start).collect::<Result<_>>()?;
    std::thread::sleep(SETTLED);
    let of = |proxy: &Proxy| Ok(format!("{} {:.1}", proxy.kind.name(), mib(proxy.usage()?.rss_kib)));
    Ok(proxies.iter().map(of).collect::<Result<Vec<_>>>()?.join(", "))
}

/// Spanring's cost as a multiple of the cheapest of the selected other proxies.
fn ratio(cells: &[Cell], counts: impl Fn(&Cell) -> bool) -> f64 {
    let ours = cells.iter().find(|cell| cell.kind == Kind::Spanring);
    let peers = cells.iter().filter(|cell| cell.kind != Kind::Spanring && counts(cell));
    let cheapest = peers.min_by(|one, other| one.cost().total_cmp(&other.cost()));
    ours.zip(cheapest).map_or(f64::NAN, |(ours, cheapest)| ours.over(cheapest))
}

/// Measures all proxies at one load in turns, each with its cheapest number of workers.
fn row(bench: &Bench, load: Load, columns: &[(Kind, Buffers)]) -> Result<Vec<Cell>> {
    let sinks = bench.sinks::<4>(Duration::ZERO)?;
    let mut proxies = Vec::new();
    for (kind, buffers) in columns {
        proxies.push(cheapest(bench, *kind, *buffers, load, &sinks)?);
    }
    let costs = in_turns(bench, load, &proxies)?;
    let cells = proxies.iter().zip(costs).map(|(proxy, costs)| {
        Ok(Cell { kind: proxy.kind, setup: proxy.setup, costs, peak_kib: proxy.usage()?.peak_kib })
    });
    cells.collect()
}

/// Starts a proxy with the number of workers that is cheapest at this load.
fn cheapest(bench: &Bench, kind: Kind, buffers: Buffers, load: Load, sinks: &Sinks) -> Result<Proxy> {
    let mut best = (f64::INFINITY, Workers::Auto);
    for workers in Workers::ALL {
        let proxy = bench.proxy(kind, Setup { workers, buffers }, sinks)?;
        let cost = bench.rough_cost(load, &proxy)?;
        if cost < best.0 {
            best = (cost, workers);
        }
    }
    bench.proxy(kind, Setup { workers: best.1, buffers }, sinks)
}

/// Measures the costs of several proxies in turns.
fn in_turns(bench: &Bench, load: Load, proxies: &[Proxy]) -> Result<Vec<Vec<f64>>> {
    bench.in_turns(proxies, |proxy| bench.cost(load, proxy))
}

/// The cost of a span in this build and in the earlier one, measured in turns.
pub(crate) fn before(bench: &Bench, sizes: &[usize], out: &mut impl Write) -> Result<()> {
    writeln!(out, "### CPU µs per span, 4 backends: this build and the earlier one, {} turns\n", bench.turns)?;
    writeln!(out, "| spans per batch | workers | before | now | now ÷ before |\n| --- | --- | --- | --- | --- |")?;
    for load in ROWS.into_iter().filter(|load| sizes.is_empty() || sizes.contains(&load.spans)) {
        let sinks = bench.sinks::<4>(Duration::ZERO)?;
        for workers in Workers::ALL {
            let setup = Setup { workers, buffers: Buffers::Packaged };
            let proxies = [bench.proxy_before(setup, &sinks)?, bench.proxy(Kind::Spanring, setup, &sinks)?];
            if let [before, now] = in_turns(bench, load, &proxies)?.as_slice() {
                let ratio = median(before.iter().zip(now).map(|(before, now)| now / before).collect());
                let [before, now] = [before, now].map(|costs| median(costs.clone()));
                writeln!(out, "| {} | {} | {before:.3} | {now:.3} | {ratio:.3} |", load.spans, workers.name())?;
            }
            out.flush()?;
        }
    }
    writeln!(out)?;
    Ok(())
}

/// The cost of 96 more backends.
pub(crate) fn backends(bench: &Bench, out: &mut impl Write) -> Result<()> {
    let load = Load { spans: 512, traces: 64, connections: 4, in_flight: 128 };
    let (few, many) = (bench.sinks::<4>(Duration::ZERO)?, bench.sinks::<100>(Duration::ZERO)?);
    writeln!(
        out,
        "### CPU µs per span, 4 and 100 backends: {} spans per batch, {} in flight\n",
        load.spans, load.in_flight
    )?;
    writeln!(out, "| workers | 4 backends | 100 backends | ratio |\n| --- | --- | --- | --- |")?;
    for workers in Workers::ALL {
        let setup = Setup { workers, buffers: Buffers::Packaged };
        let proxies = [bench.proxy(Kind::Spanring, setup, &few)?, bench.proxy(Kind::Spanring, setup, &many)?];
        let costs: Vec<f64> = in_turns(bench, load, &proxies)?.into_iter().map(median).collect();
        if let [at_few, at_many] = costs.as_slice() {
            writeln!(out, "| {} | {at_few:.3} | {at_many:.3} | {:.2} |", workers.name(), at_many / at_few)?;
        }
        out.flush()?;
    }
    writeln!(out)?;
    Ok(())
}

/// The cost of a window that is open on all slots: every span goes to two backends.
pub(crate) fn handoff(bench: &Bench, out: &mut impl Write) -> Result<()> {
    writeln!(out, "### CPU µs per span, 4 backends, without and with a hand-off's window open on all slots\n")?;
    writeln!(
        out,
        "| spans (traces) per batch | workers | no window | all slots | ratio |\n| --- | --- | --- | --- | --- |"
    )?;
    for load in ROWS {
        let [first, second] = [bench.sinks::<4>(Duration::ZERO)?, bench.sinks::<4>(Duration::ZERO)?];
        for workers in Workers::ALL {
            let setup = Setup { workers, buffers: Buffers::Packaged };
            let proxies = [bench.proxy(Kind::Spanring, setup, &first)?, bench.proxy(Kind::Spanring, setup, &first)?];
            let [_, moved] = &proxies;
            moved.replace_backends(&first.addresses, &second.addresses)?;
            if let [closed, open] = in_turns(bench, load, &proxies)?.as_slice() {
                let ratio = median(closed.iter().zip(open).map(|(closed, open)| open / closed).collect());
                let [closed, open] = [closed, open].map(|costs| median(costs.clone()));
                let Load { spans, traces, .. } = load;
                writeln!(out, "| {spans} ({traces}) | {} | {closed:.3} | {open:.3} | {ratio:.2} |", workers.name())?;
            }
            out.flush()?;
        }
    }
    writeln!(out)?;
    Ok(())
}

/// The cost of TLS on both sides, with client certificates.
pub(crate) fn tls(bench: &Bench, out: &mut impl Write) -> Result<()> {
    writeln!(out, "### CPU µs per span, 4 backends, without TLS and with TLS on both sides\n")?;
    writeln!(out, "| spans (traces) per batch | plain | TLS | ratio |\n| --- | --- | --- | --- |")?;
    let (plain, secure) =
        (bench.sinks_by::<4>(Protocol::Plain, Duration::ZERO)?, bench.sinks_by::<4>(Protocol::Tls, Duration::ZERO)?);
    for load in ROWS {
        let setup = Setup { workers: Workers::One, buffers: Buffers::Packaged };
        let start = |sinks| bench.proxy(Kind::Spanring, setup, sinks);
        let proxies = [start(&plain)?, start(&secure)?];
        let costs: Vec<f64> = in_turns(bench, load, &proxies)?.into_iter().map(median).collect();
        if let [plain, secure] = costs.as_slice() {
            writeln!(out, "| {} ({}) | {plain:.3} | {secure:.3} | {:.2} |", load.spans, load.traces, secure / plain)?;
        }
        out.flush()?;
    }
    writeln!(out)?;
    Ok(())
}

/// The latency that a proxy adds to backends that take 20 ms, and to a lone request.
pub(crate) fn latency(bench: &Bench, out: &mut impl Write) -> Result<()> {
    let many = Load { spans: 100, traces: 12, connections: 64, in_flight: 64 };
    let lone = Load { spans: 10, traces: 5, connections: 1, in_flight: 1 };
    for (title, load, delay) in [
        ("64 clients with 100 spans per batch, sinks that answer after 20 ms", many, Duration::from_millis(20)),
        ("a single client with 10 spans per batch", lone, Duration::ZERO),
    ] {
        let sinks = bench.sinks::<4>(delay)?;
        let mut ways = vec![("direct".to_owned(), sinks.addresses.clone(), None)];
        for kind in bench.kinds() {
            let setup = Setup { workers: Workers::Auto, buffers: Buffers::Packaged };
            let proxy = bench.proxy(kind, setup, &sinks)?;
            ways.push((kind.name().to_owned(), vec![proxy.address], Some(proxy)));
        }
        let mut found: Vec<(Vec<f64>, Vec<f64>)> = ways.iter().map(|_| (Vec::new(), Vec::new())).collect();
        for _ in 0..bench.turns {
            for ((_, to, _), (p50, p99)) in ways.iter().zip(&mut found) {
                // The direct load goes to one sink, as the load through a proxy goes to one proxy.
                let latency = bench.send(load, to.get(..1).unwrap_or(to), Protocol::Plain)?.latency_ms;
                p50.push(latency.p50);
                p99.push(latency.p99);
            }
        }
        writeln!(out, "### Latency in ms: {title}\n")?;
        writeln!(out, "| path | p50 | p99 | p50 added | p99 added |\n| --- | --- | --- | --- | --- |")?;
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
