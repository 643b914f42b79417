//! One run: the plan of an event, with one program and one skew.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use serde::Serialize;
use spanring::{
    lifecycle::Tasks,
    ring::Table,
    tools::{ids::TraceKey, sink::read_journal},
};
use tokio::{runtime::Handle, time::Instant};

use super::{
    exporter::{Beginning, Exported, Service},
    plan::Plan,
    proxy::Program,
    traces::{Spec, Trace},
    verdict::{Change, Deliveries, Limits, Verdict},
    world::World,
};

/// Within which time of a change a trace is near it, and from when on a span is late.
const NEAR: Duration = Duration::from_secs(30);
const LATER: Duration = Duration::from_secs(60);

/// How long after all is started the run begins.
const LEAD: Duration = Duration::from_millis(500);

/// What is run.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// The name of the event.
    pub(crate) event: &'static str,
    pub(crate) plan: Plan,
    pub(crate) program: Program,
    pub(crate) skew: Duration,
    /// The factor of all times, which decides what is near a change.
    pub(crate) scale: f64,
    pub(crate) spec: Spec,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) event: &'static str,
    pub(crate) mode: &'static str,
    /// The time by which replicas learned of a change at different times, in seconds.
    pub(crate) skew_s: f64,
    /// Whether it is known which traces moved; it is not for another proxy.
    pub(crate) knows_moved: bool,
    #[serde(flatten)]
    pub(crate) verdict: Verdict,
    /// The errors that clients saw, with their numbers. They repeated those requests.
    pub(crate) errors: BTreeMap<String, u64>,
}

type Moved = Box<dyn Fn(&Trace) -> bool>;

impl Run {
    /// Runs it. Takes as long as the plan, and some time until the last spans are delivered.
    pub(crate) fn execute(&self, runtime: &Handle) -> Result<Outcome> {
        let spec = Arc::new(self.spec.clone());
        let traces = Arc::new(spec.traces(self.plan.length));
        let mut world = World::start(&self.program, &self.plan, runtime)?;
        let tasks = Tasks::new();
        let beginning = Beginning::at(Instant::now() + LEAD);
        let guard = runtime.enter();
        let services = Service::all(&spec, &traces, &world.balancer).into_iter();
        let services: Vec<_> = services.map(|service| tasks.spawn(service.run(beginning))).collect();
        drop(guard);
        world.play(&self.plan, self.skew, beginning.instant).with_context(|| world.logs())?;
        let exported = runtime.block_on(async {
            let mut exported = Vec::new();
            for service in services {
                exported.push(service.await?);
            }
            anyhow::Ok(exported)
        })?;
        self.outcome(&world, &traces, &exported)
    }

    fn outcome(&self, world: &World, traces: &[Trace], exported: &[Exported]) -> Result<Outcome> {
        let numbers: HashMap<TraceKey, usize> = traces.iter().enumerate().map(|(n, trace)| (trace.key, n)).collect();
        let mut seen = vec![Deliveries::default(); traces.len()];
        for (number, instance) in world.instances.iter().enumerate() {
            for entry in read_journal(&instance.journal)? {
                let key = TraceKey::from_bytes(entry.trace).context("a trace of another generator")?;
                let position = key.position_of(entry.span).context("a span of another generator")?;
                let trace = numbers.get(&key).context("a trace of another run")?;
                if let Some(seen) = seen.get_mut(*trace) {
                    seen.add(number, position, Duration::from_nanos(entry.arrived));
                }
            }
        }
        for seen in &mut seen {
            seen.note_stopped(|instance| world.instances.get(instance)?.stopped);
        }
        let mut acknowledged = vec![0_u64; traces.len()];
        let mut errors = BTreeMap::<String, u64>::new();
        for exported in exported {
            for (trace, bits) in &exported.acknowledged {
                if let Some(acknowledged) = acknowledged.get_mut(*trace) {
                    *acknowledged |= bits;
                }
            }
            for (error, count) in &exported.errors {
                *errors.entry(error.clone()).or_default() += count;
            }
        }
        let changes = self.changes(world)?;
        let limits = Limits { near: NEAR.mul_f64(self.scale), later: LATER.mul_f64(self.scale) };
        let mut verdict = Verdict::default();
        for ((trace, seen), acknowledged) in traces.iter().zip(&seen).zip(acknowledged) {
            verdict.add(trace, seen, acknowledged, &changes, limits);
        }
        Ok(Outcome {
            event: self.event,
            mode: self.program.name(),
            skew_s: self.skew.as_secs_f64(),
            knows_moved: self.knows_moved(),
            verdict,
            errors,
        })
    }

    /// Whether it is known which traces a change moves. Another proxy may place traces differently.
    fn knows_moved(&self) -> bool {
        matches!(self.program, Program::Spanring { .. })
    }

    /// Returns the changes of the plan, with the traces that each of them moves.
    fn changes(&self, world: &World) -> Result<Vec<Change<Moved>>> {
        let mut tables = HashMap::new();
        let mut changes = Vec::new();
        for change in &self.plan.changes {
            let moved: Moved = if change.before == change.after || !self.knows_moved() {
                Box::new(|_| false)
            } else {
                let (before, after) =
                    (world.table(&mut tables, &change.before)?, world.table(&mut tables, &change.after)?);
                Box::new(move |trace| {
                    let key = trace.key.to_bytes();
                    owner(&before, &key) != owner(&after, &key)
                })
            };
            changes.push(Change { at: change.at, moved });
        }
        Ok(changes)
    }
}

fn owner<'t>(table: &'t Table, key: &[u8]) -> Option<&'t str> {
    table.backends().get(table.owner(key) as usize).map(|backend| &*backend.identity)
}
