//! What the walk notes down: the messages that hold records, their other fields, and the records of each target.
//!
//! These are ranges of offsets; no bytes are copied into them. All of it lies in a few vectors that are used for one request
//! after the other, so that the cut allocates nothing for a single record. Entries are chained by index: a run knows the next
//! run of its target, a range the next one of its message.

use super::{
    Share, Target,
    early::Early,
    measure::Path,
    sources::{Sources, offset},
    walk::Open,
};
use crate::otlp::wire::Malformed;

/// Entries that a vector keeps room for until the next request: at most 2 MiB each. 8,192 spans in scopes of their own need
/// 25,000.
const RETAINED: usize = 1 << 16;

/// Entries that a request may take: messages, ranges, runs and buffers. 64 MiB of spans with nothing but IDs and times, each in
/// a resource of its own, take 3.9 million.
const MAX_ENTRIES: usize = 1 << 22;

/// Of these, how many need no room in the budget: as many as are kept for the next request.
const FREE_ENTRIES: usize = RETAINED;

/// Bytes that an entry takes, at most: 24 for a message, or 40 for a run with the entries of its part or for a buffer, in vectors
/// that double.
const ENTRY_LEN: usize = 80;

/// The end of a chain.
pub(super) const NONE: u32 = u32::MAX;

/// A message that holds records: the request itself (number 0), a resource, a scope and so on, in the order in which they begin.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Message {
    /// Number of the message that it is in.
    pub(super) parent: u32,
    /// Its field number in its parent; 0 for the request.
    pub(super) field: u32,
    /// Bytes of its fields that are no children: its envelope.
    pub(super) envelope_len: u32,
    /// The first range of its envelope.
    pub(super) first_range: u32,
    last_range: u32,
}

/// Neighbouring fields of one message that are no children.
#[derive(Clone, Copy, Debug)]
pub(super) struct EnvelopeRange {
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) next: u32,
}

/// Records of one message that go to the same target, with their tags and lengths. They are neighbours in the request, or among
/// the target's early copies: offsets then count through these.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Number of the message that holds them.
    pub(super) message: u32,
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) next: u32,
}

/// What one target gets: its runs and, once they were measured, the messages and the length of its part.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartPlan {
    pub(super) target: Target,
    pub(super) records: u32,
    pub(super) first_run: u32,
    pub(super) last_run: u32,
    /// Its messages: a range of `Scratch::part_messages`.
    pub(super) messages: (u32, u32),
    /// Length of its part.
    pub(super) len: u32,
}

impl PartPlan {
    pub(super) fn share(&self) -> Share {
        Share { target: self.target, records: self.records, len: self.len as usize }
    }
}

/// A message as it will be in one part.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartMessage {
    pub(super) message: u32,
    /// Length of its body in that part.
    pub(super) len: u32,
}

/// The cut's vectors, for one request after the other. One for each thread will do. What an unusually large request took is given
/// back after it.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(super) stack: Vec<Open>,
    pub(super) messages: Vec<Message>,
    pub(super) ranges: Vec<EnvelopeRange>,
    pub(super) runs: Vec<Run>,
    pub(super) parts: Vec<PartPlan>,
    pub(super) part_messages: Vec<PartMessage>,
    pub(super) path: Path,
    pub(super) sources: Sources,
    pub(super) early: Early,
    /// Entries that there is room for.
    allowed: usize,
    /// A hash table from a target to its index in `parts` plus one: open addressing, a power of two in length, at most half full.
    index: Vec<u32>,
    /// Something that must be there was not found: a defect, after which nothing is built.
    pub(super) is_broken: bool,
    /// Damages the next plan once it was made.
    #[cfg(test)]
    pub(super) damage: Option<fn(&mut Self)>,
}

impl Scratch {
    /// Makes the next plan one whose first part is longer than planned.
    #[cfg(test)]
    pub(crate) fn damage_next_plan(&mut self) {
        self.damage = Some(|scratch| scratch.parts[0].len -= 1);
    }

