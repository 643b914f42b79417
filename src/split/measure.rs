//! Measures and writes parts: first the exact length of every message in a part, then its bytes.
//!
//! The cost of a part depends only on its own runs and messages.

use super::{
    scratch::{self, FREE_ENTRIES, Message, NONE, PartMessage, PartPlan, Scratch},
    sources::{Lookup, offset},
    write::{SharingLimits, Writer},
};
use crate::otlp::{
    framed::{PREFIX_LEN, prefix_of},
    wire::{Malformed, len_tag, put_varint, varint_len},
};

/// The buffers that the bytes of a part come from, and the lengths from which they are shared.
#[derive(Debug)]
pub(super) struct Origin<'a> {
    /// The request, which contains the envelopes.
    pub(super) request: Lookup<'a>,
    /// The early copies of the part's records; `None` if the records are in the request, too.
    pub(super) records: Option<Lookup<'a>>,
    pub(super) shared: SharingLimits,
}

impl Path {
    fn clear(&mut self) {
        self.open.clear();
        self.entered.clear();
    }
}

impl Scratch {
    /// Finds the messages of every part and their lengths. Returns the total length of all parts, including prefixes.
    /// `room` is asked before more than a few messages are listed.
    ///
    /// No sum can overflow: a part is no longer than its request, since it has a subset of the request's bytes, with
    /// lengths in their shortest form.
    pub(super) fn measure(&mut self, depth: usize, room: &mut dyn FnMut(usize) -> bool) -> Result<usize, Malformed> {
        let mut parts = std::mem::take(&mut self.parts);
        let mut path = std::mem::take(&mut self.path);
        let mut total = 0;
        let measured = parts.iter_mut().try_for_each(|part| {
            let first = self.part_messages.len();
            part.len = self.measure_part(part, depth, &mut path, room)?;
            part.messages = (offset(first), offset(self.part_messages.len()));
            total += PREFIX_LEN + part.len as usize;
            Ok(())
        });
        path.clear();
        self.parts = parts;
        self.path = path;
        measured.map(|()| total)
    }

    /// Lists the messages that hold a part's runs, in the order in which they begin, and returns the length of the
    /// outermost one.
    fn measure_part(
        &mut self,
        part: &PartPlan,
        depth: usize,
        path: &mut Path,
        room: &mut dyn FnMut(usize) -> bool,
    ) -> Result<u32, Malformed> {
        let root = self.part_messages.len();
        let (mut latest, mut next) = (NONE, part.first_run);
        while let Some(run) = self.runs.get(next as usize).copied() {
            if path.open.len() < depth || path.open.last().is_some_and(|open| open.message != run.message) {
                self.enter(run.message, depth, path, room)?;
            }
            if let Some(innermost) = path.open.last() {
                self.grow(innermost.entry, run.end - run.start);
            }
            (latest, next) = (next, run.next);
        }
        // If the chain is incomplete, records are missing.
        self.is_broken |= latest != part.last_run || next != NONE;
        self.close(0, path);
        Ok(self.part_messages.get(root).map_or(0, |root| root.len))
    }

    /// Closes the messages that do not contain `leaf` and opens those that do.
    fn enter(
        &mut self,
        leaf: u32,
        depth: usize,
        path: &mut Path,
        room: &mut dyn FnMut(usize) -> bool,
    ) -> Result<(), Malformed> {
        let (mut keep, mut number) = (depth, leaf);
        while keep > 0 && path.open.get(keep - 1).is_none_or(|open| open.message != number) {
            path.entered.push(number);
            number = self.message(number).parent;
            keep -= 1;
        }
        self.close(keep, path);
        if self.part_messages.len() + path.entered.len() > FREE_ENTRIES {
            scratch::grow(&mut self.part_messages, path.entered.len(), room)?;
        }
        while let Some(message) = path.entered.pop() {
            let len = self.message(message).envelope_len;
            path.open.push(Opened { entry: offset(self.part_messages.len()), message });
            self.part_messages.push(PartMessage { message, len });
        }
        Ok(())
    }

