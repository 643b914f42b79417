//! Tests of backends that do not answer, answer late, or refuse each call: which failures are reported to membership,
//! independently of the time that clients wait.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use h2::server::SendResponse;
use http::Response;
use tokio::{sync::mpsc, time::Instant};

use crate::{
    dispatch::{Cause, Config, Failure, Join, PartOutcome},
    testing::{
        HealthKind, Rig, accept_h2, accepted, listen, outcome, part, patient, trailers_only, wait_until, with_keys,
    },
};

type Respond = SendResponse<Bytes>;

/// A backend that answers PINGs at once. `serve` handles each call.
async fn start(rig: impl FnOnce(SocketAddr) -> Rig, serve: impl FnMut(Respond) + Send + 'static) -> Rig {
    let listener = listen().await;
    let rig = rig(listener.local_addr().unwrap());
    let (serve, tasks) = (std::sync::Arc::new(std::sync::Mutex::new(serve)), rig.tasks.clone());
    rig.tasks.spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let serve = std::sync::Arc::clone(&serve);
            tasks.spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((_request, respond))) = connection.accept().await {
                    serve.lock().unwrap()(respond);
                }
            });
        }
    });
    rig
}

/// Submits a part of a client that waits for this time.
fn submit_for(rig: &Rig, wait: Duration) -> Join {
    let join = Join::new(Instant::now() + wait, std::sync::Arc::default());
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
async fn a_stopped_peer_is_detected_even_if_clients_wait_for_a_shorter_time() {
    let listener = listen().await;
    let mut rig = Rig::start(Config::default(), &[listener.local_addr().unwrap()]);
    let first = rig.submit(vec![part(&["a"], 0)]);
    let mut connection = accept_h2(&listener).await;
    let (_request, mut respond) = patient(connection.accept()).await.unwrap().unwrap();
    respond.send_response(trailers_only("0"), true).unwrap();
    let served = async { while connection.accept().await.is_some() {} };
    tokio::select! {
        biased;
        answer = outcome(&first) => assert_eq!(answer, accepted()),
        () = served => panic!("must stay"),
    }
    // From here on the peer reads nothing, like a stopped process.
    let begun = Instant::now();
    let wait = Duration::from_millis(300);
    let event = loop {
        let join = submit_for(&rig, wait);
        tokio::select! {
            biased;
            event = rig.event() => break event,
            cause = cause_of(&join) => assert_eq!(cause, TIMED_OUT),
        }
    };
    assert_eq!(event, HealthKind::Silent("ping"));
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(1_900), "found after {took:?}, before the PING could be answered");
}

#[tokio::test]
async fn a_stopped_peer_is_detected_even_if_the_configuration_changes_meanwhile() {
    let listener = listen().await;
    let mut rig = Rig::start(Config::default(), &[listener.local_addr().unwrap()]);
    let waiting = rig.submit(vec![part(&["a"], 0)]);
    // The peer sends its SETTINGS and then reads nothing.
    let _connection = accept_h2(&listener).await;
    let begun = Instant::now();
    for queue_size in 1..4 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = rig.dispatch.view().unwrap();
        rig.dispatch.reconfigure(with_keys(|keys| keys.sending_queue.queue_size.0 = queue_size << 20));
        wait_until(|| !std::sync::Arc::ptr_eq(&before, &rig.dispatch.view().unwrap())).await;
    }
    assert_eq!(rig.event().await, HealthKind::Silent("ping"));
    assert!(begun.elapsed() < Duration::from_millis(2_900), "found after {:?}", begun.elapsed());
    assert_eq!(cause_of(&waiting).await, Cause::Transport(Failure::Ping));
}

#[tokio::test]
async fn a_peer_that_answers_pings_is_slow_and_not_silent() {
    let mut held = Vec::new();
    let mut rig = start(|address| Rig::start(Config::default(), &[address]), move |respond| held.push(respond)).await;
    // This takes longer than two PINGs and two probes.
    let wait = Duration::from_millis(4_500);
    assert_eq!(cause_of(&submit_for(&rig, wait)).await, TIMED_OUT);
    assert!(rig.events_are_quiet(), "a slow backend must not be reported");
}

#[tokio::test]
async fn a_backend_that_answers_after_its_clients_left_is_slow_and_not_mute() {
    let timeout = Duration::from_millis(400);
    let start_rig = |address| Rig::start(with_keys(|keys| keys.timeout = timeout), &[address]);
    let (calls, mut held) = mpsc::channel::<(Instant, Respond)>(1_024);
    let mut rig = start(start_rig, move |respond| calls.try_send((Instant::now(), respond)).unwrap()).await;
    rig.tasks.spawn(async move {
        while let Some((at, mut respond)) = held.recv().await {
            tokio::time::sleep_until(at + timeout / 2).await;
            // Most clients no longer wait by then.
            drop(respond.send_response(trailers_only("0"), true));
        }
    });
    let end = Instant::now() + 6 * timeout;
    while Instant::now() < end {
        assert_eq!(cause_of(&submit_for(&rig, timeout / 8)).await, TIMED_OUT);
    }
    assert!(rig.events_are_quiet(), "a backend that answers late must not be reported");
}

