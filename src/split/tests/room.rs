//! Tests of when the split asks for room, for how much, and what it does if there is none.

use super::*;
use crate::otlp::framed::PREFIX_LEN;

#[test]
fn the_size_of_all_parts_is_known_before_any_is_built() {
    let spans: Vec<_> = (0..200).flat_map(|id| span([id])).collect();
    let payload = Bytes::from(len(1, all([len(1, vec![0; 30 << 20]), len(2, spans)])));
    let (mut scratch, mut router) = (Scratch::default(), by_first_byte);
    let plan = plan(Signal::Traces, std::slice::from_ref(&payload), &mut router, &mut scratch, &mut |_| true).unwrap();
    assert_eq!(plan.shares().count(), 200);
    // gRPC's prefix, and then resource, scope and span with their tags and lengths.
    assert_eq!(plan.total_len(), 200 * (5 + (1 + 4) + (1 + 4) + (30 << 20) + 2 + 5));
}

#[test]
fn a_request_of_more_than_a_million_pieces_is_refused() {
    let mut scratch = Scratch::default();
    let mut records_of = |payload: Vec<u8>| {
        let chunks = [Bytes::from(payload)];
        let plan = plan(Signal::Traces, &chunks, &mut by_first_byte, &mut scratch, &mut |_| true);
        plan.map(|plan| plan.records()).map_err(|error| error.kind)
    };
    let too_many = Err(Malformed::Pieces(1_000_000));
    // A resource, a scope and a record each; the scope's other field is none of them.
    let unit = request([span([1]), varint(9, 1)]);
    assert_eq!(records_of(unit.repeat(333_333)), Ok(333_333));
    assert_eq!(records_of(unit.repeat(333_334)), too_many);
    // Empty resources take no entries, but time.
    assert_eq!(records_of([0x0a, 0x00].repeat(1_000_000)), Ok(0));
    assert_eq!(records_of([0x0a, 0x00].repeat(1_000_001)), too_many);
    assert_eq!(records_of(len(1, len(2, span([1]).repeat(999_999)))), too_many);
    assert!(scratch.runs.capacity() + scratch.messages.capacity() < 1 << 17, "its memory must be freed");
}

#[test]
fn the_error_for_too_many_pieces_has_the_offset_of_the_first_that_is_too_many() {
    let resource = len(1, varint(9, 1));
    let chunks = [Bytes::from(resource.repeat(1_000_001))];
    let error = plan(Signal::Traces, &chunks, &mut by_first_byte, &mut Scratch::default(), &mut |_| true).unwrap_err();
    assert_eq!(error, WireError { offset: 4_000_000 + 2, kind: Malformed::Pieces(1_000_000) });
}

#[test]
fn ranges_that_many_parts_repeat_are_not_counted_before_there_is_room() {
    // Scopes without records between a resource's fields make a range of each.
    let fields = [varint(9, 1), len(2, [])].concat().repeat(10_000);
    let spans: Vec<_> = (0..200).flat_map(|id| len(2, all([len(1, [id]), len(5, vec![0; 20_000])]))).collect();
    let chunks = [Bytes::from(len(1, all([fields, len(2, spans)])))];
    let mut scratch = Scratch::default();
    let plan = plan(Signal::Traces, &chunks, &mut by_first_byte, &mut scratch, &mut |_| true).unwrap();
    assert_eq!((plan.shares().count(), plan.scratch.ranges.len()), (200, 10_000));
    let total = plan.total_len();
    assert_eq!(plan.build(&mut |_| false).map(|built| built.len), Err(NotBuilt::NoRoom(total)));
    assert_eq!(scratch.counted.get(), 0);
    let targets = NonZeroUsize::new(200).unwrap();
    let early = plan_early(Signal::Traces, &chunks, targets, &mut by_first_byte, &mut scratch, &mut |_| true).unwrap();
    assert!(early.scratch.early.is_on() && early.build(&mut |_| false).is_err());
    assert_eq!(scratch.counted.get(), 0);
    let late = plan_of(&chunks, &mut scratch);
    late.layout(SharingLimits::REQUEST);
    assert_eq!(late.scratch.counted.get(), 200 * 10_000, "they are counted where parts may share the request");
}

