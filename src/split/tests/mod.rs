//! Tests of the split. This file has handwritten cases of what it keeps, changes and refuses. Other files compare it
//! with prost, cut by size, damage plans and limit the memory.

mod against_prost;
mod broken;
mod messy;
mod room;
mod sizes;

use super::*;
use crate::otlp::wire::{MAX_GROUP_DEPTH, put_varint};

/// A varint field.
fn varint(number: u32, value: u32) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, number << 3);
    put_varint(&mut out, value);
    out
}

/// A length-delimited field.
fn len(number: u32, body: impl AsRef<[u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, number << 3 | 2);
    put_varint(&mut out, u32::try_from(body.as_ref().len()).unwrap());
    out.extend_from_slice(body.as_ref());
    out
}

/// A message of several fields.
fn all<const N: usize>(fields: [Vec<u8>; N]) -> Vec<u8> {
    fields.concat()
}

/// A span with only an ID, as a field of its scope.
fn span(id: impl AsRef<[u8]>) -> Vec<u8> {
    len(2, len(1, id))
}

/// A request with these spans in one resource and one scope.
fn request<const N: usize>(spans: [Vec<u8>; N]) -> Vec<u8> {
    len(1, len(2, all(spans)))
}

/// A router whose target is the first byte of the ID, or 0 if there is none.
fn by_first_byte(record: &Record<'_>) -> Targets {
    Targets::One(record.id.first().map_or(0, |byte| u32::from(*byte)))
}

/// Splits a request and returns the parts by target. Checks invariants on the way, for example that parts and errors
/// are the same however the request is cut into buffers.
fn cut(shape: Shape, payload: &[u8], mut router: impl Router) -> Result<Vec<(Target, Vec<u8>)>, WireError> {
    let mut answers = Vec::new();
    let whole = cut_torn(shape, payload, usize::MAX, &mut |record: &Record<'_>| {
        answers.push((router.route(record), record.bytes.to_vec()));
        answers.last().unwrap().0
    });
    for piece in [1, 2, 3, 7, 64, 100, payload.len() / 2 + 1].into_iter().filter(|piece| payload.len() / piece < 2_000)
    {
        let mut answers = answers.iter();
        let torn = cut_torn(shape, payload, piece, &mut |record: &Record<'_>| {
            let (targets, bytes) = answers.next().expect("no more records than in one buffer");
            assert_eq!(record.bytes, bytes);
            *targets
        });
        assert!(torn == whole, "in buffers of {piece} bytes");
        assert!(answers.next().is_none());
    }
    whole
}

/// Returns the parts of a request that lies in buffers of `piece` bytes. Builds them in every possible way and compares
/// the results.
fn cut_torn(
    shape: Shape,
    payload: &[u8],
    piece: usize,
    router: &mut impl Router,
) -> Result<Vec<(Target, Vec<u8>)>, WireError> {
    let mut scratch = Scratch::default();
    let chunks: Vec<Bytes> = payload.chunks(piece).map(Bytes::copy_from_slice).collect();
    let mut answers = Vec::new();
    let mut noted = |record: &Record<'_>| {
        answers.push(router.route(record));
        *answers.last().unwrap()
    };
    let plan = match plan_shape(shape, &chunks, 0, &mut noted, &mut scratch, &mut |_| true) {
        Ok(plan) => plan,
        Err(error) => {
            for targets in [0, 2] {
                assert_eq!(plan_again(shape, &chunks, targets, &answers, &mut Scratch::default()).err(), Some(error));
            }
            return Err(error);
        }
    };
    let (shares, total): (Vec<_>, _) = (plan.shares().collect(), plan.total_len());
    let built = plan.build(&mut |_| true).unwrap();
    assert_eq!((built.shares, built.len), (false, total));
    let parts = built.parts;
    for (targets, from) in [(0, 1), (0, 30), (2, 5)] {
        let parts_too = built_sharing(shape, &chunks, targets, &answers, from);
        assert_eq!(parts, parts_too, "{targets} targets expected, shared from {from} bytes");
    }
    assert_eq!(parts, built_early(shape, &chunks, &answers), "early copies must lead to the same parts");
    assert_eq!(parts.iter().map(|(share, _)| *share).collect::<Vec<_>>(), shares);
    assert_eq!(parts.iter().map(|(_, part)| part.framed_len()).sum::<usize>(), total);
    assert!(parts.iter().all(|(share, part)| share.len == part.payload_len() && share.records > 0));
    assert!(parts.iter().all(|(share, _)| share.len <= payload.len()));
    Ok(parts.into_iter().map(|(share, part)| (share.target, part.payload().to_vec())).collect())
}

