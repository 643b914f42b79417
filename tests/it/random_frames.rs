//! Clients that send random HTTP/2 frames, in plaintext or in TLS: the proxy does not panic, and all that was taken from the
//! account for them is given back when they are gone. With TLS, some handshakes are random too.
//!
//! The tests are short and always send the same. `SPANRING_FRAMES_SECONDS` makes them longer, with another seed each time,
//! which is part of the message of a failure; `SPANRING_FRAMES_SEED` repeats one.

use std::{env, net::SocketAddr, ops::RangeInclusive, time::Duration};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use prost::Message;
use spanring::tools::sink::SinkConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;

use crate::{
    harness::{Proxy, http_get, metric, until},
    memory::beside::{self, Memory},
    rig::{self, Sinks},
    tls::World,
    wire::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, export_headers_as,
        frame, goaway, grpc, literals_as,
    },
};

const PRIORITY: u8 = 2;
const PUSH_PROMISE: u8 = 5;
const WINDOW_UPDATE: u8 = 8;
const PADDED: u8 = 8;
const HAS_PRIORITY: u8 = 0x20;

/// The number of clients at the same time.
const CLIENTS: u64 = 8;

/// The connections of each client in the short form, and how long each lasts at most.
const ROUNDS: usize = 60;
const LASTS: Duration = Duration::from_secs(2);

/// The limit of memory in MiB, and the memory allowed beside it.
const LIMIT: u64 = 64;
const BESIDE: u64 = 64 - 12;

/// Writes random frames that are mostly valid, so that they come far.
struct Frames {
    random: Rng,
    /// The highest stream so far; 0 before the first.
    last: u32,
    /// The streams that this client may still send on.
    open: Vec<u32>,
    /// One frame in so many breaks the protocol, which ends most connections.
    breaks_one_in: usize,
}

impl Frames {
    fn any(&mut self, range: RangeInclusive<usize>) -> usize {
        self.random.usize(range)
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.any(1..=count) == 1
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let len = self.any(0..=most);
        std::iter::repeat_with(|| self.random.u8(..)).take(len).collect()
    }

    /// Whether to break the protocol now.
    fn breaks(&mut self) -> bool {
        self.one_in(self.breaks_one_in)
    }

    /// A stream that exists or existed, or sometimes one that did not.
    fn stream(&mut self) -> u32 {
        if self.last == 0 || self.breaks() {
            self.random.u32(0..=u32::MAX >> 1)
        } else {
            self.random.u32(0..=self.last / 2) * 2 + 1
        }
    }

