//! Tests of the `dns` resolver with name servers and gateways that do not support today's standards.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use hickory_proto::op::ResponseCode;

use super::{
    dns::{dns, identities, poll, some},
    server::{Machine, Manner, NXDOMAIN, Reply, SERVFAIL, Server, addresses},
};
use crate::{
    discovery::{IpFamily, dns::Dns, metrics::Meters},
    telemetry::logs::captured,
};

const NAME: &str = "tail.test.";

fn many(count: u16) -> Vec<IpAddr> {
    let ip = |n: u16| Ipv4Addr::new(10, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]).into();
    (0..count).map(ip).collect()
}

/// Returns a resolver with this timeout.
fn within(machine: &Machine, timeout: Duration) -> Dns {
    Dns::new(NAME, Some(4317), IpFamily::Ipv4, machine.system_with(timeout), Meters::silent(), "tail")
}

#[tokio::test]
async fn a_server_that_refuses_edns_is_asked_without_it() {
    let codes = [ResponseCode::FormErr, ResponseCode::NotImp, ResponseCode::ServFail, ResponseCode::BADVERS];
    for code in codes {
        let machine = Machine::start().await;
        machine.server.manner(Manner::RefusesEdns(code));
        machine.server.v4(NAME, addresses(&["10.0.0.1"]));
        let mut dns = dns(&machine, NAME, IpFamily::Ipv4);
        assert_eq!(poll(&mut dns).await, some("10.0.0.1:4317"), "{code}");
        machine.server.v4(NAME, addresses(&["10.0.0.2"]));
        assert_eq!(poll(&mut dns).await, some("10.0.0.2:4317"), "{code}");
    }
}

#[tokio::test]
async fn a_server_that_drops_edns_is_asked_without_it_within_the_timeout_and_at_once_afterwards() {
    let machine = Machine::start().await;
    machine.server.manner(Manner::DropsEdns);
    machine.server.v4(NAME, addresses(&["10.0.0.1"]));
    let mut dns = within(&machine, Duration::from_secs(4));
    assert_eq!(poll(&mut dns).await, some("10.0.0.1:4317"));
    // A new resolver: it tries EDNS first, and remembers that the server does not reply to it.
    let mut dns = within(&machine, Duration::from_secs(4));
    assert_eq!(poll(&mut dns).await, some("10.0.0.1:4317"));
    machine.server.v4(NAME, addresses(&["10.0.0.2"]));
    let before = tokio::time::Instant::now();
    assert_eq!(poll(&mut dns).await, some("10.0.0.2:4317"));
    assert!(before.elapsed() < Duration::from_secs(1), "EDNS must not be tried first");
}

#[tokio::test]
async fn a_long_reply_of_a_server_without_edns_is_fetched_over_tcp() {
    let machine = Machine::start().await;
    machine.server.manner(Manner::RefusesEdns(ResponseCode::FormErr));
    machine.server.v4(NAME, Reply::BySize(many(500)));
    let mut dns = dns(&machine, NAME, IpFamily::Ipv4);
    assert_eq!(dns.poll_once().await.unwrap().len(), 500);
}

#[tokio::test]
async fn five_hundred_records_are_received_even_if_tcp_is_refused() {
    let machine = Machine::with(Server::start_without_tcp().await);
    machine.server.v4(NAME, Reply::BySize(many(500)));
    let mut dns = dns(&machine, NAME, IpFamily::Ipv4);
    assert_eq!(dns.poll_once().await.unwrap().len(), 500);
}

#[tokio::test]
async fn a_truncated_reply_without_tcp_is_a_failure_and_not_a_smaller_set() {
    let machine = Machine::with(Server::start_without_tcp().await);
    machine.server.v4(NAME, Reply::BySize(many(3)));
    let mut dns = dns(&machine, NAME, IpFamily::Ipv4);
    assert_eq!(poll(&mut dns).await, some("10.0.0.0:4317 10.0.0.1:4317 10.0.0.2:4317"));
    machine.server.v4(NAME, Reply::OverTcp(many(3)));
    assert_eq!(poll(&mut dns).await, None);
    let error = dns.ask_once().await.unwrap_err().to_string();
    assert!(error.contains("the reply over UDP is truncated, and over TCP there is none: no connection"), "{error}");
}

