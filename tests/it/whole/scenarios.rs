//! Whole traces with real proxies, backends and name servers: the bench in compressed time, and faults inside of an open
//! window. The runs of a test take place at the same time.
//!
//! The tests need root. They print a line when they are skipped (see [`NameServer::start`]).

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{
    plan::{BACKENDS, Event, Plan, Step},
    proxy::Program,
    run::{Outcome, Run},
    traces::Spec,
};
use crate::nameserver::NameServer;

/// The hand-off's window. It is longer than the longest trace by far more than the skew, since a busy machine makes
/// replicas learn later.
const WINDOW: Duration = Duration::from_secs(4);

const LONGEST_TRACE: Duration = Duration::from_secs(1);

/// The hand-off's skew: what a busy machine adds to the time by which replicas learn later is in it.
const HANDOFF_SKEW: Duration = Duration::from_millis(2_500);

/// The time by which the replicas learn of a change at different times.
const SKEW: Duration = Duration::from_millis(500);

const HOLD_DOWN: Duration = Duration::from_millis(500);

/// The factor of the times of the bench's events.
const SCALE: f64 = 0.11;

/// The traffic of a run. The services export five times as often as SDKs do.
fn spec() -> Spec {
    let batches = [1_000, 200].map(Duration::from_millis).to_vec();
    Spec { traces_per_second: 80.0, batches, lengths: Duration::from_millis(10)..=LONGEST_TRACE, ..Spec::default() }
}

fn run(event: &'static str, plan: Plan, hold_down: Duration) -> Result<Run> {
    let program = Program::spanring("dual", [WINDOW, HANDOFF_SKEW], hold_down)?.map_err(anyhow::Error::msg)?;
    Ok(Run { event, plan, program, skew: SKEW, scale: SCALE, spec: spec() })
}

/// Executes runs at the same time; `None` if there can be no name server here.
fn execute(runs: Vec<Run>) -> Result<Option<Vec<Outcome>>> {
    if NameServer::start()?.is_none() {
        return Ok(None);
    }
    let runtime = Arc::new(tokio::runtime::Runtime::new()?);
    let outcomes = std::thread::scope(|scope| {
        let start = |run: Run| {
            let runtime = Arc::clone(&runtime);
            scope.spawn(move || run.execute(runtime.handle()).with_context(|| run.event))
        };
        let running: Vec<_> = runs.into_iter().map(start).collect();
        running.into_iter().map(|run| run.join().expect("a run panicked")).collect::<Result<Vec<_>>>()
    });
    outcomes.map(Some)
}

/// Checks that every acknowledged span was delivered, that every span was acknowledged, and that every trace is whole
/// which could be kept whole.
fn check(outcome: &Outcome) -> Result<()> {
    let Outcome { verdict, .. } = outcome;
    ensure!(verdict.lost == 0, "acknowledged spans are nowhere: {outcome:?}");
    ensure!(verdict.refused == 0, "spans were not acknowledged in the end: {outcome:?}");
    ensure!(verdict.near.traces > 50, "hardly anything was near the change: {outcome:?}");
    ensure!(verdict.inexcusable() == 0, "traces were split: {outcome:?}");
    Ok(())
}

/// The same if no backend stopped: all traces are whole.
fn check_whole(outcome: &Outcome) -> Result<()> {
    check(outcome)?;
    let split = outcome.verdict.near.excusable + outcome.verdict.far.excusable;
    ensure!(split == 0, "{split} traces are not whole, and no backend stopped: {outcome:?}");
    Ok(())
}

#[test]
fn planned_changes_split_no_trace_in_compressed_time() -> Result<()> {
    // A machine under load may look away for longer than a flap takes.
    let events = [
        (Event::OneMore, HOLD_DOWN),
        (Event::Drained, HOLD_DOWN),
        (Event::OtherRing, HOLD_DOWN),
        (Event::Flapping, Duration::from_secs(4)),
    ];
    let runs = events.map(|(event, hold_down)| run(event.name(), event.plan(BACKENDS, SCALE), hold_down));
    let Some(outcomes) = execute(runs.into_iter().collect::<Result<_>>()?)? else { return Ok(()) };
    outcomes.iter().try_for_each(check_whole)?;
    let [one_more, drained, other_ring, flapping] = &outcomes[..] else { anyhow::bail!("four runs, four outcomes") };
    for outcome in [one_more, drained, other_ring] {
        let moved = outcome.verdict.moved.whole_share();
        ensure!(moved == Some(1.0) && outcome.verdict.moved.traces > 10, "hardly anything moved: {outcome:?}");
        ensure!(outcome.verdict.all_spans.twice > 0, "no window was open: {outcome:?}");
    }
    ensure!(one_more.verdict.later_spans.twice == 0, "spans come twice after the window: {one_more:?}");
    let Outcome { verdict, .. } = flapping;
    ensure!(verdict.all_spans.twice == 0 && verdict.all_spans.traffic() == Some(1.0), "sent twice: {flapping:?}");
    Ok(())
}

/// When the first backend joins, so that a window opens, and when something else happens while it is open.
const OPENS: Duration = Duration::from_secs(2);
const INSIDE: Duration = Duration::from_secs(4);

/// A plan in which a fifth backend joins. Traces start for 2 s after the window's last event.
fn window_opens() -> Plan {
    let mut plan = Plan { replicas: 2, length: Duration::from_secs(7), ..Plan::default() };
    plan.join(OPENS, 1);
    plan
}

#[test]
fn faults_and_changes_inside_of_a_window_lose_and_split_nothing() -> Result<()> {
    let mut death = window_opens();
    death.steps.push((INSIDE, Step::Kill(0)));
    let mut killed = window_opens();
    killed.steps.push((INSIDE, Step::KillReplica(0)));
    let mut twice = window_opens();
    twice.join(INSIDE, 1);
    let mut back = window_opens();
    back.list(INSIDE, Plan::default().listed());
    let plans = [
        ("a backend dies inside of a window", death),
        ("a proxy is killed inside of a window", killed),
        ("two changes 2 s apart", twice),
        ("a change and back", back),
    ];
    let runs = plans.map(|(name, mut plan)| {
        plan.steps.sort_by_key(|(at, _)| *at);
        run(name, plan, HOLD_DOWN)
    });
    let Some(outcomes) = execute(runs.into_iter().collect::<Result<_>>()?)? else { return Ok(()) };
    for outcome in &outcomes {
        ensure!(outcome.verdict.moved.traces > 10 && outcome.verdict.all_spans.twice > 0, "no window: {outcome:?}");
    }
    let [death, others @ ..] = &outcomes[..] else { anyhow::bail!("there are four") };
    check(death)?;
    ensure!(death.verdict.near.excusable > 0, "nothing was at the backend that died: {death:?}");
    others.iter().try_for_each(check_whole)
}
