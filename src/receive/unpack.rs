//! Turns a body into a framed message: inflates it if it was compressed.
//!
//! Large messages are inflated in one of the [places] for such work, and keep the place until they were cut.

use bytes::Bytes;
use tokio::time::Instant;
use tonic::Code;

use super::{
    body::{BodyError, Received},
    connection::Connection,
    refusal::{Bound, framing, refusal_of_body},
};
use crate::{
    budget::{Buffer, Permit},
    codec::{Encoding, InflateError, Inflated, Original, expected_len, inflate},
    otlp::{Framed, Reason, Refusal, framed::PREFIX_LEN},
    places::{self, Busy, LONG, Place, Places},
};

/// A message that inflates to more than this many times its size is cut in a place, however short it is. It costs its
/// sender little, and many short records of the same few bytes take ten times as long as others of their length.
const HIGH_RATIO: usize = 100;

/// A message that came uncompressed and has more bytes than this is cut in a place. Its sender had to send all of them, so
/// the limit is higher than that of inflated ones. A place costs 4 % of a span at 8,192 spans a request (1.4 MB), which many
/// clients send.
const LONG_UNCOMPRESSED: usize = 2 << 20;

/// A message that can be cut.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) message: Framed,
    /// How it was compressed.
    pub(super) encoding: Option<Encoding>,
    /// What was inflated, if it can be passed on.
    pub(super) original: Option<Original>,
    /// The budget share of the message and of its original.
    pub(super) permit: Permit,
    /// The place for its cut, if it is large.
    pub(super) place: Option<Place>,
}

/// Where large messages wait, and until when.
pub(super) struct Waiting<'a> {
    pub(super) places: &'a Places,
    pub(super) connection: &'a Connection,
    pub(super) deadline: Instant,
}

/// Returns the framed message, inflated if it was compressed.
///
/// Cancel safety: the message is lost, and its place is free again.
pub(super) async fn unpack(
    received: Received,
    encoding: Option<Encoding>,
    bound: Bound,
    waiting: Waiting<'_>,
) -> Result<Unpacked, Refusal> {
    let Received { chunks, permit } = received;
    let len: usize = chunks.iter().map(Bytes::len).sum();
    if chunks.first().and_then(|bytes| bytes.first()) != Some(&1) {
        let message = Framed::from_chunks(chunks).ok_or_else(|| refusal_of_body(BodyError::Truncated, bound))?;
        let place = if len > LONG_UNCOMPRESSED { Some(waiting.take().await?) } else { None };
        return Ok(Unpacked { message, encoding: None, original: None, permit, place });
    }
    let Some(encoding) = encoding else {
        return Err(framing("message is marked as compressed, but grpc-encoding names no compression"));
    };
    let mut packed = Packed { chunks, permit, encoding };
    if len <= LONG {
        match packed.inflate_short(bound.bytes) {
            Ok(Some((message, original))) => {
                let is_costly = message.payload_len() / HIGH_RATIO > len;
                let place = if is_costly { Some(waiting.take().await?) } else { None };
                let (encoding, permit) = (Some(encoding), packed.permit);
                return Ok(Unpacked { message, encoding, original, permit, place });
            }
            Ok(None) => {}
            Err(error) => return Err(refusal_of(error, bound, &packed.permit)),
        }
    }
    let place = Some(waiting.take().await?);
    let inflated = places::run(place.as_ref(), || packed.inflate(bound.bytes));
    match inflated {
        Ok((message, original)) => {
            Ok(Unpacked { message, encoding: Some(encoding), original, permit: packed.permit, place })
        }
        Err(error) => Err(refusal_of(error, bound, &packed.permit)),
    }
}

/// A compressed message with its prefix.
struct Packed {
    chunks: Vec<Bytes>,
    permit: Permit,
    encoding: Encoding,
}

impl Packed {
    /// Inflates the message if the result is short. `None` if it is, or seems to be, longer than [`LONG`].
    fn inflate_short(&mut self, limit: usize) -> Result<Option<(Framed, Option<Original>)>, InflateError> {
        let bytes = self.join()?;
        let compressed = bytes.get(PREFIX_LEN..).unwrap_or_default();
        if expected_len(self.encoding, compressed) > LONG {
            return Ok(None);
        }
        let held = self.permit.bytes();
        match self.inflate(limit.min(LONG)) {
            Err(InflateError::TooLarge) if limit > LONG => {
                self.permit.shrink_to(held);
                self.chunks = vec![bytes];
                Ok(None)
            }
            result => result.map(Some),
        }
    }

    /// Inflates the message. The permit then covers the result.
    fn inflate(&mut self, limit: usize) -> Result<(Framed, Option<Original>), InflateError> {
        let bytes = self.join()?;
        let compressed = bytes.get(PREFIX_LEN..).unwrap_or_default();
        let before = self.permit.bytes();
        let Inflated { message, held, is_one } = inflate(self.encoding, compressed, limit, &mut self.permit)?;
        self.chunks = Vec::new();
        let original = self.can_be_passed_on(is_one).then_some(Original { bytes, held: before });
        self.permit.shrink_to(held + original.as_ref().map_or(0, |original| original.held));
        Ok((message, original))
    }

    /// Whether a backend can get the message as it came. Some decoders stop after the first of several members or frames,
    /// and would lose the records of the others.
    fn can_be_passed_on(&self, is_one: bool) -> bool {
        match self.encoding {
            Encoding::Gzip | Encoding::Zstd => is_one,
            Encoding::Deflate | Encoding::Snappy => false,
        }
    }

    /// Joins the chunks to one buffer, which decoders need.
    fn join(&mut self) -> Result<Bytes, InflateError> {
        if let [only] = self.chunks.as_slice() {
            return Ok(only.clone());
        }
        let held = self.permit.bytes();
        let len = self.chunks.iter().map(Bytes::len).sum();
        let mut buffer = Buffer::default();
        if !buffer.reach(len, &mut self.permit) {
            return Err(InflateError::NoRoom(held.saturating_add(len)));
        }
        std::mem::take(&mut self.chunks).iter().for_each(|chunk| buffer.bytes.extend_from_slice(chunk));
        self.permit.shrink_to(self.permit.bytes().saturating_sub(held));
        let bytes = Bytes::from(buffer.bytes);
        self.chunks = vec![bytes.clone()];
        Ok(bytes)
    }
}

impl Waiting<'_> {
    /// Waits for a place, until the deadline.
    ///
    /// It is boxed, so that it does not make the futures of small requests larger.
    pub(super) async fn take(self) -> Result<Place, Refusal> {
        Box::pin(self.places.take(&self.connection.queue, self.deadline)).await.map_err(|Busy| {
            Refusal::retryable(Reason::Deadline, "too many large requests: its turn does not come before its deadline")
        })
    }
}

#[cold]
fn refusal_of(error: InflateError, bound: Bound, permit: &Permit) -> Refusal {
    match error {
        InflateError::TooLarge => refusal_of_body(BodyError::TooLarge, bound),
        InflateError::NoRoom(needs) => Refusal::no_room(needs, permit.alone()),
        InflateError::Ratio => Refusal::permanent(
            Code::ResourceExhausted,
            Reason::TooLarge,
            "the message inflates to more than 8 MiB and more than 1,000 times its size: send smaller batches",
        ),
        InflateError::Corrupt(what) => framing(what),
    }
}