#[test]
fn room_is_asked_for_many_entries_and_for_long_reassembled_records() {
    let mut scratch = Scratch::default();
    let mut router = by_first_byte;
    let usual = Bytes::from(request([span([1]), span([2])]).repeat(10_000));
    let mut asked = Vec::new();
    plan(Signal::Traces, &[usual], &mut router, &mut scratch, &mut |len| {
        asked.push(len);
        true
    })
    .unwrap();
    assert!(asked.is_empty(), "entries that are kept anyway must not ask for room");
    let many = Bytes::from(request([span([1]), varint(9, 1)]).repeat(1 << 18));
    plan(Signal::Traces, std::slice::from_ref(&many), &mut router, &mut scratch, &mut |len| {
        asked.push(len);
        true
    })
    .unwrap();
    // Two messages, a range, a run and two messages of the part each.
    let needed = (2 * 20 + 12 + 16 + 2 * 8) << 18;
    let sum: usize = asked.iter().sum();
    assert!((needed / 2..needed * 3 / 2).contains(&sum), "{sum} bytes for {needed}: {asked:?}");
    let error = plan(Signal::Traces, &[many], &mut router, &mut scratch, &mut |_| false).unwrap_err();
    assert!(matches!(error.kind, Malformed::NoRoom(_)), "{error}");
    let long = Bytes::from(request([len(2, all([len(1, [7]), len(9, vec![0; 1 << 20])])), span([2])]));
    let halves = [long.slice(..1 << 19), long.slice(1 << 19..)];
    let plan_of = |chunks: &[Bytes], gives: bool| {
        let mut asked = Vec::new();
        let mut room = |len| {
            asked.push(len);
            gives
        };
        let mut scratch = Scratch::default();
        let result = plan(Signal::Traces, chunks, &mut by_first_byte, &mut scratch, &mut room)
            .map(|plan| plan.layout(SharingLimits::REQUEST).len());
        (result.map_err(|error| error.kind), asked)
    };
    assert_eq!(plan_of(&[long], false).1, [0; 0], "the record is in one buffer");
    let (room, asked) = plan_of(&halves, true);
    assert!((1 << 20..(1 << 20) + 100).contains(&asked[0]) && asked.len() == 1, "{asked:?}");
    assert!(room.unwrap() >= asked[0], "the reassembled record lives as long as the parts");
    assert_eq!(plan_of(&halves, false).0, Err(Malformed::NoRoom(asked[0])));
}

#[test]
fn each_split_field_is_reassembled_once() {
    // Resources as long as the bytes that are reassembled at first, so that the end of each reassembled buffer would
    // lie inside of the next resource.
    let resource = len(1, len(3, [0; 59]));
    assert_eq!(resource.len(), 63);
    let spans = [resource.repeat(1_000), request([span([1]), span([2])]).repeat(1_000)].concat();
    let payload = Bytes::from(spans);
    let mut scratch = Scratch::default();
    for border in [1, 2, 40, 63, 64, 31_501, 63_000 + 9] {
        let chunks = [payload.slice(..border), payload.slice(border..)];
        let plan = plan(Signal::Traces, &chunks, &mut by_first_byte, &mut scratch, &mut |_| false).unwrap();
        assert_eq!(plan.records(), 2_000);
        let sources = plan.scratch.sources.len();
        assert!(sources <= 3, "{sources} buffers, border at {border}");
    }
}

#[test]
fn many_records_are_reassembled_only_while_there_is_room() {
    let record = |id| len(2, all([len(1, [id]), len(9, vec![0; 5_000])]));
    let payload = Bytes::from(len(1, len(2, (0..100).flat_map(record).collect::<Vec<_>>())));
    let chunks: Vec<Bytes> =
        (0..payload.len()).step_by(5_100).map(|at| payload.slice(at..payload.len().min(at + 5_100))).collect();
    let (mut scratch, mut asked) = (Scratch::default(), 0);
    let together = plan(Signal::Traces, &chunks, &mut by_first_byte, &mut scratch, &mut |len| {
        asked += len;
        true
    })
    .unwrap()
    .counts
    .reassembled;
    assert!(asked > 0 && together <= asked + (64 << 10), "{together} bytes, {asked} asked for");
    let error = plan(Signal::Traces, &chunks, &mut by_first_byte, &mut scratch, &mut |_| false).unwrap_err();
    assert!(matches!(error.kind, Malformed::NoRoom(_)), "{error}");
}

/// Returns a scope with `count` runs of ten spans each, alternating between two targets. Names have `size` bytes.
fn alternating(count: u32, size: usize) -> Bytes {
    let span = |id: u32| len(2, all([len(1, [u8::from(id % 2 == 1)]), len(5, vec![b'n'; size])]));
    Bytes::from(len(1, len(2, (0..count).flat_map(|run| span(run).repeat(10)).collect::<Vec<_>>())))
}

