//! The tables that are kept: which owners they give a record, when they are forgotten, and how they are merged. Most tables
//! here give all slots to one backend, so that every key has the same owners.

use super::{replicas::letter, *};
use crate::ring::slots_v1::SLOTS;

const KEY: &[u8] = b"any key";

fn sticky() -> Handoff {
    Handoff { mode: HandoffMode::Sticky, ..dual() }
}

/// A table in which one backend owns all slots.
struct Published {
    began: u64,
    algorithm: Algorithm,
    owner: u16,
}

impl Published {
    fn new(seconds: u64, owner: u16) -> Self {
        Self { began: BEGIN + seconds * SECOND, algorithm: Algorithm::SlotsV1, owner }
    }
}

/// Returns the history of a table that came after all of these, and replaced the last one at `end`. Target numbers are the
/// owners' numbers.
fn history(tables: &[Published], end: u64, handoff: Handoff) -> History {
    let endpoints = endpoints("abcdefghijklmnopqrstuvwxyz");
    let mut history = History::none(handoff);
    let ends = tables.iter().skip(1).map(|table| table.began).chain([end]);
    for (Published { began, algorithm, owner }, end) in tables.iter().zip(ends) {
        let owners = vec![*owner; algorithm.slots() as usize].into();
        let before =
            Before { began: *began, algorithm: *algorithm, owners: &owners, endpoints: &endpoints, history: &history };
        history = History::after(before, end, handoff, Moves::ByDiscovery);
    }
    aimed(history)
}

fn aimed(mut history: History) -> History {
    history.aim(|endpoint| Some(letter(&endpoint.identity)));
    history
}

fn seconds(at: u64) -> u64 {
    BEGIN + at * SECOND
}

/// The ends of the kept tables in seconds, and how many placements each has.
fn kept(history: &History) -> Vec<(u64, usize)> {
    history.kept.iter().map(|kept| ((kept.ended - BEGIN) / SECOND, kept.layers.len())).collect()
}

#[test]
fn a_record_goes_to_its_latest_owners_and_the_others_are_counted() {
    let tables = [0, 1, 2, 3, 4, 5].map(|owner| Published::new(owner.into(), owner));
    let history = history(&tables, seconds(6), dual());
    let of = |start: u64, current: u16| {
        let times = times(seconds(start), seconds(start));
        let owners = history.owners(KEY, times, current, seconds(6), || false);
        (owners.as_slice().to_vec(), owners.decision, owners.left_out)
    };
    assert_eq!(of(7, 6), (vec![6, 5, 4, 3], Decision::Both, 3));
    assert_eq!(of(5, 6), (vec![5, 4, 3, 2], Decision::Previous, 2), "the current owner owned nothing then");
    assert_eq!(of(3, 6), (vec![3, 2, 1, 0], Decision::Previous, 0));
    assert_eq!(of(1, 6), (vec![1, 0], Decision::Previous, 0));
    assert_eq!(of(35, 6), (vec![6, 5], Decision::Both, 0));
    assert_eq!(of(36, 6), (vec![6], Decision::Current, 0), "its trace began after the last change");
    assert_eq!(of(7, 3), (vec![3, 5, 4, 2], Decision::Both, 2), "an owner of now and before counts once");
}

#[test]
fn a_key_is_unmoved_only_if_all_tables_have_the_same_owner() {
    let of = |owners: &[u16]| {
        let tables: Vec<Published> = (0..).zip(owners).map(|(at, owner)| Published::new(at, *owner)).collect();
        let history = history(&tables, seconds(9), dual());
        history.owners(KEY, times(seconds(50), seconds(50)), 1, seconds(9), || false).decision
    };
    assert_eq!(of(&[1, 1]), Decision::Unmoved);
    assert_eq!([of(&[0, 1]), of(&[1, 0])], [Decision::Current; 2]);
}

#[test]
fn the_mode_of_a_table_says_where_its_records_go() {
    let tables = [Published::new(0, 0)];
    let of = |handoff: Handoff| {
        let mut history = history(&tables, seconds(1), dual());
        history.handoff = handoff;
        history.owners(KEY, times(seconds(1), seconds(1)), 1, seconds(1), || false).as_slice().to_vec()
    };
    assert_eq!(of(dual()), [1, 0]);
    assert_eq!(of(sticky()), [1]);
    assert_eq!(of(Handoff { mode: HandoffMode::Immediate, ..dual() }), [1]);
}

#[test]
fn a_span_older_than_all_kept_tables_goes_to_the_oldest() {
    let history = history(&[Published::new(5, 0), Published::new(6, 1)], seconds(7), dual());
    let times = times(seconds(0), seconds(1));
    assert_eq!(history.owners(KEY, times, 2, seconds(7), || false).as_slice(), [0]);
}

