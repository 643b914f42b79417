//! Killed sinks: one of four, and all of them.

use std::time::Duration;

use anyhow::Result;
use spanring::ring::Table;
use tokio::time::sleep;

use crate::{
    Pace,
    evidence::{Evidence, SECOND, now, share},
    network,
    plan::{BUDGET_MIB, Load, Place, Plan},
    table::Findings,
    world::World,
};

/// The memory that a proxy may use in addition to its budget, in MiB.
const OVERHEAD_MIB: u64 = 64;

/// After how many seconds DNS drops the killed sink.
const DNS_LATE: u64 = 3;

/// When one of four sinks was killed, when DNS stopped listing it, and when it was restarted and listed again.
struct Times {
    killed: u64,
    unlisted: u64,
    back: u64,
}

/// kill -9 of one of four sinks; DNS drops it three seconds later.
pub(crate) async fn kill(pace: Pace) -> Result<Findings> {
    const DOOMED: usize = 1;
    if let Some(reason) = network::why_not() {
        return Ok(Findings::skipped(&format!("a name server for processes needs root: {reason}")));
    }
    let mut world = World::start(Plan { place: Place::Named, ..Plan::default() })?;
    world.load(Load::default());
    sleep(pace.seconds(5, 3)).await;
    let killed = now();
    world.kill(DOOMED);
    sleep(Duration::from_secs(DNS_LATE)).await;
    let ejections = world.metric("spanring_membership_ejections_total", "");
    let unlisted = now();
    world.list(|n| n != DOOMED);
    // DNS is queried every five seconds.
    sleep(pace.seconds(30 - DNS_LATE, 7)).await;
    let members = world.metric("spanring_ring_members", "");
    let back = now();
    world.revive(DOOMED)?;
    world.list(|_| true);
    sleep(pace.seconds(10, 7)).await;
    let run = world.end().await?;
    let evidence = Evidence::gather(&world, run)?;
    let mut findings = Findings::default();
    let (early, late) = (evidence.failed(killed..killed + SECOND), evidence.failed(killed + SECOND..u64::MAX));
    let late: Vec<_> = late.collect();
    let metric = |value: Option<f64>| value.map_or("no such metric".to_owned(), |n| n.to_string());
    findings.fact("spans acknowledged", evidence.acknowledged());
    findings.fact("client errors in the first second", early.count());
    findings.fact(
        "first client error after the first second",
        late.first().map_or("none", |failed| failed.answer.as_str()),
    );
    findings.fact("ejections counted by the three proxies before DNS dropped the sink", metric(ejections));
    findings.check("members of the three proxies before the sink returned", "9", metric(members), members == Some(9.0));
    let returned =
        evidence.arrivals.iter().filter(|a| a.sink == DOOMED && a.entry.arrived > back).map(|a| a.entry.arrived);
    let after = returned.min().map(|at| format!("{} ms", (at - back) / 1_000_000));
    findings.fact("time until the returned sink got spans", after.unwrap_or_else(|| "never".to_owned()));
    findings.fact("duplicates in total", evidence.duplicates(|_| true));
    findings.zero("acknowledged spans missing", evidence.missing());
    findings.zero("client errors after the first second", late.len());
    let near = killed - SECOND..killed + SECOND;
    findings.at_most_percent("spans delivered twice, of those sent within 1 s of the kill", 1.0, evidence.twice(near));
    placement(&world, &evidence, &mut findings, DOOMED, &Times { killed, unlisted, back })?;
    Ok(findings)
}

