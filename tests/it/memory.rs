//! Memory of a proxy under peers that ask for much: its peak stays below the budget and 64 MiB.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use spanring::{lifecycle::Tasks, tools::sink::SinkConfig};
use tokio::net::TcpStream;

use super::{
    harness::{Process, Proxy, until},
    rig::{Sinks, client, config, head, request, span},
};

/// What the process may take beside its budget, in MiB.
const BESIDE: u64 = 64;

fn proxy(sinks: &Sinks, limit_mib: u64) -> Result<Proxy> {
    let limiter = format!("memory_limiter: {{ limit_mib: {limit_mib} }}");
    Proxy::start("spanring", |grpc, admin| config(grpc, admin, &sinks.addresses(), "", &limiter))
}

/// The most memory that a process ever had, in MiB.
fn peak_mib(process: &Process) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024)
}

/// Its peak is within bounds, it serves on, and what requests held was given back.
fn stays_within(proxy: &Proxy, sinks: &Sinks, limit_mib: u64) -> Result<()> {
    let peak = peak_mib(&proxy.process)?;
    ensure!(peak <= limit_mib + BESIDE, "{peak} MiB are more than {limit_mib} + {BESIDE}");
    until("nothing is held any more", || {
        Ok((plain_metric(proxy.admin, "spanring_memory_budget_used_bytes")? < 1.0).then_some(()))
    })?;
    sinks.runtime.block_on(async {
        let spans = (1..50).map(|n| span(u128::from(n), n)).collect();
        client(proxy.grpc).await?.export(request(spans)).await?;
        anyhow::Ok(())
    })
}

fn plain_metric(admin: SocketAddr, name: &str) -> Result<f64> {
    let (_, page) = super::harness::http_get(&format!("http://{admin}/metrics"))?;
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.context("no such metric")?.parse()?)
}

/// Opens `streams` streams on one connection that each announce 64 MiB and send `chunk` bytes every `pause`, until `end`
/// or until they are refused. Returns the codes of refusals.
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
            let announcement = [0, 4, 0, 0, 0];
            drop(body.send_data(Bytes::copy_from_slice(&announcement), false));
            let send = async {
                for _ in 0..chunks {
                    body.reserve_capacity(filler.len());
                    // As fast as the window allows, and no faster: what cannot be sent is not kept here.
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
fn two_hundred_streams_that_announce_much_and_send_slowly_hold_little() -> Result<()> {
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