    fn header_block(&mut self) -> Vec<u8> {
        let kind = if self.random.bool() { 0 } else { 0x40 };
        let unique = self.random.u32(..).to_string();
        let encoding = ["gzip", "zstd", "snappy", "identity", "br"][self.any(0..=4)];
        let mut block = match self.any(0..=9) {
            0 if self.breaks() => self.bytes(200),
            1 => [vec![0x20], export_headers_as(kind, &[])].concat(),
            2 => literals_as(
                kind,
                &[
                    (":method", "POST"),
                    (":scheme", "http"),
                    (":path", "/grpc.health.v1.Health/Check"),
                    (":authority", "a%b"),
                    ("content-type", "application/grpc"),
                    ("te", "trailers"),
                ],
            ),
            3 => literals_as(kind, &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "x")]),
            4 | 5 => export_headers_as(kind, &[("grpc-encoding", encoding)]),
            6 => export_headers_as(kind, &[("grpc-timeout", "50m")]),
            _ => export_headers_as(kind, &[("x-unique", &unique)]),
        };
        if self.breaks() {
            // References into the table, valid or not.
            block.extend(std::iter::repeat_with(|| 0x80 | self.random.u8(1..=100)).take(3));
        }
        block
    }

    fn headers(&mut self) -> Vec<u8> {
        let id = if self.breaks() { self.stream() } else { self.last + if self.last == 0 { 1 } else { 2 } };
        self.last = self.last.max(id).min(u32::MAX >> 2) | 1;
        let (mut flags, block) = (0, self.header_block());
        let mut payload = block;
        if self.one_in(8) {
            payload.splice(0..0, [0, 0, 0, 0, 7]);
            flags |= HAS_PRIORITY;
        }
        if self.one_in(8) {
            let padding = self.random.u8(..);
            payload.insert(0, padding);
            // Sometimes longer than the frame.
            let len = if self.breaks() { 0 } else { usize::from(padding) };
            payload.resize(payload.len() + len, 0);
            flags |= PADDED;
        }
        if self.one_in(6) {
            flags |= END_STREAM;
        } else {
            self.open.push(id);
        }
        if !self.one_in(6) {
            return frame(HEADERS, flags | END_HEADERS, id, &payload);
        }
        let (begin, rest) = payload.split_at(self.any(0..=payload.len()));
        let mut frames = frame(HEADERS, flags, id, begin);
        if self.breaks() {
            frames.extend(self.next());
        }
        if !self.breaks() {
            frames.extend(frame(CONTINUATION, END_HEADERS, id, rest));
        }
        frames
    }

    fn message(&mut self) -> Vec<u8> {
        let export = beside::request(self.random.u64(..1 << 40)).encode_to_vec();
        let mut message = match self.any(0..=6) {
            0 => self.bytes(300),
            1 => grpc(&[]),
            2 => [vec![0, 3, 192, 0, 0], self.bytes(100)].concat(),
            3 => grpc(&self.bytes(40_000)),
            4 => {
                let mut packed = grpc(&zstd::bulk::compress(&export, 1).unwrap_or_default());
                packed[0] = 1;
                packed
            }
            _ => grpc(&export),
        };
        if self.one_in(10) && !message.is_empty() {
            let at = self.any(0..=message.len() - 1);
            message[at] ^= self.random.u8(..);
        }
        message
    }

    fn data(&mut self) -> Vec<u8> {
        if self.open.is_empty() {
            return self.headers();
        }
        let at = self.any(0..=self.open.len() - 1);
        let id = if self.breaks() { self.stream() } else { self.open[at] };
        let message = self.message();
        let mut frames = Vec::new();
        let mut rest = &message[..];
        loop {
            let most = if self.one_in(3) { 60_000 } else { 3_000 };
            let (now, later) = rest.split_at(self.any(0..=most).min(rest.len()));
            rest = later;
            let ends = rest.is_empty() && !self.one_in(4);
            frames.extend(match self.one_in(10) {
                true => frame(DATA, PADDED | u8::from(ends), id, &[&[3], now, &[0; 3]].concat()),
                false => frame(DATA, u8::from(ends), id, now),
            });
            if ends {
                self.open.retain(|open| *open != id);
            }
            if rest.is_empty() || self.one_in(30) {
                return frames;
            }
        }
    }

    fn settings(&mut self) -> Vec<u8> {
        let mut payload = Vec::new();
        for _ in 0..self.any(0..=3) {
            let id = self.random.u16(0..=9);
            // 2 is ENABLE_PUSH, and 5 is MAX_FRAME_SIZE, of at least 16 KiB.
            let value = match id {
                _ if self.breaks() => self.random.u32(..),
                2 => 0,
                5 => self.random.u32(16_384..100_000),
                _ => self.random.u32(0..70_000),
            };
            payload.extend([&id.to_be_bytes()[..], &value.to_be_bytes()].concat());
        }
        let is_ack = self.breaks();
        frame(SETTINGS, u8::from(is_ack), 0, &payload)
    }

    /// Returns one or several frames.
    fn next(&mut self) -> Vec<u8> {
        let number = |random: &mut Rng| random.u32(..).to_be_bytes();
        match self.any(0..=99) {
            0..=34 => self.headers(),
            35..=74 => self.data(),
            75..=80 => frame(RST_STREAM, 0, self.stream(), &number(&mut self.random)),
            81..=86 => {
                let id = if self.random.bool() { 0 } else { self.stream() };
                let more = if self.breaks() { number(&mut self.random) } else { [0, 0, 0x40, 0] };
                frame(WINDOW_UPDATE, 0, id, &more)
            }
            87..=90 => self.settings(),
            91..=93 => {
                let is_ack = self.breaks();
                frame(PING, u8::from(is_ack), 0, &[5; 8])
            }
            94 => frame(PRIORITY, 0, self.stream(), &[0, 0, 0, 0, 9]),
            95 if self.breaks() => goaway(self.stream(), 0),
            96 if self.breaks() => frame(PUSH_PROMISE, END_HEADERS, self.stream(), &self.bytes(40)),
            97 => frame(self.random.u8(10..), self.random.u8(..), self.stream(), &self.bytes(30_000)),
            98 if self.breaks() => self.bytes(100),
            _ => Vec::new(),
        }
    }
}

