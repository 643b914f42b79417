//! A sink that is stopped: it accepts connections and never answers.

use std::collections::HashSet;

use anyhow::Result;
use tokio::time::sleep;

use crate::{
    Pace,
    evidence::{Evidence, SECOND, latency_ms, now, share},
    table::Lines,
    world::{Load, World},
};

/// SIGSTOP of one of four, measured at the sinks.
pub(crate) async fn hang(pace: Pace) -> Result<Lines> {
    const HUNG: usize = 2;
    // What is ejected after an attempt's timeout is ejected sooner when there is little time.
    let mut world = World::start(4, if pace.is_quick { "timeout: 1s," } else { "" })?;
    let load = world.load(Load { rate: 100.0, retry: false, seed: now() });
    sleep(pace.seconds(6, 4)).await;
    let stopped = now();
    world.signal(HUNG, "STOP")?;
    sleep(pace.seconds(15, 6)).await;
    let going_on = now();
    world.signal(HUNG, "CONT")?;
    sleep(pace.seconds(8, 3)).await;
    let run = world.end(load).await?;
    let mut evidence = Evidence::gather(&world, run)?;
    let mut lines = Lines::default();
    let ejected = evidence
        .sent(0..u64::MAX, |a| a.owner == Some(HUNG) && a.sink != HUNG && a.entry.arrived > stopped)
        .map(|a| a.entry.arrived)
        .min();
    let until = ejected.unwrap_or(going_on).min(going_on);
    lines.fact("spans acknowledged", evidence.acknowledged());
    lines.fact("client errors", evidence.run.failed.len());
    lines.fact("the first", evidence.run.failed.first().map_or("none", |failed| failed.answer.as_str()));
    let after = ejected.map_or("never".to_owned(), |at| format!("{} ms", (at - stopped) / 1_000_000));
    lines.line("its spans went elsewhere after the stop", "before it goes on", after, ejected.is_some());

    let offered = evidence.offered(&world, stopped..until, |owner| owner != HUNG);
    let in_time: HashSet<_> = evidence
        .sent(stopped..until, |a| a.sink != HUNG && a.entry.arrived <= a.entry.sent + SECOND)
        .map(|a| (a.entry.trace, a.entry.span))
        .collect();
    let got = offered.iter().filter(|span| in_time.contains(*span)).count();
    lines.fact("spans offered to the other three until then", offered.len());
    lines.at_least_percent("of them, arrived within 1 s of being sent", 99.0, share(got, offered.len()));
    let others = |from: u64, to: u64| evidence.sent(from..to, |a| a.owner == Some(a.sink) && a.sink != HUNG);
    let (before, during) =
        (latency_ms(others(stopped - 3 * SECOND, stopped), 0.99), latency_ms(others(stopped, until), 0.99));
    lines.fact("p99 from send to sink before", format!("{before:.2} ms"));
    lines.line("p99 from send to sink until then", "≤ 2 × before", format!("{during:.2} ms"), during <= 2.0 * before);

    let settled = until + SECOND..going_on;
    let accepted = evidence.run.accepted.iter().filter(|a| settled.contains(&a.sent));
    let (sent, prompt) =
        accepted.fold((0, 0), |(sent, prompt), a| (sent + 1, prompt + usize::from(a.answered <= a.sent + SECOND)));
    let failed = evidence.run.failed.iter().filter(|failed| settled.contains(&failed.sent)).count();
    lines.at_least_percent(
        "requests sent later than 1 s after that, acknowledged within 1 s",
        99.0,
        share(prompt, sent + failed),
    );
    let owed = evidence.run.accepted.iter().filter(|a| (stopped..until).contains(&a.sent) && a.answered > until);
    let (owed, slow) = owed.fold((0, 0), |(owed, slow), a| (owed + 1, slow + usize::from(a.answered > until + SECOND)));
    lines.fact("requests that waited for it and were acknowledged after that", owed);
    lines.at_most_percent("of them, later than 1 s after that", 1.0, if owed == 0 { 0.0 } else { share(slow, owed) });
    lines.none("acknowledged spans missing", evidence.missing());
    let moved = evidence.arrivals.iter().filter(|a| a.owner != Some(HUNG) && a.owner != Some(a.sink)).count();
    lines.none("spans of other sinks' slots that went elsewhere", moved);
    lines.fact("duplicates", evidence.duplicates(|_| true));
    Ok(lines)
}
