//! A name with 2,000 addresses, all of which refuse connections: the proxy's memory and processor time stay small.
//!
//! The test needs root, like those of [`super::dns`].

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Result, ensure};
use hickory_proto::rr::RecordType;
use spanring::lifecycle::Tasks;
use tokio::time::sleep;

use super::{
    harness::{Proxy, metric, until},
    memory::beside::Memory,
    nameserver::{NameServer, Reply},
    rig::{client, request, span},
};

const NAME: &str = "collectors.test.";

/// The number of backends: the most of a pool, nearly.
const BACKENDS: u8 = 200;
const NETS: u8 = 10;

/// The interval between two scrapes while the test waits: shorter than any usual one.
const SCRAPES: Duration = Duration::from_secs(1);

/// The peak memory that is allowed, in MiB, without the pages of the binary's file, of which a debug build has many.
const MOST_MIB: u64 = 128 - 20;

/// The processor time that is allowed. The goal of an optimised build is two seconds. A debug build takes about ten times
/// as long to hash the points of the ring, and other tests run beside this one.
const MOST_SECONDS: f64 = if cfg!(debug_assertions) { 60.0 } else { 4.0 };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_backends_that_refuse_cost_little() -> Result<()> {
    let Some(server) = NameServer::start()? else { return Ok(()) };
    let net = fastrand::u8(1..200);
    let refusing = (1..=NETS).flat_map(|third| (1..=BACKENDS).map(move |last| Ipv4Addr::new(127, net, third, last)));
    let unusable = [[0, 1, 2, 3], [240, 0, 0, 1], [255, 255, 255, 255], [224, 0, 0, 1]].map(Ipv4Addr::from);
    let all: Vec<IpAddr> = refusing.chain(unusable).map(IpAddr::V4).collect();
    server.set_reply(NAME, RecordType::A, Reply::OverTcp(all));
    server.set_reply(NAME, RecordType::AAAA, Reply::NoData);
    let command = || server.command(env!("CARGO_BIN_EXE_spanring"));
    // Nobody listens on port 1.
    let proxy = Proxy::start_by("spanring", command, "readyz", |grpc, admin| {
        format!(
            "receivers: {{ otlp: {{ protocols: {{ grpc: {{ endpoint: {grpc} }} }} }} }}
pools:
  tail: {{ resolver: {{ dns: {{ hostname: collectors.test., port: 1, interval: 5s, timeout: 2s }} }} }}
routes: [{{ signals: [traces], routing_key: trace_id, pool: tail }}]
admin: {{ endpoint: {admin} }}
"
        )
    })?;
    let members = metric(proxy.admin, "spanring_ring_members", &["state=\"active\""])?;
    ensure!(members == f64::from(BACKENDS) * f64::from(NETS), "{members} members: the unusable ones must be left out");
    let log = proxy.process.log();
    let warned = log.lines().any(|line| line.contains("discovery leaves out") && line.contains("addresses=4"));
    ensure!(warned, "those that are left out must be counted in a warning: {log}");

    // Requests that name all backends, so that all are ejected.
    let tasks = Tasks::new();
    for round in 0..20_u128 {
        let spans: Vec<_> = (0..500).map(|trace| span(round * 500 + trace, 1)).collect();
        let mut client = client(proxy.grpc).await?;
        tasks.spawn(async move { drop(client.export(request(spans)).await) });
    }
    until("most backends are ejected", || {
        // A page of metrics of 2,000 backends takes tens of milliseconds.
        std::thread::sleep(SCRAPES);
        let ejected = metric(proxy.admin, "spanring_membership_ejections_total", &["reason=\"refused\""])?;
        Ok((ejected >= 1800.0).then_some(()))
    })?;
    // Probes and retries go on for a while.
    sleep(Duration::from_secs(5)).await;
    let (peak, seconds) =
        (Memory::of(proxy.process.id())?.own_peak_mib(), metric(proxy.admin, "process_cpu_seconds_total", &[])?);
    ensure!(peak <= MOST_MIB, "{peak} MiB");
    ensure!(seconds <= MOST_SECONDS, "{seconds} s of processor time");
    let tables = metric(proxy.admin, "spanring_ring_generation", &[])?;
    ensure!(tables <= 40.0, "{tables} tables for the ejections of a few seconds");
    Ok(())
}