/// Makes the same plan again, from the recorded answers of the router. If `targets` is not 0, records are copied early.
fn plan_again<'a>(
    shape: Shape,
    chunks: &[Bytes],
    targets: usize,
    answers: &[Targets],
    scratch: &'a mut Scratch,
) -> Result<Plan<'a>, WireError> {
    let mut answers = answers.iter();
    let mut router = |_: &Record<'_>| *answers.next().expect("no more records than before");
    plan_shape(shape, chunks, targets, &mut router, scratch, &mut |_| true)
}

/// Returns the parts if ranges from this length on are shared.
fn built_sharing(
    shape: Shape,
    chunks: &[Bytes],
    targets: usize,
    answers: &[Targets],
    from: u32,
) -> Vec<(Share, Framed)> {
    let mut scratch = Scratch::default();
    let plan = plan_again(shape, chunks, targets, answers, &mut scratch).unwrap();
    let shared = SharingLimits { records_from: from, envelopes_from: if targets > 0 { u32::MAX } else { from } };
    let layout = plan.layout(shared);
    let SharedTotals { len, ranges, .. } = plan.scratch.shared(shared);
    assert_eq!(layout.copied + len, plan.total_len());
    assert_eq!(layout.shares, targets == 0 && ranges > 0);
    let parts = plan.write(shared, layout).unwrap().parts;
    let chunks: usize = parts.iter().map(|(_, part)| part.buffers().len()).sum();
    assert!(chunks <= layout.chunks, "{chunks} buffers, {} were asked for", layout.chunks);
    parts
}

/// Returns the parts if records are copied early.
fn built_early(shape: Shape, chunks: &[Bytes], answers: &[Targets]) -> Vec<(Share, Framed)> {
    let mut scratch = Scratch::default();
    let mut answers = answers.iter();
    let mut router = |_: &Record<'_>| *answers.next().expect("no more records than without");
    let mut room = 0;
    let plan = plan_shape(shape, chunks, 2, &mut router, &mut scratch, &mut |bytes| {
        room += bytes;
        true
    });
    let built = plan.unwrap().build(&mut |bytes| {
        room += bytes;
        true
    });
    let Built { parts, shares, len } = built.unwrap();
    assert!(!shares && len <= room, "it holds {len} bytes and asked for {room}");
    assert!(parts.iter().map(|(_, part)| part.framed_len()).sum::<usize>() <= len);
    parts
}

fn cut_traces(payload: &[u8]) -> Result<Vec<(Target, Vec<u8>)>, WireError> {
    cut(Signal::Traces.into(), payload, by_first_byte)
}

/// Returns the IDs that a router gets.
fn ids(payload: &[u8]) -> Vec<Vec<u8>> {
    let mut seen = Vec::new();
    cut(Signal::Traces.into(), payload, |record: &Record<'_>| {
        seen.push(record.id.to_vec());
        Targets::One(0)
    })
    .unwrap();
    seen
}

#[test]
fn envelopes_are_copied_verbatim_to_each_part_that_needs_them() {
    let resource = len(1, b"\xff not looked into");
    let scope = len(1, [0x08]);
    let head = all([resource, len(99, b"unknown")]);
    let payload = all([
        len(7, b"of the request"),
        len(1, all([head.clone(), len(2, all([scope.clone(), span([1]), span([2]), span([1])])), len(3, b"url")])),
    ]);
    let part = |spans: Vec<u8>| {
        let scope = len(2, all([scope.clone(), spans]));
        all([len(7, b"of the request"), len(1, all([head.clone(), len(3, b"url"), scope]))])
    };
    assert_eq!(cut_traces(&payload).unwrap(), [(1, part(all([span([1]), span([1])]))), (2, part(span([2])))]);
}

