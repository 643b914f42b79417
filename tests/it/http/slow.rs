//! A thousand clients that send slowly, and a good one beside them.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Result, ensure};
use tokio::time::Instant;

use super::{
    super::{
        fixture::{ExtraConfig, Fixture, encoded, span},
        memory::hostile::room_for,
    },
    wire::{self, Request},
};

const PROTOBUF: &str = "application/x-protobuf";
const TRACES: &str = "/v1/traces";

/// The number of slow senders.
const SENDERS: usize = 1_000;

/// How long they send at most. The last ones are cut off 14 s after they began: their answer comes after 4 s, and what they go
/// on sending is read for 10 s.
const TIME: Duration = Duration::from_secs(40);

/// How long the good client may wait for an answer.
const SOON: Duration = Duration::from_secs(2);

/// A slow sender.
struct Sender {
    stream: TcpStream,
    /// What it has still to send; less each time.
    rest: Vec<u8>,
    /// The bytes that it sends at a time.
    piece: usize,
    answer: Vec<u8>,
    is_open: bool,
}

impl Sender {
    /// Connects and sends the first half of what makes its kind: some trickle their headers, some a long body, some chunks
    /// of one byte.
    fn new(address: SocketAddr, kind: usize) -> Result<Self> {
        let post = || Request::post(TRACES, PROTOBUF, "").without_length();
        let (head, rest, piece) = match kind % 3 {
            0 => (post().bytes()[..40].to_vec(), b"x-more: 1\r\n".repeat(1_000), 1),
            1 => (post().with("content-length", "10000000").bytes(), vec![0x0a; 400 << 10], 1 << 10),
            _ => (post().with("transfer-encoding", "chunked").bytes(), b"1\r\na\r\n".repeat(10_000), 6),
        };
        let mut stream = wire::connect(address)?;
        stream.write_all(&head)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, rest, piece, answer: Vec::new(), is_open: true })
    }

    /// Sends a piece, and reads what came.
    fn step(&mut self) {
        let piece: Vec<u8> = self.rest.drain(..self.piece.min(self.rest.len())).collect();
        let mut room = [0; 1024];
        let sent = self.stream.write(&piece);
        let waits = |error: std::io::Error| error.kind() == ErrorKind::WouldBlock;
        match self.stream.read(&mut room) {
            Ok(0) => self.is_open = false,
            Ok(read) => self.answer.extend_from_slice(&room[..read]),
            Err(error) => self.is_open &= waits(error),
        }
        self.is_open &= sent.map_or_else(waits, |_| true);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_slow_senders_harm_no_other_client() -> Result<()> {
    room_for(SENDERS)?;
    let http = Some("read_header_timeout: 4s,");
    // It has room for that many connections.
    let top = "memory_limiter: { limit_mib: 256 }";
    let fixture = Fixture::start(1, ExtraConfig { http, top, deadline: "4s", ..ExtraConfig::default() }).await?;
    let address = fixture.http()?;
    tokio::task::block_in_place(|| {
        let mut senders = (0..SENDERS).map(|kind| Sender::new(address, kind)).collect::<Result<Vec<_>>>()?;
        let connections = |wanted: &dyn Fn(f64) -> bool| {
            fixture.until_metric("spanring_receiver_connections", &["listener=\"otlp_http\""], wanted)
        };
        connections(&|open| open >= SENDERS as f64)?;
        let started = Instant::now();
        let mut served = 0;
        while started.elapsed() < TIME && senders.iter().any(|sender| sender.is_open) {
            senders.iter_mut().filter(|sender| sender.is_open).for_each(Sender::step);
            let asked = Instant::now();
            let body = encoded(vec![span(&fixture.trace(), served)]);
            let answer = wire::send(address, &Request::post(TRACES, PROTOBUF, body).bytes(), false)?;
            ensure!(answer.status == 200, "after {:?}: {answer:?}", started.elapsed());
            ensure!(asked.elapsed() < SOON, "answered after {:?}", asked.elapsed());
            served += 1;
        }
        ensure!(served > 10, "only {served} requests in {TIME:?}");
        let left = senders.iter().filter(|sender| sender.is_open).count();
        ensure!(left == 0, "{left} of the slow senders are still there");
        // Those that sent a body are told so.
        let answered = senders.iter().filter(|sender| sender.answer.starts_with(b"HTTP/1.1 503 ")).count();
        ensure!(answered == SENDERS - SENDERS.div_ceil(3), "{answered}");
        drop(senders);
        connections(&|open| open == 0.0)?;
        fixture.memory_is_given_back()
    })?;
    let peak = fixture.peak_mib()?;
    ensure!(peak <= 256 + 64, "{peak} MiB");
    fixture.serves().await
}
