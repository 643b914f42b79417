//! Checks `pools`.

use std::{collections::BTreeSet, time::Duration};

use super::{
    super::{PoolConfig, message::Message},
    KeyPath, MAX_MESSAGE_MIB, Report, less_than, report_tls,
};
use crate::{
    discovery,
    settings::{
        Compression, Delivery, DnsResolver, OutlierDetection, Placement, Pool, Resolver, RetryOnFailure, Settings,
        StaticResolver, values::GoDuration,
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
    if let Some(tls) = &*pool.tls {
        report_tls(&at.key("tls"), tls.check(&pool.resolver), report);
    }
    Some(PoolConfig {
        name: name.to_owned(),
        discovery: discovery::Config::of(&pool.resolver)?,
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
        Compression::Gzip => report.within(&level, keys.compression_params.level, 1, 9),
        Compression::Zstd => report.within(&level, keys.compression_params.level, 1, 22),
    }
    let queue_size = keys.sending_queue.queue_size;
    if queue_size.0 < call.bytes {
        let what = "is less than one call may hold";
        let message = Message::both(
            format!("{queue_size} {what} (max_request_size_mib: {})", call.mebibytes()),
            format!("{what} (max_request_size_mib)"),
        );
        report.error_about(&at.key("sending_queue").key("queue_size"), &[&call_at], message);
    }
    check_retries(&at.key("retry_on_failure"), &keys.retry_on_failure, report);
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
    report.at_most_a_day(&at.key("hold_down"), keys.hold_down);
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
    match (&resolver.r#static, &resolver.dns) {
        (Some(keys), None) => check_static(&at.key("static"), keys, report),
        (None, Some(keys)) => check_dns(&at.key("dns"), keys, report),
        (None, None) => report.error(at, "is missing; write static or dns"),
        (Some(_), Some(_)) => report.error(at, "has both static and dns; a pool has one resolver"),
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
    let hostname = at.key("hostname");
    if keys.hostname.is_empty() {
        report.error(&hostname, "is missing; write hostname: collectors.example");
    } else if let Err(error) = discovery::check_hostname(&keys.hostname) {
        report.error(&hostname, Message::about(&keys.hostname, |name| format!("{name} is not a host name: {error}")));
    }
    report.within(&at.key("port"), keys.port_in_effect(), 1, u16::MAX);
    check_times(at, keys.interval, keys.timeout, report);
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
