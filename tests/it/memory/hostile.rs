//! Clients that try to make a proxy hold much memory. The bench `faults` uses this module, too.

use std::{
    io::Write as _,
    iter::repeat_n,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::beside;
use crate::wire::{DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, TRACES, export_headers, frame, grpc};

/// The setting SETTINGS_INITIAL_WINDOW_SIZE of HTTP/2.
const INITIAL_WINDOW_SIZE: u16 = 4;

/// The number of clients that connect at the same time, so that no connection waits for the backlog of the listener.
const AT_ONCE: usize = 100;

/// The streams that a client may open on a connection, by the default of `max_concurrent_streams`.
const STREAMS: usize = 100;

/// How long a client writes before it leaves what the proxy does not read.
const WRITES: Duration = Duration::from_secs(5);

/// The inflated size of a bomb, just within the default of `max_recv_msg_size_mib`.
const BOMB: usize = 62 << 20;

/// What hostile clients do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Attack {
    /// Each connection opens 100 streams and sends only their headers.
    HeadersOnly { connections: usize },
    /// Each connection sends 100 whole requests with an initial window of 0, so that no answer can be sent.
    AnswersNotTaken { connections: usize },
    /// Each connection sends a DATA frame except for its last byte.
    UnfinishedFrames { connections: usize },
    /// Each connection sends compressed messages that inflate to 62 MiB of empty messages, one after the other.
    Bombs { connections: usize, encoding: Encoding },
    /// Each connection announces a message of 60 MiB on 100 streams, and sends 7 bytes of it; again when it is refused.
    MuchAnnounced { connections: usize },
    /// Each connection sends requests of 600 KiB on so many streams, and sends them again when they were answered. Many good
    /// clients do the same.
    #[allow(dead_code, reason = "the bench of faults, which uses this file too, has no row for it")]
    LargeRequests { connections: usize, streams: usize },
    /// Connections that send nothing after their settings. All are closed and opened again, `waves` times.
    IdleConnections { connections: usize, waves: u32 },
}

/// The compression of a bomb.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Encoding {
    Gzip,
    Zstd,
}

/// What became of an attack.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Connections on which everything was sent.
    pub(crate) sent: usize,
    /// Answers received to whole requests.
    pub(crate) answers: usize,
    /// How long a new client took to connect and export, while the attack lasted; `None` if it failed for that long.
    pub(crate) newcomer: Option<Duration>,
}

/// Open connections. They are closed when this is dropped.
struct Crowd {
    clients: JoinSet<()>,
    sent: Arc<AtomicUsize>,
    answers: Arc<AtomicUsize>,
}

// === impl Attack ===

impl Attack {
    /// Returns the number of connections that are open at the same time.
    pub(crate) fn connections(self) -> usize {
        match self {
            Self::HeadersOnly { connections }
            | Self::AnswersNotTaken { connections }
            | Self::UnfinishedFrames { connections }
            | Self::Bombs { connections, .. }
            | Self::MuchAnnounced { connections }
            | Self::LargeRequests { connections, .. }
            | Self::IdleConnections { connections, .. } => connections,
        }
    }

    /// Attacks for this long, then closes all connections.
    pub(crate) async fn run(self, grpc: SocketAddr, time: Duration) -> Result<Outcome> {
        let waves = if let Self::IdleConnections { waves, .. } = self { waves } else { 1 };
        let mut outcome = Outcome::default();
        for _ in 0..waves {
            let crowd = self.begin(grpc)?;
            // The newcomer tries until the wave ends.
            let (_, newcomer) =
                tokio::join!(sleep(time / waves), timeout(time / waves, newcomer(grpc, time / waves / 2)));
            outcome.newcomer = newcomer.ok();
            outcome.sent += crowd.sent.load(Relaxed);
            outcome.answers += crowd.answers.load(Relaxed);
        }
        Ok(outcome)
    }

