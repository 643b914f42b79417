//! Cuts a message into parts for the owners in one table. Each part fits in a call, and all are within the memory
//! budget.

use std::{cell::RefCell, num::NonZeroUsize};

use tonic::Code;

use super::{defect, metrics::SignalMetrics};
use crate::{
    budget::Permit,
    codec::{Encoding, Original},
    dispatch::{Part, View},
    otlp::{
        Framed, Reason, Refusal, Signal,
        wire::{Malformed, WireError},
    },
    places::LONG,
    ring::Table,
    route::{ByTraceId, Copied, HandedOff, InvalidIds, Lane, Moved},
    settings::InvalidTraceId,
    spare::Spare,
    split::{self, Built, BySize, NotBuilt, Plan, Scratch},
};

/// A client's message before its cut.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) signal: Signal,
    pub(super) message: Framed,
    /// How it came compressed.
    pub(super) encoding: Option<Encoding>,
    /// The message as it came. It goes on like this if all of it is one part.
    pub(super) original: Option<Original>,
    /// The budget share of the message and of its original.
    pub(super) permit: Permit,
}

/// A message that was cut by one table.
#[derive(Debug)]
pub(super) struct Cut {
    /// The parts; their `index` counts from 0.
    pub(super) parts: Vec<Part>,
    /// Copies of records for further owners; their `index` counts from 0 too. If a part is placed again, these are the
    /// records that their owner has as a copy already.
    pub(super) copies: Vec<Part>,
    /// The number of records in the message.
    pub(super) records: u64,
    /// The number of records that the proxy itself refused.
    pub(super) rejected: u64,
    /// The budget share of the parts.
    pub(super) permit: Permit,
}

