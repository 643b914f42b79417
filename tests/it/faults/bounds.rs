//! Limits: memory, time, message sizes, decompression bombs.

use std::{io::Write, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio::time::Instant;
use tonic::Code;

use crate::{
    backend::Answer,
    fixture::{ExtraConfig, Fixture, Reply, keys_of, padded},
    wire::{self, DATA, END_HEADERS, HEADERS, Raw},
};

/// The memory that a process may use in addition to its budget, in MiB.
const OVERHEAD_MIB: u64 = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_27_refusals_for_lack_of_memory_are_retryable() -> Result<()> {
    let extra = ExtraConfig { top: "memory_limiter: { limit_mib: 16 }", deadline: "2s", ..ExtraConfig::default() };
    let fixture = Fixture::start(2, extra).await?;
    for backend in &fixture.backends {
        backend.answer(|_| Answer::Hang);
    }
    let mut exports = Vec::new();
    for n in 0..40 {
        let spans = fixture.spans_at(n % 2, 4)?.into_iter().map(|span| padded(span, 250_000)).collect();
        let mut client = fixture.client().await?;
        exports.push(fixture.tasks.spawn(async move { client.export(spans).await }));
    }
    for export in exports {
        export.await?.retryable()?;
    }
    let refused = fixture.metric("spanring_receiver_refused_requests_total", &["reason=\"budget\""])?;
    ensure!(refused > 0.0, "40 MB went into 16 MiB");
    let peak = fixture.peak_mib()?;
    ensure!(peak <= 16 + OVERHEAD_MIB, "{peak} MiB with a budget of 16");
    for backend in &fixture.backends {
        backend.answer(|_| Answer::Accept);
    }
    fixture.until_metric("spanring_memory_budget_used_bytes", &[], |bytes| bytes == 0.0)?;
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_28_connections_of_slow_clients_are_closed_in_time() -> Result<()> {
    let extra = ExtraConfig { grpc: "read_header_timeout: 500ms,", deadline: "1s", ..ExtraConfig::default() };
    let fixture = Fixture::start(1, extra).await?;
    let start = Instant::now();
    let mut silent = Raw::silent(fixture.grpc)?;
    let mut headers = Raw::connect(fixture.grpc, &[])?;
    headers.send(&wire::frame(HEADERS, END_HEADERS, 1, &wire::export_headers(&[]))[..12])?;
    let mut body = Raw::connect(fixture.grpc, &[])?;
    body.send(&wire::frame(HEADERS, END_HEADERS, 1, &wire::export_headers(&[])))?;
    body.send(&wire::frame(DATA, 0, 1, &[0, 0, 0x10, 0, 0, 1, 2, 3]))?;
    silent.dismissal()?;
    headers.dismissal()?;
    body.stream_ended(1)?;
    ensure!(start.elapsed() < Duration::from_secs(4), "they were sent away after {:?}", start.elapsed());
    fixture.until_metric("spanring_memory_budget_used_bytes", &[], |bytes| bytes == 0.0)?;
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_28_connections_above_the_limit_are_closed_and_the_others_stay_open() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig { grpc: "max_connections: 3,", ..ExtraConfig::default() }).await?;
    let mut client = fixture.client().await?;
    client.export(fixture.spans_at(0, 1)?).await.ok()?;
    // A connection that is refused may be closed before its first bytes are out.
    let mut others: Vec<Raw> = (0..6).filter_map(|_| Raw::connect(fixture.grpc, &[]).ok()).collect();
    fixture.until_metric("spanring_receiver_connections_total", &["result=\"refused\""], |n| n >= 4.0)?;
    client.export(fixture.spans_at(0, 1)?).await.ok()?;
    others.clear();
    fixture.until_metric("spanring_receiver_connections", &["listener=\"otlp_grpc\""], |n| n <= 1.0)?;
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_29_a_message_above_the_limit_is_refused_permanently() -> Result<()> {
    let fixture =
        Fixture::start(2, ExtraConfig { grpc: "max_recv_msg_size_mib: 1,", ..ExtraConfig::default() }).await?;
    let spans = fixture.spans_at(0, 1)?.into_iter().map(|span| padded(span, 3 << 20)).collect();
    let reply = fixture.client().await?.export(spans).await;
    ensure!(reply.permanent()?.0 == Code::ResourceExhausted, "{reply:?}");
    // A prefix that announces 4 GiB must not reserve memory.
    let mut raw = Raw::connect(fixture.grpc, &[])?;
    raw.send(&wire::frame(HEADERS, END_HEADERS, 1, &wire::export_headers(&[])))?;
    raw.send(&wire::frame(DATA, 0, 1, &[0, 0xff, 0xff, 0xff, 0xff, 1]))?;
    raw.stream_ended(1)?;
    ensure!(fixture.peak_mib()? <= OVERHEAD_MIB, "{} MiB", fixture.peak_mib()?);
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_29_a_span_that_is_too_large_for_backends_is_reported_and_the_rest_is_delivered() -> Result<()> {
    let fixture = Fixture::start(2, ExtraConfig { pool: "max_request_size_mib: 1,", ..ExtraConfig::default() }).await?;
    fixture.backends[0].answer(|call| match call.spans.as_slice() {
        // The message of grpc-go for a message above its limit.
        [_] => {
            Answer::Status(tonic::Status::resource_exhausted("received message larger than max (2097240 vs. 1048576)"))
        }
        _ => Answer::Accept,
    });
    let large = padded(fixture.spans_at(0, 1)?.remove(0), 2 << 20);
    let good = [fixture.spans_at(0, 3)?, fixture.spans_at(1, 3)?].concat();
    let keys = keys_of(&good);
    let reply = fixture.client().await?.export([good, vec![large]].concat()).await;
    let Reply::Accepted { rejected, message } = &reply else { anyhow::bail!("{reply:?}") };
    ensure!(*rejected == 1 && message.contains("larger than max"), "{reply:?}");
    ensure!(fixture.account(&keys).missing == 0 && fixture.account([]).duplicates == 0);
    Ok(())
}

/// Sends a compressed message; returns the gRPC status.
async fn send_compressed(fixture: &Fixture, encoding: &str, packed: &[u8]) -> Result<String> {
    let mut framed = wire::grpc(packed);
    *framed.first_mut().context("a prefix")? = 1;
    Ok(wire::call(fixture.grpc, Some(encoding), framed).await?.0)
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// Returns a valid request of this size that compresses to almost nothing: a single unknown field.
fn hollow(bytes: usize) -> Vec<u8> {
    let mut message = vec![0x7a];
    prost::encoding::encode_varint(bytes as u64, &mut message);
    message.resize(message.len() + bytes, 0);
    message
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_30_decompression_bombs_are_bounded_while_they_are_inflated() -> Result<()> {
    const EXHAUSTED: &str = "8";
    let fixture =
        Fixture::start(1, ExtraConfig { grpc: "max_recv_msg_size_mib: 4,", ..ExtraConfig::default() }).await?;
    fixture.serves().await?;
    let before = fixture.peak_mib()?;
    let bomb = gzip(&hollow(64 << 20))?;
    ensure!(send_compressed(&fixture, "gzip", &bomb).await? == EXHAUSTED, "64 MiB from {} bytes", bomb.len());
    // Several gzip members form one message (RFC 1952, 2.2): each is small, together they are too large.
    let member = gzip(&hollow(1 << 20))?;
    let status = send_compressed(&fixture, "gzip", &member.repeat(8)).await?;
    ensure!(
        status != "0" || fixture.backends[0].calls() > 1,
        "eight members were answered {status} and reached no backend"
    );
    let zstd = zstd::bulk::compress(&hollow(64 << 20), 3)?;
    ensure!(send_compressed(&fixture, "zstd", &zstd).await? == EXHAUSTED, "64 MiB from {} bytes", zstd.len());
    let grown = fixture.peak_mib()?.saturating_sub(before);
    ensure!(grown <= 32, "bombs took {grown} MiB");
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_30_a_window_of_a_gigabyte_and_garbage_are_refused() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig::default()).await?;
    fixture.serves().await?;
    let (before, calls) = (fixture.peak_mib()?, fixture.backends[0].calls());
    let mut encoder = zstd::Encoder::new(Vec::new(), 1)?;
    encoder.window_log(27)?;
    encoder.include_contentsize(false)?;
    encoder.write_all(&hollow(1 << 20))?;
    let wide = encoder.finish()?;
    let status = send_compressed(&fixture, "zstd", &wide).await?;
    let grown = fixture.peak_mib()?.saturating_sub(before);
    ensure!(grown <= 32, "a window of 128 MiB, answered {status}, took {grown} MiB");
    let trailing = [gzip(&hollow(100))?, b"garbage".to_vec()].concat();
    for (encoding, packed) in [("gzip", trailing), ("gzip", b"no gzip".to_vec()), ("zstd", b"no zstd".to_vec())] {
        let status = send_compressed(&fixture, encoding, &packed).await?;
        ensure!(status != "0", "{encoding} garbage was answered OK");
    }
    ensure!(send_compressed(&fixture, "br", b"anything").await? == "12", "an unknown encoding must be refused");
    ensure!(fixture.backends[0].calls() <= calls + 1, "garbage was passed on");
    fixture.serves().await
}
