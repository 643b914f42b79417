//! Random sequences of frames, from clients that end in random ways: when all of them are gone, nothing is held for them
//! any more.

use std::io::Write as _;

use fastrand::Rng;
use futures_util::future::join_all;
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    time::{sleep, timeout},
};

use super::*;
use crate::budget::Use;

/// The number of rounds, and of clients that share an account in each.
const ROUNDS: u64 = 200;
const CLIENTS: u64 = 10;

/// Room for a few requests only, so that many are refused.
const ROOM: usize = 1 << 20;

/// Longer than any timeout of a connection. The clock is paused.
const LONG: Duration = Duration::from_secs(300);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// A client that sends random frames.
struct Client {
    random: Rng,
    /// The next stream that it opens.
    next: u32,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, len @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&len[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Returns headers as literals without indexing (RFC 7541, 6.2.2).
fn literals(headers: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    headers.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

// === impl Client ===

impl Client {
    fn any<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.random.usize(..choices.len())]
    }

    /// Returns a stream that was opened, or one that was not.
    fn stream(&mut self) -> u32 {
        match self.random.u8(..8) {
            0 => self.random.u32(..=self.next + 4),
            _ => self.random.u32(..self.next.div_ceil(2)) * 2 + 1,
        }
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.random.usize(..=most)).map(|_| self.random.u8(..)).collect()
    }

    /// Returns the headers of a request, valid or not.
    fn headers(&mut self) -> Vec<u8> {
        let path =
            self.any(&[Signal::Traces.grpc_path(), Signal::Traces.grpc_path(), Signal::Logs.grpc_path(), "/none"]);
        let mut headers = vec![
            (":method", self.any(&["POST", "POST", "POST", "POST", "GET"])),
            (":scheme", "http"),
            (":path", path),
            (":authority", self.any(&["proxy.test", "a%b"])),
            (
                "content-type",
                self.any(&["application/grpc", "application/grpc", "application/grpc+proto", "text/plain"]),
            ),
            ("te", "trailers"),
        ];
        if self.random.bool() {
            headers.push(("grpc-encoding", self.any(&["gzip", "zstd", "identity", "br"])));
        }
        if self.random.bool() {
            headers.push(("grpc-timeout", self.any(&["1S", "20m", "99H", "nonsense"])));
        }
        let long = "v".repeat(self.random.usize(..255));
        headers.push(("x-long", &long[..long.len().min(126)]));
        let mut block = literals(&headers);
        if self.random.u8(..20) == 0 {
            let at = self.random.usize(..block.len());
            block[at] ^= 1 << self.random.u8(..8);
        }
        block
    }

    /// Opens a stream, in one frame or in several.
    fn open(&mut self) -> Vec<u8> {
        let (id, block) = (self.next, self.headers());
        self.next += 2;
        let end = if self.random.u8(..5) == 0 { END_STREAM } else { 0 };
        match self.random.u8(..6) {
            0 => {
                let (first, rest) = block.split_at(self.random.usize(..block.len()));
                let last = if self.random.u8(..4) == 0 { 0 } else { END_HEADERS };
                [frame(HEADERS, end, id, first), frame(CONTINUATION, last, id, rest)].concat()
            }
            1 => frame(HEADERS, end | END_HEADERS | PRIORITY, id, &[&[0, 0, 0, 0, 9][..], &block].concat()),
            2 => frame(HEADERS, end | END_HEADERS | PADDED, id, &[&[5][..], &block, &[0; 5]].concat()),
            _ => frame(HEADERS, end | END_HEADERS, id, &block),
        }
    }

