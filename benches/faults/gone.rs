//! Sinks that die: one of four, and all.

use std::time::Duration;

use anyhow::Result;
use spanring::ring::Table;
use tokio::time::sleep;

use crate::{
    Pace,
    evidence::{Evidence, SECOND, now, share},
    network,
    plan::{BUDGET_MIB, Load, Place, Plan},
    table::Lines,
    world::World,
};

/// What a proxy may hold beside its budget, in MiB.
const BESIDE_MIB: u64 = 64;

/// When DNS drops the dead sink.
const DNS_LATE: u64 = 3;

/// When one of four died, when names stopped to list it, and when it was there again and listed.
struct Times {
    killed: u64,
    unlisted: u64,
    back: u64,
}

/// kill -9 of one of four; DNS drops it three seconds later.
pub(crate) async fn kill(pace: Pace) -> Result<Lines> {
    const DOOMED: usize = 1;
    if let Some(reason) = network::why_not() {
        return Ok(Lines::skipped(&format!("a name server for processes needs root: {reason}")));
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
    // Names are asked for every five seconds.
    sleep(pace.seconds(30 - DNS_LATE, 7)).await;
    let members = world.metric("spanring_ring_members", "");
    let back = now();
    world.revive(DOOMED)?;
    world.list(|_| true);
    sleep(pace.seconds(10, 7)).await;
    let run = world.end().await?;
    let evidence = Evidence::gather(&world, run)?;
    let mut lines = Lines::default();
    let (early, late) = (evidence.failed(killed..killed + SECOND), evidence.failed(killed + SECOND..u64::MAX));
    let late: Vec<_> = late.collect();
    let metric = |value: Option<f64>| value.map_or("no such metric".to_owned(), |n| n.to_string());
    lines.fact("spans acknowledged", evidence.acknowledged());
    lines.fact("client errors in the first second", early.count());
    lines.fact("the first client error after it", late.first().map_or("none", |failed| failed.answer.as_str()));
    lines.fact("ejections that the three proxies counted before DNS dropped it", metric(ejections));
    lines.line("members that the three proxies had before it came back", "9", metric(members), members == Some(9.0));
    let returned =
        evidence.arrivals.iter().filter(|a| a.sink == DOOMED && a.entry.arrived > back).map(|a| a.entry.arrived);
    let after = returned.min().map(|at| format!("{} ms", (at - back) / 1_000_000));
    lines.fact("the sink that came back got spans after", after.unwrap_or_else(|| "never".to_owned()));
    lines.fact("duplicates in all", evidence.duplicates(|_| true));
    lines.none("acknowledged spans missing", evidence.missing());
    lines.none("client errors after the first second", late.len());
    let near = killed - SECOND..killed + SECOND;
    lines.at_most_percent("spans delivered twice, of those sent within 1 s of the kill", 1.0, evidence.twice(near));
    placement(&world, &evidence, &mut lines, DOOMED, &Times { killed, unlisted, back })?;
    Ok(lines)
}

/// Where the dead sink's traces went, and whether anyone else's moved.
fn placement(world: &World, evidence: &Evidence, lines: &mut Lines, doomed: usize, times: &Times) -> Result<()> {
    let Times { killed, unlisted, back } = *times;
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

    let (ejected, left) = (world.table(&[doomed])?, world.table_without(doomed)?);
    let mut moves = Moves::default();
    for arrival in &evidence.arrivals {
        let (trace, at) = (&arrival.entry.trace, arrival.entry.arrived);
        let is_of_dead = arrival.owner == Some(doomed);
        let is_where = |table: &Table| world.sink_of(table, trace) == Some(arrival.sink);
        match (is_of_dead, at < unlisted) {
            (false, true) => moves.others_by_ejection += usize::from(arrival.owner != Some(arrival.sink)),
            (false, false) => moves.others_later.add(arrival.owner != Some(arrival.sink)),
            // In the first second replicas may still find out.
            (true, true) => moves.dead_by_ejection += usize::from(at > killed + SECOND && !is_where(&ejected)),
            (true, false) if at < back => {
                moves.dead_later.add(!is_where(&ejected));
                moves.nowhere += usize::from(!is_where(&ejected) && !is_where(&left));
            }
            (true, false) => {}
        }
    }
    lines.none("spans of other sinks' slots that went elsewhere by the ejection", moves.others_by_ejection);
    lines.none("of the dead one's, spans that went to another than the substitute", moves.dead_by_ejection);
    lines.at_most_percent(
        "once it had left DNS: of the dead one's spans, moved a second time",
        1.0,
        moves.dead_later.share(),
    );
    lines.none("of them, spans that went where neither table says", moves.nowhere);
    lines.at_most_percent("once it had left DNS: of the others' spans, moved", 0.1, moves.others_later.share());
    Ok(())
}

/// Spans that were not where they had been before.
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

/// All sinks dead.
pub(crate) async fn outage(pace: Pace) -> Result<Lines> {
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
    let peak = world.held()?.iter().map(|held| held.peak_kib).max().unwrap_or(0) >> 10;
    let run = world.end().await?;
    let evidence = Evidence::gather(&world, run)?;
    let mut lines = Lines::default();
    let first = evidence.accepted().map(|accepted| accepted.answered).filter(|at| *at > back).min();
    let failures: Vec<_> = evidence.failed(0..u64::MAX).collect();
    let permanent: Vec<_> = failures.iter().filter(|failed| !failed.is_retryable).collect();
    lines.fact("spans acknowledged", evidence.acknowledged());
    lines.fact("requests that failed", failures.len());
    lines.fact("outage", format!("{:.1} s", Duration::from_nanos(back - killed).as_secs_f64()));
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
    let late = failures.iter().filter(|failed| failed.sent > settled).count();
    lines.none("client errors of requests sent once that was settled", late);
    Ok(lines)
}
