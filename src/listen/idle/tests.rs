//! Tests on a paused clock.

use std::convert::Infallible;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{Full, StreamBody};
use hyper::service::service_fn;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::Semaphore,
    time::{advance, sleep, timeout},
};

use super::*;
use crate::{
    lifecycle::Tasks,
    listen::{HttpService, Limits, OpenConnections, Protocol, WhenFull, Windows, tests::serve_in_memory},
};

const LIMIT: Duration = Duration::from_secs(10);

/// The time by which a limit may be exceeded, and a little more.
const LATEST: Duration = Duration::from_millis(11_300);

async fn is_met(waiting: impl Future<Output = ()>, within: u64) -> bool {
    timeout(Duration::from_secs(within), waiting).await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_idle_from_its_last_request_on() {
    let activity = Arc::new(Activity::new());
    assert!(is_met(activity.idle_for(Some(LIMIT)), 11).await, "it has been idle from the beginning");
    let (first, second) = (activity.request(), activity.request());
    drop(first);
    assert!(!is_met(activity.idle_for(Some(LIMIT)), 3_600).await && activity.idle_since().is_none());
    drop(second);
    let ended = Instant::now();
    assert_eq!(activity.idle_since(), Some(ended));
    assert!(!is_met(activity.idle_for(None), 3_600).await, "there is no limit");
    let third = activity.request();
    let piece = activity.piece();
    drop(third);
    assert!(!is_met(activity.idle_for(Some(LIMIT)), 3_600).await, "its answer is not written");
    drop(piece);
    assert!(!is_met(activity.idle_for(Some(LIMIT)), 9).await);
}

#[tokio::test(start_paused = true)]
async fn only_what_stays_unwritten_all_the_time_counts() {
    let activity = Arc::new(Activity::new());
    let _request = activity.request();
    assert!(!is_met(activity.unwritten_for(Some(LIMIT)), 3_600).await, "there is no answer yet");
    for _ in 0..3 {
        let piece = activity.piece();
        assert!(!is_met(activity.unwritten_for(Some(LIMIT)), 9).await);
        drop(piece);
    }
    let (first, _second) = (activity.piece(), activity.piece());
    advance(Duration::from_secs(6)).await;
    drop(first);
    assert!(is_met(activity.unwritten_for(Some(LIMIT)), 5).await);
}

#[tokio::test(start_paused = true)]
async fn the_connection_that_has_been_idle_for_the_longest_time_makes_room() {
    const PATIENCE: Duration = Duration::from_secs(1);
    let mut connections = Connections::default();
    let all: Vec<_> = (0..4).map(|_| connections.add()).collect();
    advance(PATIENCE).await;
    assert_eq!(connections.close_idle(PATIENCE), None, "none has a place yet");
    for (place, connection) in all.iter().enumerate() {
        connection.keep(place);
    }
    assert_eq!(connections.close_idle(PATIENCE), None, "they were looked at just now");
    advance(PATIENCE).await;
    // Idle the longest: 2, then 0. Busy: 1 and 3, of which 3 began first.
    let third = all[3].activity.request();
    advance(PATIENCE).await;
    let first = all[1].activity.request();
    drop(all[0].activity.request());
    advance(PATIENCE).await;
    assert_eq!(connections.close_idle(PATIENCE), Some(2));
    assert!(is_met(all[2].activity.closing(), 1).await, "it must be told");
    advance(PATIENCE).await;
    assert_eq!(connections.close_idle(PATIENCE), Some(0));
    advance(PATIENCE).await;
    assert_eq!(connections.close_idle(PATIENCE), None);
    assert_eq!(connections.close_busy(), Some(3));
    assert_eq!(connections.close_busy(), Some(1));
    assert_eq!(connections.close_busy(), None);
    drop((first, third));
}

#[tokio::test(start_paused = true)]
async fn connections_that_have_ended_are_forgotten() {
    let mut connections = Connections::default();
    let lives = connections.add();
    lives.keep(7);
    for _ in 0..3 * SEARCHED_FROM {
        drop(connections.add());
    }
    assert!(connections.queue.len() <= SEARCHED_FROM);
    advance(LIMIT).await;
    assert_eq!(connections.close_idle(LIMIT), Some(7));
}

/// Answers with pages of this many bytes, each of which takes a permit.
fn pages(bytes: usize, permits: &Arc<Semaphore>) -> impl HttpService + use<> {
    let permits = Arc::clone(permits);
    service_fn(move |_| {
        let permits = Arc::clone(&permits);
        async move {
            permits.acquire().await.expect("it is not closed").forget();
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(vec![b'x'; bytes]))))
        }
    })
}