fn plan_of<'a>(chunks: &[Bytes], scratch: &'a mut Scratch) -> Plan<'a> {
    plan(Signal::Traces, chunks, &mut by_first_byte, scratch, &mut |_| true).unwrap()
}

#[test]
fn without_room_for_copies_parts_share_the_request() {
    let payload = alternating(20, 300);
    let mut scratch = Scratch::default();
    let chunks = [payload];
    let plan = plan_of(&chunks, &mut scratch);
    let total = plan.total_len();
    // Each part has a prefix and two messages. Its list has a buffer for each run, one before the first run of each
    // message, and one at the end.
    let layout = plan.layout(SharingLimits::REQUEST);
    assert_eq!((layout.copied, layout.reassembled, layout.shares), (2 * (PREFIX_LEN + 4 + 4), 0, true));
    assert_eq!((layout.ranges, layout.chunks), (20, 2 + 20 + 2 * 3 + 1));
    let expected = layout.copied + 20 * size_of::<SharedRange>() + layout.chunks * size_of::<Bytes>();
    assert_eq!(layout.len(), expected);
    let mut asked = Vec::new();
    let built = plan
        .build(&mut |bytes| {
            asked.push(bytes);
            bytes < total
        })
        .unwrap();
    assert_eq!((asked, built.len, built.shares), (vec![total, expected], expected, true));
    let copied = plan_of(&chunks, &mut scratch).build(&mut |_| true).unwrap();
    assert_eq!((copied.len, copied.shares), (total, false));
    assert!(copied.parts == built.parts);
    assert!(!chunks[0].is_unique(), "the parts keep the request in memory");
    let refused = plan_of(&chunks, &mut scratch).build(&mut |_| false);
    assert_eq!(refused.map(|built| built.len), Err(NotBuilt::NoRoom(expected)));
}

#[test]
fn parts_share_the_request_only_if_that_saves_memory_and_they_repeat_little() {
    let shared = |payload: &Bytes| {
        let mut scratch = Scratch::default();
        let chunks = [payload.clone()];
        let plan = plan(Signal::Traces, &chunks, &mut by_first_byte, &mut scratch, &mut |_| true).unwrap();
        let (total, len) = (plan.total_len(), plan.layout(SharingLimits::REQUEST).len());
        let built = plan.build_in_least_room(&mut |_| true).unwrap();
        assert_eq!(built.len, if built.shares { len } else { total });
        (built.shares, len < total)
    };
    assert_eq!(shared(&alternating(20, 300)), (true, true));
    assert_eq!(shared(&alternating(2, 1)), (false, false), "lists would take more memory than copies");
    // A resource that both parts need. It is a fourth of the request, or a little more.
    let with_resource = |size: usize| {
        let [first, second] = [1, 2].map(|id| len(2, all([len(1, [id]), len(5, vec![b'n'; 5_000])])));
        Bytes::from(len(1, all([len(1, vec![0; size]), len(2, all([first, second]))])))
    };
    assert_eq!(shared(&with_resource(3_000)), (true, true));
    assert_eq!(shared(&with_resource(3_500)), (false, true), "the parts are more than 1.25 times as long");
}

#[test]
fn short_ranges_count_as_buffers_between_those_that_are_shared() {
    let record = |id: u8, size: usize| len(2, all([len(1, [id]), len(5, vec![b'n'; size])]));
    let chunks = [Bytes::from(len(1, len(2, [record(0, 300), record(1, 1)].concat().repeat(10))))];
    let mut scratch = Scratch::default();
    let layout = plan_of(&chunks, &mut scratch).layout(SharingLimits::REQUEST);
    assert_eq!((layout.ranges, layout.chunks), (10, 2 + 10 + 10 + 1));
}

#[test]
fn parts_that_take_the_same_memory_either_way_are_copied() {
    // One of four parts has a run that is as long as the lists that sharing it takes.
    let lists = size_of::<SharedRange>() + 7 * size_of::<Bytes>();
    let long = len(2, all([len(1, [0]), len(5, vec![b'n'; lists - 9])]));
    assert_eq!(long.len(), lists);
    let chunks = [Bytes::from(request([long, span([1]), span([2]), span([3])]))];
    let mut scratch = Scratch::default();
    let plan = plan_of(&chunks, &mut scratch);
    let total = plan.total_len();
    assert_eq!(plan.layout(SharingLimits::REQUEST).len(), total);
    let built = plan.build_in_least_room(&mut |_| true).unwrap();
    assert_eq!((built.shares, built.len), (false, total));
}

