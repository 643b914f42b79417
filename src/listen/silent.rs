//! Connections on which no byte has arrived yet, oldest first.
//!
//! A client sends its first bytes, an HTTP/2 preface or a TLS hello, as soon as it is connected. When no descriptor or
//! place is left for a new connection, the oldest silent one is closed to make room, since the new client may have
//! requests to send. A client that sends a single byte is no longer silent; the handshake's timeout bounds that.

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
const PATIENCE: Duration = Duration::from_millis(50);

/// The length at which the queue is searched for entries that are over, at least.
const SEARCHED_FROM: usize = 64;

/// The silent connections of a listener. `P` is a connection's place among those that may be open.
#[derive(Debug)]
pub(super) struct SilentConnections<P> {
    queue: VecDeque<(Instant, SilentConnection<P>)>,
    /// The queue is searched at this length for connections that have spoken or ended.
    search_at: usize,
}

/// A connection that is silent so far. Its task and the queue share it; whoever takes what it holds decides its fate.
#[derive(Debug)]
pub(super) struct SilentConnection<P>(Arc<Shared<P>>);

#[derive(Debug)]
struct Shared<P> {
    held: Mutex<Option<(TcpStream, P)>>,
    closed: Notify,
}

/// The result of the attempt to make room.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Room<P> {
    /// A connection was closed, and this place is free.
    Made(P),
    /// The oldest silent connection can be closed after this time.
    After(Duration),
    /// No connection is silent.
    None,
}

impl<P> Room<P> {
    /// The place that was made free, if one was.
    pub(super) fn place(self) -> Option<P> {
        if let Self::Made(place) = self { Some(place) } else { None }
    }
}

impl<P> Default for SilentConnections<P> {
    fn default() -> Self {
        Self { queue: VecDeque::new(), search_at: SEARCHED_FROM }
    }
}

impl<P> SilentConnections<P> {
    /// Adds a new connection.
    pub(super) fn add(&mut self, stream: TcpStream, place: P) -> SilentConnection<P> {
        if self.queue.len() >= self.search_at {
            self.queue.retain(|(_, connection)| connection.held().is_some());
            self.search_at = (2 * self.queue.len()).max(SEARCHED_FROM);
        }
        let connection =
            SilentConnection(Arc::new(Shared { held: Mutex::new(Some((stream, place))), closed: Notify::new() }));
        self.queue.push_back((Instant::now(), connection.clone()));
        connection
    }

    /// Closes the oldest connection that is still silent, if it has been silent for [`PATIENCE`].
    pub(super) fn make_room(&mut self) -> Room<P> {
        while let Some((since, oldest)) = self.queue.front() {
            let left = PATIENCE.saturating_sub(since.elapsed());
            if !left.is_zero() && oldest.held().is_some() {
                return Room::After(left);
            }
            if let Some(place) = oldest.close() {
                self.queue.pop_front();
                return Room::Made(place);
            }
            // It has spoken or ended.
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
    /// Waits until a byte or the end has arrived, which stays in the socket, and gives the connection back; `None` when it
    /// was closed to make room.
    pub(super) async fn speaks(&self) -> Option<(TcpStream, P)> {
        tokio::select! {
            biased;
            spoken = poll_fn(|context| self.poll_speaks(context)) => spoken,
            () = self.0.closed.notified() => None,
        }
    }

    fn poll_speaks(&self, context: &mut Context<'_>) -> Poll<Option<(TcpStream, P)>> {
        let mut held = self.held();
        let Some((stream, _)) = held.as_ref() else { return Poll::Ready(None) };
        let mut first = [0];
        stream.poll_peek(context, &mut ReadBuf::new(&mut first)).map(|_| held.take())
    }

    /// Gives the connection back as it is, silent or not; `None` when it was closed to make room.
    pub(super) fn take(&self) -> Option<(TcpStream, P)> {
        self.held().take()
    }

    /// Closes the connection if it is silent. The system is asked: a byte may have arrived that its task has not seen.
    fn close(&self) -> Option<P> {
        let mut held = self.held();
        let (stream, _) = held.as_ref()?;
        let peeked = SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]);
        if !peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            return None;
        }
        let (_, place) = held.take()?;
        self.0.closed.notify_one();
        Some(place)
    }

    fn held(&self) -> MutexGuard<'_, Option<(TcpStream, P)>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    /// Opens a connection: the client's end and the server's.
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
    async fn patience_is_over() {
        tokio::time::sleep(PATIENCE).await;
    }

    #[tokio::test]
    async fn the_oldest_silent_connection_is_closed_and_its_place_is_free() {
        let mut silent = SilentConnections::default();
        let (mut first, oldest) = added(&mut silent, 1).await;
        let (_second, youngest) = added(&mut silent, 2).await;
        assert!(matches!(silent.make_room(), Room::After(left) if left <= PATIENCE));
        patience_is_over().await;
        assert_eq!(silent.make_room(), Room::Made(1));
        assert!(oldest.speaks().await.is_none());
        let mut buffer = [0];
        let read = tokio::io::AsyncReadExt::read(&mut first, &mut buffer).await;
        assert_eq!(read.unwrap(), 0, "the client sees the end");
        assert_eq!(silent.make_room(), Room::Made(2));
        assert!(youngest.speaks().await.is_none());
        assert_eq!(silent.make_room(), Room::None);
    }

    #[tokio::test]
    async fn a_connection_whose_byte_its_task_has_not_seen_is_not_closed() {
        let mut silent = SilentConnections::default();
        let (mut client, spoken) = added(&mut silent, 1).await;
        let (_other, _silent) = added(&mut silent, 2).await;
        client.write_all(b"P").await.unwrap();
        patience_is_over().await;
        assert_eq!(silent.make_room(), Room::Made(2));
        assert_eq!(spoken.speaks().await.map(|(_, place)| place), Some(1));
    }

    #[tokio::test]
    async fn connections_that_have_spoken_are_forgotten_even_behind_a_silent_one() {
        let mut silent = SilentConnections::default();
        let (_client, _first) = added(&mut silent, 0).await;
        for _ in 0..3 * SEARCHED_FROM {
            let (_, connection) = added(&mut silent, 1).await;
            assert!(connection.take().is_some());
        }
        assert!(silent.queue.len() <= SEARCHED_FROM);
    }
}
