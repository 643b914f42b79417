//! One backend of one shard: its queue, its connections and its health. Parts enter the queue here and leave it through a
//! [`Link`]. After each change this module wakes or opens connections, or hands parts back.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{sync::watch, time::Instant};

use super::{
    Cause, Config, Failure, RetryBudget,
    capacity::Capacity,
    health::{Health, Pulse},
    link::{Link, Transport},
    metrics::{BackendMetrics, PoolMetrics},
    opener::Opener,
    queue::{Batch, Rules},
    queued::{Fate, Queued},
    state::{Nudge, State},
    transport::{GIVE_UP, Peer, QUEUE},
};
use crate::{endpoint::Endpoint, health::Events, lifecycle::Tasks};

/// The data that all backends of a pool share.
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) tasks: Tasks,
    pub(super) events: Events,
    pub(super) retries: Arc<RetryBudget>,
    /// The generation of the current view.
    pub(super) changes: watch::Sender<u64>,
    pub(super) metrics: Arc<PoolMetrics>,
    pub(super) opener: Arc<Opener>,
    pub(super) transport: Arc<dyn Transport>,
    /// All backends that may hold parts: those of the table, and those that have left it and are not idle yet.
    pub(super) all: Arc<ArcSwap<Vec<Arc<Backend>>>>,
}

/// One backend.
pub(super) struct Backend {
    pub(super) peer: Peer,
    pub(super) shared: Arc<Shared>,
    pub(super) metrics: BackendMetrics,
    pub(super) health: Health,
    /// The number of bytes in the queue, and their limit.
    pub(super) capacity: Capacity,
    /// Whether the backend has left the table. It then finishes its parts, and its connections close.
    is_closing: AtomicBool,
    state: Mutex<State>,
}

/// The load of one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) waiting_bytes: usize,
    pub(super) calls: usize,
    pub(super) call_bytes: usize,
    /// The number of connections that are up.
    pub(super) connections: usize,
}

impl Shared {
    pub(super) fn new(
        pool: &str,
        config: Config,
        tasks: &Tasks,
        events: Events,
        transport: Arc<dyn Transport>,
    ) -> Arc<Self> {
        let metrics = PoolMetrics::new(pool);
        metrics.show_limit(&config);
        let retries =
            RetryBudget::new(config.keys.retry_on_failure.budget_percent, metrics.retry_budget_exhausted.clone());
        Arc::new(Self {
            config,
            tasks: tasks.clone(),
            events,
            retries: Arc::new(retries),
            changes: watch::Sender::new(0),
            metrics: Arc::new(metrics),
            opener: Arc::default(),
            transport,
            all: Arc::default(),
        })
    }

    /// Returns the same data with another configuration.
    pub(super) fn reconfigured(&self, config: Config) -> Arc<Self> {
        self.metrics.show_limit(&config);
        self.retries.set_percent(config.keys.retry_on_failure.budget_percent);
        Arc::new(Self {
            config,
            tasks: self.tasks.clone(),
            events: self.events.clone(),
            retries: Arc::clone(&self.retries),
            changes: self.changes.clone(),
            metrics: Arc::clone(&self.metrics),
            opener: Arc::clone(&self.opener),
            transport: Arc::clone(&self.transport),
            all: Arc::clone(&self.all),
        })
    }
}

impl Backend {
    pub(super) fn new(endpoint: &Endpoint, shared: &Arc<Shared>, pulse: Arc<Pulse>) -> Arc<Self> {
        let config = &shared.config;
        let identity = &endpoint.identity;
        Arc::new(Self {
            peer: Peer::new(endpoint, &config.keys, Rules::new(config).places()),
            shared: Arc::clone(shared),
            metrics: shared.metrics.of_backend(identity),
            health: Health::new(identity, shared.events.clone(), pulse),
            capacity: Capacity::new(config.keys.sending_queue.queue_size.0),
            is_closing: AtomicBool::new(false),
            state: Mutex::new(State::new(config)),
        })
    }

