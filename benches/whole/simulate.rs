//! The rules of the hand-off in simulated time, over many backends and days of changes.
//!
//! Slots are placed by rendezvous hashing, which moves the same share of slots as the proxy's ring and is cheap to
//! update. How evenly the ring places slots does not matter here, only which of them move when.

use std::{fs, io::Write, path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    chart::{self, Line},
    report::percent,
    whole::{
        rules::{Arrived, Mode, Period, Rules},
        traces::{Spec, Trace},
        verdict::{Deliveries, Spans, Traces},
    },
};

/// Options of the simulation.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Simulation")]
pub(crate) struct Simulation {
    /// Simulated days
    #[arg(long, value_name = "N", default_value_t = 2.0)]
    days: f64,
    /// Replicas of the proxy
    #[arg(long, value_name = "N", default_value_t = 3)]
    replicas: usize,
    /// Traces of moved slots that are followed near each change
    #[arg(long, value_name = "N", default_value_t = 200)]
    traces: usize,
    /// A trace is near a change if it had a span within this time of it
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    near: u64,
    /// Write a chart of whole traces against skew and window
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// The same number as `slots_v1` has.
const SLOTS: u32 = 131_072;

/// From a service to a replica.
const NETWORK: Duration = Duration::from_millis(5);

/// The mean time between two events, and between two changes of the same one.
const BETWEEN_EVENTS: f64 = 600.0;
const BETWEEN_CHANGES: f64 = 15.0;

/// The skews, in seconds.
const SKEWS: [f64; 7] = [0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0];

/// Modes, windows and the time after which root spans are spared, both in seconds.
const RULES: [(&str, Mode, u64, u64); 9] = [
    ("immediate", Mode::Immediate, 30, 15),
    ("sticky, 30 s", Mode::Sticky, 30, 15),
    ("sticky, 45 s", Mode::Sticky, 45, 15),
    ("dual, 10 s", Mode::Dual, 10, 10),
    ("dual, 20 s", Mode::Dual, 20, 15),
    ("dual, 30 s", Mode::Dual, 30, 15),
    ("dual, 30 s, skew 10 s", Mode::Dual, 30, 10),
    ("dual, 30 s, skew 30 s (none spared)", Mode::Dual, 30, 30),
    ("dual, 45 s", Mode::Dual, 45, 15),
];

/// The pool over time.
struct Pool {
    /// By slot, its owners: the number of the change that made each of them the owner, and the owner. The first owner
    /// came with no change.
    owners: Vec<Vec<(Option<usize>, u32)>>,
    members: Vec<u32>,
    next: u32,
    changes: Vec<Change>,
}

/// A change, with the slots that it moved.
struct Change {
    at: Duration,
    moved: Vec<u32>,
}

/// A trace near a change.
struct Sample {
    slot: u32,
    trace: Trace,
}

/// What was found for one rule and one skew.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    traces: Traces,
    spans: Spans,
}

/// The number of backends at the beginning, unless another one is given.
const BACKENDS: u32 = 2_000;
const BACKENDS_IF_QUICK: u32 = 100;

