//! A trace stays whole: the rules are checked on tables, with replicas that learn of changes at different times.

mod kept;
mod replicas;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use super::*;
use crate::ring::{Base, Overlay, Table, members_of};

const SECOND: u64 = 1_000_000_000;
const WINDOW: u64 = 30 * SECOND;

/// When the tests begin, in nanoseconds since the Unix epoch.
const BEGIN: u64 = 1_800_000_000 * SECOND;

fn dual() -> Handoff {
    Handoff { mode: HandoffMode::Dual, window: Duration::from_secs(30), skew: Duration::from_secs(10) }
}

fn endpoint(name: &str) -> Endpoint {
    let port = 4000 + name.bytes().map(u16::from).sum::<u16>();
    Endpoint::new(name, Some(([127, 0, 0, 1], port).into()))
}

fn endpoints(names: &str) -> Endpoints {
    let mut names: Vec<char> = names.chars().collect();
    names.sort_unstable();
    names.iter().map(|name| endpoint(&name.to_string())).collect()
}

/// Builds tables, each base only once.
#[derive(Default)]
struct Tables {
    bases: HashMap<String, Arc<Base>>,
    overlays: HashMap<(String, String), Overlay>,
    shared: HashMap<(String, String), Arc<Table>>,
}

impl Tables {
    /// A table of backends with these letters, of which some are away.
    fn table(&mut self, names: &str, away: &str) -> Table {
        let endpoints = endpoints(names);
        let base = self.bases.entry(names.to_owned()).or_insert_with(|| {
            Arc::new(Base::build_with(Algorithm::SlotsV1, &members_of(&endpoints)).expect("placeable"))
        });
        let overlay = self.overlays.entry((names.to_owned(), away.to_owned())).or_insert_with(|| {
            let is_away = |(_, endpoint): &(u16, &Endpoint)| away.contains(&*endpoint.identity);
            base.overlay(&(0..).zip(endpoints.iter()).filter(is_away).map(|(at, _)| at).collect())
        });
        Table::new(1, Arc::clone(base), overlay.clone(), endpoints)
    }

    /// The same table each time.
    fn shared(&mut self, names: &str, away: &str) -> Arc<Table> {
        let key = (names.to_owned(), away.to_owned());
        if !self.shared.contains_key(&key) {
            let table = Arc::new(self.table(names, away));
            self.shared.insert(key.clone(), table);
        }
        Arc::clone(&self.shared[&key])
    }

    fn after(&mut self, before: &Table, at: u64, names: &str) -> Table {
        self.table(names, "").replacing(before, at, dual(), &BTreeSet::new())
    }
}

fn key(number: u64) -> [u8; 16] {
    u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes()
}

/// The times of a span where both clocks say the same.
fn times(start: u64, arrival: u64) -> Times {
    Times { start, arrival: Moment { unix: arrival, steady: arrival } }
}

/// The names of the owners that get a span which has a parent, the one that counts first.
fn names(table: &Table, key: &[u8], start: u64, arrival: u64) -> Vec<String> {
    names_of(table, key, times(start, arrival), false)
}

fn names_of(table: &Table, key: &[u8], times: Times, is_root: bool) -> Vec<String> {
    let owners = table.owners(key, times, || is_root);
    let (counting, copies) = owners.split();
    let name = |target: &u16| table.targets()[usize::from(*target)].identity.to_string();
    [counting].iter().chain(copies).map(name).collect()
}

/// A key that one backend owned before a change, and another one owns since.
fn moved_key(before: &Table, after: &Table) -> ([u8; 16], String, String) {
    let name = |table: &Table, key: &[u8]| table.backends()[table.owner(key) as usize].identity.to_string();
    let mut keys = (1..).map(key);
    let key = keys.find(|key| name(before, key) != name(after, key)).expect("some keys move");
    (key, name(before, &key), name(after, &key))
}