#[test]
fn envelope_fields_after_and_between_records_keep_their_order() {
    let payload = len(1, all([len(2, all([span([1]), len(1, b"a"), span([2]), len(3, b"b")])), len(1, b"late")]));
    let part = |id| len(1, all([len(1, b"late"), len(2, all([len(1, b"a"), len(3, b"b"), span([id])]))]));
    assert_eq!(cut_traces(&payload).unwrap(), [(1, part(1)), (2, part(2))]);
}

#[test]
fn messages_without_records_are_dropped_and_the_others_keep_their_order() {
    let scope = |id| len(2, all([len(1, [id]), span([id])]));
    let resource = |id: u8| len(1, all([len(1, [id]), len(2, b""), len(2, len(1, b"no span")), scope(id)]));
    let kept = |id: u8| len(1, all([len(1, [id]), scope(id)]));
    let payload = all([len(1, b""), resource(1), len(1, len(2, b"")), resource(2), resource(1), len(1, b"")]);
    assert_eq!(cut_traces(&payload).unwrap(), [(1, all([kept(1), kept(1)])), (2, kept(2))]);
}

#[test]
fn the_last_id_and_start_of_a_record_count() {
    let fixed = |value: u64| [&[7 << 3 | 1][..], &value.to_le_bytes()].concat();
    let twice = len(2, all([len(1, [1]), fixed(5), len(5, b"name"), len(1, [2; 16]), fixed(6)]));
    let mut starts = Vec::new();
    let parts = cut(Signal::Traces.into(), &request([twice.clone(), span([2; 16])]), |record: &Record<'_>| {
        starts.push(record.start);
        by_first_byte(record)
    });
    assert_eq!(parts.unwrap(), [(2, request([twice, span([2; 16])]))]);
    assert_eq!(starts, [6, 0]);
}

#[test]
fn routers_get_ids_of_any_length_unchanged() {
    let payload = request([len(2, b""), span(b""), span([1; 8]), span([0; 16]), span([1; 32]), span([1; 300])]);
    assert_eq!(ids(&payload), [&[][..], &[], &[1; 8], &[0; 16], &[1; 32], &[1; 300]]);
}

#[test]
fn a_log_records_id_and_time_are_found_in_their_own_fields() {
    let log = len(2, all([[&[0x09][..], &3_u64.to_le_bytes()].concat(), len(5, b"body"), len(9, [8; 16])]));
    let mut seen = Vec::new();
    let payload = request([log]);
    cut(Signal::Logs.into(), &payload, |record: &Record<'_>| {
        seen.push((record.id.to_vec(), record.start));
        Targets::One(1)
    })
    .unwrap();
    assert_eq!(seen, [(vec![8; 16], 3)]);
}

#[test]
fn padded_varints_are_read_and_lengths_above_records_are_written_in_shortest_form() {
    let span = |len: u8| [&[0x92, 0x80, 0x00, 0x80 | len, 0x80, 0x00][..], &[0x0a, 0x82, 0x00, 7, 9]].concat();
    let request = |len: u8| {
        let scope = [&[0x92, 0x00, 0x8b, 0x80, 0x00][..], &span(len)].concat();
        [&[0x8a, 0x80, 0x80, 0x00, 0x90, 0x00][..], &scope].concat()
    };
    assert_eq!(cut_traces(&request(5)).unwrap(), [(7, len(1, len(2, span(5))))]);
    assert_eq!(cut_traces(&request(6)).unwrap_err().kind, Malformed::Length(6));
}

#[test]
fn groups_pass_through_at_every_level() {
    let group = || [&[0x63, 0x6b][..], &len(1, b"inside"), &varint(2, 9), &[0x6c, 0x64]].concat();
    let with_group = |id: u8| len(2, all([group(), len(1, [id]), group()]));
    let level = |rest: Vec<u8>| all([group(), rest]);
    let payload = level(len(1, level(len(2, level(all([with_group(1), with_group(2)]))))));
    let part = |id| level(len(1, level(len(2, level(with_group(id))))));
    assert_eq!(cut_traces(&payload).unwrap(), [(1, part(1)), (2, part(2))]);
    let deep = len(2, [len(1, [1]), vec![0x63; MAX_GROUP_DEPTH + 1], vec![0x64; MAX_GROUP_DEPTH + 1]].concat());
    assert_eq!(cut_traces(&request([deep])).unwrap_err().kind, Malformed::GroupDepth);
}

