//! Tests of the scratch: runs, ranges, the index of targets, and the memory that is kept for the next request.

use super::*;

#[test]
fn adjacent_fields_are_one_range_and_adjacent_records_one_run() {
    let mut scratch = Scratch::default();
    let [first, second] = [0, 0].map(|parent| scratch.add_message(parent, 1));
    scratch.add_envelope(first, 0, 3);
    scratch.add_envelope(first, 3, 5);
    scratch.add_envelope(first, 6, 9);
    scratch.add_envelope(second, 9, 11);
    let ranges: Vec<_> = scratch.ranges.iter().map(|range| (range.start, range.end)).collect();
    assert_eq!(ranges, [(0, 5), (6, 9), (9, 11)]);
    assert_eq!([first, second].map(|at| scratch.messages[at as usize].envelope_len), [8, 2]);
    let records = [(7, 0, 10, 12), (7, 0, 12, 15), (8, 0, 15, 17), (7, 0, 17, 20), (7, 1, 20, 21), (7, 1, 21, 25)];
    let is_new = records.map(|(target, message, start, end)| scratch.add_record(target, message, start, end));
    assert_eq!(is_new, [true, false, true, true, true, false]);
    let runs: Vec<_> = scratch.runs.iter().map(|run| (run.message, run.start, run.end)).collect();
    assert_eq!(runs, [(0, 10, 15), (0, 15, 17), (0, 17, 20), (1, 20, 25)]);
    assert_eq!(scratch.parts.iter().map(|part| (part.target, part.records)).collect::<Vec<_>>(), [(7, 5), (8, 1)]);
    assert_eq!(scratch.marks(), (3, 4));
}

#[test]
fn the_index_of_targets_is_at_most_half_full_and_finds_small_numbers_at_once() {
    let mut scratch = Scratch::default();
    for target in 0..3_000 {
        assert_eq!(scratch.part_of(target), target);
        assert_eq!(scratch.index.len(), (2 * scratch.parts.len()).next_power_of_two().max(64));
        assert_eq!(scratch.index.iter().filter(|found| **found != 0).count(), scratch.parts.len());
        assert_eq!(scratch.first_guess(target), target);
    }
    assert_eq!((home(70, 64), home(63, 64), home(5, 0)), (6, 63, 5));
}

#[test]
fn targets_whose_searches_begin_at_the_same_slot_are_found() {
    let mut scratch = Scratch::default();
    // At the last slot, whatever the length of the table, so that each search goes on at the first one.
    let targets: Vec<Target> = (0..100).map(|number| u32::MAX - (number << 12)).collect();
    for _ in 0..2 {
        let parts: Vec<u32> = targets.iter().map(|target| scratch.part_of(*target)).collect();
        assert_eq!(parts, Vec::from_iter(0..100));
    }
    assert_eq!((scratch.parts.len(), scratch.index.len()), (100, 256));
}

#[test]
fn entries_of_parts_that_do_not_exist_mark_the_scratch_as_broken() {
    let mut scratch = Scratch::default();
    assert!(!scratch.add_run(9, Run { message: 0, start: 0, end: 1, next: NONE }));
    assert!(scratch.is_broken);
    let mut scratch = Scratch::default();
    assert_eq!(scratch.end_run(9), 0);
    assert!(scratch.is_broken);
}

#[test]
fn a_message_without_records_is_removed_with_its_fields() {
    let mut scratch = Scratch::default();
    scratch.add_message(0, 0);
    let (ranges, runs) = scratch.marks();
    let message = scratch.add_message(0, 1);
    scratch.add_envelope(message, 0, 2);
    scratch.forget_if_empty(message, ranges, runs);
    assert_eq!((scratch.messages.len(), scratch.ranges.len()), (1, 0));
    let message = scratch.add_message(0, 1);
    scratch.add_envelope(message, 2, 4);
    scratch.add_record(7, message, 4, 5);
    scratch.forget_if_empty(message, ranges, runs);
    assert_eq!((scratch.messages.len(), scratch.ranges.len()), (2, 1));
}

#[test]
fn vectors_keep_a_bounded_capacity() {
    for (capacity, kept) in [(RETAINED, RETAINED), (RETAINED + 1, 0)] {
        let mut entries = Vec::<u8>::with_capacity(capacity);
        retain(&mut entries);
        assert_eq!(entries.capacity(), kept);
    }
}

#[test]
fn the_memory_of_a_large_request_is_freed() {
    let mut scratch = Scratch::default();
    let large = 2 * RETAINED;
    scratch.messages.reserve(large);
    scratch.ranges.reserve(large);
    scratch.runs.reserve(large);
    scratch.parts.reserve(large);
    scratch.part_messages.reserve(large);
    scratch.index.reserve(large);
    scratch.retain_little();
    let capacities = [scratch.messages.capacity(), scratch.ranges.capacity(), scratch.runs.capacity()];
    let further = [scratch.parts.capacity(), scratch.part_messages.capacity(), scratch.index.capacity()];
    assert_eq!([capacities, further], [[0; 3]; 2]);
}

