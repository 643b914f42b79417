//! Tests of backends that fail, refuse, hang, leave or speak another protocol. The numbers are those of the fault list in the
//! design's research, 4.2.

use std::{net::SocketAddr, sync::mpsc as std_mpsc, time::Duration};

use bytes::Bytes;
use h2::Reason;
use tokio::{io::AsyncWriteExt, net::TcpListener, sync::oneshot};
use tonic::{Code, Status, codec::CompressionEncoding};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    dispatch::{Cause, Config, Failure, PartOutcome},
    health::HealthKind,
    lifecycle::Tasks,
    settings::Compression,
    testing::*,
};

type Respond = h2::server::SendResponse<Bytes>;

/// Reads a request to its end. Returns the length of its body.
async fn read_all(request: http::Request<h2::RecvStream>) -> usize {
    let mut body = request.into_body();
    let mut len = 0;
    while let Some(Ok(chunk)) = body.data().await {
        len += chunk.len();
        body.flow_control().release_capacity(chunk.len()).unwrap();
    }
    len
}

/// Serves one connection. `answer` handles each call.
async fn serve(listener: &TcpListener, mut answer: impl FnMut(usize, Respond)) {
    let mut connection = accept_h2(listener).await;
    let mut calls = 0;
    while let Some(Ok((request, respond))) = connection.accept().await {
        drop(request);
        answer(calls, respond);
        calls += 1;
    }
}

async fn retry(join: &crate::dispatch::Join) -> (Option<Duration>, bool, Cause) {
    match outcome(join).await {
        PartOutcome::Retry { after, reached, cause, .. } => (after, reached, cause),
        other => panic!("must be owed: {other:?}"),
    }
}

/// The outcome of one call to a scripted backend that answers with `status`.
async fn outcome_of(status: Status) -> PartOutcome {
    let tasks = Tasks::new();
    let mut backend = Script::start(&tasks, None, 100).await;
    let rig = Rig::start_with(Config::default(), &[backend.address], tasks);
    let join = rig.submit(vec![part(&["a"], 0)]);
    backend.call().await.refuse(status);
    outcome(&join).await
}

/// The outcome of one call that is answered by `answer` on a bare HTTP/2 connection.
async fn outcome_of_raw(answer: impl FnMut(usize, Respond) + Send + 'static) -> PartOutcome {
    let listener = listen().await;
    let rig = Rig::start(Config::default(), &[listener.local_addr().unwrap()]);
    rig.tasks.spawn(async move { serve(&listener, answer).await });
    let join = rig.submit(vec![part(&["a"], 0)]);
    outcome(&join).await
}

#[tokio::test]
async fn fault_08_resource_exhausted_is_retryable_only_with_retry_info() {
    let without = outcome_of(Status::resource_exhausted("too large")).await;
    assert_eq!(without, PartOutcome::Rejected { code: Code::ResourceExhausted, message: "too large".into() });
    let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(3)));
    let with = outcome_of(Status::with_error_details(Code::ResourceExhausted, "busy", details)).await;
    let PartOutcome::Retry { after, reached, cause, .. } = with else { panic!("{with:?}") };
    assert_eq!((after, reached), (Some(Duration::from_secs(3)), false));
    assert_eq!(cause, Cause::Status(Code::ResourceExhausted));
}

#[tokio::test]
async fn an_excessive_pause_is_shortened() {
    let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(9_000_000_000_000_000)));
    let endless = outcome_of(Status::with_error_details(Code::Unavailable, "never again", details)).await;
    let PartOutcome::Retry { after: Some(after), .. } = endless else { panic!("{endless:?}") };
    assert_eq!(after, Duration::from_secs(3600));
}

