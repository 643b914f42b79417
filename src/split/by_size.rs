//! Cutting a message by size: the same walk, with a router that fills one piece after the other.

use super::{
    Built, NotBuilt, Plan, Scratch, Shape, Targets,
    walk::{Choose, Found},
};
use crate::otlp::{
    Framed, Signal,
    wire::{Malformed, WireError, len_tag, varint_len},
};

/// How much longer than the message its pieces may be together.
///
/// Every piece repeats its envelopes. Where these are nearly as large as a piece may be, the pieces would be many times as long
/// as the message: a resource of 4 MiB with 10,000 spans would become 40 GiB.
const MAX_GROWTH: usize = 4;

/// What a message became when it was to be cut by size.
#[derive(Clone, Debug, PartialEq)]
pub enum BySize {
    /// It was cut.
    Cut {
        /// The pieces in the order of their records, and how many records each has.
        pieces: Vec<(u32, Framed)>,
        /// Whether they share the message's bytes and keep them.
        shares: bool,
    },
    /// The pieces would have taken so many bytes, for which there was no room. Nothing was built.
    NoRoom(usize),
    /// It stays as it is: it is small enough, has one record or none, or its pieces would together be more than four times as
    /// long.
    Whole,
}

/// Cuts a message between records into pieces of at most `max` bytes. A record that is larger with its envelopes goes alone.
///
/// `room` is asked before much is taken: to keep track of the message, and once for all pieces.
pub fn by_size(
    signal: Signal,
    message: &Framed,
    max: usize,
    mut room: impl FnMut(usize) -> bool,
) -> Result<BySize, WireError> {
    match cut(signal.into(), message, max, &mut room) {
        Err(WireError { kind: Malformed::NoRoom(len), .. }) => Ok(BySize::NoRoom(len)),
        result => result,
    }
}

fn cut(shape: Shape, message: &Framed, max: usize, room: &mut dyn FnMut(usize) -> bool) -> Result<BySize, WireError> {
    let len = message.payload_len();
    if len <= max {
        return Ok(BySize::Whole);
    }
    let payload = message.payload_chunks();
    // The first walk finds how large the envelopes are: some of their fields may stand behind the records.
    let mut scratch = Scratch::default();
    let whole = Plan::new(shape, &payload, 0, &mut All, &mut scratch, room)?;
    let records = whole.records();
    if records <= 1 {
        return Ok(BySize::Whole);
    }
    let mut filler = Filler { max, envelopes: envelopes(whole.scratch), piece: 0, filled: 0, latest: None };
    let mut scratch = Scratch::default();
    let plan = Plan::new(shape, &payload, 0, &mut filler, &mut scratch, room)?;
    if plan.total_len() > len.saturating_mul(MAX_GROWTH) {
        return Ok(BySize::Whole);
    }
    let Built { parts, shares, .. } = match plan.build_in_least_room(room) {
        Ok(built) => built,
        Err(NotBuilt::NoRoom(len)) => return Ok(BySize::NoRoom(len)),
        Err(NotBuilt::Inconsistent) => return Err(WireError { offset: 0, kind: Malformed::Inconsistent }),
    };
    let pieces: Vec<_> = parts.into_iter().map(|(share, piece)| (share.records, piece)).collect();
    if pieces.iter().map(|(records, _)| u64::from(*records)).sum::<u64>() != records {
        return Err(WireError { offset: 0, kind: Malformed::Inconsistent });
    }
    Ok(BySize::Cut { pieces, shares })
}

/// Every record to one target.
struct All;

impl Choose for All {
    fn choose(&mut self, _found: &Found<'_>) -> Targets {
        Targets::One(0)
    }
}

/// What a message adds to a piece that holds some of its records.
#[derive(Clone, Copy)]
struct Envelope {
    parent: Option<u32>,
    /// Its own fields, tag and length. The length is counted as that of the whole message, which no piece exceeds.
    len: usize,
}

fn envelopes(scratch: &Scratch) -> Vec<Envelope> {
    let full = scratch.part_messages.iter().map(|message| message.len);
    scratch
        .messages
        .iter()
        .zip(full)
        .map(|(message, full)| match message.field {
            0 => Envelope { parent: None, len: message.envelope_len as usize },
            field => Envelope {
                parent: Some(message.parent),
                len: (varint_len(len_tag(field)) + varint_len(full) + message.envelope_len) as usize,
            },
        })
        .collect()
}

/// Fills one piece after the other.
struct Filler {
    max: usize,
    /// By message: both walks number them alike.
    envelopes: Vec<Envelope>,
    /// Number of the piece that is being filled.
    piece: u32,
    /// Bytes in it, or a few more.
    filled: usize,
    /// The message that its latest record is in; none when it is empty.
    latest: Option<u32>,
}

impl Filler {
    /// Bytes of the messages that the piece does not have yet and needs for a record in `message`.
    ///
    /// Messages are numbered in the order in which they begin, so the new ones are those behind the latest one.
    fn envelopes_of(&self, message: u32, latest: Option<u32>) -> usize {
        let above = |message: &u32| self.envelopes.get(*message as usize).and_then(|envelope| envelope.parent);
        std::iter::successors(Some(message), above)
            .take_while(|message| latest.is_none_or(|latest| *message > latest))
            .map(|message| self.envelopes.get(message as usize).map_or(0, |envelope| envelope.len))
            .sum()
    }
}

impl Choose for Filler {
    fn choose(&mut self, found: &Found<'_>) -> Targets {
        let mut more = found.len as usize + self.envelopes_of(found.message, self.latest);
        if self.latest.is_some() && self.filled + more > self.max {
            self.piece += 1;
            self.filled = 0;
            more = found.len as usize + self.envelopes_of(found.message, None);
        }
        self.filled += more;
        self.latest = Some(found.message);
        Targets::One(self.piece)
    }
}
