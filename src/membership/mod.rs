//! The table's owner: one task a pool. Discovery's sets and backends' health come in, the published table goes out.
//!
//! [`state`] decides, a blocking thread builds ([`build`]), the task here publishes and tells. Probes run beside it.
//! Dispatch and the admin pages only read.
//!
//! **Invariant:** two replicas that believe the same of who is there and who fails publish the same placement, whatever came
//! before; and a slot leaves its owner only with a change of the membership or of that owner's own state.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    task::{JoinError, spawn_blocking},
    time::{Instant, sleep, sleep_until, timeout},
};

/// Where a pool's traces are placed, and what happens to backends that fail or leave.
pub use crate::settings::{OutlierDetection, Placement as Config};
use crate::{
    endpoint::EndpointsReceiver,
    health::{Inbox, PROBE_TIMEOUT, Prober},
    lifecycle::Tasks,
    ring::{RingError, Table, Tables},
};

mod backend;
pub mod build;
pub mod metrics;
pub mod record;
pub mod state;
mod tell;
#[cfg(test)]
pub(crate) mod tests;

pub use backend::{BackendState, Probe};
use build::{Change, Rebuild};
use metrics::Metrics;
use record::Record;
use state::{Effects, Input, State};
use tell::Lines;

/// What a pool's task shows to others.
#[derive(Clone, Debug)]
pub struct Published {
    /// The table of the moment, and the news of each next one.
    pub tables: Tables,
    /// What is remembered beside it.
    pub record: Record,
}

/// Results of probes that may wait; a probe that finds no room waits, and its backend stays away so long.
const RESULTS: usize = 256;

/// Events that are looked at before one table is built of them: a death of many is to be one change, or few.
const AT_ONCE: usize = 256;

/// Pause before a backend is probed again that could not be asked for want of a descriptor, a port or memory here.
const UNASKED_PAUSE: Duration = Duration::from_secs(1);

/// One pool's membership, as its task holds it.
struct Room<P> {
    pool: Arc<str>,
    state: State,
    configs: watch::Receiver<Config>,
    endpoints: EndpointsReceiver,
    inbox: Inbox,
    prober: Arc<P>,
    results: (mpsc::Sender<Input>, mpsc::Receiver<Input>),
    tasks: Tasks,
    tables: watch::Sender<Option<Arc<Table>>>,
    metrics: Metrics,
    record: Record,
    lines: Lines,
}