    // === The queue ===

    /// Takes room for `bytes`. Returns false if there is none. A part that is larger than the whole queue fits an empty one.
    pub(super) fn admit(&self, bytes: usize) -> bool {
        self.capacity.take(bytes) || {
            let now = Instant::now();
            let dead = self.lock().queue.purge(now);
            !dead.is_empty() && {
                self.drop_dead(dead, now);
                self.capacity.take(bytes)
            }
        }
    }

    /// Queues entries whose room was taken before.
    pub(super) fn push(self: &Arc<Self>, entries: impl Iterator<Item = Queued>, now: Instant) {
        let nudge = {
            let mut state = self.lock();
            entries.for_each(|entry| state.queue.push(entry));
            let crowded = state.queue.take_crowded();
            if crowded > 0 {
                self.shared.metrics.crowded.increment(crowded);
            }
            state.nudge(now, self.has_address())
        };
        self.act(nudge);
    }

    /// Puts entries back to the front of the queue in their order, to send them again at once.
    pub(super) fn push_back_in_front(self: &Arc<Self>, entries: Vec<Queued>, now: Instant) {
        self.capacity.take_again(entries.iter().map(Queued::cost).sum());
        let nudge = {
            let mut state = self.lock();
            entries.into_iter().rev().for_each(|entry| state.queue.push_front(entry));
            state.nudge(now, self.has_address())
        };
        self.act(nudge);
    }

    /// Begins a further call if the queue allows it by now. Returns whether entries wait.
    pub(super) fn poke(self: &Arc<Self>, now: Instant) -> bool {
        if self.capacity.is_empty() {
            return false;
        }
        let (nudge, waits) = {
            let mut state = self.lock();
            (state.nudge(now, self.has_address()), !state.queue.is_empty())
        };
        match nudge {
            Nudge::Wait => {}
            nudge => self.act(nudge),
        }
        waits
    }

    /// Takes the entries of the next call, for the connection with this index.
    pub(super) fn take(&self, connection: Option<usize>, now: Instant) -> Option<Batch> {
        if self.capacity.is_empty() {
            return None;
        }
        let mut dead = Vec::new();
        let (batch, waits) = {
            let mut state = self.lock();
            let batch = state.queue.take(now, &mut dead);
            if let (Some(_), Some(at)) = (&batch, connection) {
                state.connections.begin(at);
            }
            (batch, !state.queue.is_empty())
        };
        if let Some(batch) = &batch {
            self.capacity.give_back(batch.parts.iter().map(Queued::cost).sum());
        }
        self.drop_dead(dead, now);
        if waits {
            self.shared.opener.arm();
        }
        batch
    }

    /// Ends a call with `bytes` of payload. `connection` is the index of its connection, or `None` if the connection has none any
    /// more.
    pub(super) fn done(&self, connection: Option<usize>, bytes: usize) {
        let mut state = self.lock();
        state.queue.done(bytes);
        if let Some(at) = connection {
            state.connections.done(at);
        }
    }

    // === In and out of service ===

    /// Takes the backend out of service: waiting entries are handed back, calls are given up and connections end.
    pub(super) fn stand_down(&self, cause: Cause) {
        let (entries, up) = {
            let mut state = self.lock();
            if state.away.is_some() {
                return;
            }
            state.away = Some(cause);
            let up: Vec<_> = state.connections.up().cloned().collect();
            (state.queue.drain(), up)
        };
        self.give_back(entries, None, cause);
        up.iter().for_each(|wakeups| wakeups.wake(GIVE_UP));
    }

    /// Takes the backend back into service.
    pub(super) fn readmit(&self) {
        let mut state = self.lock();
        if state.away.take().is_some() {
            // The backend has answered a probe.
            self.health.begin_anew();
            state.connections.begin_anew();
        }
    }

    /// The reason why the backend is out of service, if it is.
    pub(super) fn away(&self) -> Option<Cause> {
        self.lock().away
    }

