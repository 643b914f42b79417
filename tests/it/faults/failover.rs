//! The traces of a failed backend go to its substitute and return when it is back; traces of other backends stay where
//! they are.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::Instant;

use crate::{
    backend::Answer,
    fixture::{ExtraConfig, Fixture, is_retryable, keys_of},
    harness,
};

/// Settings for an ejection after two attempts and a probe soon after it.
const SHORT: &str = "timeout: 300ms, outlier_detection: { consecutive_failures: 2, base_ejection_time: 200ms },";

/// Counts the spans at backends that do not own them: those owned by backend `of`, and those owned by others.
fn strays(fixture: &Fixture, of: usize) -> Result<(usize, usize)> {
    let (mut of_failed, mut of_others) = (0, 0);
    for (n, backend) in fixture.backends.iter().enumerate() {
        for (trace, _) in backend.delivered().into_keys() {
            match fixture.owner_of(&trace)? {
                owner if owner == n => {}
                owner if owner == of => of_failed += 1,
                _ => of_others += 1,
            }
        }
    }
    Ok((of_failed, of_others))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_01_a_dead_backends_traces_go_to_its_substitute_and_return_with_it() -> Result<()> {
    let mut fixture = Fixture::start(4, ExtraConfig { pool: SHORT, ..ExtraConfig::default() }).await?;
    fixture.serves().await?;
    fixture.backends[1].crash().await;
    for _ in 0..10 {
        let spans = fixture.spans_at(1, 2)?;
        let keys = keys_of(&spans);
        let substitute = fixture.substitute(1, &keys[0].0)?;
        let (took, reply) = fixture.client().await?.timed(spans).await;
        reply.ok()?;
        ensure!(took < Duration::from_secs(2), "served elsewhere after {took:?}");
        let there = fixture.backends[substitute].delivered();
        ensure!(keys.iter().all(|key| there.contains_key(key)), "not at the substitute that every replica chooses");
    }
    fixture.until_metric("spanring_ring_members", &["state=\"ejected\""], |n| n == 1.0)?;
    fixture.backends[1].come_back().await?;
    fixture.until_metric("spanring_ring_members", &["state=\"ejected\""], |n| n == 0.0)?;
    let calls = fixture.backends[1].calls();
    // The published table takes a moment to reach deliveries.
    let end = Instant::now() + harness::TIME_LIMIT;
    while fixture.backends[1].calls() == calls {
        fixture.client().await?.export(fixture.spans_at(1, 2)?).await.ok()?;
        ensure!(Instant::now() < end, "its traces did not come back");
    }
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_01_a_crash_under_load_causes_no_client_error_and_moves_no_other_slot() -> Result<()> {
    let mut fixture = Fixture::start(4, ExtraConfig { pool: SHORT, ..ExtraConfig::default() }).await?;
    let load = fixture.load(6).await?;
    load.goes_on(100)?;
    fixture.backends[2].crash().await;
    load.goes_on(100)?;
    fixture.backends[2].come_back().await?;
    load.goes_on(100)?;
    let (acknowledged, refused) = load.stop().await?;
    ensure!(refused.is_empty(), "{} clients saw an error: {:?}", refused.len(), refused.first());
    ensure!(fixture.account(&acknowledged).missing == 0, "{:?}", fixture.account(&acknowledged));
    let (of_failed, of_others) = strays(&fixture, 2)?;
    ensure!(of_failed > 0, "no substitute got its spans");
    ensure!(of_others == 0, "{of_others} spans of other slots moved");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_02_a_backend_that_keeps_hanging_is_ejected_and_its_requests_are_delivered_elsewhere() -> Result<()> {
    let fixture = Fixture::start(3, ExtraConfig { pool: SHORT, ..ExtraConfig::default() }).await?;
    fixture.serves().await?;
    fixture.backends[0].answer(|_| Answer::Hang);
    let mut exports = Vec::new();
    for _ in 0..6 {
        let (mut client, spans) = (fixture.client().await?, fixture.spans_at(0, 2)?);
        exports.push(fixture.tasks.spawn(async move { (keys_of(&spans), client.export(spans).await) }));
    }
    for export in exports {
        let (keys, reply) = export.await?;
        reply.ok()?;
        ensure!(fixture.account(&keys).missing == 0);
    }
    fixture.until_metric("spanring_ring_members", &["state=\"ejected\""], |n| n == 1.0)?;
    let (_, of_others) = strays(&fixture, 0)?;
    ensure!(of_others == 0, "{of_others} spans of other slots moved");
    fixture.backends[0].answer(|_| Answer::Accept);
    fixture.until_metric("spanring_ring_members", &["state=\"ejected\""], |n| n == 0.0)?;
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_08_a_backend_that_refuses_with_a_grpc_status_is_not_ejected() -> Result<()> {
    let fixture = Fixture::start(2, ExtraConfig { pool: SHORT, deadline: "2s", ..ExtraConfig::default() }).await?;
    fixture.backends[0].answer(|call| {
        let refusal = tonic::Status::unavailable("no room");
        if call.number % 4 == 0 { Answer::Accept } else { Answer::Status(refusal) }
    });
    for _ in 0..4 {
        let spans = [fixture.spans_at(0, 1)?, fixture.spans_at(1, 1)?].concat();
        let keys = keys_of(&spans);
        fixture.client().await?.export(spans).await.ok()?;
        ensure!(fixture.account(&keys).missing == 0 && fixture.account(&keys).duplicates == 0);
    }
    ensure!(fixture.metric("spanring_ring_members", &["state=\"ejected\""])? == 0.0, "it is alive");
    ensure!(strays(&fixture, 0)? == (0, 0), "its spans went elsewhere");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_23_when_all_backends_are_down_refusals_are_retryable() -> Result<()> {
    let mut fixture = Fixture::start(3, ExtraConfig { pool: SHORT, deadline: "1s", ..ExtraConfig::default() }).await?;
    let load = fixture.load(4).await?;
    load.goes_on(40)?;
    for backend in &mut fixture.backends {
        backend.crash().await;
    }
    load.goes_on(8)?;
    for backend in &mut fixture.backends {
        backend.come_back().await?;
    }
    fixture.serves_again().await?;
    load.goes_on(40)?;
    let (acknowledged, refused) = load.stop().await?;
    ensure!(!refused.is_empty(), "no backend was there to accept anything");
    refused.iter().try_for_each(is_retryable)?;
    ensure!(fixture.account(&acknowledged).missing == 0, "{:?}", fixture.account(&acknowledged));
    Ok(())
}