    /// Closes all but the outermost `keep` messages. Adds the length of each to that of its parent.
    fn close(&mut self, keep: usize, path: &mut Path) {
        while path.open.len() > keep
            && let Some(Opened { entry, message }) = path.open.pop()
        {
            let len = self.part_messages.get(entry as usize).map_or(0, |closed| closed.len);
            let field = self.message(message).field;
            if let Some(parent) = path.open.last() {
                self.grow(parent.entry, varint_len(len_tag(field)) + varint_len(len) + len);
            }
        }
    }

    fn grow(&mut self, entry: u32, by: u32) {
        match self.part_messages.get_mut(entry as usize) {
            Some(message) => message.len += by,
            None => self.is_broken = true,
        }
    }

    fn message(&mut self, number: u32) -> Message {
        let found = self.messages.get(number as usize).copied();
        self.is_broken |= found.is_none();
        found.unwrap_or_default()
    }

    /// Writes one part with its gRPC prefix. The writer notices if it is not as long as it was measured.
    pub(super) fn write(&self, part: &PartPlan, from: &mut Origin<'_>, out: &mut Writer) {
        out.header().extend_from_slice(&prefix_of(part.len));
        let (first, end) = part.messages;
        let mut run = self.runs.get(part.first_run as usize);
        for entry in self.part_messages.get(first as usize..end as usize).unwrap_or_default() {
            let Some(message) = self.messages.get(entry.message as usize) else { return };
            if message.field != 0 {
                put_varint(out.header(), len_tag(message.field));
                put_varint(out.header(), entry.len);
            }
            let mut next = message.first_range;
            while let Some(range) = self.ranges.get(next as usize) {
                out.add(&mut from.request, range.start, range.end, from.shared.envelopes_from);
                next = range.next;
            }
            let records = from.records.as_mut().unwrap_or(&mut from.request);
            while let Some(next) = run.filter(|run| run.message == entry.message) {
                out.add(records, next.start, next.end, from.shared.records_from);
                run = self.runs.get(next.next as usize);
            }
        }
    }

    /// Counts the bytes and ranges of all parts that are shared.
    pub(super) fn shared(&self, shared: SharingLimits) -> SharedTotals {
        let mut found = SharedTotals::default();
        let mut count = |start: u32, end: u32, from: u32| {
            if end - start < from {
                found.short += 1;
                return;
            }
            found.len += (end - start) as usize;
            // Borders between buffers of early copies are counted in `Plan::layout`.
            found.ranges += if self.early.is_on() { 1 } else { self.sources.count(start, end) };
        };
        self.runs.iter().for_each(|run| count(run.start, run.end, shared.records_from));
        if shared.envelopes_from == u32::MAX {
            // All of them are copied. There may be very many, since each part counts those of its messages.
            found.short = usize::MAX;
            return found;
        }
        for entry in &self.part_messages {
            let mut next = self.messages.get(entry.message as usize).map_or(NONE, |message| message.first_range);
            while let Some(range) = self.ranges.get(next as usize) {
                count(range.start, range.end, shared.envelopes_from);
                next = range.next;
                #[cfg(test)]
                self.counted.set(self.counted.get() + 1);
            }
        }
        found
    }
}

/// The ranges of all parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SharedTotals {
    /// The number of bytes that are shared.
    pub(super) len: usize,
    /// The number of ranges that are shared; a range in several buffers counts once for each.
    pub(super) ranges: usize,
    /// The number of ranges that are copied, since they are short. If they were not counted, it is the largest number.
    pub(super) short: usize,
}

/// The messages that are open while a part is measured, outermost first.
#[derive(Debug, Default)]
pub(super) struct Path {
    open: Vec<Opened>,
    /// The messages that are about to be opened, innermost first.
    entered: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Opened {
    /// Index in `Scratch::part_messages`.
    entry: u32,
    message: u32,
}
