//! From a message to the parts of one table's owners, each as large as a call may be, within the memory budget.

use std::cell::RefCell;

use tonic::Code;

use super::{Config, metrics::SignalMetrics, retry_delay};
use crate::{
    budget::Permit,
    dispatch::Part,
    otlp::{
        Framed, Reason, Refusal, Signal,
        wire::{Malformed, WireError},
    },
    ring::Table,
    route::{ByTraceId, InvalidIds, InvalidTraceId, Lane},
    split::{self, Built, BySize, Plan, Scratch},
};

/// A message cut by one table.
#[derive(Debug)]
pub(super) struct Cut {
    /// The parts, with `index` counting from 0.
    pub(super) parts: Vec<Part>,
    /// Records seen.
    pub(super) records: u64,
    /// Records refused at the door.
    pub(super) rejected: u64,
    /// What the parts hold of the budget.
    pub(super) permit: Permit,
}

thread_local! {
    /// The split's buffers, kept between requests of a thread: a cut then allocates for its parts only.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Cuts a client's `message`, whose bytes `permit` holds, by `table`, into parts of at most `max` bytes; a larger record goes
/// by itself.
pub(super) fn cut(
    signal: Signal,
    message: Framed,
    permit: Permit,
    table: &Table,
    max: usize,
    config: &Config,
    metrics: &SignalMetrics,
) -> Result<Cut, Refusal> {
    let (cut, invalid) = cut_by(signal, message, permit, table, config.invalid_trace_id)?;
    let cut = fit(cut, max)?;
    metrics.note_invalid(invalid);
    metrics.records.increment(cut.records);
    metrics.parts.increment(cut.parts.len() as u64);
    match cut.parts.len() {
        0 => metrics.empty.increment(1),
        1 => metrics.whole.increment(1),
        _ => metrics.cut.increment(1),
    }
    Ok(cut)
}

/// Cuts a part once more, from a copy that `permit` holds: the part itself would keep the bytes of all others of its request.
/// Its records were counted when they came.
pub(super) fn again(
    signal: Signal,
    message: &Framed,
    permit: Permit,
    table: &Table,
    max: usize,
) -> Result<Cut, Refusal> {
    cut_by(signal, message.detached(), permit, table, InvalidTraceId::Forward).and_then(|(cut, _)| fit(cut, max))
}

fn cut_by(
    signal: Signal,
    message: Framed,
    mut permit: Permit,
    table: &Table,
    policy: InvalidTraceId,
) -> Result<(Cut, InvalidIds), Refusal> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut router = ByTraceId::new(table, policy);
        let payload = message.payload_chunks();
        let held = permit.bytes();
        let plan = split::plan(signal, &payload, &mut router, scratch, &mut |bytes| permit.grow(bytes));
        let plan = plan.map_err(|error| unplanned(error, &permit))?;
        let (records, rejected) = (plan.records(), plan.unrouted());
        let (parts, kept) = parts_of(signal, &message, &mut permit, held, plan)?;
        permit.shrink_to(kept);
        Ok((Cut { parts, records, rejected, permit }, router.invalid()))
    })
}

/// The parts, and what they hold of the budget once all else is gone. Their bytes are taken before any part is built;
/// `held` is what the message holds.
fn parts_of(
    signal: Signal,
    message: &Framed,
    permit: &mut Permit,
    held: usize,
    plan: Plan<'_>,
) -> Result<(Vec<Part>, usize), Refusal> {
    if plan.records() == plan.unrouted() {
        return Ok((Vec::new(), held));
    }
    if let Some(target) = plan.whole() {
        let records = u32::try_from(plan.records()).unwrap_or(u32::MAX);
        return Ok((vec![part(signal, target, message.clone(), records, 0)], held));
    }
    let Built { parts, shares, len } =
        plan.build(&mut |bytes| permit.grow(bytes)).map_err(|len| no_room(len, permit))?;
    let kept = if shares { held + len } else { len };
    let part_of = |((share, message), index): ((split::Share, Framed), u32)| {
        part(signal, share.target, message, share.records, index)
    };
    Ok((parts.into_iter().zip(0..).map(part_of).collect(), kept))
}

fn part(signal: Signal, target: split::Target, message: Framed, records: u32, index: u32) -> Part {
    let Lane { backend, alone } = Lane::of(target);
    Part { message, records, signal, backend, alone, index }
}

/// Cuts parts that are larger than `max` by size.
fn fit(cut: Cut, max: usize) -> Result<Cut, Refusal> {
    if cut.parts.iter().all(|part| part.message.payload_len() <= max) { Ok(cut) } else { by_size(cut, max) }
}

#[cold]
fn by_size(cut: Cut, max: usize) -> Result<Cut, Refusal> {
    let Cut { parts, records, rejected, mut permit } = cut;
    let mut fitting = Vec::with_capacity(parts.len() + 1);
    let (mut len, mut all_copied) = (0, true);
    for part in parts {
        // It was walked just now: should it be malformed all the same, its backend says so.
        match split::by_size(part.signal, &part.message, max, |len| permit.grow(len)).unwrap_or(BySize::Whole) {
            BySize::Cut { pieces, shares } => {
                all_copied &= !shares;
                fitting.extend(pieces.into_iter().map(|(records, message)| {
                    len += message.framed_len();
                    Part { message, records, ..part }
                }));
            }
            BySize::NoRoom(len) => return Err(no_room(len, &permit)),
            BySize::Whole => {
                all_copied = false;
                fitting.push(part);
            }
        }
    }
    if all_copied {
        // Nothing is left of what they were cut from.
        permit.shrink_to(len);
    }
    for (part, index) in fitting.iter_mut().zip(0..) {
        part.index = index;
    }
    Ok(Cut { parts: fitting, records, rejected, permit })
}

