//! Fuzz targets for `plan`, `plan_early` and `by_size`.

use std::{num::NonZeroUsize, time::Duration};

use bolero::check;
use bytes::Bytes;
use spanring::{
    otlp::{Framed, Signal, wire::WireError},
    split::{BySize, NotBuilt, Record, Scratch, Share, Targets, by_size, plan, plan_early},
};

use crate::messy::Messy;

/// Duration of each target under `cargo test`.
const SHORT: Duration = Duration::from_secs(4);

/// Chooses any number of targets from the bytes of the record.
fn anywhere(record: &Record<'_>) -> Targets {
    let mut targets = Targets::None;
    let seed = record.bytes.iter().fold(0_u32, |sum, byte| sum.wrapping_mul(31) ^ u32::from(*byte));
    for shift in 0..seed % 5 {
        let _full = targets.add(seed >> (8 * shift) & 7);
    }
    targets
}

fn everything_adds_up(payload: &[u8], max: usize) {
    for signal in Signal::ALL {
        let mut scratch = Scratch::default();
        let (mut routed, mut shown) = (0, 0);
        let mut router = |record: &Record<'_>| {
            let targets = anywhere(record);
            shown += 1;
            routed += match &targets {
                Targets::None => 0,
                Targets::One(_) => 1,
                Targets::Many(several) => several.as_slice().len(),
            };
            targets
        };
        let bytes = Bytes::copy_from_slice(payload);
        let plan = match plan(signal, &[bytes], &mut router, &mut scratch, &mut |_| true) {
            Ok(plan) => plan,
            Err(error) => {
                assert_eq!(cut_torn(signal, payload, max), Err(error));
                continue;
            }
        };
        let (records, total, shares) = (plan.records(), plan.total_len(), plan.shares().collect::<Vec<_>>());
        let parts = plan.build(&mut |_| true).expect("room").parts;
        assert!(
            cut_in_little_room(signal, payload, total).is_none_or(|shared| shared == parts),
            "parts that share the request have the same bytes"
        );
        assert!(cut_early(signal, payload, max) == parts, "copied early, they are the same");
        assert_eq!(records, shown);
        assert_eq!(parts.iter().map(|(share, _)| share.records as usize).sum::<usize>(), routed);
        assert_eq!(parts.iter().map(|(_, part)| part.framed_len()).sum::<usize>(), total);
        assert!(parts.iter().map(|(share, _)| share).eq(&shares));
        assert!(cut_torn(signal, payload, max).as_ref() == Ok(&parts), "torn, it falls into the same parts");
        for (share, part) in &parts {
            assert_eq!(count(signal, &part.payload_chunks()), u64::from(share.records));
        }
        pieces_add_up(signal, payload, max, records);
    }
}

/// Returns the parts of a request that arrives in chunks of increasing lengths.
fn cut_torn(signal: Signal, payload: &[u8], longest: usize) -> Result<Vec<(Share, Framed)>, WireError> {
    let (mut chunks, mut rest) = (Vec::new(), payload);
    for len in (0..=longest.max(1)).cycle() {
        let (chunk, behind) = rest.split_at(len.min(rest.len()));
        chunks.push(Bytes::copy_from_slice(chunk));
        rest = behind;
        if rest.is_empty() {
            break;
        }
    }
    let mut scratch = Scratch::default();
    plan(signal, &chunks, &mut anywhere, &mut scratch, &mut |_| true)
        .map(|plan| plan.build(&mut |_| true).expect("room").parts)
}

/// Returns the parts of a request for which there is less room than copies take, if that is enough.
fn cut_in_little_room(signal: Signal, payload: &[u8], total: usize) -> Option<Vec<(Share, Framed)>> {
    let bytes = Bytes::copy_from_slice(payload);
    let mut scratch = Scratch::default();
    let plan = plan(signal, &[bytes], &mut anywhere, &mut scratch, &mut |_| true).expect("it was cut");
    match plan.build(&mut |bytes| bytes < total) {
        Ok(built) => Some(built.parts),
        Err(NotBuilt::NoRoom(_)) => None,
        Err(NotBuilt::Inconsistent) => panic!("the plan is sound"),
    }
}

/// Returns the parts of a request whose records are copied early.
fn cut_early(signal: Signal, payload: &[u8], targets: usize) -> Vec<(Share, Framed)> {
    let (bytes, targets) = (Bytes::copy_from_slice(payload), NonZeroUsize::new(targets.max(1)).expect("at least one"));
    let mut scratch = Scratch::default();
    let plan = plan_early(signal, &[bytes], targets, &mut anywhere, &mut scratch, &mut |_| true).expect("it was cut");
    plan.build(&mut |_| true).expect("room").parts
}

fn pieces_add_up(signal: Signal, payload: &[u8], max: usize, records: u64) {
    let message = Framed::copy_from_payload(payload).expect("short");
    let pieces = by_size(signal, &message, max, |_| true).expect("it was cut just now");
    let BySize::Cut { pieces, .. } = pieces else { return assert_eq!(pieces, BySize::Whole) };
    assert_eq!(pieces.iter().map(|(records, _)| u64::from(*records)).sum::<u64>(), records);
    for (records, piece) in &pieces {
        assert_eq!(count(signal, &piece.payload_chunks()), u64::from(*records));
        assert!(piece.payload_len() <= max || *records <= 1);
    }
}

/// Returns the number of records in a message built by `split`.
fn count(signal: Signal, payload: &[Bytes]) -> u64 {
    let mut scratch = Scratch::default();
    plan(signal, payload, &mut |_: &Record<'_>| Targets::One(0), &mut scratch, &mut |_| true)
        .expect("built by the cut")
        .records()
}

#[test]
fn any_bytes_are_split_or_refused() {
    check!()
        .with_max_len(512)
        .with_test_time(SHORT)
        .for_each(|input: &[u8]| everything_adds_up(input, input.len() / 2));
}

/// The input controls a generator, so that requests are valid or nearly valid.
#[test]
fn requests_with_a_few_wrong_bytes_are_split_or_refused() {
    check!().with_max_len(4096).with_test_time(SHORT).for_each(|input: &[u8]| {
        let (changes, instructions) = input.split_at(input.len().min(8));
        let mut instructions = instructions.iter();
        let mut payload =
            Messy::new(|bound| instructions.next().map_or(0, |byte| usize::from(*byte) % bound)).request();
        for change in changes.chunks_exact(4) {
            let [high, low, byte, rarely] = change else { continue };
            let at = usize::from(u16::from_be_bytes([*high, *low])) % payload.len().max(1);
            if let Some(place) = payload.get_mut(at).filter(|_| rarely % 2 == 0) {
                *place = *byte;
            }
        }
        everything_adds_up(&payload, payload.len() / 3);
    });
}
