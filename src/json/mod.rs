//! OTLP/JSON to protobuf: reads a document once and writes the message that the cut reads, without an object in between.
//!
//! It takes what OTLP's specification allows and what Collectors read: IDs in hexadecimal, enumerations by name or number,
//! integers as numbers or strings (`5.0` and `1e3` too), `NaN` and infinities, `null` for any field, base64 in both
//! alphabets with or without padding. Fields with other names, also those in `snake_case`, are skipped, whatever they hold.
//!
//! **Doubled names** are read as protobuf reads doubled fields: the last value counts, lists are joined, and messages are
//! merged. A `null` is no value and replaces none.
//!
//! The tables of messages and fields are generated from OTLP's descriptors, and a test compares them. The room imports
//! only the vocabulary and the memory budget.
//!
//! **The lexer is our own** (`lexer`, `strings`, `numbers`; no unsafe code and no special instructions), because the parsers
//! that others keep refuse documents that Collectors take. `jiter` (0.19) and `serde_json` refuse text with half of a
//! surrogate pair, which JavaScript's `JSON.stringify` writes as an escape, and values that nest deeper than 200 and 128,
//! since both recurse. `serde_json` reads every number with a point or an exponent as `f64`, which has too few bits for times
//! in nanoseconds. Neither can try a name that is expected without decoding the one that comes, nor read a number in quotes
//! without looking for its end first. What speaks against a lexer of one's own
//! is that faults in it are one's own, too: so it is fuzzed, and tests compare it with `serde_json` and with messages that
//! are made from OTLP's descriptors.

mod attributes;
mod error;
mod lexer;
mod numbers;
mod output;
mod schema;
mod strings;
#[rustfmt::skip]
mod tables;
mod transcode;
mod values;

use bytes::{Buf, Bytes};

pub use self::error::{JsonError, JsonErrorKind, Malformed};
use self::schema::Message;
use crate::{
    budget::{Budget, Permit},
    otlp::{Framed, Signal},
};

/// Converts the JSON of an export request to its protobuf message, of at most `most` bytes. The memory counts in no
/// budget: for tools and tests.
pub fn to_protobuf(signal: Signal, json: &[u8], most: usize) -> Result<Bytes, JsonError> {
    let (message, _) = to_framed(signal, json, most, &mut Budget::new(usize::MAX).permit())?;
    let mut payload = message.payload_chunk();
    Ok(payload.copy_to_bytes(payload.remaining()))
}

/// Converts the JSON of an export request to its protobuf message, of at most `most` bytes, with room for a prefix of gRPC
/// in front.
///
/// The permit grows by the size of the output while it still covers the document. Returns the message and its size in
/// memory; the caller shrinks the permit to that size once it has dropped the document. Besides the output, memory is
/// used only for what is open: less than 1 MiB at the deepest nesting that is read, a few KiB usually.
pub fn to_framed(signal: Signal, json: &[u8], most: usize, permit: &mut Permit) -> Result<(Framed, usize), JsonError> {
    transcode::transcode(request(signal), json, most, permit)
}

fn request(signal: Signal) -> &'static Message {
    match signal {
        Signal::Traces => &tables::EXPORT_TRACE_SERVICE_REQUEST,
        Signal::Metrics => &tables::EXPORT_METRICS_SERVICE_REQUEST,
        Signal::Logs => &tables::EXPORT_LOGS_SERVICE_REQUEST,
        Signal::Profiles => &tables::EXPORT_PROFILES_SERVICE_REQUEST,
    }
}

#[cfg(test)]
mod tests;