#[test]
fn reassembled_bytes_live_as_long_as_parts_that_share_them() {
    let payload = alternating(20, 300);
    let halves = [payload.slice(..2_000), payload.slice(2_000..)];
    let mut scratch = Scratch::default();
    let plan = plan(Signal::Traces, &halves, &mut by_first_byte, &mut scratch, &mut |_| true).unwrap();
    let layout = plan.layout(SharingLimits::REQUEST);
    assert!(layout.reassembled > 300 && layout.reassembled == plan.counts.reassembled);
    // One run lies in three buffers.
    assert_eq!((layout.ranges, layout.chunks), (20 + 2, 2 + 20 + 2 + 2 * 3 + 1));
    let lists = layout.ranges * size_of::<SharedRange>() + layout.chunks * size_of::<Bytes>();
    assert_eq!(layout.len(), layout.copied + lists + layout.reassembled);
}

#[test]
fn room_for_early_copies_is_asked_at_first_and_for_the_rest_at_the_end() {
    let payload = alternating(20, 300);
    let targets = NonZeroUsize::new(2).unwrap();
    let mut scratch = Scratch::default();
    let mut asked = Vec::new();
    let plan = plan_early(
        Signal::Traces,
        std::slice::from_ref(&payload),
        targets,
        &mut by_first_byte,
        &mut scratch,
        &mut |bytes| {
            asked.push(bytes);
            true
        },
    )
    .unwrap();
    assert_eq!(asked, [Early::room(payload.len(), 2)]);
    let layout = plan.layout(SharingLimits::EARLY_COPIES);
    let buffers = plan.scratch.early.buffers();
    assert_eq!((layout.copied, layout.ranges), (2 * (PREFIX_LEN + 4 + 4), 2 + buffers));
    assert_eq!(layout.chunks, 2 + 2 + 2 + buffers + 1);
    let (taken, not_granted) = plan.scratch.early.taken();
    let mut more = Vec::new();
    let built = plan
        .build(&mut |bytes| {
            more.push(bytes);
            true
        })
        .unwrap();
    assert_eq!(more, [layout.len() + not_granted]);
    assert_eq!((built.len, built.shares), (layout.len() + taken, false));
    drop(scratch);
    assert!(payload.is_unique(), "nothing may keep the request in memory");
}

#[test]
fn without_room_there_are_no_early_copies_or_no_parts_of_them() {
    let payload = alternating(20, 300);
    fn plan<'a>(chunks: &[Bytes], scratch: &'a mut Scratch, gives: bool) -> Plan<'a> {
        let targets = NonZeroUsize::new(2).unwrap();
        plan_early(Signal::Traces, chunks, targets, &mut by_first_byte, scratch, &mut |_| gives).unwrap()
    }
    let mut scratch = Scratch::default();
    let chunks = [payload];
    let late = plan(&chunks, &mut scratch, false);
    assert!(!late.scratch.early.is_on());
    let built = late.build(&mut |_| true).unwrap();
    let early = plan(&chunks, &mut scratch, true);
    let more = early.layout(SharingLimits::EARLY_COPIES).len() + early.scratch.early.taken().1;
    assert_eq!(early.build(&mut |_| false).map(|built| built.len), Err(NotBuilt::NoRoom(more)));
    assert!(plan(&chunks, &mut scratch, true).build(&mut |_| true).unwrap().parts == built.parts);
}

#[test]
fn early_copies_of_less_than_4_kib_are_copied_once_more() {
    let record = |id: u8, size: usize| len(2, all([len(1, [id]), len(5, vec![b'n'; size])]));
    let (short, long) = (record(1, 4_086), record(2, 4_087));
    assert_eq!((short.len(), long.len()), (4_095, 4_096));
    let chunks = [Bytes::from(request([short, long]))];
    let targets = NonZeroUsize::new(2).unwrap();
    let mut scratch = Scratch::default();
    let early = plan_early(Signal::Traces, &chunks, targets, &mut by_first_byte, &mut scratch, &mut |_| true).unwrap();
    let built = early.build(&mut |_| true).unwrap();
    let buffers: Vec<usize> = built.parts.iter().map(|(_, part)| part.buffers().len()).collect();
    assert_eq!(buffers, [1, 2], "the long one is a list: what is around the record, and the record");
}

