//! Backends that crash, hang, are stopped, are slow or reset connections.

use std::{net::SocketAddr, process::Command, time::Duration};

use anyhow::{Result, ensure};

use crate::{
    backend::Answer,
    fixture::{Account, ExtraConfig, Fixture, Reply, is_retryable, keys_of, padded, span},
    harness::{self, Process, Ready},
};

/// Time limit for an answer that must not be delayed by other backends. Such answers normally take a few ms.
const PROMPT: Duration = Duration::from_millis(900);

/// Starts a sink in its own process, so that it can be killed and stopped.
fn sink() -> Result<(Process, [SocketAddr; 2])> {
    harness::on_free_ports(|[grpc, http]| Ok((sink_at(grpc, http)?, Ready::Page(format!("http://{http}/report")))))
}

fn sink_at(grpc: SocketAddr, http: SocketAddr) -> Result<Process> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spanring"));
    command.args(["sink", "--grpc", &grpc.to_string(), "--http", &http.to_string()]);
    Process::start("sink", &mut command)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_01_a_killed_process_is_used_again_once_it_is_back() -> Result<()> {
    let ((mut doomed, [grpc, http]), (_other, [other, _])) = (sink()?, sink()?);
    let fixture =
        Fixture::before(&[grpc, other], Vec::new(), ExtraConfig { deadline: "1500ms", ..ExtraConfig::default() })?;
    let mut client = fixture.client().await?;
    client.export(vec![span(&fixture.trace_of(grpc), 0)]).await.ok()?;
    doomed.signal("KILL")?;
    doomed.wait()?;
    let (took, reply) = client.timed(vec![span(&fixture.trace_of(other), 0)]).await;
    reply.ok()?;
    ensure!(took < PROMPT, "the other backend's trace took {took:?}");
    if let Reply::Refused(status) = client.export(vec![span(&fixture.trace_of(grpc), 0)]).await {
        is_retryable(&status)?;
    }
    let _back = sink_at(grpc, http)?;
    harness::until("the sink is back", || Ok(harness::http_get(&format!("http://{http}/report")).ok()))?;
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        client
            .export(vec![span(&fixture.trace_of(grpc), 0)])
            .await
            .ok()
            .or_else(|error| if tokio::time::Instant::now() < end { Ok(()) } else { Err(error) })?;
        let (_, spans) = harness::http_get(&format!("http://{http}/spans"))?;
        if !spans.is_empty() {
            return Ok(());
        }
        ensure!(tokio::time::Instant::now() < end, "the backend that came back got nothing");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_01_a_crash_under_load_loses_nothing_that_was_acknowledged() -> Result<()> {
    let fixture = Fixture::start(3, ExtraConfig { deadline: "2s", ..ExtraConfig::default() }).await?;
    a_crash_loses_nothing(fixture).await
}

/// Under load, the second backend crashes and comes back.
pub(crate) async fn a_crash_loses_nothing(mut fixture: Fixture) -> Result<()> {
    let load = fixture.load(6).await?;
    load.goes_on(100)?;
    fixture.backends[1].crash().await;
    // Wait until the crash was noticed and the traces go elsewhere.
    fixture.until_metric("spanring_membership_ejections_total", &[], |n| n >= 1.0)?;
    load.goes_on(100)?;
    fixture.backends[1].come_back().await?;
    load.goes_on(100)?;
    let (acknowledged, refused) = load.stop().await?;
    let account = fixture.account(&acknowledged);
    ensure!(account.missing == 0 && !acknowledged.is_empty(), "{account:?} of {}", acknowledged.len());
    refused.iter().try_for_each(is_retryable)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_02_a_backend_that_hangs_delays_only_its_own_slots() -> Result<()> {
    // The timeout of an attempt equals the deadline, so only the deadline ends the request.
    let fixture =
        Fixture::start(3, ExtraConfig { deadline: "2s", pool: "timeout: 2s,", ..ExtraConfig::default() }).await?;
    fixture.backends[0].answer(|_| Answer::Hang);
    let (mut hung, mut other) = (fixture.client().await?, fixture.client().await?);
    let spans = fixture.spans_at(0, 1)?;
    let waiting = fixture.tasks.spawn(async move { hung.timed(spans).await });
    for n in [1, 2, 1, 2] {
        let (took, reply) = other.timed(fixture.spans_at(n, 3)?).await;
        reply.ok()?;
        ensure!(took < PROMPT, "backend {n} answered after {took:?}");
    }
    let mixed = [fixture.spans_at(0, 1)?, fixture.spans_at(1, 1)?].concat();
    let keys = keys_of(&mixed);
    let (took, reply) = other.timed(mixed).await;
    reply.retryable()?;
    ensure!(took < Duration::from_millis(2500), "answered after {took:?}, not at its deadline");
    let other_part = keys.last().and_then(|key| fixture.backends[1].delivered().get(key).copied());
    ensure!(other_part == Some(1), "the part of the other backend came {other_part:?} times");
    let (took, reply) = waiting.await?;
    reply.retryable()?;
    ensure!(took < Duration::from_millis(2500), "answered after {took:?}, not at its deadline");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_03_a_stopped_process_delays_no_other_and_continues_when_it_may() -> Result<()> {
    let ((stopped, [grpc, http]), (_other, [other, _])) = (sink()?, sink()?);
    let extra = ExtraConfig { deadline: "1500ms", pool: "timeout: 1500ms,", ..ExtraConfig::default() };
    let fixture = Fixture::before(&[grpc, other], Vec::new(), extra)?;
    let mut client = fixture.client().await?;
    client.export(vec![span(&fixture.trace_of(grpc), 0)]).await.ok()?;
    stopped.signal("STOP")?;
    let (mut of_stopped, owed) = (fixture.client().await?, vec![span(&fixture.trace_of(grpc), 0)]);
    let waiting = fixture.tasks.spawn(async move { of_stopped.timed(owed).await });
    for _ in 0..4 {
        let (took, reply) = client.timed(vec![span(&fixture.trace_of(other), 0)]).await;
        reply.ok()?;
        ensure!(took < PROMPT, "the other backend answered after {took:?}");
    }
    let (took, reply) = waiting.await?;
    reply.retryable()?;
    ensure!(took < Duration::from_secs(2), "answered after {took:?}, not at its deadline");
    stopped.signal("CONT")?;
    client.export(vec![span(&fixture.trace_of(grpc), 0)]).await.ok()?;
    let (_, spans) = harness::http_get(&format!("http://{http}/spans"))?;
    ensure!(spans.lines().count() >= 2, "the backend did not continue: {spans}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_03_a_silent_peer_is_detected_by_ping() -> Result<()> {
    let ((stopped, [grpc, _]), (_other, [other, http])) = (sink()?, sink()?);
    let fixture =
        Fixture::before(&[grpc, other], Vec::new(), ExtraConfig { deadline: "8s", ..ExtraConfig::default() })?;
    let mut client = fixture.client().await?;
    client.export(vec![span(&fixture.trace_of(grpc), 0)]).await.ok()?;
    stopped.signal("STOP")?;
    let (took, reply) = client.timed(vec![span(&fixture.trace_of(grpc), 0)]).await;
    reply.ok()?;
    // One second of silence and one second for the answer to the PING, plus the delivery on a busy machine.
    ensure!((1_900..5_000).contains(&took.as_millis()), "its substitute had the span after {took:?}");
    let by_ping = fixture.metric("spanring_membership_ejections_total", &["reason=\"ping\""])?;
    ensure!(by_ping.round() == 1.0, "ejected by PING: {by_ping}");
    let twice = fixture.metric("spanring_dispatch_possible_duplicate_records_total", &[])?;
    // The record may have been sent to the stopped process once more before it was ejected.
    ensure!((1.0..=2.0).contains(&twice), "one record may arrive twice, counted are {twice}");
    let (_, spans) = harness::http_get(&format!("http://{http}/spans"))?;
    ensure!(spans.lines().count() == 1, "the substitute has: {spans}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_03_a_stopped_process_is_detected_even_if_no_client_waits_that_long() -> Result<()> {
    let ((stopped, [grpc, _]), (_other, [other, _])) = (sink()?, sink()?);
    let pool = "timeout: 500ms,";
    let fixture =
        Fixture::before(&[grpc, other], Vec::new(), ExtraConfig { deadline: "600ms", pool, ..ExtraConfig::default() })?;
    let mut client = fixture.client().await?;
    client.export(vec![span(&fixture.trace_of(grpc), 0)]).await.ok()?;
    stopped.signal("STOP")?;
    let begun = tokio::time::Instant::now();
    loop {
        match client.export(vec![span(&fixture.trace_of(grpc), 0)]).await {
            Reply::Refused(status) => {
                is_retryable(&status)?;
                ensure!(status.message().contains(&grpc.to_string()), "must name the backend: {}", status.message());
            }
            reply => break reply.ok()?,
        }
        ensure!(begun.elapsed() < Duration::from_secs(10), "the backend was never ejected");
    }
    let by_silence = fixture.metric("spanring_membership_ejections_total", &["reason=\"ping\""])?
        + fixture.metric("spanring_membership_ejections_total", &["reason=\"timeout\""])?;
    ensure!(by_silence.round() == 1.0, "ejected for its silence: {by_silence}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_03_a_process_that_pauses_for_less_than_a_second_is_not_ejected() -> Result<()> {
    let ((paused, [grpc, _]), (_other, [other, _])) = (sink()?, sink()?);
    let fixture = Fixture::before(&[grpc, other], Vec::new(), ExtraConfig::default())?;
    let mut client = fixture.client().await?;
    client.export(vec![span(&fixture.trace_of(grpc), 0)]).await.ok()?;
    paused.signal("STOP")?;
    let spans = vec![span(&fixture.trace_of(grpc), 0)];
    let waiting = fixture.tasks.spawn(async move { client.timed(spans).await });
    tokio::time::sleep(Duration::from_millis(800)).await;
    paused.signal("CONT")?;
    let (_, reply) = waiting.await?;
    reply.ok()?;
    let ejections = fixture.metric("spanring_membership_ejections_total", &[])?;
    ensure!(ejections == 0.0, "ejected {ejections} times");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_07_a_backend_behind_a_gateway_that_cannot_reach_it_is_ejected() -> Result<()> {
    let answers = [Answer::ResetStream(h2::Reason::REFUSED_STREAM), Answer::Http(502, "text/html", "<html>")];
    for (answer, reason) in answers.into_iter().zip(["refused_stream", "gateway"]) {
        let fixture = Fixture::start(2, ExtraConfig::default()).await?;
        fixture.serves().await?;
        fixture.backends[0].answer(move |_| answer.clone());
        let load = fixture.load(4).await?;
        let label = format!("reason=\"{reason}\"");
        fixture.until_metric("spanring_membership_ejections_total", &[&label], |n| n >= 1.0)?;
        load.goes_on(100)?;
        let (acknowledged, refused) = load.stop().await?;
        ensure!(refused.is_empty(), "{reason}: {refused:?}");
        let account = fixture.account(&acknowledged);
        ensure!(account.missing == 0 && !acknowledged.is_empty(), "{account:?} of {}", acknowledged.len());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_04_a_slow_backend_fills_only_its_own_queue() -> Result<()> {
    let pool = "timeout: 3s, max_request_size_mib: 1, sending_queue: { queue_size: 1MiB },";
    let fixture = Fixture::start(2, ExtraConfig { deadline: "3s", pool, ..ExtraConfig::default() }).await?;
    fixture.backends[0].answer(|_| Answer::Hang);
    let mut floods = Vec::new();
    // At most eight calls of 1 MiB are in flight, and 1 MiB is queued.
    for _ in 0..60 {
        let spans = fixture.spans_at(0, 1)?.into_iter().map(|span| padded(span, 400_000)).collect();
        let mut client = fixture.client().await?;
        floods.push(fixture.tasks.spawn(async move { client.timed(spans).await }));
    }
    fixture.until_metric("spanring_receiver_refused_requests_total", &["reason=\"queue_full\""], |n| n > 0.0)?;
    let waiting = fixture.metric("spanring_dispatch_queue_bytes", &[])?;
    ensure!(waiting <= 1_048_576.0, "{waiting} bytes wait in a queue of 1 MiB");
    let (took, reply) = fixture.client().await?.timed(fixture.spans_at(1, 5)?).await;
    reply.ok()?;
    ensure!(took < PROMPT, "the other backend answered after {took:?}");
    let mut early = 0;
    for flood in floods {
        let (took, reply) = flood.await?;
        reply.retryable()?;
        early += usize::from(took < Duration::from_millis(2500));
    }
    ensure!(early > 0, "a full queue must refuse at once and not at the deadline");
    fixture.backends[0].answer(|_| Answer::Accept);
    fixture.until_metric("spanring_dispatch_queue_bytes", &[], |bytes| bytes == 0.0)?;
    fixture.until_metric("spanring_memory_budget_used_bytes", &[], |bytes| bytes == 0.0).map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_04_a_slow_backend_causes_neither_losses_nor_duplicates() -> Result<()> {
    let fixture = Fixture::start(3, ExtraConfig::default()).await?;
    fixture.backends[2].answer(|_| Answer::After(Duration::from_millis(120), Box::new(Answer::Accept)));
    let load = fixture.load(8).await?;
    load.goes_on(80)?;
    let (acknowledged, refused) = load.stop().await?;
    ensure!(refused.is_empty(), "{refused:?}");
    let account = fixture.account(&acknowledged);
    ensure!(account == Account { missing: 0, duplicates: 0, split: 0 }, "{account:?}");
    Ok(())
}

async fn survives(first: Answer) -> Result<()> {
    let fixture = Fixture::start(2, ExtraConfig::default()).await?;
    fixture.serves().await?;
    let before = fixture.backends[0].calls();
    fixture.backends[0].answer(move |call| if call.number == before + 1 { first.clone() } else { Answer::Accept });
    let spans = [fixture.spans_at(0, 3)?, fixture.spans_at(1, 3)?].concat();
    let keys = keys_of(&spans);
    fixture.client().await?.export(spans).await.ok()?;
    ensure!(fixture.backends[0].calls() >= before + 2, "the backend never failed");
    let account = fixture.account(&keys);
    ensure!(account == Account { missing: 0, duplicates: 0, split: 0 }, "{account:?}");
    let twice = fixture.metric("spanring_dispatch_possible_duplicate_records_total", &[])?;
    ensure!(twice.round() == 3.0, "three records may have arrived twice, counted are {twice}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_05_a_reset_connection_causes_no_client_error() -> Result<()> {
    survives(Answer::Rst).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_05_a_connection_closed_before_the_answer_causes_no_client_error() -> Result<()> {
    survives(Answer::Fin).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_05_a_reset_stream_causes_no_client_error() -> Result<()> {
    survives(Answer::ResetStream(h2::Reason::INTERNAL_ERROR)).await
}
