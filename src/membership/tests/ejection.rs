//! Tests of ejection and absence, one input at a time: when a backend is ejected, probed and returned, when panic
//! begins, and how long an absent backend is held.

use super::*;

#[test]
fn refused_connection_ejects_at_once() {
    let mut rig = Rig::with(&["a", "b", "c"]);
    assert!(rig.see("b", HealthKind::Refused));
    assert_eq!((rig.away(), rig.state_of("b")), (vec!["b".to_owned()], Some(BackendState::Ejected)));
    assert_eq!(rig.lost(), ["b"]);
    assert!(!rig.see("b", HealthKind::Refused), "it is ejected already");
}

#[test]
fn silence_ejects_at_once() {
    for reason in ["ping", "timeout"] {
        let mut rig = Rig::with(&["a", "b", "c"]);
        assert!(rig.see("b", HealthKind::Silent(reason)));
        let notes = rig.take_notes();
        assert!(matches!(notes.as_slice(), [Note::Ejected { reason: why, .. }] if *why == reason), "{notes:?}");
    }
}

#[test]
fn two_connects_without_an_answer_eject() {
    let mut rig = Rig::with(&["a", "b", "c"]);
    assert!(!rig.see("b", HealthKind::Unanswered("connect_timeout")), "a packet may be lost");
    assert!(!rig.see("b", HealthKind::Answered));
    assert!(!rig.see("b", HealthKind::Unanswered("connect_timeout")));
    assert!(rig.see("b", HealthKind::Unanswered("tls_timeout")));
}

#[test]
fn other_failures_eject_after_three_without_an_answer_between() {
    let mut rig = Rig::with(&["a", "b", "c"]);
    for _ in 0..3 {
        assert!(!rig.see("b", HealthKind::Failed("reset")) && !rig.see("b", HealthKind::Failed("connect_timeout")));
        assert!(!rig.see("b", HealthKind::Answered));
    }
    rig.see("b", HealthKind::Failed("connect_timeout"));
    rig.see("b", HealthKind::Failed("connect_timeout"));
    rig.take_notes();
    assert!(rig.see("b", HealthKind::Failed("connect_timeout")));
    let notes = rig.take_notes();
    assert!(matches!(notes.as_slice(), [Note::Ejected { reason: "connect_timeout", .. }]), "{notes:?}");
}

#[test]
fn failures_of_unknown_backends_are_ignored() {
    let mut rig = Rig::new(Config::default());
    assert!(!rig.see("b", HealthKind::Refused), "no backend is known yet");
    rig.discover(&["a", "b"]);
    assert!(!rig.see("x", HealthKind::Refused));
    assert!(rig.away().is_empty());
}

#[test]
fn ejected_backend_is_probed_at_growing_intervals_until_it_answers() {
    let mut rig = Rig::with(&["a", "b", "c"]);
    rig.see("b", HealthKind::Refused);
    rig.take_notes();
    for seconds in [1, 2, 4, 8, 16, 30, 30] {
        about(rig.wait_for_timer(), seconds);
        assert_eq!(rig.probes.len(), 1, "one probe must run");
        assert_eq!(rig.timer, None, "nothing is due while it runs");
        assert!(!rig.answer("b", false));
        assert_eq!(rig.take_notes(), [Note::ProbeFailed("b".into())]);
    }
    rig.wait_for_timer();
    assert!(rig.answer("b", true));
    assert_eq!(rig.take_notes(), [Note::Returned("b".into())]);
    assert_eq!((rig.away(), rig.state_of("b"), rig.timer), (vec![], Some(BackendState::Active), None));
}

#[test]
fn ejection_time_is_reset_only_after_the_backend_stayed_healthy() {
    let mut rig = Rig::with(&["a", "b", "c"]);
    for (pause, seconds) in [(0, 1), (1, 2), (29, 4), (30, 1)] {
        rig.wait(SECOND * pause);
        rig.see("b", HealthKind::Refused);
        about(rig.wait_for_timer(), seconds);
        rig.answer("b", true);
    }
}

