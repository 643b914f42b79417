//! One connection: HTTP over any stream, told to go when it is old, late or the process drains, and cut if it does not.

use std::{
    convert::Infallible,
    error::Error,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures_util::{FutureExt, task::AtomicWaker};
use http::{Request, Response};
use http_body::Body;
use hyper::{body::Incoming, rt::Executor, service::Service};
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
    layers::Layered,
    progress::{LEFT_AT_DRAIN, Progress},
    streams::{Streams, Tally},
    turns::Turns,
};
use crate::{descriptors, lifecycle::Tasks};

/// What a client may send on one stream before we read it. h2 keeps received bytes that were not read yet outside of
/// the byte budget, so windows are what a connection can make us hold unasked.
const STREAM_WINDOW: u32 = 1 << 20;
/// The same for all streams of a connection: a few large requests may be on their way at once.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Largest DATA frame that a client may send: large enough that a usual batch is one frame, and then it is not copied,
/// small enough for h2 to make room for on a frame's announcement. Go and Java clients send 16 KiB whatever is allowed.
const MAX_FRAME_SIZE: u32 = 256 << 10;
/// What is left to a client that is late, for GOAWAY and for answers that are ready.
const LATE_GRACE: Duration = Duration::from_secs(1);
/// What is left to a client that was told to go and has no request in hand. HTTP/2 has it answer a PING first, because requests
/// may still be on their way, and one that stands still never does; grpc-go's servers wait about as long for that answer.
const IDLE_GRACE: Duration = Duration::from_secs(5);
/// When to look again whether a client that is told to go could connect anew.
const NO_ROOM_AGAIN: Duration = Duration::from_secs(5);
/// What HTTP/1 may buffer of headers that are not complete, in bytes: hyper's least value is 8 KiB.
const HTTP1_BUFFER: usize = 64 << 10;

/// Builds one connection.
fn builder(limits: &Limits, spawner: Spawner) -> Builder<Spawner> {
    let mut builder = Builder::new(spawner);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).max_buf_size(HTTP1_BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .adaptive_window(false)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME_SIZE)
        .max_concurrent_streams(limits.max_concurrent_streams)
        .max_header_list_size(limits.max_header_list_size);
    match limits.protocol {
        Protocol::Http2 => builder.http2_only(),
        Protocol::Any => builder,
    }
}

/// How long a connection lives at most, by its listener's limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    /// When it was accepted.
    begun: Instant,
    /// What the handshake may take, and each header block.
    header_timeout: Duration,
    /// Its client is told to go then.
    aged_at: Option<Instant>,
    /// What its requests then have.
    grace: Option<Duration>,
    /// It is cut then.
    cut_at: Option<Instant>,
    /// Once it is told to go: when to look whether it idles, and how many of its requests had ended before.
    idle: Option<(Instant, u64)>,
    /// When the drain began.
    draining: Option<Instant>,
    /// What it owes did not come in time.
    is_late: bool,
}

impl Life {
    /// The life of a connection that begins now.
    pub(super) fn new(limits: &Limits) -> Self {
        let now = Instant::now();
        // Connections that came together are not to go together.
        let jittered = |age: Duration| age.mul_f64(0.9 + 0.2 * fastrand::f64());
        Self {
            begun: now,
            header_timeout: limits.header_timeout,
            aged_at: limits.max_connection_age.and_then(|age| now.checked_add(jittered(age))),
            grace: limits.max_connection_age_grace,
            cut_at: None,
            idle: None,
            draining: None,
            is_late: false,
        }
    }
}

