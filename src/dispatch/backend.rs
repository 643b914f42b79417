//! One backend (of one shard): its queue, its room, its connection slots. Decides who is woken and what is handed back.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{sync::watch, time::Instant};

use super::{
    Cause, Config, Failure, RetryBudget,
    client::Templates,
    health::Pulse,
    hub::{AWAY, Hub, QUEUE},
    line,
    metrics::{BackendMetrics, PoolMetrics},
    opener::Opener,
    piece::{Fate, Queued},
    queue::Batch,
    state::{Line, Nudge, Phase, State},
};
use crate::{access::Access, endpoint::Endpoint, health::Events, lifecycle::Tasks};

/// How long counts are kept exact after a `partial_success` that could not be attributed, and how long a client's data goes
/// alone after it was refused (design 3, Dispatch).
pub(super) const UNMERGED_FOR: Duration = Duration::from_secs(60);

/// How often a full queue is searched for entries that nobody waits for: the search walks all of it.
const PURGE_EVERY: Duration = Duration::from_millis(50);

/// What all backends of a pool share.
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) tasks: Tasks,
    pub(super) events: Events,
    pub(super) retries: Arc<RetryBudget>,
    /// Generations of the views.
    pub(super) changes: watch::Sender<u64>,
    pub(super) metrics: Arc<PoolMetrics>,
    pub(super) opener: Arc<Opener>,
    /// Every backend that may hold something: those of the table and those that left it.
    pub(super) all: Arc<ArcSwap<Vec<Arc<Backend>>>>,
}

/// One backend.
pub(super) struct Backend {
    pub(super) identity: Arc<str>,
    pub(super) address: Option<SocketAddr>,
    /// How it is spoken to, as long as it is there.
    pub(super) access: Access,
    pub(super) shared: Arc<Shared>,
    pub(super) metrics: BackendMetrics,
    pub(super) templates: Templates,
    pub(super) pulse: Arc<Pulse>,
    /// Bytes that wait.
    room: AtomicUsize,
    /// It left the table: what it has is finished, then its connections close.
    pub(super) closing: AtomicBool,
    /// Whether it was seen to speak TLS, though it is spoken to in plaintext.
    pub(super) speaks_tls: AtomicBool,
    state: Mutex<State>,
}

/// What one backend has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) waiting_bytes: usize,
    pub(super) calls: usize,
    pub(super) call_bytes: usize,
}

impl Shared {
    pub(super) fn new(pool: &str, config: Config, tasks: &Tasks, events: Events) -> Arc<Self> {
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
            all: Arc::default(),
        })
    }

    /// The same pool under another configuration: all but that is shared with what it was before.
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
            all: Arc::clone(&self.all),
        })
    }
}

impl Backend {
    pub(super) fn new(endpoint: &Endpoint, shared: &Arc<Shared>, pulse: Arc<Pulse>) -> Arc<Self> {
        let config = &shared.config;
        Arc::new(Self {
            identity: Arc::clone(&endpoint.identity),
            address: endpoint.address,
            access: endpoint.access.clone(),
            shared: Arc::clone(shared),
            metrics: shared.metrics.of_backend(&endpoint.identity),
            templates: Templates::new(&endpoint.identity, endpoint.address, &config.keys, &endpoint.access),
            pulse,
            room: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            speaks_tls: AtomicBool::new(false),
            state: Mutex::new(State::new(config)),
        })
    }

    /// Takes room for `bytes`, or nothing. Something larger than the whole queue fits an empty one.
    pub(super) fn admit(&self, bytes: usize) -> bool {
        if self.try_admit(bytes) {
            return true;
        }
        let now = Instant::now();
        let dead = {
            let mut state = self.lock();
            if state.purge_at.is_some_and(|at| now < at) {
                return false;
            }
            state.purge_at = Some(now + PURGE_EVERY);
            state.queue.purge(now)
        };
        self.drop_dead(dead, now);
        self.try_admit(bytes)
    }

