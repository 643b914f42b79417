//! Tests of the `dns` resolver: how each kind of answer changes the set.

use std::{net::Ipv4Addr, time::Duration};

use super::server::{Machine, NXDOMAIN, REFUSED, Reply, SERVFAIL, Server, addresses};
use crate::{
    discovery::{
        Config, DiscoveryError, Endpoints, IpFamily, dns::Dns, known::DOUBTED_FOR, metrics::Meters, resolve_once_on,
        srv::Srv,
    },
    endpoint::Endpoint,
};

const NAME: &str = "tail.test.";

/// A short timeout for questions that get no reply.
const SHORT: Duration = Duration::from_millis(300);

pub(super) fn dns(machine: &Machine, hostname: &str, family: IpFamily) -> Dns {
    with_port(machine, hostname, Some(4317), family)
}

fn with_port(machine: &Machine, hostname: &str, port: Option<u16>, family: IpFamily) -> Dns {
    Dns::new(hostname, port, family, machine.system(), Meters::silent(), "tail")
}

pub(super) fn identities(endpoints: &Endpoints) -> Vec<&str> {
    endpoints.iter().filter(|endpoint| !endpoint.is_missing).map(|endpoint| &*endpoint.identity).collect()
}

/// Asks once. Returns the identities, without those that are missing, if the set changed.
pub(super) async fn poll(dns: &mut Dns) -> Option<String> {
    dns.poll_once().await.map(|endpoints| identities(&endpoints).join(" "))
}

/// Asks once. Returns `identity=address` of all backends that are not missing if the set changed.
pub(super) async fn poll_srv(srv: &mut Srv) -> Option<String> {
    let endpoints = srv.poll_once().await?;
    let text = |endpoint: &Endpoint| match endpoint.address {
        Some(address) => format!("{}={address}", endpoint.identity),
        None => format!("{}=?", endpoint.identity),
    };
    let there = endpoints.iter().filter(|endpoint| !endpoint.is_missing);
    Some(there.map(text).collect::<Vec<_>>().join(" "))
}

pub(super) fn some(identities: &str) -> Option<String> {
    Some(identities.to_owned())
}

#[tokio::test]
async fn records_become_backends_sorted_by_identity() {
    let machine = Machine::start().await;
    machine.server.v4(NAME, addresses(&["10.0.0.9", "10.0.0.10", "10.0.0.9"]));
    let mut dns = dns(&machine, NAME, IpFamily::Ipv4);
    let endpoints = dns.poll_once().await.unwrap();
    assert_eq!(identities(&endpoints), ["10.0.0.10:4317", "10.0.0.9:4317"]);
    for endpoint in &*endpoints {
        assert_eq!(endpoint.address, endpoint.identity.parse().ok(), "identity and address must be the same");
        assert_eq!(endpoint.weight, 1);
    }
}

#[tokio::test]
async fn another_order_of_the_same_records_is_no_change() {
    let machine = Machine::start().await;
    machine.server.v4(NAME, addresses(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]));
    let mut dns = dns(&machine, NAME, IpFamily::Auto);
    assert!(poll(&mut dns).await.is_some());
    machine.server.v4(NAME, addresses(&["10.0.0.3", "10.0.0.1", "10.0.0.2"]));
    assert_eq!(poll(&mut dns).await, None);
    machine.server.v4(NAME, addresses(&["10.0.0.3", "10.0.0.1"]));
    assert_eq!(poll(&mut dns).await, some("10.0.0.1:4317 10.0.0.3:4317"));
}