#[test]
fn a_span_goes_where_its_trace_can_have_begun() {
    let mut tables = Tables::default();
    let before = tables.table("abc", "").with_handoff(dual());
    let at = BEGIN;
    let after = tables.after(&before, at, "abcd");
    let (key, old, new) = moved_key(&before, &after);
    let both = vec![new.clone(), old.clone()];
    let second_after = |seconds: u64| at + seconds * SECOND;
    let of = |start: u64, arrival: u64| names(&after, &key, start, arrival);
    assert_eq!(of(at - 1, at + 1), std::slice::from_ref(&old), "it started before the change");
    assert_eq!(of(at - 5 * SECOND, second_after(4)), std::slice::from_ref(&old));
    assert_eq!(of(at, second_after(1)), both, "it started with the change");
    assert_eq!(of(at + WINDOW - 1, second_after(31)), both);
    assert_eq!(of(at + WINDOW, second_after(31)), [new], "its trace began after the change");
    assert_eq!(of(at - SECOND, second_after(14)), [old], "15 s after its start it is not late");
    assert_eq!(of(at - SECOND, second_after(14) + 1), both, "it is late: also the owners since");
    assert_eq!(of(0, second_after(40)), both, "its start is unknown");
    assert_eq!(of(second_after(3600), second_after(1)), both, "a start in the future is now");
    let owners = |start| after.owners(&key, times(start, second_after(1)), || false).decision;
    assert_eq!([at - 1, at].map(owners), [Decision::Previous, Decision::Both]);
    let stayed =
        (1..).map(self::key).find(|key| names(&after, key, at, second_after(1)).len() == 1).expect("some stay");
    assert_eq!(after.owners(&stayed, times(at, at), || false).decision, Decision::Unmoved);
}

#[test]
fn a_root_span_that_starts_when_all_replicas_know_of_the_change_goes_only_to_the_new_owner() {
    let mut tables = Tables::default();
    let before = tables.table("abc", "").with_handoff(dual());
    let after = tables.after(&before, BEGIN, "abcd");
    let (key, old, new) = moved_key(&before, &after);
    let both = vec![new.clone(), old.clone()];
    let root = |start: u64, arrival: u64| names_of(&after, &key, times(start, arrival), true);
    let known = BEGIN + 10 * SECOND;
    assert_eq!(root(BEGIN - 1, BEGIN + SECOND), [old], "it started before the change");
    assert_eq!(root(known - 1, known + SECOND), both, "a replica may not know yet");
    assert_eq!(root(known, known + SECOND), std::slice::from_ref(&new));
    assert_eq!(names(&after, &key, known, known + SECOND), both, "its trace can have begun before");
    assert_eq!(root(known, known + 20 * SECOND), [new], "it is late");
    assert_eq!(root(0, known + SECOND), both, "its start is unknown");
    let at_known = times(known, known + SECOND);
    assert_eq!(after.owners(&key, at_known, || true).decision, Decision::Current);
    let never = || panic!("the span must not be read");
    let stayed = (1..).map(self::key).find(|key| after.owners(key, at_known, || false).decision == Decision::Unmoved);
    assert_eq!(after.owners(&stayed.unwrap(), at_known, never).decision, Decision::Unmoved);
    assert_eq!(after.owners(&key, Times { start: known - 1, ..at_known }, never).decision, Decision::Both);
    let none = Handoff { skew: Duration::from_secs(30), ..dual() };
    let after = tables.table("abcd", "").replacing(&before, BEGIN, none, &BTreeSet::new());
    let last = BEGIN + WINDOW - 1;
    assert_eq!(names_of(&after, &key, times(last, last + SECOND), true), both, "none is spared");
}

