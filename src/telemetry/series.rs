//! The store of all series of the process, and the page that is written from it.
//!
//! `metrics-util`'s registry holds the series, and `metrics-exporter-prometheus` writes the lines of the page. Three things
//! are done here:
//!
//! - Only metrics of [`super::metrics`], with the kind and the labels that stand there, get a series. Nothing that a client
//!   sends can add one.
//! - A series with the label `pool` or `owner` is deleted some time after its last handle was dropped. So the series of
//!   backends and pools that are gone leave the page.
//! - The page has the metrics in the order of [`super::metrics`], and their series in the order of their labels.
//!
//! The exporter's own recorder is not used. It can only delete series that have not changed for a while: that takes away
//! zeros which are there on purpose, and a handle that still exists then counts into nothing. Also, each value of a histogram
//! would be stored with a time stamp until somebody reads it, in memory that grows with the load.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Metadata, SharedString, Unit};
use metrics_exporter_prometheus::{
    LabelSet,
    formatting::{write_help_line, write_metric_line, write_type_line},
};
use metrics_util::registry::{Registry, Storage};
use tokio::time::Instant;

use super::{
    buckets::Buckets,
    metrics::{ALL, Kind, Metric, find},
};

/// How long a series stays after its last handle was dropped. Prometheus looks back five minutes for a value. A backend that
/// comes back within this time continues its counters.
pub(crate) const LINGER: Duration = Duration::from_secs(5 * 60);

/// How many series without a handle may wait for [`LINGER`] to pass. If there are more, all of them are deleted at once. This
/// is about the number of two pools with 2,048 backends each.
const MAX_LINGERING: usize = 1 << 17;

/// The labels of things that come and go: pools, and owners of certificates, which are pools or listeners.
const PASSING_LABELS: [&str; 2] = ["pool", "owner"];

/// All series of a process. It is the recorder behind the `metrics` facade.
#[derive(Debug)]
pub(super) struct Store {
    registry: Registry<Key, FixedBuckets>,
    /// When each series that nobody holds was first seen so.
    unheld_since: Mutex<HashMap<Key, Instant>>,
}

/// How the registry makes the value of a new series.
#[derive(Debug)]
struct FixedBuckets;

/// The value of a series at one moment.
#[derive(Debug)]
enum Value {
    Count(u64),
    Number(f64),
    Distribution { bounds: &'static [f64], counts: Vec<u64>, sum: f64 },
}

// === impl Store ===

impl Store {
    /// A store without series.
    pub(super) fn new() -> Self {
        Self { registry: Registry::new(FixedBuckets), unheld_since: Mutex::default() }
    }