#[tokio::test]
async fn fault_14_15_no_bad_answer_changes_the_set_and_the_next_good_one_does() {
    let machine = Machine::start().await;
    let unknown = Reply::Code(hickory_proto::op::ResponseCode::NotImp);
    let strangers = Reply::Mixed(vec![], vec!["10.6.6.6".parse().unwrap()]);
    for bad in [NXDOMAIN, Reply::NoData, SERVFAIL, REFUSED, unknown, strangers] {
        machine.server.v4(NAME, addresses(&["10.0.0.1"]));
        let mut dns = dns(&machine, NAME, IpFamily::Auto);
        assert_eq!(poll(&mut dns).await, some("10.0.0.1:4317"));
        machine.server.v4(NAME, bad.clone());
        for _ in 0..3 {
            assert_eq!(poll(&mut dns).await, None, "{bad:?}");
            assert!(dns.is_failing(), "{bad:?}");
        }
        machine.server.v4(NAME, addresses(&["10.0.0.2"]));
        assert_eq!(poll(&mut dns).await, some("10.0.0.2:4317"), "{bad:?}");
        assert!(!dns.is_failing());
    }
}

#[tokio::test]
async fn fault_14_silence_ends_with_our_timeout_and_keeps_the_set() {
    let machine = Machine::start().await;
    machine.server.v4(NAME, addresses(&["10.0.0.1"]));
    let system = machine.system_with(SHORT);
    let mut dns = Dns::new(NAME, Some(4317), IpFamily::Ipv4, system, Meters::silent(), "tail");
    while poll(&mut dns).await.is_none() {}
    machine.server.v4(NAME, Reply::Silence);
    let before = tokio::time::Instant::now();
    assert_eq!(poll(&mut dns).await, None);
    assert!(dns.is_failing());
    assert!(before.elapsed() >= SHORT && before.elapsed() < SHORT * 10, "one timeout, not one a retry");
}

#[tokio::test]
async fn fault_16_a_truncated_answer_is_asked_for_over_tcp() {
    let machine = Machine::start().await;
    let many = (0..250).map(|last| Ipv4Addr::new(10, 0, 0, last).into()).collect();
    machine.server.v4(NAME, Reply::OverTcp(many));
    let mut dns = dns(&machine, NAME, IpFamily::Ipv4);
    assert_eq!(dns.poll_once().await.unwrap().len(), 250);
    assert_eq!(machine.server.asked(), ["tail.test. A", "tail.test. A tcp"]);
    assert_eq!(poll(&mut dns).await, None);
    assert!(!dns.is_failing());
}

#[tokio::test]
async fn fault_17_every_round_asks_once_regardless_of_the_ttl() {
    let machine = Machine::start().await;
    for ttl in [0, u32::MAX] {
        machine.server.v4(NAME, Reply::Addresses(vec!["10.0.0.1".parse().unwrap()], ttl));
        let mut dns = dns(&machine, NAME, IpFamily::Auto);
        for _ in 0..3 {
            poll(&mut dns).await;
            let mut asked = machine.server.asked();
            asked.sort();
            assert_eq!(asked, ["tail.test. A", "tail.test. AAAA"], "ttl {ttl}");
        }
    }
}

#[tokio::test]
async fn fault_19_each_family_fails_alone() {
    let machine = Machine::start().await;
    let server = &machine.server;
    server.v4(NAME, addresses(&["10.0.0.1"]));
    server.v6(NAME, addresses(&["fd00::1"]));
    let mut both = dns(&machine, NAME, IpFamily::Both);
    let mut auto = dns(&machine, NAME, IpFamily::Auto);
    let mut six = dns(&machine, NAME, IpFamily::Ipv6);
    assert_eq!(poll(&mut both).await, some("10.0.0.1:4317 [fd00::1]:4317"));
    assert_eq!(poll(&mut auto).await, some("10.0.0.1:4317"));
    assert_eq!(poll(&mut six).await, some("[fd00::1]:4317"));

    server.v4(NAME, addresses(&["10.0.0.2"]));
    server.v6(NAME, SERVFAIL);
    assert_eq!(poll(&mut both).await, some("10.0.0.2:4317 [fd00::1]:4317"), "the last AAAA set stays");
    assert_eq!(poll(&mut auto).await, some("10.0.0.2:4317"));
    assert_eq!(poll(&mut six).await, None);
    assert!(both.is_failing() && six.is_failing() && !auto.is_failing(), "auto has A records and ignores AAAA");

    server.v4(NAME, REFUSED);
    server.v6(NAME, addresses(&["fd00::2"]));
    assert_eq!(poll(&mut both).await, some("10.0.0.2:4317 [fd00::2]:4317"), "the last A set stays");
    assert_eq!(poll(&mut auto).await, None, "the last A set stays, AAAA or not");
    assert_eq!(poll(&mut six).await, some("[fd00::2]:4317"));
    assert!(both.is_failing() && auto.is_failing() && !six.is_failing());
}

