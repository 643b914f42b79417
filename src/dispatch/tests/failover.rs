//! Tests of backends that are ejected, leave the table or return, and of the probes before their return.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use h2::Reason;
use tokio::{io::AsyncWriteExt, net::TcpListener};
use tonic::Code;

use crate::{
    access::Access,
    dispatch::{Cause, Config, Failure, HealthCheck, Join, Part, PartOutcome},
    health::{HealthKind, Prober},
    lifecycle::Tasks,
    testing::*,
};

async fn retry(join: &Join) -> (bool, Cause) {
    match outcome(join).await {
        PartOutcome::Retry { reached, cause, .. } => (reached, cause),
        other => panic!("must be owed: {other:?}"),
    }
}

/// Starts two backends, and a dispatch with one place for each.
async fn two(tasks: Tasks) -> (Script, Script, Rig) {
    let one = Script::start(&tasks, None, 100).await;
    let two = Script::start(&tasks, None, 100).await;
    let config = Config { places: 1, ..Config::default() };
    let rig = Rig::start_with(config, &[one.address, two.address], tasks);
    (one, two, rig)
}

#[tokio::test]
async fn an_ejected_backend_hands_back_what_waits_and_gives_up_what_is_under_way() {
    let (mut sick, well, rig) = two(Tasks::new()).await;
    let at = rig.index_of(sick.address);
    let old = rig.dispatch.view().unwrap();
    let sent = rig.submit(vec![part(&["a"], at)]);
    let held = sick.call().await;
    let waiting = rig.submit(vec![part(&["b"], at)]);
    let mut changes = rig.dispatch.changes();
    rig.publish(2, &[sick.address, well.address], &[sick.address]).await;
    assert_eq!(retry(&waiting).await, (false, Cause::Ejected), "it was never sent");
    assert_eq!(retry(&sent).await, (true, Cause::Ejected), "it was sent: a repeat may arrive twice");
    let view = rig.dispatch.view().unwrap();
    assert!(view.serves(&well.address.to_string()));
    assert!(!view.serves(&sick.address.to_string()));
    patient(changes.wait_for(|generation| *generation == 2)).await.unwrap();
    // A request that still uses the previous table gets its part back at once.
    let join = Join::new(tokio::time::Instant::now() + Duration::from_secs(10), Default::default());
    old.submit(vec![part(&["c"], at)], &join).expect("there must be room");
    assert_eq!(retry(&join).await, (false, Cause::Ejected));
    wait_until(|| old.backends().all(|backend| backend.is_idle())).await;
    assert!(sick.is_quiet());
    drop(held);
}

#[tokio::test]
async fn a_backend_that_returns_is_served_at_once() {
    let listener = listen().await;
    let sick = listener.local_addr().unwrap();
    drop(listener);
    let tasks = Tasks::new();
    let well = Script::start(&tasks, None, 100).await;
    let mut rig = Rig::start_with(Config::default(), &[sick, well.address], tasks);
    let at = rig.index_of(sick);
    let refused = Cause::Transport(Failure::ConnectRefused);
    assert_eq!(retry(&rig.submit(vec![part(&["a"], at)])).await, (false, refused));
    assert_eq!(rig.event().await, HealthKind::Refused);
    rig.publish(2, &[sick, well.address], &[sick]).await;
    let listener = TcpListener::bind(sick).await.unwrap();
    rig.publish(3, &[sick, well.address], &[]).await;
    // No pause remains from before the ejection.
    let join = rig.submit(vec![part(&["b"], at)]);
    let mut connection = accept_h2(&listener).await;
    let (_request, mut respond) = patient(connection.accept()).await.unwrap().unwrap();
    respond.send_response(trailers_only("0"), true).unwrap();
    rig.tasks.spawn(async move { while connection.accept().await.is_some() {} });
    assert_eq!(outcome(&join).await, accepted());
    assert_eq!(rig.event().await, HealthKind::Answered);
}

#[tokio::test]
async fn if_all_backends_are_away_all_are_served() {
    let (mut one, two, rig) = two(Tasks::new()).await;
    rig.publish(2, &[one.address, two.address], &[one.address, two.address]).await;
    let join = rig.submit(vec![part(&["a"], rig.index_of(one.address))]);
    one.call().await.accept();
    assert_eq!(outcome(&join).await, accepted());
    assert!(rig.dispatch.view().unwrap().serves(&one.address.to_string()));
}

#[tokio::test]
async fn a_backend_that_left_and_then_fails_hands_back_what_waits() {
    let listener = listen().await;
    let old = listener.local_addr().unwrap();
    let tasks = Tasks::new();
    let new = Script::start(&tasks, None, 100).await;
    let mut rig = Rig::start_with(Config { places: 1, ..Config::default() }, &[old], tasks);
    let sent = rig.submit(vec![part(&["a"], 0)]);
    let mut connection = accept_h2(&listener).await;
    let held = patient(connection.accept()).await.unwrap().unwrap();
    let waiting = rig.submit(vec![part(&["b"], 0)]);
    rig.publish(2, &[new.address], &[]).await;
    drop((held, connection, listener));
    let (reached, _) = retry(&sent).await;
    assert!(reached);
    assert_eq!(retry(&waiting).await, (false, Cause::Departed));
    assert!(rig.events_are_quiet(), "a backend that has left must not be reported");
}

