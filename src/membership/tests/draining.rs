//! Tests of backends that discovery lists as draining, and of the floor: the members that stay since fewer than
//! `min_backends` would be left.

use super::{
    absence::{ALL, named},
    *,
};

/// Returns backends with stable names, of which one drains.
fn draining_name(hosts: &[&str], draining: &str) -> Input {
    let mark = |it: &Endpoint| Endpoint { is_stable_name: true, is_draining: &*it.identity == draining, ..it.clone() };
    Input::Discovered(endpoints(hosts, 1).iter().map(mark).collect())
}

#[test]
fn stable_name_that_drains_is_away_at_once_and_stays_a_member() {
    let mut rig = named();
    assert!(rig.apply(draining_name(&ALL, "b")).is_some(), "others take its slots");
    assert_eq!((rig.members().join(""), rig.away()), ("abcd".to_owned(), vec!["b".to_owned()]));
    assert_eq!(rig.take_notes(), [Note::Away("b".into())]);
    assert!(rig.apply(draining_name(&ALL, "b")).is_none(), "it drains already");
    assert!(rig.apply(draining_name(&["a", "b", "c", "d", "x"], "x")).is_some(), "the other one drains no more");
    assert_eq!(
        (rig.members().join(""), rig.away().len()),
        ("abcd".to_owned(), 0),
        "one that joins draining is left out"
    );
    assert_eq!(rig.take_notes(), []);
}

#[test]
fn backend_that_drains_is_noted_as_left_with_its_health() {
    for ejected in [false, true] {
        let mut rig = Rig::with(&ALL);
        if ejected {
            rig.see("b", HealthKind::Refused);
        }
        rig.take_notes();
        let drains = |it: &Endpoint| Endpoint { is_draining: &*it.identity == "b", ..it.clone() };
        assert!(rig.apply(Input::Discovered(endpoints(&ALL, 1).iter().map(drains).collect())).is_some());
        assert_eq!(
            (rig.members().join(""), rig.take_notes()),
            ("acd".to_owned(), vec![Note::Left { identity: "b".into(), ejected }])
        );
    }
}

/// All backends, of which some drain.
fn drain(hosts: &[&str], draining: &[&str], is_stable_name: bool) -> Input {
    let mark =
        |it: &Endpoint| Endpoint { is_stable_name, is_draining: draining.contains(&&*it.identity), ..it.clone() };
    Input::Discovered(endpoints(hosts, 1).iter().map(mark).collect())
}

#[test]
fn backends_that_drain_keep_their_slots_if_fewer_than_the_floor_would_be_left() {
    for is_stable_name in [false, true] {
        let all = ["a", "b", "c"];
        let mut rig = Rig::new(Config { min_backends: 2, ..Config::default() });
        rig.apply(drain(&all, &[], is_stable_name));
        let both = || drain(&all, &["b", "c"], is_stable_name);
        assert!(rig.apply(both()).is_none(), "nothing moves");
        assert_eq!((rig.members().join(""), rig.away().len(), rig.timer), ("abc".to_owned(), 0, None));
        let floor = Note::Floor { begins: true, left: 1, min_backends: 2 };
        assert_eq!(rig.take_notes(), [floor]);
        assert_eq!(rig.state_of("b"), Some(BackendState::Draining));
        let mut late = Rig::new(Config { min_backends: 2, ..Config::default() });
        late.apply(both());
        assert_eq!(late.members(), all, "a replica that starts then agrees");
        // The next one of them is gone before its successor is there.
        assert!(rig.apply(drain(&["a", "b"], &["b"], is_stable_name)).is_none());
        assert!(rig.apply(drain(&["a", "b", "x"], &["b"], is_stable_name)).is_some(), "there are two again");
        let (members, away) = if is_stable_name { ("abcx", "bc") } else { ("ax", "") };
        assert_eq!((rig.members().join(""), rig.away().join("")), (members.to_owned(), away.to_owned()));
        assert!(rig.take_notes().contains(&Note::Floor { begins: false, left: 2, min_backends: 2 }));
    }
}

