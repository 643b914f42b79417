//! Shortages in the proxy itself: memory for requests, and descriptors.

use std::time::Duration;

use anyhow::Result;
use spanring::tools::load::{FailureKind, Pace as LoadPace};
use tokio::time::{Instant, sleep};

use crate::{
    Pace,
    evidence::Evidence,
    harness::http_get,
    plan::{Load, Plan},
    table::Findings,
    world::World,
};

/// The time within which a kubelet expects an answer.
const PROBE: Duration = Duration::from_secs(1);

/// The metric of accepted and refused connections.
const CONNECTIONS: &str = "spanring_receiver_connections_total";

/// The load needs far more memory than the budget has; clients send as fast as they are answered.
pub(crate) async fn overload(pace: Pace) -> Result<Findings> {
    let mut world = World::start(Plan { proxies: 1, limit_mib: Some(64), journals: false, ..Plan::default() })?;
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
    let peak = world.resources()?.iter().map(|held| held.peak_kib).max().unwrap_or(0) >> 10;
    let run = world.end().await?;
    let taken = world.taken()?;
    let mut findings = Findings::default();
    let report = &run.report;
    let of = |kinds: &[FailureKind]| run.failed.iter().filter(|failed| kinds.contains(&failed.kind)).count();
    let lost = of(&[FailureKind::ConnectionLost, FailureKind::NoConnection]);
    let refused = of(&[FailureKind::Unavailable]);
    findings.fact("requests of 4000 spans", report.requests);
    findings.fact("of these requests, acknowledged", run.accepted.len());
    findings.fact("of these requests, refused with UNAVAILABLE", refused);
    let first = run.failed.iter().find(|failed| failed.kind != FailureKind::Unavailable);
    findings.fact("first error other than UNAVAILABLE", first.map_or("none", |failed| failed.answer.as_str()));
    findings.fact("largest resident set of the proxy", format!("{peak} MiB"));
    findings.zero("requests that failed with their connection", lost);
    findings.zero("requests refused with another code", run.failed.len() - lost - refused);
    let acknowledged = report.spans_acknowledged;
    let holds = acknowledged > 0 && taken >= acknowledged;
    findings.check(
        "spans received by sinks",
        &format!("≥ {acknowledged}, as many as acknowledged, and > 0"),
        taken,
        holds,
    );
    Ok(findings)
}

/// Clients want more connections than there are descriptors.
pub(crate) async fn descriptors(pace: Pace) -> Result<Findings> {
    let mut findings = Findings::default();
    idle(pace, &mut findings).await?;
    busy(pace, &mut findings).await?;
    Ok(findings)
}

/// A soft limit of 256 descriptors and 300 idle clients.
async fn idle(pace: Pace, findings: &mut Findings) -> Result<()> {
    findings.section("soft limit 256, 300 idle clients");
    let mut world = World::start(Plan { proxies: 1, ulimit: Some("-Sn 256"), ..Plan::default() })?;
    let clients = world.silent_clients(300)?;
    world.load(Load { connections: 4, timeouts: &[5], ..Load::default() });
    // The idle clients are disconnected after ten seconds, so the probes end before that.
    let probes = probe(&world, pace.seconds(8, 5)).await;
    drop(clients);
    let run = world.end().await?;
    let evidence = Evidence::gather(&world, run)?;
    findings.fact("spans acknowledged", evidence.acknowledged());
    findings.fact("first client error", evidence.first_failure());
    findings.zero("client errors", evidence.failures().len());
    findings.zero("acknowledged spans missing", evidence.missing());
    common(&world, probes, findings);
    Ok(())
}

/// A limit of 64 descriptors and 100 busy clients.
async fn busy(pace: Pace, findings: &mut Findings) -> Result<()> {
    findings.section("limit 64, 100 busy clients");
    let mut world = World::start(Plan { proxies: 1, ulimit: Some("-n 64"), ..Plan::default() })?;
    world.load(Load {
        pace: LoadPace::Open { rate: 200.0 },
        timeouts: &[5],
        connections: 100,
        in_flight: 1_000,
        ..Load::default()
    });
    let probes = probe(&world, pace.seconds(15, 6)).await;
    let refused = world.metric(CONNECTIONS, "result=\"refused\"");
    let run = world.end().await?;
    let evidence = Evidence::gather(&world, run)?;
    let accepted = evidence.accepted().count();
    // Clients with a connection are served; the others see their connections closed.
    let is_of_connection = |kind| matches!(kind, FailureKind::ConnectionLost | FailureKind::NoConnection);
    let failures = evidence.failures();
    let strange: Vec<_> = failures.iter().filter(|failed| !is_of_connection(failed.kind)).collect();
    findings.fact("requests acknowledged", accepted);
    findings.fact("requests of clients without a connection", failures.len() - strange.len());
    findings.fact("first other error", strange.first().map_or("none", |failed| failed.answer.as_str()));
    findings.fact(
        "refused clients, as counted by the proxy",
        refused.map_or("no such metric".to_owned(), |count| count.to_string()),
    );
    findings.check("requests acknowledged", "> 0", accepted, accepted > 0);
    findings.zero("other client errors", strange.len());
    findings.check("refused clients, as counted by the proxy", "> 0", refused.unwrap_or(0.0), refused > Some(0.0));
    findings.zero("acknowledged spans missing", evidence.missing());
    common(&world, probes, findings);
    Ok(())
}

/// Requests `/livez` every half second for this time. Returns the number of requests, and of those not answered in
/// time.
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

/// Checks that apply to every shortage.
fn common(world: &World, probes: (usize, usize), findings: &mut Findings) {
    let (asked, late) = probes;
    findings.fact("requests for /livez", asked);
    findings.zero("of these requests, not answered within 1 s", late);
    // Ejections are taken from the log, since metrics may be unreachable.
    let log = world.log(0);
    let ejected = log.iter().filter(|line| line.contains("backend ejected") || line.contains("backend fails")).count();
    findings.zero("backends ejected because of the proxy's own shortage", ejected);
    let warnings = log.iter().filter(|line| line.contains(" WARN ")).count();
    findings.check("warnings in the log", "≤ 20", warnings, warnings <= 20);
}
