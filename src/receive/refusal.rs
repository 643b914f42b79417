//! What a client of OTLP/gRPC is told of a body that cannot be taken: too large, cut off, wrongly framed.

use tonic::Code;

use super::{body::BodyError, reply::retry_delay};
use crate::{
    budget::Budget,
    otlp::{Reason, Refusal},
};

/// The largest message that is taken.
#[derive(Clone, Copy)]
pub(super) struct Bound {
    pub(super) bytes: usize,
    /// The key that sets it.
    key: &'static str,
}

impl Bound {
    /// Where memory is scarcer than what one message may take, the bound is that of memory.
    pub(super) fn of(bytes: usize, budget: &Budget) -> Self {
        let is_memory = bytes >= budget.limit();
        Self { bytes, key: if is_memory { "memory_limiter" } else { "max_recv_msg_size_mib" } }
    }
}

/// gRPC's own code for a message that is not framed or compressed as its headers say is `INTERNAL`.
pub(super) fn framing(what: &'static str) -> Refusal {
    Refusal::permanent(Code::Internal, Reason::Framing, what)
}

/// What a client is told of a body that cannot be taken.
pub(super) fn refusal_of_body(error: BodyError, bound: Bound) -> Refusal {
    match error {
        BodyError::TooLarge => Refusal::permanent(
            Code::ResourceExhausted,
            Reason::TooLarge,
            format!("message is larger than {} bytes; send smaller batches or raise {}", bound.bytes, bound.key),
        ),
        BodyError::Budget => Refusal::retryable(Reason::Budget, retry_delay(), "memory budget is used up; retry later"),
        BodyError::Flag => framing("message prefix has an unknown flag"),
        BodyError::Truncated => framing("body ends inside a message"),
        // The code of gRPC's specification for a wrong number of messages (doc/statuscodes.md).
        BodyError::Missing => {
            Refusal::permanent(Code::Unimplemented, Reason::Framing, "body holds no message where one is needed")
        }
        BodyError::Excess => {
            Refusal::permanent(Code::Unimplemented, Reason::Framing, "body holds more than one message")
        }
        BodyError::Gone => Refusal::permanent(Code::Cancelled, Reason::Framing, "the request was cancelled"),
    }
}
