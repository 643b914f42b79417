//! The dispatch side of one connection. A [`Link`] implements the transport's [`Work`]: it takes batches from the backend's
//! queue, settles finished calls, and updates the backend's connections and health from the transport's events.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Cause, Failure,
    backend::Backend,
    diagnosis,
    health::Foreign,
    queue::Batch,
    queued::Queued,
    settle,
    transport::{self, Event, Peer, Scope, Verdict, Wakeups, Work},
};
use crate::{
    budget::{Budget, Use},
    descriptors,
    lifecycle::Tasks,
    shortage::Shortage,
};

/// The range of the pause after this process could not open a socket, in milliseconds. It is short because each connection that
/// ends frees a descriptor, and because a failed attempt costs only one system call.
const SHORTAGE_PAUSE_MS: std::ops::RangeInclusive<u64> = 100..=200;

/// Opens connections to backends.
pub(super) trait Transport: Send + Sync + 'static {
    /// Starts a connection that serves `link`. The connection ends when `tasks` are stopped, if not before.
    fn open(&self, link: Link, tasks: &Tasks);
}

/// The transport over the network, by the protocol of the pool. It has the account for the memory of connections.
#[derive(Debug)]
pub(super) struct Network(pub(super) Budget);

impl Transport for Network {
    fn open(&self, link: Link, tasks: &Tasks) {
        // The number of connections is bounded. Without one, what the account holds could not be sent.
        let memory = self.0.count_for(Use::Backends, link.peer().connection_memory());
        let descriptor = descriptors::count_connection();
        let serving = transport::serve(link, tasks.clone());
        drop(tasks.spawn(async move {
            serving.await;
            drop((memory, descriptor));
        }));
    }
}

/// The dispatch side of one connection.
pub(super) struct Link {
    backend: Arc<Backend>,
    /// The index of the connection in the backend's [`Connections`](super::connections::Connections). It is `None` once the
    /// connection takes no more calls: another connection can then have this index.
    at: Option<usize>,
    /// Whether the connection was established. The metric of open connections then counts it.
    was_up: bool,
    /// Whether the backend has answered a call on this connection.
    has_answered: bool,
    /// The reason why calls are given up; `None` while they are not.
    given_up: Option<Cause>,
    /// Whether all calls that were lost by a reset had parts that another backend has reset before; `None` if none was lost.
    lost_suspects: Option<bool>,
}

impl Link {
    pub(super) fn new(backend: &Arc<Backend>, at: usize) -> Self {
        Self {
            backend: Arc::clone(backend),
            at: Some(at),
            was_up: false,
            has_answered: false,
            given_up: None,
            lost_suspects: None,
        }
    }

    fn connected(&mut self, wakeups: Arc<Wakeups>) {
        self.backend.metrics.connect(Ok(()));
        self.backend.metrics.open();
        self.was_up = true;
        if let Some(at) = self.at {
            self.backend.lock().connections.connected(at, wakeups);
        }
    }

    fn not_connected(&mut self, failure: Failure) {
        self.backend.metrics.connect(Err(failure));
        match (self.at.take(), failure) {
            (Some(at), Failure::Local(shortage)) => self.lacks(at, shortage),
            (Some(at), failure) => self.unreachable(at, failure),
            (None, _) => {}
        }
    }

    fn answered(&mut self) {
        if !std::mem::replace(&mut self.has_answered, true) {
            self.backend.health.speaks_as_it_should();
            let had_failed = self.backend.lock().connections.answered();
            let metrics = &self.backend.shared.metrics;
            if had_failed && metrics.may_log() {
                let pool = &*metrics.pool;
                tracing::info!(pool, backend = %self.peer().identity, "connected to the backend again");
            }
        }
        self.backend.health.answered();
    }

    /// Handles the end of the connection.
    fn ended(&mut self, failure: Option<Failure>, lost: bool) {
        if failure == Some(Failure::Reset) && self.lost_suspects == Some(true) {
            // The records are a likelier reason than the backend.
            if let Some(at) = self.at.take() {
                self.left(at);
            }
            return;
        }
        // If others work, a request that a backend cannot bear is a likelier reason than a backend that is not there.
        let has_company = failure == Some(Failure::Reset) && self.backend.lock().connections.up().count() > 1;
        let is_new = !self.has_answered && !has_company && !self.is_finished();
        match (self.at.take(), failure) {
            // A backend that has not answered gets no new connection for a while. Waiting parts are placed elsewhere.
            (Some(at), Some(failure)) if is_new || failure == Failure::Ping && !self.is_finished() => {
                self.unreachable(at, failure);
            }
            (Some(at), None) if is_new => self.turned_away(at),
            (at, failure) => {
                if let Some(failure) = failure.filter(|_| lost) {
                    self.backend.failed(failure);
                }
                if let Some(at) = at {
                    self.left(at);
                }
            }
        }
    }

    /// Handles that the connection takes no more calls, because of GOAWAY or because no more calls will come.
    fn leaves(&mut self) {
        match self.at.take() {
            Some(at) if self.has_answered || self.is_finished() => self.left(at),
            Some(at) => self.turned_away(at),
            None => {}
        }
    }

