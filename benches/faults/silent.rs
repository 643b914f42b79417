//! A backend that says nothing: a process that is stopped, a node that vanished. Clients of each patience are alone with it:
//! what one of them finds out would help the others.

use std::{collections::HashSet, time::Duration};

use anyhow::Result;
use spanring::tools::load::{Failed, Pace as LoadPace};
use tokio::time::sleep;

use crate::{
    Pace,
    evidence::{Evidence, SECOND, latency_ms, now, share},
    network,
    plan::{Load, PATIENCE, Place, Plan},
    table::Lines,
    world::World,
};

/// The sink that says nothing.
const SILENT: usize = 2;

/// Clients that wait no longer than this may see errors before the silence is noticed.
const IMPATIENT: Duration = Duration::from_secs(3);

/// What a failure says of a client whose own time was over.
const UNTOLD: &str = "no answer in time";

/// What other work on the machine may add to a latency.
const NOISE_MS: f64 = 10.0;

/// From when to when it said nothing, and when its spans first went elsewhere.
struct Times {
    from: u64,
    to: u64,
    ejected: Option<u64>,
}

impl Times {
    /// Until when requests waited for it.
    fn until(&self) -> u64 {
        self.ejected.unwrap_or(self.to).min(self.to)
    }
}

/// SIGSTOP of one of four: its kernel still takes what is sent to it.
pub(crate) async fn hang(pace: Pace) -> Result<Lines> {
    silence(pace, Place::Here, |world, stops| world.signal(SILENT, if stops { "STOP" } else { "CONT" })).await
}

/// The node of one of four vanishes: packets to it and from it are dropped, so that not even its kernel answers.
pub(crate) async fn vanish(pace: Pace) -> Result<Lines> {
    if let Some(reason) = network::why_not() {
        return Ok(Lines::skipped(&format!("nodes that vanish need root, iproute2 and util-linux: {reason}")));
    }
    let set = |world: &World, vanishes| {
        let node = world.node(SILENT)?;
        if vanishes { node.vanish() } else { node.appear() }
    };
    silence(pace, Place::Nodes, set).await
}

/// Clients of each patience, and a sink that `set` silences and brings back.
async fn silence(pace: Pace, place: Place, set: impl Fn(&World, bool) -> Result<()>) -> Result<Lines> {
    let mut lines = Lines::default();
    for patience in PATIENCE.chunks(1) {
        let mut world = World::start(Plan { place, ..Plan::default() })?;
        let seconds: Vec<String> = patience.iter().map(u64::to_string).collect();
        lines.about(&format!("clients of {} s", seconds.join(", ")));
        world.load(Load { patience, pace: LoadPace::Open { rate: 50.0 }, ..Load::default() });
        sleep(pace.seconds(5, 4)).await;
        let before = now();
        set(&world, true)?;
        // Only now it is surely silent: what sets it so is a program, which takes its time on a busy machine.
        let from = now();
        lines.fact("silencing it took", format!("{} ms", (from - before) / 1_000_000));
        sleep(pace.seconds(15, 6)).await;
        let to = now();
        set(&world, false)?;
        sleep(pace.seconds(5, 3)).await;
        judge(&mut world, Times { from, to, ejected: None }, &mut lines).await?;
    }
    Ok(lines)
}

async fn judge(world: &mut World, mut times: Times, lines: &mut Lines) -> Result<()> {
    let counted = world.metric("spanring_dispatch_possible_duplicate_records_total", "").unwrap_or(0.0);
    let run = world.end().await?;
    let mut evidence = Evidence::gather(world, run)?;
    times.ejected = evidence
        .sent(0..u64::MAX, |a| a.owner == Some(SILENT) && a.sink != SILENT && a.entry.arrived > times.from)
        .map(|a| a.entry.arrived)
        .min();
    lines.fact("spans acknowledged", evidence.acknowledged());
    clients(&evidence, &times, lines);
    told(world, &evidence, lines);
    others(world, &mut evidence, &times, lines);
    lines.none("acknowledged spans missing", evidence.missing());
    let moved = evidence.arrivals.iter().filter(|a| a.owner != Some(SILENT) && a.owner != Some(a.sink)).count();
    lines.none("spans of other sinks' slots that went elsewhere", moved);
    lines.duplicates(counted, evidence.duplicates(|_| true));
    Ok(())
}

