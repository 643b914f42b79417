//! Tests of backends that discovery does not list: how long they are held, and what becomes of stable names.

use super::*;
use crate::ring::Table;

pub(super) const ALL: [&str; 4] = ["a", "b", "c", "d"];

/// A pool of backends with stable names.
pub(super) fn named() -> Rig {
    let mut rig = Rig::new(Config::default());
    rig.discover_names(&ALL, 1);
    rig
}

/// Builds the table of the rig's view.
fn table(rig: &Rig) -> Table {
    let view = rig.state.view().expect("there are members");
    let all = Table::of(1, Config::default().ring.algorithm, &view.endpoints).expect("the set must be placeable");
    let away = (0..).zip(all.backends()).filter(|(_, it)| view.away.contains(&it.identity)).map(|(at, _)| at);
    let overlay = all.base().overlay(&away.collect());
    Table::new(1, Arc::clone(all.base()), overlay, view.endpoints)
}

/// Asserts that only slots of `down` have another owner in `now` than in `before`, which has the same members.
fn only_its_slots_moved(before: &Table, now: &Table, down: &str) {
    assert_eq!(before.membership_fingerprint(), now.membership_fingerprint());
    let down = before.position(down).map(u32::from).expect("a member");
    for slot in 0..before.slots() {
        let (was, is) = (before.owner_of_slot(slot), now.owner_of_slot(slot));
        assert!((was == is || was == down) && is != down, "slot {slot}, of {was}, is at {is}");
    }
}

#[test]
fn stable_name_that_is_absent_gives_away_its_slots_only_and_gets_them_back() {
    let mut rig = named();
    let before = table(&rig);
    assert!(!rig.discover_names(&["a", "c", "d"], 1), "nothing moves yet");
    assert_eq!((rig.wait_for_timer(), rig.away()), (SECOND * 5, vec!["b".to_owned()]));
    assert_eq!(rig.members(), ALL);
    assert!(rig.lost().is_empty(), "it still takes what began with it");
    only_its_slots_moved(&before, &table(&rig), "b");
    assert_eq!(rig.state_of("b"), Some(BackendState::Draining));
    rig.wait(SECOND * 50);
    assert!(rig.discover_names(&ALL, 2), "it is back with another address");
    assert_eq!((rig.away().len(), rig.timer), (0, None));
    assert_eq!(table(&rig).placement_fingerprint(), before.placement_fingerprint());
}

#[test]
fn stable_name_that_was_ejected_first_stays_a_member_too() {
    let mut rig = named();
    let before = table(&rig);
    assert!(rig.see("b", HealthKind::Refused));
    assert!(!rig.discover_names(&["a", "c", "d"], 1), "its slots are at others already");
    rig.wait(SECOND * 59);
    assert_eq!((rig.members().len(), rig.away()), (4, vec!["b".to_owned()]));
    only_its_slots_moved(&before, &table(&rig), "b");
    rig.probes.clear();
    rig.apply(Input::Timer);
    assert!(!rig.discover_names(&ALL, 2) || rig.away() == ["b"], "it has to answer first");
    let ports: Vec<u16> = rig.probes.iter().map(|probe| probe.address.port()).collect();
    assert_eq!(ports, [2], "it must be probed at once");
    assert!(rig.answer("b", true) && rig.away().is_empty());
    assert_eq!(table(&rig).placement_fingerprint(), before.placement_fingerprint());
}

/// How long a stable name stays that discovery ceases to list without a word: 60 s and the time for which tables are kept.
const STAYS: Duration = Duration::from_secs(105);

/// A pod whose `preStop` takes 45 s and its shutdown 30 s, and whose successor is ready 29 s later.
#[test]
fn no_slot_of_a_pod_that_is_up_moves_while_another_one_ends_slowly_and_starts_again() {
    for source in ["srv", "k8s"] {
        let mut rig = named();
        let before = table(&rig);
        for second in 0..104 {
            match source {
                // The pod leaves DNS when it begins to end.
                "srv" => drop(rig.discover_names(&["a", "c", "d"], 1)),
                // EndpointSlices list it until it is gone.
                _ if second < 75 => drop(rig.apply(draining("b"))),
                _ => drop(rig.discover_names(&["a", "c", "d"], 1)),
            }
            rig.wait(SECOND);
            assert_eq!(rig.members(), ALL, "{source}, second {second}");
            assert!(rig.timer.is_none_or(|timer| timer > rig.now), "{source}, second {second}");
        }
        assert_eq!(rig.away(), ["b"], "{source}");
        only_its_slots_moved(&before, &table(&rig), "b");
        assert!(rig.discover_names(&ALL, 2), "{source}");
        assert_eq!(table(&rig).placement_fingerprint(), before.placement_fingerprint(), "{source}");
    }
}

