//! The cost of OTLP/HTTP towards clients and backends, beside gRPC, and nginx with the same HTTP requests.

use std::{io::Write, time::Duration};

use anyhow::Result;

use super::{
    measure::{Bench, Load, Protocol, Sides, median},
    proxy::{Buffers, Kind, Proxy, Setup, Workers},
};

/// Requests like those of a Collector over gRPC, which is what the other rows are compared with.
const GRPC: Load = Load { spans: 512, traces: 64, connections: 4, in_flight: 16 };

/// The same requests over as many connections as HTTP/1.1 needs to have as many in flight.
const MANY: Load = Load { connections: 16, ..GRPC };

/// What is measured: the proxy, its buffers, how requests come and go, and the load. The first row is what the others are
/// compared with.
const ROWS: [(Kind, Buffers, Protocol, Load); 7] = [
    (Kind::Spanring, Buffers::Packaged, Protocol::Plain, GRPC),
    (Kind::Spanring, Buffers::Packaged, Protocol::Plain, MANY),
    (Kind::Spanring, Buffers::Packaged, Protocol::Http(Sides::Clients), MANY),
    (Kind::Spanring, Buffers::Packaged, Protocol::Http(Sides::Backends), GRPC),
    (Kind::Spanring, Buffers::Packaged, Protocol::Http(Sides::Both), MANY),
    (Kind::Nginx, Buffers::Packaged, Protocol::Http(Sides::Both), MANY),
    (Kind::Nginx, Buffers::Tuned, Protocol::Http(Sides::Both), MANY),
];

/// Measures all rows in turns, with one worker and with one per CPU.
pub(crate) fn http(bench: &Bench, out: &mut impl Write) -> Result<()> {
    let kinds = bench.kinds();
    let rows: Vec<_> = ROWS.into_iter().filter(|(kind, ..)| kinds.contains(kind)).collect();
    writeln!(
        out,
        "### CPU µs per span over HTTP/1.1 and gRPC, {} spans ({} traces) per batch, {} in flight, 4 backends\n",
        GRPC.spans, GRPC.traces, GRPC.in_flight
    )?;
    writeln!(
        out,
        "| workers | proxy | requests (connections) | calls | cost | ÷ gRPC of {} connections | ÷ gRPC of {} connections |",
        GRPC.connections, MANY.connections
    )?;
    writeln!(out, "| --- | --- | --- | --- | --- | --- | --- |")?;
    for workers in Workers::ALL {
        let sinks = bench.sinks::<4>(Duration::ZERO)?;
        let start = |(kind, buffers, protocol, load): &(Kind, Buffers, Protocol, Load)| {
            Ok((*load, bench.speaking(*kind, *protocol, Setup { workers, buffers: *buffers }, &sinks)?))
        };
        let proxies: Vec<(Load, Proxy)> = rows.iter().map(start).collect::<Result<_>>()?;
        let costs = bench.in_turns(&proxies, |(load, proxy)| bench.cost(*load, proxy))?;
        let [few, many] = [0, 1].map(|row| costs.get(row).cloned().unwrap_or_default());
        for ((kind, buffers, protocol, load), costs) in rows.iter().zip(costs) {
            let over = |base: &[f64]| median(costs.iter().zip(base).map(|(cost, base)| cost / base).collect());
            let (over_few, over_many) = (over(&few), over(&many));
            let name = match kind {
                Kind::Spanring => kind.name().to_owned(),
                Kind::Nginx | Kind::Haproxy => format!("{}, {}", kind.name(), buffers.name()),
            };
            let [requests, calls] = protocol.names();
            let (workers, connections, cost) = (workers.name(), load.connections, median(costs));
            writeln!(
                out,
                "| {workers} | {name} | {requests} ({connections}) | {calls} | {cost:.3} | {over_few:.2} | {over_many:.2} |"
            )?;
        }
        out.flush()?;
    }
    writeln!(out)?;
    Ok(())
}