    /// Handles a failure of the transport. A backend that has left the table is taken out of service at its first failure.
    pub(super) fn failed(&self, failure: Failure) {
        let is_closing = self.is_closing();
        if self.has_address() {
            self.health.failed(failure, is_closing);
        }
        if is_closing && !matches!(failure, Failure::Local(_)) {
            let is_listed = self.health.pulse.is_listed();
            self.stand_down(if is_listed { Cause::Transport(failure) } else { Cause::Departed });
        }
    }

    /// Handles that the backend has left the table.
    pub(super) fn close(&self) {
        self.is_closing.store(true, Ordering::Release);
        let up: Vec<_> = self.lock().connections.up().cloned().collect();
        up.iter().for_each(|wakeups| wakeups.wake(QUEUE));
    }

    /// Whether the backend has left the table.
    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    /// Hands back the entries that wait, and those that come later.
    pub(super) fn stop(self: &Arc<Self>) {
        let nudge = {
            let mut state = self.lock();
            state.is_stopped = true;
            state.nudge(Instant::now(), self.has_address())
        };
        self.act(nudge);
    }

    /// The load at this moment.
    pub(super) fn load(&self) -> Load {
        let state = self.lock();
        Load {
            waiting_bytes: self.capacity.used(),
            calls: state.queue.running(),
            call_bytes: state.queue.running_bytes(),
            connections: state.connections.up().count(),
        }
    }

    /// Whether no entry waits, no call is in flight, and no connection is up or being established.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.lock();
        self.capacity.is_empty() && state.queue.running() == 0 && state.connections.are_down()
    }

    // === Consequences ===

    /// Carries out what was decided under the lock.
    pub(super) fn act(self: &Arc<Self>, nudge: Nudge) {
        match nudge {
            Nudge::Connect { at, wake } => {
                self.shared.transport.open(Link::new(self, at), &self.shared.tasks);
                if let Some(wakeups) = wake {
                    wakeups.wake(QUEUE);
                }
            }
            Nudge::GiveBack { entries, after, cause } => self.give_back(entries, after, cause),
            Nudge::Nothing => {}
            Nudge::Wait => self.shared.opener.arm(),
            Nudge::Wake(wakeups) => wakeups.wake(QUEUE),
        }
    }

    /// Hands back entries that were taken out of the queue.
    fn give_back(&self, entries: Vec<Queued>, after: Option<Duration>, cause: Cause) {
        self.capacity.give_back(entries.iter().map(Queued::cost).sum());
        for entry in entries {
            if cause == Cause::Stopped {
                self.shared.metrics.dropped_stopped.increment(1);
            }
            entry.complete(Fate::Owed { owner: Arc::clone(&self.peer.identity), after, reached: false, cause });
        }
    }

    fn drop_dead(&self, dead: Vec<Queued>, now: Instant) {
        if dead.is_empty() {
            return;
        }
        self.capacity.give_back(dead.iter().map(Queued::cost).sum());
        for entry in dead {
            let late = !entry.inbox().is_abandoned() && entry.inbox().deadline <= now;
            let (cause, counter) = if late {
                (Cause::Deadline, &self.shared.metrics.dropped_deadline)
            } else {
                (Cause::Abandoned, &self.shared.metrics.dropped_abandoned)
            };
            counter.increment(1);
            let owner = Arc::clone(&self.peer.identity);
            entry.complete(Fate::Owed { owner, after: None, reached: false, cause });
        }
    }

    fn has_address(&self) -> bool {
        self.peer.address.is_some()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while the lock is held, except when memory runs out.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Load {
    /// Whether no entry waits and no call is in flight.
    pub(super) fn is_none(&self) -> bool {
        self.waiting_bytes == 0 && self.calls == 0
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend")
            .field("identity", &self.peer.identity)
            .field("address", &self.peer.address)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("config", &self.config).finish_non_exhaustive()
    }
}
