//! What clients of OTLP/HTTP see of faults of the pool, with backends that are called by gRPC and by OTLP/HTTP; and requests
//! that are hidden in others. The other files have the same rows for clients of gRPC.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinHandle;

use crate::{
    backend::{Backend, SpanKey},
    fixture::{ExtraConfig, Fixture, Load, encoded, keys_of, span},
    harness::until,
    http::wire::{self, Answer, Request},
};

const PROTOBUF: &str = "application/x-protobuf";
const TRACES: &str = "/v1/traces";

/// How backends are called, and how long failures last, as in the tests of failover.
const POOLS: [&str; 2] = [
    "retry_on_failure: { initial_interval: 20ms, max_interval: 200ms },",
    "retry_on_failure: { initial_interval: 20ms, max_interval: 200ms }, protocol: { otlp_http: {} },",
];

fn served(pool: &'static str) -> ExtraConfig {
    ExtraConfig { http: Some(""), pool, deadline: "2s", ..ExtraConfig::default() }
}

/// Clients that send one request after the other over HTTP/1.1, each on its own connection, while a test runs.
struct HttpLoad {
    workers: Vec<JoinHandle<Result<Sent>>>,
    over: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
}

/// What a client sent.
#[derive(Default)]
struct Sent {
    acknowledged: BTreeSet<SpanKey>,
    refused: Vec<Answer>,
}

impl HttpLoad {
    fn start(fixture: &Fixture, clients: u64) -> Result<Self> {
        let (over, answered) = (Arc::new(AtomicBool::default()), Arc::<AtomicU64>::default());
        let address = fixture.http()?;
        let worker = |client| {
            let (over, answered) = (Arc::clone(&over), Arc::clone(&answered));
            tokio::task::spawn_blocking(move || send_until(address, client, &over, &answered))
        };
        let workers = (0..clients).map(worker).collect();
        Ok(Self { workers, over, answered })
    }

    /// Waits until `requests` further requests were answered.
    fn goes_on(&self, requests: u64) -> Result<()> {
        let wanted = self.answered.load(Relaxed) + requests;
        until("load over HTTP is answered", || Ok((self.answered.load(Relaxed) >= wanted).then_some(())))
    }

    /// Stops the clients. Checks that each refusal allows them to send again.
    async fn stop(mut self) -> Result<Sent> {
        self.over.store(true, Relaxed);
        let mut all = Sent::default();
        for worker in std::mem::take(&mut self.workers) {
            let sent = worker.await??;
            all.acknowledged.extend(sent.acknowledged);
            all.refused.extend(sent.refused);
        }
        for answer in &all.refused {
            let after: Option<u64> = answer.header("retry-after").and_then(|after| after.parse().ok());
            let is_fine = answer.status == 503 && after.is_some_and(|after| (1..=5).contains(&after));
            ensure!(is_fine, "not 503 with Retry-After: {answer:?}");
        }
        Ok(all)
    }
}

impl Drop for HttpLoad {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
    }
}

