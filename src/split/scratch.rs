//! The notes of the walk: the messages that contain records, their other fields, and the records of each target.
//!
//! Notes are ranges of offsets, not copies of bytes. They lie in a few vectors that are reused for one request after
//! the other, so that the split allocates no memory per record. Entries are linked by index: a run has the index of the
//! next run of its target, and a range that of the next range of its message.

use super::{
    Share, Target,
    early::Early,
    measure::Path,
    sources::{Sources, offset},
    walk::Open,
};
use crate::otlp::wire::Malformed;

/// The number of entries for which a vector keeps its memory until the next request, at most 2 MiB each. 8,192 spans,
/// each in its own scope, need 25,000.
const RETAINED: usize = 1 << 16;

/// The number of entries that do not count in the memory budget: as many as a vector keeps anyway. This is the bound for
/// all entries of the walk together, and for the messages of parts.
pub(super) const FREE_ENTRIES: usize = RETAINED;

/// The least number of entries by which a full vector grows.
const LEAST_GROWTH: usize = 64;

/// The end of a chain.
pub(super) const NONE: u32 = u32::MAX;

/// A message that contains records: the request itself (number 0), a resource, a scope and so on. Messages are numbered
/// in the order in which they begin.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Message {
    /// The number of its parent.
    pub(super) parent: u32,
    /// Its field number in its parent; 0 for the request.
    pub(super) field: u32,
    /// The length of its envelope: all its fields that are not children.
    pub(super) envelope_len: u32,
    /// The first range of its envelope.
    pub(super) first_range: u32,
    last_range: u32,
}

/// Adjacent fields of one message's envelope.
#[derive(Clone, Copy, Debug)]
pub(super) struct EnvelopeRange {
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) next: u32,
}

/// Adjacent records of one message that have the same target, with their tags and lengths. They are adjacent in the
/// request or, if records are copied early, among the target's copies; offsets are positions in these then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// The number of the message that contains them.
    pub(super) message: u32,
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) next: u32,
}

/// The plan of one target's part: its runs and, once measured, its messages and its length.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartPlan {
    pub(super) target: Target,
    pub(super) records: u32,
    pub(super) first_run: u32,
    pub(super) last_run: u32,
    /// Its messages, as a range of `Scratch::part_messages`.
    pub(super) messages: (u32, u32),
    /// The length of the part.
    pub(super) len: u32,
}

impl PartPlan {
    pub(super) fn share(&self) -> Share {
        Share { target: self.target, records: self.records, len: self.len as usize }
    }
}

/// A message in one part.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartMessage {
    pub(super) message: u32,
    /// The length of its body in that part.
    pub(super) len: u32,
}

/// The vectors of the split, which are reused for one request after the other. One scratch for each thread is enough.
/// Memory that an unusually large request took is freed after it.
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
    /// A hash table from a target to its index in `parts` plus one. It uses open addressing, its length is a power of
    /// two, and at most half of it is used.
    index: Vec<u32>,
    /// Whether an entry that must exist was not found. This is a defect, after which no part is built.
    pub(super) is_broken: bool,
    /// The number of ranges that were counted to find the size of shared parts.
    #[cfg(test)]
    pub(super) counted: std::cell::Cell<usize>,
    /// Damages the next plan after it was made.
    #[cfg(test)]
    pub(super) damage: Option<fn(&mut Self)>,
}

impl Scratch {
    /// Damages the next plan, so that its first part is longer than planned.
    #[cfg(test)]
    pub(crate) fn damage_next_plan(&mut self) {
        self.damage = Some(|scratch| scratch.parts[0].len -= 1);
    }

