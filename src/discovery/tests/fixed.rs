//! Tests of the `static` resolver: entries stay members whatever the name servers answer.

use super::{
    backends,
    server::{Machine, NXDOMAIN, SERVFAIL, addresses},
};
use crate::{
    discovery::{
        AddressError, Config, DiscoveryError, Endpoints, TimeError,
        fixed::{self, Fixed},
        metrics::Meters,
        resolve_once_on,
    },
    settings::DnsResolver,
};

fn fixed(machine: &Machine, hostnames: &[&str]) -> Fixed {
    Fixed::new(
        fixed::entries(&backends(hostnames.iter().copied())).unwrap(),
        machine.system(),
        Meters::silent(),
        "tail",
    )
}

/// Formats each endpoint as `identity=address`.
fn shown(endpoints: &Endpoints) -> Vec<String> {
    let address = |address: Option<std::net::SocketAddr>| address.map_or("?".to_owned(), |known| known.to_string());
    endpoints.iter().map(|endpoint| format!("{}={}", endpoint.identity, address(endpoint.address))).collect()
}

#[tokio::test]
async fn entries_are_sorted_and_each_counts_once() {
    let machine = Machine::start().await;
    let entries = ["b.test", "[FD00:0::1]:4317", "10.0.0.1", "a.test:14317", "10.0.0.1:4317", "[fd00::1]"];
    let fixed = fixed(&machine, &entries);
    let expected = ["10.0.0.1:4317=10.0.0.1:4317", "[fd00::1]:4317=[fd00::1]:4317", "a.test:14317=?", "b.test:4317=?"];
    assert_eq!(shown(&fixed.endpoints()), expected);
}

#[tokio::test]
async fn the_exporters_name_is_the_text_as_written() {
    let machine = Machine::start().await;
    let endpoints = fixed(&machine, &["a.test", "b.test:4317", "[FD00:0::1]:4317", "10.0.0.1"]).endpoints();
    let names: Vec<Option<&str>> = endpoints.iter().map(|endpoint| endpoint.exporter_name.as_deref()).collect();
    assert_eq!(names, [Some("10.0.0.1"), Some("[FD00:0::1]:4317"), Some("a.test"), None], "None is the identity");
}

#[tokio::test]
async fn names_get_addresses_in_the_background_and_keep_the_last_good_one() {
    let machine = Machine::start().await;
    let mut fixed = fixed(&machine, &["a.test", "b.test:9", "10.0.0.7"]);
    assert_eq!(fixed.poll_once().await, None, "nothing is known yet");
    machine.server.v4("a.test.", addresses(&["10.0.0.1"]));
    machine.server.v6("b.test.", addresses(&["fd00::1"]));
    let expected = ["10.0.0.7:4317=10.0.0.7:4317", "a.test:4317=10.0.0.1:4317", "b.test:9=[fd00::1]:9"];
    assert_eq!(shown(&fixed.poll_once().await.unwrap()), expected);
    machine.server.v4("a.test.", NXDOMAIN);
    machine.server.v6("b.test.", SERVFAIL);
    assert_eq!(fixed.poll_once().await, None, "the last good addresses stay");
    assert_eq!(shown(&fixed.endpoints()), expected);
    machine.server.v4("a.test.", addresses(&["10.0.0.2"]));
    let moved = fixed.poll_once().await.unwrap();
    assert_eq!(shown(&moved)[1], "a.test:4317=10.0.0.2:4317", "the same identity at another address");
}

#[tokio::test]
async fn an_address_is_kept_while_it_is_in_the_answer() {
    let machine = Machine::start().await;
    machine.server.v4("a.test.", addresses(&["10.0.0.5", "10.0.0.4"]));
    let mut fixed = fixed(&machine, &["a.test"]);
    assert_eq!(shown(&fixed.poll_once().await.unwrap()), ["a.test:4317=10.0.0.4:4317"], "the first of the sorted");
    machine.server.v4("a.test.", addresses(&["10.0.0.3", "10.0.0.4"]));
    assert_eq!(fixed.poll_once().await, None);
    machine.server.v4("a.test.", addresses(&["10.0.0.5", "10.0.0.3"]));
    assert_eq!(shown(&fixed.poll_once().await.unwrap()), ["a.test:4317=10.0.0.3:4317"]);
}

