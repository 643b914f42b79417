//! What is told, how it is written, and when it is forgotten.

use std::collections::BTreeSet;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};

use super::*;
use crate::telemetry::metrics as page;

/// A store, and the recorder that makes handles for it.
fn store() -> (Arc<Store>, Handles) {
    let store = Arc::new(Store::new());
    (Arc::clone(&store), Handles(store))
}

fn rendered(store: &Store) -> String {
    let mut page = String::new();
    store.render(&mut page);
    page
}

/// One series of every metric of the page that a room counts, with values that are not 0.
fn count_everything() -> Vec<Box<dyn std::any::Any>> {
    let mut handles: Vec<Box<dyn std::any::Any>> = Vec::new();
    for (nth, metric) in ALL.iter().enumerate().filter(|(_, metric)| metric.name.starts_with("spanring_")) {
        let labels: Vec<_> = metric.labels.iter().map(|label| metrics::Label::new(*label, "x \"y\"\nz\\")).collect();
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
            Kind::Histogram => {
                let histogram = metrics::histogram!(metric.name, labels);
                [0.0, 0.003, 0.5, 3.0, 1e9].into_iter().for_each(|value| histogram.record(value));
                handles.push(Box::new(histogram));
            }
        }
    }
    handles
}

#[test]
fn the_page_is_that_of_the_well_known_exporter() {
    let bounds = |metric| buckets::of(metric);
    let other = PrometheusBuilder::new()
        .set_buckets(bounds(page::DISPATCH_CALL_DURATION_SECONDS))
        .and_then(|it| {
            let parts = Matcher::Full(page::DISPATCH_CALL_PARTS.to_owned());
            it.set_buckets_for_metric(parts, bounds(page::DISPATCH_CALL_PARTS))
        })
        .expect("buckets")
        .build_recorder();
    metrics::with_local_recorder(&other, || {
        for Metric { name, kind, help, .. } in ALL.iter().copied() {
            match kind {
                Kind::Counter => metrics::describe_counter!(name, help),
                Kind::Gauge => metrics::describe_gauge!(name, help),
                Kind::Histogram => metrics::describe_histogram!(name, help),
            }
        }
        count_everything();
    });
    let (store, handles) = store();
    let _held = metrics::with_local_recorder(&handles, count_everything);
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
    let (store, handles) = store();
    let _held = metrics::with_local_recorder(&handles, || {
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

#[test]
fn labels_can_not_leave_their_quotes() {
    let (store, handles) = store();
    let hostile = "a\"} 1\nspanring_ring_generation{pool=\"b\\";
    let _held = metrics::with_local_recorder(&handles, || metrics::gauge!(page::RING_GENERATION, "pool" => hostile));
    let text = rendered(&store);
    assert_eq!(text.lines().filter(|line| line.starts_with("spanring_")).count(), 1, "{text}");
    assert!(
        text.contains("spanring_ring_generation{pool=\"a\\\"} 1\\nspanring_ring_generation{pool=\\\"b\\\\\"} 0\n"),
        "{text}"
    );
}

#[test]
#[should_panic(expected = "does not stand on the page of metrics")]
#[cfg(debug_assertions)]
fn a_metric_that_is_not_on_the_page_is_found_in_tests() {
    let (_, handles) = store();
    metrics::with_local_recorder(&handles, || {
        metrics::counter!(page::RING_CHANGES_TOTAL, "backend" => "a").increment(1)
    });
}

/// The series of one backend, as dispatch holds them.
fn backend(handles: &Handles, backend: &'static str) -> Counter {
    metrics::with_local_recorder(
        handles,
        || metrics::counter!(page::DISPATCH_BYTES_TOTAL, "pool" => "tail", "backend" => backend),
    )
}

#[test]
fn a_series_leaves_some_time_after_its_last_handle_and_a_returning_backend_counts_on() {
    let (store, handles) = store();
    let start = Instant::now();
    let value = |store: &Store| {
        rendered(store).lines().find_map(|line| {
            line.strip_prefix("spanring_dispatch_bytes_total{")?.split_once("} ")?.1.parse::<u64>().ok()
        })
    };
    let first = backend(&handles, "a");
    first.increment(5);
    store.sweep(start + LINGER * 3);
    assert_eq!(value(&store), Some(5), "it is held, however long ago it last changed");

    drop(first);
    store.sweep(start + LINGER * 3);
    store.sweep(start + LINGER * 4 - Duration::from_secs(1));
    assert_eq!(value(&store), Some(5), "the last scrapes are to see it");

    let back = backend(&handles, "a");
    back.increment(1);
    store.sweep(start + LINGER * 5);
    store.sweep(start + LINGER * 7);
    assert_eq!(value(&store), Some(6), "it came back in time and counts on");

    drop(back);
    store.sweep(start + LINGER * 7);
    store.sweep(start + LINGER * 8);
    assert_eq!(value(&store), None, "nobody held it for all that time");

    let again = backend(&handles, "a");
    again.increment(2);
    assert_eq!(value(&store), Some(2), "one that comes back later begins anew");
}

#[test]
fn series_of_the_process_stay_without_a_handle() {
    let (store, handles) = store();
    metrics::with_local_recorder(&handles, || metrics::gauge!(page::MEMORY_BUDGET_LIMIT_BYTES).set(7.0));
    let now = Instant::now();
    store.sweep(now);
    store.sweep(now + LINGER * 2);
    assert!(rendered(&store).contains("spanring_memory_budget_limit_bytes 7\n"));
}

#[test]
fn too_many_gone_backends_leave_at_once() {
    let (store, handles) = store();
    metrics::with_local_recorder(&handles, || {
        for number in 0..=MAX_LINGERING {
            metrics::gauge!(page::DISPATCH_CONNECTIONS, "pool" => "tail", "backend" => number.to_string()).set(0.0);
        }
    });
    let held = backend(&handles, "here");
    store.sweep(Instant::now());
    let text = rendered(&store);
    assert!(!text.contains(page::DISPATCH_CONNECTIONS), "{} bytes", text.len());
    assert!(text.contains("backend=\"here\""), "{text}");
    drop(held);
}
