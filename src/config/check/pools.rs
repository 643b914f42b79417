//! Checks `pools`.

use std::{collections::BTreeSet, time::Duration};

use super::{
    super::{PoolConfig, message::Message},
    KeyPath, MAX_MESSAGE_MIB, Report, less_than,
    listeners::check_path,
    report_tls,
};
use crate::{
    discovery,
    otlp::Signal,
    settings::{
        Compression, Delivery, DnsResolver, Handoff, HandoffMode, KubernetesResolver, OutlierDetection, Placement,
        Pool, Protocol, Resolver, RetryOnFailure, Settings, SrvResolver, StaticResolver, values::GoDuration,
    },
};

/// The most connections to each backend, and the most shards. A typing error must not open thousands of connections.
const MAX_CONNECTIONS: usize = 64;

/// Checks all pools.
pub(super) fn check(settings: &Settings, report: &mut Report<'_>) -> Vec<PoolConfig> {
    let at = KeyPath::of(&["pools"]);
    if settings.pools.is_empty() {
        let advice = "write pools: { NAME: { resolver: { dns: { hostname: collectors.example } } } }";
        report.error(&at, format!("no pool is named; {advice}"));
    }
    let deadline = settings.receivers.otlp.deadline;
    settings.pools.iter().filter_map(|(name, pool)| check_pool(&at, name, pool, deadline, report)).collect()
}

fn check_pool(
    pools: &KeyPath,
    name: &str,
    pool: &Pool,
    deadline: Duration,
    report: &mut Report<'_>,
) -> Option<PoolConfig> {
    let at = pools.key(name);
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        report.error(&at, "the name of a pool must not be empty or contain spaces");
    }
    check_resolver(&at.key("resolver"), &pool.resolver, report);
    check_delivery(&at, &pool.delivery, deadline, report);
    for (name, message) in pool.headers.checked().err().unwrap_or_default() {
        let at = at.key("headers");
        report.error(&if name.is_empty() { at } else { at.key(&name) }, message);
    }
    check_placement(&at, &pool.placement, report);
    check_names(&at, pool, report);
    if let Some(tls) = &*pool.tls {
        report_tls(&at.key("tls"), tls.check(&pool.resolver), report);
    }
    let resolver = pool.resolver.with_default_port(pool.delivery.protocol.port());
    Some(PoolConfig {
        name: name.to_owned(),
        discovery: discovery::Config::of(&resolver)?,
        membership: pool.placement.clone(),
        dispatch: pool.delivery.in_effect().into(),
        headers: pool.headers.checked().unwrap_or_default(),
        tls: pool.tls.as_ref().and_then(|tls| tls.config(&pool.resolver)),
    })
}

fn check_delivery(at: &KeyPath, keys: &Delivery, deadline: Duration, report: &mut Report<'_>) {
    check_timeout(&at.key("timeout"), keys.timeout, deadline, report);
    let (call_at, call) = (at.key("max_request_size_mib"), keys.max_request_size_mib);
    report.within(&call_at, call.mebibytes(), 1, MAX_MESSAGE_MIB);
    report.within(&at.key("connections"), keys.connections, 1, MAX_CONNECTIONS);
    report.within(&at.key("shards"), keys.shards, 1, MAX_CONNECTIONS);
    let level = at.key("compression_params").key("level");
    match keys.compression {
        Compression::None => {}
        Compression::AsReceived | Compression::Gzip => report.within(&level, keys.compression_params.level, 1, 9),
        Compression::Zstd => report.within(&level, keys.compression_params.level, 1, 22),
    }
    let queue_size = keys.sending_queue.queue_size;
    if queue_size.0 < call.bytes {
        let (what, advice) =
            ("is less than one call may hold", "it counts bytes, not requests: write 16MiB, for example");
        let message = Message::both(
            format!("{queue_size} {what} (max_request_size_mib: {}); {advice}", call.mebibytes()),
            format!("{what} (max_request_size_mib); {advice}"),
        );
        report.error_about(&at.key("sending_queue").key("queue_size"), &[&call_at], message);
    }
    check_retries(&at.key("retry_on_failure"), &keys.retry_on_failure, report);
    check_protocol(&at.key("protocol"), &keys.protocol, report);
}

fn check_protocol(at: &KeyPath, protocol: &Protocol, report: &mut Report<'_>) {
    let Some(keys) = protocol.http() else { return };
    if protocol.otlp.is_some() {
        report.error(at, "has both otlp and otlp_http; a pool has one protocol");
    }
    let at = at.key("otlp_http");
    for (key, path) in Signal::ALL.map(|signal| keys.path(signal)) {
        check_path(&at.key(key), path, "/v1/traces", report);
    }
    report.within(&at.key("max_conns_per_host"), keys.max_conns_per_host, 1, MAX_CONNECTIONS);
    if let Some(timeout) = keys.idle_conn_timeout {
        report.at_most_a_day(&at.key("idle_conn_timeout"), timeout);
    }
}

