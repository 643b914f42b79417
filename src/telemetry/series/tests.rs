//! Tests of the store: what the page shows, how it is written, and when series are deleted.

use std::collections::BTreeSet;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};

use super::*;
use crate::telemetry::metrics as page;

fn rendered(store: &Store) -> String {
    store.render(&[])
}

/// Makes one series of every metric that is not of the process, with values that are not 0.
fn count_everything() -> Vec<Box<dyn std::any::Any>> {
    let mut handles: Vec<Box<dyn std::any::Any>> = Vec::new();
    for (nth, metric) in ALL.iter().enumerate().filter(|(_, metric)| metric.name.starts_with("spanring_")) {
        let labels: Vec<_> = metric.labels.iter().map(|label| Label::new(*label, "x \"y\"\nz\\")).collect();
        match metric.kind {
            Kind::Counter => {
                let counter = metrics::counter!(metric.name, labels);
                counter.increment(nth as u64);
                handles.push(Box::new(counter));
            }
            Kind::Gauge => {
                let gauge = metrics::gauge!(metric.name, labels);
                gauge.set(nth as f64 / 8.0);
                gauge.decrement(1.0);
                handles.push(Box::new(gauge));
            }
            Kind::Histogram(_) => {
                let histogram = metrics::histogram!(metric.name, labels);
                [0.0, 0.003, 0.5, 3.0, 1e9].into_iter().for_each(|value| histogram.record(value));
                handles.push(Box::new(histogram));
            }
        }
    }
    handles
}

#[test]
fn the_page_is_that_of_the_exporters_own_recorder() {
    let mut exporter = PrometheusBuilder::new();
    for Metric { name, kind, .. } in ALL {
        if let Kind::Histogram(bounds) = kind {
            exporter = exporter.set_buckets_for_metric(Matcher::Full((*name).to_owned()), bounds).expect("buckets");
        }
    }
    let other = exporter.build_recorder();
    metrics::with_local_recorder(&other, || {
        for Metric { name, kind, help, .. } in ALL.iter().copied() {
            match kind {
                Kind::Counter => metrics::describe_counter!(name, help),
                Kind::Gauge => metrics::describe_gauge!(name, help),
                Kind::Histogram(_) => metrics::describe_histogram!(name, help),
            }
        }
        count_everything();
    });
    let store = Store::new();
    let _held = metrics::with_local_recorder(&store, count_everything);
    let (ours, theirs) = (rendered(&store), other.handle().render());
    let lines = |page: &str| page.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (only_ours, only_theirs): (Vec<_>, Vec<_>) = (
        lines(&ours).difference(&lines(&theirs)).cloned().collect(),
        lines(&theirs).difference(&lines(&ours)).cloned().collect(),
    );
    assert!(only_ours.is_empty() && only_theirs.is_empty(), "{only_ours:#?}\n{only_theirs:#?}");
}

#[test]
fn metrics_come_in_the_order_of_the_page_and_series_in_that_of_their_labels() {
    let store = Store::new();
    let _held = metrics::with_local_recorder(&store, || {
        [("b", "2"), ("a", "1"), ("b", "10")]
            .map(|(pool, backend)| metrics::gauge!(page::RING_OWNERSHIP_RATIO, "pool" => pool, "backend" => backend))
    });
    let text = rendered(&store);
    let shares: Vec<&str> = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    assert_eq!(
        shares,
        [
            "spanring_ring_ownership_ratio{pool=\"a\",backend=\"1\"} 0",
            "spanring_ring_ownership_ratio{pool=\"b\",backend=\"10\"} 0",
            "spanring_ring_ownership_ratio{pool=\"b\",backend=\"2\"} 0",
        ]
    );
}

/// The value of a label, as Prometheus reads it between its quotes.
fn read_back(quoted: &str) -> String {
    let (mut value, mut chars) = (String::new(), quoted.chars());
    while let Some(char) = chars.next() {
        value.push(match char {
            '\\' => match chars.next().expect("an escaped character") {
                'n' => '\n',
                escaped @ ('\\' | '"') => escaped,
                other => panic!("\\{other} is no escape"),
            },
            '"' | '\n' => panic!("{quoted} ends early"),
            char => char,
        });
    }
    value
}

#[test]
fn labels_stay_between_their_quotes_and_keep_their_values() {
    let hostile = [
        "a\"} 1\nspanring_ring_generation{pool=\"b\\",
        "plain",
        "",
        "\\",
        "\\\\",
        "\\\\\\",
        "\\\"",
        "\"\\",
        "\\\n\\",
        "a\\b",
        "a\\\\b",
        "a\\n",
        "a\n",
        "ü\u{0}\r\t{}=,#",
    ];
    let store = Store::new();
    let _held = metrics::with_local_recorder(&store, || {
        hostile.map(|pool| metrics::gauge!(page::RING_GENERATION, "pool" => pool))
    });
    let text = rendered(&store);
    let quoted = text
        .lines()
        .filter_map(|line| line.strip_prefix(&format!("{}{{pool=\"", page::RING_GENERATION))?.strip_suffix("\"} 0"));
    let found: BTreeSet<String> = quoted.map(read_back).collect();
    assert_eq!(found, hostile.map(str::to_owned).into(), "{text}");
    assert_eq!(text.lines().count(), hostile.len() + 3, "help, type, and an empty line at the end: {text}");
}

