//! Counters of the split, resolved once for each signal of a route.

use metrics::Counter;

use crate::{
    otlp::{Outcome, Refusal, Signal},
    route::InvalidIds,
};

/// What the pipeline counts of one signal.
pub(super) struct SignalMetrics {
    pub(super) whole: Counter,
    pub(super) cut: Counter,
    pub(super) empty: Counter,
    pub(super) records: Counter,
    pub(super) parts: Counter,
    pub(super) retried: Counter,
    pub(super) replaced: Counter,
    pub(super) possible_duplicates: Counter,
    accepted: Counter,
    rejected: Counter,
    refused: Counter,
    ids_empty: Counter,
    ids_zero: Counter,
    ids_wrong_length: Counter,
}

impl SignalMetrics {
    pub(super) fn new(pool: &str, signal: Signal) -> Self {
        let name = signal.as_str();
        let pool = pool.to_owned();
        let requests = |kind| metrics::counter!("spanring_split_requests_total", "signal" => name, "kind" => kind);
        let invalid = |kind| metrics::counter!("spanring_split_invalid_ids_total", "signal" => name, "kind" => kind);
        let answered =
            |outcome| metrics::counter!("spanring_receiver_records_total", "signal" => name, "outcome" => outcome);
        Self {
            whole: requests("whole"),
            cut: requests("cut"),
            empty: requests("empty"),
            records: metrics::counter!("spanring_split_records_total", "signal" => name),
            parts: metrics::counter!("spanring_split_parts_total", "signal" => name),
            retried: metrics::counter!("spanring_dispatch_retried_parts_total", "pool" => pool.clone(), "signal" => name),
            replaced: metrics::counter!("spanring_dispatch_replaced_parts_total", "pool" => pool.clone(), "signal" => name),
            possible_duplicates: metrics::counter!("spanring_dispatch_possible_duplicate_records_total", "pool" => pool),
            accepted: answered("accepted"),
            rejected: answered("rejected"),
            refused: answered("refused"),
            ids_empty: invalid("empty"),
            ids_zero: invalid("zero"),
            ids_wrong_length: invalid("wrong_length"),
        }
    }

    /// Counts the records of a request by what its client was answered.
    pub(super) fn note_outcome(&self, records: u64, outcome: &Result<Outcome, Refusal>) {
        match outcome {
            Ok(Outcome::Accepted { rejected, .. }) => {
                self.accepted.increment(records.saturating_sub(*rejected));
                self.rejected.increment(*rejected);
            }
            Ok(Outcome::Refused(refusal)) | Err(refusal) if refusal.retry_after.is_none() => {
                self.rejected.increment(records);
            }
            Ok(Outcome::Refused(_)) | Err(_) => self.refused.increment(records),
        }
    }

    pub(super) fn note_invalid(&self, ids: InvalidIds) {
        if ids.total() > 0 {
            self.ids_empty.increment(ids.empty);
            self.ids_zero.increment(ids.zero);
            self.ids_wrong_length.increment(ids.wrong_length);
        }
    }
}

impl std::fmt::Debug for SignalMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignalMetrics").finish_non_exhaustive()
    }
}
