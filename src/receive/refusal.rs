//! Builds the refusals for bodies that cannot be accepted: too large, truncated or wrongly framed.

use tonic::Code;

use super::{body::BodyError, exchange::Limits};
use crate::{
    budget::Budget,
    otlp::{Reason, Refusal},
};

/// The size limit of a message, and the setting that it comes from.
#[derive(Clone, Copy)]
pub(super) struct Bound {
    pub(super) bytes: usize,
    /// The configuration key that sets the limit.
    key: &'static str,
    /// The bytes of memory that one request can get.
    alone: usize,
}

impl Bound {
    /// Returns the limit of a door's messages. If the memory budget is not larger than that, the key is that of the
    /// budget.
    pub(super) fn of(limits: &Limits, budget: &Budget) -> Self {
        let bytes = limits.max_size;
        let key = if bytes >= budget.limit() { "memory_limiter" } else { limits.max_size_key };
        Self { bytes, key, alone: budget.alone() }
    }
}

/// Returns a refusal with the code `INTERNAL`, which gRPC uses for a message that is not framed or compressed as its
/// headers say.
pub(super) fn framing(what: &'static str) -> Refusal {
    Refusal::permanent(Code::Internal, Reason::Framing, what)
}

/// Returns the refusal for a body that could not be read.
pub(super) fn refusal_of_body(error: BodyError, bound: Bound) -> Refusal {
    match error {
        BodyError::TooLarge => Refusal::permanent(
            Code::ResourceExhausted,
            Reason::TooLarge,
            format!("message is larger than {} bytes; send smaller batches or raise {}", bound.bytes, bound.key),
        ),
        BodyError::NoRoom(needs) => Refusal::no_room(needs, bound.alone),
        BodyError::Flag => framing("message prefix has an unknown flag"),
        BodyError::Truncated => framing("body ends inside a message"),
        // gRPC prescribes this code for a wrong number of messages (doc/statuscodes.md in the gRPC repository).
        BodyError::Missing => {
            Refusal::permanent(Code::Unimplemented, Reason::Framing, "body holds no message, but one is needed")
        }
        BodyError::Excess => {
            Refusal::permanent(Code::Unimplemented, Reason::Framing, "body holds more than one message")
        }
        BodyError::Gone => Refusal::permanent(Code::Cancelled, Reason::Framing, "the request was cancelled"),
    }
}