#[test]
fn values_may_nest_to_any_depth() {
    let deep = (0..200).fold(len(1, b"\xff\xfe"), |value, _| len(5, len(1, value)));
    let spans = [1, 2].map(|id| len(2, all([len(1, [id]), len(9, &deep)])));
    let [first, second] = spans.clone();
    assert_eq!(cut_traces(&request(spans)).unwrap(), [(1, request([first])), (2, request([second]))]);
}

#[test]
fn the_error_for_a_malformed_field_has_its_offset() {
    let wrong = |kind, offset, payload: Vec<u8>| assert_eq!(cut_traces(&payload), Err(WireError { offset, kind }));
    let unexpected = |number, found, expected| Malformed::Unexpected { number, found, expected };
    wrong(Malformed::Length(99), 0, vec![0x0a, 99]);
    wrong(unexpected(1, 0, 2), 2, all([varint(5, 1), varint(1, 1)]));
    wrong(unexpected(2, 0, 2), 2, len(1, varint(2, 1)));
    wrong(unexpected(2, 3, 2), 4, len(1, len(2, [0x13, 0x14])));
    wrong(unexpected(1, 0, 2), 11, request([span([1]), len(2, varint(1, 1))]));
    wrong(unexpected(7, 0, 1), 9, request([len(2, all([len(1, [1]), varint(7, 1)]))]));
    wrong(Malformed::Truncated, 0, vec![0x48]);
    wrong(Malformed::Truncated, 2, len(1, [0x48]));
    wrong(Malformed::Truncated, 9, request([span([1]), vec![0x48]]));
    wrong(Malformed::Truncated, 9, request([len(2, all([len(1, [1]), vec![0x48]]))]));
    wrong(Malformed::FieldZero, 2, len(1, [0x00, 0x00]));
    wrong(Malformed::GroupEnd(1), 6, request([len(2, [0x0c])]));
    let text = cut_traces(&[0x0a, 99]).unwrap_err().to_string();
    assert_eq!(text, "malformed protobuf at byte 0: length 99 runs past the end of its message");
}

#[test]
fn every_truncation_of_a_request_is_an_error_or_a_shorter_request() {
    let payload = all([request([span([1; 16]), span([2; 16])]), request([span([1; 16])])]);
    for end in 0..payload.len() {
        let whole_messages = end == 0 || end == request([span([1; 16]), span([2; 16])]).len();
        assert_eq!(cut_traces(&payload[..end]).is_ok(), whole_messages, "{end}");
    }
}

#[test]
fn a_request_with_one_target_is_not_rebuilt() {
    let whole = |payload: &[u8], mut router: &mut dyn FnMut(&Record<'_>) -> Targets| {
        let mut scratch = Scratch::default();
        let payload = Bytes::copy_from_slice(payload);
        let plan =
            plan(Signal::Traces, std::slice::from_ref(&payload), &mut router, &mut scratch, &mut |_| true).unwrap();
        (plan.whole(), plan.records(), plan.unrouted())
    };
    let payload = request([span([3]), span([3])]);
    let all = Some(Share { target: 3, records: 2, len: payload.len() });
    assert_eq!(whole(&payload, &mut by_first_byte), (all, 2, 0));
    assert_eq!(whole(&request([span([3]), span([4])]), &mut by_first_byte), (None, 2, 0));
    assert_eq!(whole(&[], &mut by_first_byte), (None, 0, 0));
    let mut first = true;
    let mut but_the_first = |_: &Record<'_>| if std::mem::take(&mut first) { Targets::None } else { Targets::One(3) };
    assert_eq!(whole(&payload, &mut but_the_first), (None, 2, 1));
    let mut twice = |_: &Record<'_>| targets(&[3, 3]);
    assert_eq!(whole(&payload, &mut twice), (all, 2, 0));
    let mut both = |_: &Record<'_>| targets(&[3, 4]);
    assert_eq!(whole(&payload, &mut both), (None, 2, 0));
}

