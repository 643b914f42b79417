//! Tests of backends that are called by OTLP/HTTP: how many connections there are, and which failures are reported to
//! membership.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::Instant,
};

use crate::{
    access::Access,
    budget::Use,
    dispatch::{
        Cause, Config, Failure, HealthCheck, Join, Part, PartOutcome,
        connections::{Connections, Way},
        transport::Wakeups,
    },
    health::Prober,
    settings::{Delivery, IfWritten, OtlpHttp, Protocol},
    testing::{
        HealthKind, HttpConnection, HttpPeer, OK, Rig, Tasks, accepted, listen, outcome, part, patient, wait_until,
        with_keys,
    },
};

fn over_http(change: impl FnOnce(&mut Delivery, &mut OtlpHttp)) -> Config {
    with_keys(|keys| {
        let mut http = OtlpHttp::default();
        change(keys, &mut http);
        keys.protocol = Protocol { otlp_http: IfWritten(Some(http)), ..Protocol::default() };
    })
}

#[tokio::test]
async fn the_memory_of_connections_is_in_the_account_until_they_end() {
    let peer = HttpPeer::start().await;
    let config = Config { open_place_bytes: 1, ..over_http(|_, http| http.max_conns_per_host = 2) };
    let rig = Rig::start(config, &[peer.address]);
    let used = || rig.budget.used_for(Use::Backends);
    assert_eq!(used(), 0);
    let alone = |name| Part { alone: true, ..part(&[name], 0) };
    let joins = ["a", "b"].map(|name| rig.submit(vec![alone(name)]));
    let (mut one, mut two) = (peer.accept().await, peer.accept().await);
    one.request().await;
    two.request().await;
    assert_eq!(used(), 2 * (24 << 10), "hyper's buffer of 16 KiB, and 8 KiB");
    one.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
    wait_until(|| used() == 24 << 10).await;
    two.send(OK).await;
    for join in &joins {
        assert_eq!(outcome(join).await, accepted());
    }
    rig.tasks.stop();
    wait_until(|| used() == 0).await;
}

/// Submits a part of a client that waits for this time.
fn submit_for(rig: &Rig, wait: Duration) -> Join {
    let join = Join::new(Instant::now() + wait, Arc::default());
    rig.dispatch.view().unwrap().submit(vec![part(&["a"], 0)], &join).expect("there must be room");
    join
}

async fn cause_of(join: &Join) -> Cause {
    match outcome(join).await {
        PartOutcome::Retry { cause, .. } => cause,
        other => panic!("must be owed: {other:?}"),
    }
}

const TIMED_OUT: Cause = Cause::Transport(Failure::Timeout);

#[tokio::test]
async fn calls_take_connections_for_themselves_up_to_the_configured_number() {
    let peer = HttpPeer::start().await;
    let config = Config { open_place_bytes: 1, ..over_http(|_, http| http.max_conns_per_host = 2) };
    let rig = Rig::start(config, &[peer.address]);
    let alone = |name| Part { alone: true, ..part(&[name], 0) };
    let joins = ["a", "b", "c", "d"].map(|name| rig.submit(vec![alone(name)]));
    let (mut one, mut two) = (peer.accept().await, peer.accept().await);
    one.request().await;
    two.request().await;
    let third = tokio::time::timeout(Duration::from_millis(100), peer.accept()).await;
    assert!(third.is_err(), "there must be two connections");
    let serve = async |mut connection: HttpConnection| {
        connection.send(OK).await;
        while connection.next().await.is_some() {
            connection.send(OK).await;
        }
    };
    let serving = async { tokio::join!(serve(one), serve(two)) };
    let all = async {
        for join in &joins {
            assert_eq!(outcome(join).await, accepted());
        }
    };
    tokio::select! {
        () = all => {}
        _ = serving => panic!("the connections must stay"),
    }
}