fn limits() -> Limits {
    Limits {
        protocol: Protocol::Any,
        max_connections: 1,
        when_full: WhenFull::CloseOldest,
        descriptors: || usize::MAX,
        open: OpenConnections::default(),
        header_timeout: Duration::from_secs(3_600),
        max_concurrent_streams: 2,
        windows: Windows::SMALL,
        account: None,
        max_header_list_size: 16 << 10,
        max_connection_age: None,
        max_connection_age_grace: None,
        max_connection_idle: Some(LIMIT),
        write_timeout: Some(LIMIT),
    }
}

async fn http2(stream: DuplexStream, tasks: &Tasks) -> SendRequest<Bytes> {
    let (client, connection) = h2::client::handshake(stream).await.expect("a handshake");
    drop(tasks.spawn(async move { connection.await.ok() }));
    client
}

fn ask(client: &mut SendRequest<Bytes>) -> h2::client::ResponseFuture {
    client.send_request(Request::get("http://spanring/").body(()).expect("a request"), true).expect("it is sent").0
}

/// Waits until the server has told the client to finish. Returns how long that took.
async fn told(client: SendRequest<Bytes>) -> Duration {
    let started = Instant::now();
    while client.clone().ready().await.is_ok() {
        sleep(Duration::from_millis(100)).await;
    }
    started.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asks_nothing_for_too_long_is_told_to_go() {
    let (tasks, permits) = (Tasks::new(), Arc::new(Semaphore::new(0)));
    let mut client = http2(serve_in_memory(limits(), pages(1, &permits), &tasks), &tasks).await;
    let response = ask(&mut client);
    assert!(timeout(Duration::from_secs(3_600), told(client.clone())).await.is_err(), "its request is in progress");
    permits.add_permits(1);
    let mut body = response.await.expect("an answer").into_body();
    body.data().await.expect("a page").expect("a page");
    let lived = told(client).await;
    assert!((LIMIT..=LATEST).contains(&lived), "{lived:?}");
    tasks.wait().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_take_its_answer_is_cut() {
    let (tasks, permits) = (Tasks::new(), Arc::new(Semaphore::new(usize::MAX >> 3)));
    let mut client = http2(serve_in_memory(limits(), pages(200_000, &permits), &tasks), &tasks).await;
    let (_first, _second) = (ask(&mut client).await.expect("an answer"), ask(&mut client).await.expect("an answer"));
    let lived = told(client).await;
    assert!((LIMIT..=LATEST).contains(&lived), "{lived:?}");

    let mut client = serve_in_memory(limits(), pages(2 << 20, &permits), &tasks);
    client.write_all(b"GET / HTTP/1.1\r\nhost: spanring\r\n\r\n").await.expect("it is sent");
    sleep(LATEST).await;
    let mut taken = Vec::new();
    client.read_to_end(&mut taken).await.expect("the end");
    assert_eq!(taken.len(), 1 << 20, "what was in transit already");
    tasks.wait().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_its_answer_in_time_gets_all_of_it() {
    let (tasks, permits) = (Tasks::new(), Arc::new(Semaphore::new(usize::MAX >> 3)));
    let mut client = http2(serve_in_memory(limits(), pages(200_000, &permits), &tasks), &tasks).await;
    for _ in 0..3 {
        let mut body = ask(&mut client).await.expect("an answer").into_body();
        let mut taken = 0;
        while let Some(piece) = body.data().await {
            let len = piece.expect("a piece").len();
            sleep(Duration::from_millis(500)).await;
            body.flow_control().release_capacity(len).expect("a window");
            taken += len;
        }
        assert_eq!(taken, 200_000);
    }
    drop(client);
    tasks.wait().await;
}

/// Answers without an end: a piece every 30 s.
fn endless() -> impl HttpService {
    service_fn(|_| async {
        let pieces = futures_util::stream::unfold((), async |()| {
            sleep(Duration::from_secs(30)).await;
            Some((Ok::<_, Infallible>(Frame::data(Bytes::from(vec![b'x'; 50_000]))), ()))
        });
        Ok::<_, Infallible>(Response::new(StreamBody::new(Box::pin(pieces))))
    })
}

#[tokio::test(start_paused = true)]
async fn an_endless_answer_goes_on_as_long_as_its_client_takes_the_pieces() {
    let tasks = Tasks::new();
    let mut client = http2(serve_in_memory(limits(), endless(), &tasks), &tasks).await;
    let mut body = ask(&mut client).await.expect("an answer").into_body();
    let mut taken = 0;
    while taken < 10 * 50_000 {
        let len = body.data().await.expect("no end").expect("a piece").len();
        body.flow_control().release_capacity(len).expect("a window");
        taken += len;
    }
    // The window has room for one more piece, and not for the one after it.
    let lived = told(client).await;
    let second = Duration::from_secs(60);
    assert!((second + LIMIT..=second + LATEST).contains(&lived), "{lived:?}");
    tasks.wait().await;
}