    /// Clears the notes of the previous request.
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
        self.is_broken = false;
    }

    /// Frees the request's buffers, and the memory of vectors that have become unusually large.
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

    /// Returns the numbers of ranges and runs.
    pub(super) fn marks(&self) -> (usize, usize) {
        (self.ranges.len(), self.runs.len())
    }

    pub(super) fn add_message(&mut self, parent: u32, field: u32) -> u32 {
        let number = offset(self.messages.len());
        self.messages.push(Message { parent, field, envelope_len: 0, first_range: NONE, last_range: NONE });
        number
    }

    /// Removes the last message if it has no records, that is, if the number of runs is still `runs`. `ranges` is the
    /// number of ranges at its beginning.
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

    /// Adds a record to a target's part. Returns whether this added a run.
    #[inline(always)]
    pub(super) fn add_record(&mut self, target: Target, message: u32, start: u32, end: u32) -> bool {
        let part = self.part_of(target);
        self.add_run(part, Run { message, start, end, next: NONE })
    }

    /// Adds a record to a target's part and copies it. Returns whether this added a run.
    ///
    /// Usually the target's previous record is in the same message. The part's plan then counts the record later, in
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

    /// Counts all copied records in the plans of their parts.
    pub(super) fn end_runs(&mut self) {
        if self.early.is_on() {
            for part in 0..offset(self.parts.len()) {
                self.end_run(part);
            }
        }
    }

    /// Counts the copied records of one part in its plan. Returns the offset of its next record.
    fn end_run(&mut self, part: u32) -> u32 {
        let Some(plan) = self.parts.get_mut(part as usize) else {
            self.is_broken = true;
            return 0;
        };
        let Some(run) = self.runs.get_mut(plan.last_run as usize) else { return 0 };
        match self.early.take_uncounted(part) {
            Some((len, records)) => {
                plan.records += records;
                run.end = offset(len);
            }
            None => self.is_broken = true,
        }
        run.end
    }

    /// Returns the number of a target's part.
    #[inline(always)]
    fn part_of(&mut self, target: Target) -> u32 {
        let guess = self.first_guess(target);
        match self.parts.get(guess as usize) {
            Some(part) if part.target == target => guess,
            _ => self.search_or_add(target),
        }
    }

    /// Returns the number of a target's part, or that of another target's part: the caller has to check.
    #[inline(always)]
    fn first_guess(&self, target: Target) -> u32 {
        self.index.get(home(target, self.index.len())).map_or(NONE, |found| found.wrapping_sub(1))
    }

    /// Adds a run of one record, or extends the part's last run if the record directly follows that. Returns whether a
    /// run was added.
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

    /// Returns whether a vector that the walk fills has to grow, and its memory counts in the budget.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.messages.len() + self.ranges.len() + self.runs.len() + self.sources.len() >= FREE_ENTRIES
            && (is_full(&self.messages) || is_full(&self.ranges) || is_full(&self.runs) || self.sources.is_full())
    }

    /// Grows the vectors that are full, if `room` grants the memory.
    #[cold]
    #[inline(never)]
    pub(super) fn take_room(&mut self, room: &mut dyn FnMut(usize) -> bool) -> Result<(), Malformed> {
        grow(&mut self.messages, 1, room)?;
        grow(&mut self.ranges, 1, room)?;
        grow(&mut self.runs, 1, room)?;
        self.sources.grow(room)
    }

    /// Returns the number of a target's part, which is added if it does not exist.
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

/// Returns the slot at which the search for a target begins. Targets are small consecutive numbers, so they need no
/// hash function: they rarely share a slot, which also helps the CPU's branch prediction.
#[inline(always)]
fn home(target: Target, len: usize) -> usize {
    target as usize & len.wrapping_sub(1)
}

/// Whether a vector has to grow for its next entry. The first few entries are no matter.
pub(super) fn is_full<T>(entries: &Vec<T>) -> bool {
    entries.len() == entries.capacity() && !entries.is_empty()
}

/// Grows a vector that takes less than `spare` more entries: by half, or by an eighth where there is no room for that.
pub(super) fn grow<T>(
    entries: &mut Vec<T>,
    spare: usize,
    room: &mut dyn FnMut(usize) -> bool,
) -> Result<(), Malformed> {
    if entries.capacity() - entries.len() >= spare || entries.is_empty() {
        return Ok(());
    }
    let [half, eighth] = [2, 8].map(|part| (entries.len() / part).max(LEAST_GROWTH));
    for more in [half, eighth] {
        if room(more * size_of::<T>()) {
            entries.reserve_exact(more);
            return Ok(());
        }
    }
    Err(Malformed::NoRoom(eighth * size_of::<T>()))
}

fn retain<T>(entries: &mut Vec<T>) {
    if entries.capacity() > RETAINED {
        *entries = Vec::new();
    }
}

#[cfg(test)]
mod tests;
