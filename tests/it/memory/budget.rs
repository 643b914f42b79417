//! Requests that demand much memory: the peak stays below the budget plus 64 MiB.

use std::{io::Write as _, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    resource::v1::Resource,
};
use prost::Message;
use spanring::{lifecycle::Tasks, tools::sink::SinkConfig};
use tokio::net::TcpStream;
use tonic::Code;
use tonic_types::StatusExt;

use super::beside::Memory;
use crate::{
    harness::{Proxy, http_get, metric, until},
    rig::{Sinks, client, config, framed, head, request, send_raw, span},
};

/// The memory allowed in addition to the budget, in MiB. The documented limit is 64, of which 12 are mapped file pages
/// of an optimised binary. Such pages are not counted here, since the tested build has more than twice as many.
const OVERHEAD_MIB: u64 = 64 - 12;

fn proxy(sinks: &Sinks, limit_mib: u64) -> Result<Proxy> {
    let limiter = format!("memory_limiter: {{ limit_mib: {limit_mib} }}");
    Proxy::start("spanring", |grpc, admin| config(grpc, admin, &sinks.addresses(), "", &limiter))
}

/// Checks that the peak is within bounds, that the proxy still serves, and that requests have returned their memory.
fn stays_within(proxy: &Proxy, sinks: &Sinks, limit_mib: u64) -> Result<()> {
    let peak = Memory::of(proxy.process.id())?.own_peak_mib();
    ensure!(peak <= limit_mib + OVERHEAD_MIB, "{peak} MiB are more than {limit_mib} + {OVERHEAD_MIB}");
    until("requests hold no memory any more", || {
        Ok((plain_metric(proxy.admin, "spanring_memory_budget_used_bytes")? < 1.0).then_some(()))
    })?;
    sinks.runtime.block_on(async {
        let spans = (1..50).map(|n| span(u128::from(n), n)).collect();
        client(proxy.grpc).await?.export(request(spans)).await?;
        anyhow::Ok(())
    })
}

fn plain_metric(admin: SocketAddr, name: &str) -> Result<f64> {
    let (_, page) = http_get(&format!("http://{admin}/metrics"))?;
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.context("no such metric")?.parse()?)
}

/// Opens `streams` streams on one connection. Each announces 16 MiB and sends `chunk` bytes every `pause` until `end`
/// or until it is refused. Returns the codes of refusals.
async fn announce_much(
    grpc: SocketAddr,
    streams: usize,
    chunk: usize,
    pause: Duration,
    chunks: usize,
) -> Result<Vec<String>> {
    let (mut sender, connection) = h2::client::handshake(TcpStream::connect(grpc).await?).await?;
    let tasks = Tasks::new();
    tasks.spawn(async move { drop(connection.await) });
    let filler = Bytes::from(vec![0; chunk]);
    let mut sending = Vec::new();
    for _ in 0..streams {
        sender = sender.ready().await?;
        let (response, mut body) = sender.send_request(head(grpc, &[])?, false)?;
        let filler = filler.clone();
        sending.push(async move {
            let announcement = [0, 1, 0, 0, 0];
            drop(body.send_data(Bytes::copy_from_slice(&announcement), false));
            let send = async {
                for _ in 0..chunks {
                    body.reserve_capacity(filler.len());
                    // Sends only as fast as the window allows, so that this process buffers nothing.
                    while body.capacity() < filler.len() {
                        match std::future::poll_fn(|context| body.poll_capacity(context)).await {
                            Some(Ok(_)) => {}
                            Some(Err(_)) | None => return,
                        }
                    }
                    if body.send_data(filler.clone(), false).is_err() {
                        return;
                    }
                    tokio::time::sleep(pause).await;
                }
            };
            tokio::select! {
                response = response => {
                    let response = response.ok()?;
                    response.headers().get("grpc-status")?.to_str().ok().map(str::to_owned)
                }
                () = send => None,
            }
        });
    }
    let codes = futures_util::future::join_all(sending).await;
    Ok(codes.into_iter().flatten().collect())
}

#[test]
fn two_hundred_streams_that_announce_much_and_send_slowly_take_little_memory() -> Result<()> {
    let sinks = Sinks::start(2, &SinkConfig::default())?;
    let proxy = proxy(&sinks, 96)?;
    let refused = sinks.runtime.block_on(async {
        let slowly = || announce_much(proxy.grpc, 100, 1024, Duration::from_millis(100), 20);
        let (first, second) = tokio::join!(slowly(), slowly());
        anyhow::Ok([first?, second?].concat())
    })?;
    ensure!(refused.is_empty(), "there is room for what they sent: {refused:?}");
    stays_within(&proxy, &sinks, 96)
}

