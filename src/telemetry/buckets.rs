//! Histograms: which buckets a metric has, and the counts in them.

use std::sync::atomic::{AtomicU64, Ordering};

use metrics::HistogramFn;

use super::metrics::DISPATCH_CALL_PARTS;

/// Seconds. A lone request takes the backend's time and about a millisecond, a loaded one tens of them; deadlines are 5 s
/// (an attempt), 8 s (a request) and 10 s (SDKs), so there is an edge at each. Below half a millisecond nothing is told
/// apart on a network.
const DURATION: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 8.0, 10.0];

/// Parts in a call: 1 is a call that was not merged; doublings above it.
const PARTS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Counts by bucket, and the sum of all values.
#[derive(Debug)]
pub(super) struct Buckets {
    bounds: &'static [f64],
    /// One for each bound and one above them all.
    counts: Box<[AtomicU64]>,
    /// The bits of a float.
    sum: AtomicU64,
}

/// The upper bounds of a metric's buckets.
pub(super) fn of(metric: &str) -> &'static [f64] {
    if metric == DISPATCH_CALL_PARTS { &PARTS } else { &DURATION }
}

// === impl Buckets ===

impl Buckets {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }

    /// How many values each bucket has, with its upper bound; the last one has none.
    pub(super) fn counts(&self) -> impl Iterator<Item = (Option<f64>, u64)> {
        let bounds = self.bounds.iter().copied().map(Some).chain([None]);
        bounds.zip(self.counts.iter().map(|count| count.load(Ordering::Relaxed)))
    }

    pub(super) fn sum(&self) -> f64 {
        f64::from_bits(self.sum.load(Ordering::Relaxed))
    }
}

impl HistogramFn for Buckets {
    fn record(&self, value: f64) {
        // A few comparisons; above all of them is the last bucket.
        let place = self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len());
        if let Some(count) = self.counts.get(place) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
        // It always has a next value, so it never fails.
        self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok();
    }
}
