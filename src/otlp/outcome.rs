//! What became of an export request: the one vocabulary between pipeline and receivers.

use std::time::Duration;

use tonic::Code;

/// What a client is answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The records are with their backends, less `rejected`.
    Accepted {
        /// Records that were refused for good (`partial_success.rejected_*`).
        rejected: u64,
        /// `partial_success.error_message`; with `rejected` 0 it is OTLP's warning.
        message: Option<String>,
    },
    /// Nothing, or not everything, was delivered and the client has to know.
    Refused(Refusal),
}

impl Outcome {
    /// Everything was accepted and there is nothing to say.
    pub const OK: Self = Self::Accepted { rejected: 0, message: None };
}

/// A refusal of a whole request.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// The gRPC code; HTTP's status follows from it in `receive::reply`.
    pub code: Code,
    /// What was wrong and what to do instead: lowercase, no full stop.
    pub message: String,
    /// `RetryInfo` or `Retry-After`; OTLP calls `RESOURCE_EXHAUSTED` retryable only with it.
    pub retry_after: Option<Duration>,
    /// Why, as a metric label.
    pub reason: Reason,
}

impl Refusal {
    /// A refusal that the client must not repeat as it is.
    pub fn permanent(code: Code, reason: Reason, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after: None, reason }
    }

    /// `UNAVAILABLE` with `RetryInfo`.
    pub fn retryable(reason: Reason, retry_after: Duration, message: impl Into<String>) -> Self {
        Self { code: Code::Unavailable, message: message.into(), retry_after: Some(retry_after), reason }
    }
}

/// Why a request was refused: the values of the metric label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A backend refused it for good.
    Backend,
    /// The memory budget had no room.
    Budget,
    /// The deadline passed with parts still owed.
    Deadline,
    /// Shutting down.
    Draining,
    /// The body was not what its headers said: framing, compression, content type.
    Framing,
    /// A defect of ours; please report it.
    Internal,
    /// This process sent it to itself.
    Loop,
    /// Malformed protobuf.
    Malformed,
    /// No table yet: discovery has found no backends.
    NotReady,
    /// A backend's queue had no room.
    QueueFull,
    /// Larger than `max_recv_msg_size_mib`, or than the whole budget once cut.
    TooLarge,
    /// No route for this signal, or an unknown method or encoding.
    Unimplemented,
}

impl Reason {
    /// Every reason, so that its series can be created at 0.
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

    /// The label value.
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

/// Whether OTLP lets a client send again what was answered with this code; `RESOURCE_EXHAUSTED` only with `RetryInfo`.
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
