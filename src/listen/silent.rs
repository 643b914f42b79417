//! Connections on which no byte has arrived yet, oldest first.
//!
//! A client sends its first bytes, an HTTP/2 preface or a TLS hello, as soon as it is connected. When no descriptor or
//! place is left for a new connection, the oldest silent one is closed to make room, since the new client may have
//! requests to send.

use std::{collections::VecDeque, time::Duration};

use tokio::{sync::oneshot, time::Instant};

/// How long a connection may be silent before it can be closed to make room. A client's first bytes directly follow the
/// last packet of TCP's handshake, so this does not depend on the round-trip time.
const PATIENCE: Duration = Duration::from_millis(50);

/// The silent connections of a listener. An entry whose connection has sent a byte or has ended is removed when it
/// comes to the front, at the latest when the handshake timeout of the entries before it is over.
#[derive(Debug, Default)]
pub(super) struct SilentConnections(VecDeque<Silent>);

#[derive(Debug)]
struct Silent {
    since: Instant,
    close: oneshot::Sender<()>,
}

/// The result of the attempt to make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// A connection is being closed.
    Made,
    /// The oldest silent connection can be closed after this time.
    After(Duration),
    /// No connection is silent.
    None,
}

impl SilentConnections {
    /// Adds a new connection. The returned receiver yields a value when the connection has to close. Its owner drops it
    /// once a byte has arrived.
    pub(super) fn add(&mut self) -> oneshot::Receiver<()> {
        self.forget_closed();
        let (close, receiver) = oneshot::channel();
        self.0.push_back(Silent { since: Instant::now(), close });
        receiver
    }

    /// Closes the oldest connection that is still silent, if it has been silent for [`PATIENCE`].
    pub(super) fn make_room(&mut self) -> Room {
        self.forget_closed();
        let Some(oldest) = self.0.front() else { return Room::None };
        let left = PATIENCE.saturating_sub(oldest.since.elapsed());
        if !left.is_zero() {
            return Room::After(left);
        }
        match self.0.pop_front().map(|oldest| oldest.close.send(())) {
            Some(Ok(())) => Room::Made,
            // A byte has just arrived on it.
            _ => Room::None,
        }
    }

    fn forget_closed(&mut self) {
        while self.0.front().is_some_and(|silent| silent.close.is_closed()) {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_silent_connection_is_closed_and_those_that_spoke_are_not() {
        let mut silent = SilentConnections::default();
        let [spoke, mut oldest, ended] = std::array::from_fn(|_| silent.add());
        drop((spoke, ended));
        sleep(PATIENCE / 2).await;
        let mut youngest = silent.add();
        assert_eq!(silent.make_room(), Room::After(PATIENCE / 2));
        sleep(PATIENCE / 2).await;
        assert_eq!(silent.make_room(), Room::Made);
        assert_eq!(oldest.try_recv(), Ok(()));
        assert_eq!(silent.make_room(), Room::After(PATIENCE / 2));
        assert!(youngest.try_recv().is_err());
        sleep(PATIENCE / 2).await;
        assert_eq!(silent.make_room(), Room::Made);
        assert_eq!(youngest.try_recv(), Ok(()));
        assert_eq!(silent.make_room(), Room::None);
    }

    #[tokio::test]
    async fn connections_that_spoke_are_forgotten() {
        let mut silent = SilentConnections::default();
        for _ in 0..100 {
            drop(silent.add());
        }
        assert_eq!(silent.0.len(), 1);
    }
}
