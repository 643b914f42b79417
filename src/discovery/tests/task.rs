//! Tests of a resolver's task: what it publishes, when it ends, what it counts and logs.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::server::{Machine, NXDOMAIN, Reply, SERVFAIL, addresses};
use crate::{
    access::Access,
    discovery::{
        Config, IpFamily, MIN_INTERVAL, OFTEN, Resolvers,
        answer::{Answer, Answers},
        dns::Dns,
        jittered,
        metrics::Meters,
        parts::Joined,
        start_on,
        state_log::{LogFields, StateLog},
        system::System,
    },
    endpoint::EndpointsReceiver,
    lifecycle::Tasks,
    settings::{DnsResolver, Placement},
    telemetry::{Recorder, logs::captured},
};

const NAME: &str = "tail.test.";

fn often(hostname: &str) -> Config {
    let timeout = Duration::from_secs(20);
    let hostname = hostname.to_owned();
    Config::Dns(DnsResolver { hostname, interval: MIN_INTERVAL, timeout, ..DnsResolver::default() })
}

fn begin(system: System, config: &Config, tasks: &Tasks) -> EndpointsReceiver {
    let (resolvers, receiver) = Resolvers::new("tail");
    start_on(system, &resolvers, "tail", config, Access::default(), tasks).unwrap();
    receiver
}

#[tokio::test]
async fn nothing_is_published_until_the_name_resolves_and_then_every_change() {
    let (machine, tasks) = (Machine::start().await, Tasks::new());
    let mut endpoints = begin(machine.system(), &often(NAME), &tasks);
    assert!(endpoints.borrow().is_none());
    machine.server.v4(NAME, addresses(&["10.0.0.1"]));
    endpoints.changed().await.unwrap();
    assert_eq!(&*endpoints.borrow().as_ref().unwrap()[0].identity, "10.0.0.1:4317");
    machine.server.v4(NAME, addresses(&["10.0.0.2"]));
    endpoints.changed().await.unwrap();
    let set = endpoints.borrow_and_update().clone().unwrap();
    let all: Vec<_> = set.iter().map(|endpoint| (&*endpoint.identity, endpoint.is_missing)).collect();
    assert_eq!(all, [("10.0.0.1:4317", true), ("10.0.0.2:4317", false)]);
    tasks.stop();
    tasks.wait().await;
    assert!(endpoints.changed().await.is_err(), "the task is gone");
    assert!(endpoints.borrow().is_some(), "the last set must stay");
}

#[tokio::test]
async fn a_static_set_is_there_at_once_and_its_task_ends_with_the_last_receiver() {
    let (machine, tasks) = (Machine::start().await, Tasks::new());
    let config = Config::fixed(["lost.test", "10.0.0.1:9"]);
    let endpoints = begin(machine.system(), &config, &tasks);
    let identities: Vec<_> = endpoints.borrow().iter().flat_map(|set| set.to_vec()).map(|one| one.identity).collect();
    assert_eq!(identities, ["10.0.0.1:9".into(), Arc::<str>::from("lost.test:4317")]);
    assert_eq!(tasks.len(), 1);
    drop(endpoints);
    tasks.wait().await;
}

#[tokio::test]
async fn a_bad_configuration_starts_nothing() {
    let tasks = Tasks::new();
    let resolvers = Resolvers::new("tail").0;
    assert!(crate::discovery::start(&resolvers, "tail", &Config::fixed([]), Access::default(), &tasks).is_err());
    assert!(tasks.is_empty());
}

#[test]
fn the_interval_varies_by_a_tenth() {
    for _ in 0..1000 {
        let jittered = jittered(DnsResolver::default().interval).as_secs_f64();
        assert!((4.5..=5.5).contains(&jittered), "{jittered}");
    }
}

