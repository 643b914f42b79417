//! Tests of how resolvers replace each other: which one publishes, and with which access.

use std::{net::SocketAddr, time::Duration};

use super::{
    backends,
    server::{Machine, SERVFAIL, addresses},
};
use crate::{
    access::Access,
    discovery::{
        Config, IpFamily, Resolvers,
        fixed::{self, Fixed},
        metrics::Meters,
    },
    endpoint::{Endpoint, EndpointsReceiver},
    lifecycle::Tasks,
    settings::{DnsResolver, SrvResolver},
    telemetry::Recorder,
};

fn access() -> Access {
    Access::new("tail", None, Vec::new())
}

fn found(host: &str) -> [Endpoint; 1] {
    [Endpoint::new(host, Some(SocketAddr::from(([127, 0, 0, 1], 1))))]
}

/// Returns the identity and the access of the only member that is published.
fn in_force(receiver: &EndpointsReceiver) -> (String, Access) {
    let set = receiver.borrow().clone().expect("a set must be published");
    (set[0].identity.to_string(), set[0].access.clone())
}

#[test]
fn a_resolver_takes_over_with_its_first_answer_and_its_access() {
    let pending = |recorder: &Recorder| recorder.render().contains("change_pending{pool=\"tail\"} 1\n");
    Recorder::scoped(|recorder| {
        let (resolvers, receiver) = Resolvers::new("tail");
        let [first, second, third] = [access(), access(), access()];
        let [one, two, three] = [Tasks::new(), Tasks::new(), Tasks::new()];
        let earlier = resolvers.register(first.clone(), one.clone());
        assert!(!earlier.is_next() && !pending(recorder), "the first resolver must be active at once");
        earlier.publish(&found("a"));
        let second_publisher = resolvers.register(second, two.clone());
        assert!(second_publisher.is_next() && pending(recorder));
        earlier.publish(&found("b"));
        assert_eq!(in_force(&receiver), ("b".to_owned(), first), "the active resolver must continue");
        let later = resolvers.register(third.clone(), three);
        assert!(two.is_stopped() && !one.is_stopped(), "only the resolver that never took over must be stopped");
        second_publisher.publish(&found("x"));
        assert_eq!(in_force(&receiver).0, "b", "a stopped resolver must be ignored");
        later.publish(&found("c"));
        assert!(one.is_stopped() && !pending(recorder));
        earlier.publish(&found("d"));
        assert_eq!(in_force(&receiver), ("c".to_owned(), third), "a replaced resolver must be ignored");
    });
}

#[test]
fn a_new_access_applies_to_the_members_of_the_newest_configuration() {
    let (resolvers, receiver) = Resolvers::new("tail");
    let [first, second, third] = [access(), access(), access()];
    let one = resolvers.register(first, Tasks::new());
    one.publish(&found("a"));
    resolvers.set_access(second.clone());
    assert_eq!(in_force(&receiver), ("a".to_owned(), second.clone()), "the same members must get the new access");
    let other = resolvers.register(access(), Tasks::new());
    resolvers.set_access(third.clone());
    assert_eq!(in_force(&receiver), ("a".to_owned(), second), "the access is for members that are not known yet");
    other.publish(&found("b"));
    assert_eq!(in_force(&receiver), ("b".to_owned(), third));
}

#[test]
fn a_resolver_that_has_published_nothing_is_replaced_at_once() {
    let (resolvers, receiver) = Resolvers::new("tail");
    let (one, access) = (Tasks::new(), access());
    drop(resolvers.register(Access::default(), one.clone()));
    let next = resolvers.register(access.clone(), Tasks::new());
    assert!(one.is_stopped() && !next.is_next());
    next.publish(&found("a"));
    assert_eq!(in_force(&receiver), ("a".to_owned(), access));
}

#[tokio::test]
async fn static_names_replace_a_set_once_enough_of_them_resolve() {
    let machine = Machine::start().await;
    let names = backends(["a.test", "b.test", "10.0.0.1"]);
    let mut fixed = Fixed::new(fixed::entries(&names).unwrap(), machine.system(), Meters::silent(), "tail");
    assert!(fixed.replacement(0).is_none() && fixed.replacement(2).is_none(), "one of three is too few");
    machine.server.v4("a.test.", addresses(&["10.0.0.2"]));
    machine.server.v4("b.test.", SERVFAIL);
    fixed.poll_once().await;
    assert!(fixed.replacement(1).is_none(), "the third may be slow");
    assert!(fixed.replacement(2).is_some(), "one that does not resolve must not hold up the others");
    machine.server.v4("b.test.", addresses(&["10.0.0.3"]));
    fixed.poll_once().await;
    assert!(fixed.replacement(1).is_some_and(|set| set.iter().all(|endpoint| endpoint.address.is_some())));
    let only_addresses = backends(["10.0.0.1", "10.0.0.2"]);
    let fixed = Fixed::new(fixed::entries(&only_addresses).unwrap(), machine.system(), Meters::silent(), "tail");
    assert!(fixed.replacement(0).is_some(), "addresses have nothing to wait for");
}

fn asking(hostname: &str, seconds: u64) -> Config {
    let interval = Duration::from_secs(seconds);
    Config::Dns(DnsResolver { hostname: hostname.to_owned(), interval, ..DnsResolver::default() })
}

#[test]
fn a_resolver_that_asks_the_same_goes_on_with_the_new_interval_and_access() {
    let (resolvers, receiver) = Resolvers::new("tail");
    let [first, second, third] = [access(), access(), access()];
    let publisher = resolvers.register(first, Tasks::new());
    let configs = publisher.follow(&asking("a.test", 5));
    publisher.publish(&found("a"));
    assert!(resolvers.adjust(&asking("a.test", 9), &second));
    assert_eq!(
        (configs.borrow().clone(), in_force(&receiver)),
        (asking("a.test", 9), ("a".to_owned(), second.clone()))
    );
    assert!(!resolvers.adjust(&asking("b.test", 9), &third), "another name");
    let family = DnsResolver { hostname: "a.test".to_owned(), ip_family: IpFamily::Both, ..DnsResolver::default() };
    assert!(!resolvers.adjust(&Config::Dns(family), &third), "other records");
    assert!(
        !resolvers
            .adjust(&Config::Srv(SrvResolver { hostname: "a.test".to_owned(), ..SrvResolver::default() }), &third)
    );
    assert_eq!(in_force(&receiver).1, second);
    // While another one waits for its first answer, both can be adjusted: the waiting one goes on to wait …
    let waiting = Tasks::new();
    let other = resolvers.register(access(), waiting.clone());
    let others = other.follow(&asking("b.test", 5));
    assert!(resolvers.adjust(&asking("b.test", 7), &third));
    assert_eq!((others.borrow().clone(), in_force(&receiver).1), (asking("b.test", 7), second));
    // … and the one in use makes it needless.
    assert!(!waiting.is_stopped() && resolvers.adjust(&asking("a.test", 3), &third) && waiting.is_stopped());
    assert_eq!((configs.borrow().clone(), in_force(&receiver).1), (asking("a.test", 3), third));
    other.publish(&found("b"));
    assert_eq!(in_force(&receiver).0, "a");
}