#[test]
fn returned_backend_starts_without_failures() {
    let mut rig = Rig::with(&["a", "b", "c"]);
    for _ in 0..3 {
        rig.see("b", HealthKind::Failed("reset"));
    }
    rig.wait_for_timer();
    assert!(rig.answer("b", true));
    assert!(!rig.see("b", HealthKind::Failed("reset")) && rig.away().is_empty());
}

#[test]
fn ejected_backend_that_is_listed_unchanged_is_not_probed_earlier() {
    let mut rig = Rig::with(&["a", "b", "c"]);
    rig.see("b", HealthKind::Refused);
    let timer = rig.timer;
    assert!(!rig.discover(&["a", "b", "c"]));
    assert_eq!((rig.probes.len(), rig.timer), (0, timer));
}

#[test]
fn failures_count_on_if_the_backend_is_listed_again_and_not_if_it_has_changed() {
    let access = crate::access::Access::new("tail", None, Vec::new());
    let listed = |port, access: &crate::access::Access| -> Input {
        let endpoint = |it: &Endpoint| Endpoint { access: access.clone(), ..it.clone() };
        Input::Discovered(endpoints(&["a", "b", "c"], port).iter().map(endpoint).collect())
    };
    let none = endpoints(&["a"], 1)[0].access.clone();
    for (set, ejected) in [(listed(1, &none), true), (listed(2, &none), false), (listed(1, &access), false)] {
        let mut rig = Rig::with(&["a", "b", "c"]);
        for _ in 0..2 {
            rig.see("b", HealthKind::Failed("reset"));
        }
        rig.apply(set.clone());
        assert_eq!(rig.see("b", HealthKind::Failed("reset")), ejected, "{set:?}");
    }
}

#[test]
fn probes_of_many_replicas_are_not_in_step() {
    let periods: Vec<Duration> = (0..20)
        .map(|seed| {
            let mut state = State::new(Config::default(), fastrand::Rng::with_seed(seed));
            let now = Instant::now();
            state.apply(Input::Discovered(endpoints(&["a", "b"], 1)), now);
            let event = HealthEvent { identity: "a".into(), kind: HealthKind::Refused };
            let effects = state.apply(Input::Seen(event), now);
            effects.timer.expect("a probe must be due") - now
        })
        .collect();
    periods.iter().for_each(|period| about(*period, 1));
    assert!(periods.iter().max() > periods.iter().min().map(|least| *least + Duration::from_millis(50)).as_ref());
}

#[test]
fn half_of_a_pool_may_be_ejected_and_none_if_more_fail() {
    let mut rig = Rig::with(&["a", "b", "c", "d"]);
    assert!(rig.see("a", HealthKind::Refused) && rig.see("b", HealthKind::Refused));
    rig.take_notes();
    assert!(rig.see("c", HealthKind::Refused));
    assert!(rig.state.is_panicking() && rig.away().is_empty() && rig.lost().is_empty(), "all must be tried");
    assert_eq!(rig.take_notes().last(), Some(&Note::Panic { begins: true, failing: 3, allowed: 2 }));
    assert!(!rig.see("d", HealthKind::Refused), "panic has begun already");
    // One backend answers and panic goes on. Another one does and panic ends: the two remaining ones count as ejected.
    rig.wait(SECOND * 2);
    assert!(!rig.answer("a", true));
    assert!(rig.answer("c", true));
    assert_eq!(rig.away(), ["b", "d"]);
    assert!(!rig.state.is_panicking());
}

#[test]
fn in_panic_an_answered_call_is_as_good_as_a_probe() {
    let mut rig = Rig::with(&["a", "b", "c"]);
    rig.see("a", HealthKind::Refused);
    assert!(!rig.see("a", HealthKind::Answered), "a late answer does not return what is ejected");
    assert_eq!(rig.away(), ["a"]);
    rig.see("b", HealthKind::Refused);
    assert!(rig.state.is_panicking());
    rig.take_notes();
    assert!(rig.see("b", HealthKind::Answered));
    assert_eq!(rig.away(), ["a"]);
    let ends = Note::Panic { begins: false, failing: 1, allowed: 1 };
    assert_eq!(rig.take_notes(), [Note::Returned("b".into()), ends]);
}

