//! Splits one export request into a part for each target. It turns bytes into bytes: it does no I/O, reads no clock and
//! does not know backends. The pipeline calls it.
//!
//! [`plan`] walks the wire format once. A table of levels says which fields lead down to the records. A [`Router`]
//! chooses the targets of each record. All other fields of a message are its *envelope*. The walk notes ranges of
//! offsets, so that the exact length of each part is known before any part is built. [`Plan::build`] then writes each
//! part: its records, and the envelopes of the messages that contain them, verbatim. Each byte is copied once: by
//! `build` or, with [`plan_early`], as soon as its record was walked. If there is no room for copies, parts share the
//! request's buffers.
//!
//! The following holds for each part. Its records are unchanged byte for byte, and in their order. Each message that
//! contains one of them has all its other fields, in their order, in front of its children. Children keep their field
//! number. A message without records is in no part (OTLP lets forwarders drop it). Records and attributes are never
//! decoded, so unknown fields, groups, invalid UTF-8 and any nesting depth pass through. Only the top-level fields of a
//! record are walked, to the end of the record, so that a malformed record is detected here and not in a call to a
//! backend that it shares with others.
//!
//! The split is stricter than protobuf in one point: if the wire type of a child, an ID or a start time is not that of
//! OTLP, the request is malformed. A protobuf decoder would treat such a field as unknown; Collectors refuse it.
//!
//! Callers pass a function `room`, which is asked to reserve memory in the budget. It returns whether it did.
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
    write::{SharedRange, SharingLimits, Writer},
};
use crate::otlp::{
    Framed, Level, RecordFields, Signal,
    wire::{Malformed, WireError},
};

/// The length of a request from which records are copied early. A smaller request stays in the CPU's nearest caches
/// until it is split, and its parts are short enough to be joined in one buffer anyway (figures:
/// `deploy/docs/performance.md`).
const EARLY_FROM: usize = 64 << 10;

/// The mean length of a part from which records are copied early. Dispatch joins smaller parts in one buffer.
const LARGE_PART: usize = 8 << 10;

/// The destination of a record: a number whose meaning only the router knows. Any value is allowed, but there should be
/// few different ones.
pub type Target = u32;

/// The targets of one record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Targets {
    /// No target: the record is counted as unrouted and is in no part.
    #[default]
    None,
    /// One target, as nearly always.
    One(Target),
    /// Several targets, each of which gets the record.
    Many(Several),
}

/// Up to four different targets, which is the most that open hand-off windows give a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Several {
    targets: [Target; 4],
    len: u8,
}

impl Targets {
    /// Adds a target, if it is not among them. Returns `false` if there are four others already.
    #[must_use]
    pub fn add(&mut self, target: Target) -> bool {
        *self = match *self {
            Self::None => Self::One(target),
            Self::One(first) if first == target => return true,
            Self::One(first) => Self::Many(Several { targets: [first, target, 0, 0], len: 2 }),
            Self::Many(several) if several.as_slice().contains(&target) => return true,
            Self::Many(Several { mut targets, len }) => {
                let Some(free) = targets.get_mut(usize::from(len)) else { return false };
                *free = target;
                Self::Many(Several { targets, len: len + 1 })
            }
        };
        true
    }
}

impl Several {
    /// Returns the targets, each once.
    pub fn as_slice(&self) -> &[Target] {
        // There are two to four targets. If the length were ever wrong, a record would go to one target too many
        // rather than to none.
        self.targets.get(..usize::from(self.len)).unwrap_or(&self.targets)
    }
}

/// The data of a record that a router gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The record's fields, without its tag and length.
    pub bytes: &'a [u8],
    /// The last occurrence of its ID field, which is the one that counts in protobuf; empty if there is none.
    pub id: &'a [u8],
    /// The last occurrence of its start time; 0 if there is none.
    pub start: u64,
}

