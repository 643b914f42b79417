//! Serves HTTP on one stream. When the connection is old, when a handshake or header block stalls, or when the process
//! drains, it sends GOAWAY, which tells the client to finish. A connection that does not finish in time is closed.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep, sleep_until},
};

use super::{
    accept::{Limits, Protocol},
    admission::Admission,
    idle::Activity,
    large_frames::LargeFrames,
    layers::Layered,
    metrics::ListenerMetrics,
    places::WhenFull,
    progress::{DRAIN_GRACE, Progress},
    requests::{CountedService, Requests, Spawner},
    service::HttpService,
    streams::{Streams, Tally},
    tracked::tracked,
    yielding::Yielding,
};
use crate::{descriptors, lifecycle::Tasks};

/// The largest DATA frame that a client may send. A usual batch fits in one frame, which is then not copied: with frames of
/// 16 KiB a span costs 1.4 to 1.5 times as much at 512 spans a request, with 64 KiB 1.15 to 1.2 times. While memory is short,
/// [`LargeFrames`] cuts them. Go and Java clients send frames of 16 KiB in any case.
const MAX_FRAME_SIZE: u32 = 256 << 10;
/// How long a client may be silent inside of a frame. h2 holds a buffer of the frame's length meanwhile.
const FRAME_SILENCE: Duration = Duration::from_secs(10);
/// How long a client that was told to finish, because its headers keep too much memory, has for that.
const PINNED_GRACE: Duration = Duration::from_secs(10);
/// How long a connection stays after a stream of it was reset, because the client did not take the answer, while it takes
/// no other answer either.
const UNTAKEN_GRACE: Duration = Duration::from_secs(20);
/// How long a stalled client has to receive GOAWAY and the answers that are ready.
const STALLED_GRACE: Duration = Duration::from_secs(1);
/// How long an idle client has to finish once it was told to. h2 sends a PING with GOAWAY and waits for the answer,
/// since requests may still be in transit; a hung client never answers. grpc-go's servers wait about as long.
const IDLE_GRACE: Duration = Duration::from_secs(5);
/// The longest pause between checks whether there is a file descriptor for the connection that would replace an old
/// one. The pause is random, so that not all clients of old connections connect again as soon as one descriptor is
/// free.
const AGED_RETRY: Duration = Duration::from_secs(10);
/// How many bytes of incomplete headers HTTP/1 may buffer. hyper's minimum is 8 KiB.
const HTTP1_BUFFER: usize = 64 << 10;

/// The bytes that an HTTP/2 client may send before the service reads them. h2 keeps them outside of the byte budget
/// until then, so the windows bound what a connection can make the process hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// The bytes on one stream.
    pub stream: u32,
    /// The bytes on all streams of a connection together.
    pub connection: u32,
}

impl Windows {
    /// For large requests, a few of which may be in transit at once.
    pub const LARGE: Self = Self { stream: 1 << 20, connection: 4 << 20 };
    /// For questions of a few hundred bytes: HTTP/2's own defaults.
    pub const SMALL: Self = Self { stream: (64 << 10) - 1, connection: (64 << 10) - 1 };
}

/// Returns the hyper builder of one connection.
fn builder(limits: &Limits, spawner: Spawner) -> Builder<Spawner> {
    let mut builder = Builder::new(spawner);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).max_buf_size(HTTP1_BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .adaptive_window(false)
        .initial_stream_window_size(limits.windows.stream)
        .initial_connection_window_size(limits.windows.connection)
        .max_frame_size(MAX_FRAME_SIZE)
        .max_concurrent_streams(limits.max_concurrent_streams)
        .max_header_list_size(limits.max_header_list_size);
    match limits.protocol {
        Protocol::Http2 { .. } => builder.http2_only(),
        Protocol::Any => builder,
    }
}

/// The deadlines of one connection. They come from its listener's limits and from events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    /// The time at which it was accepted.
    begun: Instant,
    /// The time limit of the handshake, and of each header block.
    header_timeout: Duration,
    /// The time at which its client is told to finish because of the connection's age.
    aged_at: Option<Instant>,
    /// How long its requests may take after that; `None` means no limit.
    grace: Option<Duration>,
    /// The time at which it is closed.
    cut_at: Option<Instant>,
    /// Set once the client was told to finish: the time of the next check whether the connection is idle, and the
    /// number of its requests that had ended when this was set.
    idle: Option<(Instant, u64)>,
    /// The time at which the drain began.
    draining: Option<Instant>,
    /// Whether a handshake or a header block did not finish in time.
    is_stalled: bool,
    /// How long there may be no request in progress until its client is told to finish.
    max_idle: Option<Duration>,
    /// How long its client may take to receive answers.
    write_timeout: Option<Duration>,
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
}

