//! What the walk writes down: messages, their envelopes, and the runs of records of each target. Ranges only, no bytes.
//!
//! All of it lies in a few vectors that the next request takes over, so that the cut allocates nothing for a span.
//! Entries are chained by index: a run knows the next run of its target, a segment the next one of its message.

use bytes::Bytes;

use super::{
    MAX_VARINT, Share, Target,
    early::Early,
    measure::Path,
    sources::Sources,
    walk::{Open, offset},
};
use crate::otlp::{framed::PREFIX_LEN, wire::Malformed};

/// Entries that a vector keeps for the next request: at most 2 MiB each. 8,192 spans in scopes of their own need 25,000.
const RETAINED: usize = 1 << 16;

/// Messages, segments, runs and buffers that a request may fall into. 64 MiB of spans with nothing but IDs and times, each in a
/// resource of its own, are 3.9 million.
const MAX_PIECES: usize = 1 << 22;

/// Of these, how many are not asked for: as many as are kept for the next request.
const FREE_PIECES: usize = RETAINED;

/// What a piece takes at most: 24 bytes for a message, or 40 for a run and the entries of its part or for a buffer, in vectors
/// that double.
const PIECE: usize = 80;

/// The end of a chain.
pub(super) const NONE: u32 = u32::MAX;

/// An envelope message that holds records: the request itself (number 0), a resource, a scope and so on, in the order
/// in which they begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) parent: u32,
    /// Its field number in its parent; 0 for the request.
    pub(super) field: u32,
    /// All its bytes but the children's.
    pub(super) envelope_len: u32,
    pub(super) segments: u32,
    pub(super) first_segment: u32,
    last_segment: u32,
}

/// Neighbouring fields of one message that are no children.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) next: u32,
}

/// Records of one message that go to the same target, tags and lengths included: neighbours, or copied to be so, and then
/// offsets count the target's own bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) node: u32,
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) next: u32,
}

/// One target's runs, and later its part's messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tally {
    pub(super) target: Target,
    pub(super) records: u32,
    pub(super) first_run: u32,
    last_run: u32,
    /// Its messages in `Scratch::entries`.
    pub(super) entries: (u32, u32),
    /// Length of its part.
    pub(super) len: u32,
}

impl Tally {
    pub(super) fn share(&self) -> Share {
        Share { target: self.target, records: self.records, len: self.len as usize }
    }
}

/// A message of one part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) node: u32,
    /// Length of its body in that part.
    pub(super) len: u32,
}

/// Buffers of the cut, for one request after the other. One for each thread will do; what a large request left behind
/// is given back.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(super) stack: Vec<Open>,
    pub(super) nodes: Vec<Node>,
    pub(super) segments: Vec<Segment>,
    pub(super) runs: Vec<Run>,
    pub(super) tallies: Vec<Tally>,
    pub(super) entries: Vec<Entry>,
    pub(super) path: Path,
    pub(super) sources: Sources,
    pub(super) early: Early,
    /// Where the last source begins: nothing grows across.
    border: u32,
    /// Pieces that there is room for.
    allowed: usize,
    /// Target → index in `tallies` plus one: open addressing, a power of two in length, at most half full.
    index: Vec<u32>,
}

impl Scratch {
    /// Forgets the request before.
    pub(super) fn clear(&mut self) {
        self.stack.clear();
        self.nodes.clear();
        self.segments.clear();
        self.runs.clear();
        self.tallies.clear();
        self.entries.clear();
        self.index.clear();
        self.sources.clear();
        self.early.clear();
        self.border = 0;
        self.allowed = FREE_PIECES;
    }

    /// Gives back the request's buffers and what an unusually large one has taken.
    pub(super) fn retain_little(&mut self) {
        self.sources.clear();
        self.early.clear();
        retain(&mut self.nodes);
        retain(&mut self.segments);
        retain(&mut self.runs);
        retain(&mut self.tallies);
        retain(&mut self.entries);
        retain(&mut self.index);
    }

    pub(super) fn tallies(&self) -> &[Tally] {
        &self.tallies
    }

