//! What a connection takes that does nothing, or has done its work, and what its headers keep: no more than the account
//! counts for it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use spanring::tools::sink::SinkConfig;

use super::{beside::Memory, hostile, rows::held};
use crate::{
    harness::{Proxy, metric, until},
    rig::{self, Sinks},
    wire::{
        ACK, DATA, END_HEADERS, END_STREAM, HEADERS, Raw, SETTINGS, TRACES, export_headers_as, frame, grpc, literals,
        literals_as,
    },
};

/// The number of idle clients.
const CLIENTS: usize = 3_000;

/// The memory that they may take, in KiB each, if they have sent only their settings, or one request too. Each has two
/// buffers of HTTP/2 with a page of 4 KiB in use, the states of the connection and of its layers, and after a request the
/// lists of streams and the table of headers.
const SETTINGS_ONLY_KIB: u64 = 17;
const ONE_REQUEST_KIB: u64 = 22;

/// The settings of gRPC's clients: no pushed streams, and an initial window of 64 KiB.
const USUAL: [(u16, u32); 2] = [(2, 0), (4, 65_535)];

/// The kind of literals that go into the table of headers.
const INDEXED: u8 = 0x40;

fn proxy(sinks: &Sinks, limit_mib: u64) -> Result<Proxy> {
    let limiter = format!("memory_limiter: {{ limit_mib: {limit_mib} }}");
    Proxy::start("spanring", |grpc, admin| rig::config(grpc, admin, &sinks.addresses(), "", &limiter))
}

/// Opens idle connections. Returns them with the growth of the proxy's memory in KiB.
fn opened(proxy: &Proxy, with_request: bool) -> Result<(Vec<Raw>, u64)> {
    let request = frame(HEADERS, END_HEADERS, 1, &export_headers_as(INDEXED, &[("user-agent", "grpc-test/1.0")]));
    let request = [request, frame(DATA, END_STREAM, 1, &grpc(&[]))].concat();
    let open = || {
        let mut raw = Raw::connect(proxy.grpc, &USUAL)?;
        if with_request {
            raw.send(&request)?;
            raw.stream_ended(1)?;
        } else {
            while raw.next()?.context("closed")?.kind != SETTINGS {}
        }
        raw.send(&frame(SETTINGS, ACK, 0, &[]))?;
        anyhow::Ok(raw)
    };
    // What the first connections leave behind belongs to the process.
    drop((0..20).map(|_| open()).collect::<Result<Vec<_>>>()?);
    until("the first are gone", || {
        Ok((metric(proxy.admin, "spanring_receiver_connections", &["listener=\"otlp_grpc\""])? == 0.0).then_some(()))
    })?;
    let before = own_kib(proxy)?;
    let crowd = (0..CLIENTS).map(|_| open()).collect::<Result<Vec<_>>>()?;
    // Freed memory goes back within five seconds.
    std::thread::sleep(Duration::from_secs(6));
    Ok((crowd, own_kib(proxy)?.saturating_sub(before)))
}

fn own_kib(proxy: &Proxy) -> Result<u64> {
    let memory = Memory::of(proxy.process.id())?;
    Ok(memory.resident.saturating_sub(memory.files))
}

fn takes_at_most(with_request: bool, most_kib: u64) -> Result<()> {
    hostile::room_for(CLIENTS)?;
    let sinks = Sinks::start(1, &SinkConfig::default())?;
    let proxy = proxy(&sinks, 512)?;
    let (crowd, grown) = opened(&proxy, with_request)?;
    let each = grown / CLIENTS as u64;
    ensure!(each <= most_kib, "a connection takes {each} KiB");
    let counted = until("the gauges follow", || {
        let held = held(proxy.admin)?;
        let counted = held.get("connections").copied().context("no such use")?;
        Ok((counted > 0.0).then_some(counted))
    })?;
    let counted = counted / CLIENTS as f64 / 1024.0;
    ensure!(each as f64 <= counted, "a connection takes {each} KiB, and {counted} are counted");
    drop(crowd);
    Ok(())
}

#[test]
fn clients_that_have_sent_only_their_settings() -> Result<()> {
    takes_at_most(false, SETTINGS_ONLY_KIB)
}

#[test]
fn clients_that_have_sent_one_request() -> Result<()> {
    takes_at_most(true, ONE_REQUEST_KIB)
}

/// The memory limit in MiB for clients whose headers keep buffers, and what is allowed beside it.
const LIMIT: u64 = 64;
const BESIDE: u64 = 64 - 12;

#[test]
fn buffers_that_headers_keep_are_counted() -> Result<()> {
    let sinks = Sinks::start(1, &SinkConfig::default())?;
    let proxy = proxy(&sinks, LIMIT)?;
    let mut crowd = Vec::new();
    // Larger than what is read at a time, so that the headers behind it are read into a buffer of their own.
    let filler = frame(0x42, 0, 0, &[7; 10_000]);
    for _ in 0..40 {
        let mut raw = Raw::connect(proxy.grpc, &USUAL)?;
        let mut ask = |n: u32| {
            // The table of headers keeps each authority, and with it the buffer that it is in.
            let authority = literals_as(INDEXED, &[(":authority", &n.to_string())]);
            let [before, after] = [
                [(":method", "POST"), (":scheme", "http"), (":path", TRACES)],
                [("content-type", "application/grpc"), ("te", "trailers"), ("user-agent", "test")],
            ]
            .map(|headers| literals(&headers));
            let request = frame(HEADERS, END_HEADERS | END_STREAM, n * 2 + 1, &[before, authority, after].concat());
            raw.send(&[filler.clone(), request].concat())?;
            raw.stream_ended(n * 2 + 1)
        };
        // One without room is told to finish, which is no failure.
        let _closed = (0..80).any(|n| ask(n).is_err());
        crowd.push(raw);
    }
    let peak = Memory::of(proxy.process.id())?.own_peak_mib();
    ensure!(peak <= LIMIT + BESIDE, "{peak} MiB are more than {LIMIT} + {BESIDE}");
    let counted = held(proxy.admin)?.get("frames").copied().unwrap_or_default();
    ensure!(counted > f64::from(2 << 20), "{counted} bytes are counted for the buffers of 3,200 authorities");
    drop(crowd);
    until("nothing is held for frames", || Ok((held(proxy.admin)?.get("frames") == Some(&0.0)).then_some(())))?;
    sinks.runtime.block_on(async {
        rig::client(proxy.grpc).await?.export(super::beside::request(1)).await?;
        Ok(())
    })
}
