//! Sinks that die: one of four, and all.

use anyhow::Result;
use tokio::time::sleep;

use crate::{
    Pace,
    evidence::{Evidence, SECOND, now},
    table::Lines,
    world::{BUDGET_MIB, Load, World},
};

/// What a proxy may hold beside its budget, in MiB.
const BESIDE_MIB: u64 = 64;

/// kill -9 of one of four.
pub(crate) async fn kill(pace: Pace) -> Result<Lines> {
    const DOOMED: usize = 1;
    let mut world = World::start(4, "")?;
    let load = world.load(Load { rate: 100.0, retry: false, seed: now() });
    sleep(pace.seconds(5, 3)).await;
    let killed = now();
    world.kill(DOOMED);
    sleep(pace.seconds(30, 7)).await;
    let ejections = world.metric("spanring_membership_ejections_total", "");
    let back = now();
    world.revive(DOOMED)?;
    sleep(pace.seconds(10, 5)).await;
    let run = world.end(load).await?;
    let evidence = Evidence::gather(&world, run)?;
    let mut lines = Lines::default();
    let (early, late) = (evidence.failed(killed..killed + SECOND), evidence.failed(killed + SECOND..u64::MAX));
    let late: Vec<_> = late.collect();
    lines.fact("spans acknowledged", evidence.acknowledged());
    lines.fact("client errors in the first second", early.count());
    lines.fact("the first client error after it", late.first().map_or("none", |failed| failed.answer.as_str()));
    lines.fact("ejections that the proxies counted", ejections.map_or("no such metric".to_owned(), |n| n.to_string()));
    let returned =
        evidence.arrivals.iter().filter(|a| a.sink == DOOMED && a.entry.arrived > back).map(|a| a.entry.arrived);
    let after = returned.min().map(|at| format!("{} ms", (at - back) / 1_000_000));
    lines.fact("the sink that came back got spans after", after.unwrap_or_else(|| "never".to_owned()));
    lines.fact("duplicates in all", evidence.duplicates(|_| true));
    lines.none("acknowledged spans missing", evidence.missing());
    lines.none("client errors after the first second", late.len());
    let near = killed - SECOND..killed + SECOND;
    lines.at_most_percent("spans delivered twice, of those sent within 1 s of the kill", 1.0, evidence.twice(near));
    placement(&world, &evidence, &mut lines, DOOMED, killed, back)?;
    Ok(lines)
}

/// Where the dead sink's traces went, and whether anyone else's moved.
fn placement(
    world: &World,
    evidence: &Evidence,
    lines: &mut Lines,
    doomed: usize,
    killed: u64,
    back: u64,
) -> Result<()> {
    let moved = evidence.arrivals.iter().filter(|a| a.owner != Some(doomed) && a.owner != Some(a.sink)).count();
    lines.none("spans of other sinks' slots that went elsewhere", moved);
    let of_dead = || evidence.sent(killed..back, |a| a.owner == Some(doomed) && a.sink != doomed);
    let first = of_dead().map(|a| a.entry.arrived.saturating_sub(killed)).min();
    let first_ms = first.map_or("never".to_owned(), |ns| format!("{} ms", ns / 1_000_000));
    lines.line(
        "first of the dead one's spans served elsewhere",
        "≤ 1000 ms",
        first_ms,
        first.is_some_and(|ns| ns <= SECOND),
    );
    let overdue = of_dead().filter(|a| a.entry.arrived > a.entry.sent.max(killed) + SECOND).count();
    lines.none("of them, spans that arrived later than 1 s after they were sent", overdue);
    let without = world.table(&[doomed])?;
    let settled = killed + SECOND..back;
    let elsewhere = evidence
        .arrivals
        .iter()
        .filter(|a| a.owner == Some(doomed) && settled.contains(&a.entry.arrived))
        .filter(|a| world.sink_of(&without, &a.entry.trace) != Some(a.sink))
        .count();
    lines.none("of them, spans that went to another than the substitute all replicas choose", elsewhere);
    Ok(())
}

/// All sinks dead.
pub(crate) async fn outage(pace: Pace) -> Result<Lines> {
    let mut world = World::start(4, "")?;
    let load = world.load(Load { rate: 100.0, retry: false, seed: now() });
    sleep(pace.seconds(5, 3)).await;
    let killed = now();
    (0..4).for_each(|n| world.kill(n));
    sleep(pace.seconds(20, 6)).await;
    let back = now();
    for n in 0..4 {
        world.revive(n)?;
    }
    sleep(pace.seconds(10, 5)).await;
    let peak = world.held()?.iter().map(|held| held.peak_kib).max().unwrap_or(0) >> 10;
    let run = world.end(load).await?;
    let evidence = Evidence::gather(&world, run)?;
    let mut lines = Lines::default();
    let first = evidence.run.accepted.iter().map(|accepted| accepted.answered).filter(|at| *at > back).min();
    let permanent: Vec<_> = evidence.run.failed.iter().filter(|failed| !failed.is_retryable).collect();
    lines.fact("spans acknowledged", evidence.acknowledged());
    lines.fact("requests that failed", evidence.run.failed.len());
    lines.fact("outage", format!("{:.1} s", std::time::Duration::from_nanos(back - killed).as_secs_f64()));
    lines.fact("the first that was not retryable", permanent.first().map_or("none", |failed| failed.answer.as_str()));
    lines.fact("duplicates", evidence.duplicates(|_| true));
    lines.none("client errors that were not retryable", permanent.len());
    let limit = BUDGET_MIB + BESIDE_MIB;
    lines.line("largest resident set of a proxy", &format!("≤ {limit} MiB"), format!("{peak} MiB"), peak <= limit);
    lines.none("acknowledged spans missing", evidence.missing());
    let after = first.map_or("never".to_owned(), |at| format!("{} ms", (at - back) / 1_000_000));
    lines.line(
        "first acknowledgement after the return",
        "≤ 5000 ms",
        after,
        first.is_some_and(|at| at - back <= 5 * SECOND),
    );
    let settled = back + 5 * SECOND / if pace.is_quick { 2 } else { 1 };
    let late = evidence.run.failed.iter().filter(|failed| failed.sent > settled).count();
    lines.none("client errors of requests sent once that was settled", late);
    Ok(lines)
}
