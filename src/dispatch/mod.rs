//! Delivers parts to backends: queues with room for all or none, calls that carry many parts, HTTP/2 connections, outcomes.
//!
//! Called by the pipeline: [`Dispatch::view`] gives one table with its queues, [`View::submit`] queues a request's parts in
//! all their owners' queues or in none, and [`Join::next`] says what became of them. It never places a part itself: what
//! can be tried again is handed back with the reason.
//!
//! There are two floors. The upper one is this module without `transport`:
//! - `reconcile` follows the tables and keeps a `backend` for each endpoint: a `queue` with its `room`, `connections` and
//!   `health`. `state` is what the backend's lock protects.
//! - The queue decides when a call begins and what it carries. `opener` looks again as time passes.
//! - A `link` is the dispatch side of one connection. It takes batches from the queue, and `settle` tells each part what became
//!   of it (`outcome`). `diagnosis` finds out whether a backend speaks TLS when plaintext connections fail.
//! - `submit` gives a request's parts room in all queues or in none, and `join` collects their outcomes. `backoff` and
//!   `retries` space and bound retries. `loads` and `metrics` show what happens.
//!
//! The lower floor is `transport`. It makes gRPC calls of what a link gives it, on one connection, and does not use the upper
//! floor.
//!
//! A backend whose slots the table sends elsewhere hands back what waits for it and gives up its calls; one that left the
//! table finishes both, unless it fails.
//!
//! **Invariant:** no lock is held over an await, and none is taken while another of this room is held.

mod backend;
mod backoff;
mod connections;
mod diagnosis;
mod health;
mod join;
mod link;
mod loads;
mod metrics;
mod opener;
mod outcome;
mod queue;
mod queued;
mod reconcile;
mod retries;
mod room;
mod settle;
mod state;
mod submit;
#[cfg(test)]
mod tests;
mod transport;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use tokio::sync::watch;

use self::{
    backend::Shared,
    link::{Grpc, Transport},
    reconcile::Reconciler,
};
pub use self::{
    backoff::Backoff,
    join::Join,
    loads::BackendLoad,
    outcome::{Cause, PartOutcome},
    retries::RetryBudget,
    submit::{NotQueued, View, WhyNotQueued},
    transport::{Failure, HealthCheck},
};
use crate::{
    health::Events,
    lifecycle::Tasks,
    otlp::{Framed, Signal},
    ring::Tables,
    settings::Delivery,
};

/// How parts are delivered to the backends of one pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The keys of the pool. `max_request_size_mib` bounds the payload of one call: larger parts, which the pipeline makes of
    /// single records only, go alone.
    pub keys: Delivery,
    /// Calls that may run at once to one backend (and shard), at most 48. The bytes under way to it have a bound of their
    /// own: 8 × `max_request_size_mib`; a larger single record runs alone.
    pub places: usize,
    /// Waiting bytes that open a further place at once, if they are of four parts; four times as many do in any case.
    pub open_place_bytes: usize,
    /// How long a part waits before it opens a further place.
    pub open_place_after: Duration,
}

/// The piece of a request for one backend.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The message; what waits is counted by its length.
    pub message: Framed,
    /// Records in it.
    pub records: u32,
    /// Its signal.
    pub signal: Signal,
    /// Index of its owner in the table's backends.
    pub backend: u32,
    /// Whether it goes in a call of its own: a refusal is expected.
    pub alone: bool,
    /// The caller's tag, given back with the outcome.
    pub index: u32,
}

/// Delivers the parts of one pool.
#[derive(Debug)]
pub struct Dispatch {
    view: Arc<ArcSwapOption<View>>,
    configs: watch::Sender<Config>,
    /// As it was started: of what can change later only that which is shared may be used.
    shared: Arc<Shared>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            keys: Delivery::default(),
            // One opens each two or three milliseconds: behind a backend that takes 20 ms eight are too few.
            places: 32,
            open_place_bytes: 64 << 10,
            open_place_after: Duration::from_millis(2),
        }
    }
}

impl From<Delivery> for Config {
    fn from(keys: Delivery) -> Self {
        Self { keys, ..Self::default() }
    }
}

impl Dispatch {
    /// Starts delivering to the backends of `tables`; connections are made when something is to be sent.
    ///
    /// Ends when `tasks` are stopped: what waits then is handed back with [`Cause::Stopped`]. What is seen of the backends'
    /// health goes to `events`.
    pub fn start(pool: &str, config: Config, tables: Tables, tasks: &Tasks, events: Events) -> Arc<Self> {
        Self::start_by(Arc::new(Grpc), pool, config, tables, tasks, events)
    }

    fn start_by(
        transport: Arc<dyn Transport>,
        pool: &str,
        config: Config,
        tables: Tables,
        tasks: &Tasks,
        events: Events,
    ) -> Arc<Self> {
        let shared = Shared::new(pool, config, tasks, events, transport);
        let view = Arc::new(ArcSwapOption::empty());
        let (configs, followed) = watch::channel(shared.config.clone());
        let mut reconciler = Reconciler::new(Arc::clone(&shared), Arc::clone(&view), tables, followed);
        reconciler.follow();
        tasks.spawn(opener::run(Arc::clone(&shared)));
        tasks.spawn(reconciler.run());
        Arc::new(Self { view, configs, shared })
    }

    /// The table of the moment with its queues; `None` until the first table.
    pub fn view(&self) -> Option<Arc<View>> {
        self.view.load_full()
    }

    /// A new subscription to the generations of views, each said once its view is what [`Dispatch::view`] gives.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// How many retries may be made.
    pub fn retries(&self) -> &RetryBudget {
        &self.shared.retries
    }

    /// Delivers by another configuration from a moment on. What is with a backend or in its queue is finished by the one
    /// before; neither the table nor any request notices.
    pub fn reconfigure(&self, config: Config) {
        self.configs.send_replace(config);
    }

    /// Waits for the first table.
    pub async fn ready(&self) {
        let mut changes = self.changes();
        // Subscribed before it is looked at: a view that comes in between is heard of.
        while self.view().is_none() && changes.changed().await.is_ok() {}
    }

    /// Sockets that it may need at once: its connections, and a fresh one for each backend that is in doubt or probed.
    pub fn sockets(&self) -> usize {
        self.shared.all.load().iter().map(|backend| backend.shared.config.keys.connections.max(1) + 1).sum()
    }

    /// Whether nothing waits for a backend or runs there.
    pub fn is_idle(&self) -> bool {
        self.shared.all.load().iter().all(|backend| backend.load().is_none())
    }
}