/// Connects, and sends random frames.
async fn connection(grpc: SocketAddr, tls: Option<&TlsConnector>, seed: u64) -> Result<()> {
    let mut random = Rng::with_seed(seed);
    let breaks_one_in = *random.choice(&[20, 200, 2_000]).context("a rate")?;
    let mut frames = Frames { random, last: 0, open: Vec::new(), breaks_one_in };
    let mut stream = TcpStream::connect(grpc).await?;
    stream.set_nodelay(true)?;
    match tls {
        None => converse(stream, frames).await,
        Some(_) if frames.one_in(10) => {
            // The head of a handshake record with a random length, and what may be less or more than that.
            let mut record = [&[0x16, 3, 1][..], &frames.random.u16(..2_000).to_be_bytes()].concat();
            record.extend(frames.bytes(2_000));
            stream.write_all(&record).await?;
            Ok(())
        }
        Some(tls) => converse(tls.connect("localhost".try_into()?, stream).await?, frames).await,
    }
}

/// Sends random frames, and ends the connection in a random way.
async fn converse<S: AsyncRead + AsyncWrite + Unpin>(stream: S, mut frames: Frames) -> Result<()> {
    let (mut from, mut to) = split(stream);
    let mut bytes = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    for _ in 0..frames.any(0..=150) {
        bytes.extend(frames.next());
    }
    if frames.one_in(6) {
        bytes.truncate(frames.any(0..=bytes.len()));
    }
    let reads = !frames.one_in(4);
    let writing = async {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let most = if frames.one_in(2) { 100 } else { 100_000 };
            let (now, later) = rest.split_at(frames.any(1..=most).min(rest.len()));
            rest = later;
            to.write_all(now).await?;
            to.flush().await?;
            if frames.one_in(10) {
                tokio::task::yield_now().await;
            }
        }
        let waits = frames.any(0..=20);
        tokio::time::sleep(Duration::from_millis(waits as u64)).await;
        // At the end, sometimes only this direction is closed.
        if frames.random.bool() {
            to.shutdown().await?;
            std::future::pending::<()>().await;
        }
        anyhow::Ok(())
    };
    let reading = async {
        let mut dropped = [0; 4096];
        while reads && from.read(&mut dropped).await? > 0 {}
        if !reads {
            std::future::pending::<()>().await;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        written = writing => written,
        read = reading => read,
    }
}

/// Returns the values of all gauges that must be 0 when no client is there. That of the admin port is not among them: the page
/// that is read here counts in it.
fn held(admin: SocketAddr) -> Result<Vec<String>> {
    let (_, page) = http_get(&format!("http://{admin}/metrics"))?;
    let is_gauge = |line: &str| {
        ["connections", "frames", "streams", "requests", "builds"]
            .iter()
            .any(|purpose| line.starts_with(&format!("spanring_memory_used_bytes{{use=\"{purpose}\"}}")))
            || line.starts_with("spanring_receiver_in_flight_requests")
            || line.starts_with("spanring_receiver_waiting_requests")
            || line.starts_with("spanring_receiver_connections{listener=\"otlp_grpc\"}")
            || line.starts_with("spanring_memory_budget_used_bytes")
    };
    let gauges: Vec<&str> = page.lines().filter(|line| is_gauge(line)).collect();
    ensure!(gauges.len() >= 10, "gauges are missing: {gauges:?}");
    Ok(gauges.into_iter().filter(|line| !line.ends_with(" 0")).map(str::to_owned).collect())
}