thread_local! {
    /// The split's lists, which each thread keeps between requests, so that a cut allocates only its parts.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The lists for long messages, which need more memory. So fewer are kept than there are threads.
static LONG_SCRATCH: Spare<Scratch> = Spare::new(4);

impl Arrived {
    /// Frees the original, unless the backends of `view` can get it.
    pub(super) fn passed_on_by(mut self, view: &View) -> Self {
        let is_for_them = view.compression().encoding_for(self.encoding) == self.encoding;
        if let Some(original) = self.original.take_if(|_| !is_for_them) {
            original.release(&mut self.permit);
        }
        self
    }
}

impl Cut {
    /// Notes the encoding that the request came in.
    fn came_in(mut self, encoding: Option<Encoding>) -> Self {
        self.parts.iter_mut().chain(&mut self.copies).for_each(|part| part.encoding = encoding);
        self
    }
}

/// Cuts a client's message by a table into parts of at most `max` bytes; a larger record gets a part of its own. Returns
/// the parts, and the budget share of the copies.
///
/// Neither its original nor copies make a request be refused: where there is no room for them, it is cut without them.
pub(super) fn cut(
    arrived: Arrived,
    by: By<'_>,
    max: usize,
    metrics: &SignalMetrics,
) -> Result<(Cut, Option<Permit>), Refusal> {
    let Arrived { signal, message, encoding, mut original, mut permit } = arrived;
    if let Some(original) = original.take_if(|it| message.payload_len().max(it.bytes.len()) > max) {
        original.release(&mut permit);
    }
    let held = permit.bytes().saturating_sub(share_of(&original));
    let is_optional = original.is_some() || matches!(by.moved, Moved::ByStart(_));
    let again = is_optional.then(|| message.clone());
    let mut fitted = fitted(signal, message, &mut original, &mut permit, by, max);
    if let (Err(NotCut::NoRoom(_)), Some(_), Some(message)) = (&fitted, &original, &again) {
        original = None;
        permit.shrink_to(held);
        fitted = self::fitted(signal, message.clone(), &mut original, &mut permit, by, max);
    }
    if let (Err(NotCut::NoRoom(_)), Moved::ByStart(arrival), Some(message)) = (&fitted, by.moved, again) {
        permit.shrink_to(held);
        let by = By { moved: Moved::WithoutCopies(arrival), ..by };
        fitted = self::fitted(signal, message, &mut original, &mut permit, by, max);
    }
    let (uncounted, routed) = fitted.map_err(|error| error.refusal(&permit))?;
    let mut cut = uncounted.with(permit).came_in(encoding);
    if let ([whole], Some(original)) = (cut.parts.as_mut_slice(), original) {
        whole.original = Some(original.bytes);
    }
    let copies_permit = detach_copies(&mut cut, metrics);
    metrics.note_invalid(routed.invalid);
    metrics.note_handed_off(routed.handed_off);
    metrics.records.increment(cut.records);
    let parts = cut.parts.len() + cut.copies.len();
    metrics.parts.increment(parts as u64);
    match parts {
        0 => metrics.empty.increment(1),
        1 => metrics.whole.increment(1),
        _ => metrics.cut.increment(1),
    }
    Ok((cut, copies_permit))
}

/// The budget share of an original.
fn share_of(original: &Option<Original>) -> usize {
    original.as_ref().map_or(0, |original| original.held)
}

/// The share of a request's bytes from which copies keep its buffers: 1 ÷ this. They are then counted as all of the request,
/// and are not copied once more. With all slots in a window that copy makes a difference: 512 spans cost 2.36 times as much
/// with it, and 2.11 times without it (`cargo bench --bench proxies -- handoff`, few turns).
const KEEPS_BUFFERS_FROM: usize = 3;

/// Sees to it that copies do not keep more in memory than is counted for them. The parts of a request share their buffers: a
/// copy that waits would keep all of the request after it was answered. So few copies get buffers of their own. Returns the
/// budget share of the copies. Without room for it they are dropped.
fn detach_copies(cut: &mut Cut, metrics: &SignalMetrics) -> Option<Permit> {
    if cut.copies.is_empty() {
        return None;
    }
    let (len, all) = (cut.copies.iter().map(|copy| copy.message.framed_len()).sum::<usize>(), cut.permit.bytes());
    let keeps_buffers = len.saturating_mul(KEEPS_BUFFERS_FROM) >= all;
    let permit = cut.permit.take_again(if keeps_buffers { all } else { len });
    if permit.is_none() {
        metrics.copies.dropped.increment(records_of(&cut.copies));
        cut.copies.clear();
    }
    if !keeps_buffers {
        for copy in &mut cut.copies {
            copy.message = copy.message.detached();
        }
    }
    permit
}

/// Cuts a part again, from a copy of its bytes that `permit` covers: the part itself shares the buffer of its request's
/// other parts and would keep all of it. Its records are not counted again.
pub(super) fn again(
    signal: Signal,
    message: &Framed,
    encoding: Option<Encoding>,
    mut permit: Permit,
    table: &Table,
    copied: Option<Copied<'_>>,
    max: usize,
) -> Result<Cut, Refusal> {
    let moved = copied.map_or(Moved::Immediate, Moved::Again);
    let by = By { table, invalid: InvalidTraceId::Forward, moved };
    match fitted(signal, message.detached(), &mut None, &mut permit, by, max) {
        Ok((cut, _)) => Ok(cut.with(permit).came_in(encoding)),
        Err(error) => Err(error.refusal(&permit)),
    }
}

/// Cuts `message` into parts that fit in a call.
fn fitted(
    signal: Signal,
    message: Framed,
    original: &mut Option<Original>,
    permit: &mut Permit,
    by: By<'_>,
    max: usize,
) -> Result<(Uncounted, Routed), NotCut> {
    let (cut, routed) = cut_by(signal, message, original, permit, by)?;
    Ok((fit(cut, max, permit)?, routed))
}

/// Cuts `message`, and frees its original unless all of it is one part. Records are copied during the parse if that is
/// cheaper. If there is no memory for this, the message is cut again without these copies.
fn cut_by(
    signal: Signal,
    message: Framed,
    original: &mut Option<Original>,
    permit: &mut Permit,
    by: By<'_>,
) -> Result<(Uncounted, Routed), NotCut> {
    let held = permit.bytes().saturating_sub(share_of(original));
    let targets = by.table.targets().len();
    let early = NonZeroUsize::new(targets).filter(|_| split::is_early_cheaper(message.payload_len(), targets));
    let mut cut = attempt(signal, &message, original, permit, by, early);
    if early.is_some() && matches!(cut, Err(NotCut::NoRoom(_))) {
        permit.shrink_to(held + share_of(original));
        cut = attempt(signal, &message, original, permit, by, None);
    }
    let (uncounted, routed) = cut?;
    let Uncounted { parts, copies, records, rejected } = &uncounted;
    let counted = match by.moved {
        Moved::Again(_) => records_of(parts) + records_of(copies),
        Moved::Immediate | Moved::ByStart(_) | Moved::WithoutCopies(_) => records_of(parts),
    };
    if counted + rejected != *records {
        return Err(NotCut::Refused(defect("the parts of a request do not have all of its records")));
    }
    Ok((uncounted, routed))
}

/// How records are routed.
#[derive(Clone, Copy)]
pub(super) struct By<'a> {
    pub(super) table: &'a Table,
    /// What happens to records whose trace ID is invalid.
    pub(super) invalid: InvalidTraceId,
    /// What happens to records whose slot has moved.
    pub(super) moved: Moved<'a>,
}