#[test]
fn small_pools_eject_one_and_single_backends_are_always_tried() {
    let mut rig = Rig::with(&["a", "b"]);
    assert!(rig.see("a", HealthKind::Refused));
    assert_eq!(rig.away(), ["a"]);
    let mut rig = Rig::with(&["a"]);
    assert!(!rig.see("a", HealthKind::Refused));
    assert!(rig.away().is_empty() && rig.state.is_panicking());
}

#[test]
fn all_backends_are_never_away_whatever_percentage_is_allowed() {
    let outlier_detection = OutlierDetection { max_ejection_percent: 100, ..OutlierDetection::default() };
    let mut rig = Rig::new(Config { outlier_detection, ..Config::default() });
    rig.discover(&["a", "b", "c"]);
    assert!(rig.see("a", HealthKind::Refused) && rig.see("b", HealthKind::Refused));
    assert_eq!(rig.away(), ["a", "b"]);
    assert!(rig.see("c", HealthKind::Refused));
    assert!(rig.away().is_empty());
}

#[test]
fn ejection_can_be_switched_off() {
    let outlier_detection = OutlierDetection { max_ejection_percent: 0, ..OutlierDetection::default() };
    let mut rig = Rig::new(Config { outlier_detection, ..Config::default() });
    rig.discover(&["a", "b", "c"]);
    assert!((0..9).all(|_| !rig.see("a", HealthKind::Refused) && !rig.see("a", HealthKind::Failed("connect_timeout"))));
    assert_eq!((rig.timer, rig.state_of("a")), (None, Some(BackendState::Active)));
}

#[test]
fn absent_backend_that_answers_is_held_and_then_removed() {
    let mut rig = Rig::with(&["a", "b", "c", "d", "e"]);
    assert!(!rig.discover(&["a", "c", "d", "e"]), "nothing moves yet");
    assert_eq!((rig.members().len(), rig.state_of("b")), (5, Some(BackendState::Draining)));
    rig.wait(SECOND * 3);
    assert!(!rig.discover(&["a", "d", "e"]), "a repeated answer must not restart the time");
    assert_eq!(rig.wait_for_timer(), SECOND * 2);
    assert_eq!(rig.members(), ["a", "c", "d", "e"]);
    assert_eq!(rig.wait_for_timer(), SECOND * 3, "each is held for as long");
    assert_eq!(rig.members(), ["a", "d", "e"]);
    let left = |host: &str| Note::Left { identity: host.into(), ejected: false };
    assert_eq!(rig.take_notes(), [Note::Held("b".into()), Note::Held("c".into()), left("b"), left("c")]);
}

#[test]
fn held_backend_that_is_listed_again_stays() {
    let mut rig = Rig::with(&["a", "b", "c"]);
    rig.discover(&["a", "c"]);
    rig.wait(SECOND * 4);
    assert!(!rig.discover(&["a", "b", "c"]));
    assert_eq!((rig.timer, rig.state_of("b")), (None, Some(BackendState::Active)));
    assert!(!rig.wait(SECOND * 60));
}

#[test]
fn absent_ejected_backend_is_removed_at_once() {
    let mut rig = Rig::with(&["a", "b", "c"]);
    rig.see("b", HealthKind::Refused);
    assert!(rig.discover(&["a", "c"]));
    assert_eq!(rig.members(), ["a", "c"]);
    assert_eq!(rig.lost(), ["b"], "it gets no records of traces that began with it");
    assert!(
        rig.discover(&["a", "b", "c"]) && rig.away().is_empty() && rig.lost().is_empty(),
        "a backend that joins again must start without failures"
    );
}

#[test]
fn held_backend_that_fails_is_removed_at_once() {
    let mut rig = Rig::with(&["a", "b", "c"]);
    rig.discover(&["a", "c"]);
    rig.take_notes();
    assert!(rig.see("b", HealthKind::Refused));
    assert_eq!((rig.members(), rig.away()), (vec!["a".to_owned(), "c".to_owned()], vec![]));
    assert_eq!(rig.take_notes().last(), Some(&Note::Left { identity: "b".into(), ejected: true }));
}

