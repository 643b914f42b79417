//! A backend that stops answering: a stopped process, or a vanished node. Each kind of client is tested alone, since
//! what one of them detects would help the others.

use std::{collections::HashSet, time::Duration};

use anyhow::Result;
use spanring::tools::load::{Failed, Pace as LoadPace};
use tokio::time::sleep;

use crate::{
    Pace,
    evidence::{Evidence, SECOND, latency_ms, now, share},
    network,
    plan::{CLIENT_TIMEOUTS, Load, Place, Plan},
    table::Findings,
    world::World,
};

/// The sink that stops answering.
const SILENT: usize = 2;

/// Clients that wait no longer than this may see errors before the silence is detected.
const IMPATIENT: Duration = Duration::from_secs(3);

/// The answer recorded for a client whose own timeout expired.
const CLIENT_TIMEOUT: &str = "no answer in time";

/// Tolerance for other work on the machine, in milliseconds.
const NOISE_MS: f64 = 10.0;

/// When the silence began and ended, and when the sink's spans first went to other sinks.
struct Times {
    from: u64,
    to: u64,
    ejected: Option<u64>,
}

impl Times {
    /// Until when requests waited for the silent sink.
    fn until(&self) -> u64 {
        self.ejected.unwrap_or(self.to).min(self.to)
    }
}

/// SIGSTOP of one of four sinks. Its kernel still accepts data.
pub(crate) async fn hang(pace: Pace) -> Result<Findings> {
    silence(pace, Place::Here, |world, stops| world.signal(SILENT, if stops { "STOP" } else { "CONT" })).await
}

/// The node of one of four sinks vanishes. Packets to and from it are dropped, so even its kernel does not answer.
pub(crate) async fn vanish(pace: Pace) -> Result<Findings> {
    if let Some(reason) = network::why_not() {
        return Ok(Findings::skipped(&format!("nodes that vanish need root, iproute2 and util-linux: {reason}")));
    }
    let set = |world: &World, vanishes| {
        let node = world.node(SILENT)?;
        if vanishes { node.vanish() } else { node.appear() }
    };
    silence(pace, Place::Nodes, set).await
}

/// Runs each kind of client with a sink that `set` silences and brings back.
async fn silence(pace: Pace, place: Place, set: impl Fn(&World, bool) -> Result<()>) -> Result<Findings> {
    let mut findings = Findings::default();
    for timeouts in CLIENT_TIMEOUTS.chunks(1) {
        let mut world = World::start(Plan { place, ..Plan::default() })?;
        let seconds: Vec<String> = timeouts.iter().map(u64::to_string).collect();
        findings.section(&format!("clients of {} s", seconds.join(", ")));
        world.load(Load { timeouts, pace: LoadPace::Open { rate: 50.0 }, ..Load::default() });
        sleep(pace.seconds(5, 4)).await;
        let before = now();
        set(&world, true)?;
        // Silencing runs a program, which takes time on a busy machine; only now is the sink surely silent.
        let from = now();
        findings.fact("time it took to silence the sink", format!("{} ms", (from - before) / 1_000_000));
        sleep(pace.seconds(15, 6)).await;
        let to = now();
        set(&world, false)?;
        sleep(pace.seconds(5, 3)).await;
        judge(&mut world, Times { from, to, ejected: None }, &mut findings).await?;
    }
    Ok(findings)
}

async fn judge(world: &mut World, mut times: Times, findings: &mut Findings) -> Result<()> {
    let counted = world.metric("spanring_dispatch_possible_duplicate_records_total", "").unwrap_or(0.0);
    let run = world.end().await?;
    let mut evidence = Evidence::gather(world, run)?;
    times.ejected = evidence
        .sent(0..u64::MAX, |a| a.owner == Some(SILENT) && a.sink != SILENT && a.entry.arrived > times.from)
        .map(|a| a.entry.arrived)
        .min();
    findings.fact("spans acknowledged", evidence.acknowledged());
    clients(&evidence, &times, findings);
    errors_name_the_backend(world, &evidence, findings);
    others(world, &mut evidence, &times, findings);
    findings.zero("acknowledged spans missing", evidence.missing());
    let moved = evidence.arrivals.iter().filter(|a| a.owner != Some(SILENT) && a.owner != Some(a.sink)).count();
    findings.zero("spans of other sinks' slots that moved", moved);
    findings.duplicates(counted, evidence.duplicates(|_| true));
    Ok(())
}

