//! Tests of the search list: how the answers about each candidate name decide which one is used.

use std::time::Duration;

use super::{
    dns::{dns, poll, some},
    server::{Machine, NXDOMAIN, REFUSED, Reply, SERVFAIL, addresses},
};
use crate::discovery::{IpFamily, dns::Dns, metrics::Meters, search::GIVEN_UP_AFTER};

const KUBERNETES: &str = "nameserver 127.0.0.1\n\
    search default.svc.cluster.local svc.cluster.local cluster.local\n\
    options ndots:5\n";

/// The same search list with one more domain in front, whose name servers fail.
const ONE_MORE: &str = "nameserver 127.0.0.1\n\
    search corp.test default.svc.cluster.local svc.cluster.local cluster.local\n\
    options ndots:5\n";

fn all_bad() -> [Reply; 5] {
    [SERVFAIL, REFUSED, Reply::NoData, NXDOMAIN, Reply::Silence]
}

/// Returns a resolver with a short timeout.
fn soon(machine: &Machine, hostname: &str) -> Dns {
    let system = machine.system_with(Duration::from_millis(500));
    Dns::new(hostname, Some(4317), IpFamily::Ipv4, system, Meters::silent(), "tail")
}

#[tokio::test]
async fn a_search_domain_that_fails_does_not_end_the_search() {
    let machine = Machine::start().await;
    machine.resolv_conf(ONE_MORE);
    machine.server.v4("tail.obs.", addresses(&["10.0.0.1"]));
    for bad in all_bad() {
        machine.server.v4("tail.obs.corp.test.", bad.clone());
        let mut dns = soon(&machine, "tail.obs");
        assert_eq!(poll(&mut dns).await, some("10.0.0.1:4317"), "the name as it is, after {bad:?}");
        assert!(!dns.is_failing(), "{bad:?}");
    }
}

#[tokio::test]
async fn a_name_that_fails_itself_does_not_end_the_search_either() {
    let machine = Machine::start().await;
    machine.resolv_conf("nameserver 127.0.0.1\nsearch cluster.local\n");
    machine.server.v4("tail.obs.cluster.local.", addresses(&["10.0.0.1"]));
    for bad in all_bad() {
        machine.server.v4("tail.obs.", bad.clone());
        assert_eq!(poll(&mut soon(&machine, "tail.obs")).await, some("10.0.0.1:4317"), "ndots:1, and then {bad:?}");
    }
}

#[tokio::test]
async fn the_worst_answer_is_reported_if_no_name_has_an_address() {
    let machine = Machine::start().await;
    machine.resolv_conf(KUBERNETES);
    let reason =
        async |machine: &Machine| dns(machine, "tail", IpFamily::Ipv4).ask_once().await.unwrap_err().to_string();
    let nowhere = "cannot resolve \"tail\": A: no such name (NXDOMAIN), asked for tail.default.svc.cluster.local.";
    assert_eq!(reason(&machine).await, nowhere);
    machine.server.v4("tail.cluster.local.", Reply::NoData);
    let empty = "cannot resolve \"tail\": A: no record, asked for tail.cluster.local.";
    assert_eq!(reason(&machine).await, empty, "a name that exists is more than one that does not");
    machine.server.v4("tail.svc.cluster.local.", SERVFAIL);
    let failed = "cannot resolve \"tail\": A: failure of the name server (SERVFAIL), asked for tail.svc.cluster.local.";
    assert_eq!(reason(&machine).await, failed, "one that fails may well exist");
}

#[tokio::test]
async fn a_name_that_had_addresses_is_kept_while_it_fails_and_no_other_is_asked_for() {
    let machine = Machine::start().await;
    machine.resolv_conf(KUBERNETES);
    machine.server.v4("tail.obs.svc.cluster.local.", addresses(&["10.0.0.1"]));
    machine.server.v4("tail.obs.", addresses(&["10.6.6.6"]));
    let mut dns = soon(&machine, "tail.obs");
    assert_eq!(poll(&mut dns).await, some("10.0.0.1:4317"));
    machine.server.asked();
    for bad in [SERVFAIL, REFUSED, Reply::Silence] {
        machine.server.v4("tail.obs.svc.cluster.local.", bad.clone());
        for _ in 0..2 {
            assert_eq!(poll(&mut dns).await, None, "{bad:?}");
            assert!(dns.is_failing(), "{bad:?}");
        }
    }
    let asked = machine.server.asked();
    assert!(asked.iter().all(|question| question == "tail.obs.svc.cluster.local. A"), "{asked:?}");
    machine.server.v4("tail.obs.svc.cluster.local.", addresses(&["10.0.0.2"]));
    assert_eq!(poll(&mut dns).await, some("10.0.0.2:4317"));
}

