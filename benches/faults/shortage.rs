//! What runs short in the proxy itself: memory for requests, descriptors.

use std::time::Duration;

use anyhow::Result;
use spanring::tools::load::{FailureKind, Pace as LoadPace};
use tokio::time::{Instant, sleep};

use crate::{
    Pace,
    evidence::Evidence,
    harness::http_get,
    plan::{Load, Plan},
    table::Lines,
    world::World,
};

/// How soon a kubelet wants its answer.
const PROBE: Duration = Duration::from_secs(1);

/// Connections that came, by what became of them.
const CONNECTIONS: &str = "spanring_receiver_connections_total";

/// Far more than the budget holds, from clients that send as fast as they are answered.
pub(crate) async fn overload(pace: Pace) -> Result<Lines> {
    let mut world = World::start(Plan { proxies: 1, limit_mib: 64, journals: false, ..Plan::default() })?;
    (0..4).try_for_each(|n| world.behave(n, r#"{"delay_ms": 300}"#))?;
    world.load(Load {
        pace: LoadPace::Closed,
        spans: 4_000,
        connections: 2,
        in_flight: 256,
        unique: false,
        ..Load::default()
    });
    sleep(pace.seconds(25, 8)).await;
    let peak = world.held()?.iter().map(|held| held.peak_kib).max().unwrap_or(0) >> 10;
    let run = world.end().await?;
    let taken = world.taken()?;
    let mut lines = Lines::default();
    let report = &run.report;
    let of = |kinds: &[FailureKind]| run.failed.iter().filter(|failed| kinds.contains(&failed.kind)).count();
    let lost = of(&[FailureKind::ConnectionLost, FailureKind::NoConnection]);
    let refused = of(&[FailureKind::Unavailable]);
    lines.fact("requests of 4000 spans", report.requests);
    lines.fact("of them, acknowledged", run.accepted.len());
    lines.fact("of them, refused with UNAVAILABLE", refused);
    let first = run.failed.iter().find(|failed| failed.kind != FailureKind::Unavailable);
    lines.fact("the first that was not refused so", first.map_or("none", |failed| failed.answer.as_str()));
    lines.fact("largest resident set of the proxy", format!("{peak} MiB"));
    lines.none("requests that ended with a connection", lost);
    lines.none("requests that were refused otherwise", run.failed.len() - lost - refused);
    let acknowledged = report.spans_acknowledged;
    let holds = acknowledged > 0 && taken >= acknowledged;
    lines.line("spans that sinks took", &format!("≥ {acknowledged}, as acknowledged, and any"), taken, holds);
    Ok(lines)
}

/// Fewer descriptors than clients want.
pub(crate) async fn descriptors(pace: Pace) -> Result<Lines> {
    let mut lines = Lines::default();
    idle(pace, &mut lines).await?;
    busy(pace, &mut lines).await?;
    Ok(lines)
}

/// A soft limit of 256, and 300 clients that say nothing.
async fn idle(pace: Pace, lines: &mut Lines) -> Result<()> {
    lines.about("soft limit 256, 300 idle clients");
    let mut world = World::start(Plan { proxies: 1, ulimit: Some("-Sn 256"), ..Plan::default() })?;
    let clients = world.silent_clients(300)?;
    world.load(Load { connections: 4, patience: &[5], ..Load::default() });
    // As long as they stay: those that say nothing for ten seconds are sent away.
    let probes = probe(&world, pace.seconds(8, 5)).await;
    drop(clients);
    let run = world.end().await?;
    let evidence = Evidence::gather(&world, run)?;
    lines.fact("spans acknowledged", evidence.acknowledged());
    lines.fact("the first client error", evidence.first_failure());
    lines.none("client errors", evidence.failures().len());
    lines.none("acknowledged spans missing", evidence.missing());
    common(&world, probes, lines);
    Ok(())
}

/// A limit of 64, and 100 clients that send.
async fn busy(pace: Pace, lines: &mut Lines) -> Result<()> {
    lines.about("limit 64, 100 busy clients");
    let mut world = World::start(Plan { proxies: 1, ulimit: Some("-n 64"), ..Plan::default() })?;
    world.load(Load {
        pace: LoadPace::Open { rate: 200.0 },
        patience: &[5],
        connections: 100,
        in_flight: 1_000,
        ..Load::default()
    });
    let probes = probe(&world, pace.seconds(15, 6)).await;
    let refused = world.metric(CONNECTIONS, "result=\"refused\"");
    let run = world.end().await?;
    let evidence = Evidence::gather(&world, run)?;
    let accepted = evidence.accepted().count();
    // Those that were let in are served; the others are told by the end of their connection.
    let is_of_connection = |kind| matches!(kind, FailureKind::ConnectionLost | FailureKind::NoConnection);
    let failures = evidence.failures();
    let strange: Vec<_> = failures.iter().filter(|failed| !is_of_connection(failed.kind)).collect();
    lines.fact("requests acknowledged", accepted);
    lines.fact("requests of clients that were not let in", failures.len() - strange.len());
    lines.fact("the first other error", strange.first().map_or("none", |failed| failed.answer.as_str()));
    lines.fact("clients refused and counted", refused.map_or("no such metric".to_owned(), |count| count.to_string()));
    lines.line("requests acknowledged", "> 0", accepted, accepted > 0);
    lines.none("other client errors", strange.len());
    lines.line("clients above the limit are counted", "> 0", refused.unwrap_or(0.0), refused > Some(0.0));
    lines.none("acknowledged spans missing", evidence.missing());
    common(&world, probes, lines);
    Ok(())
}

/// Asks `/livez` each half second, for so long; how many were asked, and how many did not answer in time.
async fn probe(world: &World, time: Duration) -> (usize, usize) {
    let addresses: Vec<String> = world.proxies.iter().map(|proxy| format!("http://{}/livez", proxy.admin)).collect();
    let ask = move || {
        let (end, mut asked, mut late) = (Instant::now() + time, 0, 0);
        while Instant::now() < end {
            for url in &addresses {
                let begin = Instant::now();
                let is_well = http_get(url).is_ok_and(|(status, _)| status == 200);
                asked += 1;
                late += usize::from(!is_well || begin.elapsed() > PROBE);
            }
            std::thread::sleep(PROBE / 2);
        }
        (asked, late)
    };
    tokio::task::spawn_blocking(ask).await.unwrap_or((0, 1))
}

/// What holds for any shortage.
fn common(world: &World, probes: (usize, usize), lines: &mut Lines) {
    let (asked, late) = probes;
    lines.fact("questions for /livez", asked);
    lines.none("of them, not answered within 1 s", late);
    // By the log: metrics may not be had.
    let log = world.log(0);
    let ejected = log.iter().filter(|line| line.contains("backend ejected")).count();
    lines.none("backends ejected for our shortage", ejected);
    let warnings = log.iter().filter(|line| line.contains(" WARN ")).count();
    lines.line("warnings in the log", "≤ 20", warnings, warnings <= 20);
}
