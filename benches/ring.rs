//! The costs of the ring: `cargo bench --bench ring`. With `-- --quality [ipv4|name|ipv6] [--leavers 3]` it measures
//! the quality of placement instead, at every size from 2 to 200 backends, and exits non-zero if a goal is missed. At
//! each size, `--leavers` backends leave, one at a time, evenly spread from the first to the last; 201 covers all of
//! them.

#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "a bench may end with a panic")]

use std::{
    collections::BTreeSet,
    io::{self, Write},
    process::ExitCode,
    sync::Arc,
};

use divan::{Bencher, black_box};
use spanring::{
    endpoint::{Endpoint, Endpoints},
    ring::{Algorithm, Base, Overlay, Table, members_of},
};

/// Number of keys per run of look-ups: more than a branch predictor or the first-level cache remembers.
const KEYS: usize = 8192;

fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "--quality") {
        divan::main();
        return ExitCode::SUCCESS;
    }
    let after = |flag: &str| std::env::args().skip_while(|argument| argument != flag).nth(1);
    let family = after("--quality").unwrap_or_default();
    let leavers = after("--leavers").map_or(3, |count| count.parse().expect("--leavers takes a number"));
    match quality(&family, leavers, &mut io::stdout().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

#[divan::bench(args = [4, 200])]
fn lookup(bencher: Bencher<'_, '_>, backends: usize) {
    let table = table(&endpoints("ipv4", backends));
    let mut random = fastrand::Rng::with_seed(1);
    let keys: Vec<[u8; 16]> = (0..KEYS).map(|_| random.u128(..).to_le_bytes()).collect();
    let lookups = || keys.iter().map(|key| u64::from(table.owner(black_box(key)))).sum::<u64>();
    bencher.counter(divan::counter::ItemsCount::new(KEYS)).bench_local(lookups);
}

#[divan::bench(args = [4, 10, 100, 200], sample_count = 20)]
fn base(backends: usize) -> Base {
    let members = members_of(&endpoints("ipv4", backends));
    Base::build(black_box(&members)).expect("members are good")
}

#[divan::bench(args = [10, 200], sample_count = 20)]
fn overlay(bencher: Bencher<'_, '_>, backends: usize) {
    let base = Base::build(&members_of(&endpoints("ipv4", backends))).expect("members are good");
    bencher.bench_local(|| base.overlay(black_box(&BTreeSet::from([1]))));
}

#[divan::bench(args = [10, 200], sample_count = 20)]
fn snapshot(bencher: Bencher<'_, '_>, backends: usize) {
    let endpoints = endpoints("ipv4", backends);
    let base = Arc::new(Base::build(&members_of(&endpoints)).expect("members are good"));
    bencher.bench_local(|| Table::new(1, Arc::clone(&base), Overlay::default(), Arc::clone(&endpoints)));
}

/// `count` backends with identities of the given family.
fn endpoints(family: &str, count: usize) -> Endpoints {
    let identity = |index: usize| match family {
        "name" => format!("collector-{index}.collectors:4317"),
        "ipv6" => format!("[2001:db8::{:x}]:4317", index + 1),
        _ => format!("10.0.{}.{}:4317", index / 250, index % 250 + 1),
    };
    let endpoint = |index| Endpoint::new(identity(index), None);
    let mut endpoints: Vec<Endpoint> = (0..count).map(endpoint).collect();
    endpoints.sort();
    endpoints.into()
}

fn table(endpoints: &Endpoints) -> Table {
    Table::of(1, Algorithm::SlotsV1, endpoints).expect("endpoints are good")
}

/// The effects of one departure.
struct Departure {
    /// Moved slots, as a multiple of the ideal.
    moved: f64,
    /// The share of the leaver's slots whose new owner is not their substitute.
    again: f64,
    /// The share of the other backends' slots that move.
    others: f64,
    /// The busiest backend's slots, relative to the mean, between ejection and departure.
    busiest_meanwhile: f64,
}

/// Prints one line per size and returns whether the goals were met: busiest ≤ 1.05 of the mean and moves ≤ 1.3 of the
/// ideal; from 3 backends on, when an ejected one leaves, also ≤ 1 % of its slots and ≤ 0.1 % of the others' slots.
fn quality(family: &str, leavers: usize, out: &mut impl Write) -> io::Result<bool> {
    writeln!(out, "size  busiest/mean  moved/ideal(+1)  moved/ideal(-1)  again%  others%  busiest meanwhile")?;
    let mut worst = [0.0_f64; 5];
    let (mut counted, mut above, mut before) = (0, 0, 0.0);
    for size in 2..=200_usize {
        let busiest = busiest(&table(&endpoints(family, size)));
        let larger = endpoints(family, size + 1);
        let base = Arc::new(Base::build(&members_of(&larger)).expect("members are good"));
        let last = leavers.clamp(2, larger.len()) - 1;
        let departures: Vec<Departure> = (0..=last).map(|step| depart(&larger, &base, step * size / last)).collect();
        let most = |departures: &[Departure], of: fn(&Departure) -> f64| departures.iter().map(of).fold(0.0, f64::max);
        let moved = most(&departures, |departure| departure.moved);
        let meanwhile = most(&departures, |departure| departure.busiest_meanwhile);
        // With two backends left, one departure moves nearly everything.
        let judged = if size < 3 { &[] } else { &departures[..] };
        let (again, others) = (most(judged, |departure| departure.again), most(judged, |departure| departure.others));
        counted += judged.len();
        above += judged.iter().filter(|departure| departure.others > 0.001).count();
        writeln!(
            out,
            "{size:4}  {busiest:12.4}  {moved:15.3}  {before:15.3}  {:6.2}  {:7.3}  {meanwhile:17.4}",
            again * 100.0,
            others * 100.0
        )?;
        before = moved;
        worst
            .iter_mut()
            .zip([busiest, moved, again, others, meanwhile])
            .for_each(|(worst, now)| *worst = worst.max(now));
    }
    let [busiest, moved, again, others, meanwhile] = worst;
    writeln!(
        out,
        "worst: busiest {busiest:.4}, moved {moved:.3}, again {:.2} %, others {:.3} % ({above} of {counted} departures above 0.1 %), meanwhile {meanwhile:.4}",
        again * 100.0,
        others * 100.0
    )?;
    Ok(busiest <= 1.05 && moved <= 1.3 && again <= 0.01 && others <= 0.001)
}

/// Removes one backend, first by the overlay and then from the membership.
fn depart(endpoints: &Endpoints, base: &Arc<Base>, leaver: usize) -> Departure {
    let index = u16::try_from(leaver).expect("few backends");
    let full = Table::new(1, Arc::clone(base), Overlay::default(), Arc::clone(endpoints));
    let overlay = base.overlay(&BTreeSet::from([index]));
    let dead = Table::new(2, Arc::clone(base), overlay, Arc::clone(endpoints));
    let rest = endpoints.iter().enumerate().filter(|(at, _)| *at != leaver);
    let gone = table(&rest.map(|(_, endpoint)| endpoint.clone()).collect());
    let share = full.ownership()[leaver];
    let differs = |slot: &u32| {
        let name = |table: &Table| Arc::clone(&table.backends()[table.owner_of_slot(*slot) as usize].identity);
        name(&dead) != name(&gone)
    };
    let (again, others): (Vec<u32>, Vec<u32>) =
        (0..full.slots()).filter(differs).partition(|slot| full.owner_of_slot(*slot) == u32::from(index));
    let part = |slots: Vec<u32>, of: f64| slots.len() as f64 / (f64::from(full.slots()) * of);
    Departure {
        moved: gone.moved_share(&full) * endpoints.len() as f64,
        again: part(again, share),
        others: part(others, 1.0 - share),
        busiest_meanwhile: busiest(&dead) * (endpoints.len() - 1) as f64 / endpoints.len() as f64,
    }
}

/// The busiest backend's slots, relative to the mean.
fn busiest(table: &Table) -> f64 {
    table.ownership().into_iter().fold(0.0, f64::max) * table.backends().len() as f64
}
