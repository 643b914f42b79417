//! Cutting within the budget.

use std::{collections::BTreeSet, net::SocketAddr};

use super::*;
use crate::{
    budget::Budget, endpoint::Endpoint, otlp::wire, ring::Algorithm, settings::Handoff, testing, wall_clock::Moment,
};

fn by(table: &Table) -> By<'_> {
    By { table, invalid: InvalidTraceId::Forward, moved: Moved::Immediate }
}

/// Cuts a message by a table without previous ones.
fn cut_alone(message: Framed, mut permit: Permit, table: &Table) -> Result<Cut, Refusal> {
    match cut_by(Signal::Traces, message, &mut None, &mut permit, by(table)) {
        Ok((cut, _)) => Ok(cut.with(permit)),
        Err(error) => Err(error.refusal(&permit)),
    }
}

fn arrived(message: Framed, permit: Permit) -> Arrived {
    Arrived { signal: Signal::Traces, message, encoding: None, original: None, permit }
}

fn part(message: Framed, signal: Signal, records: u32) -> Part {
    Part::new(signal, message, records, 0)
}

#[test]
fn what_parts_hold_is_in_the_budget_and_the_message_is_not_once_it_was_copied() {
    let addresses = ["127.0.0.1:1", "127.0.0.1:2"].map(|address| address.parse().unwrap());
    let table = testing::table(1, &addresses, &[]);
    for (count, size) in [(2_000, 1_000), (900, 1_000), (20_000, 10), (40, 10)] {
        let message = testing::many_traces(count, size);
        let budget = Budget::new(1 << 30);
        let permit = budget.take(message.framed_len()).unwrap();
        let cut = cut_alone(message.clone(), permit, &table).unwrap();
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
        match cut_alone(message.clone(), permit, &table) {
            Ok(cut) => {
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
    let cut = cut_alone(message.clone(), permit, &table).unwrap();
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
        let result = cut_alone(message.clone(), permit, &table);
        let used = budget.used();
        (result.map(|cut| cut.parts.len()), used, budget)
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
    let cut = cut_alone(message, permit, &table).unwrap();
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
    let refusal = cut_alone(message, permit, &table).unwrap_err();
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
    let mut permit = budget.take(message.framed_len()).unwrap();
    let whole = part(message, Signal::Profiles, 40);
    let cut = Uncounted { parts: vec![whole], copies: Vec::new(), records: 40, rejected: 0 };
    let Uncounted { parts, .. } = fit(cut, 400, &mut permit).unwrap();
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
        let mut permit = budget.take(size).unwrap();
        let _others = budget.take(limit - size - 100).unwrap();
        let parts = vec![part(message.clone(), Signal::Traces, 100)];
        let cut = Uncounted { parts, copies: Vec::new(), records: 100, rejected: 0 };
        assert_eq!(fit(cut, 500, &mut permit).unwrap_err().refusal(&permit).reason, reason);
    }
}

/// A table of backends at these ports that has replaced another one, so that spans without a start whose slot moved go to two
/// backends.
fn handed_off(before: &[u16], after: &[u16]) -> Table {
    let handoff = Handoff::default();
    let [before, after] = [before, after].map(|ports| {
        let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let endpoint = |port: &u16| Endpoint::new(address(*port).to_string(), Some(address(*port)));
        Table::of(1, Algorithm::SlotsV1, &ports.iter().map(endpoint).collect()).unwrap()
    });
    after.replacing(&before.with_handoff(handoff), Moment::now().steady, handoff, &BTreeSet::new())
}

#[test]
fn copies_keep_no_more_in_memory_than_their_budget_share() {
    for (before, after, are_all) in [(&[1, 2][..], &[3, 4][..], true), (&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5, 6], false)] {
        let (table, message) = (handed_off(before, after), testing::many_traces(200, 100));
        let by = By { moved: Moved::ByStart(Moment::now()), ..by(&table) };
        let metrics = SignalMetrics::new("tail", Signal::Traces);
        let budget = Budget::new(1 << 30);
        let permit = budget.take(message.framed_len()).unwrap();
        let (cut, of_copies) = cut(arrived(message, permit), by, usize::MAX, &metrics).unwrap();
        let Cut { parts, copies, permit, .. } = cut;
        assert_eq!((records_of(&parts), records_of(&copies) == 200), (200, are_all));
        let all = permit.bytes();
        drop((parts, permit));
        let len: usize = copies.iter().map(|copy| copy.message.framed_len()).sum();
        let expected = if are_all { all } else { len };
        assert_eq!((of_copies.as_ref().map(Permit::bytes), budget.used()), (Some(expected), expected));
        for Part { message, .. } in copies.into_iter().filter(|_| !are_all) {
            let buffers = message.buffers();
            drop(message);
            assert!(buffers.len() == 1 && buffers[0].is_unique(), "it would keep other parts in memory");
        }
    }
}

#[test]
fn a_request_is_cut_without_copies_where_there_is_no_room_for_them() {
    let (table, message) = (handed_off(&[1, 2], &[3, 4]), testing::many_traces(200, 1_000));
    let by = By { moved: Moved::ByStart(Moment::now()), ..by(&table) };
    let metrics = SignalMetrics::new("tail", Signal::Traces);
    let size = message.framed_len();
    let mut copied = BTreeSet::new();
    for spare in (size / 10..5 * size).step_by(size / 10) {
        let budget = Budget::new(size + spare);
        let permit = budget.take(size).unwrap();
        let (cut, permit) = cut(arrived(message.clone(), permit), by, usize::MAX, &metrics).unwrap();
        assert_eq!(records_of(&cut.parts), 200, "with {spare} bytes to spare");
        assert_eq!(permit.is_some(), !cut.copies.is_empty());
        copied.insert(records_of(&cut.copies));
    }
    assert_eq!(copied, [0, 200].into());
}

/// A message of these traces with an original of `len` bytes, and the permit of both in a budget of `limit` bytes.
fn compressed(message: &Framed, len: usize, limit: usize) -> (Arrived, Budget) {
    let budget = Budget::new(limit);
    let permit = budget.take(message.framed_len() + len).expect("the budget must hold both");
    let original = Some(Original { bytes: vec![7; len].into(), held: len });
    (Arrived { encoding: Some(Encoding::Zstd), original, ..arrived(message.clone(), permit) }, budget)
}

#[test]
fn an_original_stays_with_the_part_that_is_all_of_its_request_and_counts_as_long() {
    let addresses = ["127.0.0.1:1", "127.0.0.1:2"].map(|address| address.parse().unwrap());
    let metrics = SignalMetrics::new("tail", Signal::Traces);
    let message = testing::many_traces(200, 500);
    let size = message.framed_len();
    let one = testing::table(1, &addresses[..1], &[]);
    let (arrived, budget) = compressed(&message, 1_000, 1 << 20);
    let (cut, _) = cut(arrived, by(&one), usize::MAX, &metrics).unwrap();
    let [whole] = &cut.parts[..] else { panic!("{} parts", cut.parts.len()) };
    assert_eq!((whole.encoding, whole.original.as_deref()), (Some(Encoding::Zstd), Some(&[7; 1_000][..])));
    assert_eq!(budget.used(), size + 1_000, "both are in memory");
    drop(cut);
    assert_eq!(budget.used(), 0);
    // In two parts, or in pieces.
    let two = testing::table(1, &addresses, &[]);
    for (table, max) in [(&two, usize::MAX), (&one, size / 3)] {
        let (arrived, budget) = compressed(&message, 1_000, 1 << 20);
        let (cut, _) = super::cut(arrived, by(table), max, &metrics).unwrap();
        assert!(cut.parts.len() >= 2);
        assert!(cut.parts.iter().all(|part| part.original.is_none() && part.encoding == Some(Encoding::Zstd)));
        let held: usize = cut.parts.iter().map(|part| part.message.framed_len()).sum();
        let plain =
            super::cut(Arrived { original: None, ..compressed(&message, 0, 1 << 20).0 }, by(table), max, &metrics);
        assert_eq!(budget.used(), plain.unwrap().0.permit.bytes(), "no more than without an original");
        assert!(budget.used() >= held);
    }
}

#[test]
fn an_original_makes_no_request_be_refused() {
    let addresses = ["127.0.0.1:1", "127.0.0.1:2"].map(|address| address.parse().unwrap());
    let metrics = SignalMetrics::new("tail", Signal::Traces);
    let table = testing::table(1, &addresses, &[]);
    for message in [testing::many_traces(200, 500), testing::many_traces(2_000, 100)] {
        let (size, len) = (message.framed_len(), 30_000);
        for spare in (0..2 * size).step_by(size / 40) {
            let (with, budget) = compressed(&message, len, size + len + spare);
            let with = cut(with, by(&table), usize::MAX, &metrics);
            // The account has as much room as if the original had been freed before.
            let (without, _other) = compressed(&message, 0, size + len + spare);
            let without = cut(Arrived { original: None, ..without }, by(&table), usize::MAX, &metrics);
            assert_eq!(with.is_ok(), without.is_ok(), "{spare}");
            drop(with);
            assert_eq!(budget.used(), 0);
        }
    }
}