#[test]
fn a_connection_that_writes_the_rest_of_an_answered_request_is_woken_for_no_call() {
    let mut connections = Connections::new(&over_http(|_, http| http.max_conns_per_host = 2));
    let wakeups: [Arc<Wakeups>; 2] = Default::default();
    for (at, wakeups) in wakeups.iter().enumerate() {
        connections.connected(at, Arc::clone(wakeups));
    }
    connections.begin(1);
    let woken = |connections: &Connections| match connections.way(Instant::now()) {
        Way::Up { wakeups: found, .. } => wakeups.iter().position(|wakeups| Arc::ptr_eq(wakeups, found)),
        Way::Soon => None,
        other => panic!("{other:?}"),
    };
    assert_eq!(woken(&connections), Some(0), "it has no call");
    connections.writes(0, true);
    assert_eq!(woken(&connections), Some(1), "it can take calls");
    connections.writes(1, true);
    assert_eq!(woken(&connections), None);
    connections.writes(0, false);
    assert_eq!(woken(&connections), Some(0));
}

#[tokio::test]
async fn of_calls_whose_clients_have_left_one_is_kept_open() {
    let peer = HttpPeer::start().await;
    let config = Config { open_place_bytes: 1, ..over_http(|_, http| http.max_conns_per_host = 2) };
    let rig = Rig::start(config, &[peer.address]);
    let joins = ["a", "b"].map(|name| {
        let join = Join::new(Instant::now() + Duration::from_millis(900), Arc::default());
        let part = Part { alone: true, ..part(&[name], 0) };
        rig.dispatch.view().unwrap().submit(vec![part], &join).expect("there must be room");
        join
    });
    let (mut one, mut two) = (peer.accept().await, peer.accept().await);
    one.request().await;
    two.request().await;
    for join in &joins {
        assert_eq!(cause_of(join).await, TIMED_OUT);
    }
    let mut other = tokio::select! {
        true = one.is_closed() => two,
        true = two.is_closed() => one,
    };
    let closed = tokio::time::timeout(Duration::from_millis(200), other.is_closed()).await;
    assert!(closed.is_err(), "one shows whether the backend answers at all");
}

#[tokio::test]
async fn a_backend_that_closes_each_connection_after_its_answer_is_well() {
    let peer = HttpPeer::start().await;
    let mut rig = Rig::start(over_http(|_, _| {}), &[peer.address]);
    peer.serve(&rig.tasks, |_| Some("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n!".to_owned()));
    for _ in 0..30 {
        assert_eq!(outcome(&rig.submit(vec![part(&["a"], 0)])).await, accepted());
    }
    assert!(rig.events_are_quiet());
}

#[tokio::test]
async fn a_request_that_a_backend_cannot_bear_is_one_failure_and_no_refused_connection() {
    let peer = HttpPeer::start().await;
    let mut rig = Rig::start(over_http(|_, _| {}), &[peer.address]);
    peer.serve(&rig.tasks, |request| Some(if request.body.is_empty() { OK } else { "!" }.to_owned()));
    let PartOutcome::Retry { .. } = outcome(&rig.submit(vec![part(&["a"], 0)])).await else { panic!("must be owed") };
    assert_eq!(rig.event().await, HealthKind::Failed("reset"));
    assert!(rig.events_are_quiet());
}

#[tokio::test]
async fn a_reset_of_records_that_another_backend_has_reset_is_no_failure() {
    let peer = HttpPeer::start().await;
    let mut rig = Rig::start(over_http(|_, _| {}), &[peer.address]);
    peer.serve(&rig.tasks, |request| Some(if request.body.is_empty() { OK } else { "!" }.to_owned()));
    let reset = Cause::Transport(Failure::Reset);
    for _ in 0..3 {
        let suspect = Part { reset_elsewhere: true, ..part(&["a"], 0) };
        assert_eq!(cause_of(&rig.submit(vec![suspect])).await, reset);
    }
    // That of other records is the first one to count.
    assert_eq!(cause_of(&rig.submit(vec![part(&["b"], 0)])).await, reset);
    assert_eq!(rig.event().await, HealthKind::Failed("reset"));
    assert!(rig.events_are_quiet());
}