#[tokio::test]
async fn fault_10_11_the_backends_own_codes_are_classified_as_otlp_says() {
    for code in (1..=16).map(Code::from_i32) {
        let retryable = [
            Code::Cancelled,
            Code::DeadlineExceeded,
            Code::Aborted,
            Code::OutOfRange,
            Code::Unavailable,
            Code::DataLoss,
        ];
        match outcome_of(Status::new(code, "as scripted")).await {
            PartOutcome::Retry { cause, .. } => {
                assert!(retryable.contains(&code), "{code:?} must be permanent");
                assert_eq!(cause, Cause::Status(code));
            }
            PartOutcome::Rejected { code: own, message } => {
                assert!(!retryable.contains(&code), "{code:?} must be retryable");
                assert_eq!((own, message.as_str()), (code, "as scripted"), "must be the backend's own words");
            }
            other => panic!("{code:?}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn long_messages_are_shortened() {
    let PartOutcome::Rejected { message, .. } = outcome_of(Status::invalid_argument("ü".repeat(2_000))).await else {
        panic!("must be refused")
    };
    assert!(message.len() <= 256 && message.len() > 250, "{}", message.len());
}

#[tokio::test]
async fn fault_01_nobody_listens() {
    let listener = listen().await;
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut rig = Rig::start(Config::default(), &[address]);
    let refused = Cause::Transport(Failure::ConnectRefused);
    let (after, reached, cause) = retry(&rig.submit(vec![part(&["a"], 0)])).await;
    assert_eq!((reached, cause), (false, refused));
    assert!(after.is_some(), "must say when to come back");
    assert_eq!(rig.event().await, HealthKind::Refused);
    // The backend returns on the same port.
    let listener = TcpListener::bind(address).await.unwrap();
    rig.tasks.spawn(async move {
        serve(&listener, |_, mut respond| drop(respond.send_response(trailers_only("0"), true))).await;
    });
    loop {
        match outcome(&rig.submit(vec![part(&["a"], 0)])).await {
            PartOutcome::Retry { after, reached, .. } => {
                assert!(!reached, "nothing was sent");
                tokio::time::sleep(after.unwrap()).await;
            }
            other => break assert_eq!(other, accepted()),
        }
    }
    let event = patient(async {
        loop {
            let event = rig.events.recv().await.unwrap();
            if event.kind == HealthKind::Answered {
                return event;
            }
        }
    });
    assert_eq!(event.await.identity.as_ref(), address.to_string());
}

#[tokio::test]
async fn fault_02_a_backend_that_never_answers_is_timed_out_and_the_next_call_goes_on() {
    let listener = listen().await;
    let timeout = Duration::from_millis(200);
    let rig = Rig::start(with_keys(|keys| keys.timeout = timeout), &[listener.local_addr().unwrap()]);
    let (held, mut holds) = tokio::sync::mpsc::channel(8);
    rig.tasks.spawn(async move {
        serve(&listener, |at, mut respond| {
            if at == 0 {
                held.try_send(respond).unwrap();
            } else {
                respond.send_response(trailers_only("0"), true).unwrap();
            }
        })
        .await;
    });
    let first = rig.submit(vec![part(&["a"], 0)]);
    let mut respond = patient(holds.recv()).await.unwrap();
    assert_eq!(retry(&first).await, (None, true, Cause::Transport(Failure::Timeout)));
    let reset = patient(std::future::poll_fn(|cx| respond.poll_reset(cx))).await.unwrap();
    assert_eq!(reset, Reason::CANCEL, "the call must be cancelled");
    assert_eq!(outcome(&rig.submit(vec![part(&["b"], 0)])).await, accepted());
}

/// Starts a backend on a thread of its own. It answers a first call at once. When it has a second one, it says so, and answers
/// it when it is told to.
fn backend_on_a_thread() -> (SocketAddr, oneshot::Receiver<()>, oneshot::Sender<()>, std_mpsc::Receiver<()>) {
    let (called, is_called) = oneshot::channel();
    let (go, may_go) = oneshot::channel();
    let (answered, is_answered) = std_mpsc::channel();
    let (bound, is_bound) = std_mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = listen().await;
            bound.send(listener.local_addr().unwrap()).unwrap();
            let mut connection = accept_h2(&listener).await;
            let (_, mut respond) = patient(connection.accept()).await.unwrap().unwrap();
            respond.send_response(trailers_only("0"), true).unwrap();
            let (_request, mut respond) = patient(connection.accept()).await.unwrap().unwrap();
            called.send(()).unwrap();
            tokio::select! { _ = connection.accept() => return, go = may_go => go.unwrap() }
            respond.send_response(trailers_only("0"), true).unwrap();
            // One poll writes the answer.
            assert!(futures_util::poll!(std::pin::pin!(connection.accept())).is_pending());
            answered.send(()).unwrap();
            while connection.accept().await.is_some() {}
        });
    });
    (is_bound.recv().unwrap(), is_called, go, is_answered)
}

