//! Serves HTTP/2 on one stream. When the connection is old, when a handshake or header block stalls, or when the process
//! drains, it sends GOAWAY, which tells the client to finish. A connection that does not finish in time is closed.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Duration};

use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

use super::{
    accept::Limits,
    admission::Admission,
    deadlines::{Deadlines, Event, WhenWoken, note_end, wait},
    idle::Activity,
    large_frames::LargeFrames,
    layers::Layered,
    metrics::ListenerMetrics,
    places::WhenFull,
    progress::Progress,
    requests::{CountedService, Requests, Spawner},
    service::HttpService,
    streams::{Streams, Tally},
    tracked::tracked,
    yielding::Yielding,
};
use crate::lifecycle::Tasks;

/// The largest DATA frame that a client may send. A usual batch fits in one frame, which is then not copied: with frames of
/// 16 KiB a span costs 1.4 to 1.5 times as much at 512 spans a request, with 64 KiB 1.15 to 1.2 times. While memory is short,
/// [`LargeFrames`] cuts them. Go and Java clients send frames of 16 KiB in any case.
const MAX_FRAME_SIZE: u32 = 256 << 10;
/// How long a client that was told to finish, because its headers keep too much memory, has for that.
const PINNED_GRACE: Duration = Duration::from_secs(10);
/// How long a stalled client has to receive GOAWAY and the answers that are ready.
const STALLED_GRACE: Duration = Duration::from_secs(1);
/// How long an idle client has to finish once it was told to. h2 sends a PING with GOAWAY and waits for the answer,
/// since requests may still be in transit; a hung client never answers. grpc-go's servers wait about as long.
const IDLE_GRACE: Duration = Duration::from_secs(5);

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
    builder.http2_only()
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
            Event::Aged => {
                if !deadlines.is_due() {
                    events = WhenWoken::new(wait(deadlines, progress, activity, tasks));
                    continue;
                }
            }
        }
        connection.as_mut().graceful_shutdown();
        deadlines.idle = deadlines.idle.or_else(|| Some((Instant::now() + IDLE_GRACE, tally.ended())));
        events = WhenWoken::new(wait(deadlines, progress, activity, tasks));
    }
}
