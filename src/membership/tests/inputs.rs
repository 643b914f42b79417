//! Tests of the state machine's other inputs: new configurations, late probes and sets that cannot be built. They also
//! test the cause of each table.

use super::{
    build::{Cause, View},
    *,
};
use crate::settings::{Handoff, HandoffMode, Ring};

/// The default configuration with another `outlier_detection`.
fn detection(change: impl FnOnce(&mut OutlierDetection)) -> Input {
    let mut config = Config::default();
    change(&mut config.outlier_detection);
    Input::Configured(config)
}

/// The default configuration with another `hold_down`.
fn hold_down(hold_down: Duration) -> Input {
    Input::Configured(Config { hold_down, ..Config::default() })
}

fn seen(host: &str, kind: HealthKind) -> Input {
    Input::Seen(HealthEvent { identity: host.into(), kind })
}

fn cause_of(rebuild: Option<Rebuild>) -> Option<Cause> {
    rebuild.map(|rebuild| rebuild.cause)
}

#[test]
fn configuration_with_the_same_ring_requests_no_table_and_keeps_the_state() {
    let mut rig = Rig::with(&["a", "b", "c"]);
    assert!(rig.apply(Input::Configured(Config::default())).is_none(), "nothing has changed");
    rig.see("b", HealthKind::Refused);
    let timer = rig.timer;
    rig.take_notes();
    for input in [Input::Configured(Config::default()), hold_down(SECOND), detection(|it| it.consecutive_failures = 9)]
    {
        assert!(rig.apply(input.clone()).is_none(), "{input:?}");
        assert_eq!((rig.away(), rig.timer), (vec!["b".to_owned()], timer), "{input:?}");
    }
    assert_eq!((rig.take_notes(), rig.probes.len()), (vec![], 0));
}

#[test]
fn configured_hold_down_applies_to_backends_that_are_held_already() {
    let mut rig = Rig::with(&["a", "b", "c"]);
    rig.discover(&["a", "c"]);
    rig.wait(SECOND);
    assert!(rig.apply(hold_down(SECOND * 3)).is_none(), "the time is not over");
    assert_eq!(rig.members(), ["a", "b", "c"]);
    assert_eq!(rig.wait_for_timer(), SECOND * 2);
    assert_eq!(rig.members(), ["a", "c"]);

    let mut rig = Rig::with(&["a", "b", "c"]);
    rig.discover(&["a", "c"]);
    rig.wait(SECOND * 2);
    assert_eq!(cause_of(rig.apply(hold_down(SECOND))), Some(Cause::Configuration), "the time is over now");
    assert_eq!(rig.members(), ["a", "c"]);
}

fn handoff(mode: HandoffMode) -> Input {
    let ring = Ring { handoff: Handoff { mode, ..Handoff::default() }, ..Ring::default() };
    Input::Configured(Config { ring, ..Config::default() })
}

#[test]
fn configured_thresholds_and_times_of_ejection_apply_to_known_backends() {
    let mut rig = Rig::with(&["a", "b", "c"]);
    assert!(!rig.see("b", HealthKind::Failed("reset")));
    rig.apply(detection(|it| (it.consecutive_failures, it.base_ejection_time) = (2, SECOND * 4)));
    assert!(rig.see("b", HealthKind::Failed("reset")), "the failure before the change must count");
    about(rig.wait_for_timer(), 4);
    rig.apply(detection(|it| (it.base_ejection_time, it.max_ejection_time) = (SECOND * 4, SECOND * 5)));
    rig.answer("b", false);
    about(rig.wait_for_timer(), 5);
}

#[test]
fn configured_percentage_begins_and_ends_panic() {
    let mut rig = Rig::with(&["a", "b", "c", "d"]);
    for host in ["a", "b", "c"] {
        rig.see(host, HealthKind::Refused);
    }
    assert!(rig.state.is_panicking());
    rig.take_notes();
    let percent = |percent: u8| detection(|it| it.max_ejection_percent = percent);
    assert_eq!(cause_of(rig.apply(percent(75))), Some(Cause::Configuration));
    assert_eq!((rig.away().join(","), rig.state.is_panicking()), ("a,b,c".to_owned(), false));
    assert_eq!(rig.take_notes(), [Note::Panic { begins: false, failing: 3, allowed: 3 }]);
    assert_eq!(cause_of(rig.apply(percent(74))), Some(Cause::Configuration));
    assert_eq!((rig.away().len(), rig.state.is_panicking()), (0, true));
    assert_eq!(rig.take_notes(), [Note::Panic { begins: true, failing: 3, allowed: 2 }]);
}

