//! Tests of connections: their limits, the drain, and clients that leave.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
};
use tonic::Code;

use super::*;

/// Returns a stand-in whose answers wait for permits of the semaphore, and the number of its live futures.
pub(super) fn waiting() -> (Arc<StandIn>, Arc<Semaphore>, Arc<AtomicUsize>) {
    struct Alive(Arc<AtomicUsize>);
    impl Drop for Alive {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let gate = Arc::new(Semaphore::new(0));
    let alive = Arc::new(AtomicUsize::new(0));
    let (waits, counts) = (Arc::clone(&gate), Arc::clone(&alive));
    let export = StandIn::new(move || {
        let gate = Arc::clone(&waits);
        counts.fetch_add(1, Ordering::SeqCst);
        let alive = Alive(Arc::clone(&counts));
        async move {
            gate.acquire().await.unwrap().forget();
            drop(alive);
            Outcome::OK
        }
    });
    (export, gate, alive)
}

fn empty_message(client: &mut SendRequest<Bytes>) -> ResponseFuture {
    let (response, mut body) = client.send_request(traces(), false).unwrap();
    body.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
    response
}

/// Encodes an HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, len @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&len[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const SETTINGS: u8 = 0x4;
pub(super) const GOAWAY: u8 = 0x7;

/// Sends these bytes on a new connection and nothing more. Returns the types of the frames that the server sends, and
/// how long the connection lives.
pub(super) async fn until_closed(sent: &[u8]) -> (Vec<u8>, Duration) {
    let tasks = Tasks::new();
    let mut stream = serve_in_memory(StandIn::ok(), &GrpcConfig::default(), &tasks);
    let started = tokio::time::Instant::now();
    stream.write_all(sent).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    let lived = started.elapsed();
    tasks.stop();
    tasks.wait().await;
    (kinds(&bytes), lived)
}

/// Returns the types of these frames.
pub(super) fn kinds(bytes: &[u8]) -> Vec<u8> {
    let (mut kinds, mut rest) = (Vec::new(), bytes);
    while let [high, middle, low, kind, later @ ..] = rest {
        kinds.push(*kind);
        rest = &later[5 + u32::from_be_bytes([0, *high, *middle, *low]) as usize..];
    }
    kinds
}

/// Returns the bytes that open a connection: the preface and empty SETTINGS.
pub(super) fn greeting() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// Returns an empty traces request as frames of stream 1.
pub(super) fn raw_request() -> Vec<u8> {
    // `:method: POST`, `:scheme: http`, then names of the static table with literal values (RFC 7541, 6.2.2).
    let mut block = vec![0x83, 0x86];
    let fields: [(&[u8], &str); 4] = [
        (&[0x04], Signal::Traces.grpc_path()),
        (&[0x01], "localhost"),
        (&[0x0f, 0x10], "application/grpc"),
        (&[0x00, 0x02, b't', b'e'], "trailers"),
    ];
    for (name, value) in fields {
        block.extend_from_slice(name);
        block.push(u8::try_from(value.len()).unwrap());
        block.extend_from_slice(value.as_bytes());
    }
    [frame(HEADERS, 0x4, 1, &block), frame(DATA, 0x1, 1, &[0; 5])].concat()
}

#[tokio::test(start_paused = true)]
async fn an_unfinished_handshake_or_header_block_ends_the_connection() {
    let torn = [&[0x83, 0x86][..], &[0; 20]].concat();
    let greeting = greeting();
    let cases = [
        ("nothing at all", vec![], false),
        ("half a preface", PREFACE[..12].to_vec(), false),
        ("no SETTINGS", PREFACE.to_vec(), true),
        ("half of SETTINGS", [PREFACE, &frame(SETTINGS, 0, 0, &[0; 6])[..11]].concat(), true),
        ("half of HEADERS", [&greeting[..], &frame(HEADERS, 0x4, 1, &torn)[..15]].concat(), true),
        ("HEADERS without their CONTINUATION", [&greeting[..], &frame(HEADERS, 0, 1, &torn)].concat(), true),
    ];
    for (case, sent, has_goaway) in cases {
        let (kinds, lived) = until_closed(&sent).await;
        assert_eq!(kinds.contains(&GOAWAY), has_goaway, "{case}: {kinds:?}");
        assert!((10.0..=11.1).contains(&lived.as_secs_f64()), "{case}: {lived:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_left_alone_where_there_is_no_limit() {
    let tasks = Tasks::new();
    let mut config = aging(100_000, None);
    config.keys.keepalive.server_parameters.max_connection_idle = None;
    let idle = h2_over(serve_in_memory(StandIn::ok(), &config, &tasks), &tasks).await;
    let mut used = h2_over(serve_in_memory(StandIn::ok(), &config, &tasks), &tasks).await;
    finish(empty_message(&mut used)).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    for client in [idle, used] {
        let mut client = client.ready().await.expect("the connection must stay open");
        assert_eq!(grpc_status(&finish(empty_message(&mut client)).await.2).code(), Code::Ok);
    }
    tasks.stop();
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_requests_is_told_to_go_after_five_minutes() {
    let tasks = Tasks::new();
    let (export, gate, _alive) = waiting();
    let mut client = h2_over(serve_in_memory(export, &aging(100_000, None), &tasks), &tasks).await;
    let response = empty_message(&mut client);
    tokio::time::sleep(Duration::from_secs(1_000)).await;
    gate.add_permits(1);
    assert_eq!(grpc_status(&finish(response).await.2).code(), Code::Ok);
    let ended = tokio::time::Instant::now();
    while client.clone().ready().await.is_ok() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let idle = ended.elapsed().as_secs_f64();
    assert!((300.0..=338.0).contains(&idle), "{idle} s");
    tasks.stop();
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_unfinished_handshakes() {
    let tasks = Tasks::new();
    let _silent = serve_in_memory(StandIn::ok(), &GrpcConfig::default(), &tasks);
    let mut torn = serve_in_memory(StandIn::ok(), &GrpcConfig::default(), &tasks);
    torn.write_all(&PREFACE[..12]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let started = tokio::time::Instant::now();
    tasks.drain();
    tasks.wait().await;
    assert!(started.elapsed() <= Duration::from_millis(2_100), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_idle_client_that_ignores_goaway_is_not_waited_for() {
    let cases = [
        ("drain", GrpcConfig::default(), 5.0..=5.1),
        ("age with a grace", aging(100, Some(60)), 95.0..=115.1),
        ("age without a grace", aging(100, None), 95.0..=115.1),
    ];
    for (case, config, expected) in cases {
        let tasks = Tasks::new();
        let mut client = serve_in_memory(StandIn::ok(), &config, &tasks);
        client.write_all(&[greeting(), raw_request()].concat()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let started = tokio::time::Instant::now();
        if case == "drain" {
            tasks.drain();
        }
        let mut bytes = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(3600), client.read_to_end(&mut bytes)).await;
        closed.unwrap_or_else(|_| panic!("{case}: it must be closed")).unwrap();
        let lived = started.elapsed().as_secs_f64();
        assert!(expected.contains(&lived), "{case}: {lived} s");
        assert!(kinds(&bytes).contains(&GOAWAY), "{case}: {bytes:?}");
        tasks.stop();
        tasks.wait().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_ignores_goaway_is_waited_for_while_its_request_is_in_flight() {
    let tasks = Tasks::new();
    let (export, gate, alive) = waiting();
    let mut client = serve_in_memory(export, &GrpcConfig::default(), &tasks);
    client.write_all(&[greeting(), raw_request()].concat()).await.unwrap();
    until("the request is in flight", || alive.load(Ordering::SeqCst) == 1).await;
    tasks.drain();
    tokio::time::sleep(Duration::from_millis(59_990)).await;
    assert_eq!(alive.load(Ordering::SeqCst), 1, "the request must not be cut off");
    // It is answered just before the next check of the connection; the answer must still have time to be sent.
    let answered = tokio::time::Instant::now();
    gate.add_permits(1);
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).await.unwrap();
    assert!(kinds(&bytes).contains(&HEADERS), "it must be answered: {bytes:?}");
    let lived = answered.elapsed().as_secs_f64();
    assert!((5.0..=10.1).contains(&lived), "{lived} s");
    tasks.wait().await;
}

#[tokio::test]
async fn connections_above_the_limit_are_closed_and_the_others_stay_open() {
    let mut config = GrpcConfig::default();
    config.keys.max_connections = 1;
    let receiver = Receiver::with(StandIn::ok(), config, Budget::new(1 << 30));
    let mut first = receiver.h2().await;
    finish(empty_message(&mut first)).await;
    let mut second = TcpStream::connect(receiver.address).await.unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(20), second.read(&mut [0; 64])).await;
    assert_eq!(closed.expect("the second must be closed").unwrap_or(0), 0, "nothing must be served on it");
    let mut first = first.ready().await.unwrap();
    finish(empty_message(&mut first)).await;
    drop(first);
    // Its place becomes free once the connection has ended.
    let connected = async {
        loop {
            let stream = TcpStream::connect(receiver.address).await.unwrap();
            let Ok((mut client, connection)) = h2::client::handshake(stream).await else { continue };
            drop(receiver.tasks.spawn(async move { connection.await.ok() }));
            let Ok((response, mut body)) = client.send_request(traces(), false) else { continue };
            body.send_data(Bytes::from_static(&[0; 5]), true).ok();
            if response.await.is_ok() {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), connected).await.expect("a place must become free");
}

#[tokio::test]
async fn a_drain_finishes_requests_in_flight_and_accepts_nothing_new() {
    let (export, gate, alive) = waiting();
    let receiver = Receiver::start(export);
    let mut client = receiver.h2().await;
    let response = empty_message(&mut client);
    until("the request is in flight", || alive.load(Ordering::SeqCst) == 1).await;
    receiver.tasks.drain();
    // After GOAWAY the client may send no further request on this connection.
    let refused = async {
        while let Ok(ready) = client.clone().ready().await {
            drop(ready);
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), refused).await.expect("GOAWAY must arrive");
    let connects = || std::net::TcpStream::connect(receiver.address).is_ok();
    until("the listener is closed", || !connects()).await;
    gate.add_permits(1);
    assert_eq!(grpc_status(&finish(response).await.2).code(), Code::Ok);
    drop(client);
    let tasks = receiver.tasks.clone();
    until("every connection has ended", || tasks.len() <= 1).await;
    tasks.stop();
    tasks.wait().await;
}

#[tokio::test]
async fn stopping_ends_connections_and_requests_that_would_never_end() {
    let (export, _gate, alive) = waiting();
    let receiver = Receiver::start(export);
    // A connection that never finishes its preface, and one whose request is never answered.
    let mut silent = TcpStream::connect(receiver.address).await.unwrap();
    silent.write_all(b"PRI").await.unwrap();
    let clients = Tasks::new();
    let mut client = h2_over(TcpStream::connect(receiver.address).await.unwrap(), &clients).await;
    let response = empty_message(&mut client);
    until("the request is in flight", || alive.load(Ordering::SeqCst) == 1).await;
    receiver.tasks.drain();
    receiver.tasks.stop();
    tokio::time::timeout(Duration::from_secs(20), receiver.tasks.wait()).await.expect("every task must end");
    assert_eq!(alive.load(Ordering::SeqCst), 0);
    assert!(response.await.is_err());
    // It has ended or was reset: in either case there is nothing left to read.
    silent.read_to_end(&mut Vec::new()).await.ok();
}

#[tokio::test]
async fn when_a_client_leaves_its_export_is_dropped() {
    let (export, _gate, alive) = waiting();
    let (recorder, receiver) = Recorder::scoped(|recorder| (recorder.clone(), Receiver::start(export)));
    let mut client = receiver.h2().await;
    let response = empty_message(&mut client);
    until("the request is in flight", || alive.load(Ordering::SeqCst) == 1).await;
    // A reset of the stream ...
    drop(response);
    until("its export is dropped", || alive.load(Ordering::SeqCst) == 0).await;
    // ... and the end of the whole connection.
    let clients = Tasks::new();
    let (mut other, connection) =
        h2::client::handshake(TcpStream::connect(receiver.address).await.unwrap()).await.unwrap();
    let driver = clients.spawn(async move { connection.await.ok() });
    let _response = empty_message(&mut other);
    until("the request is in flight", || alive.load(Ordering::SeqCst) == 1).await;
    driver.abort();
    until("its export is dropped", || alive.load(Ordering::SeqCst) == 0).await;
    let line = "spanring_receiver_abandoned_requests_total{signal=\"traces\"} 2";
    until(line, || recorder.render().lines().any(|found| found == line)).await;
}

fn aging(age: u64, grace: Option<u64>) -> GrpcConfig {
    let mut config = GrpcConfig::default();
    let ages = &mut config.keys.keepalive.server_parameters;
    ages.max_connection_age = Some(Duration::from_secs(age));
    ages.max_connection_age_grace = grace.map(Duration::from_secs);
    config
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_gets_goaway_and_its_requests_are_answered() {
    let tasks = Tasks::new();
    let (export, gate, _alive) = waiting();
    let config = aging(100, Some(60));
    let mut client = h2_over(serve_in_memory(export, &config, &tasks), &tasks).await;
    let started = tokio::time::Instant::now();
    gate.add_permits(1);
    assert_eq!(grpc_status(&finish(empty_message(&mut client)).await.2).code(), Code::Ok);
    tokio::time::sleep(Duration::from_secs(89)).await;
    let mut client = client.ready().await.expect("the connection is not old yet");
    let response = empty_message(&mut client);
    // After GOAWAY no further request can be sent on it.
    let told = async {
        while client.clone().ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), told).await.expect("GOAWAY must arrive");
    let age = started.elapsed().as_secs_f64();
    assert!((90.0..=110.5).contains(&age), "{age} s");
    tokio::time::sleep(Duration::from_secs(5)).await;
    gate.add_permits(1);
    assert_eq!(grpc_status(&finish(response).await.2).code(), Code::Ok);
    tasks.stop();
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_is_closed_after_its_grace() {
    let tasks = Tasks::new();
    let (export, _gate, alive) = waiting();
    let mut client = h2_over(serve_in_memory(export, &aging(20, Some(60)), &tasks), &tasks).await;
    let started = tokio::time::Instant::now();
    let response = empty_message(&mut client);
    assert!(response.await.is_err(), "its request is never answered");
    let age = started.elapsed().as_secs_f64();
    assert!((78.0..=82.1).contains(&age), "{age} s");
    until("its export is dropped", || alive.load(Ordering::SeqCst) == 0).await;
    tasks.stop();
}

#[tokio::test(start_paused = true)]
async fn without_a_grace_requests_have_no_time_limit() {
    let tasks = Tasks::new();
    let (export, gate, _alive) = waiting();
    let mut client = h2_over(serve_in_memory(export, &aging(20, None), &tasks), &tasks).await;
    let response = empty_message(&mut client);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    gate.add_permits(1);
    assert_eq!(grpc_status(&finish(response).await.2).code(), Code::Ok);
    tasks.stop();
}