#[tokio::test]
async fn a_backend_that_answers_no_call_for_two_timeouts_is_reported_however_long_clients_wait() {
    let timeout = Duration::from_millis(400);
    for wait in [timeout / 8, 4 * timeout] {
        let mut held = Vec::new();
        let start_rig = |address| Rig::start(with_keys(|keys| keys.timeout = timeout), &[address]);
        let mut rig = start(start_rig, move |respond| held.push(respond)).await;
        let begun = Instant::now();
        let event = loop {
            let join = submit_for(&rig, wait);
            tokio::select! {
                biased;
                event = rig.event() => break event,
                cause = cause_of(&join) => assert_eq!(cause, TIMED_OUT),
            }
        };
        assert_eq!(event, HealthKind::Silent("timeout"));
        assert!(begun.elapsed() >= 2 * timeout - Duration::from_millis(5), "after {:?}", begun.elapsed());
    }
}

/// The timeout of an attempt is so long that the connection runs out of PINGs and is left for another one.
#[tokio::test]
async fn a_mute_backend_is_detected_even_if_its_connection_takes_no_more_calls() {
    let timeout = Duration::from_secs(4);
    let found = async |wait| {
        let mut held = Vec::new();
        let start_rig = |address| Rig::start(with_keys(|keys| keys.timeout = timeout), &[address]);
        let mut rig = start(start_rig, move |respond| held.push(respond)).await;
        let begun = Instant::now();
        let event = loop {
            let join = submit_for(&rig, wait);
            tokio::select! {
                biased;
                event = rig.event() => break event,
                cause = cause_of(&join) => assert_eq!(cause, TIMED_OUT),
            }
            assert!(begun.elapsed() < 5 * timeout, "clients that wait {wait:?}: it was not detected");
        };
        assert_eq!(event, HealthKind::Silent("timeout"), "clients that wait {wait:?}");
    };
    tokio::join!(
        found(Duration::from_millis(1_500)),
        found(Duration::from_millis(3_500)),
        found(Duration::from_millis(5_000)),
    );
}

#[tokio::test]
async fn a_backend_that_refuses_every_stream_is_reported_and_nothing_was_delivered() {
    let refuse = |mut respond: Respond| respond.send_reset(h2::Reason::REFUSED_STREAM);
    let mut rig = start(|address| Rig::start(Config::default(), &[address]), refuse).await;
    let join = rig.submit(vec![part(&["a"], 0)]);
    match outcome(&join).await {
        PartOutcome::Retry { reached, cause, .. } => {
            assert_eq!((reached, cause), (false, Cause::Transport(Failure::RefusedStream)));
        }
        other => panic!("must be owed: {other:?}"),
    }
    assert_eq!(rig.event().await, HealthKind::Failed("refused_stream"));
}

#[tokio::test]
async fn a_stream_that_is_refused_once_is_sent_again_and_not_reported() {
    let mut calls = 0;
    let refuse_first = move |mut respond: Respond| {
        calls += 1;
        if calls == 1 {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
        } else {
            respond.send_response(trailers_only("0"), true).unwrap();
        }
    };
    let mut rig = start(|address| Rig::start(Config::default(), &[address]), refuse_first).await;
    assert_eq!(outcome(&rig.submit(vec![part(&["a"], 0)])).await, accepted());
    assert!(rig.events_are_quiet());
}

#[tokio::test]
async fn a_gateway_that_cannot_reach_the_backend_is_a_failure_of_the_connection() {
    for (status, may_be_there) in [(502, true), (503, false), (504, true)] {
        let answer = move |mut respond: Respond| {
            let response = Response::builder().status(status).body(()).unwrap();
            respond.send_response(response, true).map(drop).unwrap();
        };
        let mut rig = start(|address| Rig::start(Config::default(), &[address]), answer).await;
        match outcome(&rig.submit(vec![part(&["a"], 0)])).await {
            PartOutcome::Retry { reached, cause, .. } => {
                assert_eq!((reached, cause), (may_be_there, Cause::Transport(Failure::Gateway(status))));
                assert!(cause.to_string().contains(&status.to_string()), "{cause}");
            }
            other => panic!("must be owed: {other:?}"),
        }
        assert_eq!(rig.event().await, HealthKind::Failed("gateway"));
    }
}

#[tokio::test]
async fn a_backend_that_answers_unavailable_is_alive() {
    for code in ["14", "8"] {
        let answer = move |mut respond: Respond| respond.send_response(trailers_only(code), true).map(drop).unwrap();
        let mut rig = start(|address| Rig::start(Config::default(), &[address]), answer).await;
        let _owed = rig.submit(vec![part(&["a"], 0)]);
        wait_until(|| rig.dispatch.is_idle()).await;
        assert!(rig.events_are_quiet(), "status {code} of the backend itself must not be reported");
    }
}
