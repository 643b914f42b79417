//! The gauges of the account beside the memory of the process: what it takes under load is what they say, give or take a
//! little.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use spanring::tools::sink::{Behaviour, SinkConfig};
use tokio::time::Instant;

use super::{
    beside::Memory,
    hostile::{self, Attack},
    rows::held,
};
use crate::{
    harness::{Proxy, metric, until},
    rig::{self, Sinks},
};

const MIB: f64 = 1_048_576.0;

/// The limit in MiB: large enough for all that is sent here.
const LIMIT: u64 = 512;

/// How much the process may grow beyond what is counted, in MiB: what cannot be counted, such as spare objects, freed
/// memory that goes back later, and the pages that are partly in use.
const MORE: f64 = 24.0;

/// How much of what is counted may not be in use: room for streams and frames is taken before it is needed.
const UNUSED: f64 = 0.75;

/// How long a load lasts.
const TIME: Duration = Duration::from_secs(15);

/// A load, and the least that is counted for it, in MiB.
struct Load {
    name: &'static str,
    attack: Attack,
    counted: f64,
}

const LOADS: [Load; 4] = [
    Load { name: "idle connections", attack: Attack::IdleConnections { connections: 2_000, waves: 1 }, counted: 30.0 },
    Load { name: "streams without bodies", attack: Attack::HeadersOnly { connections: 150 }, counted: 40.0 },
    Load { name: "unfinished frames", attack: Attack::UnfinishedFrames { connections: 300 }, counted: 20.0 },
    Load { name: "requests", attack: Attack::LargeRequests { connections: 10, streams: 10 }, counted: 60.0 },
];

/// Returns all that is counted, in MiB, without the page of metrics that is read: it grows by a few bytes with each new number.
fn counted(proxy: &Proxy) -> Result<f64> {
    let uses = held(proxy.admin)?;
    Ok(uses.iter().filter(|(what, _)| *what != "admin").map(|(_, bytes)| bytes).sum::<f64>() / MIB)
}

fn own_mib(proxy: &Proxy) -> Result<f64> {
    let memory = Memory::of(proxy.process.id())?;
    Ok(f64::from(u32::try_from(memory.resident.saturating_sub(memory.files))?) / 1024.0)
}

fn agrees(load: &Load) -> Result<()> {
    hostile::room_for(load.attack.connections())?;
    // Backends keep requests waiting, so that they stay.
    let behaviour = Behaviour { delay_ms: 6_000, ..Behaviour::default() };
    let sinks = Sinks::start(2, &SinkConfig { behaviour, ..SinkConfig::default() })?;
    let limiter = format!("memory_limiter: {{ limit_mib: {LIMIT} }}");
    let proxy = Proxy::start("spanring", |grpc, admin| rig::config(grpc, admin, &sinks.addresses(), "", &limiter))?;
    let (fixed, idle) = (own_mib(&proxy)?, counted(&proxy)?);
    let looks = async {
        let mut seen = Vec::new();
        // The gauges are written once a second, and a busy machine is slow to connect.
        let by = Instant::now() + TIME - Duration::from_secs(4);
        while counted(&proxy)? - idle < load.counted && Instant::now() < by {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        for _ in 0..10 {
            seen.push((own_mib(&proxy)? - fixed, counted(&proxy)? - idle));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        anyhow::Ok(seen)
    };
    let seen = sinks.runtime.block_on(async {
        let attack = load.attack.run(proxy.grpc, TIME);
        let (outcome, seen) = tokio::join!(attack, looks);
        outcome?;
        seen
    })?;
    let most = |of: fn(&(f64, f64)) -> f64| seen.iter().map(of).fold(0.0, f64::max);
    let (grown, most_counted) = (most(|(grown, _)| *grown), most(|(_, counted)| *counted));
    let found = format!("it grew by {grown:.1} MiB, and {most_counted:.1} MiB are counted");
    ensure!(most_counted >= load.counted, "too little load: {found}");
    ensure!(grown <= most_counted + MORE, "{found}");
    ensure!(grown >= most_counted * (1.0 - UNUSED), "{found}");
    until("all clients are gone", || {
        let open = metric(proxy.admin, "spanring_receiver_connections", &["listener=\"otlp_grpc\""])?;
        Ok((open == 0.0).then_some(()))
    })?;
    until("nothing more is counted", || Ok((counted(&proxy)? <= idle).then_some(())))
        .with_context(|| format!("{:?}", held(proxy.admin)))?;
    until("memory is given back", || Ok((own_mib(&proxy)? <= fixed + MORE).then_some(())))
}

#[test]
fn the_gauges_say_what_the_process_takes_under_load() -> Result<()> {
    LOADS.iter().try_for_each(|load| agrees(load).context(load.name))
}