/// Checks the errors that clients saw.
fn clients(evidence: &Evidence, times: &Times, findings: &mut Findings) {
    let failures = evidence.failures();
    let after = |at: u64| format!("{:.2} s", Duration::from_nanos(at.saturating_sub(times.from)).as_secs_f64());
    let when = failures.first().zip(failures.last()).map_or(String::new(), |(first, last)| {
        format!(", the first {} after the silence began, the last {}", after(first.answered), after(last.answered))
    });
    findings.fact("errors", format!("{} of {}{when}", failures.len(), failures.len() + evidence.accepted().count()));
    findings.fact("first error", evidence.first_failure());
    let first_seconds = times.from..=times.from + 3 * SECOND;
    let is_allowed = |failed: &Failed| failed.timeout <= IMPATIENT && first_seconds.contains(&failed.answered);
    let wrong = failures.iter().filter(|failed| !is_allowed(failed)).count();
    findings.zero("errors, except those of clients of 2 s and 3 s in the first 3 s", wrong);
}

/// Checks that clients and operators learn which backend is at fault.
fn errors_name_the_backend(world: &World, evidence: &Evidence, findings: &mut Findings) {
    let name = world.sinks.get(SILENT).map(|sink| sink.grpc.to_string()).unwrap_or_default();
    // A client whose own timeout expired got no answer.
    let (timed_out, answered): (Vec<_>, Vec<_>) =
        evidence.failures().into_iter().partition(|failed| failed.answer == CLIENT_TIMEOUT);
    findings.fact("errors by the client's own timeout", timed_out.len());
    let unnamed = answered.iter().filter(|failed| !failed.answer.contains(&name)).count();
    findings.zero("client errors that do not name the backend", unnamed);
    let named = |proxy| world.log(proxy).into_iter().filter(|line| line.contains(" WARN ") && line.contains(&name));
    let logs: Vec<Vec<String>> = (0..world.proxies.len()).map(|proxy| named(proxy).collect()).collect();
    let first = logs.iter().flatten().next().map_or("none", String::as_str);
    findings.fact("first warning that names the backend", first);
    let counts: Vec<usize> = logs.iter().map(Vec::len).collect();
    let holds = counts.iter().all(|count| (1..=5).contains(count));
    findings.check("warnings that name the backend, in the log of each proxy", "1 to 5", format!("{counts:?}"), holds);
}

/// Checks how the silence affected the spans of other sinks, and all spans after the ejection.
fn others(world: &World, evidence: &mut Evidence, times: &Times, findings: &mut Findings) {
    let (from, until) = (times.from, times.until());
    let after = times.ejected.map_or("never".to_owned(), |at| format!("{} ms", (at - from) / 1_000_000));
    let in_time = times.ejected.is_some_and(|at| at <= from + 3 * SECOND);
    findings.check("time until the silent sink's spans went to other sinks", "≤ 3000 ms", after, in_time);
    let offered = evidence.offered(world, from..until, |owner| owner != SILENT);
    let in_time: HashSet<_> = evidence
        .sent(from..until, |a| a.sink != SILENT && a.entry.arrived <= a.entry.sent + SECOND)
        .map(|a| (a.entry.trace, a.entry.span))
        .collect();
    let got = offered.iter().filter(|span| in_time.contains(*span)).count();
    findings.fact("spans offered to the other three sinks until then", offered.len());
    findings.at_least_percent("of these spans, arrived within 1 s of being sent", 99.0, share(got, offered.len()));
    let others = |from: u64, to: u64| evidence.sent(from..to, |a| a.owner == Some(a.sink) && a.sink != SILENT);
    let (before, during) = (latency_ms(others(from - 3 * SECOND, from), 0.99), latency_ms(others(from, until), 0.99));
    findings.fact("p99 from send to sink before", format!("{before:.2} ms"));
    let holds = during <= 2.0 * before + NOISE_MS;
    findings.check("p99 from send to sink until then", "≤ 2 × before + 10 ms", format!("{during:.2} ms"), holds);

    let settled = until + SECOND..times.to;
    let accepted = evidence.accepted().filter(|a| settled.contains(&a.sent));
    let (sent, prompt) =
        accepted.fold((0, 0), |(sent, prompt), a| (sent + 1, prompt + usize::from(a.answered <= a.sent + SECOND)));
    let failed = evidence.failures().iter().filter(|failed| settled.contains(&failed.sent)).count();
    findings.at_least_percent(
        "requests sent later than 1 s after the ejection, acknowledged within 1 s",
        99.0,
        share(prompt, sent + failed),
    );
    let owed = evidence.accepted().filter(|a| (from..until).contains(&a.sent) && a.answered > until);
    let (owed, slow) = owed.fold((0, 0), |(owed, slow), a| (owed + 1, slow + usize::from(a.answered > until + SECOND)));
    findings.fact("requests that waited for the silent sink and were acknowledged after the ejection", owed);
    findings.at_most_percent(
        "of these requests, later than 1 s after the ejection",
        1.0,
        if owed == 0 { 0.0 } else { share(slow, owed) },
    );
}
