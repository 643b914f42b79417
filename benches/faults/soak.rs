//! All faults in turn for a long time. No acknowledged span may be lost, and no resource may grow.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use spanring::tools::load::{Failed, Pace as LoadPace};
use tokio::time::{Instant, sleep};

use crate::{
    Pace,
    evidence::{Evidence, now},
    network,
    plan::{CLIENT_TIMEOUTS, Load, Place, Plan},
    table::Findings,
    world::{Resources, Silent, World},
};

/// Clients that wait at least this long must see no error as long as a backend is up.
const PATIENT: Duration = Duration::from_secs(3);

/// The lengths of silences in milliseconds, used in turn.
const SILENCES: [u64; 8] = [500, 20_000, 2_000, 5_000, 900, 12_000, 3_000, 8_000];

/// `max_connection_age` of the proxies: short, so that connections end in every turn.
const AGE: &str = "1m";

/// Number of free descriptors left to a proxy.
const SPARE_DESCRIPTORS: usize = 3;

/// The injected faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Killed,
    Stopped,
    Vanished,
    Slow,
    Refuses,
    Exhausted,
    Invalid,
    Partial,
    AllKilled,
    SilentClients,
    NoDescriptors,
}

const FAULTS: [Fault; 11] = [
    Fault::Killed,
    Fault::Stopped,
    Fault::Vanished,
    Fault::Slow,
    Fault::Refuses,
    Fault::Exhausted,
    Fault::Invalid,
    Fault::Partial,
    Fault::AllKilled,
    Fault::SilentClients,
    Fault::NoDescriptors,
];

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::Killed => "a sink killed and restarted",
            Self::Stopped => "a sink stopped for a while",
            Self::Vanished => "a sink's node vanished for a while",
            Self::NoDescriptors => "three free descriptors in each proxy, and clients that connect",
            Self::Slow => "a sink that takes 300 ms",
            Self::Refuses => "a sink that refuses half of its calls, UNAVAILABLE",
            Self::Exhausted => "a sink that refuses a third of its calls, RESOURCE_EXHAUSTED with RetryInfo",
            Self::Invalid => "a sink that refuses a tenth of its calls, INVALID_ARGUMENT",
            Self::Partial => "a sink that rejects 5 % of spans by partial_success",
            Self::AllKilled => "all sinks killed and restarted",
            Self::SilentClients => "300 idle clients",
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

/// One fault, from its beginning until everything has recovered.
struct Turn {
    fault: Fault,
    from: u64,
    to: u64,
}

/// The resources of the proxies in a quiet moment.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    rss_mib: f64,
    descriptors: f64,
    tasks: f64,
    threads: f64,
}

/// Runs all faults in turn for the configured time.
pub(crate) async fn soak(pace: Pace) -> Result<Findings> {
    let mut findings = Findings::default();
    let why_not = network::why_not();
    let place = if why_not.is_none() { Place::Nodes } else { Place::Here };
    if let Some(reason) = why_not {
        findings.fact("skipped: nodes that vanish", reason);
    }
    let faults: Vec<Fault> =
        FAULTS.into_iter().filter(|fault| *fault != Fault::Vanished || place == Place::Nodes).collect();
    let mut world = World::start(Plan { place, age: AGE, ..Plan::default() })?;
    world.load(Load { pace: LoadPace::Open { rate: 20.0 }, timeouts: &CLIENT_TIMEOUTS, ..Load::default() });
    sleep(pace.seconds(5, 2)).await;
    let (mut turns, mut samples) = (Vec::new(), Vec::new());
    let end = Instant::now() + pace.soak;
    let mut number = 0;
    while Instant::now() < end {
        let from = now();
        let fault = faults.get(number % faults.len()).copied().unwrap_or(Fault::Slow);
        inject(&mut world, fault, number / faults.len(), pace).await?;
        sleep(pace.seconds(5, 2)).await;
        turns.push(Turn { fault, from, to: now() });
        samples.push(sample(&world)?);
        number += 1;
    }
    sleep(pace.seconds(10, 3)).await;
    let counters = ["spanring_membership_ejections_total", "spanring_membership_returns_total"];
    let counters = counters.map(|name| (name, world.metric(name, "")));
    let counted = world.metric("spanring_dispatch_possible_duplicate_records_total", "").unwrap_or(0.0);
    let peak = world.resources()?.iter().map(|held| held.peak_kib).max().unwrap_or(0) >> 10;
    let run = world.end().await?;
    let evidence = Evidence::gather(&world, run)?;
    findings.fact("spans acknowledged", evidence.acknowledged());
    findings.fact("largest resident set of a proxy", format!("{peak} MiB"));
    for (name, value) in counters {
        findings.fact(name, value.map_or("no such metric".to_owned(), |value| value.to_string()));
    }
    let failures = evidence.failures();
    seen(&turns, &evidence, &failures, &mut findings);
    findings.zero("acknowledged spans missing", evidence.missing());
    let has_reason = |failed: &Failed| is_of_a_sink(&failed.answer) || were_all_away(&turns, failed);
    let patient = failures.iter().filter(|failed| failed.timeout >= PATIENT && !has_reason(failed));
    let patient: Vec<&Failed> = patient.copied().collect();
    for failed in patient.iter().take(20) {
        findings.fact("one of the errors of patient clients", when(&turns, failed));
    }
    findings.zero(
        "errors of clients that wait 3 s or more, while a backend was up, other than a sink's own refusals",
        patient.len(),
    );
    let broken = failures.iter().filter(|failed| !failed.is_retryable && !is_of_a_sink(&failed.answer));
    findings.fact("client errors that were neither retryable nor a sink's own refusals", broken.count());
    findings.duplicates(counted, evidence.duplicates(|_| true));
    flat(&samples, &mut findings);
    Ok(findings)
}

