//! Which connections have a request in progress, since when the others have none, and which one makes room for a new one.
//!
//! A request is in progress from its headers until its answer's body has ended. Where a listener limits the time for
//! taking an answer, it is in progress until the answer's last byte was written to the socket (see [`super::tracked`]).

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, binary_heap::PeekMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// A connection that has something in progress is looked at again after this part of a time limit, so a limit is exceeded
/// by that part at most. To be notified instead would cost something for every request.
const PART: u32 = 8;

/// The length at which the queue is searched for connections that have ended, at least.
const SEARCHED_FROM: usize = 64;

/// What a connection's client has in progress.
#[derive(Debug)]
pub(super) struct Activity {
    state: Mutex<State>,
    closing: Notify,
}

#[derive(Debug)]
struct State {
    requests: usize,
    /// The pieces of answers that were handed to HTTP and are not written yet.
    unwritten: usize,
    /// The time at which the last request ended, or at which the first of those in progress began.
    changed: Instant,
    /// The time since which there has always been an unwritten piece.
    unwritten_since: Instant,
}

/// A request in progress, until it is dropped.
#[derive(Debug)]
pub(super) struct InProgress(Arc<Activity>);

/// A piece of an answer that is not written yet, until it is dropped.
#[derive(Debug)]
pub(super) struct Unwritten(Arc<Activity>);

/// All connections of a listener. `P` is a connection's place among those that may be open.
#[derive(Debug)]
pub(super) struct Connections<P> {
    /// The connection that has been idle for the longest time comes first, as far as is known: the time of an entry is
    /// only updated when it is first.
    queue: BinaryHeap<Reverse<Entry<P>>>,
    /// The number of connections so far.
    number: u64,
    search_at: usize,
}

#[derive(Debug)]
struct Entry<P> {
    /// It has not been idle since before this time.
    idle_since: Instant,
    number: u64,
    connection: Weak<Connection<P>>,
}

/// A connection that can be told to close at once, to make room for another one.
#[derive(Debug)]
pub(super) struct Connection<P> {
    /// Its place; `None` before it has one, and after it was taken away.
    place: Mutex<Option<P>>,
    pub(super) activity: Arc<Activity>,
}

// === impl Activity ===

impl Activity {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let state = State { requests: 0, unwritten: 0, changed: now, unwritten_since: now };
        Self { state: Mutex::new(state), closing: Notify::new() }
    }

    /// Counts a request until the returned value is dropped.
    pub(super) fn request(self: &Arc<Self>) -> InProgress {
        let mut state = self.state();
        if state.is_idle() {
            state.changed = Instant::now();
        }
        state.requests += 1;
        InProgress(Arc::clone(self))
    }

    /// Counts a piece of an answer until the returned value is dropped.
    pub(super) fn piece(self: &Arc<Self>) -> Unwritten {
        let mut state = self.state();
        if state.unwritten == 0 {
            state.unwritten_since = Instant::now();
        }
        state.unwritten += 1;
        Unwritten(Arc::clone(self))
    }

    /// Returns since when no request has been in progress; `None` if one is.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        state.is_idle().then_some(state.changed)
    }

    /// Resolves when no request has been in progress for `limit`; never without a limit.
    pub(super) async fn idle_for(&self, limit: Option<Duration>) {
        let idle_since = |state: &State| state.is_idle().then_some(state.changed);
        self.lasts(limit, idle_since).await;
    }

    /// Resolves when there has always been an unwritten piece for `limit`; never without a limit.
    pub(super) async fn unwritten_for(&self, limit: Option<Duration>) {
        let unwritten_since = |state: &State| (state.unwritten > 0).then_some(state.unwritten_since);
        self.lasts(limit, unwritten_since).await;
    }

    /// Resolves when the connection has to close to make room for another one.
    pub(super) async fn closing(&self) {
        self.closing.notified().await;
    }

    /// Resolves when a condition has lasted for `limit`. `since` returns since when it is met.
    async fn lasts(&self, limit: Option<Duration>, since: impl Fn(&State) -> Option<Instant>) {
        let Some(limit) = limit else { return std::future::pending().await };
        loop {
            let (met_since, now) = (since(&self.state()), Instant::now());
            let again = match met_since.map(|met_since| met_since.checked_add(limit)) {
                Some(Some(over)) if over <= now => return,
                Some(Some(over)) => over,
                Some(None) => return std::future::pending().await,
                None => now.checked_add(limit / PART).unwrap_or(now + limit),
            };
            sleep_until(again).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The guarded value is always consistent, even if the mutex is poisoned.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.requests == 0 && self.unwritten == 0
    }

    fn ends(&mut self) {
        if self.is_idle() {
            self.changed = Instant::now();
        }
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.requests -= 1;
        state.ends();
    }
}

