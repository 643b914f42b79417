//! Hostile clients that try to make the proxy hold much memory, beside a good client.

use std::{io::Write as _, time::Duration};

use anyhow::Result;
use tokio::time::sleep;

use crate::{
    Pace,
    beside::{Beside, Memory, Seen},
    hostile::{self, Attack, Encoding, Outcome},
    plan::{BUDGET_MIB, Build, Plan},
    table::Findings,
    world::World,
};

/// The memory allowed beside the limit, and the memory that may stay when an attack is over, in MiB.
const BESIDE_MIB: u64 = 64;
const STAYS_MIB: u64 = 50;

/// The limits of the good client: refusals in percent, and the time within which 99 % of its requests are answered.
const REFUSED_PERCENT: f64 = 5.0;
const P99: Duration = Duration::from_millis(500);

/// How long a new client may need, and how long after an attack its memory must be free.
const NEWCOMER: Duration = Duration::from_secs(2);
const AFTERWARDS: Duration = Duration::from_secs(10);

/// The attacks, and how long they last, in seconds.
const ROWS: [(&str, Attack, u64); 8] = [
    ("headers only, 1,000 connections × 100", Attack::HeadersOnly { connections: 1_000 }, 15),
    ("answers not taken, 500 connections × 100", Attack::AnswersNotTaken { connections: 500 }, 15),
    ("a frame unfinished on 3,000 connections", Attack::UnfinishedFrames { connections: 3_000 }, 15),
    ("bombs of gzip, 1 connection", Attack::Bombs { connections: 1, encoding: Encoding::Gzip }, 10),
    ("bombs of zstd, 1 connection", Attack::Bombs { connections: 1, encoding: Encoding::Zstd }, 10),
    ("bombs of zstd, 4 connections", Attack::Bombs { connections: 4, encoding: Encoding::Zstd }, 10),
    ("60 MiB announced on 2,100 streams", Attack::MuchAnnounced { connections: 21 }, 20),
    ("9,500 idle connections, 3 waves", Attack::IdleConnections { connections: 9_500, waves: 3 }, 24),
];

/// What one attack on one build did.
struct Row {
    idle: Memory,
    seen: Seen,
    outcome: Outcome,
    /// The memory 10 s after the attack.
    later: Memory,
}

/// Runs each attack on a proxy of its own.
pub(crate) async fn memory(pace: Pace) -> Result<Findings> {
    let mut findings = Findings::default();
    let mut lines = Vec::new();
    let has_before = std::env::var_os("SPANRING_BEFORE").is_some();
    let chosen = ROWS.into_iter().enumerate().filter(|(n, _)| pace.row.is_none_or(|row| row == n + 1));
    for (_, (name, attack, seconds)) in chosen {
        let time = pace.seconds(seconds, 6);
        for build in [Build::Before, Build::Tested].into_iter().filter(|build| has_before || *build == Build::Tested) {
            let row = row(build, attack, time).await?;
            let line = line(name, if build == Build::Before { "before" } else { "" }, &row);
            // All rows take minutes.
            writeln!(std::io::stderr(), "{line}")?;
            lines.push(line);
            if build == Build::Tested {
                check(name, &row, &mut findings);
            }
        }
    }
    findings.lines(TABLE.iter().map(|line| (*line).to_owned()).chain(lines));
    Ok(findings)
}

const TABLE: [&str; 2] = [
    "| attack | build | idle, peak, 10 s later (MiB) | refused | lost | p99 | probes failed, late, slowest | newcomer | sent, answers |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
];

async fn row(build: Build, attack: Attack, time: Duration) -> Result<Row> {
    hostile::room_for(attack.connections())?;
    let world = World::start(Plan { sinks: 2, journals: false, proxies: 1, build, ..Plan::default() })?;
    let Some(proxy) = world.proxies.first() else { anyhow::bail!("no proxy") };
    let (grpc, process) = (proxy.grpc, proxy.process.id());
    let beside = Beside::start(grpc, proxy.admin, process);
    sleep(Duration::from_secs(2)).await;
    let idle = Memory::of(process)?;
    let outcome = attack.run(grpc, time).await?;
    let seen = tokio::task::spawn_blocking(|| beside.end()).await??;
    sleep(AFTERWARDS).await;
    let later = Memory::of(process)?;
    Ok(Row { idle, seen, outcome, later })
}

fn line(name: &str, build: &str, row: &Row) -> String {
    let Row { idle, seen: Seen { served, probes, memory }, outcome, later } = row;
    format!(
        "| {name} | {build} | {}, {}, {} | {:.1} % of {} | {} | {:?} | {}, {}, {:?} of {} | {} | {}, {} |",
        idle.mib().0,
        memory.mib().1,
        later.mib().0,
        served.refused_percent(),
        served.requests(),
        served.lost.len(),
        round(served.p99()),
        probes.failed,
        probes.late,
        round(probes.slowest),
        probes.asked,
        outcome.newcomer.map_or("never".to_owned(), |took| format!("{:?}", round(took))),
        outcome.sent,
        outcome.answers,
    )
}

fn round(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

fn check(name: &str, row: &Row, findings: &mut Findings) {
    let Row { idle, seen: Seen { served, probes, memory }, outcome, later } = row;
    findings.section(name);
    let bound = BUDGET_MIB + BESIDE_MIB;
    let peak = memory.mib().1;
    findings.check("largest resident set", &format!("≤ {bound} MiB"), peak, peak <= bound);
    findings.at_most_percent("requests refused with RetryInfo", REFUSED_PERCENT, served.refused_percent() / 100.0);
    let first = served.lost.first().map_or("0".to_owned(), |first| format!("{}: {first}", served.lost.len()));
    findings.check("requests that failed otherwise", "0", first, served.lost.is_empty());
    let p99 = round(served.p99());
    findings.check("p99 of the good client", &format!("≤ {P99:?}"), format!("{p99:?}"), p99 <= P99);
    findings.zero("probes that failed or took longer than 1 s", probes.failed + probes.late);
    let newcomer = outcome.newcomer.map_or("never".to_owned(), |took| format!("{:?}", round(took)));
    let is_in = outcome.newcomer.is_some_and(|took| took <= NEWCOMER);
    findings.check("a new client is served", &format!("within {NEWCOMER:?}"), newcomer, is_in);
    let stays = later.mib().0.saturating_sub(idle.mib().0);
    findings.check("memory that stays 10 s later", &format!("≤ {STAYS_MIB} MiB"), stays, stays <= STAYS_MIB);
}
