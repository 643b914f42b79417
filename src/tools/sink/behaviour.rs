//! Configurable misbehaviour of a sink, and the seeded random numbers that decide when it occurs.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::tools::ids::mix;

/// How a sink treats requests. It may be changed while the sink runs. By default, everything is accepted at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// Milliseconds from the end of a request to its answer.
    pub delay_ms: u64,
    /// Share of requests that are refused. Their spans are not counted as accepted.
    pub failure_rate: f64,
    /// Status of a refusal.
    pub failure_code: FailureCode,
    /// `RetryInfo` of a refusal, in milliseconds.
    pub failure_retry_after_ms: Option<u64>,
    /// Whether to accept the spans of a refused request all the same, like a backend that fails after its work is done.
    pub failure_keeps_spans: bool,
    /// Share of records that are rejected by `partial_success`. For spans, the choice depends on the seed and the span
    /// ID; for other records, on the seed, the number of the request and the record's index in it.
    pub reject_rate: f64,
    /// Seed of these choices.
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

    /// Returns how request number `n` is refused, or `None` if it is not.
    pub(super) fn failure(&self, n: u64) -> Option<FailureCode> {
        chance(self.seed, n, self.failure_rate).then_some(self.failure_code)
    }

    /// Returns whether the span with this ID is rejected.
    pub(super) fn rejects(&self, span_id: u64) -> bool {
        chance(!self.seed, span_id, self.reject_rate)
    }
}

/// Failures of a backend (gRPC codes) and of the transport to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[clap(rename_all = "snake_case")]
#[expect(missing_docs, reason = "gRPC's own names, and HTTP/2's")]
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
    /// RST_STREAM with REFUSED_STREAM before the request was processed, as sent by servers that shut down or have too
    /// many streams.
    RefusedStream,
    /// HTTP 502 without a gRPC status, as sent by a proxy in between.
    Http502,
    /// HTTP 503 without a gRPC status.
    Http503,
}

/// The answer that is sent instead of an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A gRPC status with this code.
    Status(tonic::Code),
    /// An HTML page with this HTTP status.
    Page(http::StatusCode),
    /// A reset of the stream before its body is read.
    Reset,
}

impl FailureCode {
    pub(super) fn refusal(self) -> Refusal {
        use tonic::Code;

        Refusal::Status(match self {
            Self::RefusedStream => return Refusal::Reset,
            Self::Http502 => return Refusal::Page(http::StatusCode::BAD_GATEWAY),
            Self::Http503 => return Refusal::Page(http::StatusCode::SERVICE_UNAVAILABLE),
            Self::Cancelled => Code::Cancelled,
            Self::Unknown => Code::Unknown,
            Self::InvalidArgument => Code::InvalidArgument,
            Self::DeadlineExceeded => Code::DeadlineExceeded,
            Self::PermissionDenied => Code::PermissionDenied,
            Self::ResourceExhausted => Code::ResourceExhausted,
            Self::FailedPrecondition => Code::FailedPrecondition,
            Self::Aborted => Code::Aborted,
            Self::OutOfRange => Code::OutOfRange,
            Self::Unimplemented => Code::Unimplemented,
            Self::Internal => Code::Internal,
            Self::Unavailable => Code::Unavailable,
            Self::DataLoss => Code::DataLoss,
            Self::Unauthenticated => Code::Unauthenticated,
        })
    }
}

/// Decides whether event `n` belongs to the share, by the seed.
fn chance(seed: u64, n: u64, share: f64) -> bool {
    if share <= 0.0 {
        return false;
    }
    #[expect(clippy::cast_precision_loss, reason = "only 53 of the 64 bits are used")]
    let dice = (mix(mix(seed) ^ n) >> 11) as f64 / (1_u64 << 53) as f64;
    dice < share
}

/// Numbers the requests.
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
    fn failures_depend_on_the_seed_and_have_their_rate() {
        let sink = Behaviour { failure_rate: 0.1, seed: 7, ..Behaviour::default() };
        let failures = |sink: &Behaviour| (0..10_000).filter(|n| sink.failure(*n).is_some()).collect::<Vec<_>>();
        assert_eq!(failures(&sink), failures(&sink));
        assert_ne!(failures(&sink), failures(&Behaviour { seed: 8, ..sink }));
        assert!((900..1100).contains(&failures(&sink).len()));
        let always = Behaviour { failure_rate: 1.0, ..sink };
        assert_eq!(failures(&always).len(), 10_000);
        let never = Behaviour { failure_rate: 0.0, ..sink };
        assert!(failures(&never).is_empty());
    }

    #[test]
    fn missing_fields_of_a_behaviour_have_their_defaults() {
        let read: Behaviour = serde_json::from_str(r#"{"delay_ms": 20, "failure_code": "invalid_argument"}"#).unwrap();
        assert_eq!(
            read,
            Behaviour { delay_ms: 20, failure_code: FailureCode::InvalidArgument, ..Behaviour::default() }
        );
        assert!(serde_json::from_str::<Behaviour>(r#"{"delay": 20}"#).is_err(), "unknown keys are refused");
    }
}
