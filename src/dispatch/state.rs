//! What a backend's lock guards: its queue, its connection slots, and the decision what is to be done about what waits.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Backoff, Cause, Config, Failure,
    hub::Hub,
    piece::Queued,
    queue::{Queue, Rules},
};
use crate::shortage::Shortage;

/// When a part for a backend without an address may be tried again: a static name is resolved in the background.
const UNRESOLVED_FOR: Duration = Duration::from_secs(1);

/// What the lock of a backend guards.
pub(super) struct State {
    pub(super) queue: Queue,
    pub(super) lines: Box<[Line]>,
    pub(super) backoff: Backoff,
    /// No connect before it.
    pub(super) retry_at: Option<Instant>,
    /// What this process had too little of for a connection, and until when it does not try again.
    pub(super) shortage: Option<(Shortage, Instant)>,
    pub(super) unmerged_until: Option<Instant>,
    /// No search for abandoned entries before it.
    pub(super) purge_at: Option<Instant>,
    /// The last connection got GOAWAY before it had answered anything.
    pub(super) turned_away: bool,
    pub(super) stopped: bool,
    /// Its slots are served elsewhere, or it failed after it had left the table: nothing waits for it any more.
    pub(super) away: Option<Cause>,
}

/// A connection slot.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) phase: Phase,
    /// Calls of its connection.
    pub(super) running: usize,
}

#[derive(Debug, Default)]
pub(super) enum Phase {
    #[default]
    Down,
    Connecting,
    Up(Arc<Hub>),
}

/// What has to be done once the lock is released.
pub(super) enum Nudge {
    Connect { line: usize, wake: Option<Arc<Hub>> },
    GiveBack { entries: Vec<Queued>, after: Option<Duration>, cause: Cause },
    Nothing,
    Wait,
    Wake(Arc<Hub>),
}

impl Line {
    pub(super) fn hub(&self) -> Option<Arc<Hub>> {
        match &self.phase {
            Phase::Up(hub) => Some(Arc::clone(hub)),
            Phase::Connecting | Phase::Down => None,
        }
    }
}

impl State {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            queue: Queue::new(Rules::new(config)),
            lines: (0..config.keys.connections.max(1)).map(|_| Line::default()).collect(),
            backoff: Backoff::new(config.keys.retry_on_failure),
            retry_at: None,
            shortage: None,
            unmerged_until: None,
            purge_at: None,
            turned_away: false,
            stopped: false,
            away: None,
        }
    }

    /// What is to be done about what waits.
    pub(super) fn nudge(&mut self, now: Instant, resolved: bool) -> Nudge {
        if self.queue.is_empty() {
            return Nudge::Nothing;
        }
        if self.stopped {
            return self.give_back(None, Cause::Stopped);
        }
        if let Some(cause) = self.away {
            return self.give_back(None, cause);
        }
        if !resolved {
            return self.give_back(Some(UNRESOLVED_FOR), Cause::Unresolved);
        }
        let down = self.lines.iter().position(|line| matches!(line.phase, Phase::Down));
        let least = self.lines.iter().filter_map(|line| Some((line.running, line.hub()?))).min_by_key(|(n, _)| *n);
        match (least, down, self.pause(now)) {
            (Some(_), _, _) if !self.queue.opens(now) => Nudge::Wait,
            // All that are up are busy and another may be made.
            (Some((running, hub)), Some(line), None) if running > 0 => self.connect(line, Some(hub)),
            (Some((_, hub)), _, _) => Nudge::Wake(hub),
            (None, _, _) if self.lines.iter().any(|line| matches!(line.phase, Phase::Connecting)) => Nudge::Nothing,
            (None, _, Some((pause, failure))) => self.give_back(Some(pause), Cause::Transport(failure)),
            (None, Some(line), None) => self.connect(line, None),
            (None, None, None) => Nudge::Nothing,
        }
    }

    /// How long no connect may be tried, and why.
    fn pause(&self, now: Instant) -> Option<(Duration, Failure)> {
        let left = |at: Instant| at.checked_duration_since(now).filter(|left| !left.is_zero());
        let of_ours = || self.shortage.and_then(|(what, at)| Some((left(at)?, Failure::Local(what))));
        self.retry_at.and_then(left).map(|left| (left, Failure::ConnectError)).or_else(of_ours)
    }

    fn connect(&mut self, at: usize, wake: Option<Arc<Hub>>) -> Nudge {
        if let Some(line) = self.lines.get_mut(at) {
            line.phase = Phase::Connecting;
        }
        Nudge::Connect { line: at, wake }
    }

    fn give_back(&mut self, after: Option<Duration>, cause: Cause) -> Nudge {
        Nudge::GiveBack { entries: self.queue.drain(), after, cause }
    }
}
