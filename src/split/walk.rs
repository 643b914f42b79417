//! The walk: from the request down its levels to the records, once, without recursion.
//!
//! The depth of the stack is the number of levels, a constant of the signal: what the network sends cannot deepen it.

use super::{Record, Router, Shape, Targets, checked_len, scratch::Scratch};
use crate::otlp::{
    Level, RecordFields,
    wire::{Malformed, Reader, WireError},
};

/// What a walk counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) records: u64,
    pub(super) unrouted: u64,
}

/// A record and where it stands.
#[derive(Clone, Copy)]
pub(super) struct Found<'a> {
    pub(super) record: Record<'a>,
    /// The message that holds it.
    pub(super) node: u32,
    /// Its length with tag and length prefix.
    pub(super) len: u32,
}

/// Who is asked for a record's targets: a router, or something of this room that looks at more than routers may.
pub(super) trait Choose {
    fn choose(&mut self, found: &Found<'_>) -> Targets;
}

/// A router, asked in the walk.
pub(super) struct Routed<'r, R>(pub(super) &'r mut R);

impl<R: Router> Choose for Routed<'_, R> {
    #[inline(always)]
    fn choose(&mut self, found: &Found<'_>) -> Targets {
        self.0.route(&found.record)
    }
}

/// A message that is being walked, and what was there before it, in case it turns out to hold no record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    /// Its number.
    node: u32,
    /// Where the walk of its parent goes on, and where the parent ends.
    resume: usize,
    parent_end: usize,
    segments_before: usize,
    runs_before: usize,
}

pub(super) fn walk<C: Choose>(
    shape: Shape,
    payload: &[u8],
    choose: &mut C,
    scratch: &mut Scratch,
) -> Result<Counts, WireError> {
    checked_len(payload)?;
    let mut stack = std::mem::take(&mut scratch.stack);
    let result = Walk { shape, payload, choose, scratch, counts: Counts::default() }.run(&mut stack);
    stack.clear();
    scratch.stack = stack;
    result
}

struct Walk<'w, C> {
    shape: Shape,
    payload: &'w [u8],
    choose: &'w mut C,
    scratch: &'w mut Scratch,
    counts: Counts,
}

/// A cursor in one message that knows where it stands in the whole.
#[derive(Clone, Copy)]
struct Place<'a> {
    reader: Reader<'a>,
    end: usize,
}

impl Place<'_> {
    #[inline(always)]
    fn at(&self) -> usize {
        self.end - self.reader.left()
    }
}

impl<'w, C: Choose> Walk<'w, C> {
    fn run(mut self, stack: &mut Vec<Open>) -> Result<Counts, WireError> {
        let Some((leaf, inner)) = self.shape.levels.split_last() else { return Ok(self.counts) };
        let mut place = Place { reader: Reader::new(self.payload), end: self.payload.len() };
        self.enter(stack, 0, place, place)?;
        while let Some(open) = stack.last().copied() {
            let entered = match inner.get(stack.len() - 1) {
                Some(level) => self.descend(stack, level, &mut place)?,
                None => self.records(leaf, open.node, place).map(|()| false)?,
            };
            if !entered {
                place = self.leave(stack, open);
            }
        }
        Ok(self.counts)
    }

    /// Starts a message whose body is `place`, in the message that goes on at `parent`.
    fn enter(
        &mut self,
        stack: &mut Vec<Open>,
        field: u32,
        place: Place<'_>,
        parent: Place<'_>,
    ) -> Result<(), WireError> {
        let above = stack.last().map_or(0, |open| open.node);
        let (segments_before, runs_before) = self.scratch.marks();
        let node = self.scratch.add_node(above, field).map_err(|kind| WireError { offset: place.at(), kind })?;
        stack.push(Open { node, resume: parent.at(), parent_end: parent.end, segments_before, runs_before });
        Ok(())
    }

    /// Ends the innermost message, forgets it if it held no record, and returns to its parent.
    fn leave(&mut self, stack: &mut Vec<Open>, open: Open) -> Place<'w> {
        stack.pop();
        self.scratch.forget_if_empty(open.node, open.segments_before, open.runs_before);
        let rest = self.payload.get(open.resume..open.parent_end).unwrap_or_default();
        Place { reader: Reader::new(rest), end: open.parent_end }
    }

    /// Walks a message to its next child and enters that, or to its end.
    fn descend(&mut self, stack: &mut Vec<Open>, level: &Level, place: &mut Place<'w>) -> Result<bool, WireError> {
        let node = stack.last().map_or(0, |open| open.node);
        loop {
            let at = place.at();
            let broken = |kind| WireError { offset: at, kind };
            let Some(field) = place.reader.field().map_err(broken)? else { return Ok(false) };
            if level.children.contains(&field.number) {
                let body = field.len_value().map_err(broken)?;
                let child = Place { reader: Reader::new(body), end: place.at() };
                self.enter(stack, field.number, child, *place)?;
                *place = child;
                return Ok(true);
            }
            self.scratch.add_envelope(node, at, place.at()).map_err(broken)?;
        }
    }

    /// Walks a message that holds records.
    fn records(&mut self, level: &Level, node: u32, mut place: Place<'w>) -> Result<(), WireError> {
        loop {
            let at = place.at();
            let broken = |kind| WireError { offset: at, kind };
            let Some(field) = place.reader.field().map_err(broken)? else { return Ok(()) };
            if level.children.contains(&field.number) {
                let bytes = field.len_value().map_err(broken)?;
                let record = read_record(self.shape.fields, bytes)
                    .map_err(|(left, kind)| WireError { offset: place.at() - left, kind })?;
                self.assign(record, node, at, place.at()).map_err(broken)?;
            } else {
                self.scratch.add_envelope(node, at, place.at()).map_err(broken)?;
            }
        }
    }

    #[inline(always)]
    fn assign(&mut self, record: Record<'_>, node: u32, from: usize, to: usize) -> Result<(), Malformed> {
        self.counts.records += 1;
        let (from, to) = (offset(from), offset(to));
        match self.choose.choose(&Found { record, node, len: to - from }) {
            Targets::One(target) => self.scratch.add_record(target, node, from, to),
            Targets::None => {
                self.counts.unrouted += 1;
                Ok(())
            }
            Targets::Many(several) => {
                several.as_slice().iter().try_for_each(|target| self.scratch.add_record(*target, node, from, to))
            }
        }
    }
}

/// Walks the top-level fields of a record. An error comes with the number of bytes that were left at its field.
#[inline(always)]
fn read_record(fields: RecordFields, bytes: &[u8]) -> Result<Record<'_>, (usize, Malformed)> {
    let mut reader = Reader::new(bytes);
    let mut record = Record { bytes, id: &[], start: 0 };
    loop {
        let left = reader.left();
        let Some(field) = reader.field().map_err(|kind| (left, kind))? else { return Ok(record) };
        if field.number == fields.id {
            record.id = field.len_value().map_err(|kind| (left, kind))?;
        } else if field.number == fields.start {
            record.start = field.fixed64_value().map_err(|kind| (left, kind))?;
        }
    }
}

/// An offset as the scratch keeps it.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "`walk` has refused messages longer than 32 bits can say")]
pub(super) fn offset(at: usize) -> u32 {
    at as u32
}
