//! Requests while a hand-off is open: which backends get which spans, whose answers count, and what a copy is good for.

use super::*;
use crate::{telemetry::Recorder, wall_clock::Moment};

/// A pool whose only backend was replaced by another one.
async fn replaced() -> (Stage, Script, Script) {
    let tasks = Tasks::new();
    let (old, new) = (Script::start(&tasks, None, 100).await, Script::start(&tasks, None, 100).await);
    let stage = Stage::new(long_pauses(), &[old.address], tasks);
    stage.rig.publish_after(2, &[new.address], &[]).await;
    (stage, old, new)
}

/// Takes calls until all these spans have come, each once.
async fn spans_of(script: &mut Script, count: usize) -> (BTreeSet<String>, Vec<Call>) {
    let (mut seen, mut calls) = (BTreeSet::new(), Vec::new());
    while seen.len() < count {
        let call = script.call().await;
        assert!(call.spans.iter().all(|span| seen.insert(span.clone())), "each span must come once");
        calls.push(call);
    }
    (seen, calls)
}

#[tokio::test]
async fn a_trace_that_began_after_the_change_goes_to_both_and_only_the_new_owner_counts() {
    let (stage, mut old, mut new) = replaced().await;
    let sent = stage.send_started(Duration::from_secs(8), Moment::now().unix);
    let (copied, copies) = spans_of(&mut old, usize::from(SPANS)).await;
    let (counted, calls) = spans_of(&mut new, usize::from(SPANS)).await;
    assert_eq!((copied, counted), (all(), all()));
    calls.into_iter().for_each(Call::accept);
    assert_eq!(outcome_of(sent).await, Outcome::OK, "the copies are not answered yet");
    assert!(stage.budget.used() > 0, "the copies go on");
    copies.into_iter().for_each(Call::accept);
    wait_until(|| stage.budget.used() == 0).await;
}

#[tokio::test]
async fn a_trace_that_began_before_the_change_goes_only_to_the_backend_that_left() {
    let (stage, mut old, mut new) = replaced().await;
    let sent = stage.send_started(Duration::from_secs(8), Moment::now().unix - 10_000_000_000);
    let (counted, calls) = spans_of(&mut old, usize::from(SPANS)).await;
    assert_eq!(counted, all());
    calls.into_iter().for_each(Call::accept);
    assert_eq!(outcome_of(sent).await, Outcome::OK);
    assert!(new.is_quiet());
}

#[tokio::test]
async fn other_signals_move_at_once() {
    let (stage, mut old, mut new) = replaced().await;
    let view = stage.rig.dispatch.view().unwrap();
    assert!(hands_off(Signal::Traces, view.table()));
    for signal in [Signal::Logs, Signal::Metrics, Signal::Profiles] {
        assert!(!hands_off(signal, view.table()));
    }
    assert!(old.is_quiet() && new.is_quiet());
}

#[tokio::test]
async fn copies_for_a_backend_that_is_gone_are_given_up() {
    let tasks = Tasks::new();
    let (dead, mut new) = (nobody().await, Script::start(&tasks, None, 100).await);
    let stage = Stage::new(long_pauses(), &[dead], tasks);
    stage.rig.publish_after(2, &[new.address], &[]).await;
    let sent = stage.send_started(Duration::from_secs(8), Moment::now().unix);
    let (counted, calls) = spans_of(&mut new, usize::from(SPANS)).await;
    assert_eq!(counted, all());
    calls.into_iter().for_each(Call::accept);
    assert_eq!(outcome_of(sent).await, Outcome::OK);
}

#[tokio::test]
async fn a_part_whose_backend_left_and_fails_is_placed_again_at_the_owner_of_the_moment() {
    let tasks = Tasks::new();
    let (dead, mut new) = (nobody().await, Script::start(&tasks, None, 100).await);
    let mut stage = Stage::new(with_keys(|keys| keys.retry_on_failure = short_pauses()), &[dead], tasks);
    stage.rig.publish_after(2, &[new.address], &[]).await;
    let sent = stage.send_started(Duration::from_secs(8), Moment::now().unix - 10_000_000_000);
    assert_eq!(stage.rig.event().await, HealthKind::Refused);
    stage.rig.publish_after(3, &[new.address], &[dead]).await;
    let (counted, calls) = spans_of(&mut new, usize::from(SPANS)).await;
    assert_eq!(counted, all());
    calls.into_iter().for_each(Call::accept);
    assert_eq!(outcome_of(sent).await, Outcome::OK);
}

