//! Tests of the `srv` resolver: identities, addresses, weights, and answers that are not whole.

use std::net::{IpAddr, Ipv4Addr};

use super::{
    dns::{poll_srv as poll, some},
    server::{Machine, NXDOMAIN, Reply, SERVFAIL, Server, addresses},
};
use crate::{
    discovery::{Config, DiscoveryError, metrics::Meters, resolve_once_on, srv::Srv},
    settings::SrvResolver,
    telemetry::logs::captured,
};

const NAME: &str = "_otlp-grpc._tcp.c.test.";

fn srv(machine: &Machine) -> Srv {
    Srv::new(NAME, machine.system(), Meters::silent(), "tail")
}

/// Returns an answer with these targets (weight, name without its domain, address in the additional records).
fn pods(pods: &[(u16, &str, Option<&str>)]) -> Reply {
    let name = |pod: &str| format!("{pod}.c.test.");
    let services = pods.iter().map(|(weight, pod, _)| (*weight, 4317, name(pod))).collect();
    let additional = pods.iter().filter_map(|(_, pod, ip)| Some((name(pod), (*ip)?.parse().unwrap())));
    Reply::Services(services, additional.collect())
}

#[tokio::test]
async fn targets_are_backends_by_name_with_the_addresses_that_came_along() {
    let machine = Machine::start().await;
    machine.server.srv(NAME, pods(&[(50, "Pod-1", Some("10.0.0.2")), (50, "pod-0", Some("10.0.0.1"))]));
    let endpoints = srv(&machine).poll_once().await.unwrap();
    let all: Vec<_> = endpoints.iter().map(|it| (&*it.identity, it.address.unwrap().to_string(), it.weight)).collect();
    let first = ("pod-0.c.test:4317", "10.0.0.1:4317".to_owned(), 1);
    assert_eq!(all, [first, ("pod-1.c.test:4317", "10.0.0.2:4317".to_owned(), 1)]);
    assert!(endpoints.iter().all(|endpoint| endpoint.is_stable_name));
    assert_eq!(machine.server.asked(), ["_otlp-grpc._tcp.c.test. SRV"], "nothing else has to be asked");
}

#[tokio::test]
async fn a_restarted_target_has_another_address_and_the_same_identity() {
    let machine = Machine::start().await;
    machine.server.srv(NAME, pods(&[(50, "pod-0", Some("10.0.0.1")), (50, "pod-1", Some("10.0.0.2"))]));
    let mut srv = srv(&machine);
    poll(&mut srv).await;
    machine.server.srv(NAME, pods(&[(100, "pod-1", Some("10.0.0.2"))]));
    let left = srv.poll_once().await.unwrap();
    let [absent, there] = &left[..] else { panic!("{left:?}") };
    assert!(absent.is_missing && !there.is_missing);
    assert_eq!(there.weight, 1, "another weight for all is no change");
    machine.server.srv(NAME, pods(&[(50, "pod-0", Some("10.0.0.9")), (50, "pod-1", Some("10.0.0.2"))]));
    assert_eq!(poll(&mut srv).await, some("pod-0.c.test:4317=10.0.0.9:4317 pod-1.c.test:4317=10.0.0.2:4317"));
}

#[tokio::test]
async fn targets_without_additional_records_are_looked_up() {
    let machine = Machine::start().await;
    machine.server.srv(NAME, pods(&[(1, "pod-0", None), (1, "pod-1", Some("10.0.0.2")), (1, "pod-2", None)]));
    machine.server.v4("pod-0.c.test.", addresses(&["10.0.0.1"]));
    machine.server.v6("pod-0.c.test.", addresses(&["fd00::1"]));
    machine.server.v6("pod-2.c.test.", addresses(&["fd00::3"]));
    machine.server.v4("pod-2.c.test.", Reply::NoData);
    let mut srv = srv(&machine);
    let expected = "pod-0.c.test:4317=10.0.0.1:4317 pod-1.c.test:4317=10.0.0.2:4317 pod-2.c.test:4317=[fd00::3]:4317";
    assert_eq!(poll(&mut srv).await, some(expected));
    machine.server.v4("pod-0.c.test.", SERVFAIL);
    machine.server.v6("pod-0.c.test.", SERVFAIL);
    assert_eq!(poll(&mut srv).await, None, "a name that cannot be looked up keeps its address");
}

#[tokio::test]
async fn a_target_without_any_address_is_a_member() {
    let machine = Machine::start().await;
    machine.server.srv(NAME, pods(&[(1, "pod-0", None), (1, "pod-1", Some("10.0.0.2"))]));
    assert_eq!(poll(&mut srv(&machine)).await, some("pod-0.c.test:4317=? pod-1.c.test:4317=10.0.0.2:4317"));
}

