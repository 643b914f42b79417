//! Tests of backends that left and still take what began with them, and of the end of windows.

use super::{build::Cause, *};
use crate::settings::{Handoff, HandoffMode, Ring};

/// How long a table is kept with the defaults: the window of 30 s and 15 s for spans that arrive late.
const KEPT: Duration = Duration::from_secs(45);

fn targets(change: &Change) -> Vec<String> {
    change.table.targets().iter().map(|target| target.identity.to_string()).collect()
}

/// Backends with an address each.
fn listed(hosts: &[&str], draining: &[&str]) -> Endpoints {
    let endpoint = |(host, port): (&&str, u16)| Endpoint {
        is_draining: draining.contains(host),
        ..Endpoint::new(*host, Some(([127, 0, 0, 1], port).into()))
    };
    hosts.iter().zip(1..).map(endpoint).collect()
}

/// A pool of three backends, one of which has just left.
fn one_left() -> (Rig, Change) {
    let mut rig = Rig::new(Config::default());
    rig.step(Input::Discovered(listed(&["a", "b", "c"], &[])));
    assert!(rig.step(Input::Discovered(listed(&["a", "b"], &[]))).is_none(), "it is held");
    rig.now += Config::default().hold_down;
    let change = rig.step(Input::Timer).expect("the time to hold it is over");
    (rig, change)
}

#[test]
fn a_backend_that_left_is_a_target_until_its_window_ends() {
    let (mut rig, change) = one_left();
    assert_eq!((targets(&change), change.table.backends().len()), (vec!["a".into(), "b".into(), "c".into()], 2));
    assert_eq!(rig.timer, Some(rig.now + KEPT));
    rig.now += KEPT;
    let end = rig.step(Input::Timer).expect("the window ends with a table");
    assert_eq!((end.cause, end.moved, targets(&end)), (Cause::WindowEnd, 0.0, vec!["a".into(), "b".into()]));
    assert!(end.table.history().is_empty());
    rig.wait_for_timer();
    assert_eq!(rig.timer, None, "nothing is left of it");
}

#[test]
fn a_backend_that_left_and_fails_gets_no_more_until_it_answers_a_probe() {
    let (mut rig, _) = one_left();
    let failed = rig.step(Input::Seen(HealthEvent { identity: "c".into(), kind: HealthKind::Refused }));
    let failed = failed.expect("its failure leads to a table");
    assert_eq!((failed.table.is_away(2), failed.moved, rig.state_of("c")), (true, 0.0, None));
    rig.now = rig.timer.expect("a probe is due");
    rig.step(Input::Timer);
    let probe = rig.probes.pop().expect("it is probed");
    let back = rig.step(Input::Probed { probe, answered: true }).expect("its answer leads to a table");
    assert!(!back.table.is_away(2));
}

#[test]
fn a_draining_backend_leaves_at_once_and_stays_a_target() {
    let mut rig = Rig::new(Config::default());
    rig.step(Input::Discovered(listed(&["a", "b", "c"], &[])));
    let change = rig.step(Input::Discovered(listed(&["a", "b", "c"], &["c"]))).expect("it is not held");
    assert_eq!((rig.members(), targets(&change).len()), (vec!["a".to_owned(), "b".to_owned()], 3));
    assert!(matches!(rig.take_notes().last(), Some(Note::Left { ejected: false, .. })));
    assert!(rig.step(Input::Discovered(listed(&["a", "b"], &[]))).is_none(), "it is gone from discovery: no news");
    let back = rig.step(Input::Discovered(listed(&["a", "b", "c"], &[]))).expect("it drains no more");
    assert_eq!(back.table.backends().len(), 3);
    assert!(rig.step(Input::Discovered(listed(&["a", "b", "c"], &["a", "b", "c"]))).is_none(), "all drain: all stay");
}

#[test]
fn in_the_immediate_mode_nothing_is_kept() {
    let ring = Ring { handoff: Handoff { mode: HandoffMode::Immediate, ..Handoff::default() }, ..Ring::default() };
    let mut rig = Rig::new(Config { ring, ..Config::default() });
    rig.step(Input::Discovered(listed(&["a", "b", "c"], &[])));
    let change = rig.step(Input::Discovered(listed(&["a", "b", "c"], &["c"]))).expect("a table");
    assert_eq!((targets(&change).len(), rig.timer), (2, None));
}