/// Runs the simulation; prints a table.
pub(crate) fn run(
    args: &Simulation,
    backends: Option<u32>,
    skews: &[f64],
    is_quick: bool,
    seed: u64,
    out: &mut dyn Write,
) -> Result<()> {
    let (mut args, mut backends) = (args.clone(), backends.unwrap_or(BACKENDS));
    if is_quick {
        (backends, args.days, args.traces) = (BACKENDS_IF_QUICK, 0.1, 50);
    }
    ensure!(backends > 1 && args.replicas > 0, "there must be two backends and one replica at least");
    let skews = if skews.is_empty() { SKEWS.as_slice() } else { skews };
    let mut random = fastrand::Rng::with_seed(seed);
    let pool = Pool::over(backends, Duration::try_from_secs_f64(args.days * 86_400.0)?, &mut random);
    let spec = Spec { batches: vec![Duration::from_secs(5)], ..Spec::default() };
    let samples = pool.samples(&spec, &args, &mut random);
    writeln!(
        out,
        "{} backends, {} replicas, {} changes in {} days; {} traces of moved slots with a span within {} s of a change\n",
        backends,
        args.replicas,
        pool.changes.len(),
        args.days,
        samples.len(),
        args.near
    )?;
    let found: Vec<Vec<Found>> = std::thread::scope(|scope| {
        let of_skew = |skew: &f64| {
            let learned = pool.learned(args.replicas, *skew, seed);
            let (pool, spec, samples) = (&pool, &spec, &samples);
            scope.spawn(move || {
                let of_rule = |(_, mode, window, skew): &(&str, Mode, u64, u64)| {
                    let [window, skew] = [window, skew].map(|seconds| Duration::from_secs(*seconds));
                    let rules = Rules { mode: *mode, window, skew };
                    pool.follow(rules, spec, samples, &learned)
                };
                RULES.iter().map(of_rule).collect()
            })
        };
        let threads: Vec<_> = skews.iter().map(of_skew).collect();
        threads.into_iter().flat_map(std::thread::ScopedJoinHandle::join).collect()
    });
    ensure!(found.len() == skews.len(), "a thread of the simulation panicked");
    write_table(skews, &found, out)?;
    if let Some(file) = &args.svg {
        let line = |(n, (name, ..)): (usize, &(&'static str, Mode, u64, u64))| Line {
            name,
            points: skews
                .iter()
                .zip(&found)
                .filter_map(|(skew, found)| Some((*skew, missed(found.get(n)?)?)))
                .collect(),
        };
        let lines: Vec<Line> = RULES.iter().enumerate().map(line).collect();
        fs::write(file, chart::draw(args.near, &lines))?;
    }
    Ok(())
}

/// The share of traces that are not whole.
fn missed(found: &Found) -> Option<f64> {
    Some(1.0 - found.traces.whole_share()?)
}

fn write_table(skews: &[f64], found: &[Vec<Found>], out: &mut dyn Write) -> Result<()> {
    let heads: Vec<String> = skews.iter().map(|skew| format!("{skew} s")).collect();
    writeln!(out, "| mode, window | {} | traffic |\n|{}", heads.join(" | "), " --- |".repeat(skews.len() + 2))?;
    for (n, (name, ..)) in RULES.iter().enumerate() {
        let row: Vec<&Found> = found.iter().filter_map(|found| found.get(n)).collect();
        let cells: Vec<String> = row.iter().map(|found| percent(found.traces.whole_share(), 3)).collect();
        let mut spans = Spans::default();
        row.iter().for_each(|found| spans.merge(&found.spans));
        let traffic = spans.traffic().unwrap_or_default();
        writeln!(out, "| {name} | {} | {traffic:.3} |", cells.join(" | "))?;
    }
    writeln!(
        out,
        "\nColumns: whole traces for each skew. Traffic: deliveries ÷ spans of these traces, over all skews."
    )?;
    Ok(())
}

// === impl Pool ===

impl Pool {
    /// A pool of `backends` that changes for this long.
    fn over(backends: u32, length: Duration, random: &mut fastrand::Rng) -> Self {
        let members: Vec<u32> = (0..backends).collect();
        let owners = (0..SLOTS).map(|slot| vec![(None, best(slot, &members))]).collect();
        let mut pool = Self { owners, members, next: backends, changes: Vec::new() };
        let mut at = pause(random, BETWEEN_EVENTS);
        while at < length {
            match random.u8(..10) {
                0..3 => pool.join(at),
                3..6 if pool.members.len() > 2 => pool.leave(at, random),
                6..8 => {
                    for _ in 0..random.u8(2..=5) {
                        pool.join(at);
                        at += pause(random, BETWEEN_CHANGES);
                    }
                }
                _ => {
                    // A rolling restart of some backends with new addresses.
                    for _ in 0..random.u8(5..=20) {
                        pool.join(at);
                        at += pause(random, BETWEEN_CHANGES);
                        pool.leave(at, random);
                        at += pause(random, BETWEEN_CHANGES);
                    }
                }
            }
            at += pause(random, BETWEEN_EVENTS);
        }
        pool
    }

    fn join(&mut self, at: Duration) {
        let (change, backend) = (self.changes.len(), self.next);
        self.next += 1;
        self.members.push(backend);
        let mut moved = Vec::new();
        for (slot, owners) in (0..SLOTS).zip(&mut self.owners) {
            if owners.last().is_some_and(|(_, owner)| score(slot, backend) > score(slot, *owner)) {
                owners.push((Some(change), backend));
                moved.push(slot);
            }
        }
        self.changes.push(Change { at, moved });
    }

    fn leave(&mut self, at: Duration, random: &mut fastrand::Rng) {
        let change = self.changes.len();
        let gone = self.members.swap_remove(random.usize(..self.members.len()));
        let mut moved = Vec::new();
        for (slot, owners) in (0..SLOTS).zip(&mut self.owners) {
            if owners.last().is_some_and(|(_, owner)| *owner == gone) {
                owners.push((Some(change), best(slot, &self.members)));
                moved.push(slot);
            }
        }
        self.changes.push(Change { at, moved });
    }

    /// Returns traces of slots that changes move, near those changes.
    fn samples(&self, spec: &Spec, args: &Simulation, random: &mut fastrand::Rng) -> Vec<Sample> {
        let (near, longest) = (Duration::from_secs(args.near), *spec.lengths.end());
        let mut samples = Vec::new();
        for change in self.changes.iter().filter(|change| change.at > near + longest) {
            let wanted = samples.len() + args.traces;
            while samples.len() < wanted {
                let Some(slot) = random.choice(change.moved.iter().copied()) else { break };
                let within = (2 * near + longest).mul_f64(random.f64());
                let trace = spec.trace(random, samples.len() as u64, change.at - near - longest + within);
                if trace.spans.iter().any(|span| span.is_near(change.at, near)) {
                    samples.push(Sample { slot, trace });
                }
            }
        }
        samples
    }

    /// Returns, for each replica, when it learns of each change: within `skew` seconds. An answer of discovery is a full
    /// set, so whoever learns of a change knows of all before it.
    fn learned(&self, replicas: usize, skew: f64, seed: u64) -> Vec<Vec<Duration>> {
        // The same seed for every skew, so that skews differ in nothing else.
        let mut random = fastrand::Rng::with_seed(seed);
        let mut of_replica = || {
            let at = |change: &Change| change.at + Duration::from_secs_f64(skew * random.f64());
            let mut learned: Vec<Duration> = self.changes.iter().map(at).collect();
            let mut earliest = Duration::MAX;
            for at in learned.iter_mut().rev() {
                earliest = earliest.min(*at);
                *at = earliest;
            }
            learned
        };
        (0..replicas).map(|_| of_replica()).collect()
    }

    /// Sends all samples through the replicas.
    fn follow(&self, rules: Rules, spec: &Spec, samples: &[Sample], learned: &[Vec<Duration>]) -> Found {
        let mut found = Found::default();
        for Sample { slot, trace } in samples {
            let owners = self.owners.get(*slot as usize).map_or(&[][..], Vec::as_slice);
            let histories: Vec<Vec<Period>> = learned.iter().map(|learned| history(owners, learned)).collect();
            // In the order of their arrival, since replicas remember what came before.
            let mut arrivals: Vec<_> = trace.positions().collect();
            arrivals.sort_by_key(|(_, span)| spec.exported(span.service, span.end));
            let mut begun = vec![None; learned.len()];
            let mut seen = Deliveries::default();
            let mut deliveries = 0;
            for (position, span) in arrivals {
                let replica = span.service % learned.len();
                let arrival = spec.exported(span.service, span.end) + NETWORK;
                if let (Some(history), Some(begun)) = (histories.get(replica), begun.get_mut(replica)) {
                    let arrived = Arrived { start: Some(span.start), arrival, is_root: position.index == 0 };
                    for owner in rules.targets(history, arrived, begun) {
                        seen.add(owner as usize, position, arrival);
                        deliveries += 1;
                    }
                }
            }
            found.traces.add(trace.count(), &seen);
            found.spans.merge(&Spans { spans: u64::from(trace.count()), deliveries, ..Spans::default() });
        }
        found
    }
}

/// The owners of a slot as a replica learns of them.
fn history(owners: &[(Option<usize>, u32)], learned: &[Duration]) -> Vec<Period> {
    let mut periods: Vec<Period> = Vec::with_capacity(owners.len());
    for (change, owner) in owners {
        let from = change.and_then(|change| learned.get(change)).copied().unwrap_or_default();
        // An owner of which the replica learned together with its successor was never known.
        if periods.last().is_some_and(|last| last.from == from) {
            periods.pop();
        }
        periods.push(Period { from, owner: *owner });
    }
    periods
}

/// The owner of a slot: the backend with the highest score.
fn best(slot: u32, members: &[u32]) -> u32 {
    members.iter().copied().max_by_key(|backend| score(slot, *backend)).unwrap_or(0)
}

fn score(slot: u32, backend: u32) -> u64 {
    xxh3_64(&(u64::from(slot) << 32 | u64::from(backend)).to_le_bytes())
}

/// An exponentially distributed time.
fn pause(random: &mut fastrand::Rng, mean: f64) -> Duration {
    Duration::from_secs_f64(-(1.0 - random.f64()).ln() * mean)
}
