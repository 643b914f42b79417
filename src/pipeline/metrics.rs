//! Metrics of the pipeline. The handles are resolved once for each signal of a route.

use metrics::{Counter, counter};

use crate::{
    otlp::{Outcome, Refusal, Signal},
    route::{HandedOff, InvalidIds},
    telemetry::metrics as page,
};

/// The metric handles of one signal.
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
    to_current: Counter,
    to_previous: Counter,
    to_both: Counter,
    left_out: Counter,
    pub(super) copies: CopyMetrics,
}

/// The counters of copies, in records.
pub(super) struct CopyMetrics {
    pub(super) delivered: Counter,
    pub(super) rejected: Counter,
    pub(super) dropped: Counter,
    pub(super) given_up: Counter,
    pub(super) counted: Counter,
}

impl SignalMetrics {
    pub(super) fn new(pool: &str, signal: Signal) -> Self {
        let name = signal.as_str();
        let pool = pool.to_owned();
        let requests = |kind| counter!(page::SPLIT_REQUESTS_TOTAL, "signal" => name, "kind" => kind);
        let invalid = |kind| counter!(page::SPLIT_INVALID_IDS_TOTAL, "signal" => name, "kind" => kind);
        let moved = |decision| counter!(page::HANDOFF_RECORDS_TOTAL, "pool" => pool.clone(), "decision" => decision);
        let copies = |outcome| counter!(page::HANDOFF_COPIES_TOTAL, "pool" => pool.clone(), "outcome" => outcome);
        let answered = |outcome| counter!(page::RECEIVER_RECORDS_TOTAL, "signal" => name, "outcome" => outcome);
        Self {
            whole: requests("whole"),
            cut: requests("cut"),
            empty: requests("empty"),
            records: counter!(page::SPLIT_RECORDS_TOTAL, "signal" => name),
            parts: counter!(page::SPLIT_PARTS_TOTAL, "signal" => name),
            retried: counter!(page::DISPATCH_RETRIED_PARTS_TOTAL, "pool" => pool.clone(), "signal" => name),
            replaced: counter!(page::DISPATCH_REPLACED_PARTS_TOTAL, "pool" => pool.clone(), "signal" => name),
            possible_duplicates: counter!(page::DISPATCH_POSSIBLE_DUPLICATE_RECORDS_TOTAL, "pool" => pool.clone()),
            to_current: moved("current"),
            to_previous: moved("previous"),
            to_both: moved("both"),
            left_out: counter!(page::HANDOFF_LEFT_OUT_TOTAL, "pool" => pool.clone()),
            copies: CopyMetrics {
                delivered: copies("delivered"),
                rejected: copies("rejected"),
                dropped: copies("dropped"),
                given_up: copies("given_up"),
                counted: copies("counted"),
            },
            accepted: answered("accepted"),
            rejected: answered("rejected"),
            refused: answered("refused"),
            ids_empty: invalid("empty"),
            ids_zero: invalid("zero"),
            ids_wrong_length: invalid("wrong_length"),
        }
    }

    /// Counts the records of a request by the client's answer.
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

    pub(super) fn note_handed_off(&self, records: HandedOff) {
        if records != HandedOff::default() {
            self.to_current.increment(records.current);
            self.to_previous.increment(records.previous);
            self.to_both.increment(records.both);
            self.left_out.increment(records.left_out);
            self.copies.dropped.increment(records.dropped);
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
