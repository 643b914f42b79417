//! The state of the connections to one backend: which are up, and when another may be established. It does no I/O and takes
//! no lock.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Backoff, Config,
    transport::{Failure, Wakeups},
};
use crate::shortage::Shortage;

/// The connections to one backend. Their number is configured; each is named by its index.
pub(super) struct Connections {
    all: Box<[Connection]>,
    backoff: Backoff,
    /// The earliest time of the next attempt to connect after a failure.
    retry_at: Option<Instant>,
    /// The resource that this process lacked at the last attempt, and the earliest time of the next one.
    shortage: Option<(Shortage, Instant)>,
    /// Whether the last connection received GOAWAY before the first answer.
    was_turned_away: bool,
}

#[derive(Debug, Default)]
struct Connection {
    phase: Phase,
    /// The number of calls in flight on this connection.
    running: usize,
    /// Whether the rest of a request that was answered is being written. Meanwhile the connection takes no calls.
    is_writing: bool,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Down,
    Connecting,
    Up(Arc<Wakeups>),
}

/// The consequences of a failure to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setback {
    /// The time until the next attempt.
    pub(super) pause: Duration,
    /// Whether no failure preceded it since the last success.
    pub(super) is_first: bool,
}

/// How waiting parts can be sent.
#[derive(Debug)]
pub(super) enum Way<'a> {
    /// A connection is up. `wakeups` wakes the one with the fewest calls. `besides` is the index of a further connection that may
    /// be established, if all that are up have calls and none is being established.
    Up { wakeups: &'a Arc<Wakeups>, besides: Option<usize> },
    /// A connection is being established, or can take calls soon.
    Soon,
    /// A connection with this index may be established.
    Connect(usize),
    /// No connection may be established for this time, because of this failure.
    NotFor(Duration, Failure),
}

impl Connections {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            all: (0..config.keys.max_connections()).map(|_| Connection::default()).collect(),
            backoff: Backoff::new(config.keys.retry_on_failure),
            retry_at: None,
            shortage: None,
            was_turned_away: false,
        }
    }

    /// Returns how waiting parts can be sent.
    pub(super) fn way(&self, now: Instant) -> Way<'_> {
        let down = self.all.iter().position(|connection| matches!(connection.phase, Phase::Down));
        let pause = self.pause(now);
        let is_connecting = self.all.iter().any(|connection| matches!(connection.phase, Phase::Connecting));
        let open = || self.all.iter().filter_map(|connection| Some((connection, connection.wakeups()?)));
        let up = open().filter(|(connection, _)| !connection.is_writing);
        let up = up.map(|(connection, wakeups)| (connection.running, wakeups));
        match (up.min_by_key(|(running, _)| *running), down, pause) {
            (Some((running, wakeups)), down, pause) => {
                Way::Up { wakeups, besides: down.filter(|_| running > 0 && pause.is_none() && !is_connecting) }
            }
            (None, _, _) if is_connecting => Way::Soon,
            // They take calls by themselves once they can.
            (None, None, _) | (None, _, Some(_)) if open().next().is_some() => Way::Soon,
            (None, _, Some((pause, failure))) => Way::NotFor(pause, failure),
            (None, Some(at), None) => Way::Connect(at),
            // There is at least one connection, so this does not happen.
            (None, None, None) => Way::Soon,
        }
    }

    /// Marks the connection as being established.
    pub(super) fn connect(&mut self, at: usize) {
        if let Some(connection) = self.all.get_mut(at) {
            connection.phase = Phase::Connecting;
        }
    }

    /// Marks the connection as up.
    pub(super) fn connected(&mut self, at: usize, wakeups: Arc<Wakeups>) {
        self.retry_at = None;
        if let Some(connection) = self.all.get_mut(at) {
            *connection = Connection { phase: Phase::Up(wakeups), ..Connection::default() };
        }
    }

    /// Marks the connection as down: it takes no more calls.
    pub(super) fn left(&mut self, at: usize) {
        if let Some(connection) = self.all.get_mut(at) {
            *connection = Connection::default();
        }
    }

    /// Notes whether the rest of a request that was answered is being written on the connection.
    pub(super) fn writes(&mut self, at: usize, is_writing: bool) {
        if let Some(connection) = self.all.get_mut(at) {
            connection.is_writing = is_writing;
        }
    }

    /// Counts a call that begins on the connection.
    pub(super) fn begin(&mut self, at: usize) {
        if let Some(connection) = self.all.get_mut(at) {
            connection.running += 1;
        }
    }

    /// Counts off a call that has ended on the connection.
    pub(super) fn done(&mut self, at: usize) {
        if let Some(connection) = self.all.get_mut(at) {
            connection.running = connection.running.saturating_sub(1);
        }
    }

    /// Marks the connection as down after it could not be established, or failed before the first answer. The next attempt is
    /// made after a growing pause.
    pub(super) fn failed(&mut self, at: usize, now: Instant) -> Setback {
        self.left(at);
        let (is_first, pause) = (self.backoff.is_fresh(), self.backoff.pause());
        self.retry_at = Some(now + pause);
        Setback { pause, is_first }
    }

    /// Marks the connection as down after this process lacked the resources to establish it. The backend's pause does not
    /// grow.
    pub(super) fn lacked(&mut self, at: usize, shortage: Shortage, until: Instant) {
        self.left(at);
        self.shortage = Some((shortage, until));
    }

    /// Notes a GOAWAY before the first answer. After the first one another connection is made at once; after further ones in a
    /// row there is a pause. Returns whether this was a further one.
    pub(super) fn turned_away(&mut self, now: Instant) -> bool {
        if self.was_turned_away {
            let pause = self.backoff.pause();
            self.retry_at = Some(now + pause);
        }
        std::mem::replace(&mut self.was_turned_away, true)
    }

    /// Notes the first answer on a connection: the next failure leads to the shortest pause again. Returns whether there was a
    /// failure before.
    pub(super) fn answered(&mut self) -> bool {
        self.was_turned_away = false;
        self.backoff.reset()
    }

    /// Ends every pause, since a probe found the backend well.
    pub(super) fn begin_anew(&mut self) {
        self.retry_at = None;
        self.answered();
    }

    /// Returns the connections that are up, as the means to wake them.
    pub(super) fn up(&self) -> impl Iterator<Item = &Arc<Wakeups>> {
        self.all.iter().filter_map(Connection::wakeups)
    }

    /// Whether no connection is up or being established.
    pub(super) fn are_down(&self) -> bool {
        self.all.iter().all(|connection| matches!(connection.phase, Phase::Down))
    }

    /// The time until the next attempt to connect may be made, and the failure that it is due to.
    fn pause(&self, now: Instant) -> Option<(Duration, Failure)> {
        let left = |at: Instant| at.checked_duration_since(now).filter(|left| !left.is_zero());
        let of_ours = || self.shortage.and_then(|(what, at)| Some((left(at)?, Failure::Local(what))));
        self.retry_at.and_then(left).map(|left| (left, Failure::ConnectError)).or_else(of_ours)
    }
}

impl Connection {
    fn wakeups(&self) -> Option<&Arc<Wakeups>> {
        match &self.phase {
            Phase::Up(wakeups) => Some(wakeups),
            Phase::Connecting | Phase::Down => None,
        }
    }
}