#[test]
fn replaced_pool_moves_to_its_new_members_as_the_old_ones_are_removed() {
    let mut rig = Rig::with(&["a", "b", "c"]);
    assert!(rig.discover(&["x", "y", "z"]));
    assert_eq!(rig.members().len(), 6);
    rig.see("a", HealthKind::Refused);
    rig.see("b", HealthKind::Refused);
    assert_eq!(rig.members(), ["c", "x", "y", "z"]);
    rig.wait(SECOND * 5);
    assert_eq!(rig.members(), ["x", "y", "z"]);
}

#[test]
fn new_address_of_an_ejected_backend_is_probed_at_once() {
    let mut rig = Rig::with(&["a", "b", "c"]);
    rig.see("b", HealthKind::Refused);
    rig.wait_for_timer();
    rig.apply(Input::Discovered(endpoints(&["a", "b", "c"], 2)));
    let ports: Vec<u16> = rig.probes.iter().map(|probe| probe.address.port()).collect();
    assert_eq!(ports, [1, 2]);
    assert!(!rig.answer("b", true), "a probe of the old address must be ignored");
    rig.answer("b", false);
    about(rig.wait_for_timer(), 1);
    assert!(rig.answer("b", true));
}

#[test]
fn backend_without_an_address_is_left_alone_if_ejection_is_switched_off() {
    let outlier_detection = OutlierDetection { max_ejection_percent: 0, ..OutlierDetection::default() };
    let mut rig = Rig::new(Config { outlier_detection, ..Config::default() });
    let mut listed = endpoints(&["a", "b"], 1).to_vec();
    listed[1].address = None;
    rig.apply(Input::Discovered(listed.into()));
    assert_eq!((rig.timer, rig.state_of("b")), (None, Some(BackendState::Unresolved)));
    assert!(!rig.wait(SECOND * 60) && rig.away().is_empty() && rig.timer.is_none());
}

#[test]
fn backend_without_an_address_is_ejected_after_a_while() {
    let mut rig = Rig::new(Config::default());
    let mut listed = endpoints(&["a", "b", "c"], 1).to_vec();
    listed[1].address = None;
    rig.apply(Input::Discovered(listed.into()));
    assert_eq!((rig.away().len(), rig.state_of("b")), (0, Some(BackendState::Unresolved)));
    assert_eq!(rig.wait_for_timer(), SECOND);
    assert_eq!((rig.away(), rig.timer), (vec!["b".to_owned()], None), "there is no address to probe");
    let notes = rig.take_notes();
    assert!(matches!(notes.as_slice(), [Note::Ejected { reason: "unresolved", .. }]), "{notes:?}");
    assert!(rig.discover(&["a", "b", "c"]), "a new address must lead to a new table");
    assert_eq!(rig.away(), ["b"]);
    assert!(rig.answer("b", true) && rig.away().is_empty());
}

#[test]
fn backend_with_another_access_is_probed_at_once_with_the_new_access() {
    let mut rig = Rig::with(&["a", "b", "c"]);
    rig.see("b", HealthKind::Failed("tls_unknown_ca"));
    rig.see("b", HealthKind::Refused);
    rig.wait_for_timer();
    let access = crate::access::Access::new("tail", None, Vec::new());
    let all: Vec<Endpoint> = endpoints(&["a", "b", "c"], 1).iter().cloned().collect();
    let all: Endpoints = all.into_iter().map(|endpoint| Endpoint { access: access.clone(), ..endpoint }).collect();
    let change = rig.step(Input::Discovered(all)).expect("a new access must lead to a new table");
    assert!(change.moved == 0.0 && change.table.backends().iter().all(|backend| backend.access == access));
    assert_eq!(rig.probes.iter().filter(|probe| probe.access == access).count(), 1, "it must be probed again");
    assert!(!rig.answer("b", true), "a probe with the old access must be ignored");
    assert_eq!(rig.state_of("b"), Some(BackendState::Ejected));
    assert!(rig.answer("b", true));
    // A backend that is no longer listed keeps its access until it is removed.
    let later = crate::access::Access::new("tail", None, Vec::new());
    let one: Endpoints = [Endpoint { access: later.clone(), ..endpoints(&["a"], 1)[0].clone() }].into();
    let change = rig.step(Input::Discovered(one)).expect("another access");
    let accesses: Vec<_> = change.table.backends().iter().map(|backend| backend.access.clone()).collect();
    assert_eq!(accesses, [later, access.clone(), access]);
}