#[tokio::test]
async fn bad_answers_change_nothing() {
    let machine = Machine::start().await;
    let mut srv = srv(&machine);
    assert_eq!(poll(&mut srv).await, None, "there is no such name");
    machine.server.srv(NAME, pods(&[(1, "pod-0", Some("10.0.0.1"))]));
    assert!(poll(&mut srv).await.is_some());
    let not_offered = Reply::Services(vec![(0, 0, ".".to_owned())], vec![]);
    for bad in [NXDOMAIN, SERVFAIL, Reply::NoData, Reply::Referral, not_offered] {
        machine.server.srv(NAME, bad.clone());
        assert_eq!(poll(&mut srv).await, None, "{bad:?}");
    }
    machine.server.srv(NAME, pods(&[(1, "pod-1", Some("10.0.0.1"))]));
    assert_eq!(poll(&mut srv).await, some("pod-1.c.test:4317=10.0.0.1:4317"));
}

#[tokio::test]
async fn an_alias_is_followed() {
    let machine = Machine::start().await;
    machine.server.alias(NAME, "_otlp-grpc._tcp.blue.test.");
    machine.server.alias("_otlp-grpc._tcp.blue.test.", "_otlp-grpc._tcp.green.test.");
    machine.server.srv("_otlp-grpc._tcp.green.test.", pods(&[(1, "pod-0", Some("10.0.0.1"))]));
    assert_eq!(poll(&mut srv(&machine)).await, some("pod-0.c.test:4317=10.0.0.1:4317"));
    machine.server.alias("_otlp-grpc._tcp.green.test.", "_otlp-grpc._tcp.c.test.");
    assert_eq!(poll(&mut srv(&machine)).await, None, "a circle ends");
}

#[tokio::test]
async fn five_hundred_targets_arrive_over_tcp() {
    let machine = Machine::start().await;
    let name = |n: u16| format!("pod-{n}.c.test.");
    let services = (0..500).map(|n| (0, 4317, name(n))).collect();
    let ip = |n: u16| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + u32::from(n) + 1));
    let additional = (0..500).map(|n| (name(n), ip(n))).collect();
    machine.server.srv(NAME, Reply::ServicesOverTcp(services, additional));
    let endpoints = srv(&machine).poll_once().await.unwrap();
    assert!(endpoints.len() == 500 && endpoints.iter().all(|it| it.weight == 1 && it.address.is_some()));
    assert_eq!(machine.server.asked(), [format!("{NAME} SRV"), format!("{NAME} SRV tcp")]);
}

#[tokio::test]
async fn a_changed_resolv_conf_is_taken_over() {
    let machine = Machine::start().await;
    let other = Server::start(Ipv4Addr::new(127, 0, 0, 2), machine.server.at.port()).await;
    machine.server.srv(NAME, pods(&[(1, "pod-0", Some("10.0.0.1"))]));
    other.srv(NAME, pods(&[(1, "pod-1", Some("10.0.0.2"))]));
    let mut srv = srv(&machine);
    assert_eq!(poll(&mut srv).await, some("pod-0.c.test:4317=10.0.0.1:4317"));
    machine.resolv_conf("nameserver 127.0.0.2\n");
    assert_eq!(poll(&mut srv).await, some("pod-1.c.test:4317=10.0.0.2:4317"));
}

#[tokio::test]
async fn a_relative_name_is_looked_up_in_the_search_list() {
    let machine = Machine::start().await;
    machine.resolv_conf("nameserver 127.0.0.1\nsearch svc.test\noptions ndots:5\n");
    machine.server.srv("_otlp._tcp.c.svc.test.", pods(&[(1, "pod-0", Some("10.0.0.1"))]));
    let mut srv = Srv::new("_otlp._tcp.c", machine.system(), Meters::silent(), "tail");
    assert_eq!(poll(&mut srv).await, some("pod-0.c.test:4317=10.0.0.1:4317"));
}

#[tokio::test]
async fn merged_targets_are_logged_once() {
    let machine = Machine::start().await;
    machine.server.srv(NAME, pods(&[(1, "pod-0", Some("10.0.0.1")), (1, "pod-1", Some("10.0.0.1"))]));
    let mut srv = srv(&machine);
    for _ in 0..2 {
        poll(&mut srv).await;
    }
    let log = captured(|| {
        let merged = || [std::sync::Arc::from("pod-1.c.test:4317")].into();
        srv.note_merged(merged());
        srv.note_merged([].into());
        srv.note_merged(merged());
        srv.note_merged(merged());
    });
    assert_eq!(log.matches("are one backend").count(), 1, "{log}");
}

#[tokio::test]
async fn the_tools_get_the_set_or_the_reason() {
    let machine = Machine::start().await;
    let config = Config::Srv(SrvResolver { hostname: NAME.to_owned(), ..SrvResolver::default() });
    let limit = std::time::Duration::from_secs(20);
    let error = resolve_once_on(machine.system(), &config, limit).await.unwrap_err();
    assert!(matches!(&error, DiscoveryError::Unresolved { .. }) && error.to_string().contains("SRV: no such name"));
    machine.server.srv(NAME, pods(&[(1, "pod-0", Some("10.0.0.1"))]));
    assert_eq!(resolve_once_on(machine.system(), &config, limit).await.unwrap().len(), 1);
    let bad = Config::Srv(SrvResolver { hostname: "a b".to_owned(), ..SrvResolver::default() });
    assert!(matches!(bad.check(), Err(DiscoveryError::Hostname { .. })));
}
