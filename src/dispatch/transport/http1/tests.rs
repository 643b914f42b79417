//! Tests of one connection. The test is both the source of the calls and the backend.

mod early;

use std::time::Duration;

use tokio::time::Instant;
use tonic::Code;

use crate::{
    dispatch::transport::{
        Failure, GIVE_UP, QUEUE, Scope, Verdict,
        outcome::Partial,
        tests::{Served, message},
    },
    settings::{Compression, Delivery, IfWritten, OtlpHttp, Protocol},
    testing::{HttpConnection, HttpPeer, OK, patient, wait_until},
};

/// A pool that is called by OTLP/HTTP, with some keys changed.
fn keys(change: impl FnOnce(&mut Delivery, &mut OtlpHttp)) -> Delivery {
    let (mut keys, mut http) = (Delivery::default(), OtlpHttp::default());
    change(&mut keys, &mut http);
    keys.protocol = Protocol { otlp_http: IfWritten(Some(http)), ..Protocol::default() };
    keys
}

pub(super) fn start(peer: &HttpPeer, waiting: &[&[u8]]) -> Served {
    Served::start_with(peer.address, waiting, &keys(|_, _| {}))
}

/// Returns a connection that has carried one call.
async fn after_a_call() -> (Served, HttpConnection) {
    let peer = HttpPeer::start().await;
    let served = start(&peer, &[b"a"]);
    let mut connection = peer.accept().await;
    connection.request().await;
    connection.send(OK).await;
    served.verdicts(1).await;
    (served, connection)
}

/// Sends one more message.
fn send(served: &Served, payload: &[u8]) {
    served.with_state(|state| state.waiting.push_back(message(payload)));
    served.wake(QUEUE);
}

/// Lets the connection's task, which runs on the same thread, read what was sent to it.
async fn answer_is_read() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

fn failed(failure: Failure, scope: Scope) -> Verdict {
    Verdict::Failed { failure, reached: true, scope }
}

#[tokio::test]
async fn calls_are_posts_with_the_bare_message_and_share_a_connection() {
    let peer = HttpPeer::start().await;
    let served = start(&peer, &[b"first", b"second"]);
    let mut connection = peer.accept().await;
    let request = connection.request().await;
    assert_eq!(request.line, "POST /v1/traces HTTP/1.1");
    assert_eq!(request.body, b"first");
    assert_eq!(request.header("host"), Some(peer.address.to_string().as_str()));
    assert_eq!(request.header("content-type"), Some("application/x-protobuf"));
    assert_eq!(request.header("content-length"), Some("5"));
    assert!(request.header("content-encoding").is_none() && request.header("expect").is_none());
    assert_eq!(request.header("spanring-hops"), Some("1"));
    connection.send(OK).await;
    assert_eq!(connection.request().await.body, b"second");
    connection.send("HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\ncontent-type: text/plain\r\n\r\nno").await;
    let refused = Verdict::Refused { code: Code::InvalidArgument, message: "no".to_owned() };
    assert_eq!(served.verdicts(2).await, [Verdict::Accepted(None), refused]);
    served.with_state(|state| {
        assert_eq!(state.begun, 2);
        assert_eq!(state.events, ["connected", "answered", "answered"]);
    });
    send(&served, b"third");
    assert_eq!(connection.request().await.body, b"third");
    served.tasks.stop();
    assert_eq!(served.verdicts(3).await[2], Verdict::Stopped);
    assert_eq!(served.end().await.0.last(), Some(&"stopped"));
}

#[tokio::test]
async fn paths_and_compression_are_those_of_the_pool() {
    let peer = HttpPeer::start().await;
    let keys = keys(|keys, http| {
        keys.compression = Compression::Zstd;
        http.traces_url_path = "/otlp/v1/traces".to_owned();
    });
    let served = Served::start_with(peer.address, &[b"packed"], &keys);
    let request = peer.accept().await.request().await;
    assert_eq!(request.line, "POST /otlp/v1/traces HTTP/1.1");
    assert_eq!(request.header("content-encoding"), Some("zstd"));
    let inflated = crate::codec::inflate_uncounted(crate::codec::Encoding::Zstd, &request.body, 100).unwrap();
    assert_eq!(*inflated.payload(), *b"packed");
    served.tasks.stop();
}

#[tokio::test]
async fn an_answer_in_chunks_is_read_to_its_end() {
    let peer = HttpPeer::start().await;
    let served = start(&peer, &[b"first", b"second"]);
    let mut connection = peer.accept().await;
    connection.request().await;
    let head = "content-type: application/x-protobuf\r\ntransfer-encoding: chunked\r\n\r\n";
    connection.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    connection.send(format!("HTTP/1.1 200 OK\r\n{head}")).await;
    for chunk in [&b"3\r\n\x0a\x06\x08\r\n"[..], b"1\r\n\x03\r\n4\r\n\x12\x02no\r\n", b"0\r\n\r\n"] {
        connection.send(chunk).await;
    }
    let partial = Partial { rejected: 3, message: "no".to_owned() };
    assert_eq!(served.verdicts(1).await, [Verdict::Accepted(Some(partial))]);
    // The connection carries the next call.
    assert_eq!(connection.request().await.body, b"second");
    served.tasks.stop();
}