#[test]
fn panic_begins_with_one_failure_more_than_the_percentage_allows() {
    let cases: [(u8, usize, usize); 8] =
        [(50, 4, 2), (50, 5, 2), (20, 10, 2), (99, 4, 3), (100, 3, 2), (10, 4, 1), (1, 2, 1), (100, 1, 0)];
    for (percent, members, allowed) in cases {
        let names: Vec<String> = (0..members).map(|n| format!("host-{n}")).collect();
        let hosts: Vec<&str> = names.iter().map(String::as_str).collect();
        let outlier_detection = OutlierDetection { max_ejection_percent: percent, ..OutlierDetection::default() };
        let mut rig = Rig::new(Config { outlier_detection, ..Config::default() });
        rig.discover(&hosts);
        for host in &hosts[..allowed] {
            rig.see(host, HealthKind::Refused);
        }
        assert_eq!((rig.away().len(), rig.state.is_panicking()), (allowed, false), "{percent} % of {members}");
        rig.see(hosts[allowed], HealthKind::Refused);
        assert_eq!((rig.away().len(), rig.state.is_panicking()), (0, true), "{percent} % of {members}");
    }
}

#[test]
fn each_requested_table_has_the_cause_of_the_change() {
    let mut rig = Rig::new(Config::default());
    assert_eq!(cause_of(rig.apply(Input::Discovered(endpoints(&["a", "b", "c"], 1)))), Some(Cause::Discovery));
    assert_eq!(cause_of(rig.apply(seen("a", HealthKind::Refused))), Some(Cause::Ejection));
    assert_eq!(cause_of(rig.apply(seen("b", HealthKind::Refused))), Some(Cause::Panic), "two of three fail");
    assert_eq!(cause_of(rig.apply(seen("b", HealthKind::Answered))), Some(Cause::Panic), "panic ends");
    rig.wait_for_timer();
    let probe = rig.probes.pop().expect("a probe must run");
    assert_eq!(cause_of(rig.apply(Input::Probed { probe, answered: true })), Some(Cause::Return));
    assert!(!rig.discover(&["a", "b"]), "the absent backend is held");
    rig.now += SECOND * 5;
    assert_eq!(cause_of(rig.apply(Input::Timer)), Some(Cause::Departure));
    assert!(!rig.discover(&["a"]), "the absent backend is held");
    assert_eq!(
        cause_of(rig.apply(seen("b", HealthKind::Refused))),
        Some(Cause::Departure),
        "it fails while it is held"
    );
    assert_eq!(cause_of(rig.apply(Input::Discovered(endpoints(&["a", "b"], 1)))), Some(Cause::Discovery));
}

#[test]
fn change_beside_a_probe_in_vain_leads_to_a_table() {
    let mut rig = Rig::with(&["a", "b", "c", "d"]);
    rig.see("a", HealthKind::Refused);
    rig.wait_for_timer();
    let in_vain = Input::Probed { probe: rig.probes.pop().expect("a probe must run"), answered: false };
    let effects = rig.state.apply_all([in_vain, seen("b", HealthKind::Refused)], rig.now);
    assert_eq!(cause_of(effects.rebuild), Some(Cause::Ejection));
}

#[test]
fn departure_of_an_ejected_backend_is_caused_by_the_set_that_lacks_it() {
    let mut rig = Rig::with(&["a", "b", "c"]);
    rig.see("b", HealthKind::Refused);
    let without_it = rig.apply(Input::Discovered(endpoints(&["a", "c"], 1)));
    assert_eq!((cause_of(without_it), rig.members().join("")), (Some(Cause::Discovery), "ac".to_owned()));
}

#[test]
fn probe_that_ends_after_its_backend_has_returned_is_ignored() {
    for answered in [false, true] {
        let mut rig = Rig::with(&["a", "b", "c"]);
        rig.see("a", HealthKind::Refused);
        rig.see("b", HealthKind::Refused);
        rig.wait(SECOND * 2);
        assert_eq!(rig.probes.len(), 2, "both probes must run");
        assert!(rig.see("b", HealthKind::Answered), "an answered call during panic ends the ejection");
        rig.take_notes();
        assert!(!rig.answer("b", answered));
        assert_eq!((rig.take_notes(), rig.timer), (vec![], None), "only the probe of the other backend is in progress");
        assert_eq!((rig.away(), rig.state_of("b")), (vec!["a".to_owned()], Some(BackendState::Active)));
    }
}

