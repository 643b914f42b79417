//! The split: cuts one export request into a part for each target. Bytes go in and come out; it does no I/O, reads no clock and
//! knows no backend. The pipeline calls it.
//!
//! [`plan`] walks the wire format once. A table of levels says which fields lead down to the records. A [`Router`] is asked for
//! the targets of each record; all other fields are *envelope*. What the walk finds is noted as ranges of offsets, so that the
//! exact length of each part is known before any part is built. [`Plan::build`] then writes each part: the envelopes of
//! the messages that hold its records, verbatim, and its records. Each byte is copied once: by `build`, or, with
//! [`plan_early`], as soon as its record was walked. Where there is no room for copies, parts share the request's buffers.
//!
//! What holds for a part: its records are byte for byte what they were, and in their order. Each message that holds
//! one of them has all its other fields, in their order, in front of its children. Children keep their field number.
//! A message that holds no record is in no part (OTLP lets forwarders drop it). Records and attributes are never
//! decoded, so unknown fields, groups, invalid UTF-8 and any nesting depth pass through. Of a record only the
//! top-level fields are walked, to their end, so that a broken record is found here and not in a call that it shares with others.
//!
//! In one point it is stricter than protobuf: where the wire type of a child, an ID or a start time is not the one of OTLP,
//! the request is malformed. Protobuf would take such a field for an unknown one; Collectors refuse it.
//!
//! # Example
//!
//! A request with two traces is cut in two. Any function from a record to its target is a router.
//!
//! ```
//! use bytes::Bytes;
//! use opentelemetry_proto::tonic::{
//!     collector::trace::v1::ExportTraceServiceRequest,
//!     trace::v1::{ResourceSpans, ScopeSpans, Span},
//! };
//! use prost::Message;
//! use spanring::{
//!     otlp::Signal,
//!     split::{Record, Scratch, Targets, plan},
//! };
//!
//! let span = |trace: u8, name: &str| Span { trace_id: vec![trace; 16], name: name.to_owned(), ..Span::default() };
//! let spans = vec![span(1, "checkout"), span(2, "search"), span(1, "payment")];
//! let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
//! let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
//! let request = Bytes::from(ExportTraceServiceRequest { resource_spans }.encode_to_vec());
//!
//! // Even traces go to target 0, odd ones to target 1.
//! let mut router = |record: &Record<'_>| Targets::One(record.id.first().map_or(0, |byte| u32::from(byte % 2)));
//! let mut scratch = Scratch::default();
//! let mut room = |_bytes: usize| true;
//! let plan = plan(Signal::Traces, &[request], &mut router, &mut scratch, &mut room)?;
//! assert_eq!(plan.records(), 3);
//! let parts = plan.build(&mut room)?.parts;
//!
//! let names = |payload: &[u8]| -> Result<Vec<String>, prost::DecodeError> {
//!     let request = ExportTraceServiceRequest::decode(payload)?;
//!     let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
//!     Ok(scopes.flat_map(|scope| scope.spans).map(|span| span.name).collect())
//! };
//! let [(first, odd), (second, even)] = &parts[..] else { panic!("two targets have records") };
//! assert_eq!((first.target, names(&odd.payload())?), (1, vec!["checkout".to_owned(), "payment".to_owned()]));
//! assert_eq!((second.target, names(&even.payload())?), (0, vec!["search".to_owned()]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Reading order: this page, `walk`, `sources`, `scratch`, `measure`, `write`, `early`, `by_size`.

mod by_size;
mod early;
mod measure;
mod scratch;
mod sources;
mod walk;
mod write;

#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;

use bytes::Bytes;
use thiserror::Error;

pub use self::{
    by_size::{BySize, by_size},
    scratch::Scratch,
};
use self::{
    early::Early,
    measure::{Origin, SharedTotals},
    write::{Shared, SharedRange, Writer},
};
use crate::otlp::{
    Framed, Level, RecordFields, Signal,
    wire::{Malformed, WireError},
};

/// Length of a request from which records are copied early. A smaller one stays in the processor's nearest caches until it is
/// cut, and its parts are short enough to be joined in one buffer anyway (figures: `deploy/docs/performance.md`).
const EARLY_FROM: usize = 64 << 10;