/// Checks that an attempt cannot last longer than its request: it would be cut short, and show nothing about the
/// backend.
fn check_timeout(at: &KeyPath, timeout: Duration, deadline: Duration, report: &mut Report<'_>) {
    report.positive(at, timeout);
    if timeout > deadline {
        let [timeout, deadline] = [timeout, deadline].map(GoDuration);
        let advice = "an attempt cannot outlast its request; lower timeout, or raise the deadline";
        let message = Message::both(
            format!("{timeout} is longer than receivers.otlp.deadline, {deadline}: {advice}"),
            format!("is longer than receivers.otlp.deadline: {advice}"),
        );
        report.error_about(at, &[&KeyPath::of(&["receivers", "otlp", "deadline"])], message);
    }
}

fn check_retries(at: &KeyPath, keys: &RetryOnFailure, report: &mut Report<'_>) {
    let (first_at, first) = (at.key("initial_interval"), keys.initial_interval);
    report.positive(&first_at, first);
    if keys.max_interval < first {
        let message = less_than(GoDuration(keys.max_interval), "initial_interval", GoDuration(first));
        report.error_about(&at.key("max_interval"), &[&first_at], message);
    }
    report.within(&at.key("multiplier"), keys.multiplier, 1.0, 10.0);
    report.within(&at.key("randomization_factor"), keys.randomization_factor, 0.0, 1.0);
    report.within(&at.key("budget_percent"), keys.budget_percent, 0, 1000);
}

fn check_placement(at: &KeyPath, keys: &Placement, report: &mut Report<'_>) {
    check_outlier_detection(&at.key("outlier_detection"), &keys.outlier_detection, report);
    check_handoff(&at.key("ring").key("handoff"), keys.ring.handoff, report);
    report.at_most_a_day(&at.key("hold_down"), keys.hold_down);
    report.within(&at.key("min_backends"), keys.min_backends, 0, discovery::MAX_ENDPOINTS);
}

/// Checks that a ring of the Collector's exporter has names that the exporter's resolvers yield. Facts are those of its
/// versions v0.123 to v0.157.
fn check_names(at: &KeyPath, pool: &Pool, report: &mut Report<'_>) {
    let algorithm = pool.placement.ring.algorithm;
    if !algorithm.is_of_exporter() {
        return;
    }
    let (ring, algorithm) = (at.key("ring").key("algorithm"), algorithm.name());
    let resolver = at.key("resolver");
    let mut refuse = |key: &KeyPath, because: &str| {
        report.error_about(
            key,
            &[&ring],
            format!("{algorithm} would not place traces as the exporter does: {because}"),
        );
    };
    if pool.delivery.protocol.http().is_some() {
        let because = "it sends OTLP/gRPC only, and hashes the ports of that";
        refuse(&at.key("protocol").key("otlp_http"), because);
    }
    if pool.resolver.srv.is_some() {
        let because = "it has no resolver for SRV records, and hashes no names of their targets; write dns or static with \
                       the texts that it hashes";
        refuse(&resolver.key("srv"), because);
    }
    let Some(keys) = &pool.resolver.k8s else { return };
    if keys.return_hostnames.is_none() {
        let because = "unless its return_hostnames is true it hashes addresses, also of pods that have a host name; \
                       write return_hostnames as it has it, or false";
        refuse(&resolver.key("k8s"), because);
    }
    if keys.ports.is_none() {
        let because = "without ports it hashes names without a port; write ports as it has them, or, if it has none, \
                       dns with the name of the headless Service and without a port";
        refuse(&resolver.key("k8s"), because);
    }
}

fn check_handoff(at: &KeyPath, keys: Handoff, report: &mut Report<'_>) {
    report.at_most_a_day(&at.key("window"), keys.window);
    if keys.window.is_zero() && keys.mode != HandoffMode::Immediate {
        let message =
            "keeps no trace whole that is longer than 0s; set it to the longest trace, or write mode: immediate";
        report.warn(&at.key("window"), message.into());
    }
    if keys.skew > keys.window {
        let [skew, window] = [keys.skew, keys.window].map(GoDuration);
        let advice = "no trace would be sure to stay whole; lower skew, or raise the window";
        let message = Message::both(
            format!("{skew} is longer than window, {window}: {advice}"),
            format!("is longer than window: {advice}"),
        );
        report.error_about(&at.key("skew"), &[&at.key("window")], message);
    }
}

fn check_outlier_detection(at: &KeyPath, keys: &OutlierDetection, report: &mut Report<'_>) {
    report.within(&at.key("consecutive_failures"), keys.consecutive_failures, 1, u32::MAX);
    let (first_at, first) = (at.key("base_ejection_time"), keys.base_ejection_time);
    let (longest_at, longest) = (at.key("max_ejection_time"), keys.max_ejection_time);
    report.interval(&first_at, first);
    if longest < first {
        let message = less_than(GoDuration(longest), "base_ejection_time", GoDuration(first));
        report.error_about(&longest_at, &[&first_at], message);
    }
    report.at_most_a_day(&longest_at, longest);
    report.at_most_a_day(&first_at, first);
    report.within(&at.key("max_ejection_percent"), keys.max_ejection_percent, 0, 100);
}