impl Drop for Unwritten {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.unwritten -= 1;
        state.ends();
    }
}

// === impl Connections ===

impl<P> Default for Connections<P> {
    fn default() -> Self {
        Self { queue: BinaryHeap::new(), number: 0, search_at: SEARCHED_FROM }
    }
}

impl<P> Connections<P> {
    /// Adds a new connection, which is idle at first.
    pub(super) fn add(&mut self) -> Arc<Connection<P>> {
        if self.queue.len() >= self.search_at {
            self.queue.retain(|Reverse(entry)| entry.connection.strong_count() > 0);
            self.search_at = (2 * self.queue.len()).max(SEARCHED_FROM);
        }
        let connection = Arc::new(Connection { place: Mutex::new(None), activity: Arc::new(Activity::new()) });
        self.number += 1;
        let (number, idle_since) = (self.number, Instant::now());
        self.queue.push(Reverse(Entry { idle_since, number, connection: Arc::downgrade(&connection) }));
        connection
    }

    /// Tells the connection to close that has been idle for the longest time, if it has been idle for `patience`, which is
    /// not zero. Returns its place.
    pub(super) fn close_idle(&mut self, patience: Duration) -> Option<P> {
        let now = Instant::now();
        loop {
            let mut first = self.queue.peek_mut()?;
            let Reverse(entry) = &mut *first;
            if now.saturating_duration_since(entry.idle_since) < patience {
                return None;
            }
            let Some(connection) = entry.connection.upgrade() else {
                PeekMut::pop(first);
                continue;
            };
            match connection.activity.idle_since() {
                // It has been busy since its time was last updated.
                Some(idle_since) if idle_since > entry.idle_since => entry.idle_since = idle_since,
                Some(_) => {
                    if let Some(place) = connection.close() {
                        PeekMut::pop(first);
                        return Some(place);
                    }
                    // It is silent so far, or told to close already.
                    entry.idle_since = now;
                }
                None => entry.idle_since = now,
            }
        }
    }

    /// Tells the connection to close whose requests have been in progress for the longest time. Returns its place. This
    /// looks at all connections.
    pub(super) fn close_busy(&mut self) -> Option<P> {
        let connections = self.queue.iter().filter_map(|Reverse(entry)| entry.connection.upgrade());
        let with_place = connections.filter(|connection| connection.place().is_some());
        let oldest = with_place.min_by_key(|connection| connection.activity.state().changed)?;
        oldest.close()
    }
}

impl<P> Connection<P> {
    /// Gives the connection its place.
    pub(super) fn keep(&self, place: P) {
        *self.place() = Some(place);
    }

    /// Tells the connection to close, and takes its place away.
    fn close(&self) -> Option<P> {
        let place = self.place().take()?;
        self.activity.closing.notify_one();
        Some(place)
    }

    fn place(&self) -> MutexGuard<'_, Option<P>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Entry ===

impl<P> Entry<P> {
    fn key(&self) -> (Instant, u64) {
        (self.idle_since, self.number)
    }
}

impl<P> PartialEq for Entry<P> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<P> Eq for Entry<P> {}

impl<P> PartialOrd for Entry<P> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<P> Ord for Entry<P> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

#[cfg(test)]
mod tests;