#[test]
fn no_root_span_is_spared_after_a_change_that_each_replica_notices_for_itself() {
    let mut tables = Tables::default();
    let spared = |before: &Table, after: &Table| {
        let (key, ..) = moved_key(before, after);
        let (start, arrival) = (BEGIN + 20 * SECOND, BEGIN + 21 * SECOND);
        names_of(after, &key, times(start, arrival), true).len() < names(after, &key, start, arrival).len()
    };
    let d: BTreeSet<Arc<str>> = ["d".into()].into();
    let fails = |tables: &mut Tables, names: &str, before: &Table, at: u64| {
        tables.table(names, "d").replacing(before, at, dual(), &d)
    };
    let healthy = tables.table("abcd", "").with_handoff(dual());
    let before = fails(&mut tables, "abcd", &healthy, BEGIN - 20 * SECOND);
    let returned = tables.table("abcd", "").replacing(&before, BEGIN, dual(), &BTreeSet::new());
    assert!(!spared(&before, &returned), "it answers again");
    let joined = fails(&mut tables, "abcde", &before, BEGIN);
    assert!(spared(&before, &joined), "discovery reports one more, and what fails has not changed");
    let left = tables.table("abc", "").replacing(&healthy, BEGIN, dual(), &BTreeSet::new());
    assert!(spared(&healthy, &left));
    let left_and_failed = tables.table("abc", "").replacing(&before, BEGIN, dual(), &d);
    assert!(left_and_failed.history().kept.iter().all(|kept| !kept.by_discovery), "its failure is noticed by each");
    let other: Endpoints = endpoints("abcd");
    let other =
        Table::of(2, Algorithm::OtelcolV2, &other).unwrap().replacing(&healthy, BEGIN, dual(), &BTreeSet::new());
    assert!(!spared(&healthy, &other), "a reload has another algorithm");
}

#[test]
fn what_began_with_a_backend_that_failed_goes_to_its_substitute_too_when_it_is_back() {
    let d: BTreeSet<Arc<str>> = ["d".into()].into();
    let sticky = Handoff { mode: HandoffMode::Sticky, ..dual() };
    for (handoff, expected) in [(dual(), &["d", "substitute"][..]), (sticky, &["substitute"])] {
        let mut tables = Tables::default();
        let healthy = tables.table("abcd", "").with_handoff(handoff);
        let fails = tables.table("abcd", "d").replacing(&healthy, BEGIN, handoff, &d);
        let (key, _, substitute) = moved_key(&healthy, &fails);
        let back = tables.table("abcd", "").replacing(&fails, BEGIN + 5 * SECOND, handoff, &BTreeSet::new());
        let (start, arrival) = (BEGIN - SECOND, BEGIN + 7 * SECOND);
        assert_eq!(names(&fails, &key, start, BEGIN + SECOND), std::slice::from_ref(&substitute), "{handoff:?}");
        let goes: Vec<_> = names(&back, &key, start, arrival);
        let goes: Vec<_> = goes.iter().map(|it| if *it == substitute { "substitute" } else { it }).collect();
        assert_eq!(goes, expected, "another replica may have sent spans of the trace to the substitute");
        // A member that joins meanwhile changes nothing of this.
        let joined = tables.table("abcde", "").replacing(&back, BEGIN + 9 * SECOND, handoff, &BTreeSet::new());
        let still = names(&joined, &key, start, BEGIN + 10 * SECOND);
        assert!(still.contains(&substitute) && still.len() == expected.len(), "{still:?}");
    }
}

#[test]
fn a_clock_that_is_set_changes_neither_where_spans_go_nor_when_a_table_is_forgotten() {
    let mut tables = Tables::default();
    let before = tables.table("abc", "").with_handoff(dual());
    let after = tables.after(&before, BEGIN, "abcd");
    let (key, old, new) = moved_key(&before, &after);
    for hours in [-1, 0, 1] {
        let set = |time: u64| time.checked_add_signed(hours * 3600 * 1_000_000_000).unwrap();
        let of = |start: u64, arrival: u64| {
            let arrival = Moment { unix: set(arrival), steady: arrival };
            names_of(&after, &key, Times { start: set(start), arrival }, false)
        };
        assert_eq!(of(BEGIN - SECOND, BEGIN + SECOND), std::slice::from_ref(&old), "set by {hours} h");
        assert_eq!(of(BEGIN + SECOND, BEGIN + 2 * SECOND), [new.clone(), old.clone()]);
        assert_eq!(of(BEGIN + WINDOW, BEGIN + WINDOW + SECOND), std::slice::from_ref(&new));
    }
    assert_eq!(after.history().next_end(), Some(BEGIN + WINDOW + 15 * SECOND));
}