#[tokio::test]
async fn of_an_answer_that_is_too_large_no_more_is_read() {
    for head in ["content-length: 1000000", "transfer-encoding: chunked"] {
        let peer = HttpPeer::start().await;
        let served = start(&peer, &[b"a"]);
        let mut connection = peer.accept().await;
        connection.request().await;
        connection.send(format!("HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\n{head}\r\n\r\n")).await;
        if head.starts_with("transfer") {
            connection.send(format!("fffff\r\n{}", "x".repeat(100_000))).await;
        }
        let [Verdict::Accepted(Some(Partial { rejected: 0, message }))] = &served.verdicts(1).await[..] else {
            panic!("a success is a success")
        };
        assert!(message.contains("larger than 64 KiB"), "{message}");
        assert_eq!(served.end().await.0, ["connected", "answered", "closed"]);
    }
}

#[tokio::test]
async fn a_connection_that_the_backend_closes_after_its_answer_takes_no_more_calls() {
    let answers = [
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.0 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\nuntil the end",
    ];
    for answer in answers {
        let peer = HttpPeer::start().await;
        let served = start(&peer, &[b"a"]);
        let mut connection = peer.accept().await;
        connection.request().await;
        connection.send(answer).await;
        drop(connection);
        assert_eq!(served.verdicts(1).await, [Verdict::Accepted(None)], "{answer}");
        let (mut events, failure) = served.end().await;
        // Whether the end is known by the time of the answer is up to the network.
        events.retain(|event| *event != "writing");
        assert_eq!((events, failure), (vec!["connected", "answered", "closed"], None));
    }
}

#[tokio::test]
async fn a_connection_that_ends_before_the_answer_fails_and_its_call_may_have_arrived() {
    for answered in [false, true] {
        let peer = HttpPeer::start().await;
        let served = start(&peer, if answered { &[b"a", b"b"] } else { &[b"b"] });
        let mut connection = peer.accept().await;
        if answered {
            connection.request().await;
            connection.send(OK).await;
        }
        assert_eq!(connection.request().await.body, b"b");
        drop(connection);
        let expected = failed(Failure::Reset, Scope::Connection);
        assert_eq!(served.verdicts(1 + usize::from(answered)).await.last(), Some(&expected));
        let (events, failure) = served.end().await;
        assert_eq!(events.last(), Some(&"ended with calls"));
        assert_eq!(failure, Some(Failure::Reset));
    }
}

#[tokio::test]
async fn a_connection_that_is_closed_for_being_idle_as_a_call_is_sent_is_no_failure_of_the_backend() {
    let (served, mut connection) = after_a_call().await;
    // It has to be idle for a second.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    send(&served, b"b");
    connection.request().await;
    drop(connection);
    // The backend may have taken it.
    assert_eq!(served.verdicts(2).await[1], failed(Failure::Reset, Scope::Request));
    assert_eq!(served.end().await.0, ["connected", "answered", "closed"]);
}

#[tokio::test]
async fn a_connection_that_ends_inside_of_an_answer_is_a_failure_however_long_it_was_idle() {
    let (served, mut connection) = after_a_call().await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    send(&served, b"b");
    connection.request().await;
    connection.send("HTTP/1.1 200").await;
    drop(connection);
    assert_eq!(served.verdicts(2).await[1], failed(Failure::Reset, Scope::Connection));
    assert_eq!(served.end().await.0, ["connected", "answered", "ended with calls"]);
}

#[tokio::test]
async fn no_call_begins_on_a_connection_that_the_backend_has_closed() {
    let (served, connection) = after_a_call().await;
    drop(connection);
    // The connection's task learns of both at once.
    send(&served, b"b");
    wait_until(|| served.with_state(|state| state.events.last() == Some(&"closed"))).await;
    served.with_state(|state| assert_eq!((state.begun, state.waiting.len()), (1, 1)));
}

#[tokio::test]
async fn a_connection_that_is_closed_while_it_is_idle_ends_and_takes_nothing_with_it() {
    let (served, connection) = after_a_call().await;
    drop(connection);
    assert_eq!(served.end().await, (vec!["connected", "answered", "closed"], None));
}

