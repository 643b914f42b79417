//! What the cut asks room for, when, and what it refuses without.

use super::*;

#[test]
fn the_size_of_all_parts_is_known_before_any_is_built() {
    let spans: Vec<_> = (0..200).flat_map(|id| span([id])).collect();
    let payload = Bytes::from(len(1, all([len(1, vec![0; 30 << 20]), len(2, spans)])));
    let (mut scratch, mut router) = (Scratch::default(), by_first_byte);
    let plan = plan(Signal::Traces, std::slice::from_ref(&payload), &mut router, &mut scratch, &mut |_| true).unwrap();
    assert_eq!(plan.shares().count(), 200);
    // Resource, scope and span with their tags and lengths, behind gRPC's prefix.
    assert_eq!(plan.total_len(), 200 * (5 + (1 + 4) + (1 + 4) + (30 << 20) + 2 + 5));
}

#[test]
fn a_request_of_more_pieces_than_are_kept_track_of_is_refused() {
    // Each falls into four: resource, scope, the scope's other field, run.
    let unit = request([span([1]), varint(9, 1)]);
    let mut payload = Bytes::from(unit.repeat((1 << 20) + 1));
    let mut scratch = Scratch::default();
    let mut router = by_first_byte;
    let error =
        plan(Signal::Traces, std::slice::from_ref(&payload), &mut router, &mut scratch, &mut |_| true).unwrap_err();
    assert!(matches!(error.kind, Malformed::Pieces(_)), "{error}");
    assert!(scratch.runs.capacity() + scratch.messages.capacity() < 1 << 17, "what it took is given back");
    payload = [0x0a, 0x00].repeat((1 << 22) + 1).into();
    let plan = plan(Signal::Traces, std::slice::from_ref(&payload), &mut router, &mut scratch, &mut |_| true).unwrap();
    assert_eq!(plan.records(), 0, "millions of empty resources take no room");
}

#[test]
fn room_is_asked_for_before_many_pieces_and_long_torn_records_are_kept() {
    let mut scratch = Scratch::default();
    let mut router = by_first_byte;
    let usual = Bytes::from(request([span([1]), span([2])]).repeat(10_000));
    let mut asked = Vec::new();
    plan(Signal::Traces, &[usual], &mut router, &mut scratch, &mut |len| {
        asked.push(len);
        true
    })
    .unwrap();
    assert!(asked.is_empty(), "what is kept anyway is free");
    let many = Bytes::from(request([span([1]), varint(9, 1)]).repeat(1 << 19));
    plan(Signal::Traces, std::slice::from_ref(&many), &mut router, &mut scratch, &mut |len| {
        asked.push(len);
        true
    })
    .unwrap();
    assert!(asked.len() > 1 && asked.iter().sum::<usize>() > (4 << 19) * size_of::<scratch::Run>(), "{asked:?}");
    let error = plan(Signal::Traces, &[many], &mut router, &mut scratch, &mut |_| false).unwrap_err();
    assert_eq!(error.kind, Malformed::NoRoom(asked[0]));
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
            .map(|plan| plan.layout(Shared::REQUEST).len());
        (result.map_err(|error| error.kind), asked)
    };
    assert_eq!(plan_of(&[long], false).1, [0; 0], "it is in one place");
    let (room, asked) = plan_of(&halves, true);
    assert!((1 << 20..(1 << 20) + 100).contains(&asked[0]) && asked.len() == 1, "{asked:?}");
    assert!(room.unwrap() >= asked[0], "it stays as long as the parts do");
    assert_eq!(plan_of(&halves, false).0, Err(Malformed::NoRoom(asked[0])));
}

#[test]
fn what_is_torn_once_is_put_together_once() {
    // Resources as long as a joint: the end of each joint would tear the next one.
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
        assert!(sources <= 3, "{sources} buffers, torn at {border}");
    }
}

#[test]
fn many_torn_records_are_put_together_only_while_there_is_room() {
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
