//! One resolver after another: who publishes, and by which access.

use std::net::SocketAddr;

use super::{
    backends,
    server::{Machine, SERVFAIL, addresses},
};
use crate::{
    access::Access,
    discovery::{
        Resolvers,
        fixed::{Fixed, parse},
        metrics::Meters,
    },
    endpoint::{Endpoint, EndpointsReceiver},
    lifecycle::Tasks,
    telemetry::Recorder,
};

fn access() -> Access {
    Access::new("tail", None, Vec::new())
}

fn found(host: &str) -> [Endpoint; 1] {
    [Endpoint::new(host, Some(SocketAddr::from(([127, 0, 0, 1], 1))))]
}

/// What is in force: the identity and the access of the only member.
fn in_force(receiver: &EndpointsReceiver) -> (String, Access) {
    let set = receiver.borrow().clone().expect("something is in force");
    (set[0].identity.to_string(), set[0].access.clone())
}

#[test]
fn a_resolver_takes_over_with_its_first_answer_and_brings_its_access() {
    let pending = |recorder: &Recorder| recorder.render().contains("change_pending{pool=\"tail\"} 1\n");
    Recorder::scoped(|recorder| {
        let (resolvers, receiver) = Resolvers::new("tail");
        let [first, second, third] = [access(), access(), access()];
        let [one, two, three] = [Tasks::new(), Tasks::new(), Tasks::new()];
        let earlier = resolvers.enter(first.clone(), one.clone());
        assert!(!earlier.is_next() && !pending(recorder), "nothing is in force that could be waited for");
        earlier.publish(&found("a"));
        let never = resolvers.enter(second, two.clone());
        assert!(never.is_next() && pending(recorder));
        earlier.publish(&found("b"));
        assert_eq!(in_force(&receiver), ("b".to_owned(), first), "the one before goes on until then");
        let later = resolvers.enter(third.clone(), three);
        assert!(two.is_stopped() && !one.is_stopped(), "who never took over is given up, and who is in force is not");
        never.publish(&found("x"));
        assert_eq!(in_force(&receiver).0, "b", "who was given up is not heard");
        later.publish(&found("c"));
        assert!(one.is_stopped() && !pending(recorder));
        earlier.publish(&found("d"));
        assert_eq!(in_force(&receiver), ("c".to_owned(), third), "who was relieved is not heard");
    });
}

#[test]
fn another_access_holds_for_what_the_newest_configuration_found() {
    let (resolvers, receiver) = Resolvers::new("tail");
    let [first, second, third] = [access(), access(), access()];
    let one = resolvers.enter(first, Tasks::new());
    one.publish(&found("a"));
    resolvers.speak_by(second.clone());
    assert_eq!(in_force(&receiver), ("a".to_owned(), second.clone()), "the same members, by the new access");
    let other = resolvers.enter(access(), Tasks::new());
    resolvers.speak_by(third.clone());
    assert_eq!(in_force(&receiver), ("a".to_owned(), second), "it is for those who are not known yet");
    other.publish(&found("b"));
    assert_eq!(in_force(&receiver), ("b".to_owned(), third));
}

#[test]
fn who_found_nobody_is_replaced_at_once_by_whoever_comes_next() {
    let (resolvers, receiver) = Resolvers::new("tail");
    let (one, access) = (Tasks::new(), access());
    drop(resolvers.enter(Access::default(), one.clone()));
    let next = resolvers.enter(access.clone(), Tasks::new());
    assert!(one.is_stopped() && !next.is_next());
    next.publish(&found("a"));
    assert_eq!(in_force(&receiver), ("a".to_owned(), access));
}

#[tokio::test]
async fn static_names_take_the_place_of_a_set_once_enough_of_them_resolve() {
    let machine = Machine::start().await;
    let names = backends(["a.test", "b.test", "10.0.0.1"]);
    let mut fixed = Fixed::new(parse(&names).unwrap(), machine.system(), Meters::silent(), "tail");
    assert!(fixed.instead(0).is_none() && fixed.instead(2).is_none(), "one of three is too few");
    machine.server.v4("a.test.", addresses(&["10.0.0.2"]));
    machine.server.v4("b.test.", SERVFAIL);
    fixed.poll_once().await;
    assert!(fixed.instead(1).is_none(), "the third may be slow");
    assert!(fixed.instead(2).is_some(), "one that does not resolve must not hold up the others");
    machine.server.v4("b.test.", addresses(&["10.0.0.3"]));
    fixed.poll_once().await;
    assert!(fixed.instead(1).is_some_and(|set| set.iter().all(|endpoint| endpoint.address.is_some())));
    let only_addresses = backends(["10.0.0.1", "10.0.0.2"]);
    let fixed = Fixed::new(parse(&only_addresses).unwrap(), machine.system(), Meters::silent(), "tail");
    assert!(fixed.instead(0).is_some(), "addresses have nothing to wait for");
}