    /// Frees the index `at`. Waiting parts need another connection.
    fn left(&self, at: usize) {
        let nudge = {
            let mut state = self.backend.lock();
            state.connections.left(at);
            state.nudge(Instant::now(), self.peer().address.is_some())
        };
        self.backend.act(nudge);
    }

    /// Handles GOAWAY before the first answer. If this happens repeatedly, it counts as a failure of the backend.
    fn turned_away(&self, at: usize) {
        if self.backend.lock().connections.turned_away(Instant::now()) {
            self.backend.failed(Failure::TurnedAway);
        }
        self.left(at);
    }

    /// Handles a connection that could not be established, or that failed before the first answer. The next attempt is made
    /// after a pause. If no other connection is up, waiting parts are handed back.
    fn unreachable(&self, at: usize, failure: Failure) {
        let backend = &self.backend;
        let failure = backend.health.seen_through(failure);
        let is_logged = failure == Failure::SpeaksHttp2 && diagnosis::found(backend, Foreign::Http2);
        backend.failed(failure);
        let (setback, nudge) = {
            let mut state = backend.lock();
            let setback = state.connections.failed(at, Instant::now());
            (setback, state.give_back_unless_connected(Some(setback.pause), Cause::Transport(failure)))
        };
        let metrics = &backend.shared.metrics;
        if setback.is_first {
            diagnosis::ask(backend, failure);
        }
        if setback.is_first && !is_logged && !backend.is_closing() && metrics.may_log() {
            let (pool, identity) = (&*metrics.pool, &self.peer().identity);
            tracing::warn!(pool, backend = %identity, failure = failure.as_str(), "backend unreachable, retrying");
        }
        backend.act(nudge);
    }

    /// Handles a connection that could not be established because this process lacks descriptors, ports or memory. This is no
    /// failure of the backend, so membership is not told. If no other connection is up, waiting parts are handed back and may
    /// be tried again after a short pause.
    fn lacks(&self, at: usize, shortage: Shortage) {
        let pause = Duration::from_millis(fastrand::u64(SHORTAGE_PAUSE_MS));
        let nudge = {
            let mut state = self.backend.lock();
            state.connections.lacked(at, shortage, Instant::now() + pause);
            state.give_back_unless_connected(Some(pause), Cause::Transport(Failure::Local(shortage)))
        };
        let metrics = &self.backend.shared.metrics;
        if let Some(unlogged) = metrics.shortages.admit() {
            tracing::error!(
                pool = &*metrics.pool,
                backend = %self.peer().identity,
                shortage = shortage.as_str(),
                unlogged,
                "cannot open a connection to a backend: {shortage} on this side; {}",
                shortage.advice()
            );
        }
        self.backend.act(nudge);
    }
}

impl Work for Link {
    type Contents = Batch;

    fn peer(&self) -> &Peer {
        &self.backend.peer
    }

    fn waits(&self) -> bool {
        !self.backend.capacity.is_empty()
    }

    fn take(&mut self, now: Instant) -> Option<Batch> {
        self.backend.take(self.at, now)
    }

    fn began(&mut self, batch: &Batch, now: Instant) {
        batch.parts.iter().for_each(Queued::begin);
        self.backend.metrics.bytes.increment(u64::try_from(batch.bytes).unwrap_or(u64::MAX));
        self.backend.health.called(now);
    }

    fn done(&mut self, batch: Batch, started: Option<Instant>, verdict: Verdict, now: Instant) {
        self.backend.done(self.at, batch.bytes);
        if let Some(started) = started {
            let metrics = &self.backend.shared.metrics;
            metrics.call_duration.record(now.saturating_duration_since(started));
            metrics.call_parts.record(f64::from(u32::try_from(batch.parts.len()).unwrap_or(u32::MAX)));
        }
        if matches!(verdict, Verdict::Failed { failure: Failure::Reset, scope: Scope::Connection, .. }) {
            self.lost_suspects = Some(self.lost_suspects != Some(false) && settle::are_suspect(&batch.parts));
        }
        settle::settle(&self.backend, batch.parts, verdict, self.given_up, now);
    }

    fn is_given_up(&mut self) -> bool {
        self.given_up = self.backend.away();
        self.given_up.is_some()
    }

    fn is_finished(&self) -> bool {
        self.backend.is_closing() && self.backend.capacity.is_empty()
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Answered => self.answered(),
            Event::Connected(wakeups) => self.connected(wakeups),
            Event::Ended { failure, lost } => self.ended(failure, lost),
            Event::Closed | Event::GaveUp | Event::InDoubt => {
                if let Some(at) = self.at.take() {
                    self.left(at);
                }
            }
            Event::Writing | Event::Written => {
                if let Some(at) = self.at {
                    self.backend.lock().connections.writes(at, matches!(event, Event::Writing));
                }
            }
            Event::Left => self.leaves(),
            Event::NotConnected(failure) => self.not_connected(failure),
            Event::Stopped => self.backend.stop(),
            Event::Unanswered(now) => {
                if self.backend.health.is_mute(now, self.peer().keys.timeout) {
                    self.backend.failed(Failure::Timeout);
                }
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if self.was_up {
            self.backend.metrics.closed();
        }
    }
}