#[derive(Debug, thiserror::Error)]
enum BuildError {
    #[error("this set of backends has no placement")]
    Ring(#[source] RingError),
    #[error("the thread that built the ring ended early")]
    Thread(#[source] JoinError),
}

/// Starts the task of `pool`, which ends when `tasks` are stopped. It follows `configs` and forgets nothing over that.
pub fn start<P: Prober>(
    pool: &str,
    mut configs: watch::Receiver<Config>,
    endpoints: EndpointsReceiver,
    inbox: Inbox,
    prober: P,
    tasks: &Tasks,
) -> Published {
    let (sender, tables) = watch::channel(None);
    let config = configs.borrow_and_update().clone();
    let record = Record::new(config.hold_down);
    let pool: Arc<str> = pool.into();
    let room = Room {
        metrics: Metrics::new(&pool),
        record: record.clone(),
        lines: Lines::new(&pool),
        pool,
        state: State::new(config, fastrand::Rng::new()),
        configs,
        endpoints,
        inbox,
        prober: Arc::new(prober),
        results: mpsc::channel(RESULTS),
        tasks: tasks.clone(),
        tables: sender,
    };
    tasks.spawn(room.run());
    Published { tables, record }
}

impl<P: Prober> Room<P> {
    async fn run(mut self) {
        // What discovery published before this task began counts as news too.
        self.endpoints.mark_changed();
        let until = self.tasks.clone();
        let mut timer = None;
        loop {
            let input = tokio::select! {
                biased;
                // First: a process that ends needs no further table.
                () = until.stopped() => return,
                input = configured(&mut self.configs) => input,
                input = discovered(&mut self.endpoints) => input,
                Some(input) = self.results.1.recv() => input,
                Some(event) = self.inbox.recv() => Input::Seen(event),
                () = due(timer) => Input::Timer,
            };
            let mut effects = self.take(input);
            for _ in 0..AT_ONCE {
                let Some(event) = self.inbox.try_recv() else { break };
                let later = self.take(Input::Seen(event));
                effects = Effects { rebuild: later.rebuild.or(effects.rebuild), ..later };
            }
            timer = effects.timer;
            if let Some(rebuild) = effects.rebuild {
                self.rebuild(rebuild).await;
            }
        }
    }

    /// Lets the state have `input`; tells, shows and starts what comes of it, except for the table.
    fn take(&mut self, input: Input) -> Effects {
        if let Input::Probed { answered, .. } = &input {
            self.metrics.probed(*answered);
        }
        if let Input::Seen(event) = &input {
            self.record.saw(event);
        }
        if let Input::Configured(config) = &input {
            self.record.hold_for(config.hold_down);
        }
        let by_discovery = matches!(input, Input::Discovered(_));
        let mut effects = self.state.apply(input, Instant::now());
        if by_discovery || effects.rebuild.is_some() || !effects.notes.is_empty() {
            self.metrics.show_states(&self.state);
            self.record.believe(&self.state, &effects.notes);
        }
        for note in effects.notes.drain(..) {
            self.metrics.note(&note);
            self.lines.tell(&note);
        }
        effects.probes.drain(..).for_each(|probe| self.start_probe(probe));
        effects
    }

    fn start_probe(&self, probe: Probe) {
        let (prober, results, until) = (Arc::clone(&self.prober), self.results.0.clone(), self.tasks.clone());
        self.tasks.spawn(async move {
            let asked = async {
                loop {
                    match timeout(PROBE_TIMEOUT, prober.probe(&probe.identity, probe.address, &probe.access)).await {
                        Ok(Ok(answered)) => return answered,
                        Err(_elapsed) => return false,
                        // The backend was not asked, so that nothing is known that could count against it.
                        Ok(Err(shortage)) => tracing::debug!(backend = %probe.identity, %shortage, "cannot probe"),
                    }
                    sleep(UNASKED_PAUSE).await;
                }
            };
            tokio::select! {
                () = until.stopped() => {}
                answered = asked => {
                    // The task that waits for it ends only with the process.
                    drop(results.send(Input::Probed { probe, answered }).await);
                }
            }
        });
    }

    /// Builds on a blocking thread; meanwhile inputs wait, of which the watch channel keeps the newest only.
    async fn rebuild(&mut self, rebuild: Rebuild) {
        let begun = Instant::now();
        let built = spawn_blocking(|| rebuild.run()).await;
        match built.map_err(BuildError::Thread).and_then(|built| built.map_err(BuildError::Ring)) {
            Ok(change) => self.publish(change, begun.elapsed()),
            Err(error) => {
                self.state.revert(Instant::now());
                self.metrics.show_states(&self.state);
                self.record.believe(&self.state, &[]);
                let cause: &dyn std::error::Error = &error;
                let source = cause.source().map(ToString::to_string);
                tracing::error!(pool = %self.pool, %error, source, "keeping the ring as it is");
            }
        }
    }

    fn publish(&mut self, change: Change, took: Duration) {
        self.state.commit(&change);
        self.metrics.show(&change.table, change.moved, took);
        self.record.changed(&change, took);
        self.lines.change(&change);
        self.tables.send_replace(Some(change.table));
    }
}

/// The next configuration; never, once nobody can send one.
///
/// Cancel safety: the channel keeps what was not taken.
async fn configured(configs: &mut watch::Receiver<Config>) -> Input {
    if configs.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    Input::Configured(configs.borrow_and_update().clone())
}

/// The next set of discovery; never, once discovery has ended.
///
/// Cancel safety: the channel keeps what was not taken.
async fn discovered(endpoints: &mut EndpointsReceiver) -> Input {
    loop {
        if endpoints.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        if let Some(set) = &*endpoints.borrow_and_update() {
            return Input::Discovered(Arc::clone(set));
        }
    }
}

/// Resolves at `timer`; never, if nothing is due.
async fn due(timer: Option<Instant>) {
    match timer {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
