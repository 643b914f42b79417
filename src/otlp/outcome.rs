//! The outcome of an export request, as the pipeline reports it to the receivers.

use std::time::Duration;

use tonic::Code;

/// The answer to a client.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The backends have accepted the records, except for `rejected`.
    Accepted {
        /// Number of permanently refused records (`partial_success.rejected_*`).
        rejected: u64,
        /// `partial_success.error_message`; with `rejected` 0 it is OTLP's warning.
        message: Option<String>,
    },
    /// Some or all records were not delivered, and the client must know.
    Refused(Refusal),
}

impl Outcome {
    /// Everything was accepted, without a message.
    pub const OK: Self = Self::Accepted { rejected: 0, message: None };
}

/// The refusal of a whole request.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// The gRPC code; `receive::reply` derives HTTP's status from it.
    pub code: Code,
    /// What was wrong and what to do about it: lowercase, no full stop.
    pub message: String,
    /// The value of `RetryInfo` or `Retry-After`. Without it, OTLP does not call `RESOURCE_EXHAUSTED` retryable.
    pub retry_after: Option<Duration>,
    /// The reason as a metric label.
    pub reason: Reason,
}

impl Refusal {
    /// Builds a refusal that the client must not retry.
    pub fn permanent(code: Code, reason: Reason, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after: None, reason }
    }

    /// Builds an `UNAVAILABLE` with `RetryInfo`. The delay is 1 to 5 s, at random, so that clients that are refused together
    /// do not return together.
    pub fn retryable(reason: Reason, message: impl Into<String>) -> Self {
        let retry_after = Duration::from_millis(fastrand::u64(1_000..=5_000));
        Self { code: Code::Unavailable, message: message.into(), retry_after: Some(retry_after), reason }
    }
}

/// Why a request was refused: the values of the metric label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A backend refused it permanently.
    Backend,
    /// The memory budget had no room.
    Budget,
    /// The deadline passed before all parts were answered.
    Deadline,
    /// The process is shutting down.
    Draining,
    /// The body does not match its headers: framing, compression or content type.
    Framing,
    /// A bug in Spanring; please report it.
    Internal,
    /// The request came from this process itself.
    Loop,
    /// Malformed protobuf.
    Malformed,
    /// There is no table yet: discovery has found no backends.
    NotReady,
    /// A backend's queue is full.
    QueueFull,
    /// The request exceeds `max_recv_msg_size_mib`, or its parts exceed the whole memory budget.
    TooLarge,
    /// There is no route for this signal, or the method or encoding is unknown.
    Unimplemented,
}

impl Reason {
    /// Every reason, so that all series can be created at 0.
    pub const ALL: [Self; 12] = [
        Self::Backend,
        Self::Budget,
        Self::Deadline,
        Self::Draining,
        Self::Framing,
        Self::Internal,
        Self::Loop,
        Self::Malformed,
        Self::NotReady,
        Self::QueueFull,
        Self::TooLarge,
        Self::Unimplemented,
    ];

    /// The value of the metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Backend => "backend",
            Self::Budget => "budget",
            Self::Deadline => "deadline",
            Self::Draining => "draining",
            Self::Framing => "framing",
            Self::Internal => "internal",
            Self::Loop => "loop",
            Self::Malformed => "malformed",
            Self::NotReady => "not_ready",
            Self::QueueFull => "queue_full",
            Self::TooLarge => "too_large",
            Self::Unimplemented => "unimplemented",
        }
    }
}

/// Whether OTLP allows a client to retry after this code; after `RESOURCE_EXHAUSTED` only if `RetryInfo` came with it.
pub fn is_retryable(code: Code, has_retry_info: bool) -> bool {
    match code {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => true,
        Code::ResourceExhausted => has_retry_info,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_spread_over_one_to_five_seconds() {
        let delay = || Refusal::retryable(Reason::Budget, "").retry_after.unwrap();
        let delays: Vec<Duration> = (0..100).map(|_| delay()).collect();
        assert!(delays.iter().all(|delay| (1_000..=5_000).contains(&delay.as_millis())));
        assert!(delays.windows(2).any(|pair| pair[0] != pair[1]));
    }
}
