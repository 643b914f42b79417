//! Answers that come before the request is written.

use std::time::Duration;

use tonic::Code;

use super::{answer_is_read, failed, keys};
use crate::{
    dispatch::transport::{Failure, Scope, Verdict, tests::Served},
    settings::Delivery,
    testing::{HttpConnection, HttpPeer, OK},
};

/// More than sockets hold, and less than what a busy machine carries in the second that a connection has for it.
const LARGE: usize = 16 << 20;

/// Begins a call with [`LARGE`] bytes, which the backend answers before it reads them. Further messages wait.
async fn answered_early(answer: &str, waiting: &[&[u8]], keys: &Delivery) -> (Served, HttpConnection) {
    let peer = HttpPeer::start().await;
    let large = vec![7; LARGE];
    let messages: Vec<&[u8]> = std::iter::once(large.as_slice()).chain(waiting.iter().copied()).collect();
    let served = Served::start_with(peer.address, &messages, keys);
    let mut connection = peer.accept().await;
    connection.head().await.unwrap();
    connection.send(answer).await;
    (served, connection)
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_counts() {
    let answer = "HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n";
    let (served, connection) = answered_early(answer, &[], &keys(|_, _| {})).await;
    let verdicts = served.verdicts(1).await;
    assert!(matches!(&verdicts[..], [Verdict::Refused { code: Code::ResourceExhausted, .. }]), "{verdicts:?}");
    // The rest of the request is not taken, so the connection cannot carry another call.
    assert_eq!(served.end().await.0, ["connected", "answered", "writing", "closed"]);
    drop(connection);
}

#[tokio::test]
async fn a_success_counts_only_once_the_request_is_written() {
    let (served, mut connection) = answered_early(OK, &[b"next"], &keys(|_, _| {})).await;
    served.with_state(|state| assert_eq!(state.events, ["connected"]));
    connection.skip(LARGE).await;
    assert_eq!(served.verdicts(1).await, [Verdict::Accepted(None)]);
    assert_eq!(connection.request().await.body, b"next");
    served.tasks.stop();
}

#[tokio::test]
async fn a_success_of_a_backend_that_does_not_take_the_request_is_a_failure() {
    for is_closed in [false, true] {
        let keys = keys(|keys, _| keys.timeout = Duration::from_millis(500));
        let (served, connection) = answered_early(OK, &[], &keys).await;
        let kept = (!is_closed).then_some(connection);
        assert_eq!(served.verdicts(1).await, [failed(Failure::Reset, Scope::Stream)]);
        assert_eq!(served.end().await, (vec!["connected", "closed"], None));
        drop(kept);
    }
}

#[tokio::test]
async fn a_stop_while_the_rest_of_an_answered_request_is_written_ends_the_call() {
    let (served, connection) = answered_early(OK, &[], &keys(|_, _| {})).await;
    answer_is_read().await;
    served.tasks.stop();
    assert_eq!(served.verdicts(1).await, [Verdict::Stopped]);
    assert_eq!(served.end().await, (vec!["connected", "stopped"], None));
    drop(connection);
}

#[tokio::test]
async fn a_connection_takes_the_next_call_once_an_answered_request_is_written() {
    let answer = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
    let (served, mut connection) = answered_early(answer, &[b"next"], &keys(|_, _| {})).await;
    assert!(matches!(served.verdicts(1).await[..], [Verdict::Refused { .. }]));
    connection.skip(LARGE).await;
    assert_eq!(connection.request().await.body, b"next");
    connection.send(OK).await;
    served.verdicts(2).await;
    served.with_state(|state| {
        assert_eq!(state.events, ["connected", "answered", "writing", "written", "answered"]);
    });
    served.tasks.stop();
}