#[test]
fn stable_name_that_drained_stays_for_a_minute_after_it_is_no_longer_listed() {
    let mut rig = named();
    rig.apply(draining("b"));
    assert_eq!(rig.timer, None, "nothing is due while it is listed");
    assert_eq!(rig.state.stays_for("b"), None, "nobody knows how long that is");
    rig.wait(SECOND * 600);
    assert_eq!((rig.members().len(), rig.away()), (4, vec!["b".to_owned()]));
    rig.discover_names(&["a", "c", "d"], 1);
    assert_eq!(rig.state.stays_for("b"), Some(SECOND * 660));
    assert_eq!((rig.wait_for_timer(), rig.members().len()), (SECOND * 60, 3));
}

#[test]
fn without_kept_tables_stable_names_stay_for_a_minute() {
    let mut config = Config::default();
    config.ring.handoff.mode = crate::settings::HandoffMode::Immediate;
    let mut rig = Rig::new(config);
    rig.discover_names(&ALL, 1);
    rig.discover_names(&["a", "c", "d"], 1);
    rig.wait_for_timer();
    assert_eq!((rig.wait_for_timer(), rig.members().len()), (SECOND * 55, 3));
}

#[test]
fn stable_name_that_does_not_return_is_removed() {
    for ejected in [false, true] {
        let mut rig = named();
        rig.discover_names(&["a", "c", "d"], 1);
        if ejected {
            rig.see("b", HealthKind::Refused);
        }
        rig.take_notes();
        rig.wait(SECOND * 5);
        assert_eq!(rig.take_notes(), [Note::Away("b".into())]);
        rig.wait(STAYS - SECOND * 6);
        assert_eq!(rig.members().len(), 4, "ejected: {ejected}");
        assert!(rig.wait(SECOND), "ejected: {ejected}");
        assert_eq!(rig.members(), ["a", "c", "d"]);
    }
}

#[test]
fn longer_hold_down_holds_stable_names_as_long() {
    let mut rig = Rig::new(Config { hold_down: SECOND * 120, ..Config::default() });
    rig.discover_names(&ALL, 1);
    rig.discover_names(&["a", "c", "d"], 1);
    assert_eq!(rig.wait_for_timer(), SECOND * 120);
    assert_eq!(rig.members(), ["a", "c", "d"]);
}

#[test]
fn absent_stable_names_do_not_count_when_too_many_fail() {
    let mut rig = named();
    rig.discover_names(&["a", "b"], 1);
    rig.wait(SECOND * 9);
    assert!(rig.away().is_empty(), "an answer that halves the pool is doubted for twice the time");
    rig.wait(SECOND);
    assert_eq!((rig.away().join(","), rig.state.is_panicking()), ("c,d".to_owned(), false));
    rig.see("a", HealthKind::Refused);
    assert_eq!((rig.away().join(","), rig.state.is_panicking()), ("a,c,d".to_owned(), false));
    rig.see("b", HealthKind::Refused);
    assert_eq!((rig.away().join(","), rig.state.is_panicking()), ("c,d".to_owned(), true), "both listed ones fail");
}

#[test]
fn rolling_restart_with_stable_names_moves_no_slot_of_a_backend_that_is_up() {
    let mut rig = named();
    let before = table(&rig);
    for (round, down) in (2_u16..).zip(["d", "c", "b", "a"]) {
        let up: Vec<&str> = ALL.into_iter().filter(|host| *host != down).collect();
        let is_ejected_first = round % 2 == 0;
        if is_ejected_first {
            rig.see(down, HealthKind::Refused);
        }
        rig.discover_names(&up, round - 1);
        for second in 0..25 {
            let away: &[&str] = if is_ejected_first || second >= 5 { &[down] } else { &[] };
            assert_eq!(
                (rig.members().join(""), rig.away()),
                ("abcd".to_owned(), Vec::from_iter(away.iter().map(ToString::to_string)))
            );
            rig.wait(SECOND);
        }
        only_its_slots_moved(&before, &table(&rig), down);
        rig.probes.clear();
        rig.discover_names(&ALL, round);
        if is_ejected_first {
            rig.answer(down, true);
        }
        assert_eq!(rig.members(), ALL);
        assert_eq!(table(&rig).placement_fingerprint(), before.placement_fingerprint(), "all is as before");
    }
}