/// Mean length of a part from which records are copied early; dispatch joins smaller parts in one buffer.
const LARGE_PART: usize = 8 << 10;

/// Where a record goes: a number that has a meaning to the router only. Any value will do, but only few different ones should
/// occur.
pub type Target = u32;

/// The targets of one record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Targets {
    /// Nobody: the record is counted as unrouted and is in no part.
    #[default]
    None,
    /// One, as nearly always.
    One(Target),
    /// Several, each of which gets the record.
    Many(Several),
}

/// Up to three different targets, which is what an open hand-off window can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Several {
    targets: [Target; 3],
    len: u8,
}

impl Targets {
    /// Adds a target, if it is not among them; `false` when there are three others already.
    #[must_use]
    pub fn add(&mut self, target: Target) -> bool {
        *self = match *self {
            Self::None => Self::One(target),
            Self::One(first) if first == target => return true,
            Self::One(first) => Self::Many(Several { targets: [first, target, 0], len: 2 }),
            Self::Many(several) if several.as_slice().contains(&target) => return true,
            Self::Many(Several { targets: [first, second, _], len: 2 }) => {
                Self::Many(Several { targets: [first, second, target], len: 3 })
            }
            Self::Many(_) => return false,
        };
        true
    }
}

impl Several {
    /// The targets, each once.
    pub fn as_slice(&self) -> &[Target] {
        // It has two or three. Should it ever say otherwise, a record goes to one target too many rather than to none.
        self.targets.get(..usize::from(self.len)).unwrap_or(&self.targets)
    }
}

/// The part of a record that a router is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The record's own fields, without the tag and length in front.
    pub bytes: &'a [u8],
    /// The last occurrence of its ID field, as protobuf counts; empty when there is none.
    pub id: &'a [u8],
    /// The last occurrence of its start time; 0 when there is none.
    pub start: u64,
}

/// Says where records go. Every closure of this shape is one.
pub trait Router {
    /// The targets of one record. Asked once for each record, in their order.
    fn route(&mut self, record: &Record<'_>) -> Targets;
}

impl<F: FnMut(&Record<'_>) -> Targets> Router for F {
    fn route(&mut self, record: &Record<'_>) -> Targets {
        self(record)
    }
}

/// What one target gets of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The target.
    pub target: Target,
    /// How many records.
    pub records: u32,
    /// Length of its part, without gRPC's prefix.
    pub len: usize,
}

/// The parts of a request.
#[derive(Debug)]
pub struct Built {
    /// In the order of [`Plan::shares`].
    pub parts: Vec<(Share, Framed)>,
    /// Whether they share the request's buffers and keep them.
    pub shares: bool,
    /// Bytes that they take, the request's own aside.
    pub len: usize,
}

/// Why parts were not built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotBuilt {
    /// They would take so many bytes, for which there was no room.
    #[error("no room for {0} bytes of parts")]
    NoRoom(usize),
    /// The plan contradicts itself: a defect. What was built by it is thrown away, since records could be missing.
    #[error("the parts are not what was planned")]
    Inconsistent,
}

/// How a message nests its records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// From the request down to the message that holds the records.
    pub(crate) levels: &'static [Level],
    /// The fields of a record that are read.
    pub(crate) fields: &'static RecordFields,
}

impl From<Signal> for Shape {
    fn from(signal: Signal) -> Self {
        Self { levels: signal.levels(), fields: signal.record_fields() }
    }
}

/// Finds out what each target gets of a request, and how long that will be. Builds nothing yet.
///
/// The request lies in the buffers of `payload`, one after the other. `room` is asked before more than a few MiB are taken to
/// keep track of it, and before a long record is put together that lies in two buffers.
pub fn plan<'a, R: Router>(
    signal: Signal,
    payload: &[Bytes],
    router: &mut R,
    scratch: &'a mut Scratch,
    room: &mut dyn FnMut(usize) -> bool,
) -> Result<Plan<'a>, WireError> {
    plan_shape(signal.into(), payload, 0, router, scratch, room)
}

