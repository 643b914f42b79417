//! Tests of the tables that the state requests: what is shared with the previous table, and sets that cannot be placed.

use super::{build::Cause, *};
use crate::ring::{Algorithm, RingError};

fn refused(host: &str) -> Input {
    Input::Seen(HealthEvent { identity: host.into(), kind: HealthKind::Refused })
}

fn rig() -> Rig {
    Rig::new(Config::default())
}

#[test]
fn first_set_leads_to_the_first_table_and_repeating_it_to_none() {
    let mut rig = rig();
    let first = rig.step(Input::Discovered(endpoints(&["a", "b"], 1))).expect("must build");
    assert_eq!((first.table.generation, first.moved), (1, 0.0));
    assert_eq!(first.added(), ["a".into(), "b".into()]);
    assert!(rig.step(Input::Discovered(endpoints(&["a", "b"], 1))).is_none());
}

#[test]
fn empty_set_is_refused() {
    let mut rig = rig();
    assert!(rig.step(Input::Discovered(endpoints(&[], 1))).is_none());
    rig.step(Input::Discovered(endpoints(&["a", "b"], 1)));
    assert!(rig.step(Input::Discovered(endpoints(&[], 1))).is_none());
    let change = rig.step(refused("a")).expect("the last set must still be in use");
    assert_eq!(change.table.backends().len(), 2);
}

#[test]
fn new_address_reuses_base_and_overlay() {
    let mut rig = rig();
    rig.step(Input::Discovered(endpoints(&["a", "b", "c"], 1)));
    let before = rig.step(refused("b")).expect("must build");
    let after = rig.step(Input::Discovered(endpoints(&["a", "b", "c"], 2))).expect("must build");
    assert!(Arc::ptr_eq(before.table.base(), after.table.base()), "base must be reused");
    assert!(std::ptr::eq(before.table.overlay().substitutes(), after.table.overlay().substitutes()));
    assert_eq!((after.moved, after.table.generation), (0.0, 3));
    assert_eq!(after.table.backends()[0].address.map(|address| address.port()), Some(2));
}

#[test]
fn backend_goes_away_and_returns_with_its_slots() {
    let mut rig = rig();
    let first = rig.step(Input::Discovered(endpoints(&["a", "b", "c"], 1))).expect("must build");
    let away = rig.step(refused("b")).expect("must build");
    assert_eq!(away.table.membership_fingerprint(), first.table.membership_fingerprint());
    assert_ne!(away.table.placement_fingerprint(), first.table.placement_fingerprint());
    assert!(rig.step(refused("b")).is_none(), "it is away already");
    rig.wait_for_timer();
    let probe = rig.probes.pop().expect("a probe must run");
    let back = rig.step(Input::Probed { probe, answered: true }).expect("must build");
    assert_eq!(back.table.placement_fingerprint(), first.table.placement_fingerprint());
    assert_eq!(back.moved, away.moved);
}

#[test]
fn another_algorithm_places_the_same_backends_anew() {
    let mut config = Config::default();
    config.ring.algorithm = Algorithm::OtelcolV2;
    let mut rig = Rig::new(config);
    let mut all = endpoints(&["a:4317", "b:4317", "c:4317"], 1).to_vec();
    all[0].exporter_name = Some("a".into());
    let first = rig.step(Input::Discovered(all.into())).expect("must build");
    rig.step(refused("b:4317"));
    let second = rig.step(Input::Configured(Config::default())).expect("must build");
    assert_eq!((first.table.slots(), second.table.slots()), (36_000, 131_072));
    assert_eq!((second.cause, second.table.generation), (Cause::Configuration, 3));
    assert_eq!((second.added(), second.removed()), (vec![], vec![]), "identities do not depend on the algorithm");
    assert_eq!(second.table.backends(), first.table.backends());
    assert_eq!(second.table.overlay().away(), &[1].into(), "what is known about backends must be kept");
}

#[test]
fn weights_that_the_algorithm_does_not_have_leave_the_last_set_in_force() {
    let mut config = Config::default();
    config.ring.algorithm = Algorithm::OtelcolV3;
    let mut rig = Rig::new(config);
    rig.step(Input::Discovered(endpoints(&["a", "b"], 1)));
    let mut weighted = endpoints(&["a", "b"], 1).to_vec();
    weighted[1].weight = 3;
    let rebuild = rig.apply(Input::Discovered(weighted.into())).expect("a new set must be tried");
    assert!(matches!(rebuild.run(Instant::now()), Err(RingError::Weighted { weight: 3, algorithm: "otelcol_v3", .. })));
}

#[test]
fn set_that_cannot_be_placed_leaves_the_last_one_in_force() {
    let mut rig = rig();
    rig.step(Input::Discovered(endpoints(&["a", "b"], 1)));
    let mut heavy = endpoints(&["a", "c"], 1).to_vec();
    heavy[1].weight = u32::MAX;
    let rebuild = rig.apply(Input::Discovered(heavy.into())).expect("a new set must be tried");
    assert!(matches!(rebuild.run(Instant::now()), Err(RingError::TooHeavy { .. })));
    rig.state.revert(rig.now);
    let away = rig.step(refused("b")).expect("must build");
    assert_eq!(away.table.backends().len(), 2);
    assert_eq!(away.table.generation, 2);
}
