//! Connections that reach their maximum age while requests are sent on them as fast as possible.
//!
//! Guaranteed: a request that a client sent before it acknowledged the GOAWAY is answered, and a request that was not
//! processed is delivered nowhere. The proxy sends GOAWAY without a last stream and a PING; when the PONG has arrived
//! it sends the last stream's ID.
//!
//! Not guaranteed: tonic clients see some errors nevertheless. hyper's client drops the requests queued for a
//! connection that received GOAWAY ("connection closed"). Its h2 writes the PONG before requests that it accepted
//! earlier, which are then above the last stream (GOAWAY with NO_ERROR). tonic retries neither.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use tonic::{Code, Status, transport::Channel};

use super::{
    fixture::{Client, ExtraConfig, Fixture, Reply, encoded, keys_of, span},
    harness::until,
    wire::{
        ACK, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, Raw, SETTINGS,
        export_headers, frame, frames, grpc,
    },
};

/// Connections get GOAWAY after 180 to 220 ms.
const AGED: &str = "keepalive: { server_parameters: { max_connection_age: 200ms, max_connection_age_grace: 10s } },";
/// The last stream ID of a GOAWAY that names no stream.
const ANY: u32 = u32::MAX >> 1;

/// The recorded bytes of all connections through a relay.
type Taps = Arc<Mutex<Vec<Arc<Tap>>>>;

/// The recorded bytes of one connection.
#[derive(Default)]
struct Tap {
    sent: Mutex<Vec<u8>>,
    heard: Mutex<Vec<u8>>,
}

/// A connection that received GOAWAY and acknowledged it.
#[derive(Debug, Default)]
struct GoneAway {
    /// Streams that the client opened before its PONG, except those it cancelled.
    in_time: BTreeSet<u32>,
    /// Streams with a complete answer.
    answered: BTreeSet<u32>,
    /// The last stream IDs of the GOAWAY frames.
    last: Vec<u32>,
}

/// Forwards connections to `server` and records their bytes.
async fn relay(server: SocketAddr, taps: &Taps, tasks: &spanring::lifecycle::Tasks) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (address, taps, inner) = (listener.local_addr()?, Arc::clone(taps), tasks.clone());
    tasks.spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let tap = Arc::<Tap>::default();
            taps.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&tap));
            inner.spawn(async move {
                let server = TcpStream::connect(server).await?;
                server.set_nodelay(true)?;
                client.set_nodelay(true)?;
                let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
                let up = pass(from_client, to_server, &tap.sent);
                let down = pass(from_server, to_client, &tap.heard);
                let (up, down) = tokio::join!(up, down);
                up.and(down)
            });
        }
    });
    Ok(address)
}

/// Forwards bytes until the end of the stream.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, recorded: &Mutex<Vec<u8>>) -> std::io::Result<()> {
    let mut piece = vec![0; 64 << 10];
    loop {
        let len = from.read(&mut piece).await?;
        if len == 0 {
            return Ok(());
        }
        recorded.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&piece[..len]);
        to.write_all(&piece[..len]).await?;
    }
}

impl Tap {
    /// Parses what was recorded about GOAWAY; `None` if none was sent or it was not acknowledged yet.
    fn gone_away(&self) -> Option<GoneAway> {
        let mut gone = GoneAway::default();
        let mut ping = None;
        for Frame { kind, flags, stream, payload } in frames(&self.heard.lock().unwrap_or_else(PoisonError::into_inner))
        {
            match kind {
                GOAWAY => gone.last.push(u32::from_be_bytes(payload.get(..4)?.try_into().ok()?)),
                PING if flags & ACK == 0 && !gone.last.is_empty() => ping = Some(payload),
                HEADERS if flags & END_STREAM != 0 => drop(gone.answered.insert(stream)),
                _ => {}
            }
        }
        let ping = ping?;
        let mut acknowledged = false;
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        for Frame { kind, flags, stream, payload } in frames(sent.strip_prefix(PREFACE)?) {
            match kind {
                HEADERS if !acknowledged => drop(gone.in_time.insert(stream)),
                RST_STREAM => drop(gone.in_time.remove(&stream)),
                PING if flags & ACK != 0 && payload == ping => acknowledged = true,
                _ => {}
            }
        }
        acknowledged.then_some(gone)
    }
}