#[test]
fn what_began_with_owners_that_failed_goes_to_those_that_took_their_place_too() {
    let failing = |failed: &str, is_merged: bool| {
        let mut history =
            history(&[0, 1, 2].map(|owner| Published::new(5 + u64::from(owner), owner)), seconds(8), dual());
        if is_merged {
            history.merge_closest();
        }
        // Two tables were built while they failed.
        for _ in 0..2 {
            history.note_failed(|endpoint| failed.contains(&*endpoint.identity));
        }
        aimed(history)
    };
    let of = |history: &History, start: u64| {
        history.owners(KEY, times(start, start), 3, seconds(8), || false).as_slice().to_vec()
    };
    let early = seconds(5) + 1;
    assert_eq!(of(&failing("", false), early), [0]);
    assert_eq!(of(&failing("a", false), early), [1, 0]);
    assert_eq!(of(&failing("ab", false), early), [2, 1, 0], "the next one failed as well");
    assert_eq!(of(&failing("abc", false), early), [3, 2, 1, 0]);
    assert_eq!(of(&failing("b", false), early), [0], "it owned nothing when the trace began");
    assert_eq!(of(&failing("a", false), seconds(0)), [1, 0], "the trace is older than all tables");
    assert_eq!([of(&failing("", true), early), of(&failing("a", true), early)], [vec![1, 0], vec![2, 1, 0]]);
}

#[test]
fn a_record_without_an_owner_that_takes_records_goes_to_the_current_one() {
    let mut history = history(&[Published::new(0, 0)], seconds(5), dual());
    history.aim(|_| None);
    let times = times(seconds(1), seconds(1));
    assert_eq!(history.owners(KEY, times, 2, seconds(5), || false).as_slice(), [2]);
}

#[test]
fn tables_are_forgotten_one_after_the_other() {
    let history = history(&[Published::new(0, 0), Published::new(1, 1)], seconds(3), dual());
    assert_eq!((history.next_end(), history.last_end()), (Some(seconds(1 + 45)), Some(seconds(3 + 45))));
    assert_eq!((history.len(), history.is_empty()), (2, false));
    let none = History::none(dual());
    assert_eq!((none.next_end(), none.last_end(), none.len(), none.is_empty()), (None, None, 0, true));
    assert_eq!((none.handoff(), History::none(sticky()).handoff()), (dual(), sticky()));
}

#[test]
fn a_table_that_was_replaced_before_it_began_ends_when_it_began() {
    // The clock was set back.
    let history = history(&[Published::new(9, 0)], seconds(3), dual());
    assert_eq!(kept(&history), [(9, 1)]);
}

#[test]
fn the_memory_is_that_of_the_owners_and_of_the_sets_of_keys() {
    let tables = || [Published::new(0, 0), Published::new(1, 1)];
    let owners = 2 * 2 * SLOTS as usize;
    assert_eq!(history(&tables(), seconds(3), dual()).memory(), owners);
    assert_eq!(history(&tables(), seconds(3), sticky()).memory(), owners + 2 * (2 << 20));
    assert_eq!(History::none(sticky()).memory(), 0);
}

#[test]
fn previous_owners_come_latest_first_once_each_and_without_the_current_one() {
    let tables: Vec<Published> = (1..).zip([0, 1, 0, 2, 3]).map(|(at, owner)| Published::new(at, owner)).collect();
    let mut history = history(&tables, seconds(6), dual());
    assert_eq!(history.previous(KEY, 2), [(3, seconds(6 + 45)), (0, seconds(4 + 45)), (1, seconds(3 + 45))]);
    history.aim(|endpoint| Some(letter(&endpoint.identity)).filter(|letter| *letter != 3));
    assert_eq!(history.previous(KEY, 9).first(), Some(&(2, seconds(5 + 45))), "one that takes no records is left out");
}

#[test]
fn a_sticky_span_goes_to_the_oldest_owner_that_its_trace_can_have_begun_with() {
    let history = history(&[Published::new(0, 0), Published::new(1, 1), Published::new(2, 2)], seconds(3), sticky());
    let of = |key: &[u8], start: u64| {
        history.owners(key, times(start, seconds(9)), 2, seconds(3), || false).as_slice().to_vec()
    };
    assert_eq!(of(b"early", seconds(1) - 1), [0]);
    assert_eq!(of(b"with the first change", seconds(1)), [1]);
    assert_eq!(of(b"with the second change", seconds(2)), [2]);
    assert_eq!(of(b"late", seconds(4)), [2], "nothing is known of it");
    assert_eq!(of(b"early", seconds(4)), [0], "it is known to have begun before the first change");
    assert_eq!(of(b"with the first change", seconds(4)), [1]);
}