#[tokio::test]
async fn a_backend_that_closes_connections_at_once_takes_no_calls() {
    let peer = HttpPeer::start().await;
    let served = start(&peer, &[]);
    drop(peer.accept().await);
    assert_eq!(served.end().await, (vec!["connected", "left"], None));
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time() {
    let peer = HttpPeer::start().await;
    let keys = keys(|_, http| http.idle_conn_timeout = Some(Duration::from_millis(50)));
    let served = Served::start_with(peer.address, &[b"a"], &keys);
    let mut connection = peer.accept().await;
    connection.request().await;
    connection.send(OK).await;
    assert!(connection.is_closed().await);
    assert_eq!(served.end().await.0, ["connected", "answered", "closed"]);
}

#[tokio::test]
async fn giving_up_ends_the_call_and_the_connection() {
    let peer = HttpPeer::start().await;
    let served = start(&peer, &[b"held"]);
    let mut connection = peer.accept().await;
    connection.request().await;
    // Without a reason to give up, a wake-up has no effect.
    served.wake(GIVE_UP);
    served.with_state(|state| state.is_given_up = true);
    served.wake(GIVE_UP);
    assert_eq!(served.verdicts(1).await, [Verdict::GivenUp]);
    assert_eq!(served.end().await, (vec!["connected", "gave up"], None));
    assert!(connection.is_closed().await);
}

#[tokio::test]
async fn a_connection_ends_after_its_call_when_no_more_calls_will_come() {
    let peer = HttpPeer::start().await;
    let served = start(&peer, &[b"last"]);
    let mut connection = peer.accept().await;
    connection.request().await;
    served.with_state(|state| state.is_finished = true);
    served.wake(QUEUE);
    connection.send(OK).await;
    assert_eq!(served.verdicts(1).await, [Verdict::Accepted(None)]);
    assert!(connection.is_closed().await);
    assert_eq!(served.end().await, (vec!["connected", "answered", "left"], None));
}

#[tokio::test]
async fn a_call_ends_at_its_timeout_with_its_connection() {
    let peer = HttpPeer::start().await;
    let keys = keys(|keys, _| keys.timeout = Duration::from_millis(50));
    let served = Served::start_with(peer.address, &[b"slow"], &keys);
    let mut connection = peer.accept().await;
    connection.request().await;
    assert_eq!(served.verdicts(1).await, [failed(Failure::Timeout, Scope::Request)]);
    assert!(connection.is_closed().await);
    assert_eq!(served.end().await.0, ["connected", "unanswered", "closed"]);
}

#[tokio::test]
async fn a_success_whose_body_does_not_arrive_is_a_success() {
    let peer = HttpPeer::start().await;
    let keys = keys(|keys, _| keys.timeout = Duration::from_millis(200));
    let served = Served::start_with(peer.address, &[b"slow"], &keys);
    let mut connection = peer.accept().await;
    connection.request().await;
    connection.send("HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 9\r\n\r\n12").await;
    let verdicts = served.verdicts(1).await;
    assert!(matches!(&verdicts[..], [Verdict::Accepted(Some(Partial { rejected: 0, .. }))]), "{verdicts:?}");
    assert_eq!(served.end().await.0, ["connected", "answered", "closed"]);
}

#[tokio::test]
async fn a_success_is_one_even_if_the_process_stops_before_its_body() {
    let peer = HttpPeer::start().await;
    let served = start(&peer, &[b"a"]);
    let mut connection = peer.accept().await;
    connection.request().await;
    connection.send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n").await;
    answer_is_read().await;
    served.tasks.stop();
    let verdicts = served.verdicts(1).await;
    assert!(matches!(verdicts[..], [Verdict::Accepted(_)]), "{verdicts:?}");
}

#[tokio::test]
async fn a_backend_that_sends_interim_answers_without_end_times_out() {
    let peer = HttpPeer::start().await;
    let keys = keys(|keys, _| keys.timeout = Duration::from_millis(200));
    let served = Served::start_with(peer.address, &[b"a"], &keys);
    let mut connection = peer.accept().await;
    connection.request().await;
    let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(1_000);
    let sending = async {
        loop {
            connection.send(&interim).await;
        }
    };
    tokio::select! {
        () = sending => {}
        verdicts = served.verdicts(1) => assert_eq!(verdicts, [failed(Failure::Timeout, Scope::Request)]),
    }
}

#[tokio::test]
async fn the_body_of_a_success_is_not_waited_for_until_the_timeout() {
    let peer = HttpPeer::start().await;
    let keys = keys(|keys, _| keys.timeout = Duration::from_secs(600));
    let served = Served::start_with(peer.address, &[b"a"], &keys);
    let mut connection = peer.accept().await;
    connection.request().await;
    connection.send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n12").await;
    let verdicts = served.verdicts(1).await;
    assert!(matches!(&verdicts[..], [Verdict::Accepted(_)]), "{verdicts:?}");
    assert_eq!(served.end().await.0, ["connected", "answered", "closed"]);
}

#[tokio::test]
async fn what_is_not_http_is_a_failure_of_the_protocol() {
    for answer in [&b"\x00\x00\x12\x09\x00\x00\x00\x00\x00"[..], b"SSH-2.0-OpenSSH_9.6\r\n\r\n"] {
        let peer = HttpPeer::start().await;
        let served = start(&peer, &[b"a"]);
        let mut connection = peer.accept().await;
        connection.request().await;
        connection.send(answer).await;
        assert_eq!(served.verdicts(1).await, [failed(Failure::Protocol, Scope::Connection)]);
        assert_eq!(served.end().await.1, Some(Failure::Protocol));
    }
}

#[tokio::test]
async fn a_backend_that_answers_with_a_frame_of_http2_did_not_get_the_call_and_is_named() {
    let settings = &b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64"[..];
    let goaway = b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x01";
    let expected = Verdict::Failed { failure: Failure::SpeaksHttp2, reached: false, scope: Scope::Connection };
    for answer in [settings, goaway] {
        let peer = HttpPeer::start().await;
        let served = start(&peer, &[b"a"]);
        let mut connection = peer.accept().await;
        connection.request().await;
        connection.send(answer).await;
        assert_eq!(served.verdicts(1).await, std::slice::from_ref(&expected));
        assert_eq!(served.end().await.1, Some(Failure::SpeaksHttp2));
    }
    // One that sends it at once, before any call.
    let peer = HttpPeer::start().await;
    let served = start(&peer, &[]);
    peer.accept().await.send(settings).await;
    assert_eq!(served.end().await, (vec!["connected", "ended with calls"], Some(Failure::SpeaksHttp2)));
}

#[tokio::test]
async fn an_answer_that_comes_before_any_request_ends_the_connection() {
    let peer = HttpPeer::start().await;
    let served = start(&peer, &[]);
    let mut connection = peer.accept().await;
    connection.send(OK).await;
    assert!(connection.is_closed().await);
    assert_eq!(served.end().await, (vec!["connected", "ended with calls"], Some(Failure::Protocol)));
    // On a connection that has carried a call, it is the announcement that an idle connection ends.
    let served = start(&peer, &[b"a"]);
    let mut connection = peer.accept().await;
    connection.request().await;
    connection.send(OK).await;
    assert_eq!(served.verdicts(1).await, [Verdict::Accepted(None)]);
    connection.send("HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    assert_eq!(served.end().await, (vec!["connected", "answered", "closed"], None));
}

#[tokio::test]
async fn a_backend_that_ends_an_unused_connection_with_an_answer_has_not_failed() {
    let peer = HttpPeer::start().await;
    let served = start(&peer, &[]);
    let mut connection = peer.accept().await;
    wait_until(|| served.with_state(|state| state.events == ["connected"])).await;
    // The connection is no longer new after a second.
    tokio::time::pause();
    tokio::time::advance(Duration::from_millis(1_050)).await;
    tokio::time::resume();
    connection.send("HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    assert_eq!(served.end().await, (vec!["connected", "closed"], None));
}

#[tokio::test]
async fn a_backend_that_answers_neither_the_call_nor_a_probe_is_given_up_after_two_seconds() {
    let peer = HttpPeer::start().await;
    let served = start(&peer, &[b"held"]);
    let mut connection = peer.accept().await;
    connection.request().await;
    let begun = Instant::now();
    let mut probe = peer.accept().await;
    assert_eq!(probe.request().await.line, "HEAD /v1/traces HTTP/1.1");
    assert!(begun.elapsed() >= Duration::from_millis(900), "probed after {:?}", begun.elapsed());
    assert_eq!(served.verdicts(1).await, [failed(Failure::Ping, Scope::Connection)]);
    let took = begun.elapsed();
    assert!((1_900..5_000).contains(&took.as_millis()), "given up after {took:?}");
    assert_eq!(served.end().await, (vec!["connected", "ended with calls"], Some(Failure::Ping)));
}

#[tokio::test]
async fn a_backend_that_answers_a_probe_is_slow_and_not_silent() {
    let peer = HttpPeer::start().await;
    let served = start(&peer, &[b"held"]);
    let mut connection = peer.accept().await;
    connection.request().await;
    let started = Instant::now();
    for count in 1..=2 {
        let mut probe = peer.accept().await;
        assert!(patient(probe.request()).await.is_probe());
        let least = Duration::from_millis(950) * count;
        assert!(started.elapsed() >= least, "a second passes before each probe: {:?}", started.elapsed());
        probe.send("HTTP/1.1 405 Method Not Allowed\r\nallow: POST\r\ncontent-length: 18\r\n\r\n").await;
    }
    connection.send(OK).await;
    assert_eq!(served.verdicts(1).await, [Verdict::Accepted(None)]);
    served.tasks.stop();
}