#[test]
fn early_copies_are_cheaper_for_long_parts_of_long_requests() {
    let cases = [(65_536, 2, true), (65_535, 2, false), (65_536, 1, false), (65_536, 8, true), (65_536, 9, false)];
    for (len, targets, expected) in cases {
        assert_eq!(is_early_cheaper(len, targets), expected, "{len} bytes, {targets} targets");
    }
}

#[test]
fn as_many_entries_as_are_kept_anyway_need_no_room() {
    // A resource, a scope and a run each; the request itself and its buffer.
    for (units, asks) in [(21_844, false), (3 * 21_844, true)] {
        let payload = Bytes::from(request([span([1])]).repeat(units));
        let (mut scratch, mut asked) = (Scratch::default(), 0);
        let mut room = |bytes| {
            asked += bytes;
            true
        };
        plan(Signal::Traces, &[payload], &mut by_first_byte, &mut scratch, &mut room).unwrap();
        assert_eq!(asked > 0, asks, "{units}");
    }
}

#[test]
fn many_runs_of_few_messages_take_room_too() {
    let spans: Vec<u8> = (0..70_000_u32).flat_map(|at| span([u8::from(at % 2 == 1)])).collect();
    let mut asked = 0;
    let mut scratch = Scratch::default();
    let payload = Bytes::from(len(1, len(2, spans)));
    for targets in [0, 2] {
        let plan = plan_shape(
            Signal::Traces.into(),
            std::slice::from_ref(&payload),
            targets,
            &mut by_first_byte,
            &mut scratch,
            &mut |_| {
                asked += 1;
                true
            },
        )
        .unwrap();
        // Early copies are adjacent. Room is asked for their buffers, too.
        assert_eq!(plan.scratch.runs.len(), if targets == 0 { 70_000 } else { 2 });
        let count = std::mem::take(&mut asked);
        assert!(count == 1 || targets > 0 && count > 1, "{count} times");
    }
}

#[test]
fn up_to_64_kib_are_reassembled_without_asking() {
    let record = |size: usize| len(2, all([len(1, [7]), len(9, vec![0; size])]));
    let asked = |records: &[Vec<u8>]| {
        let payload = Bytes::from(len(1, len(2, records.concat())));
        let head = payload.len() - records.iter().map(Vec::len).sum::<usize>();
        // Each record is in two buffers.
        let mut chunks = Vec::new();
        let mut start = 0;
        let mut at = head;
        for record in records {
            chunks.push(payload.slice(start..at + 10));
            (start, at) = (at + 10, at + record.len());
        }
        chunks.push(payload.slice(start..));
        let mut asked = Vec::new();
        plan(Signal::Traces, &chunks, &mut by_first_byte, &mut Scratch::default(), &mut |bytes| {
            asked.push(bytes);
            true
        })
        .unwrap();
        asked
    };
    let fits = record((64 << 10) - 11);
    assert_eq!(fits.len(), 64 << 10);
    assert_eq!(asked(&[fits]), [0; 0]);
    assert_eq!(asked(&[record((64 << 10) - 10)]), [(64 << 10) + 1]);
    let (first, second) = (record(40_000), record(30_000));
    let len = second.len();
    assert_eq!(asked(&[first, second]), [len], "together they exceed the limit");
}

#[test]
fn a_request_longer_than_32_bits_is_refused() {
    let mib = Bytes::from(vec![0; 1 << 20]);
    let mut chunks = vec![mib.clone(); 4095];
    chunks.push(mib.slice(1..));
    assert_eq!(checked_len(&chunks), Ok(u32::MAX as usize));
    chunks.push(mib.slice(..1));
    assert_eq!(checked_len(&chunks), Err(WireError { offset: 0, kind: Malformed::TooLong }));
    let error = plan(Signal::Traces, &chunks, &mut by_first_byte, &mut Scratch::default(), &mut |_| true).unwrap_err();
    assert_eq!(error.kind, Malformed::TooLong);
}

#[test]
fn dropping_a_plan_frees_its_buffers() {
    let payload = alternating(20, 300);
    let mut scratch = Scratch::default();
    let chunks = [payload];
    drop(plan(Signal::Traces, &chunks, &mut by_first_byte, &mut scratch, &mut |_| true).unwrap());
    assert!(chunks[0].is_unique());
    let targets = NonZeroUsize::new(2).unwrap();
    let early = plan_early(Signal::Traces, &chunks, targets, &mut by_first_byte, &mut scratch, &mut |_| true).unwrap();
    assert!(early.scratch.early.taken().0 > 0);
    drop(early);
    assert_eq!(scratch.early.taken(), (0, 0));
}
