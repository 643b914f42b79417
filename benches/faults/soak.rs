//! All faults in turn for a long time: nothing acknowledged is lost, and nothing grows.

use std::collections::BTreeMap;

use anyhow::Result;
use tokio::time::{Instant, sleep};

use crate::{
    Pace,
    evidence::{Evidence, now},
    table::Lines,
    world::{Held, Load, Silent, World},
};

/// What may be done to the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Killed,
    Stopped,
    Slow,
    Refuses,
    Exhausted,
    Invalid,
    Partial,
    AllKilled,
    SilentClients,
}

const FAULTS: [Fault; 9] = [
    Fault::Killed,
    Fault::Stopped,
    Fault::Slow,
    Fault::Refuses,
    Fault::Exhausted,
    Fault::Invalid,
    Fault::Partial,
    Fault::AllKilled,
    Fault::SilentClients,
];

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::Killed => "a sink killed and started again",
            Self::Stopped => "a sink stopped and continued",
            Self::Slow => "a sink that takes 300 ms",
            Self::Refuses => "a sink that refuses half, UNAVAILABLE",
            Self::Exhausted => "a sink that refuses a third, RESOURCE_EXHAUSTED with RetryInfo",
            Self::Invalid => "a sink that calls a tenth invalid",
            Self::Partial => "a sink that rejects 5 % of spans by partial_success",
            Self::AllKilled => "all sinks killed and started again",
            Self::SilentClients => "300 clients that connect and say nothing",
        }
    }

    fn behaviour(self) -> Option<&'static str> {
        Some(match self {
            Self::Slow => r#"{"delay_ms": 300}"#,
            Self::Refuses => r#"{"failure_rate": 0.5}"#,
            Self::Exhausted => {
                r#"{"failure_rate": 0.33, "failure_code": "resource_exhausted", "failure_retry_after_ms": 200}"#
            }
            Self::Invalid => r#"{"failure_rate": 0.1, "failure_code": "invalid_argument"}"#,
            Self::Partial => r#"{"reject_rate": 0.05}"#,
            _ => return None,
        })
    }
}

/// One fault, from its begin to when all was well again.
struct Turn {
    fault: Fault,
    from: u64,
    to: u64,
}

/// What the proxies hold in a quiet moment.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    rss_mib: f64,
    descriptors: f64,
    tasks: f64,
    threads: f64,
}

/// Mixed faults for as long as was asked for.
pub(crate) async fn soak(pace: Pace) -> Result<Lines> {
    let mut world = World::start(4, "")?;
    let load = world.load(Load { rate: 20.0, retry: false, seed: now() });
    sleep(pace.seconds(5, 2)).await;
    let (mut turns, mut samples) = (Vec::new(), Vec::new());
    let end = Instant::now() + pace.soak;
    let mut number = 0;
    while Instant::now() < end {
        let from = now();
        let fault = FAULTS.get(number % FAULTS.len()).copied().unwrap_or(Fault::Slow);
        inject(&mut world, fault, number / FAULTS.len() % 4, pace).await?;
        sleep(pace.seconds(5, 2)).await;
        turns.push(Turn { fault, from, to: now() });
        samples.push(sample(&world)?);
        number += 1;
    }
    sleep(pace.seconds(10, 3)).await;
    let counters = ["spanring_membership_ejections_total", "spanring_membership_returns_total"];
    let counters = counters.map(|name| (name, world.metric(name, "")));
    let peak = world.held()?.iter().map(|held| held.peak_kib).max().unwrap_or(0) >> 10;
    let run = world.end(load).await?;
    let evidence = Evidence::gather(&world, run)?;
    let mut lines = Lines::default();
    lines.fact("spans acknowledged", evidence.acknowledged());
    lines.fact("duplicates", evidence.duplicates(|_| true));
    lines.fact("largest resident set of a proxy", format!("{peak} MiB"));
    for (name, value) in counters {
        lines.fact(name, value.map_or("no such metric".to_owned(), |value| value.to_string()));
    }
    seen(&turns, &evidence, &mut lines);
    lines.none("acknowledged spans missing", evidence.missing());
    let broken = evidence.run.failed.iter().filter(|failed| !failed.is_retryable && !is_of_a_sink(&failed.answer));
    lines.none("client errors that were neither retryable nor a sink's own", broken.count());
    flat(&samples, &mut lines);
    Ok(lines)
}