#[tokio::test]
async fn a_name_in_other_letters_is_the_same_name() {
    let machine = Machine::start().await;
    machine.server.manner(Manner::Capitals);
    machine.server.v4(NAME, addresses(&["10.0.0.1"]));
    assert_eq!(poll(&mut dns(&machine, NAME, IpFamily::Ipv4)).await, some("10.0.0.1:4317"));
}

#[tokio::test]
async fn an_alias_that_the_server_does_not_follow_is_followed() {
    let machine = Machine::start().await;
    machine.server.v4(NAME, Reply::AliasOnly("real.test."));
    machine.server.v4("real.test.", addresses(&["10.0.0.1"]));
    let mut dns = dns(&machine, NAME, IpFamily::Ipv4);
    assert_eq!(poll(&mut dns).await, some("10.0.0.1:4317"));
    machine.server.v4("real.test.", Reply::AliasOnly(NAME));
    assert_eq!(poll(&mut dns).await, None, "a loop of aliases must end");
    assert!(dns.is_failing());
}

#[tokio::test]
async fn a_referral_is_not_an_answer() {
    let machine = Machine::start().await;
    let other = Server::start(Ipv4Addr::new(127, 0, 0, 2), machine.server.at.port()).await;
    machine.resolv_conf("nameserver 127.0.0.1\nnameserver 127.0.0.2\n");
    machine.server.v4(NAME, Reply::Referral);
    other.v4(NAME, addresses(&["10.0.0.1"]));
    assert_eq!(poll(&mut dns(&machine, NAME, IpFamily::Ipv4)).await, some("10.0.0.1:4317"));
}

#[tokio::test]
async fn use_vc_asks_over_tcp_only() {
    let machine = Machine::start().await;
    machine.resolv_conf("nameserver 127.0.0.1\noptions use-vc\n");
    machine.server.v4(NAME, addresses(&["10.0.0.1"]));
    assert_eq!(poll(&mut dns(&machine, NAME, IpFamily::Ipv4)).await, some("10.0.0.1:4317"));
    assert_eq!(machine.server.asked(), ["tail.test. A tcp"]);
}

#[tokio::test]
async fn unusable_lines_of_resolv_conf_do_not_affect_the_others() {
    let machine = Machine::start().await;
    let bad = format!("search {}.test obs.test\nnameserver dns.example\nnameserver 127.0.0.1\n", "x".repeat(64));
    machine.resolv_conf(&bad);
    machine.server.v4("tail.obs.test.", addresses(&["10.0.0.1"]));
    let mut dns = dns(&machine, "tail", IpFamily::Ipv4);
    assert_eq!(poll(&mut dns).await, some("10.0.0.1:4317"), "the valid domain and server must be used");
}

#[test]
fn unusable_entries_of_resolv_conf_and_the_fallback_server_are_logged_once() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let machine = runtime.block_on(Machine::start());
    machine.resolv_conf("search a..b\n");
    let mut system = machine.system();
    let log = captured(|| (0..3).for_each(|_| system.refresh()));
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines.len(), 2, "{log}");
    assert!(
        lines[0].contains(" WARN ") && lines[0].contains("line 1: search domain \"a..b\": it is not a domain"),
        "{log}"
    );
    assert!(lines[1].contains(" WARN ") && lines[1].contains("127.0.0.1"), "{log}");
}

#[tokio::test]
async fn failures_of_old_servers_without_edns_are_still_failures() {
    let machine = Machine::start().await;
    machine.server.manner(Manner::RefusesEdns(ResponseCode::FormErr));
    for bad in [NXDOMAIN, SERVFAIL, Reply::NoData] {
        machine.server.v4(NAME, bad.clone());
        let mut dns = dns(&machine, NAME, IpFamily::Ipv4);
        assert_eq!(poll(&mut dns).await, None, "{bad:?}");
        assert!(dns.is_failing());
    }
    machine.server.v4(NAME, addresses(&["10.0.0.1"]));
    let endpoints = dns(&machine, NAME, IpFamily::Ipv4).poll_once().await.unwrap();
    assert_eq!(identities(&endpoints), ["10.0.0.1:4317"]);
}
