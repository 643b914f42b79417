//! Walks a request once, from its outermost message down its levels to the records, without recursion.
//!
//! The stack is as deep as the signal has levels. This is a constant: no input can make it deeper.
//!
//! A request lies in several buffers. Messages and envelope fields may continue in the next buffer. Only a record or a
//! tag that lies in more than one buffer is reassembled, that is, copied to a new buffer, which then counts as one of
//! the request's buffers.

use bytes::Bytes;

use super::{
    Record, Router, Shape, Target, Targets,
    scratch::Scratch,
    sources::{Feed, offset},
};
use crate::otlp::{
    Level, RecordFields,
    wire::{Malformed, Reader, WireError},
};

/// The number of bytes that may be reassembled without asking for room in the memory budget.
const FREE_REASSEMBLED: usize = 64 << 10;

/// The most resources, scopes and records that a request may have. All of them count, also those that are in no part,
/// because each takes time.
pub(super) const MAX_PIECES: usize = 1_000_000;

/// The counts of a walk.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) records: u64,
    pub(super) unrouted: u64,
    /// The number of bytes of records and tags that were reassembled.
    pub(super) reassembled: usize,
}

/// A record and its place in the request.
#[derive(Clone, Copy)]
pub(super) struct Found<'a> {
    pub(super) record: Record<'a>,
    /// The number of the message that contains it.
    pub(super) message: u32,
    /// Its length, including its tag and length prefix.
    pub(super) len: u32,
}

/// Chooses the targets of a record. It is implemented for routers, and by code of this module that needs more than a
/// router gets.
pub(super) trait Choose {
    fn choose(&mut self, found: &Found<'_>) -> Targets;
}

/// A router as the walk uses it.
pub(super) struct Routed<'r, R>(pub(super) &'r mut R);

impl<R: Router> Choose for Routed<'_, R> {
    #[inline(always)]
    fn choose(&mut self, found: &Found<'_>) -> Targets {
        self.0.route(&found.record)
    }
}

/// A message that is being walked. If it turns out to have no records, everything that was noted since its beginning is
/// removed again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    /// The number of the message.
    message: u32,
    /// The offset of its end.
    end: usize,
    ranges_before: usize,
    runs_before: usize,
}

/// Walks a request of `len` bytes that lies in these buffers, one after the other.
pub(super) fn walk<C: Choose>(
    shape: Shape,
    payload: &[Bytes],
    len: usize,
    choose: &mut C,
    scratch: &mut Scratch,
    room: &mut dyn FnMut(usize) -> bool,
) -> Result<Counts, WireError> {
    let stack = std::mem::take(&mut scratch.stack);
    // The request itself is one more.
    let pieces_left = MAX_PIECES + 1;
    let mut walk =
        Walk { shape, choose, scratch, room, stack, counts: Counts::default(), pieces_left, envelope_end: 0 };
    let result = walk.run(payload, len);
    let (mut stack, counts) = (walk.stack, walk.counts);
    stack.clear();
    scratch.stack = stack;
    result.map(|()| counts)
}

struct Walk<'w, C> {
    shape: Shape,
    choose: &'w mut C,
    scratch: &'w mut Scratch,
    /// Asked for memory, before more than a little is taken.
    room: &'w mut dyn FnMut(usize) -> bool,
    /// The messages that are open, outermost first.
    stack: Vec<Open>,
    counts: Counts,
    /// How many resources, scopes and records may follow.
    pieces_left: usize,
    /// The end of the envelope field that began in an earlier buffer.
    envelope_end: usize,
}

/// A reader of the part of one message that lies in the current buffer. It knows its offset in the request.
#[derive(Clone, Copy)]
struct Cursor<'a> {
    reader: Reader<'a>,
    /// The bytes that the reader began with, and the offset of their end.
    bytes: &'a [u8],
    end: usize,
    /// Whether the message ends here.
    is_whole: bool,
}

/// How far the walk of one message got.
enum Step {
    /// To the beginning of a child, at this offset.
    Entered(usize),
    /// To its end.
    Ended,
    /// To the end of the buffer, in a field that continues in the next one: the offset of its beginning and, if known,
    /// of its end.
    Unfinished(usize, Option<usize>),
}

impl<'a> Cursor<'a> {
    /// Returns the offset of the next byte.
    #[inline(always)]
    fn at(&self) -> usize {
        self.end - self.reader.left()
    }

    /// Returns the bytes that were read since offset `at`.
    #[inline(always)]
    fn since(&self, at: usize) -> Result<&'a [u8], Malformed> {
        let end = self.bytes.len() - self.reader.left();
        self.bytes.get(end - (self.at() - at)..end).ok_or(Malformed::Inconsistent)
    }

    /// Returns the step at the end of the bytes: either the message ends, or it continues in the next buffer.
    fn ended(&self) -> Step {
        if self.is_whole { Step::Ended } else { Step::Unfinished(self.end, None) }
    }
}

