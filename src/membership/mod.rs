//! Membership: one task for each pool, which builds the pool's table from discovery's sets and observed health, and
//! publishes it.
//!
//! [`state`] decides, a blocking thread builds the table ([`build`]), and the task publishes and logs it. Probes run in
//! tasks of their own. Dispatch and the admin pages only read.
//!
//! **Invariant:** two replicas with the same view of which backends are members and which of them fail publish the same
//! placement, whatever happened before. A slot changes its owner only when the membership or the state of that owner
//! changes.

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
mod change_log;
pub mod metrics;
pub mod record;
pub mod state;
#[cfg(test)]
pub(crate) mod tests;

pub use backend::{BackendState, Probe};
use build::{Change, Rebuild};
use change_log::ChangeLog;
use metrics::Metrics;
use record::Record;
use state::{Effects, Input, State};

/// The state that a pool's task publishes for other modules.
#[derive(Clone, Debug)]
pub struct Published {
    /// The current table; the receiver is notified of each new one.
    pub tables: Tables,
    /// The states of the backends and the latest changes.
    pub record: Record,
}

/// The capacity of the channel for results of probes. When it is full, a finished probe waits, and its backend stays
/// ejected meanwhile.
const PROBE_RESULTS: usize = 256;

/// The number of events that are processed before a table is built, so that many simultaneous failures lead to one or a
/// few new tables.
const EVENTS_PER_TABLE: usize = 256;

/// The pause before a probe is tried again that could not be sent because this process had no descriptor, port or
/// memory.
const PROBE_RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The task of one pool's membership.
struct MembershipTask<P> {
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
    log: ChangeLog,
}

#[derive(Debug, thiserror::Error)]
enum BuildError {
    #[error("this set of backends has no placement")]
    Ring(#[source] RingError),
    #[error("the thread that built the ring ended early")]
    Thread(#[source] JoinError),
}

/// Starts the task of `pool`, which ends with `tasks`. A new configuration from `configs` applies to what is known;
/// nothing is forgotten.
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
    let task = MembershipTask {
        metrics: Metrics::new(&pool),
        record: record.clone(),
        log: ChangeLog::new(&pool),
        pool,
        state: State::new(config, fastrand::Rng::new()),
        configs,
        endpoints,
        inbox,
        prober: Arc::new(prober),
        results: mpsc::channel(PROBE_RESULTS),
        tasks: tasks.clone(),
        tables: sender,
    };
    tasks.spawn(task.run());
    Published { tables, record }
}

impl<P: Prober> MembershipTask<P> {
    async fn run(mut self) {
        // The set that discovery published before this task started is new too.
        self.endpoints.mark_changed();
        let until = self.tasks.clone();
        let mut timer = None;
        loop {
            let input = tokio::select! {
                biased;
                // Stopping comes first: a process that ends needs no further table.
                () = until.stopped() => return,
                input = configured(&mut self.configs) => input,
                input = discovered(&mut self.endpoints) => input,
                Some(input) = self.results.1.recv() => input,
                Some(event) = self.inbox.recv() => Input::Seen(event),
                () = due(timer) => Input::Timer,
            };
            let mut effects = self.handle(input);
            for _ in 0..EVENTS_PER_TABLE {
                let Some(event) = self.inbox.try_recv() else { break };
                let later = self.handle(Input::Seen(event));
                effects = Effects { rebuild: later.rebuild.or(effects.rebuild), ..later };
            }
            timer = effects.timer;
            if let Some(rebuild) = effects.rebuild {
                self.rebuild(rebuild).await;
            }
        }
    }

    /// Applies `input` to the state and carries out all effects except for building the table.
    fn handle(&mut self, input: Input) -> Effects {
        if let Input::Probed { answered, .. } = &input {
            self.metrics.probed(*answered);
        }
        if let Input::Seen(event) = &input {
            self.record.note_failure(event);
        }
        if let Input::Configured(config) = &input {
            self.record.set_hold_down(config.hold_down);
        }
        let by_discovery = matches!(input, Input::Discovered(_));
        let mut effects = self.state.apply(input, Instant::now());
        if by_discovery || effects.rebuild.is_some() || !effects.notes.is_empty() {
            self.metrics.show_states(&self.state);
            self.record.update(&self.state, &effects.notes);
        }
        for note in effects.notes.drain(..) {
            self.metrics.note(&note);
            self.log.state_changed(&note, self.state.is_panicking());
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
                        // The backend was not asked, so this does not count as a failed probe.
                        Ok(Err(shortage)) => tracing::debug!(backend = %probe.identity, %shortage, "cannot probe"),
                    }
                    sleep(PROBE_RETRY_PAUSE).await;
                }
            };
            tokio::select! {
                () = until.stopped() => {}
                answered = asked => {
                    // The receiver is dropped only when the membership task ends.
                    drop(results.send(Input::Probed { probe, answered }).await);
                }
            }
        });
    }

    /// Builds a table and publishes it. If it cannot be built, builds the one that the published members need, if any.
    async fn rebuild(&mut self, rebuild: Rebuild) {
        let mut next = Some(rebuild);
        while let Some(rebuild) = next {
            next = self.try_rebuild(rebuild).await;
        }
    }

    /// Builds a table on a blocking thread and publishes it. Inputs wait meanwhile; the watch channels keep only their
    /// newest values. If it cannot be built, returns the one to build instead.
    async fn try_rebuild(&mut self, rebuild: Rebuild) -> Option<Rebuild> {
        let begun = Instant::now();
        let built = spawn_blocking(|| rebuild.run()).await;
        match built.map_err(BuildError::Thread).and_then(|built| built.map_err(BuildError::Ring)) {
            Ok(change) => {
                self.publish(change, begun.elapsed());
                None
            }
            Err(error) => {
                let instead = self.state.revert(Instant::now());
                self.metrics.show_states(&self.state);
                self.record.update(&self.state, &[]);
                let cause: &dyn std::error::Error = &error;
                let source = cause.source().map(ToString::to_string);
                tracing::error!(pool = %self.pool, %error, source, "keeping the ring as it is");
                instead
            }
        }
    }

    fn publish(&mut self, change: Change, took: Duration) {
        self.state.commit(&change);
        self.metrics.show(&change.table, change.moved, took);
        self.record.note_change(&change, took);
        self.log.ring_changed(&change);
        self.tables.send_replace(Some(change.table));
    }
}

/// Waits for the next configuration; for ever once the sender is dropped.
///
/// Cancel safety: a configuration that was not returned stays in the channel.
async fn configured(configs: &mut watch::Receiver<Config>) -> Input {
    if configs.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    Input::Configured(configs.borrow_and_update().clone())
}

/// Waits for discovery's next set; for ever once discovery has ended.
///
/// Cancel safety: a set that was not returned stays in the channel.
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

/// Resolves at `timer`; never if it is `None`.
async fn due(timer: Option<Instant>) {
    match timer {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