/// Checks that a pool has exactly one resolver.
fn check_resolver(at: &KeyPath, resolver: &Resolver, report: &mut Report<'_>) {
    let Resolver { r#static, dns, srv, k8s } = resolver;
    let written =
        [("static", r#static.is_some()), ("dns", dns.is_some()), ("srv", srv.is_some()), ("k8s", k8s.is_some())];
    let names: Vec<&str> = written.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name).collect();
    match names[..] {
        [] => report.error(at, "is missing; write static, dns, srv or k8s"),
        [_] => {}
        [first, second, ..] => report.error(at, format!("has both {first} and {second}; a pool has one resolver")),
    }
    if names.len() > 1 {
        return;
    }
    if let Some(keys) = r#static {
        check_static(&at.key("static"), keys, report);
    }
    if let Some(keys) = dns {
        check_dns(&at.key("dns"), keys, report);
    }
    if let Some(keys) = srv {
        check_srv(&at.key("srv"), keys, report);
    }
    if let Some(keys) = k8s {
        check_kubernetes(&at.key("k8s"), keys, report);
    }
}

fn check_static(at: &KeyPath, keys: &StaticResolver, report: &mut Report<'_>) {
    let list = at.key("hostnames");
    if keys.hostnames.is_empty() {
        report.error(&list, "names no backend; write hostnames: [\"collector-0:4317\"]");
    }
    let mut seen = BTreeSet::new();
    for (index, backend) in keys.hostnames.iter().enumerate() {
        match discovery::check_backend(backend) {
            Ok(()) if seen.insert(&backend.address) => {}
            Ok(()) => {
                let listed = &backend.address;
                let message = Message::both(format!("{listed} is listed twice"), "a backend is listed twice");
                report.error(&list, message);
            }
            Err(error) => {
                let message = Message::both(format!("{}: {error}", backend.address), error.to_string());
                report.error_about(&list.item(index), &[&list], message);
            }
        }
    }
    check_times(at, keys.interval, keys.timeout, report);
}

fn check_dns(at: &KeyPath, keys: &DnsResolver, report: &mut Report<'_>) {
    check_hostname(at, &keys.hostname, "collectors.example", report);
    report.within(&at.key("port"), keys.port_in_effect(), 1, u16::MAX);
    check_times(at, keys.interval, keys.timeout, report);
}

fn check_srv(at: &KeyPath, keys: &SrvResolver, report: &mut Report<'_>) {
    check_hostname(at, &keys.hostname, "_otlp-grpc._tcp.collectors.example", report);
    check_times(at, keys.interval, keys.timeout, report);
}

fn check_kubernetes(at: &KeyPath, keys: &KubernetesResolver, report: &mut Report<'_>) {
    if !cfg!(feature = "kubernetes") {
        report.error(at, discovery::DiscoveryError::NotBuilt.to_string());
    }
    let service = at.key("service");
    match discovery::check_service(&keys.service) {
        Ok(()) => {}
        Err(error @ discovery::ServiceError::Empty) => report.error(&service, error.to_string()),
        Err(error) => {
            report.error(&service, Message::about(&keys.service, |name| format!("{name} is no Service: {error}")))
        }
    }
    let ports = at.key("ports");
    let listed = keys.ports_in_effect();
    if listed.is_empty() {
        report.error(&ports, "names no port; write ports: [4317]");
    }
    for (index, port) in listed.iter().enumerate() {
        report.within(&ports.item(index), *port, 1, u16::MAX);
        if listed.iter().take(index).any(|other| other == port) {
            report.error(&ports, Message::both(format!("{port} is listed twice"), "a port is listed twice"));
        }
    }
    if let Err(error) = discovery::check_timeout(keys.timeout) {
        report.error(&at.key("timeout"), error.to_string());
    }
}

fn check_hostname(at: &KeyPath, hostname: &str, example: &str, report: &mut Report<'_>) {
    let at = at.key("hostname");
    if hostname.is_empty() {
        report.error(&at, format!("is missing; write hostname: {example}"));
    } else if let Err(error) = discovery::check_hostname(hostname) {
        report.error(&at, Message::about(hostname, |name| format!("{name} is not a host name: {error}")));
    }
}

fn check_times(at: &KeyPath, interval: Duration, timeout: Duration, report: &mut Report<'_>) {
    for (key, checked) in
        [("interval", discovery::check_interval(interval)), ("timeout", discovery::check_timeout(timeout))]
    {
        if let Err(error) = checked {
            report.error(&at.key(key), error.to_string());
        }
    }
}