/// A request with one span for each of `traces` traces, under a resource of `size` bytes that every part has to repeat.
fn in_a_resource_of(size: usize, traces: u64) -> ExportTraceServiceRequest {
    let value = Some(AnyValue { value: Some(Value::StringValue("r".repeat(size))) });
    let attributes = vec![KeyValue { key: "large".to_owned(), value, ..KeyValue::default() }];
    let spans = (1..=traces).map(|n| span(u128::from(n) << 17 | u128::from(n), n)).collect();
    let mut request = request(spans);
    for resource in &mut request.resource_spans {
        resource.resource = Some(Resource { attributes: attributes.clone(), ..Resource::default() });
    }
    request
}

#[test]
fn a_resource_that_two_hundred_backends_need_is_copied_within_the_budget_or_refused() -> Result<()> {
    let sinks = Sinks::start(200, &SinkConfig::default())?;
    let proxy = proxy(&sinks, 128)?;
    sinks.runtime.block_on(async {
        let mut client = client(proxy.grpc).await?.max_encoding_message_size(64 << 20);
        let status = client.export(in_a_resource_of(30 << 20, 200)).await.err().context("more than there is")?;
        ensure!(status.code() == Code::ResourceExhausted, "{status:?}");
        ensure!(status.message().contains("memory_limiter"), "the message must say what to do: {status:?}");
        ensure!(status.get_details_retry_info().is_none(), "it would never fit: {status:?}");
        client.export(in_a_resource_of(400 << 10, 200)).await?;
        anyhow::Ok(())
    })?;
    ensure!(sinks.spans() == 200, "{} spans", sinks.spans());
    stays_within(&proxy, &sinks, 128)
}

#[test]
fn decompression_bombs_are_refused_within_the_budget() -> Result<()> {
    let sinks = Sinks::start(2, &SinkConfig::default())?;
    let proxy = proxy(&sinks, 192)?;
    let zeros = vec![0; 1 << 20];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let mut zstd = zstd::Encoder::new(Vec::new(), 19)?;
    for _ in 0..256 {
        gzip.write_all(&zeros)?;
        zstd.write_all(&zeros)?;
    }
    let bombs = [("gzip", framed(1, &gzip.finish()?)?), ("zstd", framed(1, &zstd.finish()?)?)];
    let replies = sinks.runtime.block_on(async {
        let sends = (0..6).map(|n| {
            let (encoding, body) = bombs[n % 2].clone();
            async move { send_raw(proxy.grpc, &[("grpc-encoding", encoding)], body).await }
        });
        futures_util::future::join_all(sends).await
    });
    for reply in replies {
        let reply = reply?;
        // Either permanently too large, or no room at the moment.
        let codes = [Code::ResourceExhausted as i32, Code::Unavailable as i32];
        ensure!(codes.contains(&reply.code), "{reply:?}");
    }
    ensure!(metric(proxy.admin, "spanring_receiver_refused_requests_total", &["reason=\"too_large\""])? >= 1.0);
    stays_within(&proxy, &sinks, 192)
}

#[test]
fn requests_whose_backends_do_not_answer_stay_within_the_budget() -> Result<()> {
    let behaviour = spanring::tools::sink::Behaviour { delay_ms: 60_000, ..Default::default() };
    let sinks = Sinks::start(2, &SinkConfig { behaviour, ..SinkConfig::default() })?;
    let proxy = Proxy::start("spanring", |grpc, admin| {
        let more = "memory_limiter: { limit_mib: 64 }";
        // Queues large enough to have no effect, so that only the budget limits memory.
        let pool = "sending_queue: { queue_size: 1GiB }\n    timeout: 1s";
        config(grpc, admin, &sinks.addresses(), pool, more)
    })?;
    let body = in_a_resource_of(1 << 20, 8).encode_to_vec();
    let replies = sinks.runtime.block_on(async {
        let sends =
            (0..100).map(|_| async { send_raw(proxy.grpc, &[("grpc-timeout", "2500m")], framed(0, &body)?).await });
        futures_util::future::join_all(sends).await
    });
    let refused = replies.into_iter().collect::<Result<Vec<_>>>()?;
    ensure!(refused.iter().all(|reply| reply.code == Code::Unavailable as i32), "{refused:?}");
    ensure!(metric(proxy.admin, "spanring_receiver_refused_requests_total", &["reason=\"budget\""])? >= 1.0);
    for sink in &sinks.sinks {
        sink.set_behaviour(spanring::tools::sink::Behaviour::default());
    }
    stays_within(&proxy, &sinks, 64)
}
