//! The connections of one backend: which are up, which may be made, and when. Pure: no lock, no I/O.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Backoff, Config,
    transport::{Failure, Wakers},
};
use crate::shortage::Shortage;

/// The connections of one backend. There are as many as the operator chose, each by its number.
pub(super) struct Connections {
    all: Box<[Connection]>,
    backoff: Backoff,
    /// No connect before it.
    retry_at: Option<Instant>,
    /// What this process had too little of for a connection, and until when it does not try again.
    shortage: Option<(Shortage, Instant)>,
    /// The last connection got GOAWAY before it had answered anything.
    was_turned_away: bool,
}

#[derive(Debug, Default)]
struct Connection {
    phase: Phase,
    /// Calls that run on it.
    running: usize,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Down,
    Connecting,
    Up(Arc<Wakers>),
}

/// What a failure to connect leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setback {
    /// No connect is tried for so long.
    pub(super) pause: Duration,
    /// Whether it is the first in a row.
    pub(super) is_first: bool,
}

/// How what waits can be sent.
#[derive(Debug)]
pub(super) enum Way<'a> {
    /// By a connection that is up, here the least busy; if that is busy too, one of that number may be made besides.
    Up { wakers: &'a Arc<Wakers>, besides: Option<usize> },
    /// One is being made.
    Soon,
    /// The connection of that number may be made.
    Connect(usize),
    /// None may be made for so long.
    NotFor(Duration, Failure),
}

impl Connections {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            all: (0..config.keys.connections.max(1)).map(|_| Connection::default()).collect(),
            backoff: Backoff::new(config.keys.retry_on_failure),
            retry_at: None,
            shortage: None,
            was_turned_away: false,
        }
    }

    /// How what waits can be sent.
    pub(super) fn way(&self, now: Instant) -> Way<'_> {
        let down = self.all.iter().position(|connection| matches!(connection.phase, Phase::Down));
        let pause = self.pause(now);
        let up = self.all.iter().filter_map(|connection| Some((connection.running, connection.wakers()?)));
        match (up.min_by_key(|(running, _)| *running), down, pause) {
            (Some((running, wakers)), down, pause) => {
                Way::Up { wakers, besides: down.filter(|_| running > 0 && pause.is_none()) }
            }
            (None, _, _) if self.all.iter().any(|connection| matches!(connection.phase, Phase::Connecting)) => {
                Way::Soon
            }
            (None, _, Some((pause, failure))) => Way::NotFor(pause, failure),
            (None, Some(at), None) => Way::Connect(at),
            // There is none at all, which cannot be.
            (None, None, None) => Way::Soon,
        }
    }

    /// The connection of that number is being made.
    pub(super) fn connect(&mut self, at: usize) {
        if let Some(connection) = self.all.get_mut(at) {
            connection.phase = Phase::Connecting;
        }
    }

    /// It takes calls.
    pub(super) fn connected(&mut self, at: usize, wakers: Arc<Wakers>) {
        self.retry_at = None;
        if let Some(connection) = self.all.get_mut(at) {
            *connection = Connection { phase: Phase::Up(wakers), running: 0 };
        }
    }

    /// It takes no more calls.
    pub(super) fn left(&mut self, at: usize) {
        if let Some(connection) = self.all.get_mut(at) {
            *connection = Connection::default();
        }
    }

    /// A call begins on it.
    pub(super) fn begin(&mut self, at: usize) {
        if let Some(connection) = self.all.get_mut(at) {
            connection.running += 1;
        }
    }

    /// A call on it is over.
    pub(super) fn done(&mut self, at: usize) {
        if let Some(connection) = self.all.get_mut(at) {
            connection.running = connection.running.saturating_sub(1);
        }
    }

    /// It could not connect, or died before it answered anything: no other attempt for a while.
    pub(super) fn failed(&mut self, at: usize, now: Instant) -> Setback {
        self.left(at);
        let (is_first, pause) = (self.backoff.is_fresh(), self.backoff.pause());
        self.retry_at = Some(now + pause);
        Setback { pause, is_first }
    }

    /// It could not connect for want of something of this process, which is no fault of the backend's.
    pub(super) fn lacked(&mut self, at: usize, shortage: Shortage, until: Instant) {
        self.left(at);
        self.shortage = Some((shortage, until));
    }

    /// A connection got GOAWAY before the backend had answered anything on it. Once that is bad luck and another connection is made at once;
    /// returns whether it was not the first time, after which there is a pause.
    pub(super) fn turned_away(&mut self, now: Instant) -> bool {
        if self.was_turned_away {
            let pause = self.backoff.pause();
            self.retry_at = Some(now + pause);
        }
        std::mem::replace(&mut self.was_turned_away, true)
    }

    /// A connection answered: the next failure begins with the shortest pause. Returns whether there was a failure before.
    pub(super) fn answered(&mut self) -> bool {
        self.was_turned_away = false;
        self.backoff.reset()
    }

    /// The backend is well, as was found out otherwise: that ends every pause.
    pub(super) fn begin_anew(&mut self) {
        self.retry_at = None;
        self.answered();
    }

    /// Those that are up.
    pub(super) fn up(&self) -> impl Iterator<Item = &Arc<Wakers>> {
        self.all.iter().filter_map(Connection::wakers)
    }

    /// Whether none is up or being made.
    pub(super) fn are_down(&self) -> bool {
        self.all.iter().all(|connection| matches!(connection.phase, Phase::Down))
    }

    /// How long no connect may be tried, and why.
    fn pause(&self, now: Instant) -> Option<(Duration, Failure)> {
        let left = |at: Instant| at.checked_duration_since(now).filter(|left| !left.is_zero());
        let of_ours = || self.shortage.and_then(|(what, at)| Some((left(at)?, Failure::Local(what))));
        self.retry_at.and_then(left).map(|left| (left, Failure::ConnectError)).or_else(of_ours)
    }
}

impl Connection {
    fn wakers(&self) -> Option<&Arc<Wakers>> {
        match &self.phase {
            Phase::Up(wakers) => Some(wakers),
            Phase::Connecting | Phase::Down => None,
        }
    }
}
