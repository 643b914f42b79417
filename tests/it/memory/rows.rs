//! What hostile clients do, each beside a good client: memory stays within its bound, the good client is served, probes
//! are answered, and everything is given back afterwards. The bench `faults` measures the same attacks with more clients.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use spanring::tools::sink::SinkConfig;

use super::{
    beside::{Beside, Memory},
    hostile::{self, Attack, Encoding, Outcome},
};
use crate::{
    harness::{Proxy, http_get, metric, until},
    rig::{self, Sinks},
};

/// The limit in MiB, and the memory allowed beside it, of which 12 are pages of files of an optimised binary.
const LIMIT: u64 = 128;
const BESIDE: u64 = 64 - 12;

/// The memory that may stay when an attack is over, in MiB.
const STAYS: u64 = 50;

/// The requests of the good client that may be refused for the moment, in percent.
const REFUSED: f64 = 5.0;

/// The time within which 99 % of its requests must be answered. Measured with an optimised binary it is below 500 ms; a
/// debug build on a busy machine is many times slower.
const P99: Duration = Duration::from_secs(15);

/// How long an attack lasts.
const ATTACK: Duration = Duration::from_secs(4);

/// Returns what is held for each use.
pub(super) fn held(admin: SocketAddr) -> Result<BTreeMap<String, f64>> {
    let (_, page) = http_get(&format!("http://{admin}/metrics"))?;
    let lines =
        page.lines().filter_map(|line| line.strip_prefix("spanring_memory_used_bytes{use=\"")?.split_once("\"} "));
    let held: BTreeMap<String, f64> =
        lines.map(|(purpose, bytes)| Ok((purpose.to_owned(), bytes.parse()?))).collect::<Result<_>>()?;
    ensure!(!held.is_empty(), "there must be gauges of memory by use");
    Ok(held)
}

/// Runs an attack beside a good client, and checks what must hold during and after it.
fn endures(attack: Attack, time: Duration) -> Result<Outcome> {
    hostile::room_for(attack.connections())?;
    let sinks = Sinks::start(2, &SinkConfig::default())?;
    let limiter = format!("memory_limiter: {{ limit_mib: {LIMIT} }}");
    let proxy = Proxy::start("spanring", |grpc, admin| rig::config(grpc, admin, &sinks.addresses(), "", &limiter))?;
    let process = proxy.process.id();
    let beside = Beside::start(proxy.grpc, proxy.admin, process);
    until("the good client is served", || {
        let served = metric(proxy.admin, "spanring_receiver_requests_total", &["code=\"OK\""])?;
        Ok((served >= 20.0).then_some(()))
    })?;
    let idle = Memory::of(process)?;
    let outcome = sinks.runtime.block_on(attack.run(proxy.grpc, time))?;
    let seen = beside.end()?;

    let peak = seen.memory.own_peak_mib();
    ensure!(peak <= LIMIT + BESIDE, "{peak} MiB are more than {LIMIT} + {BESIDE}");
    let served = &seen.served;
    ensure!(served.lost.is_empty(), "{} requests of the good client failed: {}", served.lost.len(), served.lost[0]);
    ensure!(
        served.refused_percent() <= REFUSED,
        "{} % of {} requests refused",
        served.refused_percent(),
        served.requests()
    );
    ensure!(served.p99() <= P99, "99 % of requests were answered only within {:?}", served.p99());
    ensure!(seen.probes.asked > 0 && seen.probes.failed == 0, "{:?}", seen.probes);

    until("memory is given back", || Ok((Memory::of(process)?.own_mib() <= idle.own_mib() + STAYS).then_some(())))?;
    until("all clients are gone", || {
        let open = metric(proxy.admin, "spanring_receiver_connections", &["listener=\"otlp_grpc\""])?;
        Ok((open == 0.0).then_some(()))
    })?;
    until("nothing is held for clients and requests", || {
        let held = held(proxy.admin)?;
        let of = |purpose| held.get(purpose).copied().context("no such use");
        Ok((of("connections")? + of("streams")? + of("requests")? == 0.0).then_some(()))
    })?;
    sinks.runtime.block_on(async {
        rig::client(proxy.grpc).await?.export(super::beside::request(1)).await?;
        Ok(outcome)
    })
}

#[test]
fn streams_that_send_only_their_headers() -> Result<()> {
    endures(Attack::HeadersOnly { connections: 1_000 }, ATTACK).map(drop)
}

#[test]
fn answers_that_are_never_taken() -> Result<()> {
    endures(Attack::AnswersNotTaken { connections: 500 }, ATTACK).map(drop)
}

#[test]
fn frames_that_are_left_unfinished() -> Result<()> {
    endures(Attack::UnfinishedFrames { connections: 3_000 }, ATTACK).map(drop)
}

#[test]
fn bombs_of_gzip() -> Result<()> {
    let outcome = endures(Attack::Bombs { connections: 1, encoding: Encoding::Gzip }, ATTACK)?;
    ensure!(outcome.answers > 0, "a bomb must be answered");
    Ok(())
}

#[test]
fn bombs_of_zstd() -> Result<()> {
    let outcome = endures(Attack::Bombs { connections: 4, encoding: Encoding::Zstd }, ATTACK)?;
    ensure!(outcome.answers > 0, "a bomb must be answered");
    Ok(())
}

#[test]
fn messages_of_60_mib_announced_on_2_100_streams() -> Result<()> {
    endures(Attack::MuchAnnounced { connections: 21 }, ATTACK).map(drop)
}

#[test]
fn idle_connections_in_waves() -> Result<()> {
    let outcome = endures(Attack::IdleConnections { connections: 9_500, waves: 2 }, 2 * ATTACK)?;
    ensure!(outcome.newcomer.is_some(), "a new client must be served while the others stay");
    Ok(())
}
