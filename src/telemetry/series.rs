//! The series behind `/metrics`. Each lives as long as somebody holds a handle to it; those that carry the name of a pool
//! (or of an owner of certificates) leave some time after the last handle, so that backends and pools that are gone do not stay for ever.
//!
//! A recorder of its own behind the `metrics` facade, since `metrics-exporter-prometheus` can't forget one series: its
//! idle timeout takes away whatever does not change, zeros that are told on purpose included, and what a handle counts
//! after that is lost. Names and labels that do not stand on the [page](super::metrics) have no series at all, so
//! nothing that a client sends can make one.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, SharedString, Unit};
use tokio::time::Instant;

use super::{
    buckets::{self, Buckets},
    metrics::{ALL, Kind, Metric},
};

/// How long a series stays after its last handle: Prometheus itself looks back five minutes, and a backend that comes
/// back within them counts on.
pub(crate) const LINGER: Duration = Duration::from_secs(5 * 60);

/// Series without a handle that may wait for [`LINGER`]; of more, all leave at once. About two pools of 2,048 backends.
const MAX_LINGERING: usize = 1 << 17;

/// Labels that series of passing things carry: `owner` is a pool or a listener with certificates.
const PASSING: [&str; 2] = ["pool", "owner"];

/// All series of a process, in the order of the page.
#[derive(Debug)]
pub(super) struct Store {
    families: Vec<Family>,
    /// Places in `families`.
    by_name: BTreeMap<&'static str, usize>,
}

#[derive(Debug)]
struct Family {
    metric: &'static Metric,
    /// By their labels, as they are written between braces.
    series: Mutex<BTreeMap<Box<str>, Series>>,
}

#[derive(Debug)]
struct Series {
    cell: Cell,
    /// When it was first seen without a handle.
    alone_since: Option<Instant>,
}

/// What handles share with the page.
#[derive(Debug)]
enum Cell {
    Counter(Arc<AtomicU64>),
    /// The bits of a float.
    Gauge(Arc<AtomicU64>),
    Histogram(Arc<Buckets>),
}

/// The facade's side of a [`Store`].
#[derive(Debug)]
pub(super) struct Handles(pub(super) Arc<Store>);

// === impl Store ===

impl Store {
    /// Without a series yet.
    pub(super) fn new() -> Self {
        let families = ALL.iter().map(|metric| Family { metric, series: Mutex::default() }).collect();
        let by_name = ALL.iter().enumerate().map(|(place, metric)| (metric.name, place)).collect();
        Self { families, by_name }
    }

    /// The page in Prometheus' text format.
    pub(super) fn render(&self, page: &mut String) {
        self.families.iter().for_each(|family| family.render(page));
    }

    /// Forgets the series that nobody has held for [`LINGER`].
    pub(super) fn sweep(&self, now: Instant) {
        let lingering: usize = self.passing().map(Family::lingering).sum();
        let linger = if lingering > MAX_LINGERING { Duration::ZERO } else { LINGER };
        self.passing().for_each(|family| family.sweep(now, linger));
    }

    fn passing(&self) -> impl Iterator<Item = &Family> {
        self.families.iter().filter(|family| family.metric.labels.iter().any(|label| PASSING.contains(label)))
    }

    /// What `take` takes of the series of `key`; `None` when the page has no such metric.
    fn cell<T>(&self, key: &Key, kind: Kind, take: impl FnOnce(&Cell) -> Option<T>) -> Option<T> {
        let family = self.by_name.get(key.name()).and_then(|place| self.families.get(*place));
        let family = family.filter(|family| family.metric.kind == kind);
        let labels = family.and_then(|family| family.labels(key));
        debug_assert!(labels.is_some(), "{key} does not stand on the page of metrics with these labels and this kind");
        let (family, labels) = (family?, labels?);
        let mut all = family.lock();
        let series = all.entry(labels.into()).or_insert_with(|| Series::new(family.metric));
        take(&series.cell)
    }
}

// === impl Family ===

impl Family {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Box<str>, Series>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The labels of `key` as text, in the page's order; `None` when they are not those of the page.
    fn labels(&self, key: &Key) -> Option<String> {
        let mut text = String::new();
        for name in self.metric.labels {
            let label = key.labels().find(|label| label.key() == *name)?;
            let comma = if text.is_empty() { "" } else { "," };
            text.push_str(comma);
            text.push_str(name);
            text.push_str("=\"");
            escape(label.value(), &mut text);
            text.push('"');
        }
        (key.labels().len() == self.metric.labels.len()).then_some(text)
    }

