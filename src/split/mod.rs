//! The cut: one export request in, the part of each target out. Pure bytes → bytes: no I/O, no clock, no backend known.
//!
//! [`plan`] walks the wire format once. A table of levels says which fields lead down to the records; a [`Router`] is
//! asked for the targets of each record; all else is envelope. What it finds is written down as ranges of bytes, so
//! that the parts' lengths are exact before any part is built. [`Plan::build`] then writes each part: the envelopes of
//! the messages that hold its records, verbatim, and its records, copied once: as soon as they were walked ([`plan_early`]), or
//! now. Where there is no room for copies, parts share the request's bytes.
//!
//! What it promises of a part: records are byte for byte what they were and in their order; each message that holds
//! one of them has all its other fields, in their order, in front of its children; children keep their field number.
//! Messages that hold no record are not in any part (OTLP lets forwarders drop them). Records and attributes are never
//! decoded, so unknown fields, groups, invalid UTF-8 and any nesting depth pass through. Of a record only the
//! top-level fields are walked, to their end, so that a broken one is found here and not in a call shared with others.
//!
//! Stricter than protobuf in one point: where the wire type of a child, an ID or a start time is not what OTLP says,
//! the request is malformed. Protobuf would treat such a field as unknown; Collectors refuse it.
//!
//! A request may lie in several buffers, as its frames came: only what is torn between two is put together.
//!
//! Reading order: this page, `walk`, `sources`, `scratch`, `measure`, `early`, `copied`, `pieces`. Called by the pipeline.

mod copied;
mod early;
mod measure;
mod pieces;
mod scratch;
mod sources;
mod walk;

#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;

use bytes::Bytes;

use self::{copied::Copied, early::Early};
pub use self::{
    pieces::{BySize, by_size},
    scratch::Scratch,
};
use crate::otlp::{
    Framed, Level, RecordFields, Signal,
    framed::PREFIX_LEN,
    rope::{Rope, Weaver},
    wire::{Malformed, WireError},
};

/// Length of a request from which records are copied while it is walked. A smaller request stays in the nearest caches until
/// it is cut, and its parts are joined in one buffer anyway (figures: `deploy/docs/performance.md`).
const EARLY_FROM: usize = 64 << 10;

/// Mean length of a run from which parts share the request's bytes: a shorter one is copied for less than it costs to note
/// it down and to find it again.
const LONG_RUN: usize = 128;

/// Mean length of a part from which it is worth a list of runs; dispatch joins smaller ones in one buffer.
const LARGE_PART: usize = 8 << 10;

/// Length of a varint of 32 bits, at most.
const MAX_VARINT: usize = 5;

/// Where a record goes: a number that means something to the router only. Any value will do; few of them occur.
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
        self.targets.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// What a router is shown of a record.
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
    /// Whether they share the request's bytes and keep them.
    pub shares: bool,
    /// Bytes that they take, the request's own aside.
    pub len: usize,
}

/// How a message nests its records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// From the request down to the message that holds the records.
    pub(crate) levels: &'static [Level],
    /// What is read of a record.
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
/// keep track of it, and before a long record is put together that is torn between two buffers.
pub fn plan<'a, R: Router>(
    signal: Signal,
    payload: &[Bytes],
    router: &mut R,
    scratch: &'a mut Scratch,
    room: &mut dyn FnMut(usize) -> bool,
) -> Result<Plan<'a>, WireError> {
    plan_shape(signal.into(), payload, 0, router, scratch, room)
}

/// [`plan`] that copies each record as soon as it knows its target, if `room` is given for that: cheaper where parts are long
/// and there are several. About so many `targets` are expected.
///
/// It can fail for want of room where [`plan`] does not, if the targets are others than expected.
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

/// Whether [`plan_early`] is worth it for a message of `len` bytes.
pub fn is_early_cheaper(len: usize, targets: usize) -> bool {
    targets > 1 && len >= EARLY_FROM && len / targets >= LARGE_PART
}

