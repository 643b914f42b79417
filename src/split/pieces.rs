//! Cutting a message by size: the same walk, with a router that fills one piece after the other.

use super::{
    Built, Plan, Scratch, Shape, Targets,
    walk::{Choose, Found},
};
use crate::otlp::{
    Framed, Signal,
    wire::{Malformed, WireError, len_tag, varint_len},
};

/// How much longer than the message its pieces may be together.
///
/// Every piece repeats its envelopes. When these are nearly as large as a piece may be, the pieces would be many times
/// the message: a resource of 4 MiB with 10,000 spans would become 40 GiB.
const MAX_GROWTH: usize = 4;

/// What a message became when it was to be cut by size.
#[derive(Clone, Debug, PartialEq)]
pub enum BySize {
    /// It was cut.
    Cut {
        /// In the order of their records, and how many records each has.
        pieces: Vec<(u32, Framed)>,
        /// Whether they share the message's bytes and keep them.
        shares: bool,
    },
    /// The pieces would have taken so many bytes, for which there was no room. Nothing was built.
    NoRoom(usize),
    /// It stays as it is: it is small enough, has one record or none, or its pieces would together be more than four times
    /// as long.
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
    if message.payload_len() <= max {
        return Ok(BySize::Whole);
    }
    let payload = message.payload_chunks();
    let len = message.payload_len();
    // The first walk finds how large the envelopes are: some of their fields may stand behind the records.
    let mut scratch = Scratch::default();
    let whole = Plan::new(shape, &payload, 0, &mut All, &mut scratch, room)?;
    if whole.records() <= 1 {
        return Ok(BySize::Whole);
    }
    let mut filler = Filler { max, envelopes: envelopes(whole.scratch), piece: 0, filled: 0, leaf: None };
    let mut scratch = Scratch::default();
    let plan = Plan::new(shape, &payload, 0, &mut filler, &mut scratch, room)?;
    if plan.total_len() > len.saturating_mul(MAX_GROWTH) {
        return Ok(BySize::Whole);
    }
    Ok(match plan.build(room) {
        Ok(Built { parts, shares, .. }) => {
            BySize::Cut { pieces: parts.into_iter().map(|(share, piece)| (share.records, piece)).collect(), shares }
        }
        Err(len) => BySize::NoRoom(len),
    })
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
    /// Its own fields, tag and length; the length is counted as that of the whole message, which no piece exceeds.
    len: usize,
}

fn envelopes(scratch: &Scratch) -> Vec<Envelope> {
    let full = scratch.entries.iter().map(|entry| entry.len);
    let nodes = scratch.nodes.iter();
    nodes
        .zip(full)
        .map(|(node, full)| match node.field {
            0 => Envelope { parent: None, len: node.envelope_len as usize },
            field => Envelope {
                parent: Some(node.parent),
                len: (varint_len(len_tag(field)) + varint_len(full) + node.envelope_len) as usize,
            },
        })
        .collect()
}

/// Fills one piece after the other.
struct Filler {
    max: usize,
    /// By message: both walks number them alike.
    envelopes: Vec<Envelope>,
    piece: u32,
    /// Bytes in the piece, or a few more.
    filled: usize,
    /// The message that the piece's latest record is in; none when the piece is empty.
    leaf: Option<u32>,
}

impl Filler {
    /// What a record in `node` brings along: messages that the piece does not have yet.
    ///
    /// Messages are numbered in the order in which they begin, so the new ones are those behind the latest one.
    fn envelopes_of(&self, node: u32, latest: Option<u32>) -> usize {
        let above = |node: &u32| self.envelopes.get(*node as usize).and_then(|envelope| envelope.parent);
        std::iter::successors(Some(node), above)
            .take_while(|node| latest.is_none_or(|latest| *node > latest))
            .map(|node| self.envelopes.get(node as usize).map_or(0, |envelope| envelope.len))
            .sum()
    }
}

impl Choose for Filler {
    fn choose(&mut self, found: &Found<'_>) -> Targets {
        let mut more = found.len as usize + self.envelopes_of(found.node, self.leaf);
        if self.leaf.is_some() && self.filled + more > self.max {
            self.piece += 1;
            self.filled = 0;
            more = found.len as usize + self.envelopes_of(found.node, None);
        }
        self.filled += more;
        self.leaf = Some(found.node);
        Targets::One(self.piece)
    }
}
