//! Cuts a message into parts for the owners in one table. Each part fits in a call, and all are within the memory
//! budget.

use std::{cell::RefCell, num::NonZeroUsize};

use tonic::Code;

use super::{defect, metrics::SignalMetrics};
use crate::{
    budget::Permit,
    dispatch::Part,
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

/// Cuts a client's `message` by `table` into parts of at most `max` bytes; a larger record gets a part of its own.
/// `permit` covers the message.
pub(super) fn cut(
    signal: Signal,
    message: Framed,
    permit: Permit,
    by: By<'_>,
    max: usize,
    metrics: &SignalMetrics,
) -> Result<Cut, Refusal> {
    let (cut, routed) = cut_by(signal, message, permit, by)?;
    let cut = fit(cut, max)?;
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
    Ok(cut)
}

/// Cuts a part again, from a copy of its bytes that `permit` covers: the part itself shares the buffer of its request's
/// other parts and would keep all of it. Its records are not counted again.
pub(super) fn again(
    signal: Signal,
    message: &Framed,
    permit: Permit,
    table: &Table,
    copied: Option<Copied<'_>>,
    max: usize,
) -> Result<Cut, Refusal> {
    let moved = copied.map_or(Moved::Immediate, Moved::Again);
    let by = By { table, invalid: InvalidTraceId::Forward, moved };
    cut_by(signal, message.detached(), permit, by).and_then(|(cut, _)| fit(cut, max))
}

/// Cuts `message`. Records are copied during the parse if that is cheaper. If there is no memory for this, the message
/// is cut again without these copies.
fn cut_by(signal: Signal, message: Framed, mut permit: Permit, by: By<'_>) -> Result<(Cut, Routed), Refusal> {
    let held = permit.bytes();
    let targets = by.table.targets().len();
    let early = NonZeroUsize::new(targets).filter(|_| split::is_early_cheaper(message.payload_len(), targets));
    let mut cut = attempt(signal, &message, &mut permit, by, early);
    if early.is_some() && matches!(cut, Err(NotCut::NoRoom(_))) {
        permit.shrink_to(held);
        cut = attempt(signal, &message, &mut permit, by, None);
    }
    let (Uncounted { parts, copies, records, rejected }, routed) = cut.map_err(|error| match error {
        NotCut::NoRoom(more) => no_room(more, &permit),
        NotCut::Refused(refusal) => refusal,
    })?;
    let counted = match by.moved {
        Moved::Again(_) => records_of(&parts) + records_of(&copies),
        Moved::Immediate | Moved::ByStart(_) => records_of(&parts),
    };
    if counted + rejected != records {
        return Err(defect("the parts of a request do not have all of its records"));
    }
    Ok((Cut { parts, copies, records, rejected, permit }, routed))
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
struct Uncounted {
    parts: Vec<Part>,
    copies: Vec<Part>,
    records: u64,
    rejected: u64,
}

/// The reason why a message was not cut.
enum NotCut {
    /// There was no room for so many bytes.
    NoRoom(usize),
    Refused(Refusal),
}

fn attempt(
    signal: Signal,
    message: &Framed,
    permit: &mut Permit,
    by: By<'_>,
    early: Option<NonZeroUsize>,
) -> Result<(Uncounted, Routed), NotCut> {
    let payload = message.payload_chunks();
    let held = permit.bytes();
    with_scratch(message.payload_len(), |scratch| {
        let mut router = ByTraceId::new(by.table, by.invalid, by.moved);
        let room = &mut |bytes| permit.grow(bytes);
        let plan = match early {
            Some(targets) => split::plan_early(signal, &payload, targets, &mut router, scratch, room),
            None => split::plan(signal, &payload, &mut router, scratch, room),
        };
        let plan = plan.map_err(unplanned)?;
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
        lane.push(Part { message, records, signal, backend, alone, index });
    }
}

fn records_of(parts: &[Part]) -> u64 {
    parts.iter().map(|part| u64::from(part.records)).sum()
}

/// Cuts parts larger than `max` bytes by size.
fn fit(cut: Cut, max: usize) -> Result<Cut, Refusal> {
    let mut all = cut.parts.iter().chain(&cut.copies);
    if all.all(|part| part.message.payload_len() <= max) { Ok(cut) } else { by_size(cut, max) }
}

#[cold]
fn by_size(cut: Cut, max: usize) -> Result<Cut, Refusal> {
    let Cut { parts, copies, records, rejected, mut permit } = cut;
    let before = records_of(&parts);
    let (parts, copied) = pieces(parts, max, &mut permit)?;
    let (copies, copies_copied) = pieces(copies, max, &mut permit)?;
    if records_of(&parts) != before {
        return Err(defect("the pieces of a request do not have all of its records"));
    }
    if let Some((len, more)) = copied.zip(copies_copied) {
        // No piece shares the memory of the original parts.
        permit.shrink_to(len + more);
    }
    Ok(Cut { parts, copies, records, rejected, permit })
}

/// Cuts parts by size. Returns the pieces and, if none of them shares the memory of its part, their length.
fn pieces(parts: Vec<Part>, max: usize, permit: &mut Permit) -> Result<(Vec<Part>, Option<usize>), Refusal> {
    let mut fitting = Vec::with_capacity(parts.len() + 1);
    let (mut len, mut all_copied) = (0, true);
    for part in parts {
        match split::by_size(part.signal, &part.message, max, |len| permit.grow(len)) {
            Ok(BySize::Cut { pieces, shares }) => {
                all_copied &= !shares;
                fitting.extend(pieces.into_iter().map(|(records, message)| {
                    len += message.framed_len();
                    Part { message, records, ..part }
                }));
            }
            Ok(BySize::NoRoom(len)) => return Err(no_room(len, permit)),
            Ok(BySize::Whole) => {
                all_copied = false;
                fitting.push(part);
            }
            // The same bytes were parsed before, so they cannot be malformed.
            Err(_) => return Err(defect("a part of a request cannot be read")),
        }
    }
    for (part, index) in fitting.iter_mut().zip(0..) {
        part.index = index;
    }
    Ok((fitting, all_copied.then_some(len)))
}

#[cold]
fn no_room(more: usize, permit: &Permit) -> Refusal {
    Refusal::no_room(permit.bytes().saturating_add(more), permit.alone())
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
mod tests {
    use super::*;
    use crate::{budget::Budget, otlp::wire, testing};

    fn by(table: &Table) -> By<'_> {
        By { table, invalid: InvalidTraceId::Forward, moved: Moved::Immediate }
    }

    fn part(message: Framed, signal: Signal, records: u32) -> Part {
        Part { message, records, signal, backend: 0, alone: false, index: 0 }
    }

    #[test]
    fn what_parts_hold_is_in_the_budget_and_the_message_is_not_once_it_was_copied() {
        let addresses = ["127.0.0.1:1", "127.0.0.1:2"].map(|address| address.parse().unwrap());
        let table = testing::table(1, &addresses, &[]);
        for (count, size) in [(2_000, 1_000), (900, 1_000), (20_000, 10), (40, 10)] {
            let message = testing::many_traces(count, size);
            let budget = Budget::new(1 << 30);
            let permit = budget.take(message.framed_len()).unwrap();
            let (cut, _) = cut_by(Signal::Traces, message.clone(), permit, by(&table)).unwrap();
            assert_eq!(cut.parts.len(), 2);
            let parts: usize = cut.parts.iter().map(|part| part.message.framed_len()).sum();
            let most = if parts < 64 << 10 { parts } else { 2 * parts };
            assert!((parts..=most).contains(&budget.used()), "{} for {parts}", budget.used());
            drop(cut);
            assert_eq!(budget.used(), 0);
        }
    }

    #[test]
    fn parts_that_need_more_room_than_was_foreseen_share_the_message() {
        let addresses: Vec<_> = (1..9).map(|port| format!("127.0.0.1:{port}").parse().unwrap()).collect();
        let table = testing::table(1, &addresses, &[]);
        // Eight parts repeat the resource, which the estimate does not foresee.
        let resource = len(1, &[0; 25_000]);
        let span = |id: u128| len(2, &[len(1, &id.to_be_bytes()), len(5, &[7; 480])].concat());
        let scope = len(2, &(1..=2_000).flat_map(span).collect::<Vec<_>>());
        let message = Framed::copy_from_payload(&len(1, &[resource, scope].concat())).unwrap();
        let len = message.framed_len();
        for spare in (0..2 * len).step_by(len / 50) {
            let budget = Budget::new(len + spare);
            let permit = budget.take(len).unwrap();
            match cut_by(Signal::Traces, message.clone(), permit, by(&table)) {
                Ok((cut, _)) => {
                    assert_eq!((cut.parts.len(), cut.records), (8, 2_000));
                    assert_eq!(cut.permit.bytes(), budget.used());
                }
                // The targets alternate between spans of 500 bytes, and each span takes 64 bytes in the split's lists.
                Err(refusal) => assert!(spare < len / 7, "{} with {spare} bytes to spare", refusal.reason.as_str()),
            }
            assert_eq!(budget.used(), 0);
        }
    }

    #[test]
    fn parts_share_the_message_where_there_is_no_room_for_copies() {
        let addresses = ["127.0.0.1:1", "127.0.0.1:2"].map(|address| address.parse().unwrap());
        let table = testing::table(1, &addresses, &[]);
        let message = testing::many_traces(700, 1_000);
        let budget = Budget::new(message.framed_len() * 3 / 2);
        let permit = budget.take(message.framed_len()).unwrap();
        let (cut, _) = cut_by(Signal::Traces, message.clone(), permit, by(&table)).unwrap();
        assert_eq!(cut.parts.len(), 2);
        assert!(budget.used() > message.framed_len(), "the message stays, with a list beside it");
    }

    #[test]
    fn what_it_takes_to_keep_track_of_a_request_is_in_the_budget_while_it_is_cut() {
        let addresses = ["127.0.0.1:1", "127.0.0.1:2"].map(|address| address.parse().unwrap());
        let table = testing::table(1, &addresses, &[]);
        // 200,000 resources with a scope and a span each.
        let resource = |id: u32| len(1, &len(2, &len(2, &len(1, &[id.to_be_bytes(); 4].concat()))));
        let message = Framed::copy_from_payload(&(0..200_000).flat_map(resource).collect::<Vec<_>>()).unwrap();
        let cut = |limit: usize| {
            let budget = Budget::new(limit);
            let permit = budget.take(message.framed_len()).unwrap();
            let result = cut_by(Signal::Traces, message.clone(), permit, by(&table));
            let used = budget.used();
            (result.map(|(cut, _)| cut.parts.len()), used, budget)
        };
        let (refused, used, budget) = cut(3 * message.framed_len());
        assert_eq!((refused.unwrap_err().code, used, budget.used()), (Code::ResourceExhausted, 0, 0));
        let (parts, _, budget) = cut(1 << 30);
        assert_eq!((parts.unwrap(), budget.used()), (2, 0));
    }

    #[test]
    fn a_request_of_short_records_gets_as_much_as_it_needs() {
        let addresses = ["127.0.0.1:1", "127.0.0.1:2"].map(|address| address.parse().unwrap());
        let table = testing::table(1, &addresses, &[]);
        let span = |id: u32| len(2, &[len(1, &[id.to_be_bytes(); 4].concat()), len(5, &[7; 40])].concat());
        let message = len(1, &len(2, &(0..200_000).flat_map(span).collect::<Vec<_>>()));
        let message = Framed::copy_from_payload(&message).unwrap();
        // The message and its parts, and a run of 16 bytes for nearly each second record.
        let size = message.framed_len();
        let budget = Budget::new(2 * size + 100_000 * 16 * 5 / 4);
        let permit = budget.take(size).unwrap();
        let (cut, _) = cut_by(Signal::Traces, message, permit, by(&table)).unwrap();
        assert_eq!((cut.parts.len(), cut.records), (2, 200_000));
    }

    #[test]
    fn a_request_of_too_many_records_is_refused_for_good_as_what_it_is() {
        let addresses = ["127.0.0.1:1", "127.0.0.1:2"].map(|address| address.parse().unwrap());
        let table = testing::table(1, &addresses, &[]);
        let spans = len(2, &len(1, &[7; 16])).repeat(1_000_000);
        let message = Framed::copy_from_payload(&len(1, &len(2, &spans))).unwrap();
        let budget = Budget::new(1 << 30);
        let permit = budget.take(message.framed_len()).unwrap();
        let refusal = cut_by(Signal::Traces, message, permit, by(&table)).unwrap_err();
        assert_eq!((refusal.code, refusal.reason), (Code::ResourceExhausted, Reason::TooLarge));
        let expected = "the message has more than 1000000 resources, scopes and records; send smaller batches";
        assert_eq!((refusal.message.as_str(), refusal.retry_after), (expected, None));
        assert_eq!(budget.used(), 0);
    }

    /// Encodes a length-delimited field.
    fn len(number: u32, body: &[u8]) -> Vec<u8> {
        let mut field = Vec::new();
        wire::put_varint(&mut field, wire::len_tag(number));
        wire::put_varint(&mut field, u32::try_from(body.len()).unwrap());
        [field, body.to_vec()].concat()
    }

    #[test]
    fn pieces_of_a_profiles_part_are_whole_requests_and_counted() {
        let dictionary = len(2, &[7; 200]);
        let profiles: Vec<u8> = (0..40).flat_map(|_| len(2, &[len(1, &[1; 16]), len(9, &[0; 80])].concat())).collect();
        let payload = [dictionary.clone(), len(1, &len(2, &profiles))].concat();
        let message = Framed::copy_from_payload(&payload).unwrap();
        let budget = Budget::new(20_000);
        let permit = budget.take(message.framed_len()).unwrap();
        let whole = part(message, Signal::Profiles, 40);
        let cut = Cut { parts: vec![whole], copies: Vec::new(), records: 40, rejected: 0, permit };
        let Cut { parts, permit, .. } = fit(cut, 400).unwrap();
        assert_eq!(parts.iter().map(|part| part.records).sum::<u32>(), 40);
        assert!(parts.len() > 2);
        for (part, index) in parts.iter().zip(0..) {
            assert_eq!(part.index, index, "each must have an outcome of its own");
            assert!(part.message.payload().starts_with(&dictionary), "each must have what its records point to");
        }
        let held: usize = parts.iter().map(|part| part.message.framed_len()).sum();
        assert_eq!((permit.bytes(), budget.used()), (held, held));
    }

    #[test]
    fn without_room_for_pieces_a_request_is_refused() {
        let spans: Vec<u8> = (0..100).flat_map(|_| len(2, &len(1, &[1; 16]))).collect();
        let message = Framed::copy_from_payload(&len(1, &len(2, &spans))).unwrap();
        let size = message.framed_len();
        for (limit, reason) in [(size + 100, Reason::TooLarge), (4 * size, Reason::Budget)] {
            let budget = Budget::new(limit);
            let permit = budget.take(size).unwrap();
            let _others = budget.take(limit - size - 100).unwrap();
            let cut = Cut {
                parts: vec![part(message.clone(), Signal::Traces, 100)],
                copies: Vec::new(),
                records: 100,
                rejected: 0,
                permit,
            };
            assert_eq!(fit(cut, 500).unwrap_err().reason, reason);
            assert_eq!(budget.used(), limit - size - 100, "what was refused must hold nothing");
        }
    }
}