#[tokio::test]
async fn a_family_without_an_answer_does_not_block_the_other() {
    let machine = Machine::start().await;
    machine.server.v4(NAME, SERVFAIL);
    machine.server.v6(NAME, addresses(&["fd00::1"]));
    for (family, silent_rounds) in [(IpFamily::Auto, DOUBTED_FOR - 1), (IpFamily::Both, 0)] {
        let mut dns = dns(&machine, NAME, family);
        for _ in 0..silent_rounds {
            assert_eq!(poll(&mut dns).await, None, "{family:?}");
        }
        assert_eq!(poll(&mut dns).await, some("[fd00::1]:4317"), "{family:?}");
        assert!(dns.is_failing(), "{family:?}");
    }
}

#[tokio::test]
async fn a_lost_answer_about_a_records_decides_nothing() {
    let machine = Machine::start().await;
    machine.server.v4(NAME, Reply::Silence);
    machine.server.v6(NAME, addresses(&["fd00::1"]));
    let system = machine.system_with(SHORT);
    let mut dns = Dns::new(NAME, Some(4317), IpFamily::Auto, system, Meters::silent(), "tail");
    assert_eq!(poll(&mut dns).await, None, "the pool must not begin with AAAA records");
    machine.server.v4(NAME, addresses(&["10.0.0.1"]));
    while poll(&mut dns).await != some("10.0.0.1:4317") {}
    machine.server.v4(NAME, Reply::Silence);
    assert_eq!(poll(&mut dns).await, None, "the pool must not change to AAAA records");
}

#[tokio::test]
async fn random_parts_of_the_set_become_one_set_that_stays() {
    let machine = Machine::start().await;
    let mut dns = dns(&machine, NAME, IpFamily::Ipv4);
    let mut rng = fastrand::Rng::with_seed(3);
    let (mut early, mut late) = (0, 0);
    for round in 0..200 {
        let some: Vec<String> = rng.choose_multiple(1..=6, 3).iter().map(|n| format!("10.0.0.{n}")).collect();
        machine.server.v4(NAME, addresses(&some.iter().map(String::as_str).collect::<Vec<_>>()));
        let changed = u32::from(dns.poll_once().await.is_some());
        if round < 20 { early += changed } else { late += changed }
    }
    assert!(early <= 12 && late == 0, "changes of the ring: {early} in 20 rounds, then {late} in 180");
    assert_eq!(dns.ask_once().await.unwrap().len(), 6);
}

#[tokio::test]
async fn only_wanted_families_are_asked_for() {
    let machine = Machine::start().await;
    poll(&mut dns(&machine, NAME, IpFamily::Ipv4)).await;
    assert_eq!(machine.server.asked(), ["tail.test. A"]);
    poll(&mut dns(&machine, NAME, IpFamily::Ipv6)).await;
    assert_eq!(machine.server.asked(), ["tail.test. AAAA"]);
}

#[tokio::test]
async fn identities_are_canonical_and_unique_for_each_backend() {
    let machine = Machine::start().await;
    machine.server.v6(NAME, addresses(&["2001:db8:0:0:1:0:0:1", "::ffff:10.0.0.1", "fd00::1"]));
    machine.server.v4(NAME, addresses(&["10.0.0.1"]));
    let mut dns = dns(&machine, NAME, IpFamily::Both);
    assert_eq!(poll(&mut dns).await, some("10.0.0.1:4317 [2001:db8::1:0:0:1]:4317 [fd00::1]:4317"));
}

