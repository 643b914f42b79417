//! Deadlines and probes of calls in flight.

use std::sync::Arc;

use super::{
    super::{connect, tests::start},
    *,
};
use crate::{
    access::Access,
    dispatch::transport::{Verdict, tests::message},
    settings::OtlpHttp,
    testing::{HttpPeer, patient},
};

#[tokio::test]
async fn a_call_is_looked_at_once_more_before_its_deadline_ends_it() {
    let peer = HttpPeer::start().await;
    let (access, identity): (_, Arc<str>) = (Access::default(), peer.address.to_string().into());
    let connected = connect(&access, &identity, peer.address).await.expect("the peer listens");
    let target = Target::new(&identity, Some(peer.address), &OtlpHttp::default(), &access);
    let (now, timeout) = (Instant::now(), Duration::from_millis(500));
    let mut flight = Flight::new(message(b"a"), now, timeout);
    let checks = [499, 500, 500].map(|at| flight.check(now + Duration::from_millis(at), &connected.seen, &target));
    assert_eq!(checks, [Due::Nothing, Due::Nothing, Due::Deadline]);
}

#[tokio::test]
async fn a_backend_that_goes_on_with_its_answer_is_alive_even_if_it_answers_no_probe() {
    let peer = HttpPeer::start().await;
    let served = start(&peer, &[b"a"]);
    let mut connection = peer.accept().await;
    connection.request().await;
    let mut silent = peer.accept().await;
    assert!(patient(silent.request()).await.is_probe());
    connection.send("HTTP/1.1 200 OK\r\n").await;
    // The first probe has ended without an answer.
    let mut next = peer.accept().await;
    assert!(patient(next.request()).await.is_probe());
    connection.send("content-length: 0\r\n\r\n").await;
    assert_eq!(served.verdicts(1).await, [Verdict::Accepted(None)]);
    served.tasks.stop();
}