#[test]
fn probe_of_a_backend_that_has_left_and_is_forgotten_is_ignored() {
    let mut rig = Rig::with(&["a", "b", "c"]);
    rig.apply(handoff(HandoffMode::Immediate));
    rig.see("b", HealthKind::Refused);
    rig.wait_for_timer();
    assert!(rig.discover(&["a", "c"]), "an absent ejected backend is removed at once");
    rig.take_notes();
    assert!(!rig.answer("b", true));
    assert_eq!((rig.take_notes(), rig.members()), (vec![], vec!["a".to_owned(), "c".to_owned()]));
}

#[test]
fn revert_restores_the_published_members_and_keeps_their_health() {
    let mut rig = Rig::new(Config::default());
    rig.step(Input::Discovered(endpoints(&["a", "b", "c"], 1)));
    rig.step(seen("b", HealthKind::Refused));
    assert!(rig.apply(Input::Discovered(endpoints(&["a", "b", "x"], 2))).is_some());
    assert_eq!(rig.members(), ["a", "b", "c", "x"]);
    assert!(rig.state.revert(rig.now).is_none());
    assert_eq!((rig.members().join(","), rig.away()), ("a,b,c".to_owned(), vec!["b".to_owned()]));
    assert_eq!(rig.state_of("c"), Some(BackendState::Active), "the published backend must not stay absent");
    assert!(!rig.wait(Duration::ZERO), "the view is that of the published table");
    let ports: Vec<u16> = rig.probes.iter().map(|probe| probe.address.port()).collect();
    assert_eq!(ports, [2, 1], "the restored address must be probed at once");
    assert!(rig.apply(Input::Discovered(endpoints(&["a", "b", "x"], 2))).is_some(), "the set must be tried again");
}

#[test]
fn revert_decides_about_panic_by_the_restored_members() {
    let mut rig = Rig::new(Config::default());
    rig.step(Input::Discovered(endpoints(&["a", "b"], 1)));
    rig.discover(&["a", "b", "x", "y"]);
    rig.see("a", HealthKind::Refused);
    rig.see("b", HealthKind::Refused);
    assert_eq!((rig.away().len(), rig.state.is_panicking()), (2, false), "half of four may be ejected");
    assert!(rig.state.revert(rig.now).is_none());
    assert_eq!((rig.away().len(), rig.state.is_panicking()), (0, true), "both of two must not be");
    assert!(!rig.wait(Duration::ZERO), "the view is that of the published table");
}

#[test]
fn revert_requests_the_table_of_a_panic_that_the_restored_members_cause() {
    let mut rig = Rig::new(Config::default());
    rig.step(Input::Discovered(endpoints(&["a", "b", "c"], 1)));
    rig.step(seen("a", HealthKind::Refused));
    rig.discover(&["a", "b", "c", "x"]);
    assert!(rig.see("b", HealthKind::Refused));
    assert_eq!((rig.away().len(), rig.state.is_panicking()), (2, false), "half of four may be ejected");
    let instead = rig.state.revert(rig.now).expect("the published table leaves out a backend");
    assert_eq!((instead.cause, rig.away().len(), rig.state.is_panicking()), (Cause::Panic, 0, true));
}

#[test]
fn revert_requests_what_came_with_the_set_that_cannot_be_placed() {
    let mut rig = Rig::new(Config::default());
    rig.step(Input::Discovered(endpoints(&["a", "b", "c"], 1)));
    rig.discover(&["a", "b", "c", "x"]);
    assert!(rig.see("b", HealthKind::Refused));
    let instead = rig.state.revert(rig.now);
    assert_eq!(instead.as_ref().map(|rebuild| rebuild.cause), Some(Cause::Ejection));
    let change = instead.unwrap().run(rig.now).unwrap();
    rig.state.commit(&change, rig.now);
    assert_eq!((rig.members().join(","), rig.away()), ("a,b,c".to_owned(), vec!["b".to_owned()]));
    assert_eq!(View::of(&change.table), rig.state.view().unwrap(), "the table has the ejection");
    assert!(!rig.wait(Duration::ZERO), "nothing is left to request");
    // The backend returns beside the next such set.
    rig.discover(&["a", "b", "c", "x"]);
    rig.wait(SECOND * 2);
    assert!(rig.answer("b", true));
    let instead = rig.state.revert(rig.now);
    assert_eq!(instead.map(|rebuild| rebuild.cause), Some(Cause::Return));
    assert!(rig.state.revert(rig.now).is_none(), "what fails twice is not requested a third time");
}

#[test]
fn revert_before_the_first_table_leaves_no_members() {
    let mut rig = Rig::with(&["a"]);
    assert!(rig.state.revert(rig.now).is_none());
    assert!(rig.state.view().is_none() && rig.state.states().next().is_none());
    assert!(rig.discover(&["a"]), "the set must be tried again");
}
