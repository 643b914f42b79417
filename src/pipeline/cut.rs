//! From a message to the parts of one table's owners, within the memory budget.

use std::cell::RefCell;

use tonic::Code;

use super::{Config, metrics::SignalMetrics, retry_delay};
use crate::{
    budget::Permit,
    dispatch::Part,
    otlp::{Framed, Reason, Refusal, Signal, wire::WireError},
    ring::Table,
    route::{ByTraceId, InvalidIds, InvalidTraceId, Lane},
    split::{self, Plan, Scratch},
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

/// Cuts a client's `message`, whose bytes `permit` holds, by `table`.
pub(super) fn cut(
    signal: Signal,
    message: Framed,
    permit: Permit,
    table: &Table,
    config: &Config,
    metrics: &SignalMetrics,
) -> Result<Cut, Refusal> {
    let (cut, invalid) = cut_by(signal, message, permit, table, config.invalid_trace_id)?;
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

/// Cuts a part once more; its records were counted when they came.
pub(super) fn again(signal: Signal, message: Framed, permit: Permit, table: &Table) -> Result<Cut, Refusal> {
    cut_by(signal, message, permit, table, InvalidTraceId::Forward).map(|(cut, _)| cut)
}

fn cut_by(
    signal: Signal,
    message: Framed,
    permit: Permit,
    table: &Table,
    policy: InvalidTraceId,
) -> Result<(Cut, InvalidIds), Refusal> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut router = ByTraceId::new(table, policy);
        let payload = message.payload_bytes();
        let plan = split::plan(signal, &payload, &mut router, scratch).map_err(malformed)?;
        let (records, rejected) = (plan.records(), plan.unrouted());
        let (parts, permit) = parts_of(signal, &message, permit, plan)?;
        Ok((Cut { parts, records, rejected, permit }, router.invalid()))
    })
}

fn parts_of(signal: Signal, message: &Framed, permit: Permit, plan: Plan<'_>) -> Result<(Vec<Part>, Permit), Refusal> {
    if plan.records() == plan.unrouted() {
        return Ok((Vec::new(), permit));
    }
    if let Some(target) = plan.whole() {
        let records = u32::try_from(plan.records()).unwrap_or(u32::MAX);
        return Ok((vec![part(signal, target, message.clone(), records, 0)], permit));
    }
    let permit = room_for(&plan, permit)?;
    let part_of = |((share, message), index): ((split::Share, Framed), u32)| {
        part(signal, share.target, message, share.records, index)
    };
    Ok((plan.build().into_iter().zip(0..).map(part_of).collect(), permit))
}

fn part(signal: Signal, target: split::Target, message: Framed, records: u32, index: u32) -> Part {
    let Lane { backend, alone } = Lane::of(target);
    Part { message, records, signal, backend, alone, index }
}

/// Takes the parts' bytes from the budget before any part is built. Unless the parts share the message's, the caller drops
/// it soon after.
fn room_for(plan: &Plan<'_>, mut permit: Permit) -> Result<Permit, Refusal> {
    let len = plan.room();
    let held = permit.bytes();
    if permit.grow(len) {
        if !plan.keeps_request() {
            permit.shrink_to(len);
        }
        return Ok(permit);
    }
    if held.saturating_add(len) > permit.limit() {
        let message = format!(
            "the request needs {len} bytes once cut, more than the whole memory budget: send smaller batches or raise \
             memory_limiter"
        );
        return Err(Refusal::permanent(Code::ResourceExhausted, Reason::TooLarge, message));
    }
    Err(Refusal::retryable(Reason::Budget, retry_delay(), "the memory budget is used up"))
}

#[cold]
fn malformed(error: WireError) -> Refusal {
    Refusal::permanent(Code::InvalidArgument, Reason::Malformed, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{budget::Budget, dispatch::tests::support};

    #[test]
    fn parts_of_long_runs_share_the_message_and_both_are_in_the_budget() {
        let addresses = ["127.0.0.1:1", "127.0.0.1:2"].map(|address| address.parse().unwrap());
        let table = support::table(1, &addresses, &[]);
        for (size, shares) in [(1_000, true), (10, false)] {
            let message = support::many_traces(1_000, size);
            let budget = Budget::new(1 << 30);
            let permit = budget.take(message.framed_len()).unwrap();
            let cut = again(Signal::Traces, message.clone(), permit, &table).unwrap();
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
}
