//! Clients of other projects in front of three proxies, with real Collectors that sample by trace behind them: by every
//! protocol, encoding and compression that each client has.
//!
//! [`ROWS`] is the table of what runs; README shows the same table. Every span must come to a Collector as its client
//! made it, once, with its resource and scope. All spans of a trace must come to one Collector, and the traces with a
//! failed span must be kept, whole. A client that is not installed is skipped. The Collectors are called by gRPC, and with
//! some of the clients by OTLP/HTTP.

mod compare;
mod curl;
mod exporters;
mod rich;
mod sdk;
mod table;
mod telemetrygen;

use std::{
    collections::BTreeMap,
    fmt,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use self::{
    compare::Expected,
    table::{BEHIND, ROWS},
};
use super::{
    harness::{self},
    otelcol::{Calls, Stage},
};

/// A client by a protocol with a compression.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Cell {
    client: Client,
    protocol: Protocol,
    compression: Compression,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Client {
    /// The SDK for a language.
    Sdk(&'static str),
    /// A Collector, by its exporters.
    Collector,
    Telemetrygen,
    /// curl by this version of HTTP.
    Curl(&'static str),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Protocol {
    Grpc,
    HttpProtobuf,
    HttpJson,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Compression {
    None,
    Gzip,
    Zstd,
    Deflate,
    Snappy,
}

/// What a client needs to send.
struct Task<'a> {
    cell: Cell,
    /// The cell's place in the table, from which IDs are made.
    number: usize,
    /// Path of the client.
    program: &'a Path,
    /// The proxies' receivers for the cell's protocol.
    proxies: Vec<SocketAddr>,
    /// Folder for files.
    dir: &'a Path,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::HttpProtobuf => "http/protobuf",
            Self::HttpJson => "http/json",
        }
    }
}

impl Compression {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Deflate => "deflate",
            Self::Snappy => "snappy",
        }
    }
}

impl Client {
    /// Returns the path of its program, or `None` if it is not installed.
    fn program(self) -> Result<Option<PathBuf>> {
        match self {
            Self::Sdk(language) => harness::peer(&format!("sdk-{language}")),
            Self::Collector => harness::peer("otelcol"),
            Self::Telemetrygen => harness::peer("telemetrygen"),
            Self::Curl(_) => curl::program(),
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.client {
            Client::Sdk(language) => write!(out, "sdk-{language}")?,
            Client::Collector => write!(out, "Collector")?,
            Client::Telemetrygen => write!(out, "telemetrygen")?,
            Client::Curl(version) => write!(out, "curl {version}")?,
        }
        write!(out, " by {}, {}", self.protocol.name(), self.compression.name())
    }
}

impl Task<'_> {
    /// Sends, and returns what has to come.
    fn send(&self) -> Result<Expected> {
        match self.cell.client {
            Client::Sdk(_) => sdk::send(self),
            Client::Collector => exporters::send(self),
            Client::Telemetrygen => telemetrygen::send(self),
            Client::Curl(version) => curl::send(self, version),
        }
    }

    /// Sends, and checks that the proxies saw the protocol and the compression which the cell is about.
    fn send_as_told(&self, stage: &Stage) -> Result<Expected> {
        let listener = if self.cell.protocol == Protocol::Grpc { "grpc" } else { "http" };
        let listener = format!("listener=\"otlp_{listener}\"");
        let look = || -> Result<[f64; 3]> {
            Ok([
                stage.metric("spanring_receiver_connections_total", &[&listener, "result=\"accepted\""])?,
                stage.metric("spanring_receiver_wire_bytes_total", &[])?,
                stage.metric("spanring_receiver_bytes_total", &[])?,
            ])
        };
        let before = look()?;
        let expected = self.send()?;
        let after = look()?;
        let [connections, wire, bytes] = [0, 1, 2].map(|at| after[at] - before[at]);
        ensure!(connections > 0.5, "no connection to the port of {}", self.cell.protocol.name());
        // What clients send here repeats itself, so that each compression halves it at least.
        let is_compressed = wire < bytes / 2.0;
        ensure!(
            is_compressed == (self.cell.compression != Compression::None),
            "{wire} bytes were received for {bytes}: not the compression that was asked for"
        );
        Ok(expected)
    }
}

/// Returns all cells of the table.
fn cells() -> impl Iterator<Item = Cell> {
    ROWS.iter().flat_map(|(client, columns)| {
        columns.iter().flat_map(|(protocol, compressions)| {
            compressions.iter().map(|&compression| Cell { client: *client, protocol: *protocol, compression })
        })
    })
}

#[test]
fn what_any_client_sends_arrives_equal_and_each_trace_at_one_collector() -> Result<()> {
    arrives_equal(Calls::Grpc, |_| true)
}

#[test]
fn the_same_with_collectors_that_are_called_by_otlp_http() -> Result<()> {
    // What clients speak makes no difference behind the cut. These are clients of all protocols and compressions.
    arrives_equal(Calls::Http, |cell| match cell.client {
        Client::Curl("1.1") => true,
        Client::Collector => cell.protocol == Protocol::Grpc,
        _ => false,
    })
}

/// Sends by those cells that `runs` accepts, through proxies that make such `calls` with the compressions of [`BEHIND`].
fn arrives_equal(calls: Calls, runs: impl Fn(&Cell) -> bool) -> Result<()> {
    let Some(otelcol) = harness::peer("otelcol")? else { return Ok(()) };
    let mut programs: BTreeMap<Client, Option<PathBuf>> = BTreeMap::new();
    for (client, _) in ROWS {
        programs.insert(*client, client.program()?);
    }
    let stage = Stage::start(&otelcol, calls, BEHIND.map(Compression::name))?;
    let dir = tempfile::tempdir()?;
    let (mut sent, mut failures) = (Vec::new(), Vec::new());
    for (number, cell) in cells().enumerate().filter(|(_, cell)| runs(cell)) {
        let Some(program) = &programs[&cell.client] else { continue };
        let proxies = if cell.protocol == Protocol::Grpc { stage.grpc() } else { stage.http() };
        let task = Task { cell, number, program, proxies, dir: dir.path() };
        match task.send_as_told(&stage) {
            Ok(expected) => sent.push((cell, expected)),
            Err(error) => failures.push(format!("{cell}: {error:#}")),
        }
    }
    let [all, kept] = [Expected::spans, Expected::kept].map(|of| sent.iter().map(|(_, expected)| of(expected)).sum());
    if let Err(error) = stage.wait(all, kept) {
        failures.push(format!("{error:#}"));
    }
    let accepted = stage.metric("spanring_receiver_records_total", &["signal=\"traces\"", "outcome=\"accepted\""])?;
    let mut came = compare::Came::new(&stage.end()?);
    for (cell, expected) in &sent {
        if let Err(error) = came.check(expected) {
            failures.push(format!("{cell}: {error:#}"));
        }
    }
    ensure!(failures.is_empty(), "{} cells, of which these failed:\n{}", sent.len(), failures.join("\n"));
    ensure!(accepted.round() == all as f64, "the proxies must count what they took: {accepted} of {all}");
    came.check_rest()?;
    let skipped = cells().filter(runs).count() - sent.len();
    writeln!(std::io::stderr(), "\n{} cells of clients and protocols passed, {skipped} skipped: {calls:?}", sent.len())
        .context("cannot print")
}