#[test]
fn a_backend_that_left_stays_a_target_until_its_table_is_forgotten() {
    let mut tables = Tables::default();
    let before = tables.table("abcd", "").with_handoff(dual());
    let after = tables.after(&before, BEGIN, "abc");
    let listed = |table: &Table| table.targets().iter().map(|it| it.identity.to_string()).collect::<Vec<_>>();
    assert_eq!(listed(&after), ["a", "b", "c", "d"]);
    assert_eq!((after.target("d"), after.position("d"), after.is_away(3)), (Some(3), None, false));
    assert_eq!(after.history().next_end(), Some(BEGIN + WINDOW + 15 * SECOND));
    let later = tables.after(&after, BEGIN + WINDOW + 15 * SECOND - 1, "abc");
    assert_eq!((listed(&later).len(), later.history().len()), (4, 1));
    let forgotten = tables.after(&later, BEGIN + WINDOW + 15 * SECOND, "abc");
    assert_eq!((listed(&forgotten).len(), forgotten.history().is_empty()), (3, true));
    assert_eq!(before.placement_fingerprint(), tables.table("abcd", "").placement_fingerprint());
    assert_eq!(after.placement_fingerprint(), forgotten.placement_fingerprint(), "windows do not count");
}

#[test]
fn a_backend_that_left_and_fails_gets_nothing() {
    let mut tables = Tables::default();
    let before = tables.table("abcd", "").with_handoff(dual());
    let lost: BTreeSet<Arc<str>> = ["d".into()].into();
    let after = tables.table("abc", "").replacing(&before, BEGIN, dual(), &lost);
    let (key, old, new) = moved_key(&before, &after);
    assert_eq!(old, "d");
    assert_eq!(names(&after, &key, BEGIN - 1, BEGIN + 1), [new], "to its owner of now");
    assert!(after.is_away(3) && after.lost().count() == 1);
}

#[test]
fn each_backend_that_left_and_fails_gets_nothing_and_members_that_all_fail_are_tried() {
    let mut tables = Tables::default();
    let before = tables.table("abcde", "").with_handoff(dual());
    let mut away = |away: &str, lost: &str| {
        let lost = lost.chars().map(|name| name.to_string().into()).collect();
        let after = tables.table("abc", away).replacing(&before, BEGIN, dual(), &lost);
        [0, 1, 2, 3, 4].map(|target| after.is_away(target))
    };
    assert_eq!(away("", "de"), [false, false, false, true, true]);
    assert_eq!(away("abc", "abcde"), [false, false, false, true, true], "no other member could take their slots");
}

#[test]
fn a_member_whose_slots_others_have_takes_what_began_with_it_unless_it_fails() {
    let mut tables = Tables::default();
    let before = tables.table("abcd", "").with_handoff(dual());
    for fails in [false, true] {
        let lost: BTreeSet<Arc<str>> = if fails { ["d".into()].into() } else { BTreeSet::new() };
        let after = tables.table("abcd", "d").replacing(&before, BEGIN, dual(), &lost);
        let (key, old, new) = moved_key(&before, &after);
        assert_eq!((&*old, after.is_away(3)), ("d", fails));
        let expected = if fails { new } else { old };
        assert_eq!(names(&after, &key, BEGIN - 1, BEGIN + 1), [expected]);
    }
}

#[test]
fn a_backend_with_another_name_and_the_same_address_is_the_same() {
    let mut tables = Tables::default();
    let before = tables.table("abc", "").with_handoff(dual());
    let renamed: Endpoints = endpoints("abc")
        .iter()
        .map(|it| Endpoint { identity: format!("{}.example:4317", it.identity).into(), ..it.clone() })
        .collect();
    let base = Base::build(&members_of(&renamed)).unwrap();
    let after =
        Table::new(2, Arc::new(base), Overlay::default(), renamed).replacing(&before, BEGIN, dual(), &BTreeSet::new());
    assert_eq!(after.targets().len(), 3, "no backend is listed twice");
    for key in (1..500).map(key) {
        let old = format!("{}.example:4317", before.backends()[before.owner(&key) as usize].identity);
        let owners = names(&after, &key, BEGIN + SECOND, BEGIN + 2 * SECOND);
        assert!(owners.contains(&old) && owners.iter().collect::<BTreeSet<_>>().len() == owners.len(), "{owners:?}");
    }
}