/// One pod after the other restarts. Its failure, its absence from discovery and its return are noticed in any order that
/// can happen, and its readiness flaps.
#[test]
fn no_slot_of_a_pod_that_is_up_moves_in_random_restarts() {
    let mut random = fastrand::Rng::with_seed(18);
    let (mut ejected_first, mut away) = (0, 0);
    let before = table(&named());
    // Tables depend on nothing but the members, which are the same all the time, and on those that are away.
    let mut checked = std::collections::BTreeSet::new();
    for restart in 0..1_000 {
        let mut rig = named();
        let down = *random.choice(&ALL).unwrap();
        let up: Vec<&str> = ALL.into_iter().filter(|host| *host != down).collect();
        let mut port = 1;
        for _ in 0..random.usize(3..12) {
            match random.u8(0..6) {
                0 => drop(rig.see(down, HealthKind::Refused)),
                1 => drop(rig.discover_names(&up, 1)),
                2 => drop(rig.apply(draining(down))),
                // It is back, perhaps not for long.
                3 => {
                    port += u16::from(random.bool());
                    rig.probes.clear();
                    let all = endpoints(&ALL, 1).iter().map(|it| at_port(it, down, port)).collect();
                    rig.apply(Input::Discovered(all));
                }
                4 if !rig.probes.is_empty() => drop(rig.answer(down, random.bool())),
                _ => drop(rig.wait(Duration::from_millis(random.u64(0..4_500)))),
            }
            assert_eq!(rig.members(), ALL, "restart {restart}: all stay members");
            let is_away = rig.away();
            assert!(
                is_away.iter().all(|host| host == down),
                "restart {restart}: {is_away:?} of which only {down} is down"
            );
            ejected_first += u32::from(!is_away.is_empty() && rig.state_of(down) == Some(BackendState::Ejected));
            away += u32::from(!is_away.is_empty());
            if checked.insert(is_away) && !rig.away().is_empty() {
                only_its_slots_moved(&before, &table(&rig), down);
            }
        }
    }
    assert_eq!(checked.len(), 5, "each of them was away");
    assert!(ejected_first > 1_000 && away > ejected_first + 500, "{ejected_first} {away}");
}

/// All backends with stable names, of which one drains.
fn draining(down: &str) -> Input {
    let drains = |it: &Endpoint| Endpoint { is_draining: &*it.identity == down, ..at_port(it, down, 1) };
    Input::Discovered(endpoints(&ALL, 1).iter().map(drains).collect())
}

/// The same backend with a stable name, at another port if it is `moved`.
fn at_port(endpoint: &Endpoint, moved: &str, port: u16) -> Endpoint {
    let port = if &*endpoint.identity == moved { port } else { 1 };
    Endpoint { is_stable_name: true, address: Some(([127, 0, 0, 1], port).into()), ..endpoint.clone() }
}

/// Returns these backends, marked as missing where there is a `?` after the name.
fn marked(hosts: &[&str]) -> Input {
    let names: Vec<&str> = hosts.iter().map(|host| host.trim_end_matches('?')).collect();
    let mark = |(endpoint, host): (&Endpoint, &&str)| Endpoint { is_missing: host.ends_with('?'), ..endpoint.clone() };
    Input::Discovered(endpoints(&names, 1).iter().zip(hosts).map(mark).collect())
}

#[test]
fn missing_backend_is_held_until_discovery_confirms_its_absence() {
    for ejected in [false, true] {
        let mut rig = Rig::with(&ALL);
        assert!(rig.apply(marked(&["a", "b?", "c", "d"])).is_none(), "nothing moves");
        assert_eq!((rig.state_of("b"), rig.take_notes()), (Some(BackendState::Draining), vec![Note::Held("b".into())]));
        if ejected {
            rig.see("b", HealthKind::Refused);
        }
        rig.wait(SECOND * 30);
        assert_eq!(rig.members(), ALL, "ejected: {ejected}");
        assert!(rig.discover(&["a", "c", "d"]), "the time counts from the first answer");
        assert_eq!(rig.members(), ["a", "c", "d"]);
    }
}

#[test]
fn confirmed_absence_is_still_held_for_the_rest_of_the_time() {
    let mut rig = Rig::with(&ALL);
    rig.apply(marked(&["a", "b?", "c", "d"]));
    rig.wait(SECOND);
    assert!(!rig.discover(&["a", "c", "d"]));
    assert_eq!((rig.wait_for_timer(), rig.members().len()), (SECOND * 4, 3));
}

#[test]
fn missing_backend_that_is_listed_again_stays() {
    let mut rig = Rig::with(&ALL);
    for _ in 0..9 {
        rig.apply(marked(&["a", "b?", "c", "d"]));
        rig.wait(SECOND * 3);
        assert!(!rig.discover(&ALL));
        rig.wait(SECOND * 3);
        assert_eq!((rig.members().len(), rig.state_of("b"), rig.timer), (4, Some(BackendState::Active), None));
    }
}