/// Chooses the targets of records. Every closure with this signature is a router.
pub trait Router {
    /// Returns the targets of one record. Called once for each record, in order.
    fn route(&mut self, record: &Record<'_>) -> Targets;
}

impl<F: FnMut(&Record<'_>) -> Targets> Router for F {
    fn route(&mut self, record: &Record<'_>) -> Targets {
        self(record)
    }
}

/// The size of one target's part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The target.
    pub target: Target,
    /// The number of its records.
    pub records: u32,
    /// The length of its part, without gRPC's prefix.
    pub len: usize,
}

/// The parts of a request.
#[derive(Debug)]
pub struct Built {
    /// The parts, in the order of [`Plan::shares`].
    pub parts: Vec<(Share, Framed)>,
    /// Whether the parts share the request's buffers, which keeps these in memory.
    pub shares: bool,
    /// The number of bytes that the parts take, not counting the request's buffers.
    pub len: usize,
}

/// The reason why parts were not built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotBuilt {
    /// The parts would take this many bytes, for which there was no room.
    #[error("no room for {0} bytes of parts")]
    NoRoom(usize),
    /// The plan contradicts itself, which is a defect. No part is returned, since records could be missing.
    #[error("the parts are not what was planned")]
    Inconsistent,
}

/// The structure of a message: the path to its records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// The levels from the request down to the message that contains the records.
    pub(crate) levels: &'static [Level],
    /// The fields of a record that are read.
    pub(crate) fields: &'static RecordFields,
}

impl From<Signal> for Shape {
    fn from(signal: Signal) -> Self {
        Self { levels: signal.levels(), fields: signal.record_fields() }
    }
}

/// Plans the parts of a request: which records each target gets, and how long its part is. Builds nothing yet.
///
/// The request lies in the buffers of `payload`, one after the other. `room` is asked if the notes take more than a few
/// MiB, and before a long record that lies in several buffers is copied to one.
pub fn plan<'a, R: Router>(
    signal: Signal,
    payload: &[Bytes],
    router: &mut R,
    scratch: &'a mut Scratch,
    room: &mut dyn FnMut(usize) -> bool,
) -> Result<Plan<'a>, WireError> {
    plan_shape(signal.into(), payload, 0, router, scratch, room)
}

/// Like [`plan`], but copies each record as soon as its target is known, if `room` grants the memory for that. This is
/// cheaper if there are several long parts. `targets` is the expected number of targets.
///
/// If there are more targets than expected, it can fail for lack of room where [`plan`] would not.
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

/// Returns whether [`plan_early`] is cheaper for a message of `len` bytes.
pub fn is_early_cheaper(len: usize, targets: usize) -> bool {
    targets > 1 && len >= EARLY_FROM && len / targets >= LARGE_PART
}

/// Does the same as [`plan`], or as [`plan_early`] if `targets` is not 0, for any table of levels.
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

