//! Cuts a message into pieces of a limited size. It uses the same walk as the split, with a router that fills one piece
//! after the other.

use super::{
    Built, NotBuilt, Plan, Scratch, Shape, Targets,
    walk::{Choose, Found},
};
use crate::otlp::{
    Framed, Signal,
    wire::{Malformed, WireError, len_tag, varint_len},
};

/// The greatest total length of all pieces, as a multiple of the message's length.
///
/// Every piece repeats the envelopes of its records. If these are nearly as large as a piece may be, the pieces would
/// be many times as long as the message: a resource of 4 MiB with 10,000 spans would become 40 GiB.
const MAX_GROWTH: usize = 4;

/// The result of cutting a message by size.
#[derive(Clone, Debug, PartialEq)]
pub enum BySize {
    /// The message was cut.
    Cut {
        /// The pieces in the order of their records, and how many records each has.
        pieces: Vec<(u32, Framed)>,
        /// Whether the pieces share the message's buffers, which keeps these in memory.
        shares: bool,
    },
    /// The message was not cut, because the pieces would have taken this many bytes, which the budget does not have.
    NoRoom(usize),
    /// The message was not cut, because it is small enough, has at most one record, or its pieces would together be
    /// more than four times as long.
    Whole,
}

/// Cuts a message between records into pieces of at most `max` bytes. A record that is larger together with its
/// envelopes gets a piece of its own.
///
/// `room` is asked for memory: for all pieces together and, if the message has very many records, to keep track of
/// these.
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
    // The first walk measures the envelopes, since some of their fields may come after the records.
    let mut scratch = Scratch::default();
    let whole = Plan::new(shape, &payload, 0, &mut All, &mut scratch, room)?;
    if whole.records() <= 1 {
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
    let pieces = parts.into_iter().map(|(share, piece)| (share.records, piece)).collect();
    Ok(BySize::Cut { pieces, shares })
}

/// A router that sends every record to one target.
struct All;

impl Choose for All {
    fn choose(&mut self, _found: &Found<'_>) -> Targets {
        Targets::One(0)
    }
}

/// The bytes that a message adds to a piece which contains some of its records.
#[derive(Clone, Copy)]
struct Envelope {
    parent: Option<u32>,
    /// The length of its own fields, tag and length. The size of the length is that of the whole message, which is an
    /// upper bound.
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

/// A router that fills one piece after the other.
struct Filler {
    max: usize,
    /// The envelopes by message number, which is the same in both walks.
    envelopes: Vec<Envelope>,
    /// The number of the piece that is being filled.
    piece: u32,
    /// An upper bound of the number of bytes in it.
    filled: usize,
    /// The message that contains its latest record; `None` while the piece is empty.
    latest: Option<u32>,
}

impl Filler {
    /// Returns the length of the envelopes that a record in `message` adds to the piece: those which it does not have
    /// yet.
    ///
    /// Messages are numbered in the order in which they begin, so these are the ones with a higher number than
    /// `latest`.
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