#[cold]
fn no_room(len: usize, permit: &Permit) -> Refusal {
    if permit.bytes().saturating_add(len) > permit.limit() {
        let message = format!(
            "the request needs {len} bytes once cut, more than the whole memory budget: send smaller batches or raise \
             memory_limiter"
        );
        return Refusal::permanent(Code::ResourceExhausted, Reason::TooLarge, message);
    }
    Refusal::retryable(Reason::Budget, retry_delay(), "the memory budget is used up")
}

#[cold]
fn unplanned(error: WireError, permit: &Permit) -> Refusal {
    if let Malformed::NoRoom(len) = error.kind {
        return no_room(len, permit);
    }
    Refusal::permanent(Code::InvalidArgument, Reason::Malformed, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{budget::Budget, dispatch::tests::support, otlp::wire};

    #[test]
    fn parts_of_long_runs_share_the_message_and_both_are_in_the_budget() {
        let addresses = ["127.0.0.1:1", "127.0.0.1:2"].map(|address| address.parse().unwrap());
        let table = support::table(1, &addresses, &[]);
        for (count, size, shares) in [(2_000, 1_000, true), (900, 1_000, false), (20_000, 10, false)] {
            let message = support::many_traces(count, size);
            let budget = Budget::new(1 << 30);
            let permit = budget.take(message.framed_len()).unwrap();
            let (cut, _) = cut_by(Signal::Traces, message.clone(), permit, &table, InvalidTraceId::Forward).unwrap();
            assert_eq!(cut.parts.len(), 2);
            let parts: usize = cut.parts.iter().map(|part| part.message.framed_len()).sum();
            if shares {
                let list = budget.used() - message.framed_len();
                assert!((1..message.framed_len() / 20).contains(&list), "{list} bytes beside the message");
            } else {
                assert_eq!(budget.used(), parts);
            }
            drop(cut);
            assert_eq!(budget.used(), 0);
        }
    }

    #[test]
    fn parts_share_the_message_where_there_is_no_room_for_copies() {
        let addresses = ["127.0.0.1:1", "127.0.0.1:2"].map(|address| address.parse().unwrap());
        let table = support::table(1, &addresses, &[]);
        let message = support::many_traces(700, 1_000);
        let budget = Budget::new(message.framed_len() * 3 / 2);
        let permit = budget.take(message.framed_len()).unwrap();
        let (cut, _) = cut_by(Signal::Traces, message.clone(), permit, &table, InvalidTraceId::Forward).unwrap();
        assert_eq!(cut.parts.len(), 2);
        assert!(budget.used() > message.framed_len(), "the message stays, with a list beside it");
    }

    #[test]
    fn what_it_takes_to_keep_track_of_a_request_is_in_the_budget_while_it_is_cut() {
        let addresses = ["127.0.0.1:1", "127.0.0.1:2"].map(|address| address.parse().unwrap());
        let table = support::table(1, &addresses, &[]);
        // Hundreds of thousands of resources with a scope and a span each.
        let resource = |id: u32| len(1, &len(2, &len(2, &len(1, &[id.to_be_bytes(); 4].concat()))));
        let message = Framed::copy_from_payload(&(0..200_000).flat_map(resource).collect::<Vec<_>>()).unwrap();
        let cut = |limit: usize| {
            let budget = Budget::new(limit);
            let permit = budget.take(message.framed_len()).unwrap();
            let result = cut_by(Signal::Traces, message.clone(), permit, &table, InvalidTraceId::Forward);
            let used = budget.used();
            (result.map(|(cut, _)| cut.parts.len()), used, budget)
        };
        let (refused, used, budget) = cut(3 * message.framed_len());
        assert_eq!((refused.unwrap_err().code, used, budget.used()), (Code::ResourceExhausted, 0, 0));
        let (parts, _, budget) = cut(1 << 30);
        assert_eq!((parts.unwrap(), budget.used()), (2, 0));
    }

    /// A field of bytes.
    fn len(number: u32, body: &[u8]) -> Vec<u8> {
        let mut field = Vec::new();
        wire::put_varint(&mut field, wire::len_tag(number));
        wire::put_varint(&mut field, u32::try_from(body.len()).unwrap());
        [field, body.to_vec()].concat()
    }

    #[test]
    fn pieces_of_a_profiles_part_are_whole_requests_and_counted() {
        let dictionary = len(2, &[7; 300]);
        let profiles: Vec<u8> = (0..10).flat_map(|_| len(2, &[len(1, &[1; 16]), len(9, &[0; 400])].concat())).collect();
        let payload = [dictionary.clone(), len(1, &len(2, &profiles))].concat();
        let message = Framed::copy_from_payload(&payload).unwrap();
        let budget = Budget::new(20_000);
        let permit = budget.take(message.framed_len()).unwrap();
        let whole = part(Signal::Profiles, 0, message, 10, 0);
        let cut = Cut { parts: vec![whole], records: 10, rejected: 0, permit };
        let Cut { parts, permit, .. } = fit(cut, 2_000).unwrap();
        assert_eq!(parts.iter().map(|part| part.records).sum::<u32>(), 10);
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
                parts: vec![part(Signal::Traces, 0, message.clone(), 100, 0)],
                records: 100,
                rejected: 0,
                permit,
            };
            assert_eq!(fit(cut, 500).unwrap_err().reason, reason);
            assert_eq!(budget.used(), limit - size - 100, "what was refused must hold nothing");
        }
    }
}
