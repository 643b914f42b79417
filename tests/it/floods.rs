//! Floods of cheap HTTP/2 frames from several clients, beside a good client: memory stays within its bound, and the good
//! client is served.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use spanring::tools::sink::SinkConfig;
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet, time::timeout};

use crate::{
    harness::{Proxy, metric, until},
    memory::beside::Beside,
    rig::{self, Sinks},
    wire::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, export_headers,
        frame, goaway, literals,
    },
};

/// The number of flooding clients. They do not read what the proxy sends.
const CLIENTS: usize = 3;

/// How long a flood lasts.
const FLOOD: Duration = Duration::from_secs(3);

/// The limit of memory in MiB, and the memory allowed beside it, of which 12 are pages of files of an optimised binary.
const LIMIT: u64 = 64;
const BESIDE: u64 = 64 - 12;

/// Floods the proxy with `begin` and then the bytes that `more` returns for 0, 1, 2 and so on, on each connection. A
/// client whose connection is closed opens the next one.
fn flood(begin: &[u8], more: impl Fn(u32) -> Vec<u8> + Clone + Send + Sync + 'static) -> Result<()> {
    let sinks = Sinks::start(2, &SinkConfig::default())?;
    let limiter = format!("memory_limiter: {{ limit_mib: {LIMIT} }}");
    let proxy = Proxy::start("spanring", |grpc, admin| rig::config(grpc, admin, &sinks.addresses(), "", &limiter))?;
    let beside = Beside::start(proxy.grpc, proxy.admin, proxy.process.id());
    until("the good client is served", || {
        let served = metric(proxy.admin, "spanring_receiver_requests_total", &["code=\"OK\""])?;
        Ok((served >= 20.0).then_some(()))
    })?;
    let opening = [PREFACE, &frame(SETTINGS, 0, 0, &[]), begin].concat();
    sinks.runtime.block_on(async {
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let (grpc, opening, more) = (proxy.grpc, opening.clone(), more.clone());
            clients.spawn(async move {
                loop {
                    drop(send(grpc, &opening, &more).await);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
        }
        drop(timeout(FLOOD, clients.join_next()).await);
    });
    let seen = beside.end()?;
    let peak = seen.memory.own_peak_mib();
    ensure!(peak <= LIMIT + BESIDE, "{peak} MiB are more than {LIMIT} + {BESIDE}");
    let served = &seen.served;
    ensure!(served.lost.is_empty(), "{} requests of the good client failed: {}", served.lost.len(), served.lost[0]);
    ensure!(served.refused_percent() <= 5.0, "{} % of its requests were refused", served.refused_percent());
    ensure!(seen.probes.asked > 0 && seen.probes.failed == 0, "{:?}", seen.probes);
    until("the flooding clients are gone", || {
        let open = metric(proxy.admin, "spanring_receiver_connections", &["listener=\"otlp_grpc\""])?;
        Ok((open == 0.0).then_some(()))
    })
}

async fn send(grpc: SocketAddr, opening: &[u8], more: &impl Fn(u32) -> Vec<u8>) -> Result<()> {
    let mut stream = TcpStream::connect(grpc).await?;
    stream.write_all(opening).await?;
    for n in 0.. {
        stream.write_all(&more(n)).await?;
    }
    Ok(())
}

fn stream_id(n: u32) -> u32 {
    n * 2 + 1
}

#[test]
fn streams_that_are_opened_and_reset() -> Result<()> {
    let headers = export_headers(&[]);
    flood(&[], move |n| {
        let id = stream_id(n);
        [frame(HEADERS, END_HEADERS, id, &headers), frame(RST_STREAM, 0, id, &8_u32.to_be_bytes())].concat()
    })
}

#[test]
fn continuations_without_end() -> Result<()> {
    let filler = literals(&[("x-filler", "0123456789012345678901234567890123456789")]);
    let many = frame(CONTINUATION, 0, 1, &filler).repeat(100);
    flood(&frame(HEADERS, 0, 1, &export_headers(&[])), move |_| many.clone())
}

#[test]
fn continuations_without_content() -> Result<()> {
    let many = frame(CONTINUATION, 0, 1, &[]).repeat(1000);
    flood(&frame(HEADERS, 0, 1, &export_headers(&[])), move |_| many.clone())
}

#[test]
fn settings_without_end() -> Result<()> {
    let many = frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9]).repeat(1000);
    flood(&[], move |_| many.clone())
}

#[test]
fn pings_without_end() -> Result<()> {
    let many = frame(PING, 0, 0, &[7; 8]).repeat(1000);
    flood(&[], move |_| many.clone())
}

#[test]
fn data_frames_without_content() -> Result<()> {
    let many = frame(DATA, 0, 1, &[]).repeat(1000);
    flood(&frame(HEADERS, END_HEADERS, 1, &export_headers(&[])), move |_| many.clone())
}

#[test]
fn padding_without_data() -> Result<()> {
    let many = frame(DATA, 8, 1, &[[255].as_slice(), &[0; 255]].concat()).repeat(100);
    flood(&frame(HEADERS, END_HEADERS, 1, &export_headers(&[])), move |_| many.clone())
}

#[test]
fn header_blocks_of_table_size_updates() -> Result<()> {
    // Updates to 0 and to 4,096 (RFC 7541, 6.3) in turn.
    let block = [[0x20, 0x3f, 0xe1, 0x1f].repeat(3000), export_headers(&[])].concat();
    flood(&[], move |n| frame(HEADERS, END_HEADERS | END_STREAM, stream_id(n), &block))
}

#[test]
fn header_blocks_that_refer_to_a_huge_header_again_and_again() -> Result<()> {
    // One table entry with 3,000 bytes (RFC 7541, 6.2.1, a length of two bytes), followed by references of one byte.
    let entry = [&[0x40, 1, b'x', 0x7f, 0xb9, 0x16][..], &[b'y'; 3000]].concat();
    let block = [export_headers(&[]), entry, vec![0xbe; 13_000]].concat();
    flood(&[], move |n| frame(HEADERS, END_HEADERS | END_STREAM, stream_id(n), &block))
}

#[test]
fn goaways_without_end() -> Result<()> {
    let many = goaway(0, 0).repeat(1000);
    flood(&[], move |_| many.clone())
}