    fn try_admit(&self, bytes: usize) -> bool {
        let limit = self.shared.config.keys.sending_queue.queue_size.0;
        self.room
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| used == 0 || *sum <= limit)
            })
            .is_ok()
    }

    /// Takes room, whether there is any or not: for what was admitted before in another shape.
    pub(super) fn occupy(&self, bytes: usize) {
        self.room.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives back room.
    pub(super) fn release(&self, bytes: usize) {
        self.room.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Queues what was admitted.
    pub(super) fn push(self: &Arc<Self>, entries: impl Iterator<Item = Queued>, now: Instant) {
        let nudge = {
            let mut state = self.lock();
            entries.for_each(|entry| state.queue.push(entry));
            let crowded = state.queue.take_crowded();
            if crowded > 0 {
                self.shared.metrics.crowded.increment(crowded);
            }
            state.nudge(now, self.address.is_some())
        };
        self.act(nudge);
    }

    /// Puts entries back in front, in their order: they go out again at once.
    pub(super) fn push_back_in_front(self: &Arc<Self>, entries: Vec<Queued>, now: Instant) {
        self.occupy(entries.iter().map(Queued::cost).sum());
        let nudge = {
            let mut state = self.lock();
            entries.into_iter().rev().for_each(|entry| state.queue.push_front(entry));
            state.nudge(now, self.address.is_some())
        };
        self.act(nudge);
    }

    /// Opens a place if one may open by now; whether anything waits.
    pub(super) fn poke(self: &Arc<Self>, now: Instant) -> bool {
        if self.is_empty() {
            return false;
        }
        let (nudge, waits) = {
            let mut state = self.lock();
            (state.nudge(now, self.address.is_some()), !state.queue.is_empty())
        };
        match nudge {
            Nudge::Wait => {}
            nudge => self.act(nudge),
        }
        waits
    }

    /// Takes what one call carries, for the connection in slot `line`.
    pub(super) fn take(&self, line: usize, now: Instant) -> Option<Batch> {
        if self.is_empty() {
            return None;
        }
        let mut dead = Vec::new();
        let (batch, waits) = {
            let mut state = self.lock();
            let merge = state.unmerged_until.is_none_or(|until| now >= until);
            let batch = state.queue.take(now, merge, &mut dead);
            if let (Some(_), Some(line)) = (&batch, state.lines.get_mut(line)) {
                line.running += 1;
            }
            (batch, !state.queue.is_empty())
        };
        if let Some(batch) = &batch {
            self.release(batch.parts.iter().map(Queued::cost).sum());
        }
        self.drop_dead(dead, now);
        if waits {
            self.shared.opener.arm();
        }
        batch
    }

    /// Gives back the place of one call of that many payload bytes of the connection in slot `line`; `None` if the connection
    /// has left its slot.
    pub(super) fn done(&self, line: Option<usize>, bytes: usize) {
        let mut state = self.lock();
        state.queue.done(bytes);
        if let Some(line) = line.and_then(|line| state.lines.get_mut(line)) {
            line.running = line.running.saturating_sub(1);
        }
    }

    /// The connection in slot `line` takes calls.
    pub(super) fn connected(&self, line: usize, hub: &Arc<Hub>) {
        let mut state = self.lock();
        state.retry_at = None;
        if let Some(line) = state.lines.get_mut(line) {
            *line = Line { phase: Phase::Up(Arc::clone(hub)), running: 0 };
        }
    }

    /// The table sends its slots elsewhere: what waits is handed back, calls are given up, connections end.
    pub(super) fn eject(&self) {
        self.stand_down(Cause::Ejected);
    }

    pub(super) fn stand_down(&self, cause: Cause) {
        let (entries, hubs) = {
            let mut state = self.lock();
            if state.away.is_some() {
                return;
            }
            state.away = Some(cause);
            let hubs: Vec<_> = state.lines.iter().filter_map(Line::hub).collect();
            (state.queue.drain(), hubs)
        };
        self.give_back(entries, None, cause);
        hubs.iter().for_each(|hub| hub.wake(AWAY));
    }

    /// Its slots are its own again.
    pub(super) fn readmit(&self) {
        let mut state = self.lock();
        if state.away.take().is_some() {
            // It answered a probe: that ends every pause.
            self.pulse.begin_anew();
            state.retry_at = None;
            state.turned_away = false;
            state.backoff.reset();
        }
    }

    /// Why its slots are elsewhere, if they are.
    pub(super) fn away(&self) -> Option<Cause> {
        self.lock().away
    }

    /// Slot `line` could not connect, or its connection died before it answered anything: no other attempt for a while, and
    /// unless another connection is up what waits is handed back.
    pub(super) fn unreachable(self: &Arc<Self>, line: usize, failure: Failure) {
        let failure = self.seen_through(failure);
        self.failed(failure);
        let (nudge, first) = {
            let mut state = self.lock();
            if let Some(line) = state.lines.get_mut(line) {
                *line = Line::default();
            }
            let (first, pause) = (state.backoff.is_fresh(), state.backoff.pause());
            state.retry_at = Some(Instant::now() + pause);
            let nudge = if state.lines.iter().all(|line| matches!(line.phase, Phase::Down)) {
                let entries = state.queue.drain();
                Nudge::GiveBack { entries, after: Some(pause), cause: Cause::Transport(failure) }
            } else {
                Nudge::Nothing
            };
            (nudge, first)
        };
        if first {
            self.ask_for_tls(failure);
        }
        if first && !self.closing.load(Ordering::Acquire) && self.shared.metrics.may_log() {
            let pool = &*self.shared.metrics.pool;
            tracing::warn!(pool, backend = %self.identity, failure = failure.as_str(), "backend unreachable, retrying");
        }
        self.act(nudge);
    }

    /// The connection in slot `line` takes no more calls: what waits needs another.
    pub(super) fn left(self: &Arc<Self>, line: usize) {
        let nudge = {
            let mut state = self.lock();
            if let Some(line) = state.lines.get_mut(line) {
                *line = Line::default();
            }
            state.nudge(Instant::now(), self.address.is_some())
        };
        self.act(nudge);
    }

    /// The peer of slot `line` sent GOAWAY before it had answered anything. Once that is bad luck and another connection is
    /// made at once; a peer that keeps doing so fails, and is left alone for a while.
    pub(super) fn turned_away(self: &Arc<Self>, line: usize) {
        let again = {
            let mut state = self.lock();
            if state.turned_away {
                let pause = state.backoff.pause();
                state.retry_at = Some(Instant::now() + pause);
            }
            std::mem::replace(&mut state.turned_away, true)
        };
        if again {
            self.failed(Failure::TurnedAway);
        }
        self.left(line);
    }

    /// A connection answered: the next failure starts with the shortest pause.
    pub(super) fn proved(&self) {
        self.speaks_tls.store(false, Ordering::Relaxed);
        let again = {
            let mut state = self.lock();
            state.turned_away = false;
            state.backoff.reset()
        };
        if again && self.shared.metrics.may_log() {
            tracing::info!(pool = &*self.shared.metrics.pool, backend = %self.identity, "connected to the backend again");
        }
    }

    /// Sends parts unmerged for a while, so that counts of rejected records are exact.
    pub(super) fn keep_unmerged(&self, now: Instant) {
        self.lock().unmerged_until = Some(now + UNMERGED_FOR);
    }

    /// The backend left the table.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.wake_all();
    }

    /// Whether the backend left the table and nothing waits for it.
    pub(super) fn is_closed(&self) -> bool {
        self.closing.load(Ordering::Acquire) && self.is_empty()
    }

    /// Whether nothing waits or runs.
    pub(super) fn has_no_work(&self) -> bool {
        self.is_empty() && self.lock().queue.running() == 0
    }

    /// Whether nothing waits, runs or is connected.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.lock();
        self.is_empty()
            && state.queue.running() == 0
            && state.lines.iter().all(|line| matches!(line.phase, Phase::Down))
    }

    /// Hands back what waits, and what comes from now on.
    pub(super) fn stop(self: &Arc<Self>) {
        let nudge = {
            let mut state = self.lock();
            state.stopped = true;
            state.nudge(Instant::now(), self.address.is_some())
        };
        self.act(nudge);
    }

    /// What waits and what runs.
    pub(super) fn load(&self) -> Load {
        let state = self.lock();
        Load {
            waiting_bytes: self.room.load(Ordering::Relaxed),
            calls: state.queue.running(),
            call_bytes: state.queue.running_bytes(),
        }
    }

    /// Connections that are up.
    pub(super) fn connections(&self) -> usize {
        self.lock().lines.iter().filter(|line| matches!(line.phase, Phase::Up(_))).count()
    }

    /// Whether anything waits.
    pub(super) fn waits(&self) -> bool {
        !self.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.room.load(Ordering::Relaxed) == 0
    }

    fn wake_all(&self) {
        let hubs: Vec<_> = self.lock().lines.iter().filter_map(Line::hub).collect();
        hubs.iter().for_each(|hub| hub.wake(QUEUE));
    }

    pub(super) fn act(self: &Arc<Self>, nudge: Nudge) {
        match nudge {
            Nudge::Connect { line, wake } => {
                self.shared.tasks.spawn(line::run(Arc::clone(self), line));
                if let Some(hub) = wake {
                    hub.wake(QUEUE);
                }
            }
            Nudge::GiveBack { entries, after, cause } => self.give_back(entries, after, cause),
            Nudge::Nothing => {}
            Nudge::Wait => self.shared.opener.arm(),
            Nudge::Wake(hub) => hub.wake(QUEUE),
        }
    }

    /// Hands back what waited.
    fn give_back(&self, entries: Vec<Queued>, after: Option<Duration>, cause: Cause) {
        self.release(entries.iter().map(Queued::cost).sum());
        for entry in entries {
            if cause == Cause::Stopped {
                self.shared.metrics.dropped_stopped.increment(1);
            }
            entry.complete(Fate::Owed { owner: Arc::clone(&self.identity), after, reached: false, cause });
        }
    }

    fn drop_dead(&self, dead: Vec<Queued>, now: Instant) {
        if dead.is_empty() {
            return;
        }
        self.release(dead.iter().map(Queued::cost).sum());
        for entry in dead {
            let late = !entry.inbox().is_abandoned() && entry.inbox().deadline <= now;
            let (cause, counter) = if late {
                (Cause::Deadline, &self.shared.metrics.dropped_deadline)
            } else {
                (Cause::Abandoned, &self.shared.metrics.dropped_abandoned)
            };
            counter.increment(1);
            let owner = Arc::clone(&self.identity);
            entry.complete(Fate::Owed { owner, after: None, reached: false, cause });
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held, save for a lack of memory.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend")
            .field("identity", &self.identity)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("config", &self.config).finish_non_exhaustive()
    }
}