/// [`plan`], or [`plan_early`] for some targets, for any table of levels.
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
    /// How many messages hold a record.
    depth: usize,
    scratch: &'a mut Scratch,
    counts: walk::Counts,
    total_len: usize,
    /// Of which the parts are made.
    runs: usize,
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
                let (total_len, runs) = scratch.measure(shape.levels.len());
                Ok(Self { len, depth: shape.levels.len(), scratch, counts, total_len, runs })
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

    /// The one target that owns every record, if there is one: the request goes there as it came, not rebuilt.
    pub fn whole(&self) -> Option<Target> {
        match self.scratch.tallies() {
            [tally] if u64::from(tally.records) == self.counts.records => Some(tally.target),
            _ => None,
        }
    }

    /// The targets in the order of their first record, and what each gets.
    pub fn shares(&self) -> impl Iterator<Item = Share> {
        self.scratch.tallies().iter().map(scratch::Tally::share)
    }

    /// Length of all parts and their prefixes.
    pub fn total_len(&self) -> usize {
        self.total_len
    }

    /// Whether the parts can share the request's bytes, and thereby keep them, instead of having copies.
    ///
    /// Short runs are cheaper copied than noted down. Parts that would be much longer than the request are copied too: who has
    /// to copy them later (by size, for another table) then holds no more than is counted.
    fn can_share(&self) -> bool {
        let long_runs = self.runs.saturating_mul(LONG_RUN) <= self.total_len;
        let large_parts = self.scratch.tallies().len().saturating_mul(LARGE_PART) <= self.total_len;
        let few_repeats = self.total_len <= self.len.saturating_mul(5) / 4;
        let in_reach = u32::try_from(self.headers()).is_ok();
        long_runs && large_parts && few_repeats && in_reach
    }

    /// Bytes that the parts take, the request's own aside, with those of torn records that were put together.
    fn room(&self, shares: bool) -> usize {
        if shares {
            let runs = self.runs.saturating_mul(Weaver::RUN_LEN);
            runs.saturating_add(self.headers()).saturating_add(self.counts.joined)
        } else {
            self.total_len
        }
    }

    /// Bytes of prefixes, tags and lengths, at most.
    fn headers(&self) -> usize {
        let (parts, messages) = (self.scratch.tallies().len(), self.scratch.entries.len());
        parts.saturating_mul(PREFIX_LEN).saturating_add(messages.saturating_mul(2 * MAX_VARINT))
    }

    /// Builds all parts, once `room` gives their bytes. An error is how many it would have taken.
    pub fn build(self, room: &mut dyn FnMut(usize) -> bool) -> Result<Built, usize> {
        if self.scratch.early.is_on() {
            let (parts, len) = self.scratch.finish_early(self.depth, self.total_len, room)?;
            return Ok(Built { parts: self.shares().zip(parts).collect(), shares: false, len });
        }
        let shares = self.can_share();
        let len = self.room(shares);
        if !room(len) {
            return Err(len);
        }
        let woven = if shares { self.weave() } else { None };
        Ok(Built { parts: woven.unwrap_or_else(|| self.copy()), shares, len })
    }

    /// Parts that share the request's bytes; `None` if their offsets could pass 32 bits.
    pub fn weave(&self) -> Option<Vec<(Share, Framed)>> {
        let parts = self.scratch.tallies().len();
        let sources = &self.scratch.sources;
        let weaver = Weaver::new(sources.chunks(), parts, self.runs, self.headers())?;
        let mut out = measure::Woven { sources: sources.lookup(), weaver };
        for tally in self.scratch.tallies() {
            self.scratch.write(tally, &mut out);
            out.weaver.end();
        }
        let framed = |rope: Rope| Framed::from_rope(rope).unwrap_or_default();
        Some(self.shares().zip(out.weaver.finish().map(framed)).collect())
    }

    /// Parts with bytes of their own.
    pub fn copy(&self) -> Vec<(Share, Framed)> {
        let tallies = self.scratch.tallies();
        let mut out = Copied::new(self.scratch.sources.lookup(), tallies.len(), self.total_len);
        for tally in tallies {
            self.scratch.write(tally, &mut out);
            out.end();
        }
        self.shares().zip(out.finish()).collect()
    }
}

impl Drop for Plan<'_> {
    fn drop(&mut self) {
        self.scratch.retain_little();
    }
}

/// The length of a request, whose offsets the scratch keeps in 32 bits; it is no longer than gRPC's length can say.
fn checked_len(payload: &[Bytes]) -> Result<usize, WireError> {
    let len = payload.iter().map(Bytes::len).sum();
    u32::try_from(len).map(|_fits| len).map_err(|_too_long| WireError { offset: 0, kind: Malformed::TooLong })
}