#[test]
fn a_backend_that_is_listed_under_two_names_gets_a_record_once() {
    let twins = |names: &str| -> Endpoints {
        let all = endpoints(names);
        // `d` and `e` are one backend.
        let address = endpoint("d").address;
        let twin = |it: &Endpoint| match &*it.identity {
            "e" => Endpoint { address, ..it.clone() },
            _ => it.clone(),
        };
        all.iter().map(twin).collect()
    };
    let [before, after] = ["abcd", "abcde"].map(|names| Table::of(1, Algorithm::SlotsV1, &twins(names)).unwrap());
    let after = after.replacing(&before.with_handoff(dual()), BEGIN, dual(), &BTreeSet::new());
    let (mut once, mut twice) = (0, 0);
    for key in (1..2_000).map(key) {
        let names = names(&after, &key, BEGIN + SECOND, BEGIN + 2 * SECOND);
        match names.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["e"] => once += 1,
            ["e", "d"] => panic!("it would get the record twice"),
            [_, _] => twice += 1,
            _ => {}
        }
    }
    assert!(once > 0 && twice > 0, "keys moved from d to e, and from others: {once} and {twice}");
}

#[test]
fn owners_that_are_one_backend_count_once_and_the_decision_stays() {
    let mut owners = Owners { decision: Decision::Both, ..Owners::only(0) };
    (1..6).for_each(|target| owners.add(target));
    assert_eq!((owners.as_slice(), owners.left_out), (&[0, 1, 2, 3][..], 2));
    // 0 and 1 are one backend, and so are 2 and 3.
    let distinct = owners.distinct(|target| Some(target / 2));
    assert_eq!((distinct.as_slice(), distinct.decision, distinct.left_out), (&[0, 2][..], Decision::Both, 2));
}

#[test]
fn a_start_of_0_is_unknown_also_where_the_clock_is_set_to_1970() {
    let mut tables = Tables::default();
    let before = tables.table("abc", "").with_handoff(dual());
    let after = tables.after(&before, BEGIN, "abcd");
    let (key, old, new) = moved_key(&before, &after);
    let arrival = Moment { unix: 0, steady: BEGIN + 40 * SECOND };
    assert_eq!(names_of(&after, &key, Times { start: 0, arrival }, false), [new, old]);
}

#[test]
fn a_change_and_back_counts_all_owners_once() {
    let mut tables = Tables::default();
    let one = tables.table("abc", "").with_handoff(dual());
    let two = tables.after(&one, BEGIN, "abcd");
    let three = tables.after(&two, BEGIN + 2 * SECOND, "abc");
    let (key, old, new) = moved_key(&one, &two);
    let of = |start: u64| names(&three, &key, start, start + SECOND);
    assert_eq!(of(BEGIN - SECOND), std::slice::from_ref(&old));
    assert_eq!(of(BEGIN + SECOND), [old.clone(), new.clone()], "the current owner counts, also as one of before");
    assert_eq!(of(BEGIN + 3 * SECOND), [old.clone(), new]);
    assert_eq!(of(BEGIN + 33 * SECOND), [old]);
}

#[test]
fn without_a_window_and_in_the_immediate_mode_nothing_is_kept() {
    let mut tables = Tables::default();
    let before = tables.table("abc", "");
    let immediate = Handoff { mode: HandoffMode::Immediate, ..dual() };
    let after = tables.table("abcd", "").replacing(&before, BEGIN, immediate, &BTreeSet::new());
    assert!(after.history().is_empty() && after.targets().len() == 4);
    let same = tables.after(&before, BEGIN, "abc");
    assert!(same.history().is_empty(), "no slot has moved");
}