#[test]
fn above_the_floor_one_after_the_other_may_drain() {
    for is_stable_name in [false, true] {
        let mut rig = Rig::new(Config { min_backends: 2, ..Config::default() });
        rig.apply(drain(&["a", "b", "c"], &[], is_stable_name));
        assert!(rig.apply(drain(&["a", "b", "c"], &["c"], is_stable_name)).is_some());
        let members = if is_stable_name { ("abc", "c") } else { ("ab", "") };
        assert_eq!((&*rig.members().join(""), &*rig.away().join("")), members);
        assert!(rig.apply(drain(&["a", "b", "c"], &["b", "c"], is_stable_name)).is_none(), "b stays");
        assert_eq!((&*rig.members().join(""), &*rig.away().join("")), members);
    }
}

#[test]
fn running_replica_takes_no_draining_backend_that_it_does_not_know_and_a_new_one_takes_them_below_the_floor_only() {
    let config = Config { min_backends: 2, ..Config::default() };
    let mut rig = Rig::new(config.clone());
    rig.apply(drain(&["a", "b"], &[], false));
    assert!(rig.apply(drain(&["a", "b", "x"], &["b", "x"], false)).is_none());
    assert_eq!(rig.members(), ["a", "b"]);
    let mut new = Rig::new(config);
    new.apply(drain(&["a", "b", "c"], &["c"], true));
    assert_eq!(new.members(), ["a", "b"], "two are enough");
}

#[test]
fn backends_that_drain_are_no_part_of_the_pool_that_an_answer_halves() {
    let mut rig = named();
    rig.apply(drain(&ALL, &["c", "d"], true));
    assert_eq!(rig.away(), ["c", "d"]);
    rig.apply(drain(&["a", "c", "d", "x"], &["c", "d"], true));
    assert_eq!((rig.wait_for_timer(), rig.away().join("")), (SECOND * 5, "bcd".to_owned()));
}

#[test]
fn longer_hold_down_does_not_doubt_an_absence_again_that_was_believed() {
    let config = Config { min_backends: 3, ..Config::default() };
    let mut rig = Rig::new(config.clone());
    rig.discover_names(&ALL, 1);
    rig.discover_names(&["a", "c", "d"], 1);
    rig.wait_for_timer();
    assert_eq!(rig.away(), ["b"]);
    rig.apply(Input::Configured(Config { hold_down: SECOND * 60, ..config }));
    rig.take_notes();
    rig.apply(draining_name(&["a", "c", "d"], "d"));
    assert_eq!(rig.take_notes(), [Note::Floor { begins: true, left: 2, min_backends: 3 }]);
    assert_eq!(rig.away(), ["b"]);
}

#[test]
fn backends_that_are_absent_and_do_not_drain_are_part_of_the_pool_that_an_answer_halves() {
    let mut rig = Rig::with(&ALL);
    rig.discover(&["a", "b", "c"]);
    rig.discover(&["a", "b"]);
    assert_eq!((rig.wait_for_timer(), rig.members().join("")), (SECOND * 5, "abc".to_owned()), "two of four are half");
    assert_eq!((rig.wait_for_timer(), rig.members().join("")), (SECOND * 5, "ab".to_owned()));
}

#[test]
fn address_that_drained_and_is_kept_by_the_floor_waits_for_nothing() {
    let mut rig = Rig::new(Config { min_backends: 2, ..Config::default() });
    rig.apply(drain(&["a", "b"], &[], false));
    rig.apply(drain(&["a", "b"], &["b"], false));
    rig.wait(SECOND);
    rig.apply(drain(&["a"], &[], false));
    assert_eq!((rig.members().join(""), rig.timer), ("ab".to_owned(), None));
    assert_eq!(rig.state.stays_for("b"), Some(SECOND), "it would have left when it was no longer listed");
}