/// Like [`plan`], and copies each record as soon as it knows its target, if `room` is given for that. This is cheaper where parts
/// are long and there are several. About so many `targets` are expected.
///
/// It can fail for want of room where [`plan`] does not, if there are more targets than expected.
pub fn plan_early<'a, R: Router>(
    signal: Signal,
    payload: &[Bytes],
    targets: NonZeroUsize,
    router: &mut R,
    scratch: &'a mut Scratch,
    room: &mut dyn FnMut(usize) -> bool,
) -> Result<Plan<'a>, WireError> {
    plan_shape(signal.into(), payload, targets.get(), router, scratch, room)
}

/// Whether [`plan_early`] is cheaper for a message of `len` bytes.
pub fn is_early_cheaper(len: usize, targets: usize) -> bool {
    targets > 1 && len >= EARLY_FROM && len / targets >= LARGE_PART
}

/// [`plan`], or [`plan_early`] if some targets are expected, for any table of levels.
pub(crate) fn plan_shape<'a, R: Router>(
    shape: Shape,
    payload: &[Bytes],
    targets: usize,
    router: &mut R,
    scratch: &'a mut Scratch,
    room: &mut dyn FnMut(usize) -> bool,
) -> Result<Plan<'a>, WireError> {
    Plan::new(shape, payload, targets, &mut walk::Routed(router), scratch, room)
}

/// What each target gets of one request. Dropping it hands the scratch back.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Length of the request.
    len: usize,
    scratch: &'a mut Scratch,
    counts: walk::Counts,
    total_len: usize,
}

