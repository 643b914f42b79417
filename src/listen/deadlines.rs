//! The deadlines of a connection and the events that change or end it from the server's side, whatever version of HTTP it
//! has.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    accept::Limits,
    idle::Activity,
    metrics::ListenerMetrics,
    progress::{DRAIN_GRACE, Progress},
};
use crate::{descriptors, lifecycle::Tasks};

/// How long a client may be silent inside of a frame. h2 holds a buffer of the frame's length meanwhile.
const FRAME_SILENCE: Duration = Duration::from_secs(10);
/// How long a connection stays after a stream of it was reset, because the client did not take the answer, while it takes
/// no other answer either.
const UNTAKEN_GRACE: Duration = Duration::from_secs(20);
/// The longest pause between checks whether there is a file descriptor for the connection that would replace an old
/// one. The pause is random, so that not all clients of old connections connect again as soon as one descriptor is
/// free.
const AGED_RETRY: Duration = Duration::from_secs(10);

/// The deadlines of one connection. They come from its listener's limits and from events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    /// The time at which it was accepted.
    pub(super) begun: Instant,
    /// The time limit of the handshake, and of each header block.
    pub(super) header_timeout: Duration,
    /// The time at which its client is told to finish because of the connection's age.
    pub(super) aged_at: Option<Instant>,
    /// How long its requests may take after that; `None` means no limit.
    pub(super) grace: Option<Duration>,
    /// The time at which it is closed.
    pub(super) cut_at: Option<Instant>,
    /// Set once the client was told to finish: the time of the next check whether the connection is idle, and the
    /// number of its requests that had ended when this was set.
    pub(super) idle: Option<(Instant, u64)>,
    /// The time at which the drain began.
    pub(super) draining: Option<Instant>,
    /// Whether a handshake or a header block did not finish in time.
    pub(super) is_stalled: bool,
    /// How long there may be no request in progress until its client is told to finish.
    pub(super) max_idle: Option<Duration>,
    /// How long its client may take to receive answers.
    pub(super) write_timeout: Option<Duration>,
}

impl Deadlines {
    /// Creates the deadlines of a connection that was accepted now.
    pub(super) fn new(limits: &Limits) -> Self {
        let now = Instant::now();
        // The jitter keeps connections that were opened together from ending together.
        let jittered = |age: Duration| age.mul_f64(0.9 + 0.2 * fastrand::f64());
        Self {
            begun: now,
            header_timeout: limits.header_timeout,
            aged_at: limits.max_connection_age.and_then(|age| now.checked_add(jittered(age))),
            grace: limits.max_connection_age_grace,
            cut_at: None,
            idle: None,
            draining: None,
            is_stalled: false,
            max_idle: limits.max_connection_idle,
            write_timeout: limits.write_timeout,
        }
    }

    /// The connection is old. Returns whether its client is to be told to finish. If there is no file descriptor for the
    /// connection that would replace it, the requests of the client would wait in the kernel's backlog: then it is asked
    /// again later.
    pub(super) fn is_due(&mut self) -> bool {
        if !descriptors::is_one_left() {
            self.aged_at = Instant::now().checked_add(AGED_RETRY.mul_f64(fastrand::f64()));
            return false;
        }
        self.aged_at = None;
        self.cut_at = self.grace.and_then(|grace| Instant::now().checked_add(grace));
        true
    }

    /// Closes the connection after `grace`, unless it is closed sooner.
    pub(super) fn cut_within(&mut self, grace: Duration) {
        let by = Instant::now() + grace;
        self.cut_at = Some(self.cut_at.map_or(by, |at| at.min(by)));
    }

    /// Resolves at the first of the fixed times, with its event. There is one timer for all, since each takes memory.
    fn next(&self) -> impl Future<Output = Event> + use<> {
        let cut = self.cut_at.map(|at| (at, Event::Cut));
        let idle = self.idle.map(|(at, ended)| (at, Event::Idle(ended)));
        let aged = self.aged_at.map(|at| (at, Event::Aged));
        // Of two at the same time the first one counts.
        let first = [cut, idle, aged].into_iter().flatten().min_by_key(|(at, _)| *at);
        async move {
            match first {
                Some((at, event)) => {
                    sleep_until(at).await;
                    event
                }
                None => std::future::pending().await,
            }
        }
    }

