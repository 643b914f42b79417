//! The backend's end of one connection: what the transport works for. It takes calls out of the queue, settles them, and
//! turns what the transport sees into what is known of connections and health.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Cause, Failure,
    backend::Backend,
    diagnosis,
    queue::Batch,
    queued::Queued,
    settle,
    transport::{self, Event, Peer, Verdict, Wakers, Work},
};
use crate::{lifecycle::Tasks, shortage::Shortage};

/// Shortest pause after this process could not open a socket, in milliseconds, and the longest. Descriptors come free with
/// every connection that ends, and an attempt that fails costs one system call.
const SHORTAGE_PAUSE_MS: std::ops::RangeInclusive<u64> = 100..=200;

/// Opens connections to backends.
pub(super) trait Transport: Send + Sync + 'static {
    /// Begins a connection that works for `link` and ends when `tasks` are stopped, at the latest.
    fn open(&self, link: Link, tasks: &Tasks);
}

/// gRPC over HTTP/2.
#[derive(Debug)]
pub(super) struct Grpc;

impl Transport for Grpc {
    fn open(&self, link: Link, tasks: &Tasks) {
        drop(tasks.spawn(transport::serve(link, tasks.clone())));
    }
}

/// The backend's end of one connection.
pub(super) struct Link {
    backend: Arc<Backend>,
    /// Its number among the backend's connections; `None` once it takes no more calls and another may be made instead.
    at: Option<usize>,
    /// Whether it was ever up.
    was_up: bool,
    /// Whether the backend answered a call on it.
    has_answered: bool,
    /// Why its calls were given up.
    given_up: Option<Cause>,
}

impl Link {
    pub(super) fn new(backend: &Arc<Backend>, at: usize) -> Self {
        Self { backend: Arc::clone(backend), at: Some(at), was_up: false, has_answered: false, given_up: None }
    }

    fn connected(&mut self, wakers: Arc<Wakers>) {
        self.backend.metrics.connect(Ok(()));
        self.backend.metrics.open();
        self.was_up = true;
        if let Some(at) = self.at {
            self.backend.lock().connections.connected(at, wakers);
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
            self.backend.health.speaks_plaintext();
            let again = self.backend.lock().connections.answered();
            let metrics = &self.backend.shared.metrics;
            if again && metrics.may_log() {
                let pool = &*metrics.pool;
                tracing::info!(pool, backend = %self.peer().identity, "connected to the backend again");
            }
        }
        self.backend.health.answered();
    }

    /// The connection is over.
    fn ended(&mut self, failure: Option<Failure>, lost: bool) {
        let is_new = !self.has_answered && !self.is_finished();
        match (self.at.take(), failure) {
            // Whoever says nothing gets no further connection for a while: what waits is better off elsewhere.
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

    /// Takes no more calls by the backend's will, or since there are no more.
    fn leaves(&mut self) {
        match self.at.take() {
            Some(at) if self.has_answered || self.is_finished() => self.left(at),
            Some(at) => self.turned_away(at),
            None => {}
        }
    }

    /// The connection of that number takes no more calls: what waits needs another.
    fn left(&self, at: usize) {
        let nudge = {
            let mut state = self.backend.lock();
            state.connections.left(at);
            state.nudge(Instant::now(), self.peer().address.is_some())
        };
        self.backend.act(nudge);
    }

    /// The backend sent GOAWAY before it had answered anything. One that keeps doing so fails.
    fn turned_away(&self, at: usize) {
        if self.backend.lock().connections.turned_away(Instant::now()) {
            self.backend.failed(Failure::TurnedAway);
        }
        self.left(at);
    }

    /// It could not connect, or died before it answered anything: no other attempt for a while, and unless another connection
    /// is up what waits is handed back.
    fn unreachable(&self, at: usize, failure: Failure) {
        let backend = &self.backend;
        let failure = backend.health.seen_through(failure);
        backend.failed(failure);
        let (setback, nudge) = {
            let mut state = backend.lock();
            let setback = state.connections.failed(at, Instant::now());
            (setback, state.give_back_unless_connected(Some(setback.pause), Cause::Transport(failure)))
        };
        let metrics = &backend.shared.metrics;
        if setback.is_first {
            diagnosis::ask_for_tls(backend, failure);
        }
        if setback.is_first && !backend.is_closing() && metrics.may_log() {
            let (pool, identity) = (&*metrics.pool, &self.peer().identity);
            tracing::warn!(pool, backend = %identity, failure = failure.as_str(), "backend unreachable, retrying");
        }
        backend.act(nudge);
    }

    /// It could not connect for want of something of this process. The backend keeps its good name, membership hears nothing of
    /// it. What waits is handed back unless another connection is up, and may be tried again after a short pause.
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
        !self.backend.room.is_empty()
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
        settle::settle(&self.backend, batch.parts, verdict, self.given_up, now);
    }

    fn is_given_up(&mut self) -> bool {
        self.given_up = self.backend.away();
        self.given_up.is_some()
    }

    fn is_finished(&self) -> bool {
        self.backend.is_closing() && self.backend.room.is_empty()
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Answered => self.answered(),
            Event::Connected(wakers) => self.connected(wakers),
            Event::Ended { failure, lost } => self.ended(failure, lost),
            Event::GaveUp | Event::InDoubt => {
                if let Some(at) = self.at.take() {
                    self.left(at);
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
