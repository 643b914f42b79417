//! Sinks that answer, and say no.

use anyhow::Result;
use tokio::time::sleep;

use crate::{
    Pace,
    evidence::{Evidence, share},
    plan::{Load, Plan},
    table::Lines,
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

/// Half of one sink's calls are refused, retryably.
pub(crate) async fn half(pace: Pace) -> Result<Lines> {
    const HALF: &str = r#"{"failure_rate": 0.5, "failure_code": "unavailable", "seed": 7}"#;
    let mut lines = Lines::default();
    let (world, evidence) = under(HALF, pace, false).await?;
    lines.fact("spans acknowledged", evidence.acknowledged());
    lines.fact("requests that failed", evidence.failures().len());
    lines.fact(
        "parts that the proxies sent again",
        world.metric("spanring_dispatch_retried_parts_total", "").unwrap_or(0.0),
    );
    lines.none("duplicates on the sinks that refuse nothing", evidence.duplicates(|sink| sink != REFUSING));
    lines.none("acknowledged spans missing", evidence.missing());
    lines.none("client errors that were not retryable", evidence.failures().iter().filter(|f| !f.is_retryable).count());
    let (_world, evidence) = under(HALF, pace, true).await?;
    let spans = evidence.arrivals.len();
    lines.fact("spans acknowledged to clients that retry", evidence.acknowledged());
    lines.fact("requests of theirs that failed for good", evidence.failures().len());
    let twice = if spans == 0 { 0.0 } else { share(evidence.duplicates(|_| true), spans) };
    lines.at_most_percent("duplicates overall with clients that retry", 1.0, twice);
    lines.none("acknowledged spans missing with clients that retry", evidence.missing());
    Ok(lines)
}

/// One sink calls everything invalid.
pub(crate) async fn invalid(pace: Pace) -> Result<Lines> {
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
    let mut lines = Lines::default();
    lines.fact("requests acknowledged", accepted.len());
    lines.fact("spans that they said were rejected", rejected);
    lines.fact("requests of which all was rejected", failed.len());
    lines.fact("the first failure", failed.first().map_or("none", |failed| failed.answer.as_str()));
    lines.none("requests whose count of rejected spans is not that of the sink's slots", wrong);
    lines.none("requests that failed although other sinks own some of them", unexplained);
    lines.none("spans of the others that were acknowledged and are missing", missing);
    lines.none("duplicates", evidence.duplicates(|_| true));
    Ok(lines)
}
