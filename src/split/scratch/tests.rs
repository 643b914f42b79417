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
        assert!(
            scratch.index.len() >= 2 * scratch.parts.len() && scratch.index.len() <= 8 * scratch.parts.len().max(8)
        );
        assert_eq!(scratch.index.iter().filter(|found| **found != 0).count(), scratch.parts.len());
        assert_eq!(scratch.first_guess(target), target);
    }
    assert_eq!((home(70, 64), home(63, 64), home(5, 0)), (6, 63, 5));
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
    scratch.measure(1);
    scratch.sources.push(0, bytes::Bytes::from_static(b"x"));
    scratch.early.begin(1, 1, 1);
    scratch.is_broken = true;
    scratch.clear();
    assert_eq!((scratch.messages.len(), scratch.marks(), scratch.parts.len()), (0, (0, 0), 0));
    assert_eq!((scratch.part_messages.len(), scratch.index.len(), scratch.sources.len()), (0, 0, 0));
    assert_eq!((scratch.early.is_on(), scratch.is_broken, scratch.allowed), (false, false, FREE_ENTRIES));
}

#[test]
fn room_for_entries_grows_by_halves_up_to_the_bound() {
    let mut scratch = Scratch::default();
    scratch.clear();
    let mut asked = Vec::new();
    let last = loop {
        let mut room = |bytes| {
            asked.push(bytes);
            true
        };
        if let Err(error) = scratch.take_room(&mut room) {
            break error;
        }
    };
    assert_eq!(last, Malformed::Pieces(MAX_ENTRIES));
    assert_eq!(asked[..2], [FREE_ENTRIES / 2 * ENTRY_LEN, FREE_ENTRIES * 3 / 4 * ENTRY_LEN]);
    assert_eq!(asked.iter().sum::<usize>(), (MAX_ENTRIES - FREE_ENTRIES) * ENTRY_LEN);
    scratch.clear();
    assert_eq!(scratch.take_room(&mut |_| false), Err(Malformed::NoRoom(FREE_ENTRIES / 2 * ENTRY_LEN)));
    assert_eq!(scratch.allowed, FREE_ENTRIES, "nothing was granted");
}

#[test]
fn every_kind_of_entry_takes_room() {
    let mut scratch = Scratch::default();
    for kind in 0..4 {
        scratch.clear();
        scratch.allowed = 4;
        for count in 1..=5 {
            match kind {
                0 => drop(scratch.add_message(0, 1)),
                1 => scratch.ranges.push(EnvelopeRange { start: 0, end: 1, next: NONE }),
                2 => scratch.runs.push(Run { message: 0, start: 0, end: 1, next: NONE }),
                _ => scratch.sources.push(count, bytes::Bytes::from_static(b"x")),
            }
            assert_eq!(scratch.is_full(), count > 4, "{count} of kind {kind}");
        }
    }
}