#[tokio::test]
async fn a_backend_that_closes_each_connection_at_once_is_reported() {
    let peer = HttpPeer::start().await;
    let mut rig = Rig::start(over_http(|_, _| {}), &[peer.address]);
    rig.tasks.spawn(async move {
        loop {
            drop(peer.accept_for_ever().await);
        }
    });
    let PartOutcome::Retry { .. } = outcome(&rig.submit(vec![part(&["a"], 0)])).await else { panic!("must be owed") };
    let event = loop {
        drop(submit_for(&rig, Duration::from_millis(50)));
        let reported = tokio::time::timeout(Duration::from_millis(50), rig.event()).await;
        if let Ok(event) = reported {
            break event;
        }
    };
    assert!(matches!(event, HealthKind::Failed("turned_away" | "reset")), "{event:?}");
}

/// Serves a backend that reads the first bytes of each connection, and writes what `answer` returns for them, or closes.
fn serve_raw(rig: &Rig, listener: TcpListener, answer: fn(&[u8]) -> Option<&'static [u8]>) {
    let tasks = rig.tasks.clone();
    rig.tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tasks.spawn(async move {
                let mut first = [0; 4];
                if stream.read_exact(&mut first).await.is_ok()
                    && let Some(answer) = answer(&first)
                {
                    stream.write_all(answer).await.unwrap();
                }
            });
        }
    });
}

const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

#[tokio::test]
async fn a_backend_that_speaks_the_protocol_of_the_other_kind_of_pool_is_named() {
    let of_http: fn(&[u8]) -> Option<&'static [u8]> = |first| (first == b"PRI ").then_some(SETTINGS);
    let of_grpc: fn(&[u8]) -> Option<&'static [u8]> = |first| (first == b"HEAD").then_some(b"HTTP/1.1 404 No\r\n\r\n");
    for (config, answer, expected) in
        [(over_http(|_, _| {}), of_http, Failure::SpeaksHttp2), (Config::default(), of_grpc, Failure::SpeaksHttp1)]
    {
        let listener = listen().await;
        let rig = Rig::start(config, &[listener.local_addr().unwrap()]);
        serve_raw(&rig, listener, answer);
        // The question is asked after the first failure.
        patient(async {
            loop {
                if let PartOutcome::Retry { cause, .. } = outcome(&rig.submit(vec![part(&["a"], 0)])).await
                    && cause == Cause::Transport(expected)
                {
                    break;
                }
            }
        })
        .await;
        rig.tasks.stop();
    }
}

#[tokio::test]
async fn a_backend_that_speaks_both_is_not_named() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let listener = listen().await;
    let rig = Rig::start(over_http(|_, _| {}), &[listener.local_addr().unwrap()]);
    serve_raw(&rig, listener, |first| match first {
        b"PRI " => Some(SETTINGS),
        b"HEAD" => {
            ASKED.fetch_add(1, Ordering::Relaxed);
            Some(b"HTTP/1.1 404 No\r\n\r\n")
        }
        _ => None,
    });
    let reset = Cause::Transport(Failure::Reset);
    assert_eq!(cause_of(&rig.submit(vec![part(&["a"], 0)])).await, reset);
    wait_until(|| ASKED.load(Ordering::Relaxed) > 0).await;
    patient(async { while cause_of(&rig.submit(vec![part(&["a"], 0)])).await != reset {} }).await;
}