#[test]
fn the_two_neighbours_whose_ends_are_closest_are_merged() {
    // The tables end at 2, 4, .. 18, 19, 21, .. 33 s.
    let begins = |at: u64| if at < 10 { 2 * at } else { 2 * at - 1 };
    let tables: Vec<Published> = (0..17).map(|at| Published::new(begins(at), u16::try_from(at).unwrap())).collect();
    let history = history(&tables, seconds(33), dual());
    let expected = (1..=17).filter(|at| *at != 9).map(|at| (begins(at), if at == 10 { 2 } else { 1 }));
    assert_eq!(kept(&history), expected.collect::<Vec<_>>());
    let of = |start: u64| {
        let times = times(seconds(start), seconds(start));
        history.owners(KEY, times, 20, u64::MAX, || false).as_slice().to_vec()
    };
    assert_eq!(of(17)[..2], [9, 8], "both count for the time of both, the later one first");
    assert_eq!(of(16)[..3], [9, 8, 7], "from the beginning of the earlier one");
    assert_eq!(of(15)[..2], [7, 6], "before it neither counts");
    assert_eq!(of(19)[..3], [10, 9, 8]);
}

#[test]
fn tables_of_different_algorithms_are_not_merged() {
    let algorithm = |at: u64| if at.is_multiple_of(2) { Algorithm::SlotsV1 } else { Algorithm::OtelcolV3 };
    let table = |at: u64| Published { algorithm: algorithm(at), ..Published::new(at, u16::try_from(at).unwrap()) };
    let alternating: Vec<Published> = (0..17).map(table).collect();
    let oldest_dropped: Vec<(u64, usize)> = (2..=17).map(|end| (end, 1)).collect();
    assert_eq!(kept(&history(&alternating, seconds(17), dual())), oldest_dropped);
    let mut one_pair: Vec<Published> = (0..17).map(table).collect();
    one_pair[9].algorithm = algorithm(8);
    one_pair[10].algorithm = Algorithm::OtelcolV1;
    let merged: Vec<(u64, usize)> =
        (1..=17).filter(|end| *end != 9).map(|end| (end, if end == 10 { 2 } else { 1 })).collect();
    assert_eq!(kept(&history(&one_pair, seconds(17), dual())), merged);
}

#[test]
fn merged_tables_know_the_keys_of_both() {
    let tables: Vec<Published> = (0..3).map(|at| Published::new(at, u16::try_from(at).unwrap())).collect();
    let mut all = history(&tables, seconds(3), sticky());
    all.kept[0].note(b"older");
    all.kept[1].note(b"newer");
    all.kept[2].begun = None;
    all.merge_closest();
    let knows = |history: &History, key: &[u8]| history.kept[0].begun.as_ref().is_some_and(|begun| begun.contains(key));
    assert_eq!([&b"older"[..], b"newer", b"other"].map(|key| knows(&all, key)), [true, true, false]);
    all.merge_closest();
    assert_eq!((all.len(), knows(&all, b"older")), (1, true), "the table that was replaced just now has no set yet");
}

#[test]
fn merged_tables_end_by_discovery_only_if_both_do() {
    let by_discovery = |older: bool, newer: bool| {
        let mut merged = history(&[Published::new(0, 0), Published::new(1, 1)], seconds(2), dual());
        (merged.kept[0].by_discovery, merged.kept[1].by_discovery) = (older, newer);
        merged.merge_closest();
        merged.kept[0].by_discovery
    };
    assert!(by_discovery(true, true));
    assert_eq!([by_discovery(true, false), by_discovery(false, true), by_discovery(false, false)], [false; 3]);
}

#[test]
fn each_slot_of_merged_tables_has_its_latest_owners_once() {
    let endpoints = endpoints("abcdef");
    let layer = |owners: &[u16]| Layer {
        algorithm: Algorithm::SlotsV1,
        owners: owners.into(),
        endpoints: Arc::clone(&endpoints),
        targets: Box::default(),
        failed: [false; 6].into(),
    };
    let of = |layers: &[&[u16]]| -> Vec<Vec<String>> {
        let layers = united(layers.iter().map(|owners| layer(owners)).collect());
        let name = |layer: &Layer, owner: &u16| layer.endpoints[usize::from(*owner)].identity.to_string();
        layers.iter().map(|layer| layer.owners.iter().map(|owner| name(layer, owner)).collect()).collect()
    };
    assert_eq!(of(&[&[1, 1], &[1, 1]]), [["b", "b"]]);
    assert_eq!(of(&[&[1, 0], &[1, 2]]), [["b", "a"], ["b", "c"]]);
    assert_eq!(
        of(&[&[0, 5], &[1, 5], &[2, 5], &[3, 4], &[4, 4], &[0, 4]]),
        [["a", "f"], ["b", "e"], ["c", "f"], ["d", "f"], ["e", "f"]],
        "one more than a record can have"
    );
    assert!(united(Vec::new()).is_empty());
}