/// Does it, waits, and undoes it.
async fn inject(world: &mut World, fault: Fault, sink: usize, pace: Pace) -> Result<()> {
    let held = pace.seconds(10, 2);
    if let Some(behaviour) = fault.behaviour() {
        world.behave(sink, behaviour)?;
        sleep(held).await;
        return world.behave(sink, "{}");
    }
    match fault {
        Fault::Stopped => {
            world.signal(sink, "STOP")?;
            sleep(held).await;
            world.signal(sink, "CONT")
        }
        Fault::AllKilled => {
            (0..4).for_each(|n| world.kill(n));
            sleep(held).await;
            (0..4).try_for_each(|n| world.revive(n))
        }
        Fault::SilentClients => {
            let clients: Vec<Silent> = world.silent_clients(100)?;
            sleep(held).await;
            drop(clients);
            Ok(())
        }
        _ => {
            world.kill(sink);
            sleep(held).await;
            world.revive(sink)
        }
    }
}

/// Whether a refusal says what a sink was told to say.
fn is_of_a_sink(answer: &str) -> bool {
    answer.contains("the sink was told to")
}

#[expect(clippy::cast_precision_loss, reason = "for reports")]
fn sample(world: &World) -> Result<Sample> {
    let held: Vec<Held> = world.held()?;
    Ok(Sample {
        rss_mib: held.iter().map(|held| held.rss_kib).sum::<u64>() as f64 / 1024.0,
        descriptors: held.iter().map(|held| held.descriptors).sum::<usize>() as f64,
        tasks: world.metric("spanring_runtime_tasks", "").unwrap_or(0.0),
        threads: held.iter().map(|held| held.threads).sum::<u64>() as f64,
    })
}

/// A line for each fault: how often, and what clients saw meanwhile.
fn seen(turns: &[Turn], evidence: &Evidence, lines: &mut Lines) {
    let mut by_fault = BTreeMap::<Fault, (usize, usize, usize)>::new();
    for turn in turns {
        let during = turn.from..turn.to;
        let accepted = evidence.run.accepted.iter().filter(|accepted| during.contains(&accepted.sent)).count();
        let failed = evidence.run.failed.iter().filter(|failed| during.contains(&failed.sent)).count();
        let sum = by_fault.entry(turn.fault).or_default();
        *sum = (sum.0 + 1, sum.1 + accepted, sum.2 + failed);
    }
    for (fault, (times, accepted, failed)) in by_fault {
        lines
            .fact(&format!("{times} × {}", fault.name()), format!("{accepted} requests acknowledged, {failed} failed"));
    }
}

type Value = fn(&Sample) -> f64;

/// The last third of the quiet moments against the second: what was gathered at the start is not growth.
fn flat(samples: &[Sample], lines: &mut Lines) {
    let third = samples.len() / 3;
    let (before, after) =
        (samples.get(third..2 * third).unwrap_or_default(), samples.get(2 * third..).unwrap_or_default());
    let checks: [(&str, Value, f64); 4] = [
        ("resident sets in MiB", |sample| sample.rss_mib, 8.0),
        ("descriptors", |sample| sample.descriptors, 10.0),
        ("tasks", |sample| sample.tasks, 30.0),
        // Building a ring takes a thread, which stays for ten seconds.
        ("threads", |sample| sample.threads, 12.0),
    ];
    for (what, value, slack) in checks {
        let (before, after) = (median(before, value), median(after, value));
        let limit = before * 1.1 + slack;
        let holds = !samples.is_empty() && after <= limit;
        lines.line(
            &format!("{what} of the proxies, median of the last third"),
            &format!("≤ {limit:.0} (1.1 × the second third + {slack})"),
            format!("{after:.0} ({before:.0})"),
            holds,
        );
    }
}

fn median(samples: &[Sample], value: Value) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
