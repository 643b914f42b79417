//! The cost of scraping one proxy with 200 backends: `cargo bench --bench scrape`. Requests use one kept connection, as
//! Prometheus does; the time is measured from the request to the last byte.

#![allow(clippy::print_stdout, reason = "a bench prints")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use spanring::{config::Config, proxy::Proxy, telemetry::metrics::PROCESS_RESIDENT_MEMORY_BYTES};
use tokio::{runtime::Runtime, time::Instant};

const BACKENDS: u16 = 200;
const SCRAPES: usize = 500;

fn main() -> Result<()> {
    // `--quick` only checks that the bench runs.
    let scrapes = if std::env::args().any(|argument| argument == "--quick") { 5 } else { SCRAPES };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    // No backend has to listen, since all series exist from the start.
    let backends: Vec<SocketAddr> = (0..BACKENDS).map(|nth| (Ipv4Addr::LOCALHOST, 20_000 + nth).into()).collect();
    let proxy = runtime.block_on(async {
        let proxy = Proxy::start(Config::on_free_ports(&backends)?).await?;
        proxy.ready().await;
        anyhow::Ok(proxy)
    })?;
    let mut stream = BufReader::new(TcpStream::connect(proxy.admin.context("an admin listener")?)?);
    let mut times = Vec::with_capacity(scrapes);
    let mut page = Vec::new();
    let worked = busy(&runtime);
    for _ in 0..scrapes {
        let begun = Instant::now();
        scrape(&mut stream, &mut page)?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let at = |share: usize| times.get((times.len() - 1) * share / 100).copied().unwrap_or_default();
    let series = page.split(|byte| *byte == b'\n').filter(|line| !line.is_empty() && !line.starts_with(b"#")).count();
    println!("{BACKENDS} backends: {series} series, {:.0} KiB", page.len() as f64 / 1024.0);
    println!("{scrapes} scrapes: median {:.2} ms, 99th percentile {:.2} ms, worst {:.2} ms", at(50), at(99), at(100));
    let worked = (busy(&runtime) - worked).as_secs_f64() * 1e3 / scrapes as f64;
    println!("worker threads: busy for {worked:.2} ms a scrape");
    println!("resident memory at the end: {:.1} MiB", resident(&page).context("the memory on the page")? / 1048576.0);
    runtime.shutdown_background();
    Ok(())
}

/// How long the threads that serve requests were busy.
fn busy(runtime: &Runtime) -> Duration {
    let metrics = runtime.metrics();
    (0..metrics.num_workers()).map(|worker| metrics.worker_total_busy_duration(worker)).sum()
}

/// The memory of the process, as the page has it.
fn resident(page: &[u8]) -> Option<f64> {
    let mut lines = std::str::from_utf8(page).ok()?.lines();
    lines.find_map(|line| line.strip_prefix(PROCESS_RESIDENT_MEMORY_BYTES)?.trim().parse().ok())
}

fn scrape(stream: &mut BufReader<TcpStream>, page: &mut Vec<u8>) -> Result<()> {
    stream.get_mut().write_all(b"GET /metrics HTTP/1.1\r\nhost: spanring\r\n\r\n")?;
    let mut length = None;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        let lower = line.to_ascii_lowercase();
        length = length.or(lower.strip_prefix("content-length:").and_then(|value| value.trim().parse().ok()));
    }
    page.resize(length.context("a length")?, 0);
    stream.read_exact(page)?;
    ensure!(page.ends_with(b"\n"), "a whole page");
    Ok(())
}
