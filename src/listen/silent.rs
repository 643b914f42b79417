//! Keeps track of connections on which no byte has arrived yet, and closes the oldest of them to make room.
//!
//! A client sends its first bytes, an HTTP/2 preface or a TLS hello, as soon as it is connected. When no descriptor or
//! place is left for a new connection, the oldest silent one is closed to make room, since the new client may have
//! requests to send. A connection is no longer silent once a single byte has arrived; from then on the handshake's
//! timeout bounds it.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    mem::MaybeUninit,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use socket2::SockRef;
use tokio::{io::ReadBuf, net::TcpStream, sync::Notify, time::Instant};

/// How long a connection may be silent before it can be closed to make room. A client's first bytes directly follow the
/// last packet of TCP's handshake, so this does not depend on the round-trip time.
pub(super) const CLOSABLE_AFTER: Duration = Duration::from_millis(50);

/// The least length at which the queue is searched for connections that are no longer silent.
const SEARCH_FROM: usize = 64;

/// The silent connections of a listener. `P` is a connection's place among those that may be open.
#[derive(Debug)]
pub(super) struct SilentConnections<P> {
    queue: VecDeque<(Instant, SilentConnection<P>)>,
    /// The length at which the queue is next searched for connections that are no longer silent.
    search_at: usize,
}

/// A connection that is silent so far. Its task and the queue share it. The first to take the stream out of it decides
/// whether the connection is served or closed.
#[derive(Debug)]
pub(super) struct SilentConnection<P>(Arc<Shared<P>>);

#[derive(Debug)]
struct Shared<P> {
    connection: Mutex<Option<(TcpStream, P)>>,
    closed: Notify,
}

/// The result of the attempt to make room.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Room<P> {
    /// A connection was closed, which freed this place.
    Freed(P),
    /// The oldest silent connection can be closed after this time.
    After(Duration),
    /// No connection is silent.
    None,
}

impl<P> Room<P> {
    /// Returns the place that was freed, if there is one.
    pub(super) fn freed(self) -> Option<P> {
        if let Self::Freed(place) = self { Some(place) } else { None }
    }
}

impl<P> Default for SilentConnections<P> {
    fn default() -> Self {
        Self { queue: VecDeque::new(), search_at: SEARCH_FROM }
    }
}

impl<P> SilentConnections<P> {
    /// Adds a new connection.
    pub(super) fn add(&mut self, stream: TcpStream, place: P) -> SilentConnection<P> {
        if self.queue.len() >= self.search_at {
            self.queue.retain(|(_, connection)| connection.lock().is_some());
            self.search_at = (2 * self.queue.len()).max(SEARCH_FROM);
        }
        let connection =
            SilentConnection(Arc::new(Shared { connection: Mutex::new(Some((stream, place))), closed: Notify::new() }));
        self.queue.push_back((Instant::now(), connection.clone()));
        connection
    }

    /// Closes the oldest connection that is still silent, if it has been silent for `after`.
    pub(super) fn make_room(&mut self, after: Duration) -> Room<P> {
        while let Some((since, oldest)) = self.queue.front() {
            let left = after.saturating_sub(since.elapsed());
            if !left.is_zero() && oldest.lock().is_some() {
                return Room::After(left);
            }
            if let Some(place) = oldest.close() {
                self.queue.pop_front();
                return Room::Freed(place);
            }
            // A byte has arrived on it, or it has ended.
            self.queue.pop_front();
        }
        Room::None
    }
}

impl<P> Clone for SilentConnection<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<P> SilentConnection<P> {
    /// Waits for the first byte or the end of the stream, without consuming it, and returns the connection. Returns
    /// `None` if the connection was closed to make room.
    pub(super) async fn first_byte(&self) -> Option<(TcpStream, P)> {
        tokio::select! {
            biased;
            connection = poll_fn(|context| self.poll_first_byte(context)) => connection,
            () = self.0.closed.notified() => None,
        }
    }

    fn poll_first_byte(&self, context: &mut Context<'_>) -> Poll<Option<(TcpStream, P)>> {
        let mut connection = self.lock();
        let Some((stream, _)) = connection.as_ref() else { return Poll::Ready(None) };
        let mut first = [0];
        stream.poll_peek(context, &mut ReadBuf::new(&mut first)).map(|_| connection.take())
    }

    /// Returns the connection, silent or not. Returns `None` if it was closed to make room.
    pub(super) fn take(&self) -> Option<(TcpStream, P)> {
        self.lock().take()
    }

    /// Closes the connection if it is silent. It asks the system, since a byte may have arrived that the task has not
    /// seen.
    fn close(&self) -> Option<P> {
        let mut connection = self.lock();
        let (stream, _) = connection.as_ref()?;
        let peeked = SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]);
        if !peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            return None;
        }
        let (_, place) = connection.take()?;
        self.0.closed.notify_one();
        Some(place)
    }

    fn lock(&self) -> MutexGuard<'_, Option<(TcpStream, P)>> {
        self.0.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    /// Opens a connection. Returns the client's end and the server's.
    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    async fn added(silent: &mut SilentConnections<u8>, place: u8) -> (TcpStream, SilentConnection<u8>) {
        let (client, server) = connected().await;
        (client, silent.add(server, place))
    }

    /// Waits on the system's clock until connections may be closed.
    async fn until_closable() {
        tokio::time::sleep(CLOSABLE_AFTER).await;
    }

    #[tokio::test]
    async fn closing_the_oldest_silent_connection_frees_its_place() {
        let mut silent = SilentConnections::default();
        let (mut first, oldest) = added(&mut silent, 1).await;
        let (_second, youngest) = added(&mut silent, 2).await;
        assert!(matches!(silent.make_room(CLOSABLE_AFTER), Room::After(left) if left <= CLOSABLE_AFTER));
        until_closable().await;
        assert_eq!(silent.make_room(CLOSABLE_AFTER), Room::Freed(1));
        assert!(oldest.first_byte().await.is_none());
        let mut buffer = [0];
        let read = tokio::io::AsyncReadExt::read(&mut first, &mut buffer).await;
        assert_eq!(read.unwrap(), 0, "the client sees the end");
        assert_eq!(silent.make_room(CLOSABLE_AFTER), Room::Freed(2));
        assert!(youngest.first_byte().await.is_none());
        assert_eq!(silent.make_room(CLOSABLE_AFTER), Room::None);
    }

    #[tokio::test]
    async fn a_connection_is_not_closed_if_a_byte_arrived_that_its_task_has_not_seen() {
        let mut silent = SilentConnections::default();
        let (mut client, not_silent) = added(&mut silent, 1).await;
        let (_other, _silent) = added(&mut silent, 2).await;
        client.write_all(b"P").await.unwrap();
        until_closable().await;
        assert_eq!(silent.make_room(CLOSABLE_AFTER), Room::Freed(2));
        assert_eq!(not_silent.first_byte().await.map(|(_, place)| place), Some(1));
    }

    #[tokio::test]
    async fn connections_that_are_not_silent_leave_the_queue_even_behind_a_silent_one() {
        let mut silent = SilentConnections::default();
        let (_client, _first) = added(&mut silent, 0).await;
        for _ in 0..3 * SEARCH_FROM {
            let (_, connection) = added(&mut silent, 1).await;
            assert!(connection.take().is_some());
        }
        assert!(silent.queue.len() <= SEARCH_FROM);
    }
}