    fn begin(self, grpc: SocketAddr) -> Result<Crowd> {
        let mut crowd = Crowd { clients: JoinSet::new(), sent: Arc::default(), answers: Arc::default() };
        match self {
            Self::HeadersOnly { connections } => {
                crowd.says(grpc, connections, |_| [hello(&[]), opened(&[], 0)].concat())
            }
            Self::AnswersNotTaken { connections } => {
                crowd.says(grpc, connections, |_| {
                    [hello(&[(INITIAL_WINDOW_SIZE, 0)]), opened(&grpc_empty(), END_STREAM)].concat()
                });
            }
            Self::UnfinishedFrames { connections } => crowd.says(grpc, connections, unfinished),
            Self::Bombs { connections, encoding } => crowd.repeats(grpc, connections, 1, &Arc::new(encoding.bomb()?)),
            Self::MuchAnnounced { connections } => {
                let announced = Message {
                    encoding: None,
                    bytes: Bytes::from_static(&[0, 3, 192, 0, 0, 1, 2, 3, 4, 5, 6, 7]),
                    is_whole: false,
                };
                crowd.repeats(grpc, connections, STREAMS, &Arc::new(announced));
            }
            Self::LargeRequests { connections, streams } => {
                let message = Message { encoding: None, bytes: large_request().into(), is_whole: true };
                crowd.repeats(grpc, connections, streams, &Arc::new(message));
            }
            Self::IdleConnections { connections, .. } => crowd.says(grpc, connections, |_| hello(&[])),
        }
        Ok(crowd)
    }
}

// === impl Encoding ===

impl Encoding {
    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// Returns a message with nothing but empty `resource_spans`, compressed.
    fn bomb(self) -> Result<Message> {
        let empty = [0x0a, 0].repeat(1 << 19);
        let packed = match self {
            Self::Gzip => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
                repeat_n(&empty, BOMB >> 20).try_for_each(|piece| gzip.write_all(piece))?;
                gzip.finish()?
            }
            Self::Zstd => {
                let mut zstd = zstd::Encoder::new(Vec::new(), 19)?;
                repeat_n(&empty, BOMB >> 20).try_for_each(|piece| zstd.write_all(piece))?;
                zstd.finish()?
            }
        };
        let mut bytes = grpc(&packed);
        if let Some(flag) = bytes.first_mut() {
            *flag = 1;
        }
        Ok(Message { encoding: Some(self.name()), bytes: bytes.into(), is_whole: true })
    }
}

// === impl Crowd ===

impl Crowd {
    /// Opens connections that send these bytes and then nothing more. What the proxy sends is read and dropped.
    fn says(&mut self, grpc: SocketAddr, connections: usize, bytes: impl Fn(usize) -> Vec<u8>) {
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        // Connections that say the same share it.
        let kinds: Vec<Bytes> = (0..KINDS).map(|n| bytes(n).into()).collect();
        for bytes in kinds.iter().cycle().take(connections) {
            let (bytes, turns, sent) = (bytes.clone(), Arc::clone(&turns), Arc::clone(&self.sent));
            self.clients.spawn(async move {
                // A connection that is refused or closed has failed at its attack.
                drop(say(grpc, &bytes, &turns, &sent).await);
            });
        }
    }

    /// Opens connections with `streams` streams each. On each stream the message is sent again when it was answered.
    fn repeats(&mut self, grpc: SocketAddr, connections: usize, streams: usize, message: &Arc<Message>) {
        for _ in 0..connections {
            let (message, sent, answers) = (Arc::clone(message), Arc::clone(&self.sent), Arc::clone(&self.answers));
            self.clients.spawn(async move {
                // Connects again when the connection ends.
                loop {
                    drop(repeat(grpc, &message, streams, &sent, &answers).await);
                    sleep(Duration::from_millis(100)).await;
                }
            });
        }
    }
}

/// A gRPC message with its prefix.
struct Message {
    encoding: Option<&'static str>,
    bytes: Bytes,
    /// Whether the stream ends with it.
    is_whole: bool,
}

/// The number of different ways in which connections of an attack behave, at most.
const KINDS: usize = 3;

async fn say(grpc: SocketAddr, bytes: &[u8], turns: &Semaphore, sent: &AtomicUsize) -> Result<()> {
    let turn = turns.acquire().await?;
    let mut stream = TcpStream::connect(grpc).await?;
    drop(turn);
    if let Ok(written) = timeout(WRITES, stream.write_all(bytes)).await {
        written?;
        sent.fetch_add(1, Relaxed);
    }
    let mut dropped = [0; 256];
    while stream.read(&mut dropped).await? > 0 {}
    Ok(())
}

