//! Backends that fail without a broken connection, and healthy backends that are slow or paused.

use std::time::Duration;

use anyhow::Result;
use spanring::tools::load::Pace as LoadPace;
use tokio::time::sleep;

use crate::{
    Pace,
    evidence::{Evidence, SECOND, now, share},
    plan::{CLIENT_TIMEOUTS, Load, Plan},
    table::Findings,
    world::World,
};

const EJECTIONS: &str = "spanring_membership_ejections_total";

/// How one of two sinks fails, and whether that counts as a failure of the connection to it.
const FAILURES: [(&str, bool); 5] = [
    ("refused_stream", true),
    ("http502", true),
    ("http503", true),
    ("unavailable", false),
    ("resource_exhausted", false),
];

/// One of two sinks has every stream refused, or sits behind a proxy that answers 502 or 503. The last two failures are
/// a collector's own answers, which must not eject it.
pub(crate) async fn refused_streams(pace: Pace) -> Result<Findings> {
    let mut findings = Findings::default();
    for (code, is_of_the_way) in FAILURES {
        findings.section(code);
        let mut world = World::start(Plan { sinks: 2, ..Plan::default() })?;
        world.load(Load { pace: LoadPace::Open { rate: 40.0 }, timeouts: &CLIENT_TIMEOUTS, ..Load::default() });
        sleep(Duration::from_secs(2)).await;
        let from = now();
        world.behave(0, &format!(r#"{{"failure_rate": 1.0, "failure_code": "{code}"}}"#))?;
        sleep(pace.seconds(10, 6)).await;
        let ejections = world.metric(EJECTIONS, "").unwrap_or(0.0);
        let run = world.end().await?;
        let evidence = Evidence::gather(&world, run)?;
        let failures = evidence.failures();
        findings.fact("requests acknowledged", evidence.accepted().count());
        findings.fact("requests that failed", failures.len());
        findings.fact("first error", evidence.first_failure());
        if is_of_the_way {
            findings.check("proxies that ejected it", "≥ 3 ejections", ejections, ejections >= 3.0);
            // Requests that were sent before the ejection by clients that wait 2 s may still fail.
            let late = failures.iter().filter(|failed| failed.answered > from + 3 * SECOND).count();
            findings.zero("client errors later than 3 s after the failures began", late);
        } else {
            findings.check("ejections", "0", ejections, ejections == 0.0);
        }
        findings.zero("acknowledged spans missing", evidence.missing());
    }
    Ok(findings)
}

/// Backends that answer calls after 3 s and PINGs at once, then pauses of 0.8 s; neither may cause an ejection. Then a
/// backend that answers PINGs but no calls.
pub(crate) async fn slow(pace: Pace) -> Result<Findings> {
    let mut findings = Findings::default();
    living(pace, &mut findings).await?;
    // One kind of client at a time, since patient clients would detect the failure for the impatient ones.
    for timeouts in CLIENT_TIMEOUTS.chunks(1) {
        mute(timeouts, &mut findings).await?;
    }
    Ok(findings)
}

async fn living(pace: Pace, findings: &mut Findings) -> Result<()> {
    let mut world = World::start(Plan::default())?;
    (0..4).try_for_each(|n| world.behave(n, r#"{"delay_ms": 3000}"#))?;
    world.load(Load::default());
    sleep(pace.seconds(20, 8)).await;
    let slow = world.metric(EJECTIONS, "").unwrap_or(0.0);
    (0..4).try_for_each(|n| world.behave(n, "{}"))?;
    // Waits for the last slow answers.
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
    findings.fact("requests acknowledged", evidence.accepted().count());
    findings.fact("of these requests, acknowledged after 3 s or more", slowly);
    let waited = evidence.accepted().filter(|a| a.sent > from && a.answered > a.sent + SECOND / 2).count();
    findings.fact("requests sent while backends were paused, acknowledged after 0.5 s or more", waited);
    findings.fact("first client error", evidence.first_failure());
    findings.check("backends ejected that answered after 3 s", "0", slow, slow == 0.0);
    findings.check("backends ejected that were paused for 0.8 s", "0", paused, paused == 0.0);
    findings.zero("client errors", evidence.failures().len());
    findings.zero("acknowledged spans missing", evidence.missing());
    let moved = evidence.arrivals.iter().filter(|a| a.owner != Some(a.sink)).count();
    findings.at_most_percent("spans that moved", 0.0, share(moved, evidence.arrivals.len()));
    let twice = evidence.duplicates(|_| true);
    findings.zero("spans delivered twice", twice);
    Ok(())
}

/// A sink that answers PINGs at once and calls only after a minute. It is ejected after it has answered no call for 2 ×
/// `timeout`.
async fn mute(timeouts: &'static [u64], findings: &mut Findings) -> Result<()> {
    findings.section(&format!("a backend that answers PINGs but no calls, clients of {timeouts:?} s"));
    let mut world = World::start(Plan::default())?;
    world.load(Load { timeouts, pace: LoadPace::Open { rate: 40.0 }, ..Load::default() });
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
    findings.fact("requests that failed", failures.len());
    let after = ejected.map_or("never".to_owned(), |seconds| format!("{seconds:.1} s"));
    let holds = ejected.is_some_and(|seconds| (9.0..17.0).contains(&seconds)) && by >= 3.0;
    findings.check(
        "time until the first ejection, and number of ejections",
        "9 to 17 s",
        format!("{after}, {by} times"),
        holds,
    );
    let late = failures.iter().filter(|failed| failed.answered > from + 16 * SECOND).count();
    // Its answers to health checks bring it back, and the next calls to it wait in vain.
    findings.fact("of these requests, later than 16 s after the backend stopped answering", late);
    findings.zero("acknowledged spans missing", evidence.missing());
    Ok(())
}
