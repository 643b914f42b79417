//! A fuzz target for the OTLP/gRPC receiver: each input is a client that sends a sequence of HTTP/2 frames on a connection
//! of its own and then leaves. Beside it is the account of the memory: when the client is gone, nothing is held for it.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{Arc, LazyLock},
    time::Duration,
};

use bolero::check;
use spanring::{
    budget::{Budget, Use},
    lifecycle::Tasks,
    otlp::{Outcome, Signal},
    pipeline::{Export, Request},
    receive::{self, Config, GrpcConfig},
};
use tokio::{runtime::Runtime, time::Instant};

/// Duration of the target under `cargo test`.
const SHORT: Duration = Duration::from_secs(4);

/// Room for some requests only, so that some are refused.
const ROOM: usize = 4 << 20;

/// How long the receiver may take to notice that a client is gone.
const SETTLED_WITHIN: Duration = Duration::from_secs(20);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const END_HEADERS: u8 = 4;

/// The receiver that all inputs are sent to.
struct Server {
    grpc: SocketAddr,
    budget: Budget,
    tasks: Tasks,
    _runtime: Runtime,
}

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let runtime = Runtime::new().expect("a runtime");
    let _guard = runtime.enter();
    let (budget, tasks) = (Budget::new(ROOM), Tasks::new());
    let grpc = GrpcConfig { endpoint: SocketAddr::from(([127, 0, 0, 1], 0)), ..GrpcConfig::default() };
    let config = Config { grpc: Some(grpc), http: None };
    let listeners = receive::start(&config, Arc::new(Takes), budget.clone(), &tasks).expect("a port");
    Server { grpc: listeners.grpc.expect("gRPC"), budget, tasks, _runtime: runtime }
});

/// A pipeline that takes everything.
struct Takes;

impl Export for Takes {
    async fn export(&self, _request: Request) -> Outcome {
        Outcome::OK
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, len @ ..] = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    [&len[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Returns the headers of a call as literals, with or without indexing (RFC 7541, 6.2).
fn headers(choice: u8) -> Vec<u8> {
    let encoding = ["identity", "gzip", "zstd", "br"][usize::from(choice % 4)];
    let path = [Signal::Traces.grpc_path(), Signal::Logs.grpc_path(), "/grpc.health.v1.Health/Check", "/"];
    let fields = [
        (":method", if choice % 16 == 15 { "GET" } else { "POST" }),
        (":scheme", "http"),
        (":path", path[usize::from(choice / 4 % 4)]),
        (":authority", if choice.is_multiple_of(3) { "a%b" } else { "fuzz.test" }),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("grpc-encoding", encoding),
        ("grpc-timeout", "1S"),
    ];
    let kind = if choice >= 128 { 0x40 } else { 0 };
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap_or(0)], text.as_bytes()].concat();
    fields.iter().flat_map(|(name, value)| [vec![kind], text(name), text(value)].concat()).collect()
}

/// Returns the next frame of an input: three bytes choose its kind, flags and stream, and a fourth one its length. Half of
/// the choices are the frames of a call, so that many inputs reach the service.
fn next_frame<'a>(input: &mut impl Iterator<Item = &'a u8>) -> Option<Vec<u8>> {
    let [choice, flags, stream, len] = [*input.next()?, *input.next()?, *input.next()?, *input.next()?];
    let id = u32::from(stream % 16) * 2 + 1;
    let payload: Vec<u8> = input.take(usize::from(len)).copied().collect();
    Some(match choice % 16 {
        0..=3 => frame(HEADERS, flags & 1 | END_HEADERS, id, &headers(len)),
        4..=6 => {
            let message = [&[flags >> 7, 0, 0, 0, u8::try_from(payload.len()).unwrap_or(0)][..], &payload].concat();
            frame(DATA, flags & 1, id, &message)
        }
        7 => frame(DATA, flags, id, &payload),
        8 => frame(HEADERS, flags, id, &[headers(len), payload].concat()),
        9 => frame(SETTINGS, flags & 1, 0, &payload),
        // A frame of this length as announced, with less than that behind it.
        10 => [&[0, flags & 1, len, choice >> 4, flags][..], &id.to_be_bytes(), &payload].concat(),
        11 => payload,
        _ => frame(choice >> 4, flags, if stream >= 128 { 0 } else { id }, &payload),
    })
}

/// Sends the frames of an input. Where the receiver ends the connection, the rest is not sent.
fn send(input: &[u8]) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(SERVER.grpc)?;
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat())?;
    let mut bytes = input.iter();
    while let Some(frame) = next_frame(&mut bytes) {
        stream.write_all(&frame)?;
    }
    // One in two waits for what the receiver says to the end, the others are gone at once.
    if input.len().is_multiple_of(2) {
        stream.shutdown(Shutdown::Write)?;
        stream.set_read_timeout(Some(SETTLED_WITHIN))?;
        stream.read_to_end(&mut Vec::new())?;
    }
    Ok(())
}

#[test]
fn nothing_is_held_for_a_client_that_is_gone() {
    LazyLock::force(&SERVER);
    let idle = SERVER.tasks.len();
    check!().with_test_time(SHORT).for_each(|input: &[u8]| {
        // An error says that the receiver has ended the connection.
        let _ended = send(input);
        let begun = Instant::now();
        let held = || Use::ALL.map(|purpose| SERVER.budget.used_for(purpose));
        while held() != [0; Use::ALL.len()] || SERVER.tasks.len() > idle {
            assert!(begun.elapsed() < SETTLED_WITHIN, "{:?} bytes and {} tasks remain", held(), SERVER.tasks.len());
            std::thread::yield_now();
        }
    });
}