    /// How many segments and runs there are.
    pub(super) fn marks(&self) -> (usize, usize) {
        (self.segments.len(), self.runs.len())
    }

    /// Adds the buffer that begins at `start`.
    pub(super) fn add_source(&mut self, start: usize, bytes: Bytes) {
        self.border = offset(start);
        self.sources.push(start, bytes);
    }

    pub(super) fn add_node(&mut self, parent: u32, field: u32) -> u32 {
        let node = offset(self.nodes.len());
        self.nodes.push(Node { parent, field, envelope_len: 0, segments: 0, first_segment: NONE, last_segment: NONE });
        node
    }

    /// Takes back the last message if no run was added since `runs` of them were there.
    pub(super) fn forget_if_empty(&mut self, node: u32, segments: usize, runs: usize) {
        if self.runs.len() == runs {
            self.nodes.truncate(node as usize);
            self.segments.truncate(segments);
        }
    }

    /// Adds a field to a message's envelope.
    pub(super) fn add_envelope(&mut self, node: u32, start: usize, end: usize) {
        let (start, end) = (offset(start), offset(end));
        let added = offset(self.segments.len());
        let Some(node) = self.nodes.get_mut(node as usize) else { return };
        node.envelope_len += end - start;
        match self.segments.get_mut(node.last_segment as usize) {
            Some(last) if last.end == start && start != self.border => {
                last.end = end;
                return;
            }
            Some(last) => last.next = added,
            None => node.first_segment = added,
        }
        node.last_segment = added;
        node.segments += 1;
        self.segments.push(Segment { start, end, next: NONE });
    }

    /// Adds a record to what a target gets. Returns whether it is a run of its own.
    #[inline(always)]
    pub(super) fn add_record(&mut self, target: Target, node: u32, start: u32, end: u32) -> bool {
        let tally = self.tally_of(target);
        self.chain(tally, Run { node, start, end, next: NONE }, self.border)
    }

    /// Adds a record to what a target gets and copies it. Returns whether it is a run of its own.
    ///
    /// Usually it goes on where the last one of its target ended. Its tally then hears of it later, by [`Scratch::end_runs`].
    #[inline(always)]
    pub(super) fn copy_record(
        &mut self,
        target: Target,
        node: u32,
        record: &[u8],
        room: &mut dyn FnMut(usize) -> bool,
    ) -> Result<bool, Malformed> {
        if self.early.add(self.first_guess(target), target, node, record) {
            return Ok(false);
        }
        self.copy_other_record(target, node, record, room)
    }

    #[cold]
    #[inline(never)]
    fn copy_other_record(
        &mut self,
        target: Target,
        node: u32,
        record: &[u8],
        room: &mut dyn FnMut(usize) -> bool,
    ) -> Result<bool, Malformed> {
        let tally = self.tally_of(target);
        let start = self.end_run(tally);
        self.early.add_other(tally, target, node, record, || head_of(&self.nodes, node), room)?;
        let run = Run { node, start, end: start + offset(record.len()), next: NONE };
        Ok(self.chain(tally, run, NONE))
    }

    /// Tells the tallies of the records that were copied.
    pub(super) fn end_runs(&mut self) {
        if self.early.is_on() {
            for tally in 0..offset(self.tallies.len()) {
                self.end_run(tally);
            }
        }
    }

    /// Tells one of them. Returns where its next record begins.
    fn end_run(&mut self, tally: u32) -> u32 {
        let (end, records) = self.early.tell(tally);
        if let Some(tally) = self.tallies.get_mut(tally as usize) {
            tally.records += records;
            if let Some(run) = self.runs.get_mut(tally.last_run as usize) {
                run.end = offset(end);
            }
        }
        offset(end)
    }

    /// The number of a target's tally.
    #[inline(always)]
    fn tally_of(&mut self, target: Target) -> u32 {
        let guess = self.first_guess(target);
        match self.tallies.get(guess as usize) {
            Some(tally) if tally.target == target => guess,
            _ => self.tally(target),
        }
    }

