//! A way to a backend that fails without a broken connection; backends that are slow or paused, and well.

use std::time::Duration;

use anyhow::Result;
use spanring::tools::load::Pace as LoadPace;
use tokio::time::sleep;

use crate::{
    Pace,
    evidence::{Evidence, SECOND, now, share},
    plan::{Load, PATIENCE, Plan},
    table::Lines,
    world::World,
};

const EJECTIONS: &str = "spanring_membership_ejections_total";

/// How one of two sinks fails, and whether that is a failure of the way to it.
const FAILURES: [(&str, bool); 5] = [
    ("refused_stream", true),
    ("http502", true),
    ("http503", true),
    ("unavailable", false),
    ("resource_exhausted", false),
];

/// One of two sinks has every stream refused, or is behind a box that says 502 or 503. The last two are a collector's own
/// answers: it is not ejected for them.
pub(crate) async fn refused_streams(pace: Pace) -> Result<Lines> {
    let mut lines = Lines::default();
    for (code, is_of_the_way) in FAILURES {
        lines.about(code);
        let mut world = World::start(Plan { sinks: 2, ..Plan::default() })?;
        world.load(Load { pace: LoadPace::Open { rate: 40.0 }, patience: &PATIENCE, ..Load::default() });
        sleep(Duration::from_secs(2)).await;
        let from = now();
        world.behave(0, &format!(r#"{{"failure_rate": 1.0, "failure_code": "{code}"}}"#))?;
        sleep(pace.seconds(10, 6)).await;
        let ejections = world.metric(EJECTIONS, "").unwrap_or(0.0);
        let run = world.end().await?;
        let evidence = Evidence::gather(&world, run)?;
        let failures = evidence.failures();
        lines.fact("requests acknowledged", evidence.accepted().count());
        lines.fact("requests that failed", failures.len());
        lines.fact("the first", evidence.first_failure());
        if is_of_the_way {
            lines.line("proxies that ejected it", "≥ 3 ejections", ejections, ejections >= 3.0);
            // Clients of 2 s whose requests were there before the ejection.
            let late = failures.iter().filter(|failed| failed.answered > from + 3 * SECOND).count();
            lines.none("client errors later than 3 s after it began", late);
        } else {
            lines.line("ejections", "0", ejections, ejections == 0.0);
        }
        lines.none("acknowledged spans missing", evidence.missing());
    }
    Ok(lines)
}

/// Backends that answer each call after 3 s and PINGs at once, then pauses of 0.8 s: nobody is ejected for that. Then one
/// that answers PINGs and no call at all.
pub(crate) async fn slow(pace: Pace) -> Result<Lines> {
    let mut lines = Lines::default();
    living(pace, &mut lines).await?;
    // One after the other: patient clients would find it for the impatient.
    for patience in PATIENCE.chunks(1) {
        mute(patience, &mut lines).await?;
    }
    Ok(lines)
}

async fn living(pace: Pace, lines: &mut Lines) -> Result<()> {
    let mut world = World::start(Plan::default())?;
    (0..4).try_for_each(|n| world.behave(n, r#"{"delay_ms": 3000}"#))?;
    world.load(Load::default());
    sleep(pace.seconds(20, 8)).await;
    let slow = world.metric(EJECTIONS, "").unwrap_or(0.0);
    (0..4).try_for_each(|n| world.behave(n, "{}"))?;
    // The last slow answers.
    sleep(Duration::from_secs(4)).await;
    let from = now();
    for n in (0..4).cycle().take(if pace.is_quick { 4 } else { 12 }) {
        world.signal(n, "STOP")?;
        sleep(Duration::from_millis(800)).await;
        world.signal(n, "CONT")?;
        sleep(Duration::from_secs(1)).await;
    }
    let paused = world.metric(EJECTIONS, "").unwrap_or(0.0) - slow;
    let run = world.end().await?;
    let evidence = Evidence::gather(&world, run)?;
    let slowly = evidence.accepted().filter(|a| a.answered >= a.sent + 3 * SECOND).count();
    lines.fact("requests acknowledged", evidence.accepted().count());
    lines.fact("of them, after 3 s or more", slowly);
    let waited = evidence.accepted().filter(|a| a.sent > from && a.answered > a.sent + SECOND / 2).count();
    lines.fact("of those sent while backends were paused, acknowledged after 0.5 s or more", waited);
    lines.fact("the first client error", evidence.first_failure());
    lines.line("backends ejected that answered after 3 s", "0", slow, slow == 0.0);
    lines.line("backends ejected that were paused for 0.8 s", "0", paused, paused == 0.0);
    lines.none("client errors", evidence.failures().len());
    lines.none("acknowledged spans missing", evidence.missing());
    let moved = evidence.arrivals.iter().filter(|a| a.owner != Some(a.sink)).count();
    lines.at_most_percent("spans that went elsewhere", 0.0, share(moved, evidence.arrivals.len()));
    let twice = evidence.duplicates(|_| true);
    lines.none("spans delivered twice", twice);
    Ok(())
}

/// A sink that answers PINGs at once, and calls after a minute: it is ejected once it answered none for 2 × `timeout`.
async fn mute(patience: &'static [u64], lines: &mut Lines) -> Result<()> {
    lines.about(&format!("a backend that answers PINGs and no call, clients of {patience:?} s"));
    let mut world = World::start(Plan::default())?;
    world.load(Load { patience, pace: LoadPace::Open { rate: 40.0 }, ..Load::default() });
    sleep(Duration::from_secs(2)).await;
    let from = now();
    world.behave(0, r#"{"delay_ms": 60000}"#)?;
    let mut ejected = None;
    while now() < from + 20 * SECOND {
        sleep(Duration::from_millis(200)).await;
        if ejected.is_none() && world.metric(EJECTIONS, "").unwrap_or(0.0) > 0.0 {
            ejected = Some(Duration::from_nanos(now() - from).as_secs_f64());
        }
    }
    let by = world.metric(EJECTIONS, "").unwrap_or(0.0);
    let run = world.end().await?;
    let evidence = Evidence::gather(&world, run)?;
    let failures = evidence.failures();
    lines.fact("requests that failed", failures.len());
    let after = ejected.map_or("never".to_owned(), |seconds| format!("{seconds:.1} s"));
    let holds = ejected.is_some_and(|seconds| (9.0..17.0).contains(&seconds)) && by >= 3.0;
    lines.line("ejected first after, and by each proxy", "9 to 17 s", format!("{after}, {by} times"), holds);
    let late = failures.iter().filter(|failed| failed.answered > from + 16 * SECOND).count();
    // Its answers to health checks bring it back, and then its next calls wait in vain.
    lines.fact("of them, later than 16 s after it began", late);
    lines.none("acknowledged spans missing", evidence.missing());
    Ok(())
}