    /// Forgets the request before.
    pub(super) fn clear(&mut self) {
        self.stack.clear();
        self.messages.clear();
        self.ranges.clear();
        self.runs.clear();
        self.parts.clear();
        self.part_messages.clear();
        self.index.clear();
        self.sources.clear();
        self.early.clear();
        self.allowed = FREE_ENTRIES;
        self.is_broken = false;
    }

    /// Gives back the request's buffers, and vectors that have become unusually large.
    pub(super) fn retain_little(&mut self) {
        self.sources.clear();
        self.early.clear();
        retain(&mut self.messages);
        retain(&mut self.ranges);
        retain(&mut self.runs);
        retain(&mut self.parts);
        retain(&mut self.part_messages);
        retain(&mut self.index);
    }

    /// How many ranges and runs there are.
    pub(super) fn marks(&self) -> (usize, usize) {
        (self.ranges.len(), self.runs.len())
    }

    pub(super) fn add_message(&mut self, parent: u32, field: u32) -> u32 {
        let number = offset(self.messages.len());
        self.messages.push(Message { parent, field, envelope_len: 0, first_range: NONE, last_range: NONE });
        number
    }

    /// Takes back the last message, if no run was added since there were `runs` of them: it holds no record.
    pub(super) fn forget_if_empty(&mut self, message: u32, ranges: usize, runs: usize) {
        if self.runs.len() == runs {
            self.messages.truncate(message as usize);
            self.ranges.truncate(ranges);
        }
    }

    /// Adds a field to a message's envelope.
    pub(super) fn add_envelope(&mut self, message: u32, start: usize, end: usize) {
        let (start, end) = (offset(start), offset(end));
        let added = offset(self.ranges.len());
        let Some(message) = self.messages.get_mut(message as usize) else {
            self.is_broken = true;
            return;
        };
        message.envelope_len += end - start;
        match self.ranges.get_mut(message.last_range as usize) {
            Some(last) if last.end == start => {
                last.end = end;
                return;
            }
            Some(last) => last.next = added,
            None => message.first_range = added,
        }
        message.last_range = added;
        self.ranges.push(EnvelopeRange { start, end, next: NONE });
    }

    /// Adds a record to what a target gets. Returns whether that took a run of its own.
    #[inline(always)]
    pub(super) fn add_record(&mut self, target: Target, message: u32, start: u32, end: u32) -> bool {
        let part = self.part_of(target);
        self.add_run(part, Run { message, start, end, next: NONE })
    }

    /// Adds a record to what a target gets and copies it. Returns whether that took a run of its own.
    ///
    /// Usually the record before it, of the same target, is of the same message. The part's plan is then told of it later, by
    /// [`Scratch::end_runs`].
    #[inline(always)]
    pub(super) fn copy_record(
        &mut self,
        target: Target,
        message: u32,
        record: &[u8],
        room: &mut dyn FnMut(usize) -> bool,
    ) -> Result<bool, Malformed> {
        if self.early.add(self.first_guess(target), target, message, record) {
            return Ok(false);
        }
        self.copy_other_record(target, message, record, room)
    }

    #[cold]
    #[inline(never)]
    fn copy_other_record(
        &mut self,
        target: Target,
        message: u32,
        record: &[u8],
        room: &mut dyn FnMut(usize) -> bool,
    ) -> Result<bool, Malformed> {
        let part = self.part_of(target);
        let start = self.end_run(part);
        self.early.add_other(part, target, message, record, room)?;
        Ok(self.add_run(part, Run { message, start, end: start + offset(record.len()), next: NONE }))
    }

    /// Tells the parts' plans of all records that were copied.
    pub(super) fn end_runs(&mut self) {
        if self.early.is_on() {
            for part in 0..offset(self.parts.len()) {
                self.end_run(part);
            }
        }
    }

    /// Tells one part's plan of the records that were copied. Returns where its next record begins.
    fn end_run(&mut self, part: u32) -> u32 {
        let Some(plan) = self.parts.get_mut(part as usize) else {
            self.is_broken = true;
            return 0;
        };
        let Some(run) = self.runs.get_mut(plan.last_run as usize) else { return 0 };
        match self.early.take_news(part) {
            Some((len, records)) => {
                plan.records += records;
                run.end = offset(len);
            }
            None => self.is_broken = true,
        }
        run.end
    }