    /// Resolves when the handshake has taken too long: at its time limit, or [`DRAIN_GRACE`] after the drain began.
    pub(super) async fn handshake_timed_out(self, tasks: &Tasks) {
        let draining = async {
            tasks.drained().await;
            sleep(DRAIN_GRACE).await;
        };
        tokio::select! {
            () = sleep_until(self.begun + self.header_timeout) => {}
            () = draining => {}
        }
    }
}

/// An event that changes or ends a connection from the server's side.
pub(super) enum Event {
    Aged,
    Cut,
    Draining,
    /// The idle check is due. The value is the number of requests that had ended when it was set up.
    Idle(u64),
    /// Another connection needs its place.
    NoRoom,
    /// Its headers keep more memory than there is room for.
    Pinned,
    Stalled,
    Stopped,
    /// The client takes no answers.
    Untaken,
    /// An answer was not taken in time.
    Unread,
    /// There has been no request in progress for too long.
    Unused,
}

/// Logs why a connection is closed at once, and counts it.
pub(super) fn note_end(event: &Event, metrics: &ListenerMetrics) {
    match event {
        Event::Cut => tracing::debug!("connection closed: it was told to finish and did not do so in time"),
        Event::Unread => {
            metrics.closed_unread();
            tracing::debug!("connection closed: its client did not take an answer in time");
        }
        Event::Untaken => tracing::debug!("connection closed: its client takes no answers"),
        _ => {}
    }
}

/// Waits for the next event of a connection.
pub(super) async fn wait(deadlines: Deadlines, progress: &Progress, activity: &Activity, tasks: &Tasks) -> Event {
    tokio::select! {
        biased;
        () = tasks.stopped() => Event::Stopped,
        () = activity.closing() => Event::NoRoom,
        event = deadlines.next() => event,
        () = activity.unwritten_for(deadlines.write_timeout) => Event::Unread,
        () = progress.stalled(deadlines.header_timeout, deadlines.draining), if !deadlines.is_stalled => {
            Event::Stalled
        }
        () = progress.frame.is_older_than(FRAME_SILENCE), if !deadlines.is_stalled => Event::Stalled,
        () = progress.pinned.notified() => Event::Pinned,
        () = progress.untaken.lasts(UNTAKEN_GRACE) => Event::Untaken,
        () = tasks.drained(), if deadlines.draining.is_none() => Event::Draining,
        () = activity.idle_for(deadlines.max_idle) => Event::Unused,
    }
}

/// Polls a future only when that future was woken.
///
/// A connection is polled for every packet, and polling the futures that wait for a drain takes locks that all
/// connections share.
pub(super) struct WhenWoken<F> {
    future: Pin<Box<F>>,
    notice: Arc<Notice>,
    waker: Waker,
}

struct Notice {
    woken: AtomicBool,
    owner: AtomicWaker,
}

impl Wake for Notice {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.owner.wake();
    }
}

impl<F: Future> WhenWoken<F> {
    pub(super) fn new(future: F) -> Self {
        let notice = Arc::new(Notice { woken: AtomicBool::new(true), owner: AtomicWaker::new() });
        Self { future: Box::pin(future), waker: Waker::from(Arc::clone(&notice)), notice }
    }
}

impl<F: Future> Future for WhenWoken<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // Register before reading the flag, so that a wake between the two is not lost.
        self.notice.owner.register(context.waker());
        if !self.notice.woken.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        let Self { future, waker, .. } = &mut *self;
        future.as_mut().poll(&mut Context::from_waker(waker))
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::pin, sync::atomic::AtomicUsize};

    use super::*;

    #[tokio::test]
    async fn a_future_is_polled_only_when_it_was_woken() {
        let polls = AtomicUsize::new(0);
        let (sender, receiver) = tokio::sync::oneshot::channel::<u8>();
        let mut receiver = pin!(receiver);
        let mut gated = WhenWoken::new(poll_fn(|context| {
            polls.fetch_add(1, Ordering::Relaxed);
            receiver.as_mut().poll(context)
        }));
        for _ in 0..10 {
            let polled = poll_fn(|context| Poll::Ready(Pin::new(&mut gated).poll(context))).await;
            assert!(polled.is_pending());
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        sender.send(7).unwrap();
        assert_eq!(gated.await, Ok(7));
        assert_eq!(polls.load(Ordering::Relaxed), 2);
    }
}
