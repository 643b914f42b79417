//! Tests with plans that are damaged on purpose: none of them must lead to parts.

use super::*;
use crate::split::scratch::NONE;

/// Damages the notes of the walk.
type Damage = fn(&mut Scratch);

/// Returns a request with three targets, and with envelope fields before and after records.
fn payload() -> Vec<u8> {
    let scope = |ids: [u8; 3]| len(2, all([len(1, b"scope"), ids.map(|id| span([id])).concat(), len(3, b"url")]));
    all([len(9, b"request"), len(1, all([len(1, b"resource"), scope([1, 2, 3]), scope([3, 1, 2])]))])
}

/// Returns a scratch whose first plan will be damaged.
fn damaged(damage: Damage) -> Scratch {
    let mut scratch = Scratch::default();
    scratch.damage = Some(damage);
    scratch
}

#[test]
fn a_plan_that_contradicts_itself_builds_nothing() {
    let damages: [(&str, Damage); 18] = [
        ("a part is longer", |scratch| scratch.parts[0].len += 1),
        ("the last part is shorter", |scratch| scratch.parts[2].len -= 1),
        ("two lengths are changed", |scratch| {
            scratch.parts[0].len += 1;
            scratch.parts[1].len -= 1;
        }),
        ("a part lacks a message", |scratch| scratch.parts[1].messages.1 -= 1),
        ("a part has no messages", |scratch| scratch.parts[1].messages = (70, 80)),
        ("a part has no runs", |scratch| scratch.parts[1].first_run = NONE),
        ("a run is skipped", |scratch| scratch.parts[1].first_run = scratch.runs[1].next),
        ("a chain of runs is cut off", |scratch| scratch.runs[0].next = NONE),
        ("the message of a run does not exist", |scratch| scratch.runs[0].message = 99),
        ("a run is shorter", |scratch| scratch.runs[0].end -= 1),
        ("a run lies after the end of the request", |scratch| {
            scratch.runs[0].start += 1 << 20;
            scratch.runs[0].end += 1 << 20;
        }),
        ("a run ends after the end of the request", |scratch| scratch.runs[0].end += 1 << 20),
        ("a message of a part does not exist", |scratch| scratch.part_messages[1].message = 99),
        ("a message is longer", |scratch| scratch.part_messages[1].len = 1 << 14),
        ("a message has another field number", |scratch| scratch.messages[1].field = 1 << 10),
        ("a message has no envelope", |scratch| scratch.messages[1].first_range = NONE),
        ("an envelope is longer", |scratch| scratch.ranges[0].end += 1),
        ("the scratch is marked as broken", |scratch| scratch.is_broken = true),
    ];
    for (what, damage) in damages {
        for (how, targets) in [("copied", 0), ("shared", 0), ("early", 2)] {
            let mut scratch = damaged(damage);
            let chunks = [Bytes::from(payload())];
            let mut router = by_first_byte;
            let plan =
                plan_shape(Signal::Traces.into(), &chunks, targets, &mut router, &mut scratch, &mut |_| true).unwrap();
            let built = if how == "shared" {
                let shared = SharingLimits { records_from: 1, envelopes_from: 1 };
                let layout = plan.layout(shared);
                plan.write(shared, layout)
            } else {
                plan.build(&mut |_| true)
            };
            assert_eq!(built.map(|built| built.parts), Err(NotBuilt::Inconsistent), "{what}, {how}");
        }
    }
}

#[test]
fn without_the_request_or_its_copies_nothing_is_built() {
    for targets in [0, 2] {
        let damage: Damage =
            if targets == 0 { |scratch| scratch.sources.clear() } else { |scratch| drop(scratch.early.finish()) };
        let mut scratch = damaged(damage);
        let chunks = [Bytes::from(payload())];
        let mut router = by_first_byte;
        let plan =
            plan_shape(Signal::Traces.into(), &chunks, targets, &mut router, &mut scratch, &mut |_| true).unwrap();
        assert_eq!(plan.build(&mut |_| true).map(|built| built.parts), Err(NotBuilt::Inconsistent));
    }
}

#[test]
fn wrong_notes_are_noticed_when_parts_are_measured() {
    let damages: [(&str, Damage); 4] = [
        ("a chain of runs is cut off", |scratch| scratch.runs[0].next = NONE),
        ("a chain leads nowhere", |scratch| scratch.runs.last_mut().unwrap().next = 99),
        ("the message of a run does not exist", |scratch| scratch.runs[0].message = 99),
        ("the parent of a message does not exist", |scratch| scratch.messages[2].parent = 99),
    ];
    for (what, damage) in damages {
        let mut scratch = Scratch::default();
        let chunks = [Bytes::from(payload())];
        let plan = plan(Signal::Traces, &chunks, &mut by_first_byte, &mut scratch, &mut |_| true).unwrap();
        assert!(!plan.scratch.is_broken);
        damage(plan.scratch);
        plan.scratch.part_messages.clear();
        plan.scratch.measure(3, &mut |_| true).unwrap();
        assert!(plan.scratch.is_broken, "{what}");
    }
}

#[test]
fn impossible_notes_mark_the_scratch_as_broken() {
    let damages: [(&str, Damage); 2] = [
        ("a field of a message that does not exist", |scratch| scratch.add_envelope(99, 0, 1)),
        ("copies of a part that does not exist", |scratch| {
            drop(scratch.early.finish());
            scratch.end_runs();
        }),
    ];
    for (what, damage) in damages {
        let mut scratch = damaged(damage);
        let chunks = [Bytes::from(payload())];
        let mut router = by_first_byte;
        let plan = plan_shape(Signal::Traces.into(), &chunks, 2, &mut router, &mut scratch, &mut |_| true).unwrap();
        assert!(plan.scratch.is_broken, "{what}");
    }
}