    /// Returns a message with its prefix: valid, cut, announced only, or none at all.
    fn message(&mut self) -> Vec<u8> {
        let (spans, len) = (self.random.usize(..60), self.random.usize(..200));
        let message = request(spans, len).encode_to_vec();
        let (flag, message) = match self.random.u8(..4) {
            0 => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gzip.write_all(&message).unwrap();
                (1, gzip.finish().unwrap())
            }
            1 => (1, zstd::encode_all(&message[..], 1).unwrap()),
            _ => (0, message),
        };
        let announced = match self.random.u8(..6) {
            0 => self.random.u32(..70 << 20),
            _ => u32::try_from(message.len()).unwrap(),
        };
        let mut bytes = [&[flag], &announced.to_be_bytes()[..], &message].concat();
        if self.random.u8(..4) == 0 {
            bytes.truncate(self.random.usize(..bytes.len()));
        }
        bytes
    }

    /// Returns the frames of a message, on a stream that may not exist.
    fn data(&mut self) -> Vec<u8> {
        let (id, message) = (self.stream(), if self.random.u8(..5) == 0 { self.bytes(300) } else { self.message() });
        let most = self.any(&[1 << 14, 1 << 14, 1 << 16, 100]);
        let mut frames: Vec<u8> = message.chunks(most).take(400).flat_map(|piece| frame(DATA, 0, id, piece)).collect();
        if self.random.u8(..4) != 0 {
            frames.extend(frame(DATA, END_STREAM, id, &[]));
        }
        frames
    }

    fn settings(&mut self) -> Vec<u8> {
        let mut payload = Vec::new();
        for _ in 0..self.random.u8(..3) {
            payload.extend(self.random.u16(1..8).to_be_bytes());
            payload.extend(self.any(&[0_u32, 1, 100, 16_384, 65_535, 1 << 20, u32::MAX]).to_be_bytes());
        }
        frame(SETTINGS, 0, 0, &payload)
    }

    /// Returns what the client sends next.
    fn next_bytes(&mut self) -> Vec<u8> {
        match self.random.u8(..40) {
            0..13 => self.open(),
            13..30 => self.data(),
            30 => self.settings(),
            31 => frame(SETTINGS, 1, 0, &[]),
            32 => frame(3, 0, self.stream(), &self.random.u32(..14).to_be_bytes()),
            33 => frame(6, self.random.u8(..2), 0, &[7; 8]),
            34 => {
                let grown = self.any(&[0_u32, 1, 10_000, 1 << 20, 0x7fff_ffff]).to_be_bytes();
                let stream = if self.random.bool() { 0 } else { self.stream() };
                frame(WINDOW_UPDATE, 0, stream, &grown)
            }
            35 => frame(2, 0, self.stream(), &[0, 0, 0, 0, 1]),
            36 => frame(0x42, self.random.u8(..), self.stream(), &self.bytes(40)),
            // Trailers.
            37 => frame(HEADERS, END_HEADERS | END_STREAM, self.stream(), &literals(&[("x-end", "1")])),
            38 if self.random.u8(..4) == 0 => frame(7, 0, 0, &[0; 8]),
            39 if self.random.u8(..4) == 0 => self.bytes(60),
            _ => frame(DATA, self.random.u8(..2), self.stream(), &[]),
        }
    }

    /// Sends frames for a while and then leaves.
    async fn run(mut self, mut stream: DuplexStream) {
        let opening = [PREFACE, &self.settings()].concat();
        let frames = self.random.usize(..30);
        let mut sent = vec![opening];
        sent.extend((0..frames).map(|_| self.next_bytes()));
        if let Some(last) = sent.last_mut()
            && self.random.bool()
        {
            last.truncate(self.random.usize(..=last.len()));
        }
        for bytes in sent {
            // The server may have closed the connection, or not read because no answer is taken.
            if !matches!(timeout(Duration::from_secs(2), stream.write_all(&bytes)).await, Ok(Ok(()))) {
                break;
            }
            match self.random.u8(..12) {
                0 => sleep(Duration::from_millis(self.random.u64(..3_000))).await,
                1 => {
                    let mut taken = vec![0; self.random.usize(1..20_000)];
                    drop(timeout(Duration::from_millis(1), stream.read(&mut taken)).await);
                }
                2 => tokio::task::yield_now().await,
                _ => {}
            }
        }
        match self.random.u8(..4) {
            0 => {}
            1 => sleep(Duration::from_millis(self.random.u64(..40_000))).await,
            2 => drop(timeout(Duration::from_secs(30), stream.read_to_end(&mut Vec::new())).await),
            _ => {
                drop(stream.shutdown().await);
                drop(timeout(Duration::from_secs(30), stream.read_to_end(&mut Vec::new())).await);
            }
        }
    }
}

/// A pipeline that answers after a while: at once, late or never within the deadline.
struct Slow;

impl Export for Slow {
    async fn export(&self, request: Request) -> Outcome {
        let waits = [0, 0, 50, 2_000, 20_000];
        let wait = waits.get(request.permit.bytes() % waits.len()).copied().unwrap_or(0);
        sleep(Duration::from_millis(wait)).await;
        Outcome::OK
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_clients_send_nothing_is_held_when_they_are_gone() {
    for round in 0..ROUNDS {
        let (budget, tasks, config) = (Budget::new(ROOM), Tasks::new(), GrpcConfig::default());
        let (recorder, service) = Recorder::scoped(|recorder| {
            (recorder.clone(), OtlpGrpc::new(Arc::new(Slow), budget.clone(), &config, &tasks))
        });
        let clients = (0..CLIENTS).map(|n| {
            let client = Client { random: Rng::with_seed(round * CLIENTS + n), next: 1 };
            let limits = config.limits("HTTP/1".into(), &budget, listen::OpenConnections::default());
            client.run(listen::tests::serve_in_memory(limits, service.for_connection(), &tasks))
        });
        join_all(clients).await;
        drop(service);
        timeout(LONG, tasks.wait()).await.unwrap_or_else(|_| panic!("round {round}: {} tasks remain", tasks.len()));
        assert_eq!(Use::ALL.map(|purpose| budget.used_for(purpose)), [0; Use::ALL.len()], "round {round}");
        let page = recorder.render();
        let in_flight = |line: &&str| line.starts_with("spanring_receiver_in_flight_requests{");
        assert!(page.lines().filter(in_flight).count() > 0, "{page}");
        assert!(page.lines().filter(in_flight).all(|line| line.ends_with(" 0")), "round {round}: {page}");
    }
}
