//! Tests of cutting a message by size.

use std::num::NonZeroUsize;

use proptest::prelude::*;

use super::{messy::Messy, *};

fn pieces(payload: &[u8], max: usize) -> Vec<(u32, Vec<u8>)> {
    let message = Framed::copy_from_payload(payload).unwrap();
    let pieces = match by_size(Signal::Traces, &message, max, |_| true).unwrap() {
        BySize::Cut { pieces, .. } => pieces,
        BySize::NoRoom(len) => panic!("there is room for {len}"),
        BySize::Whole => vec![(u32::try_from(records_of(payload).len()).unwrap(), message)],
    };
    pieces.into_iter().map(|(records, piece)| (records, piece.payload().to_vec())).collect()
}

/// Returns a span of `size` bytes as a field of its scope. Its ID is a number.
fn span_of(number: u32, size: usize) -> Vec<u8> {
    let id = len(1, number.to_be_bytes());
    let room = (0..5).map(|head| size - id.len() - 2 - head).find_map(|body| {
        let span = len(2, [&id[..], &len(5, vec![b'n'; body])].concat());
        (span.len() <= size).then_some(span)
    });
    room.unwrap()
}

/// Returns resources with `scopes` scopes of `spans` spans each, with envelope fields after their records.
fn large(resources: u32, scopes: u32, spans: u32, size: usize) -> Vec<u8> {
    let mut numbers = 0..;
    let mut scope = || {
        let spans: Vec<_> = numbers.by_ref().take(spans as usize).flat_map(|number| span_of(number, size)).collect();
        len(2, all([len(1, b"scope"), spans, len(3, b"url of the scope")]))
    };
    let mut resource = || {
        let scopes: Vec<_> = (0..scopes).flat_map(|_| scope()).collect();
        len(1, all([len(1, vec![b'r'; 1000]), scopes, len(3, b"url of the resource")]))
    };
    (0..resources).flat_map(|_| resource()).collect()
}

#[test]
fn twelve_mebibytes_become_pieces_of_at_most_four() {
    const MIB: usize = 1 << 20;
    for (resources, scopes, spans) in [(1, 1, 30_000), (30, 10, 100), (3_000, 2, 5)] {
        let payload = large(resources, scopes, spans, 420);
        assert!(payload.len() > 12 * MIB);
        let pieces = pieces(&payload, 4 * MIB);
        assert!(pieces.iter().all(|(_, piece)| piece.len() <= 4 * MIB));
        assert_eq!(pieces.iter().map(|(records, _)| records).sum::<u32>(), resources * scopes * spans);
        assert_eq!(pieces.len(), payload.len().div_ceil(4 * MIB), "there must be no more pieces than needed");
        let (_, full) = pieces.split_last().unwrap();
        assert!(full.iter().all(|(_, piece)| piece.len() > 4 * MIB - 2_000), "filled");
        assert_eq!(pieces.iter().flat_map(|(_, piece)| ids(piece)).collect::<Vec<_>>(), ids(&payload), "in order");
    }
}

#[test]
fn a_message_that_fits_is_returned_as_it_is() {
    let payload = all([len(1, b""), request([span([1]), span([2])])]);
    assert_eq!(pieces(&payload, payload.len()), [(2, payload.clone())]);
    assert_eq!(pieces(&[], 10), [(0, vec![])]);
    assert_eq!(pieces(&len(9, [1; 20]), 10), [(0, len(9, [1; 20]))]);
}

#[test]
fn two_records_are_cut_and_one_is_not() {
    let message = |payload: Vec<u8>| Framed::copy_from_payload(&payload).unwrap();
    let cut = |message: &Framed| by_size(Signal::Traces, message, 8, |_| true).unwrap();
    assert_eq!(cut(&message(request([span([1])]))), BySize::Whole);
    let pieces = [1, 2].map(|id| (1, message(request([span([id])])))).to_vec();
    assert_eq!(cut(&message(request([span([1]), span([2])]))), BySize::Cut { pieces, shares: false });
}