/// The planned parts of one request. When it is dropped, the scratch frees what it does not keep.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The length of the request.
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
                let measured = scratch.measure(shape.levels.len(), room);
                let total_len = measured.map_err(|kind| {
                    scratch.retain_little();
                    WireError { offset: len, kind }
                })?;
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

    /// Returns the number of records.
    pub fn records(&self) -> u64 {
        self.counts.records
    }

    /// Returns the number of records without a target.
    pub fn unrouted(&self) -> u64 {
        self.counts.unrouted
    }

    /// If all records have the same single target, returns its share: the request itself can be sent there, unchanged.
    pub fn whole(&self) -> Option<Share> {
        match self.scratch.parts.as_slice() {
            [part] if u64::from(part.records) == self.counts.records => Some(part.share()),
            _ => None,
        }
    }

    /// Returns the targets in the order of their first record, and the size of each part.
    pub fn shares(&self) -> impl Iterator<Item = Share> {
        self.scratch.parts.iter().map(scratch::PartPlan::share)
    }

    /// Returns the total length of all parts, including prefixes.
    pub fn total_len(&self) -> usize {
        self.total_len
    }

    /// Builds all parts, if `room` grants the memory for them. They are copies or, if there is no room for copies,
    /// share the request's buffers.
    pub fn build(self, room: &mut dyn FnMut(usize) -> bool) -> Result<Built, NotBuilt> {
        if self.scratch.early.is_on() {
            return self.build_early(room);
        }
        if room(self.total_len) {
            let layout = Layout::copied(self.total_len);
            return self.write(SharingLimits::COPY_ALL, layout);
        }
        self.build_in_least_room(room)
    }

    /// Builds parts that share the request's buffers, unless copies take less memory.
    fn build_in_least_room(self, room: &mut dyn FnMut(usize) -> bool) -> Result<Built, NotBuilt> {
        // Parts that are together much longer than the request must not share it: each would count as small in the
        // budget, but take its whole length once it has to be copied. They may also repeat so many ranges that even
        // counting these takes long.
        let may_share = self.total_len <= self.len.saturating_mul(5) / 4;
        let shared = may_share.then(|| self.layout(SharingLimits::REQUEST));
        let (how, layout) = match shared.filter(|shared| shared.len() < self.total_len) {
            Some(shared) => (SharingLimits::REQUEST, shared),
            None => (SharingLimits::COPY_ALL, Layout::copied(self.total_len)),
        };
        if room(layout.len()) { self.write(how, layout) } else { Err(NotBuilt::NoRoom(layout.len())) }
    }

    /// Builds parts from the records that were copied early and the bytes between them.
    fn build_early(self, room: &mut dyn FnMut(usize) -> bool) -> Result<Built, NotBuilt> {
        let layout = self.layout(SharingLimits::EARLY_COPIES);
        let (taken, not_granted) = self.scratch.early.taken();
        let more = layout.len().saturating_add(not_granted);
        if !room(more) {
            return Err(NotBuilt::NoRoom(more));
        }
        let mut built = self.write(SharingLimits::EARLY_COPIES, layout)?;
        built.len = built.len.saturating_add(taken);
        Ok(built)
    }

    fn layout(&self, shared: SharingLimits) -> Layout {
        let is_early = self.scratch.early.is_on();
        let SharedTotals { len, ranges, short } = self.scratch.shared(shared);
        let copied = self.total_len.saturating_sub(len);
        // A part is a list of shared ranges with copied buffers between them and one at its end. There is a copied
        // buffer between two shared ranges only if something is copied there: a message's header or a short range. A
        // border between two buffers of early copies or of copied bytes adds one more.
        let between = ranges.min(short.saturating_add(self.scratch.part_messages.len()));
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
    fn write(self, shared: SharingLimits, layout: Layout) -> Result<Built, NotBuilt> {
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

/// The amounts of memory that parts take.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// The number of bytes that are copied.
    copied: usize,
    /// The number of ranges that are shared.
    ranges: usize,
    /// The number of buffers in the lists of all parts. Slices of the same buffer count separately.
    chunks: usize,
    /// The number of reassembled bytes, which parts that share the request keep in memory.
    reassembled: usize,
    /// Whether the parts share the request's buffers.
    shares: bool,
}

impl Layout {
    /// Returns the layout of parts that are copied entirely.
    fn copied(len: usize) -> Self {
        Self { copied: len, ranges: 0, chunks: 0, reassembled: 0, shares: false }
    }

    fn len(self) -> usize {
        let lists = self.ranges * size_of::<SharedRange>() + self.chunks * size_of::<Bytes>();
        self.copied.saturating_add(lists).saturating_add(self.reassembled)
    }
}

/// Returns the length of a request. It must fit 32 bits, as offsets in the scratch and lengths in gRPC do.
fn checked_len(payload: &[Bytes]) -> Result<usize, WireError> {
    let len = payload.iter().map(Bytes::len).sum();
    u32::try_from(len).map(|_fits| len).map_err(|_too_long| WireError { offset: 0, kind: Malformed::TooLong })
}
