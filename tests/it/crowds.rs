//! Clients that keep connections or answers of a port for themselves: probes are answered within a second all the same, a
//! client with something to send gets a place, and memory stays small.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};

use tokio::time::Instant;

use super::{
    fixture::{ExtraConfig, Fixture},
    harness,
    wire::{END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, Raw, SETTINGS, frame, grpc, literals},
};

/// The places of the admin port, and as many has that of probes.
const PLACES: usize = 64;

/// The closed connections of a listener.
const CLOSED: &str = "spanring_receiver_closed_connections_total";

/// Starts a proxy with a port for probes; returns the address of that port too.
async fn with_probes(backends: usize) -> Result<(Fixture, SocketAddr)> {
    let knobs = ExtraConfig { top: "health_check: { endpoint: \"127.0.0.1:0\" }", ..ExtraConfig::default() };
    let fixture = Fixture::start(backends, knobs).await?;
    let log = fixture.process.log();
    let line =
        log.lines().find(|line| line.contains("listening") && line.contains("health_check")).context("no line")?;
    let address =
        line.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next()).context("no address")?;
    Ok((fixture, address.parse()?))
}

/// Asks a page often; it must be answered with 200 within a second each time.
fn is_answered_at_once(address: SocketAddr, path: &str) -> Result<()> {
    for _ in 0..8 {
        let started = Instant::now();
        let answer = harness::http_get(&format!("http://{address}/{path}"));
        let (status, _) = answer.with_context(|| format!("{address}/{path} was not answered"))?;
        let took = started.elapsed();
        ensure!(status == 200 && took < Duration::from_secs(1), "{address}/{path} answered {status} after {took:?}");
    }
    Ok(())
}

/// Opens a connection that is idle: the proxy has answered its preface.
fn idle(address: SocketAddr) -> Result<Raw> {
    let mut raw = Raw::connect(address, &[])?;
    while raw.next()?.context("the connection was closed")?.kind != SETTINGS {}
    Ok(raw)
}

fn request(stream: u32, path: &str, more: &[(&str, &str)], flags: u8) -> Vec<u8> {
    let usual = [(":scheme", "http"), (":path", path), (":authority", "spanring")];
    frame(HEADERS, END_HEADERS | flags, stream, &literals(&[&usual, more].concat()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_on_every_place_keep_out_no_probe() -> Result<()> {
    let (fixture, probes) = with_probes(1).await?;
    for (address, path) in [(fixture.admin, "livez"), (fixture.admin, "readyz"), (probes, ""), (probes, "livez")] {
        let _crowd = (0..PLACES).map(|_| idle(address)).collect::<Result<Vec<Raw>>>()?;
        is_answered_at_once(address, path)?;
    }
    let closed = fixture.metric(CLOSED, &["listener=\"admin\"", "reason=\"room\""])?;
    ensure!(closed >= 1.0, "no connection made room");
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_watch_on_every_place_keep_out_no_probe() -> Result<()> {
    let (fixture, probes) = with_probes(1).await?;
    let grpc_headers = [(":method", "POST"), ("content-type", "application/grpc"), ("te", "trailers")];
    for (address, path) in [(fixture.admin, "livez"), (probes, "")] {
        let mut crowd = Vec::new();
        for _ in 0..PLACES {
            let mut raw = idle(address)?;
            raw.send(&request(1, "/grpc.health.v1.Health/Watch", &grpc_headers, 0))?;
            raw.send(&frame(0, END_STREAM, 1, &grpc(&[])))?;
            while raw.next()?.context("the connection was closed")?.kind != HEADERS {}
            crowd.push(raw);
        }
        is_answered_at_once(address, path)?;
    }
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_to_the_admin_port_that_asks_nothing_is_told_to_go() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig::default()).await?;
    let mut raw = idle(fixture.admin)?;
    let started = Instant::now();
    raw.set_timeout(Duration::from_secs(20))?;
    ensure!(raw.dismissal()?.is_some(), "closed without GOAWAY");
    let lived = started.elapsed().as_secs_f64();
    ensure!((9.0..15.0).contains(&lived), "after {lived} s");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_clients_on_every_place_make_room_for_one_that_sends() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig { grpc: "max_connections: 8,", ..ExtraConfig::default() }).await?;
    let mut crowd = (0..8).map(|_| idle(fixture.grpc)).collect::<Result<Vec<Raw>>>()?;
    // A client that is refused connects again, as clients do; the crowd stays.
    let started = Instant::now();
    while fixture.client().await.is_err() || fixture.serves().await.is_err() {
        ensure!(started.elapsed() < Duration::from_secs(8), "idle clients keep out all others");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let first = crowd.first_mut().context("a client")?;
    first.set_timeout(Duration::from_secs(20))?;
    loop {
        match first.next()? {
            Some(Frame { kind: GOAWAY, .. }) => return Ok(()),
            Some(_) => {}
            None => bail!("the client that was idle for the longest time was closed without GOAWAY"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_who_ask_for_metrics_a_thousand_times_and_take_none_hold_little() -> Result<()> {
    let (fixture, probes) = with_probes(200).await?;
    let (status, page) = harness::http_get(&format!("http://{}/metrics", fixture.admin))?;
    ensure!(status == 200 && page.len() > 300_000, "{status}: {} bytes", page.len());
    let before = fixture.peak_mib()?;
    let mut crowd = Vec::new();
    for _ in 0..PLACES {
        let mut raw = idle(fixture.admin)?;
        for stream in (1..32).step_by(2) {
            raw.send(&request(stream, "/metrics", &[(":method", "GET")], END_STREAM))?;
        }
        crowd.push(raw);
    }
    is_answered_at_once(fixture.admin, "livez")?;
    is_answered_at_once(probes, "")?;
    let (status, page) = harness::http_get(&format!("http://{}/metrics", fixture.admin))?;
    ensure!(status == 200 && page.ends_with('\n') && page.len() > 300_000, "{status}: {} bytes", page.len());
    fixture.until_metric(CLOSED, &["listener=\"admin\"", "reason=\"unread\""], |closed| closed >= 1.0)?;
    let grown = fixture.peak_mib()? - before;
    ensure!(grown <= 40, "they made the proxy grow by {grown} MiB");
    let used = fixture.metric("spanring_memory_used_bytes", &["use=\"admin\""]).unwrap_or_default();
    ensure!(used <= f64::from(16 << 20), "{used} bytes are held for pages");
    drop(crowd);
    fixture.serves().await
}