    /// The page in Prometheus' text format, with these values of the process, by the names of their metrics.
    pub(super) fn render(&self, process: &[(&'static str, f64)]) -> String {
        let mut all: BTreeMap<KeyName, Vec<(Key, Value)>> = BTreeMap::new();
        let mut add = |key: &Key, value| all.entry(key.name_shared()).or_default().push((key.clone(), value));
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        self.registry.visit_counters(|key, counter| add(key, Value::Count(load(counter))));
        self.registry.visit_gauges(|key, gauge| add(key, Value::Number(f64::from_bits(load(gauge)))));
        self.registry.visit_histograms(|key, buckets| add(key, Value::of(buckets)));
        process.iter().for_each(|(name, value)| add(&Key::from_static_name(name), Value::Number(*value)));
        let mut page = String::new();
        for metric in ALL {
            if let Some(mut series) = all.remove(metric.name) {
                series.sort_by(|(a, _), (b, _)| a.labels().cmp(b.labels()));
                write_metric(&mut page, metric, &series);
            }
        }
        page
    }

    /// Deletes the series that nobody has held for [`LINGER`].
    pub(super) fn sweep(&self, now: Instant) {
        if self.sweep_after(now, LINGER) > MAX_LINGERING {
            self.sweep_after(now, Duration::ZERO);
        }
    }

    /// Deletes the series that nobody has held for `linger`. Returns how many others there are that nobody holds.
    fn sweep_after(&self, now: Instant, linger: Duration) -> usize {
        let mut unheld_since = self.unheld_since.lock().unwrap_or_else(PoisonError::into_inner);
        let mut still_unheld = HashMap::new();
        // The registry calls this under the lock that it makes handles under, so a series that nobody holds stays so.
        let mut keep = |key: &Key, holders: usize| {
            if holders > 1 || !key.labels().any(|label| PASSING_LABELS.contains(&label.key())) {
                return true;
            }
            let since = unheld_since.get(key).copied().unwrap_or(now);
            let keeps = now.saturating_duration_since(since) < linger;
            if keeps {
                still_unheld.insert(key.clone(), since);
            }
            keeps
        };
        self.registry.retain_counters(|key, counter| keep(key, Arc::strong_count(counter)));
        self.registry.retain_gauges(|key, gauge| keep(key, Arc::strong_count(gauge)));
        self.registry.retain_histograms(|key, buckets| keep(key, Arc::strong_count(buckets)));
        *unheld_since = still_unheld;
        unheld_since.len()
    }
}

impl metrics::Recorder for Store {
    // Help and units stand in `super::metrics`.
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let key = declared(key, |kind| matches!(kind, Kind::Counter));
        let handle = |key| self.registry.get_or_create_counter(&key, |counter| Counter::from_arc(Arc::clone(counter)));
        key.map_or_else(Counter::noop, handle)
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        let key = declared(key, |kind| matches!(kind, Kind::Gauge));
        let handle = |key| self.registry.get_or_create_gauge(&key, |gauge| Gauge::from_arc(Arc::clone(gauge)));
        key.map_or_else(Gauge::noop, handle)
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        let key = declared(key, |kind| matches!(kind, Kind::Histogram(_)));
        let handle = |key| self.registry.get_or_create_histogram(&key, |it| Histogram::from_arc(Arc::clone(it)));
        key.map_or_else(Histogram::noop, handle)
    }
}

/// The key of a series with its labels in the declared order; `None` if no such metric is declared.
fn declared(key: &Key, is_kind: impl Fn(Kind) -> bool) -> Option<Key> {
    let metric = find(key.name()).filter(|metric| is_kind(metric.kind));
    let labels = metric.filter(|metric| metric.labels.len() == key.labels().len()).and_then(|metric| {
        let label = |name: &&str| key.labels().find(|label| label.key() == *name).map(doubled_backslashes);
        metric.labels.iter().map(label).collect::<Option<Vec<_>>>()
    });
    debug_assert!(labels.is_some(), "{key} does not stand on the page of metrics with these labels and this kind");
    Some(Key::from_parts(metric?.name, labels?).to_retained())
}

/// A label as the exporter has to get it. It takes two backslashes for one that is escaped already, and drops a backslash in
/// front of a quote, so that different values would become the same. Of doubled ones it writes each pair as it stands.
fn doubled_backslashes(label: &Label) -> Label {
    match label.value().contains('\\') {
        true => Label::new(label.key().to_owned(), label.value().replace('\\', "\\\\")),
        false => label.clone(),
    }
}

// === impl FixedBuckets ===

impl Storage<Key> for FixedBuckets {
    type Counter = Arc<AtomicU64>;
    /// The bits of an `f64`.
    type Gauge = Arc<AtomicU64>;
    type Histogram = Arc<Buckets>;

    fn counter(&self, _: &Key) -> Self::Counter {
        Arc::default()
    }

    fn gauge(&self, _: &Key) -> Self::Gauge {
        Arc::default()
    }

    fn histogram(&self, key: &Key) -> Self::Histogram {
        let bounds = match find(key.name()).map(|metric| metric.kind) {
            Some(Kind::Histogram(bounds)) => bounds,
            _ => &[],
        };
        Arc::new(Buckets::new(bounds))
    }
}

// === impl Value ===

impl Value {
    fn of(buckets: &Buckets) -> Self {
        Self::Distribution { bounds: buckets.bounds(), counts: buckets.counts(), sum: buckets.sum() }
    }

    /// Writes the lines of a series.
    fn write(&self, page: &mut String, name: &str, labels: &LabelSet) {
        let plain = None::<(&str, &str)>;
        match self {
            Self::Count(count) => write_metric_line(page, name, None, labels, plain, count, None),
            Self::Number(number) => write_metric_line(page, name, None, labels, plain, number, None),
            Self::Distribution { bounds, counts, sum } => {
                let bounds = bounds.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
                let mut total = 0;
                for (bound, count) in bounds.zip(counts) {
                    total += count;
                    write_metric_line(page, name, Some("bucket"), labels, Some(("le", bound)), total, None);
                }
                write_metric_line(page, name, Some("sum"), labels, plain, sum, None);
                write_metric_line(page, name, Some("count"), labels, plain, total, None);
            }
        }
    }
}

/// Writes a metric: what it is, and all its series.
fn write_metric(page: &mut String, Metric { name, kind, help, .. }: &Metric, series: &[(Key, Value)]) {
    write_help_line(page, name, None, None, help);
    write_type_line(page, name, None, None, kind.as_str());
    for (key, value) in series {
        value.write(page, name, &LabelSet::from_key_and_global(key, &Default::default()));
    }
    page.push('\n');
}

#[cfg(test)]
mod tests;
