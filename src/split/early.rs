//! Parts whose records are copied while the walk goes on: it has just read them, so that they are in the nearest cache.
//!
//! Headers and envelopes are known at the end only. They go in front of the first record, where room is left for them; those
//! of further messages are buffers between the records, or, where these would be short, all is put together once more.

use std::ops::Range;

use bytes::Bytes;

use super::{
    Target,
    measure::Out,
    scratch::{Scratch, Tally},
    sources::Lookup,
};
use crate::{
    buffers,
    otlp::{Framed, framed::PREFIX_LEN, wire::Malformed},
};

/// The longest buffer, unless a record is longer: the largest one that an allocator has at hand.
const LONGEST: usize = 256 << 10;

/// The shortest.
const SHORTEST: usize = 4 << 10;

/// Buffers from half of this are multiples of it, so that one serves for the other later.
const ROUNDED: usize = 64 << 10;

/// Headers up to this length get room in front of the first record.
const LONGEST_HEAD: usize = 16 << 10;

/// More room there, for fields that stand behind the records in their message, such as a schema's URL.
const LATE: usize = 256;

/// Mean length of what lies between two headers from which these are buffers of their own.
const LARGE: usize = 4 << 10;

/// The copies of one request.
#[derive(Debug, Default)]
pub(super) struct Early {
    /// By tally.
    pots: Vec<Pot>,
    /// Bytes of records that are expected for each target; 0 if nothing is copied early.
    expected: usize,
    /// Bytes that may be taken.
    granted: usize,
    taken: usize,
}

/// The records of one target.
#[derive(Debug)]
struct Pot {
    /// The buffer that is being filled.
    open: Vec<u8>,
    /// Those in front of it, and their length.
    full: Vec<Vec<u8>>,
    full_len: usize,
    /// Room in front of the first record.
    front: usize,
    target: Target,
    /// The message that its last record is of.
    node: u32,
    /// Records that its tally does not know of.
    untold: u32,
}

// === impl Early ===

impl Early {
    /// Forgets the request before.
    pub(super) fn clear(&mut self) {
        self.pots.clear();
        (self.expected, self.granted, self.taken) = (0, 0, 0);
    }

    /// Bytes that it takes to copy `len` bytes for so many targets, as far as that can be foreseen.
    pub(super) fn room(len: usize, targets: usize) -> usize {
        (len + len / 4).saturating_add(targets.saturating_mul(SHORTEST))
    }

    /// Records are copied from now on, at first into `granted` bytes.
    pub(super) fn begin(&mut self, len: usize, targets: usize, granted: usize) {
        self.expected = (len / targets.max(1)).max(1);
        self.granted = granted;
    }

    pub(super) fn is_on(&self) -> bool {
        self.expected > 0
    }

    /// Copies one more record of a target and a message, if its tally's last one was of both and there is room.
    #[inline(always)]
    pub(super) fn add(&mut self, tally: u32, target: Target, node: u32, record: &[u8]) -> bool {
        let Some(pot) = self.pots.get_mut(tally as usize) else { return false };
        if pot.target != target || pot.node != node || pot.open.capacity() - pot.open.len() < record.len() {
            return false;
        }
        pot.open.extend_from_slice(record);
        pot.untold += 1;
        true
    }

    /// Copies any other record. `head` says how long all is that goes in front of a first one, as far as it is known.
    pub(super) fn add_other(
        &mut self,
        tally: u32,
        target: Target,
        node: u32,
        record: &[u8],
        head: impl FnOnce() -> usize,
        room: &mut dyn FnMut(usize) -> bool,
    ) -> Result<(), Malformed> {
        // A tally's pot is made with its first record: there is none without.
        if self.pots.len() <= tally as usize {
            let head = head();
            let front = if head > LONGEST_HEAD { 0 } else { head + LATE };
            let mut open = self.take(front + self.expected, front + record.len(), room)?;
            open.resize(front, 0);
            self.pots.push(Pot { open, full: Vec::new(), full_len: 0, front, target, node, untold: 0 });
        }
        let Some(pot) = self.pots.get_mut(tally as usize) else { return Ok(()) };
        pot.node = node;
        let (fits, rest) = record.split_at(record.len().min(pot.open.capacity() - pot.open.len()));
        pot.open.extend_from_slice(fits);
        if rest.is_empty() {
            return Ok(());
        }
        let more = pot.len() / 4;
        let more = if pot.len() > ROUNDED / 2 { more.max(ROUNDED) } else { more };
        let mut next = self.take(more, rest.len(), room)?;
        next.extend_from_slice(rest);
        if let Some(pot) = self.pots.get_mut(tally as usize) {
            pot.full_len += pot.open.len();
            pot.full.push(std::mem::replace(&mut pot.open, next));
        }
        Ok(())
    }