#[test]
fn answer_that_halves_the_pool_is_believed_after_twice_the_time() {
    for (listed, time) in [(vec!["a", "b", "c"], 5), (vec!["a", "b"], 10), (vec!["a"], 10)] {
        let mut rig = Rig::with(&ALL);
        rig.discover(&listed);
        assert_eq!((rig.wait_for_timer(), rig.members().len()), (SECOND * time, listed.len()));
    }
    let mut rig = Rig::with(&ALL);
    rig.apply(marked(&["a", "b", "c?", "d?"]));
    rig.discover(&["a", "b"]);
    assert_eq!(rig.wait_for_timer(), SECOND * 10);
    let mut rig = Rig::with(&ALL);
    rig.discover(&["w", "x", "y", "z"]);
    assert_eq!((rig.wait_for_timer(), rig.members().len()), (SECOND * 5, 4), "a replaced pool is not halved");
}

#[test]
fn nothing_is_removed_below_the_floor() {
    let mut rig = Rig::new(Config { min_backends: 3, ..Config::default() });
    rig.discover(&ALL);
    rig.discover(&["a", "b"]);
    assert_eq!((rig.wait_for_timer(), rig.members().len(), rig.timer), (SECOND * 10, 4, None));
    rig.see("c", HealthKind::Refused);
    assert_eq!((rig.members().len(), rig.away()), (4, vec!["c".to_owned()]));
    assert!(rig.take_notes().contains(&Note::Floor { begins: true, left: 2, min_backends: 3 }));
    assert!(rig.discover(&["a", "b", "x"]), "there are three again");
    assert_eq!(rig.members(), ["a", "b", "x"]);
    assert!(rig.take_notes().contains(&Note::Floor { begins: false, left: 3, min_backends: 3 }));
}

#[test]
fn stable_names_keep_their_slots_below_the_floor() {
    let mut rig = Rig::new(Config { min_backends: 3, ..Config::default() });
    rig.discover_names(&ALL, 1);
    rig.discover_names(&["a", "b"], 1);
    rig.wait(STAYS * 2);
    assert_eq!((rig.members().len(), rig.away().len(), rig.timer), (4, 0, None));
}

#[test]
fn floor_begins_when_an_absence_is_believed_and_not_before() {
    let mut rig = Rig::new(Config { min_backends: 4, ..Config::default() });
    rig.discover(&ALL);
    rig.discover(&["a", "b", "c"]);
    assert_eq!(rig.take_notes(), [Note::Held("d".into())], "its absence is doubted");
    rig.wait_for_timer();
    assert_eq!(rig.take_notes(), [Note::Floor { begins: true, left: 3, min_backends: 4 }]);
}

#[test]
fn pool_that_never_had_min_backends_is_not_at_the_floor() {
    let mut rig = Rig::new(Config { min_backends: 3, ..Config::default() });
    rig.discover(&["a", "b"]);
    assert_eq!((rig.take_notes(), rig.members().len()), (vec![], 2));
}

#[test]
fn ejected_backend_that_is_absent_is_not_noted_as_held() {
    let mut rig = named();
    rig.see("b", HealthKind::Refused);
    rig.take_notes();
    rig.discover_names(&["a", "c", "d"], 1);
    assert_eq!((rig.take_notes(), rig.members().len()), (vec![], 4));
    let mut rig = Rig::with(&ALL);
    rig.see("b", HealthKind::Refused);
    rig.take_notes();
    rig.apply(marked(&["a", "b?", "c", "d"]));
    assert_eq!((rig.take_notes(), rig.members().len()), (vec![], 4));
}

#[test]
fn absence_that_is_not_confirmed_sets_no_timer() {
    let mut rig = Rig::with(&ALL);
    rig.apply(marked(&["a", "b?", "c", "d"]));
    assert_eq!(rig.timer, None);
}

#[test]
fn time_that_a_member_stays_is_known_before_it_is_absent_and_after() {
    let mut rig = Rig::with(&ALL);
    assert_eq!(["a", "somebody"].map(|host| rig.state.stays_for(host)), [None; 2]);
    rig.discover(&["a", "b"]);
    assert_eq!(["a", "c"].map(|host| rig.state.stays_for(host)), [None, Some(SECOND * 10)]);
    let mut rig = named();
    rig.discover_names(&["a", "b", "c"], 1);
    assert_eq!(rig.state.stays_for("d"), Some(STAYS));
}