/// What clients saw.
fn clients(evidence: &Evidence, times: &Times, lines: &mut Lines) {
    let failures = evidence.failures();
    let after = |at: u64| format!("{:.2} s", Duration::from_nanos(at.saturating_sub(times.from)).as_secs_f64());
    let when = failures.first().zip(failures.last()).map_or(String::new(), |(first, last)| {
        format!(", the first {} after the silence began, the last {}", after(first.answered), after(last.answered))
    });
    lines.fact("errors", format!("{} of {}{when}", failures.len(), failures.len() + evidence.accepted().count()));
    lines.fact("the first", evidence.first_failure());
    let first_seconds = times.from..=times.from + 3 * SECOND;
    let is_allowed = |failed: &Failed| failed.timeout <= IMPATIENT && first_seconds.contains(&failed.answered);
    let wrong = failures.iter().filter(|failed| !is_allowed(failed)).count();
    lines.none("errors, but for those that clients of 2 s and 3 s see in the first 3 s", wrong);
}

/// Whether clients and operators learn which backend it is.
fn told(world: &World, evidence: &Evidence, lines: &mut Lines) {
    let name = world.sinks.get(SILENT).map(|sink| sink.grpc.to_string()).unwrap_or_default();
    // A client whose own time was over is told nothing.
    let (untold, told): (Vec<_>, Vec<_>) = evidence.failures().into_iter().partition(|failed| failed.answer == UNTOLD);
    lines.fact("errors by the client's own clock", untold.len());
    let unnamed = told.iter().filter(|failed| !failed.answer.contains(&name)).count();
    lines.none("client errors that do not name the backend", unnamed);
    let named = |proxy| world.log(proxy).into_iter().filter(|line| line.contains(" WARN ") && line.contains(&name));
    let logs: Vec<Vec<String>> = (0..world.proxies.len()).map(|proxy| named(proxy).collect()).collect();
    let first = logs.iter().flatten().next().map_or("none", String::as_str);
    lines.fact("the first warning that names it", first);
    let counts: Vec<usize> = logs.iter().map(Vec::len).collect();
    let holds = counts.iter().all(|count| (1..=5).contains(count));
    lines.line("warnings that name the backend, in the log of each proxy", "1 to 5", format!("{counts:?}"), holds);
}

/// What the silence cost the spans of the other sinks, and all once the silent one was ejected.
fn others(world: &World, evidence: &mut Evidence, times: &Times, lines: &mut Lines) {
    let (from, until) = (times.from, times.until());
    let after = times.ejected.map_or("never".to_owned(), |at| format!("{} ms", (at - from) / 1_000_000));
    let in_time = times.ejected.is_some_and(|at| at <= from + 3 * SECOND);
    lines.line("its spans went elsewhere after it fell silent", "≤ 3000 ms", after, in_time);
    let offered = evidence.offered(world, from..until, |owner| owner != SILENT);
    let in_time: HashSet<_> = evidence
        .sent(from..until, |a| a.sink != SILENT && a.entry.arrived <= a.entry.sent + SECOND)
        .map(|a| (a.entry.trace, a.entry.span))
        .collect();
    let got = offered.iter().filter(|span| in_time.contains(*span)).count();
    lines.fact("spans offered to the other three until then", offered.len());
    lines.at_least_percent("of them, arrived within 1 s of being sent", 99.0, share(got, offered.len()));
    let others = |from: u64, to: u64| evidence.sent(from..to, |a| a.owner == Some(a.sink) && a.sink != SILENT);
    let (before, during) = (latency_ms(others(from - 3 * SECOND, from), 0.99), latency_ms(others(from, until), 0.99));
    lines.fact("p99 from send to sink before", format!("{before:.2} ms"));
    let holds = during <= 2.0 * before + NOISE_MS;
    lines.line("p99 from send to sink until then", "≤ 2 × before + 10 ms", format!("{during:.2} ms"), holds);

    let settled = until + SECOND..times.to;
    let accepted = evidence.accepted().filter(|a| settled.contains(&a.sent));
    let (sent, prompt) =
        accepted.fold((0, 0), |(sent, prompt), a| (sent + 1, prompt + usize::from(a.answered <= a.sent + SECOND)));
    let failed = evidence.failures().iter().filter(|failed| settled.contains(&failed.sent)).count();
    lines.at_least_percent(
        "requests sent later than 1 s after that, acknowledged within 1 s",
        99.0,
        share(prompt, sent + failed),
    );
    let owed = evidence.accepted().filter(|a| (from..until).contains(&a.sent) && a.answered > until);
    let (owed, slow) = owed.fold((0, 0), |(owed, slow), a| (owed + 1, slow + usize::from(a.answered > until + SECOND)));
    lines.fact("requests that waited for it and were acknowledged after that", owed);
    lines.at_most_percent("of them, later than 1 s after that", 1.0, if owed == 0 { 0.0 } else { share(slow, owed) });
}