/// Serves a connection to its end. The client is told to finish (GOAWAY) when the connection is old, when it has been
/// idle for too long, when the process drains, or when a handshake or header block does not end in time. If the connection
/// then does not end in time, or if the process stops, the connection is dropped: otherwise a client that does not answer
/// could keep it open for ever. It is also dropped when its client does not take an answer, and when it has to make room
/// for another one.
pub(super) async fn serve<I, S>(
    limits: &Limits,
    stream: I,
    service: S,
    mut deadlines: Deadlines,
    activity: &Arc<Activity>,
    metrics: &ListenerMetrics,
    tasks: &Tasks,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService,
{
    let admission = Admission::new(limits.account.clone(), limits.max_header_list_size);
    let tally = Tally::new(metrics.refused_streams());
    let requests = Arc::new(Requests::new(tally, admission, Progress::new(deadlines.begun)));
    let Requests { tally, admission, progress, .. } = &*requests;
    let service = tracked(service, Arc::clone(activity), limits.write_timeout.is_some());
    let service = CountedService { service, requests: Arc::clone(&requests) };
    let streams = Streams::new(Arc::clone(tally), Arc::clone(admission), Arc::clone(progress));
    let stream = Layered::new(stream, LargeFrames::new(limits.account.clone()));
    let stream = Layered::new(Layered::new(stream, streams), Yielding::new(Arc::clone(admission)));
    let builder = builder(limits, Spawner { tasks: tasks.clone(), requests: Arc::clone(&requests) });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut events = WhenWoken::new(wait(deadlines, progress, activity, tasks));
    loop {
        // Poll the connection first, so that bytes which have arrived (at most one turn of them) are served before the
        // drain is checked.
        let event = tokio::select! {
            biased;
            end = poll_fn(|context| {
                let polled = connection.as_mut().poll(context);
                requests.settle();
                polled
            }) => {
                tally.close();
                if let Err(error) = end {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            event = &mut events => event,
        };
        match event {
            Event::Stalled => {
                tracing::debug!("connection told to finish: a handshake, header block or frame did not end in time");
                deadlines.is_stalled = true;
                deadlines.cut_within(STALLED_GRACE);
            }
            Event::Pinned => {
                tracing::debug!("connection told to finish: its headers keep buffers that there is no room for");
                deadlines.cut_within(PINNED_GRACE);
            }
            Event::Stopped | Event::Untaken | Event::Unread | Event::Cut => return note_end(&event, metrics),
            // A request has arrived since the connection was chosen.
            Event::NoRoom if limits.when_full == WhenFull::CloseIdle && activity.idle_since().is_none() => {}
            Event::NoRoom => {
                tracing::debug!("connection closed: another one needs its place");
                connection.as_mut().graceful_shutdown();
                // GOAWAY is written if the socket has room for it.
                let is_over = poll_fn(|context| Poll::Ready(connection.as_mut().poll(context).is_ready())).await;
                // A request may have been read by that: it is served.
                if is_over || limits.when_full == WhenFull::CloseOldest || activity.idle_since().is_some() {
                    return;
                }
            }
            Event::Idle(ended) if tally.is_idle_since(ended) => {
                tracing::debug!(
                    "connection closed: it was told to finish, has no request in flight and did not end in time"
                );
                return;
            }
            // It had requests meanwhile. The last one may have ended just now, and its answer still has to reach the
            // client, so check again later.
            Event::Idle(_) => deadlines.idle = None,
            Event::Unused => {
                metrics.closed_idle();
                deadlines.max_idle = None;
            }
            Event::Draining => deadlines.draining = Some(Instant::now()),
            // The client would connect again, but there is no file descriptor for the new connection, so its requests
            // would wait in the kernel's backlog.
            Event::Aged if !descriptors::is_one_left() => {
                deadlines.aged_at = Instant::now().checked_add(AGED_RETRY.mul_f64(fastrand::f64()));
                events = WhenWoken::new(wait(deadlines, progress, activity, tasks));
                continue;
            }
            Event::Aged => {
                deadlines.aged_at = None;
                deadlines.cut_at = deadlines.grace.and_then(|grace| Instant::now().checked_add(grace));
            }
        }
        connection.as_mut().graceful_shutdown();
        deadlines.idle = deadlines.idle.or_else(|| Some((Instant::now() + IDLE_GRACE, tally.ended())));
        events = WhenWoken::new(wait(deadlines, progress, activity, tasks));
    }
}

/// Logs why a connection is closed at once, and counts it.
fn note_end(event: &Event, metrics: &ListenerMetrics) {
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

impl Deadlines {
    /// Closes the connection after `grace`, unless it is closed sooner.
    fn cut_within(&mut self, grace: Duration) {
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
enum Event {
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

async fn wait(deadlines: Deadlines, progress: &Progress, activity: &Activity, tasks: &Tasks) -> Event {
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
struct WhenWoken<F> {
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
    fn new(future: F) -> Self {
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
    use std::sync::atomic::AtomicUsize;

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