#[tokio::test]
async fn the_exporters_name_has_a_port_only_if_one_is_configured() {
    let machine = Machine::start().await;
    machine.server.v4(NAME, addresses(&["10.0.0.1"]));
    machine.server.v6(NAME, addresses(&["2001:db8:0:0:1:0:0:1", "::ffff:10.0.0.2"]));
    let identities = ["10.0.0.1:4317", "10.0.0.2:4317", "[2001:db8::1:0:0:1]:4317"];
    for (port, names) in
        [(Some(4317), [None; 3]), (None, [Some("10.0.0.1"), Some("10.0.0.2"), Some("[2001:db8::1:0:0:1]")])]
    {
        let endpoints = with_port(&machine, NAME, port, IpFamily::Both).poll_once().await.unwrap();
        assert_eq!(self::identities(&endpoints), identities, "the identity always has one");
        assert!(endpoints.iter().all(|endpoint| endpoint.address.is_some_and(|address| address.port() == 4317)));
        let exporter_names: Vec<Option<&str>> = endpoints.iter().map(|it| it.exporter_name.as_deref()).collect();
        assert_eq!(exporter_names, names);
    }
}

#[tokio::test]
async fn fault_20_unusable_addresses_and_records_of_other_names_are_not_backends() {
    let machine = Machine::start().await;
    machine.server.v4(NAME, addresses(&["0.0.0.0", "10.0.0.1", "224.0.0.1", "255.255.255.255"]));
    let mut dns = dns(&machine, NAME, IpFamily::Auto);
    assert_eq!(poll(&mut dns).await, some("10.0.0.1:4317"));
    machine.server.v4(NAME, Reply::Mixed(vec!["10.0.0.2".parse().unwrap()], vec!["10.6.6.6".parse().unwrap()]));
    assert_eq!(poll(&mut dns).await, some("10.0.0.2:4317"));
    machine.server.v4(NAME, addresses(&["0.0.0.0"]));
    assert_eq!(poll(&mut dns).await, None, "an answer without usable addresses must count as empty");
    assert!(dns.is_failing());
}

#[tokio::test]
async fn fault_20_aliases_are_followed_in_any_order_and_loops_end() {
    let machine = Machine::start().await;
    machine.server.v4(NAME, Reply::Alias("real.test.", vec!["10.0.0.1".parse().unwrap()]));
    let mut dns = dns(&machine, NAME, IpFamily::Ipv4);
    assert_eq!(poll(&mut dns).await, some("10.0.0.1:4317"));
    machine.server.v4(NAME, Reply::Alias(NAME, vec![]));
    assert_eq!(poll(&mut dns).await, None);
    assert!(dns.is_failing());
}

#[tokio::test]
async fn a_name_that_is_created_later_is_found() {
    let machine = Machine::start().await;
    let mut dns = dns(&machine, NAME, IpFamily::Auto);
    for _ in 0..3 {
        assert_eq!(poll(&mut dns).await, None);
        assert!(dns.is_failing());
    }
    machine.server.v4(NAME, addresses(&["10.0.0.1"]));
    assert_eq!(poll(&mut dns).await, some("10.0.0.1:4317"));
    assert!(!dns.is_failing());
}

