//! Tests of the shares of connections and streams, and of the gate.

use std::task::Waker;

use super::*;
use crate::budget::Division;

const HEADERS: u32 = 1 << 10;
const OPENING: usize = STREAM + (1 << 10);

fn account(clients: usize) -> Budget {
    Budget::divided(Division { fixed: 0, clients, requests: 0 })
}

fn admission(account: &Budget) -> Arc<Admission> {
    Arc::new(Admission::new(Some(account.clone()), HEADERS))
}

fn is_open(admission: &Admission) -> bool {
    admission.poll_open(&Context::from_waker(Waker::noop())).is_ready()
}

/// Opens streams until one is not admitted, and returns those that were.
fn open_all(admission: &Arc<Admission>) -> Vec<Stream> {
    let mut streams = Vec::new();
    while admission.admit() {
        let mut stream = admission.serve();
        assert!(!stream.has_no_room());
        stream.headers_are_read();
        streams.push(stream);
    }
    streams
}

#[test]
fn connections_hold_at_most_half_of_the_share() {
    let account = account(10 * CONNECTION);
    let held: Vec<Permit> = std::iter::from_fn(|| connection(&account, CONNECTION)).collect();
    assert_eq!((held.len(), account.used_for(Use::Connections)), (5, 5 * CONNECTION));
    drop(held);
    assert_eq!(account.clients_used(), 0);
}

#[test]
fn one_connection_holds_at_most_a_quarter_of_the_share() {
    let account = account(100 * STREAM);
    assert_eq!(open_all(&admission(&account)).len(), 25);
    assert_eq!(account.clients_used(), 0, "all is given back");
}

#[test]
fn while_memory_is_short_the_rest_is_for_connections_whose_requests_were_answered() {
    let account = account(100 * STREAM);
    let (first, second) = (admission(&account), admission(&account));
    let held = (open_all(&first), open_all(&second));
    assert_eq!((held.0.len(), held.1.len()), (25, 25));
    let _one_more = account.take_for(Use::Streams, STREAM);
    let (unproven, proven) = (admission(&account), admission(&account));
    assert!(proven.admit(), "some streams are for everybody");
    proven.serve().is_answered();
    let some = open_all(&unproven);
    assert_eq!(some.len(), UNPROVEN_STREAMS);
    let others: Vec<_> = (0..10).map(|_| open_all(&admission(&account))).collect();
    assert_eq!(others.iter().map(Vec::len).sum::<usize>(), 25 - 4, "three quarters are in use then");
    assert_eq!(open_all(&proven).len(), 23, "the last stream has no room for its headers");
}

#[test]
fn nothing_is_read_behind_a_stream_without_room_until_it_was_refused() {
    let account = account(4 * OPENING);
    let admission = admission(&account);
    assert!(admission.admit());
    let first = admission.serve();
    assert!(!admission.admit(), "a quarter is in use");
    assert!(!is_open(&admission));
    admission.settle(false);
    assert!(!is_open(&admission), "h2 has not read it yet");
    let refused = admission.serve();
    assert!(refused.has_no_room() && !first.has_no_room());
    admission.settle(true);
    assert!(!is_open(&admission), "the service has not answered it yet");
    drop(refused);
    assert!(is_open(&admission));
    drop(first);
    assert!(admission.admit(), "there is room again");
}

#[test]
fn streams_that_h2_refuses_are_given_back() {
    let account = account(100 * OPENING);
    let admission = admission(&account);
    assert!(admission.admit() && admission.admit());
    let served = admission.serve();
    admission.settle(false);
    assert_eq!(account.clients_used(), 2 * OPENING, "the second may still come");
    admission.settle(true);
    assert_eq!(account.clients_used(), OPENING);
    drop(served);
    assert_eq!((account.clients_used(), admission.streams.load(Relaxed)), (0, 0));
    admission.gate.store(gate::PASSED, Release);
    admission.settle(true);
    assert!(is_open(&admission), "h2 has refused the stream without room itself");
}

#[test]
fn turns_are_shorter_while_memory_is_short() {
    let account = account(100 * LARGEST_TURN);
    let admission = admission(&account);
    let _connections = account.take_for(Use::Connections, 100 * CONNECTION);
    assert_eq!(admission.turn(), LARGEST_TURN - CONNECTION);
    let _streams = account.take_for(Use::Streams, 50 * LARGEST_TURN);
    assert_eq!(admission.turn(), LARGEST_TURN / 2 - CONNECTION);
    let _more = account.take_for(Use::Streams, 35 * LARGEST_TURN);
    assert_eq!(admission.turn(), LEAST_TURN);
}