#[tokio::test]
async fn every_question_is_counted_by_its_result() {
    let machine = Machine::start().await;
    let (recorder, meters) = Recorder::scoped(|recorder| (recorder.clone(), Meters::new("tail", &Config::dns(NAME))));
    let rendered = || recorder.render();
    let count = |family: &str, result: &str| {
        let series =
            format!("spanring_discovery_lookups_total{{pool=\"tail\",family=\"{family}\",result=\"{result}\"}} ");
        let rendered = rendered();
        let line = rendered.lines().find_map(|line| line.strip_prefix(&series).map(str::to_owned));
        line.unwrap_or_else(|| panic!("no {series} in {rendered}"))
    };
    assert_eq!(count("ipv6", "timeout"), "0", "series are there from the first scrape");
    let mut dns = Dns::new(NAME, Some(4317), IpFamily::Auto, machine.system(), meters, "tail");
    dns.poll_once().await;
    assert!(rendered().contains("spanring_discovery_last_success_timestamp_seconds{pool=\"tail\"} 0\n"));
    machine.server.v4(NAME, addresses(&["10.0.0.1", "10.0.0.2"]));
    machine.server.v6(NAME, SERVFAIL);
    dns.poll_once().await;
    dns.poll_once().await;
    machine.server.v4(NAME, NXDOMAIN);
    dns.poll_once().await;
    assert_eq!((count("ipv4", "success"), count("ipv4", "nxdomain")), ("2".to_owned(), "2".to_owned()));
    assert_eq!((count("ipv6", "servfail"), count("ipv6", "nxdomain")), ("3".to_owned(), "1".to_owned()));
    assert!(!rendered().contains("spanring_discovery_last_success_timestamp_seconds{pool=\"tail\"} 0\n"));
}

#[test]
fn the_log_has_one_line_for_each_change_of_state() {
    let log = captured(|| {
        let mut log = StateLog::new();
        let fields = LogFields { pool: "tail", hostname: "tail.test" };
        let answers = Answers::each("tail.test.", IpFamily::Auto, &Answer::NoSuchName);
        for good in [true, false, false, false, true, true, false] {
            log.note(fields, good, &answers, 3);
        }
    });
    let fails = " WARN discovery fails; the last good set stays pool=\"tail\" hostname=\"tail.test\" \
                 reason=A: no such name (NXDOMAIN), AAAA: no such name (NXDOMAIN), asked for tail.test. known=3\n";
    let recovered = " INFO discovery recovered pool=\"tail\" hostname=\"tail.test\" known=3\n";
    assert_eq!(log, format!("{fails}{recovered}{fails}"));
}

#[test]
fn parts_and_a_single_address_are_logged_once_and_not_in_every_round() {
    let joined = Some(Joined { answered: 3, known: 6, patience: 24 });
    let log = captured(|| {
        let fields = LogFields { pool: "tail", hostname: "tail.test" };
        let mut log = StateLog::new();
        for parts in [None, joined, joined, None, joined, None] {
            log.note_parts(fields, parts);
        }
        let mut log = StateLog::new();
        (0..100).for_each(|_| log.note_count(fields, 1));
        log.note_count(fields, 2);
        (0..100).for_each(|_| log.note_count(fields, 1));
        let mut log = StateLog::new();
        (0..100).for_each(|_| log.note_unused(fields, 3));
    });
    let starts = |start: &str| log.lines().filter(|line| line.trim_start().starts_with(start)).count();
    assert_eq!(starts("WARN the name server answers with changing parts"), 1, "{log}");
    assert_eq!(starts("INFO the name server answers with whole sets again"), 2, "{log}");
    assert_eq!(starts("INFO the name has a single address"), 1, "{log}");
    assert!(log.contains("clusterIP: None"), "{log}");
    assert_eq!(starts("WARN a static entry is one backend"), 1, "{log}");
}

#[tokio::test]
async fn a_single_address_is_logged_after_a_minute_of_rounds() {
    let machine = Machine::start().await;
    machine.server.v4(NAME, addresses(&["10.0.0.1"]));
    let mut dns = Dns::new(NAME, Some(4317), IpFamily::Auto, machine.system(), Meters::silent(), "tail");
    for _ in 0..11 {
        dns.poll_once().await;
    }
    assert!(!dns.is_count_logged(), "a pool that is being started must not be reported");
    dns.poll_once().await;
    assert!(dns.is_count_logged());
}

