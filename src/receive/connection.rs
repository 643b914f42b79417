//! One connection: HTTP over any stream, closed when its first request is late, drained when the process drains.

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

use futures_util::task::AtomicWaker;
use http::{Request, Response};
use http_body::Body;
use hyper::{body::Incoming, rt::Executor, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep_until},
};

use super::{
    accept::{Limits, Protocol},
    streams::{Streams, Tally},
    turns::Turns,
};
use crate::lifecycle::Tasks;

/// What a client may send on one stream before we read it. h2 keeps received bytes that were not read yet outside of
/// the byte budget, so windows are what a connection can make us hold unasked.
const STREAM_WINDOW: u32 = 1 << 20;
/// The same for all streams of a connection: a few large requests may be on their way at once.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Largest DATA frame that a client may send: large enough that a usual batch is one frame, and then it is not copied,
/// small enough for h2 to make room for on a frame's announcement. Go and Java clients send 16 KiB whatever is allowed.
const MAX_FRAME_SIZE: u32 = 256 << 10;
/// What HTTP/1 may buffer of headers that are not complete, in bytes: hyper's least value is 8 KiB.
const HTTP1_BUFFER: usize = 64 << 10;

/// Builds the connections of one listener.
pub(super) fn builder(limits: &Limits, tasks: &Tasks) -> Builder<Spawner> {
    let mut builder = Builder::new(Spawner(tasks.clone()));
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
    /// It is closed when no request has come by then.
    pub(super) first_request_by: Instant,
    /// Its client is told to go then.
    aged_at: Option<Instant>,
    /// What its requests then have.
    grace: Option<Duration>,
    /// It is cut then.
    cut_at: Option<Instant>,
    draining: bool,
}

impl Life {
    /// The life of a connection that begins now.
    pub(super) fn new(limits: &Limits) -> Self {
        let now = Instant::now();
        // Connections that came together are not to go together.
        let jittered = |age: Duration| age.mul_f64(0.9 + 0.2 * fastrand::f64());
        Self {
            first_request_by: now + limits.header_timeout,
            aged_at: limits.max_connection_age.and_then(|age| now.checked_add(jittered(age))),
            grace: limits.max_connection_age_grace,
            cut_at: None,
            draining: false,
        }
    }
}

/// Serves a connection to its end. It is closed when no request has come in time; it is told to finish when it is old or the
/// process drains, and dropped when that takes too long or the process stops: a peer that does not answer could keep it open
/// for ever.
pub(super) async fn serve<I, S, B>(
    builder: &Builder<Spawner>,
    stream: I,
    service: S,
    mut life: Life,
    tally: Tally,
    tasks: &Tasks,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let served = Arc::new(AtomicBool::new(false));
    let tally = Arc::new(tally);
    let service = Noticed { service, served: Arc::clone(&served), tally: Arc::clone(&tally) };
    let stream = Turns::new(Streams::new(stream, Arc::clone(&tally)));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut events = Seldom::new(wait(life, &served, tasks));
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
            Event::NoRequest => {
                tracing::debug!("connection closed: it sent no request in time");
                return;
            }
            Event::Stopped => return,
            Event::Cut => {
                tracing::debug!("connection cut: it was told to go and did not in time");
                return;
            }
            Event::Draining => life.draining = true,
            Event::Aged => {
                life.aged_at = None;
                life.cut_at = life.grace.and_then(|grace| Instant::now().checked_add(grace));
            }
        }
        connection.as_mut().graceful_shutdown();
        events = Seldom::new(wait(life, &served, tasks));
    }
}

/// What can happen to a connection from our side.
enum Event {
    Aged,
    Cut,
    Draining,
    NoRequest,
    Stopped,
}

async fn wait(life: Life, served: &AtomicBool, tasks: &Tasks) -> Event {
    let no_request = async {
        sleep_until(life.first_request_by).await;
        if served.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        () = tasks.stopped() => Event::Stopped,
        () = no_request => Event::NoRequest,
        () = at(life.cut_at) => Event::Cut,
        () = tasks.drained(), if !life.draining => Event::Draining,
        () = at(life.aged_at) => Event::Aged,
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// hyper's executor: streams are tasks that shutdown waits for.
#[derive(Clone)]
pub(super) struct Spawner(Tasks);

impl<F> Executor<F> for Spawner
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        drop(self.0.spawn(future));
    }
}

/// A service that notes that it was called.
struct Noticed<S> {
    service: S,
    served: Arc<AtomicBool>,
    tally: Arc<Tally>,
}

impl<S: Service<Request<Incoming>>> Service<Request<Incoming>> for Noticed<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, request: Request<Incoming>) -> S::Future {
        if !self.served.load(Ordering::Relaxed) {
            self.served.store(true, Ordering::Relaxed);
        }
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