    /// The number of a target's part.
    #[inline(always)]
    fn part_of(&mut self, target: Target) -> u32 {
        let guess = self.first_guess(target);
        match self.parts.get(guess as usize) {
            Some(part) if part.target == target => guess,
            _ => self.search_or_add(target),
        }
    }

    /// The number of a target's part, unless it is the one of another target.
    #[inline(always)]
    fn first_guess(&self, target: Target) -> u32 {
        self.index.get(home(target, self.index.len())).map_or(NONE, |found| found.wrapping_sub(1))
    }

    /// Adds a run of one record: to the last one, if it begins where that ends. Returns whether it is a run of its own.
    #[inline(always)]
    fn add_run(&mut self, part: u32, run: Run) -> bool {
        let added = offset(self.runs.len());
        let Some(part) = self.parts.get_mut(part as usize) else {
            self.is_broken = true;
            return false;
        };
        part.records += 1;
        match self.runs.get_mut(part.last_run as usize) {
            Some(last) if last.end == run.start && last.message == run.message => {
                last.end = run.end;
                return false;
            }
            Some(last) => last.next = added,
            None => part.first_run = added,
        }
        part.last_run = added;
        self.runs.push(run);
        true
    }

    /// Whether there are more entries than there is room for.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.messages.len() + self.ranges.len() + self.runs.len() + self.sources.len() > self.allowed
    }

    /// Takes room for more entries, if a request may have so many and `room` is given for their bytes.
    #[cold]
    #[inline(never)]
    pub(super) fn take_room(&mut self, room: &mut dyn FnMut(usize) -> bool) -> Result<(), Malformed> {
        if self.allowed >= MAX_ENTRIES {
            return Err(Malformed::Pieces(MAX_ENTRIES));
        }
        let allowed = (self.allowed + self.allowed / 2).min(MAX_ENTRIES);
        let bytes = (allowed - self.allowed).saturating_mul(ENTRY_LEN);
        if !room(bytes) {
            return Err(Malformed::NoRoom(bytes));
        }
        self.allowed = allowed;
        Ok(())
    }

    /// The number of a target's part, which is added if there is none.
    #[cold]
    #[inline(never)]
    fn search_or_add(&mut self, target: Target) -> u32 {
        if self.index.len() < 2 * (self.parts.len() + 1) {
            self.grow_index();
        }
        let mut slot = home(target, self.index.len());
        loop {
            let Some(found) = self.index.get_mut(slot) else { return NONE };
            if *found == 0 {
                let added = offset(self.parts.len());
                *found = added + 1;
                let (first_run, last_run) = (NONE, NONE);
                self.parts.push(PartPlan { target, records: 0, first_run, last_run, messages: (0, 0), len: 0 });
                return added;
            }
            if self.parts.get(*found as usize - 1).is_some_and(|part| part.target == target) {
                return *found - 1;
            }
            slot = (slot + 1) & (self.index.len() - 1);
        }
    }

    fn grow_index(&mut self) {
        let len = (2 * self.index.len()).max(64);
        self.index.clear();
        self.index.resize(len, 0);
        for (number, part) in (1..).zip(&self.parts) {
            let mut slot = home(part.target, len);
            while self.index.get(slot).is_some_and(|found| *found != 0) {
                slot = (slot + 1) & (len - 1);
            }
            if let Some(free) = self.index.get_mut(slot) {
                *free = number;
            }
        }
    }
}

/// Where the search for a target begins. Targets are small numbers next to each other, so that they need no hashing: they hardly
/// ever share a slot, and the processor need not guess which one comes next.
#[inline(always)]
fn home(target: Target, len: usize) -> usize {
    target as usize & len.wrapping_sub(1)
}

fn retain<T>(entries: &mut Vec<T>) {
    if entries.capacity() > RETAINED {
        *entries = Vec::new();
    }
}

#[cfg(test)]
mod tests;
