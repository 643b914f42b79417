//! Sinks that answer with refusals.

use anyhow::Result;
use tokio::time::sleep;

use crate::{
    Pace,
    evidence::{Evidence, share},
    plan::{Load, Plan},
    table::Findings,
    world::World,
};

/// The sink that refuses.
const REFUSING: usize = 0;

async fn under(behaviour: &str, pace: Pace, retry: bool) -> Result<(World, Evidence)> {
    let mut world = World::start(Plan::default())?;
    world.behave(REFUSING, behaviour)?;
    world.load(Load { retry, ..Load::default() });
    sleep(pace.seconds(15, 5)).await;
    let run = world.end().await?;
    let evidence = Evidence::gather(&world, run)?;
    Ok((world, evidence))
}

/// One sink refuses half of its calls with a retryable code.
pub(crate) async fn half(pace: Pace) -> Result<Findings> {
    const HALF: &str = r#"{"failure_rate": 0.5, "failure_code": "unavailable", "seed": 7}"#;
    let mut findings = Findings::default();
    let (world, evidence) = under(HALF, pace, false).await?;
    findings.fact("spans acknowledged", evidence.acknowledged());
    findings.fact("requests that failed", evidence.failures().len());
    findings
        .fact("parts retried by the proxies", world.metric("spanring_dispatch_retried_parts_total", "").unwrap_or(0.0));
    findings.zero("duplicates on the other sinks", evidence.duplicates(|sink| sink != REFUSING));
    findings.zero("acknowledged spans missing", evidence.missing());
    findings
        .zero("client errors that were not retryable", evidence.failures().iter().filter(|f| !f.is_retryable).count());
    let (_world, evidence) = under(HALF, pace, true).await?;
    let spans = evidence.arrivals.len();
    findings.fact("spans acknowledged to retrying clients", evidence.acknowledged());
    findings.fact("requests of retrying clients that failed", evidence.failures().len());
    let twice = if spans == 0 { 0.0 } else { share(evidence.duplicates(|_| true), spans) };
    findings.at_most_percent("duplicates with retrying clients", 1.0, twice);
    findings.zero("acknowledged spans missing with retrying clients", evidence.missing());
    Ok(findings)
}

/// One sink answers every call with INVALID_ARGUMENT.
pub(crate) async fn invalid(pace: Pace) -> Result<Findings> {
    let behaviour = r#"{"failure_rate": 1.0, "failure_code": "invalid_argument"}"#;
    let (world, mut evidence) = under(behaviour, pace, false).await?;
    let (mut wrong, mut rejected, mut missing) = (0, 0, 0);
    let delivered: std::collections::HashSet<_> =
        evidence.arrivals.iter().map(|arrival| (arrival.entry.trace, arrival.entry.span)).collect();
    let accepted = std::mem::take(&mut evidence.run.accepted);
    for request in &accepted {
        let spans: Vec<_> = evidence.run.bodies.spans(request.ticket).collect();
        let mut of_refusing = 0;
        for (key, place) in spans {
            if evidence.owner(&world, key.to_bytes()) == Some(REFUSING) {
                of_refusing += 1;
            } else {
                missing += usize::from(!delivered.contains(&(key.to_bytes(), key.span_id(place))));
            }
        }
        wrong += usize::from(of_refusing != request.rejected);
        rejected += request.rejected;
    }
    let mut unexplained = 0;
    let failed = std::mem::take(&mut evidence.run.failed);
    for request in &failed {
        let spans: Vec<_> = evidence.run.bodies.spans(request.ticket).collect();
        unexplained +=
            usize::from(spans.iter().any(|(key, _)| evidence.owner(&world, key.to_bytes()) != Some(REFUSING)));
    }
    let mut findings = Findings::default();
    findings.fact("requests acknowledged", accepted.len());
    findings.fact("spans reported as rejected", rejected);
    findings.fact("requests rejected as a whole", failed.len());
    findings.fact("first failure", failed.first().map_or("none", |failed| failed.answer.as_str()));
    findings.zero("requests whose count of rejected spans differs from the refusing sink's share", wrong);
    findings.zero("failed requests that had spans of other sinks", unexplained);
    findings.zero("acknowledged spans of other sinks missing", missing);
    findings.zero("duplicates", evidence.duplicates(|_| true));
    Ok(findings)
}