#[test]
fn merged_tables_have_the_address_of_the_later_one() {
    let layer = |names: &str, port: u16, owners: &[u16]| Layer {
        algorithm: Algorithm::SlotsV1,
        owners: owners.into(),
        endpoints: endpoints(names)
            .iter()
            .map(|it| Endpoint { address: Some(([127, 0, 0, 9], port).into()), ..it.clone() })
            .collect(),
        targets: Box::default(),
        failed: names.chars().map(|name| name == 'b' && port == 1).collect(),
    };
    let merged = united(vec![layer("bc", 2, &[0, 1]), layer("abc", 1, &[0, 1])]);
    assert!(merged.iter().all(|layer| *layer.failed == [true, false, false]), "b, c, a: what failed stays noted");
    let shown = |layer: &Layer| -> Vec<(String, Option<u16>)> {
        let backend = |owner: &u16| &layer.endpoints[usize::from(*owner)];
        let port = |backend: &Endpoint| backend.address.map(|address| address.port());
        layer.owners.iter().map(backend).map(|it| (it.identity.to_string(), port(it))).collect()
    };
    let b_and_c = vec![("b".to_owned(), Some(2)), ("c".to_owned(), Some(2))];
    let a_and_b = vec![("a".to_owned(), Some(1)), ("b".to_owned(), Some(2))];
    assert_eq!(merged.iter().map(shown).collect::<Vec<_>>(), [b_and_c, a_and_b]);
}

#[test]
fn only_backends_with_slots_are_kept_as_targets() {
    let history = history(&[Published::new(0, 3), Published::new(1, 1)], seconds(2), dual());
    let names: Vec<String> = history.owning().iter().map(|it| it.identity.to_string()).collect();
    assert_eq!(names, ["b", "d"], "the later table comes first");
}

#[test]
fn owners_that_a_merged_table_leaves_out_are_counted() {
    // The first tables follow each other most closely, so that five of them become one.
    let close = (0..6_u16).map(|at| Published { began: BEGIN + u64::from(at), ..Published::new(0, at) });
    let apart = (6..21_u16).map(|at| Published::new(10 * u64::from(at), 30 + at));
    let tables: Vec<Published> = close.chain(apart.map(|it| Published { owner: 6, ..it })).collect();
    let handoff = Handoff { window: Duration::from_secs(600), skew: Duration::from_secs(600), ..dual() };
    let history = history(&tables, seconds(210), handoff);
    assert_eq!((history.len(), history.kept[0].layers.len()), (MOST_KEPT, MOST_TARGETS + 1));
    let owners = history.kept[0].layers.iter().map(|layer| layer.target(KEY)).collect::<Vec<_>>();
    assert_eq!(owners, [4, 3, 2, 1, 0]);
    let times = times(BEGIN + 1, seconds(1));
    let owners = history.owners(KEY, times, 9, seconds(210), || false);
    assert_eq!((owners.split(), owners.left_out), ((4, &[3, 2, 1][..]), 1));
}

#[test]
fn tables_are_merged_until_they_have_room() {
    const LAYER: usize = 2 * SLOTS as usize;
    let tables = || [0, 1, 2, 3, 4, 5].map(|owner| Published::new(owner.into(), owner));
    let within = |handoff: Handoff, room: usize| {
        let mut history = history(&tables(), seconds(6), handoff);
        history.shrink_to(room);
        (history.len(), history.memory())
    };
    let all = 6 * LAYER;
    assert_eq!(within(dual(), all), (6, all));
    assert_eq!(within(dual(), all - 1), (1, 5 * LAYER), "each table has another owner, so merging frees little");
    assert_eq!(within(dual(), 4 * LAYER), (1, 4 * LAYER));
    assert_eq!(within(sticky(), all + 6 * Begun::BYTES), (6, all + 6 * Begun::BYTES));
    assert_eq!(within(sticky(), all + 3 * Begun::BYTES), (3, all + 3 * Begun::BYTES));
    assert_eq!(within(sticky(), all), (1, 4 * LAYER), "a table without its keys is better than no room for requests");
}
