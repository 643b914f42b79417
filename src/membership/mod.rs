//! Membership: one task for each pool, which builds the pool's table from discovery's sets and observed health, and
//! publishes it.
//!
//! [`state`] decides, a blocking thread builds the table ([`build`], `builds`), and the task publishes and logs it.
//! Probes run in tasks of their own. Dispatch and the admin pages only read.
//!
//! **Invariant:** two replicas with the same view of which backends are members and which of them fail publish the same
//! placement, whatever happened before. A slot changes its owner only when the membership or the state of that owner
//! changes.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinError,
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

mod absence;
mod backend;
pub mod build;
mod builds;
mod change_log;
mod formers;
pub mod metrics;
pub mod record;
pub mod state;
#[cfg(test)]
pub(crate) mod tests;

pub use backend::{BackendState, Probe};
use build::{Cause, Change};
pub use builds::Builder;
use builds::{Builds, Built};
use change_log::ChangeLog;
use metrics::Metrics;
use record::Record;
use state::{Input, Note, State};

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

/// The number of events and results of probes that are applied together. The members are gone through once for all of
/// them.
const AT_A_TIME: usize = 256;

/// How long events and results of probes are gathered after the last ones were applied. It bounds the time that is spent
/// on going through thousands of members. An event after a quiet time waits for nothing.
const GATHERED_FOR: Duration = Duration::from_millis(10);

/// The number of probes that run at the same time; further ones wait. If thousands of backends do not answer at all, the
/// sockets of their probes take little memory, and each is asked again within less than [`OutlierDetection`]'s longest
/// period.
const PROBES: usize = 128;

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
    probes: Arc<Semaphore>,
    builds: Builds,
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
/// nothing is forgotten. `builder` is the same for all pools of the process.
pub fn start<P: Prober>(
    pool: &str,
    mut configs: watch::Receiver<Config>,
    endpoints: EndpointsReceiver,
    inbox: Inbox,
    prober: P,
    builder: Builder,
    tasks: &Tasks,
) -> Published {
    let (sender, tables) = watch::channel(None);
    let config = configs.borrow_and_update().clone();
    let record = Record::new();
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
        probes: Arc::new(Semaphore::new(PROBES)),
        builds: Builds::new(builder),
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
        let (mut timer, mut next_at) = (None, Instant::now());
        loop {
            let is_time = Instant::now() >= next_at;
            let input = tokio::select! {
                biased;
                // Stopping comes first: a process that ends needs no further table.
                () = until.stopped() => return,
                input = configured(&mut self.configs) => input,
                input = discovered(&mut self.endpoints) => input,
                built = self.builds.next(self.state.table()) => {
                    self.built(built);
                    timer = self.state.next_due(Instant::now());
                    continue;
                }
                () = sleep_until(next_at), if !is_time => continue,
                Some(input) = self.results.1.recv(), if is_time => input,
                Some(event) = self.inbox.recv(), if is_time => Input::Seen(event),
                () = due(timer), if is_time => Input::Timer,
            };
            let inputs = self.further(input);
            timer = self.handle(inputs);
            next_at = Instant::now() + GATHERED_FOR;
        }
    }

    /// Returns `input` and what else there is.
    fn further(&mut self, input: Input) -> Vec<Input> {
        let mut inputs = vec![input];
        while inputs.len() < AT_A_TIME {
            let result = self.results.1.try_recv().ok();
            match result.or_else(|| self.inbox.try_recv().map(Input::Seen)) {
                Some(input) => inputs.push(input),
                None => break,
            }
        }
        inputs
    }

    /// Applies `inputs` to the state and carries out the effects. Returns when the next timer is due.
    fn handle(&mut self, inputs: Vec<Input>) -> Option<Instant> {
        for input in &inputs {
            match input {
                Input::Probed { answered, .. } => self.metrics.probed(*answered),
                Input::Seen(event) => self.record.note_failure(event),
                Input::Configured(_) | Input::Discovered(_) | Input::Timer => {}
            }
        }
        let may_be_others = inputs.iter().any(|input| matches!(input, Input::Configured(_) | Input::Discovered(_)));
        let effects = self.state.apply_all(inputs, Instant::now());
        if may_be_others {
            self.show_all();
        } else if effects.notes.iter().any(|note| !matches!(note, Note::ProbeFailed(_))) {
            // Only the members that the notes are about have another state. There may be thousands of others.
            self.metrics.show_changed(&self.state, &effects.notes);
            self.record.update_changed(&self.state, &effects.notes);
        }
        self.record.note_ejections(&effects.notes);
        for note in &effects.notes {
            self.metrics.note(note);
            self.log.state_changed(note, self.state.is_panicking());
        }
        effects.probes.into_iter().for_each(|probe| self.start_probe(probe));
        if let Some(rebuild) = effects.rebuild {
            self.builds.want(rebuild);
        }
        effects.timer
    }

    fn start_probe(&self, probe: Probe) {
        let (prober, results, until) = (Arc::clone(&self.prober), self.results.0.clone(), self.tasks.clone());
        let probes = Arc::clone(&self.probes);
        self.tasks.spawn(async move {
            let asked = async {
                // Never closed. The permit is held until the probe has ended.
                let _permit = probes.acquire().await;
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

    /// Publishes a table, also if a further one is wanted by now: what it says is newer than what is published. Only if
    /// that further one is what is published, neither is needed.
    fn built(&mut self, built: Built) {
        match built {
            Ok(_) if self.builds.is_back_at(self.state.table()) => {}
            Ok((change, took)) => self.publish(change, took),
            Err(error) => {
                // Other members that came meanwhile may have a placement. If not, their own build fails.
                if !self.builds.has_other_members() {
                    self.builds.replace(self.state.revert(Instant::now()));
                    self.show_all();
                }
                let cause: &dyn std::error::Error = &error;
                let source = cause.source().map(ToString::to_string);
                tracing::error!(pool = %self.pool, %error, source, "keeping the ring as it is");
            }
        }
    }

    /// Shows the states of all members.
    fn show_all(&mut self) {
        self.metrics.show_states(&self.state);
        self.record.update(&self.state);
    }

    fn publish(&mut self, change: Change, took: Duration) {
        self.state.commit(&change, Instant::now());
        self.builds.hold(&change.table);
        self.metrics.show(&change, took);
        // No owner changes when a window ends.
        if change.cause != Cause::WindowEnd {
            self.record.note_change(&change, took);
            self.log.ring_changed(&change);
        }
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