/// Serves a connection to its end. It is told to finish (GOAWAY) when it is old, when the process drains, or when the handshake
/// or a header block was begun and does not end, and dropped when that takes too long or the process stops: a peer that does
/// not answer could keep it open for ever. One that is idle is left alone until it is told to finish.
pub(super) async fn serve<I, S, B>(limits: &Limits, stream: I, service: S, mut life: Life, tally: Tally, tasks: &Tasks)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let (tally, progress) = (Arc::new(tally), Arc::new(Progress::new(life.begun)));
    let service = Noticed { service, tally: Arc::clone(&tally) };
    let streams = Streams::new(Arc::clone(&tally), Arc::clone(&progress));
    let stream = Layered::new(Layered::new(stream, streams), Turns::default());
    let builder = builder(limits, Spawner { tasks: tasks.clone(), tally: Arc::clone(&tally) });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut events = Seldom::new(wait(life, &progress, tasks));
    loop {
        // The connection goes first: what has arrived, a turn of it, is served before the drain is looked at.
        let event = tokio::select! {
            biased;
            end = poll_fn(|context| {
                let polled = connection.as_mut().poll(context);
                tally.settle();
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
            Event::Late => {
                tracing::debug!(
                    "connection told to go: the handshake or a header block was begun and did not end in time"
                );
                life.is_late = true;
                let by = Instant::now() + LATE_GRACE;
                life.cut_at = Some(life.cut_at.map_or(by, |at| at.min(by)));
            }
            Event::Stopped => return,
            Event::Cut => {
                tracing::debug!("connection cut: it was told to go and did not in time");
                return;
            }
            Event::Idle(ended) if tally.is_idle_since(ended) => {
                tracing::debug!("connection cut: it was told to go, has no request in hand and did not go in time");
                return;
            }
            // It had some meanwhile, the last of them maybe until now, and their answers are to reach the client.
            Event::Idle(_) => life.idle = None,
            Event::Draining => life.draining = Some(Instant::now()),
            // Its client would connect anew and find nobody who accepts: requests would wait in the kernel until they are late.
            Event::Aged if !descriptors::is_one_left() => {
                life.aged_at = Instant::now().checked_add(NO_ROOM_AGAIN);
                events = Seldom::new(wait(life, &progress, tasks));
                continue;
            }
            Event::Aged => {
                life.aged_at = None;
                life.cut_at = life.grace.and_then(|grace| Instant::now().checked_add(grace));
            }
        }
        connection.as_mut().graceful_shutdown();
        life.idle = life.idle.or_else(|| Some((Instant::now() + IDLE_GRACE, tally.ended())));
        events = Seldom::new(wait(life, &progress, tasks));
    }
}

impl Life {
    /// Resolves when the handshake has taken too long: the limit is past, or a drain has left it a while.
    pub(super) async fn handshake_is_late(self, tasks: &Tasks) {
        let draining = async {
            tasks.drained().await;
            sleep(LEFT_AT_DRAIN).await;
        };
        tokio::select! {
            () = sleep_until(self.begun + self.header_timeout) => {}
            () = draining => {}
        }
    }
}

/// What can happen to a connection from our side.
enum Event {
    Aged,
    Cut,
    Draining,
    /// It was told to go a while ago, when so many of its requests had ended.
    Idle(u64),
    Late,
    Stopped,
}

async fn wait(life: Life, progress: &Progress, tasks: &Tasks) -> Event {
    tokio::select! {
        biased;
        () = tasks.stopped() => Event::Stopped,
        () = at(life.cut_at) => Event::Cut,
        ended = idle(life.idle) => Event::Idle(ended),
        () = progress.late(life.header_timeout, life.draining), if !life.is_late => Event::Late,
        () = tasks.drained(), if life.draining.is_none() => Event::Draining,
        () = at(life.aged_at) => Event::Aged,
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn idle(idle: Option<(Instant, u64)>) -> u64 {
    at(idle.map(|(moment, _)| moment)).await;
    idle.map_or(0, |(_, ended)| ended)
}

/// hyper's executor of one connection: streams are tasks that shutdown waits for.
#[derive(Clone)]
struct Spawner {
    tasks: Tasks,
    tally: Arc<Tally>,
}

/// Tells the end of a stream's task, also when it is dropped before.
struct Ends(Arc<Tally>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.ends();
    }
}

impl<F> Executor<F> for Spawner
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        let ends = Ends(Arc::clone(&self.tally));
        drop(self.tasks.spawn(future.map(move |output| {
            drop(ends);
            output
        })));
    }
}

/// A service that notes that it was called.
struct Noticed<S> {
    service: S,
    tally: Arc<Tally>,
}

impl<S: Service<Request<Incoming>>> Service<Request<Incoming>> for Noticed<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, request: Request<Incoming>) -> S::Future {
        self.tally.serves();
        self.service.call(request)
    }
}

/// Polls a future only when that future was woken.
///
/// A connection is polled for every packet, and polling what waits for a drain takes locks that all connections share.
struct Seldom<F> {
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

impl<F: Future> Seldom<F> {
    fn new(future: F) -> Self {
        let notice = Arc::new(Notice { woken: AtomicBool::new(true), owner: AtomicWaker::new() });
        Self { future: Box::pin(future), waker: Waker::from(Arc::clone(&notice)), notice }
    }
}

impl<F: Future> Future for Seldom<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // Registered before the flag is read, so that a wake between the two is not lost.
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
    async fn a_seldom_future_is_polled_only_when_it_was_woken() {
        let polls = AtomicUsize::new(0);
        let (sender, receiver) = tokio::sync::oneshot::channel::<u8>();
        let mut receiver = pin!(receiver);
        let mut seldom = Seldom::new(poll_fn(|context| {
            polls.fetch_add(1, Ordering::Relaxed);
            receiver.as_mut().poll(context)
        }));
        for _ in 0..10 {
            let polled = poll_fn(|context| Poll::Ready(Pin::new(&mut seldom).poll(context))).await;
            assert!(polled.is_pending());
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        sender.send(7).unwrap();
        assert_eq!(seldom.await, Ok(7));
        assert_eq!(polls.load(Ordering::Relaxed), 2);
    }
}