#[test]
fn another_mode_or_window_leads_to_a_table() {
    let (mut rig, _) = one_left();
    let handoff = |mode, seconds| {
        let ring = Ring {
            handoff: Handoff { mode, window: Duration::from_secs(seconds), ..Handoff::default() },
            ..Ring::default()
        };
        Input::Configured(Config { ring, ..Config::default() })
    };
    let longer = rig.step(handoff(HandoffMode::Dual, 60)).expect("a table with a longer window");
    assert_eq!((longer.table.history().len(), rig.timer), (1, Some(rig.now + Duration::from_secs(50))));
    let off = rig.step(handoff(HandoffMode::Immediate, 60)).expect("a table without a window");
    assert_eq!((off.cause, off.table.history().len()), (Cause::Configuration, 0));
}

#[test]
fn a_change_at_the_end_of_a_window_has_its_own_cause_and_the_end_is_requested_once() {
    for changes in [false, true] {
        let (mut rig, _) = one_left();
        rig.now += KEPT;
        let hosts: &[&str] = if changes { &["a", "b", "x"] } else { &["a", "b"] };
        let request = rig.apply(Input::Discovered(listed(hosts, &[]))).expect("a table is due");
        let cause = if changes { Cause::Discovery } else { Cause::WindowEnd };
        assert_eq!((request.cause, request.view.endpoints.len()), (cause, hosts.len()));
        if !changes {
            assert!(rig.apply(Input::Timer).is_none(), "it is requested already");
        }
    }
}

#[test]
fn the_end_of_a_window_is_requested_until_a_table_is_published() {
    let (mut rig, _) = one_left();
    rig.now += KEPT;
    // For longer than the backend that left would be kept if it were no target of the published table.
    for _ in 0..8 {
        assert!(rig.apply(Input::Timer).is_some(), "the request before gave way to another one, which was withdrawn");
        assert_eq!(rig.timer, Some(rig.now + SECOND));
        rig.now += SECOND;
    }
    assert!(rig.step(Input::Timer).is_some_and(|end| end.table.history().is_empty()));
    assert_eq!(rig.timer, None);
}

#[test]
fn the_end_of_a_window_changes_neither_members_nor_owners() {
    let (mut rig, change) = one_left();
    rig.apply(Input::Discovered(listed(&["a", "b", "x"], &[])));
    rig.now += KEPT;
    let end = rig.apply(Input::Timer).expect("a window ends").run(rig.now).expect("placeable");
    assert_eq!((end.cause, end.table.backends()), (Cause::WindowEnd, change.table.backends()));
}

#[test]
fn a_backend_that_left_and_fails_gets_nothing_as_long_as_its_table_is_kept() {
    let (mut rig, _) = one_left();
    let left_at = rig.now;
    let handoff = Handoff { window: Duration::from_secs(120), ..Handoff::default() };
    let ring = Ring { handoff, ..Ring::default() };
    rig.step(Input::Configured(Config { ring, ..Config::default() })).expect("a table with a longer window");
    rig.now += KEPT;
    let failed = rig.step(Input::Seen(HealthEvent { identity: "c".into(), kind: HealthKind::Refused }));
    assert!(failed.expect("its failure leads to a table").table.is_away(2));
    let is_lost = |rig: &Rig| rig.state.view().is_some_and(|view| view.lost.contains("c"));
    while rig.now < left_at + Duration::from_secs(134) {
        rig.now += SECOND;
        assert!(rig.step(Input::Timer).is_none() && is_lost(&rig), "{:?} after it left", rig.now - left_at);
        assert!(rig.timer.is_none_or(|timer| timer > rig.now), "the timer must not be in the past");
    }
    rig.now += SECOND;
    assert!(rig.step(Input::Timer).is_some_and(|end| end.table.history().is_empty()));
    assert!(!is_lost(&rig) && rig.timer.is_none(), "nothing is left of it");
}

#[test]
fn the_failure_of_a_backend_that_left_is_forgotten_when_it_can_be_no_target_any_more() {
    let (mut rig, _) = one_left();
    let left_at = rig.now;
    rig.step(Input::Seen(HealthEvent { identity: "c".into(), kind: HealthKind::Refused })).expect("a table");
    rig.now += KEPT;
    let end = rig.step(Input::Timer).expect("the window ends");
    assert_eq!((targets(&end).len(), rig.lost()), (2, vec!["c".to_owned()]), "a table with it may be under way");
    rig.now = rig.timer.expect("it is to be forgotten");
    assert_eq!(rig.now, left_at + KEPT + SECOND * 5);
    assert!(rig.apply(Input::Timer).is_some(), "the view has changed");
    assert!(rig.lost().is_empty() && rig.timer.is_none());
}