/// Whether this is one of the errors that tonic reports for a connection that received GOAWAY.
fn is_told_to_go(status: &Status) -> bool {
    let mut words = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        words.push_str(&format!(": {error:?}"));
        source = error.source();
    }
    match status.code() {
        Code::Cancelled => words.contains("connection closed") || words.contains("connection was not ready"),
        Code::Internal => words.contains("NO_ERROR, Remote"),
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_before_the_pong_are_answered_and_later_ones_reach_no_backend() -> Result<()> {
    let fixture = Fixture::start(2, ExtraConfig { grpc: AGED, ..ExtraConfig::default() }).await?;
    let (taps, over) = (Taps::default(), Arc::<AtomicBool>::default());
    let endpoint = Channel::from_shared(format!("http://{}", relay(fixture.grpc, &taps, &fixture.tasks).await?))?;
    let mut workers = Vec::new();
    for channel in 0..4_u64 {
        let client = Client::connect(&endpoint).await?;
        for worker in 0..4 {
            let (mut client, over, trace) = (client.clone(), Arc::clone(&over), fixture.trace());
            workers.push(fixture.tasks.spawn(async move {
                let (mut acknowledged, mut refused) = (Vec::new(), Vec::new());
                for number in 0.. {
                    if over.load(Relaxed) {
                        break;
                    }
                    let spans = vec![span(&trace, (channel * 4 + worker) << 32 | number)];
                    let keys = keys_of(&spans);
                    match client.export(spans).await {
                        Reply::Accepted { .. } => acknowledged.extend(keys),
                        Reply::Refused(status) => refused.push((keys, status)),
                    }
                }
                (acknowledged, refused)
            }));
        }
    }
    // Each connection that closes is followed by a new one.
    let connections = || taps.lock().unwrap_or_else(PoisonError::into_inner).len();
    until("forty connections were told to go", || Ok((connections() >= 44).then_some(())))?;
    over.store(true, Relaxed);
    let (mut acknowledged, mut refused) = (Vec::new(), Vec::new());
    for worker in workers {
        let (keys, statuses) = worker.await?;
        acknowledged.extend(keys);
        refused.extend(statuses);
    }
    let mut told_to_go = 0;
    for gone in taps.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(|tap| tap.gone_away()) {
        told_to_go += 1;
        let owed: Vec<_> = gone.in_time.difference(&gone.answered).collect();
        ensure!(owed.is_empty(), "not answered: {owed:?} of {:?}, GOAWAY {:?}", gone.in_time, gone.last);
        let last = gone.last.get(1).copied().unwrap_or(ANY);
        ensure!(gone.last.first() == Some(&ANY) && gone.in_time.last() <= Some(&last), "GOAWAY {:?}", gone.last);
    }
    ensure!(told_to_go >= 40, "only {told_to_go} connections were told to go");
    let mut kinds = BTreeMap::<String, usize>::new();
    for (keys, status) in &refused {
        ensure!(is_told_to_go(status), "{status:?}");
        ensure!(fixture.account(keys).missing == 1, "a backend received a request that was not processed: {status:?}");
        *kinds.entry(format!("{:?}", status.code())).or_default() += 1;
    }
    let account = fixture.account(&acknowledged);
    ensure!((account.missing, account.duplicates) == (0, 0), "{account:?}");
    ensure!(acknowledged.len() > refused.len(), "{} acknowledged, {kinds:?} not", acknowledged.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_obeys_goaway_has_every_request_answered() -> Result<()> {
    let fixture = Fixture::start(2, ExtraConfig { grpc: AGED, ..ExtraConfig::default() }).await?;
    let mut keys = BTreeSet::new();
    for _ in 0..3 {
        let mut client = Raw::connect(fixture.grpc, &[])?;
        let (mut next, mut open, mut last) = (1, BTreeSet::new(), Vec::new());
        let mut send = |client: &mut Raw, open: &mut BTreeSet<u32>| {
            let spans = vec![span(&fixture.trace(), 0)];
            keys.extend(keys_of(&spans));
            let head = frame(HEADERS, END_HEADERS, next, &export_headers(&[]));
            client.send(&[head, frame(DATA, END_STREAM, next, &grpc(&encoded(spans)))].concat())?;
            open.insert(next);
            next += 2;
            anyhow::Ok(next - 2)
        };
        for _ in 0..8 {
            send(&mut client, &mut open)?;
        }
        let mut highest = 0;
        while let Some(Frame { kind, flags, stream, payload }) = client.next()? {
            match kind {
                SETTINGS if flags & ACK == 0 => client.send(&frame(SETTINGS, ACK, 0, &[]))?,
                PING if flags & ACK == 0 => client.send(&frame(PING, ACK, 0, &payload))?,
                RST_STREAM => anyhow::bail!("stream {stream} was reset"),
                GOAWAY => {
                    last.push(u32::from_be_bytes(payload.get(..4).context("a short GOAWAY")?.try_into()?));
                    // These requests were on their way when the GOAWAY was sent: the PONG follows them.
                    for _ in 0..if last.len() == 1 { 4 } else { 0 } {
                        highest = send(&mut client, &mut open)?;
                    }
                }
                HEADERS if flags & END_STREAM != 0 => {
                    ensure!(open.remove(&stream), "stream {stream} ended twice");
                    if last.is_empty() {
                        highest = send(&mut client, &mut open)?;
                    }
                }
                _ => {}
            }
        }
        ensure!(open.is_empty(), "not answered: {open:?} of {highest}, GOAWAY {last:?}");
        ensure!(last == [ANY, highest], "GOAWAY {last:?}, {highest} was the last");
    }
    let account = fixture.account(&keys);
    ensure!((account.missing, account.duplicates) == (0, 0), "{account:?}");
    Ok(())
}