#[test]
fn a_copy_takes_the_place_of_the_part_whose_owner_is_gone() {
    for delivered_before in [false, true] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Recorder::scoped(|recorder| runtime.block_on(a_copy_takes_the_place(delivered_before, recorder)));
    }
}

async fn a_copy_takes_the_place(delivered_before: bool, recorder: &Recorder) {
    let tasks = Tasks::new();
    let (mut old, mut new) = (Script::start(&tasks, None, 100).await, Script::start(&tasks, None, 100).await);
    let stage = Stage::new(long_pauses(), &[old.address], tasks);
    let both = [old.address, new.address];
    stage.rig.publish_after(2, &both, &[]).await;
    let sent = stage.send_started(Duration::from_secs(8), Moment::now().unix);
    let lost = new.call().await;
    assert!(!lost.spans.is_empty());
    let (seen, mut calls) = spans_of(&mut old, usize::from(SPANS)).await;
    assert_eq!(seen, all(), "its own and the copies");
    if delivered_before {
        calls.drain(..).for_each(Call::accept);
    }
    stage.rig.publish_after(3, &both, &[new.address]).await;
    calls.into_iter().for_each(Call::accept);
    assert_eq!(outcome_of(sent).await, Outcome::OK);
    assert!(old.is_quiet(), "nothing is sent to it again");
    let counted = format!("outcome=\"counted\"}} {}\n", lost.spans.len());
    assert!(recorder.render().contains(&counted), "{}", recorder.render());
}

#[tokio::test]
async fn copies_of_a_request_that_is_refused_do_not_go_on() {
    let (stage, mut old, mut new) = replaced().await;
    let sent = stage.send_started(Duration::from_secs(3600), Moment::now().unix);
    let (_, _copies) = spans_of(&mut old, usize::from(SPANS)).await;
    let (_, calls) = spans_of(&mut new, usize::from(SPANS)).await;
    calls.into_iter().for_each(|call| call.refuse(Status::invalid_argument("not these")));
    assert!(matches!(outcome_of(sent).await, Outcome::Refused(_)));
    wait_until(|| stage.budget.used() == 0).await;
}

#[tokio::test]
async fn a_part_that_a_backend_which_left_refuses_again_and_again_goes_to_the_current_owner() {
    let tasks = Tasks::new();
    let (mut old, mut new) = (Script::start(&tasks, None, 100).await, Script::start(&tasks, None, 100).await);
    let stage = Stage::new(with_keys(|keys| keys.retry_on_failure = short_pauses()), &[old.address], tasks);
    stage.rig.publish_after(2, &[new.address], &[]).await;
    let sent = stage.send_started(Duration::from_secs(8), Moment::now().unix - 10_000_000_000);
    for _ in 0..3 {
        let (_, calls) = spans_of(&mut old, usize::from(SPANS)).await;
        assert!(new.is_quiet(), "it may take them at the next attempt");
        calls.into_iter().for_each(|call| call.refuse(Status::unavailable("shutting down")));
    }
    let (again, calls) = spans_of(&mut new, usize::from(SPANS)).await;
    assert_eq!(again, all());
    calls.into_iter().for_each(Call::accept);
    assert_eq!(outcome_of(sent).await, Outcome::OK);
    assert!(old.is_quiet());
}

#[tokio::test]
async fn a_part_stays_at_its_backend_while_that_lives() {
    let tasks = Tasks::new();
    let (mut old, mut new) = (Script::start(&tasks, None, 100).await, Script::start(&tasks, None, 100).await);
    let stage = Stage::new(with_keys(|keys| keys.retry_on_failure = short_pauses()), &[old.address], tasks);
    stage.rig.publish_after(2, &[new.address], &[]).await;
    let sent = stage.send_started(Duration::from_secs(8), Moment::now().unix - 10_000_000_000);
    let (_, calls) = spans_of(&mut old, usize::from(SPANS)).await;
    stage.rig.publish_after(3, &[new.address], &[]).await;
    calls.into_iter().for_each(|call| call.refuse(Status::unavailable("busy")));
    let (again, calls) = spans_of(&mut old, usize::from(SPANS)).await;
    assert_eq!(again, all());
    calls.into_iter().for_each(Call::accept);
    assert_eq!(outcome_of(sent).await, Outcome::OK);
    assert!(new.is_quiet());
}
