//! The walk: from the request down its levels to the records, once, without recursion.
//!
//! The depth of the stack is the number of levels, a constant of the signal: what the network sends cannot deepen it.
//!
//! A request comes in frames, and is walked in them: messages and envelopes may go on in the next one. Only a record that is
//! torn, or a tag, is put together in a buffer of its own, which from then on is one of the request's buffers.

use bytes::Bytes;

use super::{Record, Router, Shape, Target, Targets, scratch::Scratch, sources::Feed};
use crate::otlp::{
    Level, RecordFields,
    wire::{Malformed, Reader, WireError},
};

/// So many bytes of torn records are put together without asking for room.
const FREE_JOINTS: usize = 64 << 10;

/// What a walk counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) records: u64,
    pub(super) unrouted: u64,
    /// Bytes that were put together.
    pub(super) joined: usize,
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
    /// Where it ends.
    end: usize,
    segments_before: usize,
    runs_before: usize,
}

/// Walks a message of `len` bytes that lies in these buffers, one after the other.
pub(super) fn walk<C: Choose>(
    shape: Shape,
    payload: &[Bytes],
    len: usize,
    choose: &mut C,
    scratch: &mut Scratch,
    room: &mut dyn FnMut(usize) -> bool,
) -> Result<Counts, WireError> {
    let stack = std::mem::take(&mut scratch.stack);
    let mut walk = Walk { shape, choose, scratch, room, stack, counts: Counts::default(), envelope_end: 0 };
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
    /// Asked before much is taken.
    room: &'w mut dyn FnMut(usize) -> bool,
    stack: Vec<Open>,
    counts: Counts,
    /// Where the envelope field ends whose beginning was seen.
    envelope_end: usize,
}

/// A cursor in what is here of one message, which knows where it stands in the whole.
#[derive(Clone, Copy)]
struct Place<'a> {
    reader: Reader<'a>,
    /// What is here of the message from where the walk goes on.
    bytes: &'a [u8],
    end: usize,
    /// Whether the message ends here.
    is_whole: bool,
}

/// Where the walk of one message came to.
enum Step {
    /// The beginning of a child.
    Entered(usize),
    /// Its end.
    Ended,
    /// What is not here: the rest of a field that begins here and ends there, as far as that is known.
    Torn(usize, Option<usize>),
}

impl<'a> Place<'a> {
    #[inline(always)]
    fn at(&self) -> usize {
        self.end - self.reader.left()
    }

    /// What was read since `at`.
    #[inline(always)]
    fn since(&self, at: usize) -> &'a [u8] {
        let end = self.bytes.len() - self.reader.left();
        self.bytes.get(end - (self.at() - at)..end).unwrap_or_default()
    }
}