#[tokio::test]
async fn a_stopped_backend_is_detected_even_if_clients_wait_for_a_shorter_time() {
    let peer = HttpPeer::start().await;
    let mut rig = Rig::start(over_http(|_, _| {}), &[peer.address]);
    let is_stopped = Arc::new(Mutex::new(false));
    let stopped = Arc::clone(&is_stopped);
    peer.serve(&rig.tasks, move |_| (!*stopped.lock().unwrap()).then(|| OK.to_owned()));
    assert_eq!(outcome(&rig.submit(vec![part(&["a"], 0)])).await, accepted());
    *is_stopped.lock().unwrap() = true;
    let begun = Instant::now();
    let event = loop {
        let join = submit_for(&rig, Duration::from_millis(300));
        tokio::select! {
            biased;
            event = rig.event() => break event,
            cause = cause_of(&join) => assert!([TIMED_OUT, Cause::Transport(Failure::Ping)].contains(&cause), "{cause:?}"),
        }
    };
    assert_eq!(event, HealthKind::Silent("ping"));
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(1_900), "found after {took:?}, before a probe could be answered");
}

#[tokio::test]
async fn a_backend_that_answers_probes_is_slow_until_it_has_answered_no_call_for_two_timeouts() {
    let peer = HttpPeer::start().await;
    let timeout = Duration::from_millis(1_500);
    let mut rig = Rig::start(over_http(|keys, _| keys.timeout = timeout), &[peer.address]);
    let probes = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&probes);
    peer.serve(&rig.tasks, move |request| {
        request.is_probe().then(|| {
            counted.fetch_add(1, Ordering::Relaxed);
            "HTTP/1.1 405 No\r\ncontent-length: 0\r\n\r\n".to_owned()
        })
    });
    let begun = Instant::now();
    let event = loop {
        let join = submit_for(&rig, Duration::from_millis(300));
        tokio::select! {
            biased;
            event = rig.event() => break event,
            cause = cause_of(&join) => assert_eq!(cause, TIMED_OUT),
        }
    };
    assert_eq!(event, HealthKind::Silent("timeout"));
    assert!(begun.elapsed() >= 2 * timeout, "after {:?}", begun.elapsed());
    // One call at a time is kept open after its clients have left, and a second into it the backend is asked.
    assert!((1..=4).contains(&probes.load(Ordering::Relaxed)), "{probes:?}");
}

#[tokio::test]
async fn a_backend_that_answers_after_its_clients_left_is_not_mute() {
    let peer = HttpPeer::start().await;
    let timeout = Duration::from_millis(400);
    let mut rig = Rig::start(over_http(|keys, _| keys.timeout = timeout), &[peer.address]);
    let tasks = rig.tasks.clone();
    rig.tasks.spawn(async move {
        loop {
            let mut connection = peer.accept_for_ever().await;
            tasks.spawn(async move {
                while let Some(_request) = connection.next().await {
                    tokio::time::sleep(timeout / 2).await;
                    connection.send(OK).await;
                }
            });
        }
    });
    let end = Instant::now() + 6 * timeout;
    while Instant::now() < end {
        // On a busy machine the time may pass before a call begins.
        let cause = cause_of(&submit_for(&rig, timeout / 8)).await;
        assert!([TIMED_OUT, Cause::Deadline].contains(&cause), "{cause:?}");
    }
    assert!(rig.events_are_quiet(), "a slow backend must not be reported");
}

#[tokio::test]
async fn a_probe_is_a_head_request_that_every_server_answers() {
    let tasks = Tasks::new();
    let check = HealthCheck::new(&over_http(|_, http| http.traces_url_path = "/t".to_owned()).keys);
    for (answer, expected) in [("404 No", true), ("405 No", true), ("200 OK", true), ("503 No", false)] {
        let peer = HttpPeer::start().await;
        let address = peer.address;
        peer.serve(&tasks, move |request| {
            assert_eq!((request.line.as_str(), request.header("connection")), ("HEAD /t HTTP/1.1", Some("close")));
            Some(format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n"))
        });
        let found = patient(check.probe("a", address, &Access::default())).await;
        assert_eq!(found.ok(), Some(expected), "{answer}");
    }
    let silent = HttpPeer::start().await;
    let access = Access::default();
    let asked = check.probe("a", silent.address, &access);
    assert!(tokio::time::timeout(Duration::from_millis(300), asked).await.is_err(), "accepting is no answer");
    tasks.stop();
}