#[tokio::test]
async fn fault_21_a_replaced_resolv_conf_is_taken_over_and_a_lost_one_is_not() {
    let machine = Machine::start().await;
    let other = Server::start(Ipv4Addr::new(127, 0, 0, 2), machine.server.at.port()).await;
    machine.server.v4(NAME, addresses(&["10.0.0.1"]));
    other.v4(NAME, addresses(&["10.0.0.2"]));
    let mut dns = dns(&machine, NAME, IpFamily::Ipv4);
    assert_eq!(poll(&mut dns).await, some("10.0.0.1:4317"));
    machine.resolv_conf("nameserver 127.0.0.2\n");
    assert_eq!(poll(&mut dns).await, some("10.0.0.2:4317"));
    for lost in ["", "search cluster.local\n", "\u{0}\u{ff}nonsense"] {
        machine.resolv_conf(lost);
        other.v4(NAME, addresses(&["10.0.0.3"]));
        poll(&mut dns).await;
        assert!(!dns.is_failing(), "{lost:?}");
    }
    std::fs::remove_file(machine.files.path().join("resolv.conf")).unwrap();
    other.v4(NAME, addresses(&["10.0.0.4"]));
    assert_eq!(poll(&mut dns).await, some("10.0.0.4:4317"));
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_fails_or_does_not_reply() {
    let machine = Machine::start().await;
    let other = Server::start(Ipv4Addr::new(127, 0, 0, 2), machine.server.at.port()).await;
    machine.resolv_conf("nameserver 127.0.0.1\nnameserver 127.0.0.2\n");
    other.v4(NAME, addresses(&["10.0.0.2"]));
    for bad in [SERVFAIL, REFUSED, Reply::Silence] {
        machine.server.v4(NAME, bad.clone());
        let system = machine.system_with(Duration::from_secs(2));
        let mut dns = Dns::new(NAME, Some(4317), IpFamily::Ipv4, system, Meters::silent(), "tail");
        assert_eq!(poll(&mut dns).await, some("10.0.0.2:4317"), "{bad:?}");
        assert!(!dns.is_failing());
    }
    other.v4(NAME, SERVFAIL);
    machine.server.v4(NAME, NXDOMAIN);
    let mut dns = dns(&machine, NAME, IpFamily::Ipv4);
    other.asked();
    assert_eq!(poll(&mut dns).await, None);
    assert!(other.asked().is_empty(), "NXDOMAIN is an answer, so no other server must be asked");
}

#[tokio::test]
async fn the_hosts_file_comes_first_and_is_read_again() {
    let machine = Machine::start().await;
    machine.server.v4(NAME, addresses(&["10.0.0.1"]));
    machine.server.v6(NAME, addresses(&["fd00::1"]));
    machine.hosts("127.0.0.7 Tail.test other # comment\n127.0.0.8 tail.test\n");
    let mut dns = dns(&machine, NAME, IpFamily::Both);
    assert_eq!(poll(&mut dns).await, some("127.0.0.7:4317 127.0.0.8:4317"), "nothing else must be asked");
    assert!(machine.server.asked().is_empty());
    machine.hosts("");
    assert_eq!(poll(&mut dns).await, some("10.0.0.1:4317 [fd00::1]:4317"));
}

#[tokio::test]
async fn asking_once_returns_a_complete_answer_or_the_reason() {
    let machine = Machine::start().await;
    let limit = Duration::from_secs(60);
    machine.server.v4(NAME, addresses(&["10.0.0.1"]));
    let endpoints = resolve_once_on(machine.system(), &Config::dns(NAME), limit).await.unwrap();
    assert_eq!(identities(&endpoints), ["10.0.0.1:4317"]);

    machine.server.v4(NAME, SERVFAIL);
    machine.server.v6(NAME, addresses(&["fd00::1"]));
    let error = resolve_once_on(machine.system(), &Config::dns(NAME), limit).await.unwrap_err();
    let expected = "cannot resolve \"tail.test.\": A: failure of the name server (SERVFAIL), AAAA: 1 addresses, \
                    asked for tail.test.";
    assert_eq!(error.to_string(), expected);

    machine.server.v4(NAME, Reply::Silence);
    let error = resolve_once_on(machine.system(), &Config::dns(NAME), SHORT).await.unwrap_err();
    assert!(matches!(error, DiscoveryError::Unresolved { .. }));
}