    /// A buffer of about that size, and of `least` at least.
    fn take(&mut self, about: usize, least: usize, room: &mut dyn FnMut(usize) -> bool) -> Result<Vec<u8>, Malformed> {
        let size = rounded(about).clamp(SHORTEST, LONGEST).max(least);
        let needed = self.taken.saturating_add(size);
        if let Some(more) = needed.checked_sub(self.granted)
            && more > 0
        {
            if !room(more) {
                return Err(Malformed::NoRoom(more));
            }
            self.granted = needed;
        }
        let buffer = buffers::take(size);
        // A kept one may be larger.
        self.taken += buffer.capacity();
        Ok(buffer)
    }

    /// Bytes of records of a tally, and how many of them it was not told of yet.
    pub(super) fn tell(&mut self, tally: u32) -> (usize, u32) {
        self.pots.get_mut(tally as usize).map_or((0, 0), |pot| (pot.len(), std::mem::take(&mut pot.untold)))
    }

    /// Bytes of records.
    fn len(&self) -> usize {
        self.pots.iter().map(Pot::len).sum()
    }
}

impl Pot {
    /// Bytes of records.
    fn len(&self) -> usize {
        self.full_len + self.open.len() - self.front
    }

    /// Its records, buffer by buffer.
    fn records(&self) -> impl Iterator<Item = &[u8]> {
        let fronts = std::iter::once(self.front).chain(std::iter::repeat(0));
        let buffers = self.full.iter().chain([&self.open]);
        buffers.zip(fronts).map(|(buffer, front)| buffer.get(front..).unwrap_or_default())
    }
}

fn rounded(len: usize) -> usize {
    if len > ROUNDED / 2 { len.next_multiple_of(ROUNDED) } else { len }
}

// === impl Scratch ===

impl Scratch {
    /// The parts of `total` bytes in all, in the order of the tallies, and the bytes that they take. `room` is asked for what was
    /// not granted yet; an error is how much that is.
    pub(super) fn finish_early(
        &mut self,
        depth: usize,
        total: usize,
        room: &mut dyn FnMut(usize) -> bool,
    ) -> Result<(Vec<Framed>, usize), usize> {
        let heads = total.saturating_sub(self.early.len());
        let joined: usize =
            self.tallies.iter().filter(|tally| is_joined(tally, depth)).map(|tally| tally.len as usize).sum();
        let taken = self.early.taken;
        let more = heads.saturating_add(joined).saturating_add(taken.saturating_sub(self.early.granted));
        if !room(more) {
            return Err(more);
        }
        let pots = std::mem::take(&mut self.early.pots);
        let parts = self.tallies.iter().zip(pots).map(|(tally, pot)| self.part(tally, pot, depth));
        Ok((parts.collect(), taken.saturating_add(heads).saturating_add(joined)))
    }

    fn part(&self, tally: &Tally, pot: Pot, depth: usize) -> Framed {
        let (sources, len) = (self.sources.lookup(), PREFIX_LEN + tally.len as usize);
        let chunks = if is_joined(tally, depth) {
            let mut joined = Joined { sources, joined: buffers::take(len), records: pot.records(), rest: &[] };
            self.write(tally, &mut joined);
            vec![buffers::share(joined.joined)]
        } else {
            let heads = Vec::with_capacity(len.saturating_sub(pot.len()));
            let mut strung = Strung { sources, heads, seen: 0, pieces: Vec::new() };
            self.write(tally, &mut strung);
            let (heads, pieces) = strung.finish();
            string(heads, pieces, pot)
        };
        Framed::from_chunks(chunks).unwrap_or_default()
    }
}