impl<C: Choose> Walk<'_, C> {
    fn run(&mut self, payload: &[Bytes], len: usize) -> Result<(), WireError> {
        self.enter(0, 0, len)?;
        let mut feed = Feed::new(payload);
        while let Some((start, bytes)) = feed.next() {
            self.scratch.sources.push(start, bytes.clone());
            let (at, end) = self.walk_buffer(&bytes, start)?;
            if at < start + bytes.len() {
                self.scratch.sources.end_at(at);
                let bytes_to_copy = feed.continues(at, end);
                if feed.reassembled() + bytes_to_copy > FREE_REASSEMBLED && !(self.room)(bytes_to_copy) {
                    return Err(WireError { offset: at, kind: Malformed::NoRoom(bytes_to_copy) });
                }
            }
        }
        self.counts.reassembled = feed.reassembled();
        Ok(())
    }

    /// Walks the part of the request that lies in this buffer. Returns the offset of a field that continues in the next
    /// buffer and, if known, of its end. Without such a field, it returns the offset of the buffer's end.
    fn walk_buffer(&mut self, bytes: &[u8], start: usize) -> Result<(usize, Option<usize>), WireError> {
        let end = start + bytes.len();
        let mut at = self.continue_envelope(start, end)?;
        let inconsistent = WireError { offset: start, kind: Malformed::Inconsistent };
        let (leaf, inner) = self.shape.levels.split_last().ok_or(inconsistent)?;
        while let Some(open) = self.stack.last().copied() {
            let stop = open.end.min(end);
            let rest = bytes.get(at - start..stop - start).ok_or(inconsistent)?;
            let cursor = Cursor { reader: Reader::new(rest), bytes: rest, end: stop, is_whole: stop == open.end };
            let step = match inner.get(self.stack.len() - 1) {
                Some(level) => self.descend(level, open, cursor)?,
                None => self.records(leaf, open, cursor)?,
            };
            match step {
                Step::Entered(child) => at = child,
                Step::Ended => {
                    at = stop;
                    self.leave(open);
                }
                Step::Unfinished(at, field_end) => return Ok((at, field_end)),
            }
        }
        Ok((end, None))
    }

    /// Starts a message from `at` to `end`, as a child of the innermost one.
    fn enter(&mut self, field: u32, at: usize, end: usize) -> Result<(), WireError> {
        self.count_piece().map_err(|kind| WireError { offset: at, kind })?;
        let parent = self.stack.last().map_or(0, |open| open.message);
        let (ranges_before, runs_before) = self.scratch.marks();
        let message = self.scratch.add_message(parent, field);
        self.stack.push(Open { message, end, ranges_before, runs_before });
        self.check_room().map_err(|kind| WireError { offset: at, kind })
    }

    /// Ends the innermost message. Removes it from the scratch if it has no records.
    fn leave(&mut self, open: Open) {
        self.stack.pop();
        self.scratch.forget_if_empty(open.message, open.ranges_before, open.runs_before);
    }

    /// Walks a message up to its next child, which it enters, or to its end.
    fn descend(&mut self, level: &Level, open: Open, mut cursor: Cursor<'_>) -> Result<Step, WireError> {
        loop {
            let at = cursor.at();
            let broken = |kind| WireError { offset: at, kind };
            let field = match cursor.reader.field() {
                Ok(Some(field)) => field,
                Ok(None) => return Ok(cursor.ended()),
                Err(kind) if cursor.is_whole => return Err(broken(kind)),
                Err(kind) => return self.unfinished(kind, level, open, cursor, true),
            };
            if level.children.contains(&field.number) {
                let body = field.len_value().map_err(broken)?;
                let end = cursor.at();
                self.enter(field.number, end - body.len(), end)?;
                return Ok(Step::Entered(end - body.len()));
            }
            self.add_envelope(open.message, at, cursor.at())?;
        }
    }

    /// Walks a message that contains records.
    fn records(&mut self, level: &Level, open: Open, mut cursor: Cursor<'_>) -> Result<Step, WireError> {
        let usual = level.usual_tag();
        loop {
            if let Some((whole, body)) = cursor.reader.child(usual) {
                self.record(open.message, whole, body, &cursor)?;
            } else if let Some(step) = self.other_field(level, open, &mut cursor)? {
                return Ok(step);
            }
        }
    }

    /// Walks one field of such a message, of any kind.
    #[inline(never)]
    fn other_field(&mut self, level: &Level, open: Open, cursor: &mut Cursor<'_>) -> Result<Option<Step>, WireError> {
        let at = cursor.at();
        let broken = |kind| WireError { offset: at, kind };
        let field = match cursor.reader.field() {
            Ok(Some(field)) => field,
            Ok(None) => return Ok(Some(cursor.ended())),
            Err(kind) if cursor.is_whole => return Err(broken(kind)),
            Err(kind) => return self.unfinished(kind, level, open, *cursor, false).map(Some),
        };
        if level.children.contains(&field.number) {
            let body = field.len_value().map_err(broken)?;
            self.record(open.message, cursor.since(at).map_err(broken)?, body, cursor)?;
        } else {
            self.add_envelope(open.message, at, cursor.at())?;
        }
        Ok(None)
    }

    /// Walks a record and adds it. `whole` is its whole field, which ends at the cursor.
    #[inline(always)]
    fn record(&mut self, message: u32, whole: &[u8], body: &[u8], cursor: &Cursor<'_>) -> Result<(), WireError> {
        let record = read_record(self.shape.fields, body)
            .map_err(|(left, kind)| WireError { offset: cursor.at() - left, kind })?;
        let at = cursor.at() - whole.len();
        self.assign(record, message, at, whole).map_err(|kind| WireError { offset: at, kind })
    }

    /// Handles a field that could not be read, in a message that continues in the next buffer.
    #[cold]
    #[inline(never)]
    fn unfinished(
        &mut self,
        kind: Malformed,
        level: &Level,
        open: Open,
        cursor: Cursor<'_>,
        children_have_children: bool,
    ) -> Result<Step, WireError> {
        let at = cursor.at();
        let broken = |kind| WireError { offset: at, kind };
        match (kind, cursor.reader.header()) {
            (Malformed::Truncated, _) | (Malformed::Length(_), None) => Ok(Step::Unfinished(at, None)),
            (Malformed::Length(_), Some((number, len, header))) => {
                let body = at + header;
                let end = usize::try_from(len).ok().and_then(|len| body.checked_add(len));
                let end = end.filter(|end| *end <= open.end).ok_or(broken(kind))?;
                if !level.children.contains(&number) {
                    self.add_envelope(open.message, at, cursor.end)?;
                    self.envelope_end = end;
                    return Ok(Step::Unfinished(cursor.end, None));
                }
                if children_have_children {
                    self.enter(number, body, end)?;
                    return Ok(Step::Entered(body));
                }
                Ok(Step::Unfinished(at, Some(end)))
            }
            (kind, _) => Err(broken(kind)),
        }
    }

    /// Adds the bytes of an envelope field that began in an earlier buffer, as far as they are in this one. Returns the
    /// offset after them.
    fn continue_envelope(&mut self, start: usize, end: usize) -> Result<usize, WireError> {
        let stop = self.envelope_end.min(end);
        if stop <= start {
            return Ok(start);
        }
        let message = self.stack.last().map_or(0, |open| open.message);
        self.add_envelope(message, start, stop)?;
        Ok(stop)
    }

    fn add_envelope(&mut self, message: u32, start: usize, end: usize) -> Result<(), WireError> {
        self.scratch.add_envelope(message, start, end);
        self.check_room().map_err(|kind| WireError { offset: start, kind })
    }

    #[inline(always)]
    fn count_piece(&mut self) -> Result<(), Malformed> {
        self.pieces_left = self.pieces_left.checked_sub(1).ok_or(Malformed::Pieces(MAX_PIECES))?;
        Ok(())
    }

    #[inline(always)]
    fn check_room(&mut self) -> Result<(), Malformed> {
        if self.scratch.is_full() { self.scratch.take_room(self.room) } else { Ok(()) }
    }

    #[inline(always)]
    fn assign(&mut self, record: Record<'_>, message: u32, from: usize, bytes: &[u8]) -> Result<(), Malformed> {
        self.counts.records += 1;
        self.count_piece()?;
        match self.choose.choose(&Found { record, message, len: offset(bytes.len()) }) {
            Targets::One(target) => self.add(target, message, from, bytes),
            Targets::None => {
                self.counts.unrouted += 1;
                Ok(())
            }
            Targets::Many(several) => {
                several.as_slice().iter().try_for_each(|target| self.add(*target, message, from, bytes))
            }
        }
    }

    #[inline(always)]
    fn add(&mut self, target: Target, message: u32, from: usize, bytes: &[u8]) -> Result<(), Malformed> {
        let is_new = if self.scratch.early.is_on() {
            self.scratch.copy_record(target, message, bytes, self.room)?
        } else {
            self.scratch.add_record(target, message, offset(from), offset(from + bytes.len()))
        };
        if is_new { self.check_room() } else { Ok(()) }
    }
}

/// Walks the top-level fields of a record. An error has the number of bytes that were left at the beginning of the
/// malformed field.
#[inline(always)]
fn read_record<'a>(fields: &RecordFields, bytes: &'a [u8]) -> Result<Record<'a>, (usize, Malformed)> {
    let mut reader = Reader::new(bytes);
    let mut record = Record { bytes, id: &[], start: 0 };
    if fields.has_ids_of_span
        && let Some(id) = reader.ids_of_span()
    {
        record.id = id;
    }
    loop {
        reader.skim(fields);
        if let Some(start) = reader.fixed64(fields.start_tag) {
            record.start = start;
            continue;
        }
        let left = reader.left();
        let Some(field) = reader.field().map_err(|kind| (left, kind))? else { return Ok(record) };
        if field.number == fields.id {
            record.id = field.len_value().map_err(|kind| (left, kind))?;
        } else if field.number == fields.start {
            record.start = field.fixed64_value().map_err(|kind| (left, kind))?;
        }
    }
}
