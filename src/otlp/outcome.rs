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

    /// Builds the refusal of a request for which there is no memory: it needs `needs` bytes. `alone` is what one request
    /// can get while the process does nothing else. A request that needs more is refused for good, since it would never
    /// be taken.
    pub fn no_room(needs: usize, alone: usize) -> Self {
        if needs > alone {
            let message = format!(
                "the request needs {needs} bytes of memory, more than the {alone} that there are for one request: send \
                 smaller batches or raise memory_limiter"
            );
            return Self::permanent(Code::ResourceExhausted, Reason::TooLarge, message);
        }
        Self::retryable(Reason::Budget, "the memory budget is used up, or the share of one connection; retry later")
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
    /// The request exceeds a bound on its size: `max_recv_msg_size_mib`, the memory that there is for one request, the
    /// number of its records, or the ratio of its compression.
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
    fn a_request_that_can_never_fit_is_refused_for_good_and_any_other_for_now() {
        const MIB: usize = 1 << 20;
        let cases = [
            (0, 0, true),
            (0, MIB, true),
            (MIB - 1, MIB, true),
            (MIB, MIB, true),
            (MIB + 1, MIB, false),
            (1, 0, false),
            (usize::MAX, 64 * MIB, false),
        ];
        for (needs, alone, retry) in cases {
            let refusal = Refusal::no_room(needs, alone);
            assert_eq!(refusal.retry_after.is_some(), retry, "{needs} of {alone}");
            let (code, reason) =
                if retry { (Code::Unavailable, Reason::Budget) } else { (Code::ResourceExhausted, Reason::TooLarge) };
            assert_eq!((refusal.code, refusal.reason), (code, reason), "{needs} of {alone}");
            assert_eq!(refusal.message.ends_with("raise memory_limiter"), !retry, "{needs} of {alone}");
        }
    }

    #[test]
    fn retries_are_spread_over_one_to_five_seconds() {
        let delay = || Refusal::retryable(Reason::Budget, "").retry_after.unwrap();
        let delays: Vec<Duration> = (0..100).map(|_| delay()).collect();
        assert!(delays.iter().all(|delay| (1_000..=5_000).contains(&delay.as_millis())));
        assert!(delays.windows(2).any(|pair| pair[0] != pair[1]));
    }
}