#[tokio::test]
async fn parts_are_shown_by_a_metric() {
    let machine = Machine::start().await;
    let (recorder, meters) = Recorder::scoped(|recorder| (recorder.clone(), Meters::new("tail", &Config::dns(NAME))));
    let mut dns = Dns::new(NAME, Some(4317), IpFamily::Auto, machine.system(), meters, "tail");
    for one in ["10.0.0.1", "10.0.0.2"].iter().cycle().take(5) {
        assert!(!recorder.render().contains("spanring_discovery_partial_answers{pool=\"tail\"} 1\n"));
        machine.server.v4(NAME, addresses(&[one]));
        dns.poll_once().await;
    }
    assert!(recorder.render().contains("spanring_discovery_partial_answers{pool=\"tail\"} 1\n"));
    assert_eq!(dns.ask_once().await.unwrap().len(), 2);
}

/// Returns the longest time for which the sets miss or lack a backend that is away for 3 s, then back for 3 s, and so on,
/// for five minutes; and whether a set lacked it. Only the time between two rounds is skipped.
async fn longest_absence(ttl: u32) -> (Duration, bool) {
    let machine = Machine::start().await;
    machine.server.v6(NAME, Reply::NoData);
    let mut dns = Dns::new(NAME, Some(4317), IpFamily::Auto, machine.system(), Meters::silent(), "tail");
    let (begin, mut longest, mut lacked, mut since) = (Instant::now(), Duration::ZERO, false, None);
    while begin.elapsed() < Duration::from_secs(300) {
        let is_there = begin.elapsed().as_secs() % 6 < 3;
        let ips: &[&str] = if is_there { &["10.0.0.1", "10.0.0.2"] } else { &["10.0.0.1"] };
        machine.server.v4(NAME, Reply::Addresses(ips.iter().map(|ip| ip.parse().unwrap()).collect(), ttl));
        if let Some(set) = dns.poll_once().await {
            let flapping = set.iter().find(|endpoint| &*endpoint.identity == "10.0.0.2:4317");
            lacked |= flapping.is_none();
            match flapping {
                Some(endpoint) if !endpoint.is_missing => {
                    longest = longest.max(since.take().map_or(Duration::ZERO, |since: Instant| since.elapsed()));
                }
                _ => drop(since.get_or_insert_with(Instant::now)),
            }
        }
        let pause = if dns.is_restless() { OFTEN } else { DnsResolver::default().interval };
        tokio::time::pause();
        tokio::time::advance(jittered(pause)).await;
        tokio::time::resume();
    }
    (longest, lacked)
}

#[tokio::test]
async fn a_flapping_backend_is_seen_again_before_its_absence_is_believed() {
    let (longest, lacked) = longest_absence(0).await;
    assert!(lacked && longest > Duration::ZERO, "its absence must be noticed");
    assert!(longest < Placement::default().hold_down, "{longest:?}");
    let (longest, lacked) = longest_absence(5).await;
    assert!(!lacked && longest > Duration::ZERO, "a cache could have repeated the answer");
}

#[tokio::test(start_paused = true)]
async fn a_resolver_asks_every_second_for_a_minute_after_a_backend_is_missing() {
    let (machine, tasks) = (Machine::start().await, Tasks::new());
    machine.server.v4(NAME, addresses(&["10.0.0.1", "10.0.0.2"]));
    machine.server.v6(NAME, Reply::NoData);
    let config = Config::Dns(DnsResolver { hostname: NAME.to_owned(), ..DnsResolver::default() });
    let mut endpoints = begin(machine.system(), &config, &tasks);
    // The clock may also be advanced while a question is on its way, so that a round takes a little longer.
    let asked_within = async |seconds: u64| {
        machine.server.asked();
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        machine.server.asked().iter().filter(|question| question.ends_with(" A")).count()
    };
    endpoints.changed().await.unwrap();
    let calm = asked_within(50).await;
    assert!((5..=12).contains(&calm), "{calm}");
    machine.server.v4(NAME, addresses(&["10.0.0.1"]));
    endpoints.changed().await.unwrap();
    let restless = asked_within(50).await;
    assert!((25..=56).contains(&restless), "{restless}");
    asked_within(20).await;
    let calm = asked_within(50).await;
    assert!((5..=12).contains(&calm), "{calm}");
    machine.server.v4(NAME, addresses(&["10.0.0.3"]));
    endpoints.changed().await.unwrap();
    machine.server.v4(NAME, Reply::NoData);
    asked_within(6).await;
    let empty = asked_within(50).await;
    assert!((5..=12).contains(&empty), "rounds without a record are counted: {empty}");
}