/// Injects a fault for the `nth` time, waits, and ends it.
async fn inject(world: &mut World, fault: Fault, nth: usize, pace: Pace) -> Result<()> {
    let (sink, held) = (nth % 4, pace.seconds(10, 2));
    let silence = SILENCES.get(nth % SILENCES.len()).copied().map_or(held, Duration::from_millis);
    if let Some(behaviour) = fault.behaviour() {
        world.behave(sink, behaviour)?;
        sleep(held).await;
        return world.behave(sink, "{}");
    }
    match fault {
        Fault::Stopped => {
            world.signal(sink, "STOP")?;
            sleep(silence).await;
            world.signal(sink, "CONT")
        }
        Fault::Vanished => {
            world.node(sink)?.vanish()?;
            sleep(silence).await;
            world.node(sink)?.appear()
        }
        Fault::AllKilled => {
            (0..4).for_each(|n| world.kill(n));
            sleep(held).await;
            (0..4).try_for_each(|n| world.revive(n))
        }
        Fault::SilentClients | Fault::NoDescriptors => {
            if fault == Fault::NoDescriptors {
                world.limit_descriptors(Some(SPARE_DESCRIPTORS))?;
            }
            let clients: Vec<Silent> = world.silent_clients(100)?;
            sleep(held).await;
            drop(clients);
            world.limit_descriptors(None)
        }
        _ => {
            world.kill(sink);
            sleep(held).await;
            world.revive(sink)
        }
    }
}

/// Whether a request was in flight while all sinks were down.
fn were_all_away(turns: &[Turn], failed: &Failed) -> bool {
    let mut outages = turns.iter().filter(|turn| turn.fault == Fault::AllKilled);
    outages.any(|turn| failed.sent < turn.to && failed.answered > turn.from)
}

/// Describes a client's error and the fault at that time.
fn when(turns: &[Turn], failed: &Failed) -> String {
    let since = |from: u64| Duration::from_nanos(failed.sent.saturating_sub(from)).as_secs_f64();
    let turn = turns.iter().find(|turn| (turn.from..turn.to).contains(&failed.sent));
    let during = turn.map_or("no fault".to_owned(), |turn| format!("{}, {:.2} s", turn.fault.name(), since(turn.from)));
    let waited = Duration::from_nanos(failed.answered.saturating_sub(failed.sent)).as_secs_f64();
    format!("{} after {waited:.2} s of {} s ({during})", failed.answer, failed.timeout.as_secs())
}

/// Whether an answer comes from a sink that was told to refuse.
fn is_of_a_sink(answer: &str) -> bool {
    answer.contains("the sink was told to")
}

#[expect(clippy::cast_precision_loss, reason = "for reports")]
fn sample(world: &World) -> Result<Sample> {
    let resources: Vec<Resources> = world.resources()?;
    Ok(Sample {
        rss_mib: resources.iter().map(|held| held.rss_kib).sum::<u64>() as f64 / 1024.0,
        descriptors: resources.iter().map(|held| held.descriptors).sum::<usize>() as f64,
        tasks: world.metric("spanring_runtime_tasks", "").unwrap_or(0.0),
        threads: resources.iter().map(|held| held.threads).sum::<u64>() as f64,
    })
}

/// Reports for each fault how often it was injected and what clients saw meanwhile.
fn seen(turns: &[Turn], evidence: &Evidence, failures: &[&Failed], findings: &mut Findings) {
    let mut by_fault = BTreeMap::<Fault, (usize, usize, [usize; 4])>::new();
    for turn in turns {
        let during = turn.from..turn.to;
        let sum = by_fault.entry(turn.fault).or_default();
        sum.0 += 1;
        sum.1 += evidence.accepted().filter(|accepted| during.contains(&accepted.sent)).count();
        for (failed, timeout) in sum.2.iter_mut().zip(CLIENT_TIMEOUTS) {
            let of_turn =
                failures.iter().filter(|failed| failed.timeout.as_secs() == timeout && during.contains(&failed.sent));
            *failed += of_turn.count();
        }
    }
    for (fault, (times, accepted, failed)) in by_fault {
        findings.fact(
            &format!("{times} × {}", fault.name()),
            format!("{accepted} requests acknowledged; failed of clients of 2, 3, 5, 10 s: {failed:?}"),
        );
    }
}

type Value = fn(&Sample) -> f64;

/// Compares the last third of the samples with the second. The first third is left out, since memory that fills up at
/// the start is not growth.
fn flat(samples: &[Sample], findings: &mut Findings) {
    let third = samples.len() / 3;
    let (before, after) =
        (samples.get(third..2 * third).unwrap_or_default(), samples.get(2 * third..).unwrap_or_default());
    let checks: [(&str, Value, f64); 4] = [
        ("resident sets in MiB", |sample| sample.rss_mib, 8.0),
        ("descriptors", |sample| sample.descriptors, 10.0),
        ("tasks", |sample| sample.tasks, 30.0),
        // Building a ring uses a thread, which stays for ten seconds.
        ("threads", |sample| sample.threads, 12.0),
    ];
    for (what, value, slack) in checks {
        let (before, after) = (median(before, value), median(after, value));
        let limit = before * 1.1 + slack;
        let holds = !samples.is_empty() && after <= limit;
        findings.check(
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