    fn render(&self, page: &mut String) {
        let all = self.lock();
        let Metric { name, kind, help, .. } = self.metric;
        if all.is_empty() {
            return;
        }
        heading(name, *kind, help, page);
        for (labels, series) in &*all {
            match &series.cell {
                Cell::Counter(cell) => line(page, name, labels, cell.load(Ordering::Relaxed)),
                Cell::Gauge(cell) => line(page, name, labels, f64::from_bits(cell.load(Ordering::Relaxed))),
                Cell::Histogram(cell) => histogram(page, name, labels, cell),
            }
        }
        page.push('\n');
    }

    fn lingering(&self) -> usize {
        self.lock().values().filter(|series| series.is_alone()).count()
    }

    fn sweep(&self, now: Instant, linger: Duration) {
        // Under the lock nobody can take a handle: a series that is alone stays alone.
        self.lock().retain(|_, series| {
            series.alone_since = series.is_alone().then(|| series.alone_since.unwrap_or(now));
            series.alone_since.is_none_or(|since| now.saturating_duration_since(since) < linger)
        });
    }
}

// === impl Series ===

impl Series {
    fn new(metric: &Metric) -> Self {
        let cell = match metric.kind {
            Kind::Counter => Cell::Counter(Arc::default()),
            Kind::Gauge => Cell::Gauge(Arc::default()),
            Kind::Histogram => Cell::Histogram(Arc::new(Buckets::new(buckets::of(metric.name)))),
        };
        Self { cell, alone_since: None }
    }

    /// Whether nobody holds a handle.
    fn is_alone(&self) -> bool {
        let holders = match &self.cell {
            Cell::Counter(cell) | Cell::Gauge(cell) => Arc::strong_count(cell),
            Cell::Histogram(cell) => Arc::strong_count(cell),
        };
        holders == 1
    }
}

// === impl Handles ===

impl metrics::Recorder for Handles {
    // The page says what a metric means.
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let take = |cell: &Cell| if let Cell::Counter(cell) = cell { Some(Arc::clone(cell)) } else { None };
        self.0.cell(key, Kind::Counter, take).map_or_else(Counter::noop, Counter::from_arc)
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        let take = |cell: &Cell| if let Cell::Gauge(cell) = cell { Some(Arc::clone(cell)) } else { None };
        self.0.cell(key, Kind::Gauge, take).map_or_else(Gauge::noop, Gauge::from_arc)
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        let take = |cell: &Cell| if let Cell::Histogram(cell) = cell { Some(Arc::clone(cell)) } else { None };
        self.0.cell(key, Kind::Histogram, take).map_or_else(Histogram::noop, Histogram::from_arc)
    }
}

/// What stands above the series of a metric.
pub(super) fn heading(name: &str, kind: Kind, help: &str, page: &mut String) {
    let (help, kind) = (help.replace('\\', "\\\\").replace('\n', "\\n"), kind.as_str());
    page.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
}

fn line(page: &mut String, name: &str, labels: &str, value: impl Display) {
    page.push_str(name);
    if !labels.is_empty() {
        page.push('{');
        page.push_str(labels);
        page.push('}');
    }
    write(page, format_args!(" {value}\n"));
}

fn histogram(page: &mut String, name: &str, labels: &str, buckets: &Buckets) {
    let comma = if labels.is_empty() { "" } else { "," };
    let mut below = 0;
    for (bound, count) in buckets.counts() {
        below += count;
        match bound {
            Some(bound) => write(page, format_args!("{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {below}\n")),
            None => write(page, format_args!("{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {below}\n")),
        }
    }
    line(page, &format!("{name}_sum"), labels, buckets.sum());
    line(page, &format!("{name}_count"), labels, below);
}

fn write(page: &mut String, text: std::fmt::Arguments<'_>) {
    page.write_fmt(text).unwrap_or_default(); // A string takes all.
}

/// A label's value as it stands between quotes: whatever a file or DNS named, it stays one value on one line.
fn escape(value: &str, text: &mut String) {
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
}

#[cfg(test)]
mod tests;