#[test]
#[cfg(debug_assertions)]
fn a_metric_that_is_not_declared_so_is_found_in_tests_and_has_no_series() {
    let store = Store::new();
    let wrong: [fn(); 6] = [
        || drop(metrics::counter!("spanring_unheard_of_total")),
        || drop(metrics::counter!(page::RING_CHANGES_TOTAL, "backend" => "a")),
        || drop(metrics::counter!(page::RING_CHANGES_TOTAL, "pool" => "a", "backend" => "a")),
        || drop(metrics::counter!(page::RING_GENERATION, "pool" => "a")),
        || drop(metrics::gauge!(page::RING_CHANGES_TOTAL, "pool" => "a")),
        || drop(metrics::histogram!(page::RING_CHANGES_TOTAL, "pool" => "a")),
    ];
    for (nth, take) in wrong.into_iter().enumerate() {
        let taken = std::panic::catch_unwind(|| metrics::with_local_recorder(&store, take));
        assert!(taken.is_err(), "the handle number {nth} was made");
    }
    assert_eq!(rendered(&store), "");
}

/// A handle of one backend, as dispatch holds it.
fn backend(store: &Store, backend: &'static str) -> Counter {
    metrics::with_local_recorder(
        store,
        || metrics::counter!(page::DISPATCH_BYTES_TOTAL, "pool" => "tail", "backend" => backend),
    )
}

#[test]
fn a_series_leaves_some_time_after_its_last_handle_and_a_returning_backend_counts_on() {
    let store = Store::new();
    let start = Instant::now();
    let value = |store: &Store| {
        rendered(store).lines().find_map(|line| {
            line.strip_prefix("spanring_dispatch_bytes_total{")?.split_once("} ")?.1.parse::<u64>().ok()
        })
    };
    let first = backend(&store, "a");
    first.increment(5);
    store.sweep(start + LINGER * 3);
    assert_eq!(value(&store), Some(5), "it is held, however long ago it last changed");

    drop(first);
    store.sweep(start + LINGER * 3);
    store.sweep(start + LINGER * 4 - Duration::from_secs(1));
    assert_eq!(value(&store), Some(5), "the last scrapes are to see it");

    let back = backend(&store, "a");
    back.increment(1);
    store.sweep(start + LINGER * 5);
    store.sweep(start + LINGER * 7);
    assert_eq!(value(&store), Some(6), "it came back in time and counts on");

    drop(back);
    store.sweep(start + LINGER * 7);
    store.sweep(start + LINGER * 8);
    assert_eq!(value(&store), None, "nobody held it for all that time");

    let again = backend(&store, "a");
    again.increment(2);
    assert_eq!(value(&store), Some(2), "one that comes back later begins anew");
}

#[test]
fn only_series_of_pools_and_owners_leave() {
    let store = Store::new();
    let held = metrics::with_local_recorder(&store, count_everything);
    let start = Instant::now();
    let names_after_sweeps = |at: Instant| {
        store.sweep(at);
        store.sweep(at + LINGER);
        let page = rendered(&store);
        let names = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned));
        names.collect::<Vec<_>>()
    };
    let names = |stays: fn(&Metric) -> bool| {
        let counted = ALL.iter().filter(|metric| metric.name.starts_with("spanring_"));
        counted.filter(|metric| stays(metric)).map(|metric| metric.name.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names_after_sweeps(start), names(|_| true));
    drop(held);
    let stays = |metric: &Metric| !metric.labels.contains(&"pool") && !metric.labels.contains(&"owner");
    assert_eq!(names_after_sweeps(start + LINGER * 2), names(stays));
}

#[test]
fn too_many_gone_backends_leave_at_once() {
    let store = Store::new();
    metrics::with_local_recorder(&store, || {
        for number in 0..=MAX_LINGERING {
            metrics::gauge!(page::DISPATCH_CONNECTIONS, "pool" => "tail", "backend" => number.to_string()).set(0.0);
        }
    });
    let held = backend(&store, "here");
    store.sweep(Instant::now());
    let text = rendered(&store);
    assert!(!text.contains(page::DISPATCH_CONNECTIONS), "{} bytes", text.len());
    assert!(text.contains("backend=\"here\""), "{text}");
    drop(held);
}
