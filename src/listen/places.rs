//! The places for open connections of a listener. When all are taken, another connection is closed for a new one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::net::TcpStream;

use super::{
    accept::Limits,
    admission,
    idle::{Connection, Connections},
    metrics::ListenerMetrics,
    silent::{self, Room, SilentConnection, SilentConnections},
};
use crate::budget::Permit;

/// How long a client's connection has been idle, at least, when it is closed for another one. A client that has just
/// connected sends its first request within this time.
const PATIENCE: Duration = Duration::from_secs(1);

/// What happens to a new connection while as many are open as may be. Silent connections are always closed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// It takes the place of the connection that has had no request in progress for the longest time. If none has had none
    /// for a second, it is closed itself. A request that is in progress is never lost.
    CloseIdle,
    /// The same, and if no connection is idle, it takes the place of the one that has had requests in progress for the
    /// longest time: a new connection may be a probe, which must be answered.
    CloseOldest,
}

/// Counts the open connections of listeners that share file descriptors. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct OpenConnections(Arc<AtomicUsize>);

/// A place for one open connection and its memory, given back on drop.
#[derive(Debug)]
pub(super) struct Place {
    taken: Arc<AtomicUsize>,
    open: OpenConnections,
    /// `None` if connections are not accounted for.
    _memory: Option<Permit>,
}

/// The places of one listener, and the connections that have them.
#[derive(Debug, Default)]
pub(super) struct Places {
    taken: Arc<AtomicUsize>,
    silent: SilentConnections<Place>,
    connections: Connections<Place>,
}

// === impl Places ===

impl Places {
    /// Returns a place for a new connection with `bytes` of memory. If all places are taken, or the account has no room,
    /// another connection may be closed for it.
    pub(super) fn take(&mut self, limits: &Limits, bytes: usize, metrics: &ListenerMetrics) -> Taken {
        if let Some(place) = Place::take(&self.taken, limits, bytes) {
            return Taken::Free(place);
        }
        if let Some(place) = self.silent.make_room(silent::CLOSABLE_AFTER).freed() {
            metrics.refused();
            return Taken::Instead(place);
        }
        let place = match limits.when_full {
            WhenFull::CloseIdle => self.connections.close_idle(PATIENCE),
            WhenFull::CloseOldest => self.close_oldest(),
        };
        match place {
            Some(place) => {
                metrics.closed_for_another();
                Taken::Instead(place)
            }
            None => {
                metrics.refused();
                Taken::None
            }
        }
    }

    /// Adds a connection that has a place. Nothing has arrived on it yet.
    pub(super) fn add(&mut self, stream: TcpStream, place: Place) -> (SilentConnection<Place>, Arc<Connection<Place>>) {
        (self.silent.add(stream, place), self.connections.add())
    }

    /// Closes a connection, so that its descriptor can be used for a new one. Returns how long to wait before the next
    /// attempt to accept: `pause` if none was closed.
    pub(super) fn free_descriptor(&mut self, limits: &Limits, metrics: &ListenerMetrics, pause: Duration) -> Duration {
        let left = match self.silent.make_room(silent::CLOSABLE_AFTER) {
            Room::Freed(_) => {
                metrics.refused();
                return Duration::ZERO;
            }
            Room::After(left) => pause.min(left),
            Room::None => pause,
        };
        // A client that is told to go could not come back, but operators ask again.
        if limits.when_full == WhenFull::CloseOldest && self.close_oldest().is_some() {
            metrics.closed_for_another();
            // Its task closes it.
            return left.min(Duration::from_millis(1));
        }
        left
    }

    fn close_oldest(&mut self) -> Option<Place> {
        let idle = self.connections.close_idle(silent::CLOSABLE_AFTER);
        let any = idle.or_else(|| self.connections.close_busy());
        any.or_else(|| self.silent.make_room(Duration::ZERO).freed())
    }
}

/// A place for a new connection.
#[derive(Debug)]
pub(super) enum Taken {
    /// It was free.
    Free(Place),
    /// Another connection was closed for it.
    Instead(Place),
    /// There is none.
    None,
}

// === impl Place ===

impl Place {
    /// Takes a place if fewer connections are open than may be and the account has room for `bytes` more. Only one task
    /// takes places.
    fn take(taken: &Arc<AtomicUsize>, limits: &Limits, bytes: usize) -> Option<Self> {
        // Another listener may take the last descriptor meanwhile, which costs one of those that are kept.
        let open = limits.open.0.load(Ordering::Relaxed);
        if taken.load(Ordering::Relaxed) >= limits.max_connections || open >= (limits.descriptors)() {
            return None;
        }
        let memory = match &limits.account {
            None => None,
            Some(account) => Some(admission::connection(account, bytes)?),
        };
        taken.fetch_add(1, Ordering::Relaxed);
        limits.open.0.fetch_add(1, Ordering::Relaxed);
        Some(Self { taken: Arc::clone(taken), open: limits.open.clone(), _memory: memory })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
        self.open.0.fetch_sub(1, Ordering::Relaxed);
    }
}