#[test]
fn a_record_above_the_limit_gets_its_own_piece() {
    let [small, huge] = [span([1]), len(2, all([len(1, [2]), len(5, [b'n'; 100])]))];
    let payload = request([small.clone(), huge.clone(), small.clone(), small.clone()]);
    assert_eq!(
        pieces(&payload, 20),
        [(1, request([small.clone()])), (1, request([huge])), (2, request([small.clone(), small]))]
    );
}

#[test]
fn envelopes_count_in_the_size_and_pieces_are_filled_to_the_last_byte() {
    let payload = len(1, all([len(2, all([span([1]), span([2]), span([3]), len(3, b"scope")])), len(3, b"resource")]));
    let piece = |spans: Vec<u8>| len(1, all([len(3, b"resource"), len(2, all([len(3, b"scope"), spans]))]));
    let two = piece(all([span([1]), span([2])]));
    assert_eq!(pieces(&payload, two.len()), [(2, two.clone()), (1, piece(span([3])))]);
    assert_eq!(pieces(&payload, two.len() - 1), [1, 2, 3].map(|id| (1, piece(span([id])))));
}

#[test]
fn envelopes_as_large_as_the_limit_do_not_multiply_the_message() {
    let spans: Vec<_> = (0..1000).flat_map(|number| span_of(number, 100)).collect();
    let payload = len(1, all([len(1, vec![0; 200_000]), len(2, spans)]));
    assert_eq!(pieces(&payload, 150_000), [(1000, payload.clone())], "the pieces would be a thousand times 200 kB");
    assert_eq!(pieces(&payload, 200_200), [(1000, payload.clone())]);
    let cut = pieces(&payload, 240_000);
    assert_eq!(cut.iter().map(|(records, _)| *records).collect::<Vec<_>>(), [399, 399, 202]);
}

#[test]
fn without_room_for_all_pieces_none_is_built() {
    let message = Framed::copy_from_payload(&large(1, 1, 100, 400)).unwrap();
    let mut asks = Vec::new();
    let refused = by_size(Signal::Traces, &message, 10_000, |len| {
        asks.push(len);
        false
    });
    let [asked] = asks[..] else { panic!("it is asked for once: {asks:?}") };
    assert_eq!(refused.unwrap(), BySize::NoRoom(asked));
    let BySize::Cut { pieces, shares } = by_size(Signal::Traces, &message, 10_000, |len| len == asked).unwrap() else {
        panic!("must be cut")
    };
    let len: usize = pieces.iter().map(|(_, piece)| piece.framed_len()).sum();
    assert!(if shares { asked < len } else { asked == len }, "{asked} for {len}");
}

#[test]
fn a_malformed_message_is_an_error() {
    let message = Framed::copy_from_payload(&[0x0a, 99]).unwrap();
    assert_eq!(by_size(Signal::Traces, &message, 1, |_| true).unwrap_err().kind, Malformed::Length(99));
}

proptest! {
    #[test]
    fn pieces_have_every_record_once_and_in_order(seed: u64, max in 1..2_000_usize) {
        let mut random = fastrand::Rng::with_seed(seed);
        let payload = Messy::new(|bound| random.usize(..bound)).request();
        let pieces = pieces(&payload, max);
        let records: Vec<_> = pieces.iter().map(|(_, piece)| records_of(piece)).collect();
        for ((count, piece), records) in pieces.iter().zip(&records) {
            prop_assert_eq!(*count as usize, records.len());
            prop_assert!(piece.len() <= max || *count <= 1 || pieces.len() == 1);
        }
        prop_assert_eq!(records.concat(), records_of(&payload));
        prop_assert!(pieces.iter().map(|(_, piece)| piece.len()).sum::<usize>() <= 4 * payload.len());
    }
}