#[test]
fn sticky_spans_follow_their_trace_and_go_to_one_backend() {
    let mut tables = Tables::default();
    let sticky = Handoff { mode: HandoffMode::Sticky, ..dual() };
    let before = tables.table("abc", "").with_handoff(sticky);
    let after = tables.table("abcd", "").replacing(&before, BEGIN, sticky, &BTreeSet::new());
    let (known, old, new) = moved_key(&before, &after);
    assert_eq!(names(&after, &known, BEGIN + SECOND, BEGIN + SECOND), [new], "nothing is known of its trace");
    assert_eq!(names(&after, &known, BEGIN - SECOND, BEGIN + SECOND), std::slice::from_ref(&old));
    assert_eq!(
        names(&after, &known, BEGIN + SECOND, BEGIN + SECOND),
        std::slice::from_ref(&old),
        "its trace began before"
    );
    let later = tables.table("abcde", "").replacing(&after, BEGIN + 2 * SECOND, sticky, &BTreeSet::new());
    assert_eq!(names(&later, &known, BEGIN + 3 * SECOND, BEGIN + 3 * SECOND), [old], "also after a further change");
    let fail: BTreeSet<Arc<str>> = ["a".into(), "b".into(), "c".into()].into();
    let lost = tables.table("abcde", "abc").replacing(&after, BEGIN + 2 * SECOND, sticky, &fail);
    assert!(!"abc".contains(&*names(&lost, &known, BEGIN + 3 * SECOND, BEGIN + 3 * SECOND)[0]), "its owner is away");
}

#[test]
fn sticky_spans_stay_with_an_owner_that_lost_their_slot_and_has_it_again() {
    let mut tables = Tables::default();
    let sticky = Handoff { mode: HandoffMode::Sticky, ..dual() };
    let one = tables.table("abc", "").with_handoff(sticky);
    let two = tables.table("abcd", "").replacing(&one, BEGIN, sticky, &BTreeSet::new());
    let three = tables.table("abc", "").replacing(&two, BEGIN + 4 * SECOND, sticky, &BTreeSet::new());
    let (key, old, new) = moved_key(&one, &two);
    let of = |start: u64| names(&three, &key, start, start + 2 * SECOND);
    assert_eq!(of(BEGIN + SECOND), [new], "all that is known of its trace began between the changes");
    assert_eq!(of(BEGIN - SECOND), std::slice::from_ref(&old));
    assert_eq!(of(BEGIN + SECOND), [old], "its trace began before both changes");
}

#[test]
fn beyond_16_tables_the_closest_are_merged_and_no_window_closes_early() {
    let mut tables = Tables::default();
    let mut table = tables.table("abc", "").with_handoff(dual());
    let mut owners: Vec<(u64, Table)> = Vec::new();
    for (change, names) in (0..40_u64).zip(["abcd", "abc", "abce", "abde"].into_iter().cycle()) {
        let at = BEGIN + change * SECOND / 2;
        owners.push((at, tables.table(names, "")));
        table = tables.after(&table, at, names);
    }
    assert_eq!(table.history().len(), MOST_KEPT);
    let end = BEGIN + 20 * SECOND;
    for key in (1..300).map(key) {
        for (at, was) in &owners {
            // A trace began just after that change. A later span of it must reach the same backend, as far as a record can
            // go to so many.
            let began_with = was.backends()[was.owner(&key) as usize].identity.to_string();
            let (start, arrival) = (at + 25 * SECOND, at + 26 * SECOND);
            let all = names(&table, &key, start.max(end), arrival.max(end));
            assert!(all.contains(&began_with) || all.len() == MOST_TARGETS, "{all:?} {began_with}");
            assert!(all.len() <= MOST_TARGETS);
        }
    }
    let mut many = tables.table("abcdefgh", "").with_handoff(dual());
    for (change, gone) in "abcdefg".chars().enumerate() {
        let left: String = "abcdefgh".chars().filter(|name| *name != gone).collect();
        many = tables.after(&many, BEGIN + change as u64 * SECOND, &left);
    }
    let left_out = |key: [u8; 16]| many.owners(&key, times(BEGIN + 7 * SECOND, BEGIN + 8 * SECOND), || false).left_out;
    assert!((1..2_000).map(key).map(left_out).all(|left_out| left_out <= 4));
}