/// What a router counted.
#[derive(Debug)]
struct Routed {
    invalid: InvalidIds,
    handed_off: HandedOff,
}

/// A [`Cut`] without its permit.
#[derive(Debug)]
struct Uncounted {
    parts: Vec<Part>,
    copies: Vec<Part>,
    records: u64,
    rejected: u64,
}

/// The reason why a message was not cut.
#[derive(Debug)]
enum NotCut {
    /// There was no room for so many bytes.
    NoRoom(usize),
    Refused(Refusal),
}

impl NotCut {
    /// Returns the answer for the client; `permit` is that of the request.
    #[cold]
    fn refusal(self, permit: &Permit) -> Refusal {
        match self {
            Self::NoRoom(more) => Refusal::no_room(permit.bytes().saturating_add(more), permit.alone()),
            Self::Refused(refusal) => refusal,
        }
    }
}

impl Uncounted {
    fn with(self, permit: Permit) -> Cut {
        let Self { parts, copies, records, rejected } = self;
        Cut { parts, copies, records, rejected, permit }
    }
}

fn attempt(
    signal: Signal,
    message: &Framed,
    original: &mut Option<Original>,
    permit: &mut Permit,
    by: By<'_>,
    early: Option<NonZeroUsize>,
) -> Result<(Uncounted, Routed), NotCut> {
    let payload = message.payload_chunks();
    let mut held = permit.bytes();
    with_scratch(message.payload_len(), |scratch| {
        let mut router = ByTraceId::new(by.table, by.invalid, by.moved);
        let room = &mut |bytes| permit.grow(bytes);
        let plan = match early {
            Some(targets) => split::plan_early(signal, &payload, targets, &mut router, scratch, room),
            None => split::plan(signal, &payload, &mut router, scratch, room),
        };
        let plan = plan.map_err(unplanned)?;
        if let Some(original) = original.take_if(|_| plan.whole().is_none()) {
            held = held.saturating_sub(original.held);
            original.release(permit);
        }
        let (records, rejected) = (plan.records(), plan.unrouted());
        let (Lanes { parts, copies }, kept) = parts_of(signal, message, permit, held, plan)?;
        permit.shrink_to(kept);
        let routed = Routed { invalid: router.invalid(), handed_off: router.handed_off() };
        Ok((Uncounted { parts, copies, records, rejected }, routed))
    })
}

fn with_scratch<T>(len: usize, work: impl FnOnce(&mut Scratch) -> T) -> T {
    if len <= LONG { SCRATCH.with_borrow_mut(work) } else { LONG_SCRATCH.with(Scratch::default, work) }
}

/// Builds the parts. Returns them with the budget share that they need once everything else is freed. Their bytes are
/// taken from the budget before any part is built. `held` is the budget share of the message.
fn parts_of(
    signal: Signal,
    message: &Framed,
    permit: &mut Permit,
    held: usize,
    plan: Plan<'_>,
) -> Result<(Lanes, usize), NotCut> {
    let mut lanes = Lanes::default();
    if plan.records() == plan.unrouted() {
        return Ok((lanes, held));
    }
    if let Some(share) = plan.whole() {
        lanes.add(signal, share.target, message.clone(), share.records);
        return Ok((lanes, held));
    }
    let Built { parts, shares, len } = match plan.build(&mut |bytes| permit.grow(bytes)) {
        Ok(built) => built,
        Err(NotBuilt::NoRoom(more)) => return Err(NotCut::NoRoom(more)),
        Err(NotBuilt::Inconsistent) => {
            return Err(NotCut::Refused(defect("the parts of a request are not what was planned")));
        }
    };
    let kept = if shares { held + len } else { len };
    lanes.parts.reserve_exact(parts.len());
    for (share, message) in parts {
        lanes.add(signal, share.target, message, share.records);
    }
    Ok((lanes, kept))
}