fn records_of(payload: &[u8]) -> Vec<Vec<u8>> {
    let mut seen = Vec::new();
    cut(Signal::Traces.into(), payload, |record: &Record<'_>| {
        seen.push(record.bytes.to_vec());
        Targets::One(0)
    })
    .unwrap();
    seen
}

#[test]
fn without_room_for_entries_a_message_is_not_sent_whole() {
    let resource = len(1, len(2, all([len(2, len(1, [1])), len(4, b"x")])));
    let message = Framed::copy_from_payload(&resource.repeat(30_000)).unwrap();
    let refused = by_size(Signal::Traces, &message, 100_000, |_| false).unwrap();
    assert!(matches!(refused, BySize::NoRoom(_)), "{refused:?}");
}

#[test]
fn copied_parts_in_several_buffers_equal_parts_that_share_the_request() {
    let mut random = fastrand::Rng::with_seed(11);
    let mut borders = 0;
    for round in 0..24 {
        // Scopes of few small spans, so that borders between buffers lie in every kind of field, and a span longer than
        // a buffer.
        let (scopes, spans) = if round % 2 == 0 { (20_000, 3) } else { (500, 40) };
        let scope = |random: &mut fastrand::Rng| {
            let span = |random: &mut fastrand::Rng| {
                let size = if random.u16(..) == 0 { 300_000 } else { random.usize(..20 * spans) };
                len(2, all([len(1, [random.u8(..5)]), len(5, vec![7; size])]))
            };
            len(2, all([len(1, [8]), (0..random.usize(..spans)).flat_map(|_| span(random)).collect()]))
        };
        let mut payload: Vec<u8> = (0..scopes).flat_map(|_| len(1, scope(&mut random))).collect();
        if round % 4 == 0 {
            payload.extend(request([len(2, all([len(1, [1]), len(5, vec![7; 300_000])]))]));
        }
        let chunks: Vec<Bytes> = payload.chunks(100_000).map(Bytes::copy_from_slice).collect();
        let [mut first, mut second] = [Scratch::default(), Scratch::default()];
        let plan = |scratch| plan(Signal::Traces, &chunks, &mut by_first_byte, scratch, &mut |_| true).unwrap();
        let copied = plan(&mut first).build(&mut |_| true).unwrap().parts;
        borders += copied.iter().filter(|(_, part)| part.payload_chunks().len() > 1).count();
        assert!(copied == plan(&mut second).build_in_least_room(&mut |_| true).unwrap().parts);
        for targets in [1, 5, 200] {
            let targets = NonZeroUsize::new(targets).unwrap();
            let mut scratch = Scratch::default();
            let plan =
                plan_early(Signal::Traces, &chunks, targets, &mut by_first_byte, &mut scratch, &mut |_| true).unwrap();
            assert!(copied == plan.build(&mut |_| true).unwrap().parts);
        }
    }
    assert!(borders > 50, "{borders} borders are too few for this test");
}

#[test]
fn pieces_may_be_four_times_as_long_as_the_message_and_no_longer() {
    let message = |envelope: usize, records: u8| {
        let spans: Vec<u8> = (0..records).flat_map(|id| span([id])).collect();
        len(1, all([len(1, vec![0; envelope]), len(2, spans)]))
    };
    // Each piece has one record: a prefix, the envelope and the record's own messages.
    let total = |envelope: usize, records: u8| {
        usize::from(records) * (5 + len(1, all([len(1, vec![0; envelope]), len(2, span([1]))])).len())
    };
    let mut seen = 0;
    for envelope in 20..400 {
        for records in 4..20 {
            let payload = message(envelope, records);
            let max = total(envelope, 1) - 5;
            let growth = total(envelope, records) as f64 / payload.len() as f64;
            let count = pieces(&payload, max).len();
            assert_eq!(
                count,
                if growth > 4.0 { 1 } else { usize::from(records) },
                "{envelope} bytes, {records} records"
            );
            seen += u32::from((growth - 4.0).abs() < 1e-9);
        }
    }
    assert!(seen > 0, "no case is exactly four times as long");
}
