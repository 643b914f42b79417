//! Histograms with fixed buckets: the bounds that metrics use, and the counts.
//!
//! The crates have no such thing. `AtomicStorage` of `metrics-util` keeps every value until somebody reads it, and its
//! `Histogram` has to be locked to count. Here a value is counted in its bucket at once, without a lock and without memory
//! that grows.

use std::sync::atomic::{AtomicU64, Ordering};

use metrics::HistogramFn;

/// Seconds. A lone request takes the backend's time and about a millisecond, and tens of milliseconds under load. Deadlines
/// are 5 s (an attempt), 8 s (a request) and 10 s (SDKs), so there is a bound at each. Differences below half a millisecond
/// mean nothing on a network.
pub(super) const DURATION: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 8.0, 10.0];

/// Parts in a call: 1 is a call of a single part; from there each bound is twice the one before.
pub(super) const PARTS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// The counts of a histogram's buckets, and the sum of its values.
#[derive(Debug)]
pub(super) struct Buckets {
    bounds: &'static [f64],
    /// One for each bound, and a last one for values above all of them.
    counts: Box<[AtomicU64]>,
    /// The bits of an `f64`.
    sum: AtomicU64,
}

// === impl Buckets ===

impl Buckets {
    /// Empty buckets with these upper bounds, which ascend.
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }

    /// The upper bounds of all but the last bucket.
    pub(super) fn bounds(&self) -> &'static [f64] {
        self.bounds
    }

    /// The count of each bucket alone, the last one's included, which has no bound.
    pub(super) fn counts(&self) -> Vec<u64> {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    /// The sum of all values.
    pub(super) fn sum(&self) -> f64 {
        f64::from_bits(self.sum.load(Ordering::Relaxed))
    }
}

impl HistogramFn for Buckets {
    fn record(&self, value: f64) {
        let bucket = self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len());
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
        // `add` always returns a value, so this cannot fail.
        self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok();
    }
}