#[tokio::test]
async fn a_new_connection_that_is_reset_at_once_is_reported_as_refused() {
    let listener = listen().await;
    let mut rig = Rig::start(Config::default(), &[listener.local_addr().unwrap()]);
    let join = rig.submit(vec![part(&["a"], 0)]);
    let (stream, _) = patient(listener.accept()).await.unwrap();
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    let (_, cause) = retry(&join).await;
    assert!(matches!(cause, Cause::Transport(Failure::Reset | Failure::ResetAtOnce)), "{cause:?}");
    assert_eq!(rig.event().await, HealthKind::Refused, "{cause:?}");
}

#[tokio::test]
async fn the_load_counts_waiting_parts_and_calls_in_flight() {
    let tasks = Tasks::new();
    let mut backend = Script::start(&tasks, None, 100).await;
    let rig = Rig::start_with(Config::default(), &[backend.address], tasks);
    let part = part(&["a"], 0);
    let bytes = part.message.payload_len();
    let join = rig.submit(vec![part]);
    let call = backend.call().await;
    let load = || rig.dispatch.view().unwrap().backends().next().unwrap().load();
    assert_eq!((load().calls, load().call_bytes, load().waiting_bytes), (1, bytes, 0));
    call.accept();
    assert_eq!(outcome(&join).await, accepted());
    assert_eq!((load().calls, load().call_bytes), (0, 0));
}

/// Returns the result of a probe of a peer that gives this answer.
async fn probed(status: &'static str, message: Option<&'static [u8]>) -> bool {
    let listener = listen().await;
    let address = listener.local_addr().unwrap();
    let tasks = Tasks::new();
    tasks.spawn(async move {
        let mut connection = accept_h2(&listener).await;
        let Some(Ok((request, mut respond))) = connection.accept().await else { return };
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        match message {
            None => drop(respond.send_response(trailers_only(status), true)),
            Some(message) => {
                let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                let mut stream = respond.send_response(head, false).unwrap();
                stream.send_data(Bytes::from_static(message), false).unwrap();
                stream.send_trailers(trailers_only(status).headers().clone()).unwrap();
            }
        }
        while connection.accept().await.is_some() {}
    });
    let found = patient(HealthCheck::default().probe("a", address, &Access::default())).await;
    tasks.stop();
    found.unwrap()
}

#[tokio::test]
async fn a_probe_accepts_every_answer_except_not_serving() {
    assert!(probed("0", Some(&[0, 0, 0, 0, 2, 8, 1])).await, "serving");
    assert!(!probed("0", Some(&[0, 0, 0, 0, 2, 8, 2])).await, "not serving");
    for code in [Code::Unimplemented, Code::Unavailable, Code::Unauthenticated] {
        let status: &'static str = Box::leak((code as i32).to_string().into_boxed_str());
        assert!(probed(status, None).await, "{code:?} is an answer");
    }
}

#[tokio::test]
async fn a_probe_fails_if_the_peer_does_not_answer() {
    let probe = |address: SocketAddr| async move {
        tokio::time::timeout(Duration::from_millis(300), HealthCheck::default().probe("a", address, &Access::default()))
            .await
            .is_ok_and(|answered| answered.unwrap())
    };
    let listener = listen().await;
    let address = listener.local_addr().unwrap();
    // The connection is accepted but never served, as by the kernel for a stopped process.
    assert!(!probe(address).await);
    let tasks = Tasks::new();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            drop(stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").await);
        }
    });
    assert!(!probe(address).await, "the peer does not speak HTTP/2");
    tasks.stop();
    let listener = listen().await;
    let address = listener.local_addr().unwrap();
    drop(listener);
    assert!(!probe(address).await, "nobody listens");
}

/// Serves HTTP/2 and resets the stream of each call, or closes the connection with it.
async fn reset_each(listener: TcpListener, is_stream: bool) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let Ok(mut connection) = h2::server::handshake(stream).await else { continue };
        while let Some(Ok((_request, mut respond))) = connection.accept().await {
            if !is_stream {
                break;
            }
            respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}

#[tokio::test]
async fn a_reset_of_records_that_another_backend_has_reset_is_no_failure_of_this_one() {
    for is_stream in [true, false] {
        let listener = listen().await;
        let mut rig = Rig::start(Config::default(), &[listener.local_addr().unwrap()]);
        rig.tasks.spawn(reset_each(listener, is_stream));
        let reset = Cause::Transport(Failure::Reset);
        for _ in 0..3 {
            let suspect = Part { reset_elsewhere: true, ..part(&["a"], 0) };
            assert_eq!(retry(&rig.submit(vec![suspect])).await.1, reset);
        }
        // That of other records is the first one to count.
        assert_eq!(retry(&rig.submit(vec![part(&["b"], 0)])).await.1, reset);
        assert_eq!(rig.event().await, HealthKind::Failed("reset"));
        assert!(rig.events_are_quiet());
    }
}