#[tokio::test]
async fn a_name_without_addresses_for_long_is_replaced_by_another_of_the_list() {
    let machine = Machine::start().await;
    machine.resolv_conf(KUBERNETES);
    for gone in [NXDOMAIN, Reply::NoData] {
        machine.server.v4("tail.obs.svc.cluster.local.", addresses(&["10.0.0.1"]));
        machine.server.v4("tail.obs.", addresses(&["10.0.0.2"]));
        let mut dns = dns(&machine, "tail.obs", IpFamily::Ipv4);
        assert_eq!(poll(&mut dns).await, some("10.0.0.1:4317"));
        machine.server.v4("tail.obs.svc.cluster.local.", gone.clone());
        for _ in 1..GIVEN_UP_AFTER {
            assert_eq!(poll(&mut dns).await, None, "{gone:?}");
        }
        machine.server.v4("tail.obs.svc.cluster.local.", SERVFAIL);
        assert_eq!(poll(&mut dns).await, None, "a failure in between starts the count again");
        machine.server.v4("tail.obs.svc.cluster.local.", gone.clone());
        for _ in 1..GIVEN_UP_AFTER {
            assert_eq!(poll(&mut dns).await, None, "{gone:?}");
        }
        assert_eq!(poll(&mut dns).await, some("10.0.0.2:4317"), "{gone:?}");
        machine.server.v4("tail.obs.svc.cluster.local.", addresses(&["10.0.0.3"]));
        assert_eq!(poll(&mut dns).await, None, "the new name must be kept");
    }
}

#[tokio::test]
async fn a_name_that_is_gone_while_no_other_has_an_address_is_kept() {
    let machine = Machine::start().await;
    machine.resolv_conf(KUBERNETES);
    machine.server.v4("tail.svc.cluster.local.", addresses(&["10.0.0.1"]));
    let mut dns = dns(&machine, "tail", IpFamily::Ipv4);
    assert_eq!(poll(&mut dns).await, some("10.0.0.1:4317"));
    machine.server.v4("tail.svc.cluster.local.", NXDOMAIN);
    for _ in 0..2 * GIVEN_UP_AFTER {
        assert_eq!(poll(&mut dns).await, None);
    }
    machine.server.v4("tail.svc.cluster.local.", addresses(&["10.0.0.2"]));
    assert_eq!(poll(&mut dns).await, some("10.0.0.2:4317"));
}

#[tokio::test]
async fn an_earlier_name_that_failed_at_the_start_takes_its_place_once_it_answers() {
    let machine = Machine::start().await;
    machine.resolv_conf(KUBERNETES);
    machine.server.v4("tail.obs.svc.cluster.local.", SERVFAIL);
    machine.server.v4("tail.obs.", addresses(&["10.6.6.6"]));
    let mut dns = dns(&machine, "tail.obs", IpFamily::Ipv4);
    assert_eq!(poll(&mut dns).await, some("10.6.6.6:4317"));
    machine.server.v4("tail.obs.svc.cluster.local.", addresses(&["10.0.0.1"]));
    assert_eq!(poll(&mut dns).await, some("10.0.0.1:4317"), "the earlier name must be used");
    machine.server.v4("tail.obs.svc.cluster.local.", SERVFAIL);
    assert_eq!(poll(&mut dns).await, None, "it must be kept from then on");
}

#[tokio::test]
async fn a_name_that_is_not_in_a_changed_search_list_is_dropped() {
    let machine = Machine::start().await;
    machine.resolv_conf("nameserver 127.0.0.1\nsearch a.test\n");
    machine.server.v4("tail.a.test.", addresses(&["10.0.0.1"]));
    machine.server.v4("tail.b.test.", addresses(&["10.0.0.2"]));
    let mut dns = dns(&machine, "tail", IpFamily::Ipv4);
    assert_eq!(poll(&mut dns).await, some("10.0.0.1:4317"));
    machine.resolv_conf("nameserver 127.0.0.1\nsearch b.test\n");
    assert_eq!(poll(&mut dns).await, some("10.0.0.2:4317"));
}

#[tokio::test]
async fn both_families_use_the_same_name_even_if_one_has_no_records() {
    let machine = Machine::start().await;
    machine.resolv_conf(KUBERNETES);
    machine.server.v4("tail.default.svc.cluster.local.", addresses(&["10.0.0.1"]));
    machine.server.v6("tail.svc.cluster.local.", addresses(&["fd00::bad"]));
    assert_eq!(poll(&mut dns(&machine, "tail", IpFamily::Both)).await, some("10.0.0.1:4317"));
}

#[tokio::test]
async fn names_with_enough_dots_are_asked_for_as_they_are_first() {
    let machine = Machine::start().await;
    machine.resolv_conf("nameserver 127.0.0.1\nsearch cluster.local\noptions ndots:1\n");
    poll(&mut dns(&machine, "tail", IpFamily::Ipv4)).await;
    assert_eq!(machine.server.asked(), ["tail.cluster.local. A", "tail. A"]);
    machine.server.v4("tail.obs.", addresses(&["10.0.0.1"]));
    machine.server.v4("tail.obs.cluster.local.", addresses(&["10.6.6.6"]));
    assert_eq!(poll(&mut dns(&machine, "tail.obs", IpFamily::Ipv4)).await, some("10.0.0.1:4317"));
    assert_eq!(machine.server.asked(), ["tail.obs. A"]);
}

#[tokio::test]
async fn a_name_with_a_dot_at_the_end_is_the_only_candidate() {
    let machine = Machine::start().await;
    machine.resolv_conf(KUBERNETES);
    machine.server.v4("tail.obs.default.svc.cluster.local.", addresses(&["10.6.6.6"]));
    machine.server.v4("tail.obs.", addresses(&["10.0.0.1"]));
    assert_eq!(poll(&mut dns(&machine, "tail.obs.", IpFamily::Ipv4)).await, some("10.0.0.1:4317"));
    assert_eq!(machine.server.asked(), ["tail.obs. A"]);
}
