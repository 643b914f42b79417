//! Converts a JSON message to protobuf, which is what the pipeline reads.
//!
//! Long documents are converted in one of the [places] for such work, and keep the place until the message was cut.

use bytes::Bytes;
use tonic::Code;

use super::{
    body::BodyError,
    refusal::{Bound, refusal_of_body},
    unpack::{Unpacked, Waiting},
};
use crate::{
    budget::{Buffer, Permit},
    json::{self, JsonError, JsonErrorKind},
    otlp::{Framed, Reason, Refusal, Signal},
    places::{self, LONG},
};

/// How many times the size of its document a message can have: a number of two characters, `0,` in `bucketCounts`, has
/// eight bytes in protobuf. Such a message may be larger than the limit of messages, which its document keeps; the memory
/// account bounds it all the same.
const MOST_GROWTH: usize = 4;

/// Returns the protobuf message of a JSON document.
///
/// Cancel safety: the message is lost, and its place is free again.
pub(super) async fn transcode(
    signal: Signal,
    unpacked: Unpacked,
    bound: Bound,
    waiting: Waiting<'_>,
) -> Result<Unpacked, Refusal> {
    let Unpacked { message, encoding, original, mut permit, place } = unpacked;
    if let Some(original) = original {
        original.release(&mut permit);
    }
    let place = match place {
        None if message.payload_len() > LONG => Some(waiting.take().await?),
        place => place,
    };
    let converted = places::run(place.as_ref(), || convert(signal, message, bound, &mut permit));
    Ok(Unpacked { message: converted?, encoding, original: None, permit, place })
}

fn convert(signal: Signal, document: Framed, bound: Bound, permit: &mut Permit) -> Result<Framed, Refusal> {
    let document = joined(document, permit)?;
    let most = bound.bytes.max(document.len().saturating_mul(MOST_GROWTH));
    let result = json::to_framed(signal, &document, most, permit);
    let (message, held) = result.map_err(|error| refusal_of(&error, bound, permit))?;
    drop(document);
    permit.shrink_to(held);
    Ok(message)
}

/// Joins the buffers of a document to one, which the reader needs. The prefix is left out.
fn joined(document: Framed, permit: &mut Permit) -> Result<Bytes, Refusal> {
    let chunks = document.payload_chunks();
    if let [only] = chunks.as_slice() {
        return Ok(only.clone());
    }
    let held = permit.bytes();
    let mut buffer = Buffer::default();
    if !buffer.reach(document.payload_len(), permit) {
        return Err(Refusal::no_room(held.saturating_add(document.payload_len()), permit.alone()));
    }
    drop(document);
    chunks.into_iter().for_each(|chunk| buffer.bytes.extend_from_slice(&chunk));
    permit.shrink_to(permit.bytes().saturating_sub(held));
    Ok(Bytes::from(buffer.bytes))
}

#[cold]
fn refusal_of(error: &JsonError, bound: Bound, permit: &Permit) -> Refusal {
    match error.kind {
        JsonErrorKind::TooLarge(_) => refusal_of_body(BodyError::TooLarge, bound),
        JsonErrorKind::NoRoom(needs) => Refusal::no_room(needs, permit.alone()),
        JsonErrorKind::Malformed(_) => Refusal::permanent(Code::InvalidArgument, Reason::Malformed, error.to_string()),
    }
}