/// Checks where the killed sink's traces went, and that no other traces moved.
fn placement(world: &World, evidence: &Evidence, findings: &mut Findings, doomed: usize, times: &Times) -> Result<()> {
    let Times { killed, unlisted, back } = *times;
    let of_dead = || evidence.sent(killed..back, |a| a.owner == Some(doomed) && a.sink != doomed);
    let first = of_dead().map(|a| a.entry.arrived.saturating_sub(killed)).min();
    let first_ms = first.map_or("never".to_owned(), |ns| format!("{} ms", ns / 1_000_000));
    findings.check(
        "time until the killed sink's spans went to another sink",
        "≤ 1000 ms",
        first_ms,
        first.is_some_and(|ns| ns <= SECOND),
    );
    let overdue = of_dead().filter(|a| a.entry.arrived > a.entry.sent.max(killed) + SECOND).count();
    findings.zero("of these spans, arrived later than 1 s after they were sent", overdue);

    let (ejected, left) = (world.table(&[doomed])?, world.table_without(doomed)?);
    let mut moves = Moves::default();
    for arrival in &evidence.arrivals {
        let (trace, at) = (&arrival.entry.trace, arrival.entry.arrived);
        let is_of_dead = arrival.owner == Some(doomed);
        let is_where = |table: &Table| world.sink_of(table, trace) == Some(arrival.sink);
        match (is_of_dead, at < unlisted) {
            (false, true) => moves.others_by_ejection += usize::from(arrival.owner != Some(arrival.sink)),
            (false, false) => moves.others_later.add(arrival.owner != Some(arrival.sink)),
            // During the first second some replicas may not have noticed yet.
            (true, true) => moves.dead_by_ejection += usize::from(at > killed + SECOND && !is_where(&ejected)),
            (true, false) if at < back => {
                moves.dead_later.add(!is_where(&ejected));
                moves.nowhere += usize::from(!is_where(&ejected) && !is_where(&left));
            }
            (true, false) => {}
        }
    }
    findings.zero("spans of other sinks' slots moved by the ejection", moves.others_by_ejection);
    findings.zero("the killed sink's spans that did not go to the substitute", moves.dead_by_ejection);
    findings.at_most_percent(
        "after DNS dropped it: the killed sink's spans that moved a second time",
        1.0,
        moves.dead_later.share(),
    );
    findings.zero("of these spans, sent to a sink that neither table names", moves.nowhere);
    findings.at_most_percent("after DNS dropped it: other sinks' spans that moved", 0.1, moves.others_later.share());
    Ok(())
}

/// Numbers of spans that changed their sink.
#[derive(Default)]
struct Moves {
    others_by_ejection: usize,
    others_later: Share,
    dead_by_ejection: usize,
    dead_later: Share,
    nowhere: usize,
}

#[derive(Default)]
struct Share {
    moved: usize,
    all: usize,
}

impl Share {
    fn add(&mut self, moved: bool) {
        self.moved += usize::from(moved);
        self.all += 1;
    }

    fn share(&self) -> f64 {
        if self.all == 0 { 0.0 } else { share(self.moved, self.all) }
    }
}

/// All sinks are killed.
pub(crate) async fn outage(pace: Pace) -> Result<Findings> {
    let mut world = World::start(Plan::default())?;
    world.load(Load::default());
    sleep(pace.seconds(5, 3)).await;
    let killed = now();
    (0..4).for_each(|n| world.kill(n));
    sleep(pace.seconds(20, 6)).await;
    let back = now();
    for n in 0..4 {
        world.revive(n)?;
    }
    sleep(pace.seconds(10, 5)).await;
    let peak = world.resources()?.iter().map(|held| held.peak_kib).max().unwrap_or(0) >> 10;
    let run = world.end().await?;
    let evidence = Evidence::gather(&world, run)?;
    let mut findings = Findings::default();
    let first = evidence.accepted().map(|accepted| accepted.answered).filter(|at| *at > back).min();
    let failures: Vec<_> = evidence.failed(0..u64::MAX).collect();
    let permanent: Vec<_> = failures.iter().filter(|failed| !failed.is_retryable).collect();
    findings.fact("spans acknowledged", evidence.acknowledged());
    findings.fact("requests that failed", failures.len());
    findings.fact("length of the outage", format!("{:.1} s", Duration::from_nanos(back - killed).as_secs_f64()));
    findings.fact(
        "first client error that was not retryable",
        permanent.first().map_or("none", |failed| failed.answer.as_str()),
    );
    findings.fact("duplicates", evidence.duplicates(|_| true));
    findings.zero("client errors that were not retryable", permanent.len());
    let limit = BUDGET_MIB + OVERHEAD_MIB;
    findings.check("largest resident set of a proxy", &format!("≤ {limit} MiB"), format!("{peak} MiB"), peak <= limit);
    findings.zero("acknowledged spans missing", evidence.missing());
    let after = first.map_or("never".to_owned(), |at| format!("{} ms", (at - back) / 1_000_000));
    findings.check(
        "time from the sinks' return to the first acknowledgement",
        "≤ 5000 ms",
        after,
        first.is_some_and(|at| at - back <= 5 * SECOND),
    );
    let settled = back + 5 * SECOND / if pace.is_quick { 2 } else { 1 };
    let late = failures.iter().filter(|failed| failed.sent > settled).count();
    findings.zero("client errors of requests sent after the sinks had recovered", late);
    Ok(findings)
}