fn targets(targets: &[Target]) -> Targets {
    let mut all = Targets::None;
    assert!(targets.iter().all(|target| all.add(*target)));
    all
}

#[test]
fn a_record_has_up_to_four_targets_each_once() {
    assert_eq!(targets(&[7, 7]), Targets::One(7));
    let Targets::Many(several) = targets(&[7, 0, 7, 9, 0, 9]) else { panic!("three targets") };
    assert_eq!(several.as_slice(), [7, 0, 9]);
    let Targets::Many(several) = targets(&[7, 0, 7, 9, 2, 0, 9]) else { panic!("four targets") };
    assert_eq!(several.as_slice(), [7, 0, 9, 2]);
    let mut full = Targets::Many(several);
    assert!(!full.add(1));
    assert_eq!(full, Targets::Many(several));
}

#[test]
fn records_go_to_all_their_targets_and_unrouted_ones_to_none() {
    let router = |record: &Record<'_>| match record.id {
        [1] => targets(&[5, 6]),
        [2] => targets(&[6, 5, u32::MAX]),
        [3] => Targets::None,
        _ => Targets::One(6),
    };
    let payload = request([span([1]), span([2]), span([3]), span([4])]);
    let parts = cut(Signal::Traces.into(), &payload, router).unwrap();
    assert_eq!(
        parts,
        [
            (5, request([span([1]), span([2])])),
            (6, request([span([1]), span([2]), span([4])])),
            (u32::MAX, request([span([2])])),
        ]
    );
    let nobody = cut(Signal::Traces.into(), &payload, |_: &Record<'_>| Targets::None).unwrap();
    assert!(nobody.is_empty());
}

#[test]
fn thousands_of_targets_are_not_mixed_up() {
    let id = |number: u32| number.wrapping_mul(65_537).to_be_bytes();
    let payload = len(1, len(2, (0..10_000).flat_map(|number| span(id(number % 5_000))).collect::<Vec<_>>()));
    let router = |record: &Record<'_>| Targets::One(u32::from_be_bytes(record.id.try_into().unwrap()));
    let parts = cut(Signal::Traces.into(), &payload, router).unwrap();
    assert_eq!(parts.len(), 5_000);
    for (number, (target, part)) in (0..).zip(parts) {
        assert_eq!((target, part), (number * 65_537, request([span(id(number)), span(id(number))])));
    }
}

#[test]
fn targets_with_the_same_slot_of_the_index_are_not_mixed_up() {
    let spans: Vec<u8> = (0..60).flat_map(|number| span([number; 16])).collect();
    let payload = len(1, len(2, spans));
    // The index of targets has 64 places.
    let target = |number: u8| 64 * u32::from(number % 5);
    let parts = cut(Signal::Traces.into(), &payload, |record: &Record<'_>| Targets::One(target(record.id[0]))).unwrap();
    assert_eq!(parts.len(), 5);
    for (found, part) in parts {
        let expected: Vec<_> =
            (0..60).filter(|number| target(*number) == found).map(|number| vec![number; 16]).collect();
        assert_eq!(ids(&part), expected);
    }
}

#[test]
fn a_reused_scratch_leads_to_the_same_parts() {
    let mut scratch = Scratch::default();
    let mut router = by_first_byte;
    for id in 0..=255 {
        let payload = Bytes::from(request([span([id]), span([!id])]));
        let plan =
            plan(Signal::Traces, std::slice::from_ref(&payload), &mut router, &mut scratch, &mut |_| true).unwrap();
        assert_eq!(plan.shares().map(|share| share.target).collect::<Vec<_>>(), [u32::from(id), u32::from(!id)]);
    }
    let payloads = [request([span([1]), span([2])]), vec![0x0a, 99], vec![], request([span([2]), span([9])])];
    for payload in payloads.iter().chain(&payloads) {
        let bytes = Bytes::copy_from_slice(payload);
        let again =
            plan(Signal::Traces, std::slice::from_ref(&bytes), &mut router, &mut scratch, &mut |_| true).map(|plan| {
                plan.build(&mut |_| true)
                    .unwrap()
                    .parts
                    .into_iter()
                    .map(|(share, part)| (share.target, part.payload().to_vec()))
                    .collect()
            });
        assert_eq!(again, cut_traces(payload));
    }
}