/// The parts of a message by what they are for.
#[derive(Default)]
struct Lanes {
    parts: Vec<Part>,
    copies: Vec<Part>,
}

impl Lanes {
    fn add(&mut self, signal: Signal, target: split::Target, message: Framed, records: u32) {
        let Lane { backend, alone, copy } = Lane::of(target);
        let lane = if copy { &mut self.copies } else { &mut self.parts };
        let index = u32::try_from(lane.len()).unwrap_or(u32::MAX);
        lane.push(Part { alone, index, ..Part::new(signal, message, records, backend) });
    }
}

fn records_of(parts: &[Part]) -> u64 {
    parts.iter().map(|part| u64::from(part.records)).sum()
}

/// Cuts parts larger than `max` bytes by size.
fn fit(cut: Uncounted, max: usize, permit: &mut Permit) -> Result<Uncounted, NotCut> {
    let mut all = cut.parts.iter().chain(&cut.copies);
    if all.all(|part| part.message.payload_len() <= max) { Ok(cut) } else { by_size(cut, max, permit) }
}

#[cold]
fn by_size(cut: Uncounted, max: usize, permit: &mut Permit) -> Result<Uncounted, NotCut> {
    let Uncounted { parts, copies, records, rejected } = cut;
    let before = records_of(&parts);
    let (parts, copied) = pieces(parts, max, permit)?;
    let (copies, copies_copied) = pieces(copies, max, permit)?;
    if records_of(&parts) != before {
        return Err(NotCut::Refused(defect("the pieces of a request do not have all of its records")));
    }
    if let Some((len, more)) = copied.zip(copies_copied) {
        // No piece shares the memory of the original parts.
        permit.shrink_to(len + more);
    }
    Ok(Uncounted { parts, copies, records, rejected })
}

/// Cuts parts by size. Returns the pieces and, if none of them shares the memory of its part, their length.
fn pieces(parts: Vec<Part>, max: usize, permit: &mut Permit) -> Result<(Vec<Part>, Option<usize>), NotCut> {
    let mut fitting = Vec::with_capacity(parts.len() + 1);
    let (mut len, mut all_copied) = (0, true);
    for part in parts {
        match split::by_size(part.signal, &part.message, max, |len| permit.grow(len)) {
            Ok(BySize::Cut { pieces, shares }) => {
                all_copied &= !shares;
                fitting.extend(pieces.into_iter().map(|(records, message)| {
                    len += message.framed_len();
                    Part { message, records, original: None, ..part }
                }));
            }
            Ok(BySize::NoRoom(len)) => return Err(NotCut::NoRoom(len)),
            Ok(BySize::Whole) => {
                all_copied = false;
                fitting.push(part);
            }
            // The same bytes were parsed before, so they cannot be malformed.
            Err(_) => return Err(NotCut::Refused(defect("a part of a request cannot be read"))),
        }
    }
    for (part, index) in fitting.iter_mut().zip(0..) {
        part.index = index;
    }
    Ok((fitting, all_copied.then_some(len)))
}

#[cold]
fn unplanned(error: WireError) -> NotCut {
    NotCut::Refused(match error.kind {
        Malformed::NoRoom(more) => return NotCut::NoRoom(more),
        Malformed::Inconsistent => defect("what was noted of a request contradicts itself"),
        Malformed::Pieces(_) => Refusal::permanent(Code::ResourceExhausted, Reason::TooLarge, error.kind.to_string()),
        _ => Refusal::permanent(Code::InvalidArgument, Reason::Malformed, error.to_string()),
    })
}

/// Damages the plan of the next request that this thread cuts.
#[cfg(test)]
pub(super) fn damage_next_plan() {
    SCRATCH.with_borrow_mut(Scratch::damage_next_plan);
}

#[cfg(test)]
mod tests;