async fn repeat(
    grpc: SocketAddr,
    message: &Message,
    streams: usize,
    sent: &AtomicUsize,
    answers: &AtomicUsize,
) -> Result<()> {
    let (sender, connection) = h2::client::handshake(TcpStream::connect(grpc).await?).await?;
    sent.fetch_add(1, Relaxed);
    let calls = (0..streams).map(|_| async {
        let mut sender = sender.clone();
        loop {
            sender = sender.ready().await?;
            let mut head = http::Request::post(format!("http://{grpc}{TRACES}"));
            head = head.header("content-type", "application/grpc").header("te", "trailers");
            if let Some(encoding) = message.encoding {
                head = head.header("grpc-encoding", encoding);
            }
            let (response, mut body) = sender.send_request(head.body(())?, false)?;
            drop(body.send_data(message.bytes.clone(), message.is_whole));
            let mut answer = response.await?.into_body();
            while let Some(piece) = answer.data().await {
                answer.flow_control().release_capacity(piece?.len())?;
            }
            answers.fetch_add(1, Relaxed);
        }
        #[expect(unreachable_code, reason = "the type of the failures above")]
        anyhow::Ok(())
    });
    tokio::select! {
        ended = futures_util::future::try_join_all(calls) => drop(ended?),
        closed = connection => closed?,
    }
    Ok(())
}

/// Connects and exports, again and again until it succeeds; returns how long that took. It begins after `delay`.
async fn newcomer(grpc: SocketAddr, delay: Duration) -> Duration {
    sleep(delay).await;
    let begin = tokio::time::Instant::now();
    loop {
        if let Ok(mut client) = beside::connect(grpc).await
            && client.export(beside::request(1)).await.is_ok()
        {
            return begin.elapsed();
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Returns the preface and these settings.
fn hello(settings: &[(u16, u32)]) -> Vec<u8> {
    let settings: Vec<u8> =
        settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    [PREFACE, &frame(SETTINGS, 0, 0, &settings)].concat()
}

/// Returns the headers of [`STREAMS`] requests; with a body, it follows each in a frame with these flags.
fn opened(body: &[u8], flags: u8) -> Vec<u8> {
    let headers = export_headers(&[]);
    let ids = (1_u32..).step_by(2).take(STREAMS);
    ids.flat_map(|id| {
        let mut bytes = frame(HEADERS, END_HEADERS, id, &headers);
        if !body.is_empty() {
            bytes.extend(frame(DATA, flags, id, body));
        }
        bytes
    })
    .collect()
}

/// Returns an empty message, which is answered with an empty message.
fn grpc_empty() -> Vec<u8> {
    grpc(&[])
}

/// Returns a request of 600 KiB with 300 spans, each of a trace of its own.
fn large_request() -> Vec<u8> {
    let mut request = beside::request(0);
    for scope in request.resource_spans.iter_mut().flat_map(|resource| &mut resource.scope_spans) {
        let like = scope.spans.first().cloned().unwrap_or_default();
        let span = |n: u128| {
            let (trace_id, name) = ((n << 64 | n).to_be_bytes().to_vec(), "n".repeat(2_000));
            opentelemetry_proto::tonic::trace::v1::Span { trace_id, name, ..like.clone() }
        };
        scope.spans = (1..=300).map(span).collect();
    }
    grpc(&prost::Message::encode_to_vec(&request))
}

/// Returns a request whose first DATA frame lacks one byte. Its length is 256 KiB, 64 KiB or 16 KiB in turn; a peer may
/// refuse all but the last as too long.
fn unfinished(n: usize) -> Vec<u8> {
    let len = [256 << 10, 64 << 10, 16 << 10].get(n % KINDS).copied().unwrap_or(0);
    let mut message = grpc(&vec![7; len]);
    message.truncate(len);
    let mut bytes =
        [hello(&[]), frame(HEADERS, END_HEADERS, 1, &export_headers(&[])), frame(DATA, 0, 1, &message)].concat();
    bytes.pop();
    bytes
}

/// Raises this process's limit of open files, and checks that it suffices for this many connections.
pub(crate) fn room_for(connections: usize) -> Result<()> {
    /// Descriptors for sinks, the good client, probes and pipes.
    const OTHERS: u64 = 200;
    let raised = spanring::descriptors::raise().context("cannot raise the limit of open files")?;
    let wanted = u64::try_from(connections)? + OTHERS;
    let limit = raised.to.unwrap_or(u64::MAX);
    ensure!(limit >= wanted, "{connections} connections need {wanted} open files, and the hard limit is {limit}");
    Ok(())
}