impl<'a> Plan<'a> {
    fn new<C: walk::Choose>(
        shape: Shape,
        payload: &[Bytes],
        targets: usize,
        choose: &mut C,
        scratch: &'a mut Scratch,
        room: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Self, WireError> {
        let len = checked_len(payload)?;
        scratch.clear();
        let early = Early::room(len, targets);
        if targets > 0 && room(early) {
            scratch.early.begin(len, targets, early);
        }
        match walk::walk(shape, payload, len, choose, scratch, room) {
            Ok(counts) => {
                scratch.end_runs();
                let total_len = scratch.measure(shape.levels.len());
                #[cfg(test)]
                if let Some(damage) = scratch.damage.take() {
                    damage(scratch);
                }
                Ok(Self { len, scratch, counts, total_len })
            }
            Err(error) => {
                scratch.retain_little();
                Err(error)
            }
        }
    }

    /// Records seen.
    pub fn records(&self) -> u64 {
        self.counts.records
    }

    /// Records that the router had no target for.
    pub fn unrouted(&self) -> u64 {
        self.counts.unrouted
    }

    /// The share of the one target that every record goes to, if there is one: the request itself can be sent there, and need not
    /// be rebuilt.
    pub fn whole(&self) -> Option<Share> {
        match self.scratch.parts.as_slice() {
            [part] if u64::from(part.records) == self.counts.records => Some(part.share()),
            _ => None,
        }
    }

    /// The targets in the order of their first record, and what each gets.
    pub fn shares(&self) -> impl Iterator<Item = Share> {
        self.scratch.parts.iter().map(scratch::PartPlan::share)
    }

    /// Length of all parts with their prefixes.
    pub fn total_len(&self) -> usize {
        self.total_len
    }

    /// Builds all parts, once `room` was given for their bytes: copies, or where there is no room for these, parts that share the
    /// request's buffers.
    pub fn build(self, room: &mut dyn FnMut(usize) -> bool) -> Result<Built, NotBuilt> {
        if self.scratch.early.is_on() {
            return self.build_early(room);
        }
        if room(self.total_len) {
            let layout = Layout::copied(self.total_len);
            return self.write(Shared::NOTHING, layout);
        }
        self.build_in_least_room(room)
    }

    /// Builds parts that share the request's buffers, unless copies take less.
    fn build_in_least_room(self, room: &mut dyn FnMut(usize) -> bool) -> Result<Built, NotBuilt> {
        let shared = self.layout(Shared::REQUEST);
        // Parts that are together much longer than the request are not to share it: each would look small, and take its whole
        // length from whoever has to copy it later.
        let may_share = self.total_len <= self.len.saturating_mul(5) / 4;
        let (how, layout) = if may_share && shared.len() < self.total_len {
            (Shared::REQUEST, shared)
        } else {
            (Shared::NOTHING, Layout::copied(self.total_len))
        };
        if room(layout.len()) { self.write(how, layout) } else { Err(NotBuilt::NoRoom(layout.len())) }
    }

    /// Puts together the records that were copied early and what goes between them.
    fn build_early(self, room: &mut dyn FnMut(usize) -> bool) -> Result<Built, NotBuilt> {
        let layout = self.layout(Shared::EARLY_COPIES);
        let (taken, not_granted) = self.scratch.early.taken();
        let more = layout.len().saturating_add(not_granted);
        if !room(more) {
            return Err(NotBuilt::NoRoom(more));
        }
        let mut built = self.write(Shared::EARLY_COPIES, layout)?;
        built.len = built.len.saturating_add(taken);
        Ok(built)
    }

    fn layout(&self, shared: Shared) -> Layout {
        let is_early = self.scratch.early.is_on();
        let SharedTotals { len, ranges, short } = self.scratch.shared(shared);
        let copied = self.total_len.saturating_sub(len);
        // Of a part's buffers, every second one is copied at most, and one at its end. Between two shared ranges there is one only
        // if something is copied there: a message's header, or a range that is too short to be shared. Borders of the buffers that
        // bytes are copied from and to come on top.
        let between = ranges.min(short + self.scratch.part_messages.len());
        let borders = self.scratch.early.buffers() + Writer::buffers_for(copied);
        Layout {
            copied,
            ranges: ranges + self.scratch.early.buffers(),
            chunks: self.scratch.parts.len() + ranges + between + borders,
            reassembled: if is_early { 0 } else { self.counts.reassembled },
            shares: !is_early && ranges > 0,
        }
    }

    /// Writes all parts.
    fn write(self, shared: Shared, layout: Layout) -> Result<Built, NotBuilt> {
        let is_early = self.scratch.early.is_on();
        let copies = self.scratch.early.finish();
        let (scratch, mut copies) = (&*self.scratch, copies.iter());
        let mut writer = Writer::new(scratch.parts.len(), layout.copied, layout.ranges);
        let mut from = Origin { request: scratch.sources.lookup(), records: None, shared };
        for part in &scratch.parts {
            if is_early {
                from.records = Some(copies.next().ok_or(NotBuilt::Inconsistent)?.lookup());
            }
            scratch.write(part, &mut from, &mut writer);
            writer.end_part();
        }
        if scratch.is_broken || writer.copied() != layout.copied {
            return Err(NotBuilt::Inconsistent);
        }
        let parts = writer.finish(self.shares()).ok_or(NotBuilt::Inconsistent)?;
        Ok(Built { parts, shares: layout.shares, len: layout.len() })
    }
}

impl Drop for Plan<'_> {
    fn drop(&mut self) {
        self.scratch.retain_little();
    }
}

/// What parts take.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// Bytes that are copied.
    copied: usize,
    /// Ranges that are shared.
    ranges: usize,
    /// Buffers that the parts lie in, slices of the same buffer counted each.
    chunks: usize,
    /// Bytes of the request that are not in the buffers it came in, and that the parts keep.
    reassembled: usize,
    /// Whether they share the request's buffers.
    shares: bool,
}

impl Layout {
    /// Parts of which every byte is copied.
    fn copied(len: usize) -> Self {
        Self { copied: len, ranges: 0, chunks: 0, reassembled: 0, shares: false }
    }

    fn len(self) -> usize {
        let lists = self.ranges * size_of::<SharedRange>() + self.chunks * size_of::<Bytes>();
        self.copied.saturating_add(lists).saturating_add(self.reassembled)
    }
}

/// The length of a request, whose offsets the scratch keeps in 32 bits; it is no longer than gRPC's length can say.
fn checked_len(payload: &[Bytes]) -> Result<usize, WireError> {
    let len = payload.iter().map(Bytes::len).sum();
    u32::try_from(len).map(|_fits| len).map_err(|_too_long| WireError { offset: 0, kind: Malformed::TooLong })
}