#[tokio::test]
async fn fault_02_an_answer_that_arrived_while_this_process_was_stalled_counts() {
    let (address, is_called, go, is_answered) = backend_on_a_thread();
    let timeout = Duration::from_millis(300);
    let mut rig = Rig::start(with_keys(|keys| keys.timeout = timeout), &[address]);
    // After the first answer, the next event on the connection is the answer to the second call.
    assert_eq!(outcome(&rig.submit(vec![part(&["a"], 0)])).await, accepted());
    let join = rig.submit(vec![part(&["b"], 0)]);
    patient(is_called).await.unwrap();
    // From here on dispatch does not run: its only thread blocks until the answer has arrived and the timeout has passed.
    go.send(()).unwrap();
    is_answered.recv().unwrap();
    std::thread::sleep(2 * timeout);
    assert_eq!(outcome(&join).await, accepted(), "the answer had arrived");
    assert!(rig.events_are_quiet());
}

#[tokio::test]
async fn fault_05_a_connection_that_ends_in_a_call_is_our_failure_and_counts_once() {
    for abrupt in [true, false] {
        let listener = listen().await;
        let mut rig = Rig::start(Config { places: 2, ..Config::default() }, &[listener.local_addr().unwrap()]);
        let join = rig.submit(vec![part(&["a"], 0)]);
        let (stream, _) = patient(listener.accept()).await.unwrap();
        if abrupt {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        let mut connection = patient(h2::server::handshake(stream)).await.unwrap();
        let call = patient(connection.accept()).await.unwrap();
        drop((call, connection));
        let (_, reached, cause) = retry(&join).await;
        assert!(reached, "its bytes were read");
        assert_eq!(cause, Cause::Transport(Failure::Reset), "abrupt: {abrupt}");
        // The report depends on whether the peer's preface was read before the failure.
        assert!(matches!(rig.event().await, HealthKind::Refused | HealthKind::Failed("reset")));
        assert!(rig.events_are_quiet(), "must be counted once");
    }
}

#[tokio::test]
async fn fault_05_a_stream_that_is_reset_fails_alone() {
    let outcome = outcome_of_raw(|_, mut respond| respond.send_reset(Reason::INTERNAL_ERROR)).await;
    let PartOutcome::Retry { reached: true, cause, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(cause, Cause::Transport(Failure::Reset));
}

#[tokio::test]
async fn fault_06_after_goaway_the_next_call_goes_to_a_new_connection_at_once() {
    let listener = listen().await;
    let mut rig = Rig::start(Config::default(), &[listener.local_addr().unwrap()]);
    let first = rig.submit(vec![part(&["a"], 0)]);
    let mut old = accept_h2(&listener).await;
    let (request, mut respond) = patient(old.accept()).await.unwrap().unwrap();
    old.graceful_shutdown();
    rig.tasks.spawn(async move { while old.accept().await.is_some() {} });
    // The call in flight is still answered on the old connection, while the next one goes to a new connection.
    let second = rig.submit(vec![part(&["b"], 0)]);
    let mut new = accept_h2(&listener).await;
    let (_request, mut respond_new) = patient(new.accept()).await.unwrap().unwrap();
    respond_new.send_response(trailers_only("0"), true).unwrap();
    rig.tasks.spawn(async move { while new.accept().await.is_some() {} });
    assert_eq!(outcome(&second).await, accepted());
    respond.send_response(trailers_only("0"), true).unwrap();
    patient(read_all(request)).await;
    assert_eq!(outcome(&first).await, accepted());
    assert!(rig.events_are_quiet(), "GOAWAY is no failure");
}

#[tokio::test]
async fn fault_06_a_stream_above_goaways_last_one_is_sent_again() {
    let listener = listen().await;
    let rig = Rig::start(Config::default(), &[listener.local_addr().unwrap()]);
    let join = rig.submit(vec![part(&["a"], 0)]);
    {
        // This peer writes raw frames: it answers the preface, and then says that it processed no stream.
        let (mut stream, _) = patient(listener.accept()).await.unwrap();
        patient(read_some(&stream)).await;
        stream.write_all(&GOAWAY_AT_ONCE.concat()).await.unwrap();
        let mut connection = accept_h2(&listener).await;
        let (_request, mut respond) = patient(connection.accept()).await.unwrap().unwrap();
        respond.send_response(trailers_only("0"), true).unwrap();
        rig.tasks.spawn(async move { while connection.accept().await.is_some() {} });
    }
    assert_eq!(outcome(&join).await, accepted());
}

/// SETTINGS, and a GOAWAY that says that nothing was processed.
const GOAWAY_AT_ONCE: [&[u8]; 2] = [&[0, 0, 0, 4, 0, 0, 0, 0, 0], &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]];

async fn read_some(stream: &tokio::net::TcpStream) {
    stream.readable().await.unwrap();
}

#[tokio::test]
async fn fault_07_a_refused_stream_is_sent_again_at_once_but_not_for_ever() {
    let twice = outcome_of_raw(|at, mut respond| {
        if at < 2 {
            respond.send_reset(Reason::REFUSED_STREAM);
        } else {
            respond.send_response(trailers_only("0"), true).unwrap();
        }
    })
    .await;
    assert_eq!(twice, accepted());
    let always = outcome_of_raw(|_, mut respond| respond.send_reset(Reason::REFUSED_STREAM)).await;
    assert!(matches!(always, PartOutcome::Retry { reached: false, .. }), "{always:?}");
}

#[tokio::test]
async fn fault_07_a_peer_that_always_says_goaway_is_left_alone_for_a_while_and_counts_as_failing() {
    let listener = listen().await;
    let mut rig = Rig::start(Config::default(), &[listener.local_addr().unwrap()]);
    rig.tasks.spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            // Reads until the proxy closes the connection.
            let (mut read, mut write) = stream.into_split();
            drop(write.write_all(&GOAWAY_AT_ONCE.concat()).await);
            drop(tokio::io::copy(&mut read, &mut tokio::io::sink()).await);
        }
    });
    let (after, ..) = retry(&rig.submit(vec![part(&["a"], 0)])).await;
    assert!(after.is_some(), "must say when to come back");
    assert_eq!(rig.event().await, HealthKind::Failed("turned_away"));
}