    /// The number of a target's tally, unless it is another one's.
    #[inline(always)]
    fn first_guess(&self, target: Target) -> u32 {
        self.index.get(home(target, self.index.len())).map_or(NONE, |found| found.wrapping_sub(1))
    }

    /// Adds a run of one record, to the last one if it goes on there; what begins at `border` does not.
    #[inline(always)]
    fn chain(&mut self, tally: u32, run: Run, border: u32) -> bool {
        let added = offset(self.runs.len());
        let Some(tally) = self.tallies.get_mut(tally as usize) else { return false };
        tally.records += 1;
        match self.runs.get_mut(tally.last_run as usize) {
            Some(last) if last.end == run.start && last.node == run.node && run.start != border => {
                last.end = run.end;
                return false;
            }
            Some(last) => last.next = added,
            None => tally.first_run = added,
        }
        tally.last_run = added;
        self.runs.push(run);
        true
    }

    /// Whether there are more pieces than there is room for.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.nodes.len() + self.segments.len() + self.runs.len() + self.sources.len() > self.allowed
    }

    /// Takes room for more pieces, if that many can be kept track of and `room` is given for their bytes.
    #[cold]
    #[inline(never)]
    pub(super) fn take_room(&mut self, room: &mut dyn FnMut(usize) -> bool) -> Result<(), Malformed> {
        if self.allowed >= MAX_PIECES {
            return Err(Malformed::Pieces(MAX_PIECES));
        }
        let allowed = (self.allowed + self.allowed / 2).min(MAX_PIECES);
        let bytes = (allowed - self.allowed).saturating_mul(PIECE);
        if !room(bytes) {
            return Err(Malformed::NoRoom(bytes));
        }
        self.allowed = allowed;
        Ok(())
    }

    /// The number of a target's tally, which is made if there is none.
    #[cold]
    #[inline(never)]
    fn tally(&mut self, target: Target) -> u32 {
        if self.index.len() < 2 * (self.tallies.len() + 1) {
            self.grow_index();
        }
        let mut slot = home(target, self.index.len());
        loop {
            let Some(found) = self.index.get_mut(slot) else { return NONE };
            if *found == 0 {
                let added = offset(self.tallies.len());
                *found = added + 1;
                self.tallies.push(Tally {
                    target,
                    records: 0,
                    first_run: NONE,
                    last_run: NONE,
                    entries: (0, 0),
                    len: 0,
                });
                return added;
            }
            if self.tallies.get(*found as usize - 1).is_some_and(|tally| tally.target == target) {
                return *found - 1;
            }
            slot = (slot + 1) & (self.index.len() - 1);
        }
    }

    fn grow_index(&mut self) {
        let len = (2 * self.index.len()).max(64);
        self.index.clear();
        self.index.resize(len, 0);
        for (number, tally) in (1..).zip(&self.tallies) {
            let mut slot = home(tally.target, len);
            while self.index.get(slot).is_some_and(|found| *found != 0) {
                slot = (slot + 1) & (len - 1);
            }
            if let Some(free) = self.index.get_mut(slot) {
                *free = number;
            }
        }
    }
}

/// Length of what goes in front of a record: prefix, headers and envelopes as far as they are known, or a bit more.
#[cold]
fn head_of(nodes: &[Node], leaf: u32) -> usize {
    let parent = |node: &u32| nodes.get(*node as usize).filter(|node| node.field != 0).map(|node| node.parent);
    let own = |node: u32| nodes.get(node as usize).map_or(0, |node| node.envelope_len as usize);
    let path = std::iter::successors(Some(leaf), parent);
    PREFIX_LEN + path.map(|node| own(node).saturating_add(2 * MAX_VARINT)).fold(0, usize::saturating_add)
}

/// Where the search for a target begins. Targets are numbers of our own making, small and next to each other: as they are, they
/// hardly ever meet, and which one comes next need not be guessed.
#[inline(always)]
fn home(target: Target, len: usize) -> usize {
    target as usize & len.wrapping_sub(1)
}

fn retain<T>(entries: &mut Vec<T>) {
    if entries.capacity() > RETAINED {
        *entries = Vec::new();
    }
}
