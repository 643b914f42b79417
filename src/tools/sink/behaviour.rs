//! How a sink is told to misbehave, and the seeded dice that decide when.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::tools::ids::mix;

/// What a sink does to its clients; may be changed while it runs. The default is to take everything at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// Milliseconds from a whole request to its answer.
    pub delay_ms: u64,
    /// Share of requests that are refused: their spans are not taken.
    pub failure_rate: f64,
    /// The gRPC code of such a refusal.
    pub failure_code: FailureCode,
    /// `RetryInfo` that goes with it, in milliseconds.
    pub failure_retry_after_ms: Option<u64>,
    /// Take the spans of a refused request all the same, as a backend does that fails after its work.
    pub failure_keeps_spans: bool,
    /// Share of spans that are refused by `partial_success`; which ones follows from their IDs and the seed.
    pub reject_rate: f64,
    /// Seed of all these.
    pub seed: u64,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            delay_ms: 0,
            failure_rate: 0.0,
            failure_code: FailureCode::Unavailable,
            failure_retry_after_ms: None,
            failure_keeps_spans: false,
            reject_rate: 0.0,
            seed: 1,
        }
    }
}

impl Behaviour {
    pub(super) fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms)
    }

    /// Whether request number `n` is refused.
    pub(super) fn fails(&self, n: u64) -> bool {
        chance(self.seed, n, self.failure_rate)
    }

    /// Whether the span with this ID is refused.
    pub(super) fn rejects(&self, span_id: u64) -> bool {
        chance(!self.seed, span_id, self.reject_rate)
    }
}

/// The codes that a backend's own failure may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[clap(rename_all = "snake_case")]
#[expect(missing_docs, reason = "gRPC's own names")]
pub enum FailureCode {
    Cancelled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

impl From<FailureCode> for tonic::Code {
    fn from(code: FailureCode) -> Self {
        match code {
            FailureCode::Cancelled => Self::Cancelled,
            FailureCode::Unknown => Self::Unknown,
            FailureCode::InvalidArgument => Self::InvalidArgument,
            FailureCode::DeadlineExceeded => Self::DeadlineExceeded,
            FailureCode::PermissionDenied => Self::PermissionDenied,
            FailureCode::ResourceExhausted => Self::ResourceExhausted,
            FailureCode::FailedPrecondition => Self::FailedPrecondition,
            FailureCode::Aborted => Self::Aborted,
            FailureCode::OutOfRange => Self::OutOfRange,
            FailureCode::Unimplemented => Self::Unimplemented,
            FailureCode::Internal => Self::Internal,
            FailureCode::Unavailable => Self::Unavailable,
            FailureCode::DataLoss => Self::DataLoss,
            FailureCode::Unauthenticated => Self::Unauthenticated,
        }
    }
}

/// Whether event `n` of a seed is one of a share.
fn chance(seed: u64, n: u64, share: f64) -> bool {
    if share <= 0.0 {
        return false;
    }
    #[expect(clippy::cast_precision_loss, reason = "53 of 64 bits are kept, on purpose")]
    let dice = (mix(mix(seed) ^ n) >> 11) as f64 / (1_u64 << 53) as f64;
    dice < share
}

/// Hands out the numbers of requests.
#[derive(Debug, Default)]
pub(super) struct Sequence(AtomicU64);

impl Sequence {
    pub(super) fn next(&self) -> u64 {
        self.0.fetch_add(1, Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_follow_the_seed_and_come_at_their_rate() {
        let sink = Behaviour { failure_rate: 0.1, seed: 7, ..Behaviour::default() };
        let failures = |sink: &Behaviour| (0..10_000).filter(|n| sink.fails(*n)).collect::<Vec<_>>();
        assert_eq!(failures(&sink), failures(&sink));
        assert_ne!(failures(&sink), failures(&Behaviour { seed: 8, ..sink }));
        assert!((900..1100).contains(&failures(&sink).len()));
        let always = Behaviour { failure_rate: 1.0, ..sink };
        assert_eq!(failures(&always).len(), 10_000);
        let never = Behaviour { failure_rate: 0.0, ..sink };
        assert!(failures(&never).is_empty());
    }

    #[test]
    fn a_behaviour_is_read_from_what_differs_from_the_default() {
        let read: Behaviour = serde_json::from_str(r#"{"delay_ms": 20, "failure_code": "invalid_argument"}"#).unwrap();
        assert_eq!(
            read,
            Behaviour { delay_ms: 20, failure_code: FailureCode::InvalidArgument, ..Behaviour::default() }
        );
        assert!(serde_json::from_str::<Behaviour>(r#"{"delay": 20}"#).is_err(), "unknown keys are refused");
    }
}