#[test]
fn random_frames_leave_nothing_behind() -> Result<()> {
    sends(None)
}

#[test]
fn random_frames_in_tls_leave_nothing_behind() -> Result<()> {
    sends(Some(World::new()?))
}

/// Sends random frames for the time and with the seed that the environment names.
fn sends(tls: Option<World>) -> Result<()> {
    let number =
        |name: &str| env::var(name).ok().map(|value| value.parse::<u64>()).transpose().context(name.to_owned());
    let seconds = number("SPANRING_FRAMES_SECONDS")?;
    let seed = number("SPANRING_FRAMES_SEED")?.unwrap_or(if seconds.is_some() { fastrand::u64(..) } else { 17 });
    sends_for(seconds.map(Duration::from_secs), tls.as_ref(), seed)
        .with_context(|| format!("with SPANRING_FRAMES_SEED={seed}"))
}

fn sends_for(time: Option<Duration>, tls: Option<&World>, seed: u64) -> Result<()> {
    let sinks = Sinks::start(2, &SinkConfig::default())?;
    let limiter = format!("memory_limiter: {{ limit_mib: {LIMIT} }}");
    let proxy = Proxy::start("spanring", |grpc, admin| {
        let config = rig::config(grpc, admin, &sinks.addresses(), "", &limiter);
        let section = tls.map(|world| format!(", {}", world.server())).unwrap_or_default();
        config.replace(&format!("endpoint: {grpc} "), &format!("endpoint: {grpc}{section} "))
    })?;
    let (grpc, begin) = (proxy.grpc, Instant::now());
    let connector = tls.map(World::connector).transpose()?;
    sinks.runtime.block_on(async {
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let mut random = Rng::with_seed(seed.wrapping_add(client));
            let connector = connector.clone();
            clients.spawn(async move {
                let goes_on = |round: usize| time.map_or(round < ROUNDS, |time| begin.elapsed() < time);
                for _ in (0..).take_while(|round| goes_on(*round)) {
                    // The proxy closes connections that break the protocol.
                    drop(timeout(LASTS, connection(grpc, connector.as_ref(), random.u64(..))).await);
                }
            });
        }
        clients.join_all().await;
    });
    until("everything is given back", || {
        let held = held(proxy.admin)?;
        if !held.is_empty() && begin.elapsed() > time.unwrap_or_default() + Duration::from_secs(50) {
            anyhow::bail!("{held:?}");
        }
        Ok(held.is_empty().then_some(()))
    })?;
    let panics = metric(proxy.admin, "process_panics_total", &[])?;
    ensure!(panics == 0.0, "{panics} panics: {}", proxy.process.log());
    let peak = Memory::of(proxy.process.id())?.own_peak_mib();
    ensure!(peak <= LIMIT + BESIDE, "{peak} MiB are more than {LIMIT} + {BESIDE}");
    let served = metric(proxy.admin, "spanring_receiver_requests_total", &["code=\"OK\""])?;
    ensure!(served > 0.0, "no random request was valid, so little was tested");
    if tls.is_some() {
        let failed = metric(proxy.admin, "spanring_receiver_tls_handshake_failures_total", &[])?;
        ensure!(failed > 0.0, "no handshake was random");
    }
    sinks.runtime.block_on(async {
        let endpoint = match tls {
            None => Endpoint::from_shared(format!("http://{grpc}"))?,
            Some(world) => Endpoint::from_shared(format!("https://{grpc}"))?.tls_config(world.client(None))?,
        };
        TraceServiceClient::new(endpoint.connect().await?).export(beside::request(1)).await?;
        Ok(())
    })
}