/// Sends requests with eight spans of four traces, two requests for each of these traces.
fn send_until(address: SocketAddr, client: u64, over: &AtomicBool, answered: &AtomicU64) -> Result<Sent> {
    let (mut sent, mut stream) = (Sent::default(), None);
    for number in 0_u64.. {
        if over.load(Relaxed) {
            break;
        }
        let trace = |n: u64| {
            // Other traces than those of load over gRPC.
            let trace = (1 << 63) | (client << 40) | (number / 2 * 4 + n % 4);
            ((u128::from(trace.wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64) | u128::from(trace)).to_be_bytes()
        };
        let spans: Vec<_> = (0..8).map(|n| span(&trace(n), (number % 2 * 8) + n)).collect();
        let keys = keys_of(&spans);
        let request = Request::post(TRACES, PROTOBUF, encoded(spans)).without("connection");
        let mut connection = match stream.take() {
            Some(connection) => connection,
            None => wire::connect(address)?,
        };
        connection.write_all(&request.bytes())?;
        let answer = Answer::read(&mut connection, false)?;
        if answer.status == 200 {
            ensure!(answer.body.is_empty(), "{answer:?}");
            sent.acknowledged.extend(keys);
        } else {
            sent.refused.push(answer);
        }
        answered.fetch_add(1, Relaxed);
        stream = Some(connection);
    }
    Ok(sent)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_23_http_clients_get_503_with_retry_after_while_all_backends_are_down() -> Result<()> {
    for pool in POOLS {
        let mut fixture = Fixture::start(3, served(pool)).await?;
        let load = HttpLoad::start(&fixture, 4)?;
        load.goes_on(20)?;
        for backend in &mut fixture.backends {
            backend.crash().await;
        }
        load.goes_on(8)?;
        for backend in &mut fixture.backends {
            backend.come_back().await?;
        }
        fixture.serves_again().await?;
        load.goes_on(20)?;
        let sent = load.stop().await?;
        ensure!(!sent.refused.is_empty(), "no backend was there to accept anything");
        ensure!(fixture.account(&sent.acknowledged).missing == 0, "{:?}", fixture.account(&sent.acknowledged));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_24_a_rolling_restart_of_backends_loses_nothing_of_http_clients() -> Result<()> {
    for pool in POOLS {
        let mut fixture = Fixture::start(3, served(pool)).await?;
        let load = HttpLoad::start(&fixture, 4)?;
        for n in 0..fixture.backends.len() {
            load.goes_on(20)?;
            fixture.backends[n].crash().await;
            load.goes_on(20)?;
            fixture.backends[n].come_back().await?;
            // The next one begins once this one has its slots again.
            fixture.until_metric("spanring_ring_members", &["state=\"ejected\""], |members| members == 0.0)?;
        }
        let sent = load.stop().await?;
        ensure!(sent.refused.is_empty(), "two of three backends were there: {:?}", sent.refused.first());
        ensure!(!sent.acknowledged.is_empty(), "nothing was acknowledged");
        ensure!(fixture.account(&sent.acknowledged).missing == 0, "{:?}", fixture.account(&sent.acknowledged));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_25_a_pool_that_grows_and_shrinks_fails_no_request_by_http_or_grpc() -> Result<()> {
    for pool in POOLS {
        let mut backends = Vec::new();
        for _ in 0..10 {
            backends.push(Backend::start().await?);
        }
        let addresses: Vec<SocketAddr> = backends.iter().map(|backend| backend.address).collect();
        let fixture = Fixture::before(&addresses[..3], backends, served(pool))?;
        let (load, by_grpc): (_, Load) = (HttpLoad::start(&fixture, 2)?, fixture.load(2).await?);
        load.goes_on(20)?;
        by_grpc.goes_on(10)?;
        ensure!(fixture.backends[3..].iter().all(|backend| backend.calls() == 0));
        fixture.reload_before(&addresses, served(pool))?;
        until("all ten get calls", || Ok(fixture.backends.iter().all(|backend| backend.calls() > 0).then_some(())))?;
        fixture.reload_before(&addresses[..3], served(pool))?;
        fixture.until_metric("spanring_ring_members", &["state=\"active\""], |members| members == 3.0)?;
        load.goes_on(20)?;
        by_grpc.goes_on(10)?;
        let sent = load.stop().await?;
        let (acknowledged, refused) = by_grpc.stop().await?;
        ensure!(sent.refused.is_empty() && refused.is_empty(), "{:?} {:?}", sent.refused.first(), refused.first());
        let account = fixture.account(sent.acknowledged.iter().chain(&acknowledged));
        ensure!(account.missing == 0, "{account:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_26_replicas_place_traces_of_http_and_grpc_clients_alike() -> Result<()> {
    let first = Fixture::start(3, served(POOLS[0])).await?;
    let mut addresses: Vec<SocketAddr> = first.backends.iter().map(|backend| backend.address).collect();
    addresses.reverse();
    // The same backends in another order, which are called by another protocol.
    let second = Fixture::before(&addresses, Vec::new(), served(POOLS[1]))?;
    let mut client = first.client().await?;
    let (ours, theirs) = (first.http()?, second.http()?);
    let mut acknowledged = Vec::new();
    for _ in 0..40 {
        let trace = first.trace();
        let spans: Vec<_> = (0..3).map(|number| span(&trace, number)).collect();
        client.export(spans[..1].to_vec()).await.ok()?;
        for (address, spans) in [(ours, &spans[1..2]), (theirs, &spans[2..])] {
            let request = Request::post(TRACES, PROTOBUF, encoded(spans.to_vec()));
            let answer = tokio::task::block_in_place(|| wire::send(address, &request.bytes(), false))?;
            ensure!(answer.status == 200, "{answer:?}");
        }
        acknowledged.extend(keys_of(&spans));
    }
    let account = first.account(&acknowledged);
    ensure!((account.missing, account.duplicates, account.split) == (0, 0, 0), "{account:?}");
    let fingerprint = "spanring_ring_fingerprint";
    ensure!(first.metric(fingerprint, &[])? == second.metric(fingerprint, &[])?, "the fingerprints differ");
    Ok(())
}

/// Sends bytes; returns all that is answered until the connection ends or nothing came for half a second.
fn said(address: SocketAddr, bytes: &[u8]) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    // The server may close the connection before everything is sent.
    drop(stream.write_all(bytes));
    let mut reply = Vec::new();
    drop(stream.read_to_end(&mut reply));
    Ok(String::from_utf8_lossy(&reply).into_owned())
}

/// The heads are such that servers may disagree about where the body ends: behind LEN bytes, which include the hidden request,
/// or with the chunk of length 0 before it. RFC 9112 (6.1 and 6.3) lets a server answer them, but not read on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_33_requests_hidden_behind_two_lengths_are_not_delivered() -> Result<()> {
    let fixture = Fixture::start(1, served(POOLS[0])).await?;
    let address = fixture.http()?;
    let post = "POST /v1/traces HTTP/1.1";
    let heads = [
        (post, "content-length: LEN\r\ntransfer-encoding: chunked"),
        (post, "transfer-encoding: chunked\r\ncontent-length: LEN"),
        (post, "content-length: LEN\r\ntransfer-encoding: identity"),
        (post, "content-length: LEN\r\ntransfer-encoding: xchunked"),
        (post, "content-length: LEN\r\ntransfer-encoding: chunked, identity"),
        (post, "content-length: LEN\r\ntransfer-encoding: identity, chunked"),
        (post, "content-length: LEN\r\ntransfer-encoding: chunked\r\ntransfer-encoding: identity"),
        (post, "content-length: LEN\r\ntransfer-encoding:\u{b}chunked"),
        (post, "content-length: LEN\r\ntransfer-encoding : chunked"),
        (post, "content-length: LEN\r\ntransfer-encoding:\r\n chunked"),
        (post, "content-length: LEN\r\nx: y\rtransfer-encoding: chunked"),
        (post, "content-length: 5\r\ncontent-length: LEN"),
        (post, "content-length: LEN\r\ncontent-length: 5"),
        (post, "content-length: 5, LEN"),
        (post, "content-length: +LEN"),
        (post, "content-length: 0x5"),
        (post, "content-length : LEN"),
        ("POST /v1/traces HTTP/1.0", "content-length: LEN\r\ntransfer-encoding: chunked"),
        ("GET /v1/traces HTTP/1.1", "content-length: LEN"),
        ("GET /v1/traces HTTP/1.1", "content-length: LEN\r\ntransfer-encoding: chunked"),
        ("POST /v1/nothing HTTP/1.1", "content-length: LEN"),
        ("POST /v1/nothing HTTP/1.1", "content-length: LEN\r\ntransfer-encoding: chunked"),
    ];
    let mut hidden_keys = Vec::new();
    for (line, lengths) in heads {
        let spans = vec![span(&fixture.trace(), 0)];
        hidden_keys.push((format!("{line} {lengths:?}"), keys_of(&spans)));
        let hidden = Request::post(TRACES, PROTOBUF, encoded(spans)).bytes();
        let length = (5 + hidden.len()).to_string();
        let head =
            format!("{line}\r\nhost: a\r\ncontent-type: {PROTOBUF}\r\n{}\r\n\r\n", lengths.replace("LEN", &length));
        let bytes = [head.as_bytes(), b"0\r\n\r\n", &hidden].concat();
        tokio::task::block_in_place(|| said(address, &bytes)).with_context(|| line.to_owned())?;
    }
    let delivered = fixture.backends[0].delivered();
    for (head, keys) in hidden_keys {
        ensure!(keys.iter().all(|key| !delivered.contains_key(key)), "a hidden request was taken: {head}");
    }
    fixture.serves().await
}