#[tokio::test]
async fn fault_07_a_peer_that_allows_no_stream_counts_as_failing() {
    let tasks = Tasks::new();
    let mut backend = Script::start(&tasks, None, 0).await;
    let mut rig = Rig::start_with(Config::default(), &[backend.address], tasks);
    let (after, reached, cause) = retry(&rig.submit(vec![part(&["a"], 0)])).await;
    assert_eq!((reached, cause), (false, Cause::Transport(Failure::TurnedAway)));
    assert!(after.is_some(), "must say when to come back");
    assert_eq!(rig.event().await, HealthKind::Failed("turned_away"));
    assert!(backend.is_quiet());
}

#[tokio::test]
async fn fault_12_answers_that_are_not_grpc_are_classified_by_their_http_status() {
    let cases = [
        (200, "text/html", Some(Code::Unknown)),
        (400, "text/html", Some(Code::Internal)),
        (404, "text/plain", Some(Code::Unimplemented)),
        (415, "text/plain", Some(Code::Unknown)),
        (429, "text/plain", None),
        (502, "text/html", None),
        (503, "text/html", None),
        (504, "text/html", None),
    ];
    for (status, kind, permanent) in cases {
        let outcome = outcome_of_raw(move |_, mut respond| {
            let response = http::Response::builder().status(status).header("content-type", kind).body(()).unwrap();
            let mut stream = respond.send_response(response, false).unwrap();
            stream.send_data(Bytes::from_static(b"<html>"), true).unwrap();
        })
        .await;
        match (outcome, permanent) {
            (PartOutcome::Rejected { code, message }, Some(expected)) => {
                assert_eq!(code, expected, "HTTP {status}");
                assert!(message.contains(&status.to_string()), "{message}");
            }
            (PartOutcome::Retry { cause, .. }, None) => match status {
                429 => assert_eq!(cause, Cause::Status(Code::Unavailable)),
                _ => assert_eq!(cause, Cause::Transport(Failure::Gateway(status))),
            },
            (other, _) => panic!("HTTP {status}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn fault_12_a_reply_without_a_status_leaves_the_part_owed() {
    let outcome = outcome_of_raw(|_, mut respond| {
        let response = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut stream = respond.send_response(response, false).unwrap();
        stream.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
    })
    .await;
    let PartOutcome::Retry { reached: true, cause, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(cause, Cause::Transport(Failure::Protocol));
}

#[tokio::test]
async fn fault_12_a_peer_that_speaks_http_1_is_our_failure() {
    let listener = listen().await;
    let rig = Rig::start(Config::default(), &[listener.local_addr().unwrap()]);
    let join = rig.submit(vec![part(&["a"], 0)]);
    let (mut stream, _) = patient(listener.accept()).await.unwrap();
    stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    let (.., cause) = retry(&join).await;
    assert_eq!(cause, Cause::Transport(Failure::Protocol));
}

#[tokio::test]
async fn compressed_replies_are_understood() {
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        for (compression, level) in [(Compression::None, 1), (Compression::Gzip, 1), (Compression::Zstd, 3)] {
            let tasks = Tasks::new();
            let mut backend = Script::start(&tasks, Some(encoding), 100).await;
            let config = with_keys(|keys| {
                keys.compression = compression;
                keys.compression_params.level = level;
            });
            let rig = Rig::start_with(config, &[backend.address], tasks);
            let join = rig.submit(vec![part(&["a", "b", "c"], 0)]);
            let call = backend.call().await;
            assert_eq!(call.spans, ["a", "b", "c"]);
            call.accept_partly(2, "two were bad");
            let expected = PartOutcome::Accepted { rejected: 2, message: Some("two were bad".into()) };
            assert_eq!(outcome(&join).await, expected, "{encoding:?} {compression:?}");
        }
    }
}

#[tokio::test]
async fn a_backend_that_allows_one_stream_gets_one_call_at_a_time() {
    let tasks = Tasks::new();
    let mut backend = Script::start(&tasks, None, 1).await;
    let rig = Rig::start_with(Config::default(), &[backend.address], tasks);
    let first = rig.submit(vec![part(&["a"], 0)]);
    let held = backend.call().await;
    // Enough bytes to begin a second call at once, if the backend allowed it.
    let rest: Vec<_> = (0..4).map(|_| rig.submit(vec![large_part(1, 40_000, 0)])).collect();
    // The connection's task runs many times and begins no other call.
    for _ in 0..100 {
        tokio::task::yield_now().await;
        let running: usize = rig.dispatch.view().unwrap().backends().map(|backend| backend.load().calls).sum();
        assert_eq!(running, 1);
    }
    assert!(backend.is_quiet());
    held.accept();
    assert_eq!(outcome(&first).await, accepted());
    let call = backend.call().await;
    assert_eq!(call.spans.len(), 4, "what waited must leave together");
    call.accept();
    for join in &rest {
        assert_eq!(outcome(join).await, accepted());
    }
}

#[tokio::test]
async fn large_calls_flow_through_small_windows() {
    let listener = listen().await;
    let rig = Rig::start(Config::default(), &[listener.local_addr().unwrap()]);
    let part = large_part(300, 10_000, 0);
    let expected = part.message.framed_len();
    let join = rig.submit(vec![part]);
    let mut connection = accept_h2(&listener).await;
    let (request, mut respond) = patient(connection.accept()).await.unwrap().unwrap();
    rig.tasks.spawn(async move { while connection.accept().await.is_some() {} });
    assert_eq!(patient(read_all(request)).await, expected);
    respond.send_response(trailers_only("0"), true).unwrap();
    assert_eq!(outcome(&join).await, accepted());
}

#[tokio::test]
async fn several_connections_share_the_calls() {
    let listener = listen().await;
    let config = Config { open_place_bytes: 1, ..with_keys(|keys| keys.connections = 2) };
    let rig = Rig::start(config, &[listener.local_addr().unwrap()]);
    let first = rig.submit(vec![part(&["a"], 0)]);
    let mut one = accept_h2(&listener).await;
    let (_held, mut respond) = patient(one.accept()).await.unwrap().unwrap();
    rig.tasks.spawn(async move { while one.accept().await.is_some() {} });
    // The first connection is busy, so another is made. Either of them may take the calls.
    let _second = rig.submit(vec![part(&["b"], 0)]);
    let mut two = accept_h2(&listener).await;
    rig.tasks.spawn(async move { while two.accept().await.is_some() {} });
    respond.send_response(trailers_only("0"), true).unwrap();
    assert_eq!(outcome(&first).await, accepted());
}

#[tokio::test]
async fn a_backend_without_an_address_hands_back_at_once() {
    let endpoint = crate::endpoint::Endpoint::new("later:4317", None);
    let table = crate::ring::Table::of(1, crate::ring::Algorithm::SlotsV1, &vec![endpoint].into()).unwrap();
    let (_tables, receiver) = tokio::sync::watch::channel(Some(std::sync::Arc::new(table)));
    let tasks = Tasks::new();
    let (events, budget) = (crate::health::channel("test").0, crate::budget::Budget::new(1 << 20));
    let dispatch = crate::dispatch::Dispatch::start("test", Config::default(), receiver, &tasks, events, budget);
    let join = crate::dispatch::Join::new(tokio::time::Instant::now() + Duration::from_secs(9), Default::default());
    dispatch.view().unwrap().submit(vec![part(&["a"], 0)], &join).expect("there must be room");
    let (.., cause) = retry(&join).await;
    assert_eq!(cause, Cause::Unresolved);
    tasks.stop();
    tasks.wait().await;
}