impl<C: Choose> Walk<'_, C> {
    fn run(&mut self, payload: &[Bytes], len: usize) -> Result<(), WireError> {
        self.enter(0, 0, len)?;
        let mut feed = Feed::new(payload);
        while let Some((start, bytes)) = feed.next() {
            self.scratch.add_source(start, bytes.clone());
            let (at, end) = self.window(&bytes, start)?;
            if at < start + bytes.len() {
                self.scratch.sources.end_at(at);
                let takes = feed.tear(at, end);
                if feed.joined() + takes > FREE_JOINTS && !(self.room)(takes) {
                    return Err(WireError { offset: at, kind: Malformed::NoRoom(takes) });
                }
            }
        }
        self.counts.joined = feed.joined();
        Ok(())
    }

    /// Walks what is here of the request. Returns where it came to, and where the field ends that begins there.
    fn window(&mut self, bytes: &[u8], start: usize) -> Result<(usize, Option<usize>), WireError> {
        let end = start + bytes.len();
        let mut at = self.go_on_with_envelope(start, end)?;
        let Some((leaf, inner)) = self.shape.levels.split_last() else { return Ok((end, None)) };
        while let Some(open) = self.stack.last().copied() {
            let stop = open.end.min(end);
            let rest = bytes.get(at - start..stop - start).unwrap_or_default();
            let place = Place { reader: Reader::new(rest), bytes: rest, end: stop, is_whole: stop == open.end };
            let step = match inner.get(self.stack.len() - 1) {
                Some(level) => self.descend(level, open, place)?,
                None => self.records(leaf, open, place)?,
            };
            match step {
                Step::Entered(child) => at = child,
                Step::Ended => {
                    at = stop;
                    self.leave(open);
                }
                Step::Torn(at, field_end) => return Ok((at, field_end)),
            }
        }
        Ok((end, None))
    }

    /// Starts a message between `at` and `end`, in the innermost one.
    fn enter(&mut self, field: u32, at: usize, end: usize) -> Result<(), WireError> {
        let above = self.stack.last().map_or(0, |open| open.node);
        let (segments_before, runs_before) = self.scratch.marks();
        let node = self.scratch.add_node(above, field);
        self.stack.push(Open { node, end, segments_before, runs_before });
        self.check_room().map_err(|kind| WireError { offset: at, kind })
    }

    /// Ends the innermost message and forgets it if it held no record.
    fn leave(&mut self, open: Open) {
        self.stack.pop();
        self.scratch.forget_if_empty(open.node, open.segments_before, open.runs_before);
    }

    /// Walks a message to its next child and enters that, or to its end.
    fn descend(&mut self, level: &Level, open: Open, mut place: Place<'_>) -> Result<Step, WireError> {
        loop {
            let at = place.at();
            let broken = |kind| WireError { offset: at, kind };
            let field = match place.reader.field() {
                Ok(Some(field)) => field,
                Ok(None) => return Ok(end_of(place)),
                Err(kind) if place.is_whole => return Err(broken(kind)),
                Err(kind) => return self.torn(kind, level, open, place, true),
            };
            if level.children.contains(&field.number) {
                let body = field.len_value().map_err(broken)?;
                let end = place.at();
                self.enter(field.number, end - body.len(), end)?;
                return Ok(Step::Entered(end - body.len()));
            }
            self.add_envelope(open.node, at, place.at())?;
        }
    }

    /// Walks a message that holds records.
    fn records(&mut self, level: &Level, open: Open, mut place: Place<'_>) -> Result<Step, WireError> {
        let usual = level.usual_tag();
        loop {
            if let Some((whole, body)) = place.reader.child(usual) {
                self.record(open.node, whole, body, &place)?;
            } else if let Some(step) = self.no_usual_record(level, open, &mut place)? {
                return Ok(step);
            }
        }
    }

    /// Walks one field of such a message, of any kind.
    #[inline(never)]
    fn no_usual_record(&mut self, level: &Level, open: Open, place: &mut Place<'_>) -> Result<Option<Step>, WireError> {
        let at = place.at();
        let broken = |kind| WireError { offset: at, kind };
        let field = match place.reader.field() {
            Ok(Some(field)) => field,
            Ok(None) => return Ok(Some(end_of(*place))),
            Err(kind) if place.is_whole => return Err(broken(kind)),
            Err(kind) => return self.torn(kind, level, open, *place, false).map(Some),
        };
        if level.children.contains(&field.number) {
            let body = field.len_value().map_err(broken)?;
            self.record(open.node, place.since(at), body, place)?;
        } else {
            self.add_envelope(open.node, at, place.at())?;
        }
        Ok(None)
    }

    /// Walks a record and adds it: `whole` is its field, which ends at `place`.
    #[inline(always)]
    fn record(&mut self, node: u32, whole: &[u8], body: &[u8], place: &Place<'_>) -> Result<(), WireError> {
        let record = read_record(self.shape.fields, body)
            .map_err(|(left, kind)| WireError { offset: place.at() - left, kind })?;
        let at = place.at() - whole.len();
        self.assign(record, node, at, whole).map_err(|kind| WireError { offset: at, kind })
    }

    /// What to do about a field that could not be read in what is here of its message.
    #[cold]
    #[inline(never)]
    fn torn(
        &mut self,
        kind: Malformed,
        level: &Level,
        open: Open,
        place: Place<'_>,
        children_have_children: bool,
    ) -> Result<Step, WireError> {
        let at = place.at();
        let broken = |kind| WireError { offset: at, kind };
        match (kind, place.reader.header()) {
            (Malformed::Truncated, _) | (Malformed::Length(_), None) => Ok(Step::Torn(at, None)),
            (Malformed::Length(_), Some((number, len, header))) => {
                let body = at + header;
                let end = usize::try_from(len).ok().and_then(|len| body.checked_add(len));
                let end = end.filter(|end| *end <= open.end).ok_or(broken(kind))?;
                if !level.children.contains(&number) {
                    self.add_envelope(open.node, at, place.end)?;
                    self.envelope_end = end;
                    return Ok(Step::Torn(place.end, None));
                }
                if children_have_children {
                    self.enter(number, body, end)?;
                    return Ok(Step::Entered(body));
                }
                Ok(Step::Torn(at, Some(end)))
            }
            (kind, _) => Err(broken(kind)),
        }
    }

    /// Adds what is here of an envelope field that began before. Returns where the walk goes on.
    fn go_on_with_envelope(&mut self, start: usize, end: usize) -> Result<usize, WireError> {
        let stop = self.envelope_end.min(end);
        if stop <= start {
            return Ok(start);
        }
        let node = self.stack.last().map_or(0, |open| open.node);
        self.add_envelope(node, start, stop)?;
        Ok(stop)
    }

    fn add_envelope(&mut self, node: u32, start: usize, end: usize) -> Result<(), WireError> {
        self.scratch.add_envelope(node, start, end);
        self.check_room().map_err(|kind| WireError { offset: start, kind })
    }

    #[inline(always)]
    fn check_room(&mut self) -> Result<(), Malformed> {
        if self.scratch.is_full() { self.scratch.take_room(self.room) } else { Ok(()) }
    }

    #[inline(always)]
    fn assign(&mut self, record: Record<'_>, node: u32, from: usize, bytes: &[u8]) -> Result<(), Malformed> {
        self.counts.records += 1;
        match self.choose.choose(&Found { record, node, len: offset(bytes.len()) }) {
            Targets::One(target) => self.add(target, node, from, bytes),
            Targets::None => {
                self.counts.unrouted += 1;
                Ok(())
            }
            Targets::Many(several) => {
                several.as_slice().iter().try_for_each(|target| self.add(*target, node, from, bytes))
            }
        }
    }

    #[inline(always)]
    fn add(&mut self, target: Target, node: u32, from: usize, bytes: &[u8]) -> Result<(), Malformed> {
        let is_new = if self.scratch.early.is_on() {
            self.scratch.copy_record(target, node, bytes, self.room)?
        } else {
            self.scratch.add_record(target, node, offset(from), offset(from + bytes.len()))
        };
        if is_new { self.check_room() } else { Ok(()) }
    }
}

/// The end of what is here of a message.
fn end_of(place: Place<'_>) -> Step {
    if place.is_whole { Step::Ended } else { Step::Torn(place.end, None) }
}

/// Walks the top-level fields of a record. An error comes with the number of bytes that were left at its field.
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

/// An offset as the scratch keeps it.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "`walk` has refused messages longer than 32 bits can say")]
pub(super) fn offset(at: usize) -> u32 {
    at as u32
}
