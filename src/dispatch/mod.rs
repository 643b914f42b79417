//! Dispatch: delivers the parts of requests to backends, and reports the outcome of each part.
//!
//! The pipeline calls it: [`Dispatch::view`] returns one table with its queues, [`View::submit`] puts a request's parts in all
//! their owners' queues or in none, and [`Join::next`] returns their outcomes. Dispatch never chooses another backend for a
//! part: a part that can be tried again is handed back with the reason.
//!
//! There are two layers. The upper one is this module without `transport`:
//! - `reconcile` follows the tables and keeps a `backend` for each endpoint. A backend has a `queue`, whose size `capacity`
//!   limits, `connections` and `health`. `state` is the data that the backend's lock protects.
//! - The queue decides when a call begins and which parts it carries. `opener` triggers this decision as time passes.
//! - A `link` is the dispatch side of one connection. It takes batches from the queue, and `settle` reports the outcome of each
//!   part (`outcome`). `diagnosis` finds out whether a backend speaks another protocol when plaintext connections fail.
//! - `submit` takes room for a request's parts in all queues or in none, and `join` collects their outcomes. `backoff` and
//!   `retries` space and bound retries. `backend_load` and `metrics` show the state of backends.
//!
//! The lower layer is `transport`. It sends the batches of a link as calls on one connection, by gRPC or OTLP/HTTP, and does
//! not use the upper layer.
//!
//! A backend whose slots the table assigns to others hands back its waiting parts and gives up its calls. A backend that has
//! left the table finishes both, unless it fails.
//!
//! **Invariant:** no lock is held over an await, and none is taken while another lock of dispatch is held.

mod backend;
mod backend_load;
mod backoff;
mod capacity;
mod connections;
mod diagnosis;
mod health;
mod join;
mod link;
mod metrics;
mod opener;
mod outcome;
mod queue;
mod queued;
mod reconcile;
mod retries;
mod settle;
mod state;
mod submit;
#[cfg(test)]
pub(crate) mod tests;
mod transport;

use std::{future::Future, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use tokio::sync::watch;

use self::{
    backend::Shared,
    link::{Network, Transport},
    reconcile::Reconciler,
};
pub use self::{
    backend_load::BackendLoad,
    backoff::Backoff,
    join::Join,
    outcome::{Cause, PartOutcome},
    retries::RetryBudget,
    submit::{NotQueued, View, WhyNotQueued},
    transport::{Failure, HealthCheck},
};
use crate::{
    budget::Budget,
    codec::Encoding,
    health::Events,
    lifecycle::Tasks,
    otlp::{Framed, Signal},
    ring::Tables,
    settings::Delivery,
};

/// The settings for delivering parts to the backends of one pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The keys of the pool. `max_request_size_mib` bounds the payload of one call. Larger parts, which always have a single
    /// record, are sent in calls of their own.
    pub keys: Delivery,
    /// The maximum number of calls in flight to one backend from one shard, at most 48. Their bytes are limited separately, to
    /// 8 × `max_request_size_mib`. A larger single record is sent while no other call is in flight.
    pub places: usize,
    /// The number of waiting bytes that begin a further call at once if they belong to at least four parts. Four times as many
    /// do so in any case.
    pub open_place_bytes: usize,
    /// The time after which a waiting part begins a further call.
    pub open_place_after: Duration,
}

/// The piece of a request for one backend.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The message. Its length is the room that the part takes in a queue.
    pub message: Framed,
    /// The number of records in the message.
    pub records: u32,
    /// The encoding that the request came in. The pool may ask that its parts are sent in the same one.
    pub encoding: Option<Encoding>,
    /// The request as it came, with gRPC's prefix, if the part is all of it and is to be sent in this encoding.
    pub original: Option<Bytes>,
    /// The signal of the records.
    pub signal: Signal,
    /// The index of the part's backend among the table's targets.
    pub backend: u32,
    /// Whether the part needs a call of its own, because the backend will probably refuse it.
    pub alone: bool,
    /// Whether another backend has reset a connection or stream that carried the records. If this one does so too, the records
    /// are a likelier reason than the backend.
    pub reset_elsewhere: bool,
    /// The caller's index of the part. It is returned with the outcome.
    pub index: u32,
}

impl Part {
    /// Returns a part whose backend probably takes it and that nobody has reset, with index 0 and without an encoding.
    pub fn new(signal: Signal, message: Framed, records: u32, backend: u32) -> Self {
        let (encoding, original) = (None, None);
        Self { message, records, encoding, original, signal, backend, alone: false, reset_elsewhere: false, index: 0 }
    }
}

/// Delivers the parts of one pool.
#[derive(Debug)]
pub struct Dispatch {
    view: Arc<ArcSwapOption<View>>,
    configs: watch::Sender<Config>,
    /// The shared data from the start. Its configuration may be outdated; all other fields are current.
    shared: Arc<Shared>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            keys: Delivery::default(),
            // A further call begins every two or three milliseconds, so eight are too few for a backend that takes 20 ms.
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
    /// Starts delivering to the backends of `tables`. Connections are made when a part has to be sent, and their memory is
    /// counted in `budget`. Reports about the backends' health are sent to `events`.
    ///
    /// Ends when `tasks` are stopped: waiting parts are then handed back with [`Cause::Stopped`].
    pub fn start(
        pool: &str,
        config: Config,
        tables: Tables,
        tasks: &Tasks,
        events: Events,
        budget: Budget,
    ) -> Arc<Self> {
        Self::start_by(Arc::new(Network(budget)), pool, config, tables, tasks, events)
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

    /// Returns the current table with its queues, or `None` until there is a first table.
    pub fn view(&self) -> Option<Arc<View>> {
        self.view.load_full()
    }

    /// Subscribes to the generation of the current view. A generation is announced once [`Dispatch::view`] returns its view.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Returns the retry budget of the pool.
    pub fn retries(&self) -> &RetryBudget {
        &self.shared.retries
    }

    /// Changes the configuration. Parts that are in a queue or a call are finished with the previous one. The table and the
    /// requests in progress are not affected.
    pub fn reconfigure(&self, config: Config) {
        self.configs.send_replace(config);
    }

    /// Runs what is left to deliver of a request that was answered. Shutdown waits for it.
    pub fn spawn(&self, rest: impl Future<Output = ()> + Send + 'static) {
        self.shared.tasks.spawn(rest);
    }

    /// Waits for the first table.
    pub async fn ready(&self) {
        let mut changes = self.changes();
        // Subscribes before reading the view, so that a view which is published in between is noticed.
        while self.view().is_none() && changes.changed().await.is_ok() {}
    }

    /// Returns the number of sockets that may be needed at once.
    pub fn sockets(&self) -> usize {
        self.shared.all.load().iter().map(|backend| backend.shared.config.keys.max_sockets()).sum()
    }

    /// Whether no part waits and no call is in flight.
    pub fn is_idle(&self) -> bool {
        self.shared.all.load().iter().all(|backend| backend.load().is_none())
    }
}