/// Whether a part is put together once more: it is of several messages, and what they hold is short.
fn is_joined(tally: &Tally, depth: usize) -> bool {
    let messages = (tally.entries.1 - tally.entries.0) as usize;
    messages > depth && (tally.len as usize) < messages.saturating_mul(LARGE)
}

/// A part in as many buffers as it comes to.
fn string(heads: Vec<u8>, pieces: Vec<Piece>, mut pot: Pot) -> Vec<Bytes> {
    let mut pieces = pieces.into_iter().peekable();
    let mut chunks = Vec::new();
    let mut start = pot.front;
    if let Some(Piece::Head(range)) =
        pieces.next_if(|piece| matches!(piece, Piece::Head(head) if head.len() <= pot.front))
        && let Some(first) = pot.full.first_mut().or(Some(&mut pot.open))
        && let Some((room, head)) = first.get_mut(start - range.len()..start).zip(heads.get(range.clone()))
    {
        room.copy_from_slice(head);
        start -= range.len();
    }
    let mut bodies = pot.full.into_iter().chain([pot.open]).map(buffers::share);
    let mut open = bodies.next().unwrap_or_default();
    let mut front = pot.front - start;
    let _unused = open.split_to(start.min(open.len()));
    let heads = Bytes::from(heads);
    for piece in pieces {
        match piece {
            Piece::Head(range) => chunks.push(heads.slice(range)),
            Piece::Body(len) => {
                let mut left = len + std::mem::take(&mut front);
                while left > 0 {
                    if open.is_empty() {
                        let Some(next) = bodies.next() else { break };
                        open = next;
                    }
                    let chunk = open.split_to(open.len().min(left));
                    left -= chunk.len();
                    chunks.push(chunk);
                }
            }
        }
    }
    chunks
}

/// What a part is made of, in its order.
#[derive(Debug)]
enum Piece {
    /// Of the headers.
    Head(Range<usize>),
    /// So many bytes of records, the next ones.
    Body(usize),
}

/// Headers and envelopes in a buffer of their own, and what stands between them.
struct Strung<'a> {
    sources: Lookup<'a>,
    heads: Vec<u8>,
    /// Headers up to here are in a piece.
    seen: usize,
    pieces: Vec<Piece>,
}

impl Strung<'_> {
    fn finish(mut self) -> (Vec<u8>, Vec<Piece>) {
        self.end_head();
        (self.heads, self.pieces)
    }

    fn end_head(&mut self) {
        let end = self.heads.len();
        if end > self.seen {
            self.pieces.push(Piece::Head(std::mem::replace(&mut self.seen, end)..end));
        }
    }
}

impl Out for Strung<'_> {
    fn headers(&mut self) -> &mut Vec<u8> {
        &mut self.heads
    }

    fn run(&mut self, start: u32, end: u32) {
        self.heads.extend_from_slice(self.sources.bytes(start, end));
    }

    fn records(&mut self, start: u32, end: u32) {
        self.end_head();
        let len = (end - start) as usize;
        match self.pieces.last_mut() {
            Some(Piece::Body(last)) => *last += len,
            _ => self.pieces.push(Piece::Body(len)),
        }
    }
}

/// All in one buffer.
struct Joined<'a, I> {
    sources: Lookup<'a>,
    joined: Vec<u8>,
    records: I,
    /// What is left of the buffer of records that was begun.
    rest: &'a [u8],
}

impl<'a, I: Iterator<Item = &'a [u8]>> Out for Joined<'a, I> {
    fn headers(&mut self) -> &mut Vec<u8> {
        &mut self.joined
    }

    fn run(&mut self, start: u32, end: u32) {
        self.joined.extend_from_slice(self.sources.bytes(start, end));
    }

    fn records(&mut self, start: u32, end: u32) {
        let mut left = (end - start) as usize;
        while left > 0 {
            if self.rest.is_empty() {
                let Some(next) = self.records.next() else { return };
                self.rest = next;
            }
            let (now, rest) = self.rest.split_at(left.min(self.rest.len()));
            self.joined.extend_from_slice(now);
            self.rest = rest;
            left -= now.len();
        }
    }
}