/// A configuration of [`NAME`] with this interval in milliseconds.
fn every(milliseconds: u64) -> Config {
    let (hostname, interval) = (NAME.to_owned(), Duration::from_millis(milliseconds));
    Config::Dns(DnsResolver { hostname, interval, ip_family: IpFamily::Ipv4, ..DnsResolver::default() })
}

#[tokio::test(start_paused = true)]
async fn another_interval_confirms_no_absence() {
    let (machine, tasks) = (Machine::start().await, Tasks::new());
    let answer = |ips: &[&str]| Reply::Addresses(ips.iter().map(|ip| ip.parse().unwrap()).collect(), 60);
    machine.server.v4(NAME, answer(&["10.0.0.1", "10.0.0.2"]));
    let (resolvers, mut endpoints) = Resolvers::new("tail");
    start_on(machine.system(), &resolvers, "tail", &every(5_000), Access::default(), &tasks).unwrap();
    endpoints.changed().await.unwrap();
    machine.server.v4(NAME, answer(&["10.0.0.1"]));
    endpoints.changed().await.unwrap();
    let missing_since = Instant::now();
    start_on(machine.system(), &resolvers, "tail", &every(200), Access::default(), &tasks).unwrap();
    assert_eq!(tasks.len(), 1, "the resolver that is there goes on");
    let set = |endpoints: &EndpointsReceiver| -> Vec<bool> {
        endpoints.borrow().as_ref().unwrap().iter().map(|endpoint| endpoint.is_missing).collect()
    };
    machine.server.asked();
    while missing_since.elapsed() < Duration::from_secs(59) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(set(&endpoints), [false, true], "a cache may repeat the answer for 60 s");
    }
    let asked = machine.server.asked().len();
    assert!(asked > 100, "the new interval must be in use: {asked}");
    tokio::time::timeout(Duration::from_secs(9), endpoints.changed()).await.expect("it is confirmed").unwrap();
    assert_eq!(set(&endpoints), [false]);
}

#[tokio::test(start_paused = true)]
async fn another_interval_keeps_what_is_known_of_partial_answers() {
    let (machine, tasks) = (Machine::start().await, Tasks::new());
    let (resolvers, endpoints) = Resolvers::new("tail");
    start_on(machine.system(), &resolvers, "tail", &every(1_000), Access::default(), &tasks).unwrap();
    let mut random = fastrand::Rng::with_seed(8);
    let mut answer = |rounds: u64| {
        let (machine, mut parts) = (&machine, Vec::new());
        for _ in 0..rounds {
            parts.push(random.choose_multiple(1..=20_u8, 8).iter().map(|n| format!("10.0.0.{n}")).collect::<Vec<_>>());
        }
        async move {
            for part in parts {
                machine.server.v4(NAME, addresses(&part.iter().map(String::as_str).collect::<Vec<_>>()));
                tokio::time::sleep(Duration::from_millis(1_100)).await;
            }
        }
    };
    answer(100).await;
    let all = |endpoints: &EndpointsReceiver| {
        endpoints.borrow().as_ref().unwrap().iter().filter(|endpoint| !endpoint.is_missing).count()
    };
    assert_eq!(all(&endpoints), 20);
    start_on(machine.system(), &resolvers, "tail", &every(1_001), Access::default(), &tasks).unwrap();
    for _ in 0..30 {
        answer(1).await;
        assert_eq!(all(&endpoints), 20, "no backend may be missed");
    }
}
