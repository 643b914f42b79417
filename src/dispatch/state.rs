//! The state that a backend's lock protects: its queue and its connections. [`State::nudge`] decides what to do about waiting
//! parts.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Cause, Config,
    connections::{Connections, Way},
    queue::{Queue, Rules},
    queued::Queued,
    transport::Wakeups,
};
use crate::descriptors;

/// The pause before a part for a backend without an address is tried again. Static names are resolved in the background.
const UNRESOLVED_FOR: Duration = Duration::from_secs(1);

/// The state that a backend's lock protects.
pub(super) struct State {
    pub(super) queue: Queue,
    pub(super) connections: Connections,
    pub(super) is_stopped: bool,
    /// The reason why the backend takes no parts: the table assigns its slots to others, or it failed after it had left the
    /// table.
    pub(super) away: Option<Cause>,
}

/// What to do after the lock is released.
pub(super) enum Nudge {
    Connect { at: usize, wake: Option<Arc<Wakeups>> },
    GiveBack { entries: Vec<Queued>, after: Option<Duration>, cause: Cause },
    Nothing,
    Wait,
    Wake(Arc<Wakeups>),
}

impl State {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            queue: Queue::new(Rules::new(config)),
            connections: Connections::new(config),
            is_stopped: false,
            away: None,
        }
    }

    /// Decides what to do about waiting parts. `has_address` says whether the backend's address is known.
    pub(super) fn nudge(&mut self, now: Instant, has_address: bool) -> Nudge {
        if self.queue.is_empty() {
            return Nudge::Nothing;
        }
        if self.is_stopped {
            return self.give_back(None, Cause::Stopped);
        }
        if let Some(cause) = self.away {
            return self.give_back(None, cause);
        }
        if !has_address {
            return self.give_back(Some(UNRESOLVED_FOR), Cause::Unresolved);
        }
        let (at, wake) = match self.connections.way(now) {
            Way::Up { .. } if !self.queue.opens(now) => return Nudge::Wait,
            Way::Up { wakeups, besides: Some(at) } if descriptors::allow_further_connection() => {
                (at, Some(Arc::clone(wakeups)))
            }
            Way::Up { wakeups, .. } => return Nudge::Wake(Arc::clone(wakeups)),
            Way::Connect(at) => (at, None),
            Way::NotFor(pause, failure) => return self.give_back(Some(pause), Cause::Transport(failure)),
            Way::Soon => return Nudge::Nothing,
        };
        self.connections.connect(at);
        Nudge::Connect { at, wake }
    }

    /// Hands waiting parts back, unless another connection is up or being established.
    pub(super) fn give_back_unless_connected(&mut self, after: Option<Duration>, cause: Cause) -> Nudge {
        if self.connections.are_down() { self.give_back(after, cause) } else { Nudge::Nothing }
    }

    fn give_back(&mut self, after: Option<Duration>, cause: Cause) -> Nudge {
        Nudge::GiveBack { entries: self.queue.drain(), after, cause }
    }
}