#[test]
fn a_cleared_scratch_is_like_a_new_one() {
    let mut scratch = Scratch::default();
    let message = scratch.add_message(0, 0);
    scratch.add_envelope(message, 0, 1);
    scratch.add_record(7, message, 1, 2);
    scratch.measure(1, &mut |_| true).unwrap();
    scratch.sources.push(0, bytes::Bytes::from_static(b"x"));
    scratch.early.begin(1, 1, 1);
    scratch.is_broken = true;
    scratch.clear();
    assert_eq!((scratch.messages.len(), scratch.marks(), scratch.parts.len()), (0, (0, 0), 0));
    assert_eq!((scratch.part_messages.len(), scratch.index.len(), scratch.sources.len()), (0, 0, 0));
    assert_eq!((scratch.early.is_on(), scratch.is_broken), (false, false));
}

#[test]
fn a_full_vector_grows_by_half_or_an_eighth_and_only_with_room() {
    for (gives, expected) in
        [(&[true][..], Ok(1_500)), (&[false, true][..], Ok(1_125)), (&[false, false][..], Err(250))]
    {
        let mut entries = Vec::<u16>::with_capacity(1_000);
        entries.resize(entries.capacity() - 1, 0);
        assert_eq!(grow(&mut entries, 1, &mut |_| panic!("it is not full")), Ok(()));
        entries.push(0);
        let (mut gives, mut asked) = (gives.iter(), 0);
        let mut room = |bytes| {
            asked = bytes;
            *gives.next().unwrap()
        };
        let grown = grow(&mut entries, 1, &mut room).map(|()| entries.capacity());
        assert_eq!(grown, expected.map_err(Malformed::NoRoom));
        assert_eq!(asked, if grown == Ok(1_500) { 1_000 } else { 250 });
    }
}

#[test]
fn every_kind_of_entry_takes_room_beyond_what_is_free() {
    for kind in 0..4 {
        let mut scratch = Scratch::default();
        let (mut count, mut asked, mut first) = (0, 0, None);
        while count < 2 * FREE_ENTRIES {
            match kind {
                0 => drop(scratch.add_message(0, 1)),
                1 => scratch.ranges.push(EnvelopeRange { start: 0, end: 1, next: NONE }),
                2 => scratch.runs.push(Run { message: 0, start: 0, end: 1, next: NONE }),
                _ => scratch.sources.push(count, bytes::Bytes::from_static(b"x")),
            }
            count += 1;
            if scratch.is_full() {
                first.get_or_insert(count);
                scratch
                    .take_room(&mut |bytes| {
                        asked += bytes;
                        true
                    })
                    .unwrap();
                assert!(!scratch.is_full());
            }
        }
        assert_eq!(first, Some(FREE_ENTRIES), "kind {kind}");
        let size = [size_of::<Message>(), size_of::<EnvelopeRange>(), size_of::<Run>(), 40][kind];
        let needed = FREE_ENTRIES * size;
        assert!((needed..2 * needed).contains(&asked), "{asked} bytes for {needed} of kind {kind}");
    }
}

/// Returns a scratch with one part of so many messages, that of the request included.
fn with_messages_of_a_part(count: usize) -> Scratch {
    let mut scratch = Scratch::default();
    scratch.add_message(0, 0);
    for at in 1..offset(count) {
        let message = scratch.add_message(0, 1);
        scratch.add_record(7, message, at, at + 1);
    }
    scratch
}

#[test]
fn messages_of_parts_take_room_beyond_what_is_free() {
    for count in [FREE_ENTRIES, FREE_ENTRIES + 1, 3 * FREE_ENTRIES] {
        let mut scratch = with_messages_of_a_part(count);
        let mut asked = 0;
        let mut room = |bytes| {
            asked += bytes;
            true
        };
        scratch.measure(2, &mut room).unwrap();
        assert_eq!(scratch.part_messages.len(), count);
        let needed = (count - FREE_ENTRIES) * size_of::<PartMessage>();
        let most = if needed == 0 { 0 } else { needed.max(FREE_ENTRIES / 2 * size_of::<PartMessage>()) * 3 / 2 };
        assert!((needed..=most).contains(&asked), "{asked} bytes for {needed}");
    }
}

#[test]
fn a_plan_is_the_same_after_one_for_whose_messages_there_was_no_room() {
    let mut scratch = with_messages_of_a_part(FREE_ENTRIES + 1);
    let total = scratch.measure(2, &mut |_| true).unwrap();
    for (gives, is_right) in [(false, false), (true, true)] {
        scratch.part_messages = Vec::new();
        let measured = scratch.measure(2, &mut |_| gives);
        assert_eq!(measured == Ok(total), is_right, "{measured:?}");
        assert!(is_right || matches!(measured, Err(Malformed::NoRoom(_))));
    }
}