#[tokio::test]
async fn entries_with_one_address_are_told_and_stay_members() {
    let machine = Machine::start().await;
    machine.server.v4("a.test.", addresses(&["10.0.0.1"]));
    machine.server.v4("b.test.", addresses(&["10.0.0.1"]));
    machine.server.v4("c.test.", addresses(&["10.0.0.2"]));
    let mut fixed = fixed(&machine, &["a.test", "b.test", "c.test", "[::ffff:10.0.0.1]", "10.0.0.9"]);
    assert_eq!(fixed.sharing(), [""; 0]);
    assert_eq!(fixed.poll_once().await.unwrap().len(), 5);
    assert_eq!(fixed.sharing(), ["10.0.0.1:4317", "a.test:4317", "b.test:4317"]);
    machine.server.v4("a.test.", addresses(&["10.0.0.3"]));
    fixed.poll_once().await.unwrap();
    assert_eq!(fixed.sharing(), ["10.0.0.1:4317", "b.test:4317"]);
}

#[tokio::test]
async fn asking_once_shows_every_entry() {
    let machine = Machine::start().await;
    machine.server.v4("a.test.", addresses(&["10.0.0.1"]));
    let limit = std::time::Duration::from_secs(60);
    let config = Config::fixed(["a.test", "lost.test"]);
    let endpoints = resolve_once_on(machine.system(), &config, limit).await.unwrap();
    assert_eq!(shown(&endpoints), ["a.test:4317=10.0.0.1:4317", "lost.test:4317=?"]);
}

#[test]
fn invalid_configurations_are_refused_with_their_reason() {
    let message = |config: Config| config.check().unwrap_err().to_string();
    assert_eq!(message(Config::fixed([])), "a static resolver needs at least one entry in hostnames");
    assert_eq!(message(Config::fixed(["ok", "a..b"])), "bad hostname \"a..b:4317\"");
    assert!(matches!(
        Config::dns("a:4317").check(),
        Err(DiscoveryError::Hostname { source: AddressError::NameOnly, .. })
    ));
    let dns = DnsResolver { hostname: "tail.test".into(), ..DnsResolver::default() };
    let DnsResolver { port, interval, timeout, .. } = dns;
    let zero = std::time::Duration::ZERO;
    let config = |port, interval, timeout| Config::Dns(DnsResolver { port, interval, timeout, ..dns.clone() });
    assert!(config(port, interval, timeout).check().is_ok());
    assert!(matches!(config(Some(0), interval, timeout).check(), Err(DiscoveryError::Port)));
    assert!(matches!(config(port, zero, timeout).check(), Err(DiscoveryError::Interval(TimeError::TooShort))));
    assert!(matches!(config(port, interval, zero).check(), Err(DiscoveryError::Timeout(TimeError::Zero))));
    let ever = std::time::Duration::MAX;
    assert!(matches!(config(port, ever, timeout).check(), Err(DiscoveryError::Interval(TimeError::TooLong))));
    assert!(matches!(config(port, interval, ever).check(), Err(DiscoveryError::Timeout(TimeError::TooLong))));
    let many: Vec<String> = (0..=65_535).map(|n| format!("10.{}.{}.{}", n / 65_536, n / 256 % 256, n % 256)).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let all = Config::fixed(many.iter().copied());
    assert!(matches!(all.check(), Err(DiscoveryError::TooManyHostnames { count: 65_536 })));
    assert!(Config::fixed(many.into_iter().skip(1)).check().is_ok());
}
