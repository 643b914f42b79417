//! Serves HTTP/1 on one stream.
//!
//! HTTP/1 has no GOAWAY. A client is told to finish by `connection: close` in its next answer; a connection on which no
//! answer is due is closed a moment later.
//!
//! A connection has one request at a time, which takes the same memory from the account as a stream of HTTP/2. What
//! hyper buffers beyond its smallest buffer is taken too: [`ClientStream`] lets the buffer grow only if there is room for
//! it, and ends a connection whose headers are long while there is none.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::TryFutureExt;
use http::{HeaderValue, Request, Response, header::CONNECTION};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    body::Incoming,
    server::conn::http1::Builder,
    service::{Service, service_fn},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    accept::Limits,
    admission::{self, Admission, NoRoom, Stream},
    deadlines::{Deadlines, Event, WhenWoken, note_end, wait},
    half_close::End,
    idle::Activity,
    layers::Backlog,
    linger::Linger,
    metrics::ListenerMetrics,
    places::WhenFull,
    progress::Progress,
    service::{HttpService, RequestBody},
    tracked::tracked,
};
use crate::{
    budget::{Budget, Permit, Use},
    lifecycle::Tasks,
};

/// The size that hyper's read buffer begins with, in bytes. It doubles when a read fills it, up to [`LARGEST_BUFFER`].
const FIRST_BUFFER: usize = 8 << 10;
/// The largest read buffer, in bytes. A usual batch is read in three or four pieces.
const LARGEST_BUFFER: usize = 64 << 10;
/// How many buffers of the largest size so far a connection may have: the one that is read into, and one that the service
/// has not taken.
const BUFFERS: usize = 2;
/// Headers of more bytes than this are taken from the account while they are unfinished. Usual ones are shorter.
const USUAL_HEADERS: usize = 4 << 10;
/// How long an idle client has to send the request that may be in transit, once it was told to finish.
const IDLE_GRACE: Duration = Duration::from_secs(1);

/// The state that a connection and its requests share.
#[derive(Debug)]
struct Shared {
    admission: Arc<Admission>,
    progress: Progress,
    /// The bodies of requests, and the answers, that have not ended. While there is one, what comes is no headers.
    unfinished: AtomicUsize,
    /// The bytes of headers that are unfinished.
    headers: AtomicUsize,
    /// Whether the next answer tells the client to finish.
    is_closing: AtomicBool,
    /// Whether a request's body was dropped before its end. Then hyper closes the connection after the answer.
    is_unread: AtomicBool,
}

/// Serves a connection to its end. `first` are the bytes that were read already. Ends it as [`super::connection::serve`]
/// does, except for the missing GOAWAY.
#[expect(clippy::too_many_arguments, reason = "they are those of HTTP/2 and the first bytes")]
pub(super) async fn serve<I, S>(
    limits: &Limits,
    stream: I,
    first: &[u8],
    service: S,
    mut deadlines: Deadlines,
    activity: &Arc<Activity>,
    metrics: &ListenerMetrics,
    tasks: &Tasks,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService,
{
    let shared = Arc::new(Shared {
        admission: Arc::new(Admission::new(limits.account.clone(), limits.max_header_list_size)),
        // The first headers have begun.
        progress: Progress::new(deadlines.begun),
        unfinished: AtomicUsize::new(0),
        headers: AtomicUsize::new(0),
        is_closing: AtomicBool::new(false),
        is_unread: AtomicBool::new(false),
    });
    let service = tracked(service, Arc::clone(activity), limits.write_timeout.is_some());
    let service = admitted(service, Arc::clone(&shared));
    let stream = ClientStream::new(stream, first, limits, Arc::clone(&shared));
    let mut connection = pin!(builder(limits).serve_connection(TokioIo::new(stream), service));
    let mut events = WhenWoken::new(wait(deadlines, &shared.progress, activity, tasks));
    loop {
        let event = tokio::select! {
            biased;
            end = connection.as_mut() => {
                if let Err(error) = end {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            event = &mut events => event,
        };
        let is_idle = activity.idle_since().is_some();
        match event {
            Event::Stalled => return tracing::debug!("connection closed: its headers did not end in time"),
            // Only HTTP/2 has headers that keep buffers.
            Event::Stopped | Event::Untaken | Event::Unread | Event::Cut | Event::Pinned => {
                return note_end(&event, metrics);
            }
            // A request has arrived since the connection was chosen.
            Event::NoRoom if limits.when_full == WhenFull::CloseIdle && !is_idle => {}
            Event::NoRoom => return tracing::debug!("connection closed: another one needs its place"),
            Event::Idle(_) => {
                // An idle connection ends at once, any other after its answer.
                connection.as_mut().graceful_shutdown();
                deadlines.idle = None;
                let is_over = poll_fn(|context| Poll::Ready(connection.as_mut().poll(context).is_ready())).await;
                if is_over {
                    return;
                }
            }
            Event::Unused => {
                metrics.closed_idle();
                deadlines.max_idle = None;
            }
            Event::Draining => deadlines.draining = Some(Instant::now()),
            Event::Aged => {
                if !deadlines.is_due() {
                    events = WhenWoken::new(wait(deadlines, &shared.progress, activity, tasks));
                    continue;
                }
            }
        }
        shared.is_closing.store(true, Relaxed);
        deadlines.idle = deadlines.idle.or_else(|| Some((Instant::now() + IDLE_GRACE, 0)));
        events = WhenWoken::new(wait(deadlines, &shared.progress, activity, tasks));
    }
}

fn builder(limits: &Limits) -> Builder {
    let mut builder = Builder::new();
    // Timeouts are those of `deadlines`.
    builder
        .header_read_timeout(None)
        .max_buf_size(LARGEST_BUFFER)
        .max_header_size(usize::try_from(limits.max_header_list_size).unwrap_or(usize::MAX));
    builder
}

/// Takes the memory of each request from the account, and marks those that there is no room for. Answers tell the client to
/// finish once the connection closes, or if their request's body is not read to its end.
fn admitted<S: HttpService>(
    service: S,
    shared: Arc<Shared>,
) -> impl Service<Request<Incoming>, Response = Response<Answer<S::ReplyBody>>, Error = Infallible, Future: Send> {
    service_fn(move |mut request: Request<Incoming>| {
        let taken = Taken::new(&shared);
        if taken.stream.has_no_room() {
            request.extensions_mut().insert(NoRoom);
        }
        let answer = |mut response: Response<_>| {
            if taken.shared.is_closing.load(Relaxed) || taken.shared.is_unread.load(Relaxed) {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            response.map(|body| Answer { body, _taken: taken })
        };
        service.call(request.map(|body| watched(body, &shared))).map_ok(answer)
    })
}

/// Returns the body of a request, which tells when it has ended.
fn watched(body: Incoming, shared: &Arc<Shared>) -> RequestBody {
    let unfinished = (!body.is_end_stream()).then(|| Unfinished::new(shared, true));
    RequestBody::new(body, unfinished)
}

/// The memory of a request, until its answer was sent.
struct Taken {
    shared: Arc<Shared>,
    stream: Stream,
    _answer: Unfinished,
}

/// The body of a request, or an answer, that has not ended.
#[derive(Debug)]
pub(super) struct Unfinished {
    shared: Arc<Shared>,
    /// Whether bytes of it are unread.
    is_unread: bool,
}

/// The body of an answer.
struct Answer<B> {
    body: B,
    _taken: Taken,
}

impl Taken {
    fn new(shared: &Arc<Shared>) -> Self {
        let Shared { admission, progress, headers, .. } = &**shared;
        headers.store(0, Relaxed);
        progress.unfinished.end();
        // Without room, the stream has none, which is what the service is told.
        let _has_room = admission.admit();
        let mut stream = admission.serve();
        stream.headers_are_read();
        Self { shared: Arc::clone(shared), stream, _answer: Unfinished::new(shared, false) }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.stream.is_answered();
    }
}

impl Unfinished {
    fn new(shared: &Arc<Shared>, is_unread: bool) -> Self {
        shared.unfinished.fetch_add(1, Relaxed);
        Self { shared: Arc::clone(shared), is_unread }
    }

    /// It was read to its end.
    pub(super) fn has_ended(mut self) {
        self.is_unread = false;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.is_unread {
            self.shared.is_unread.store(true, Relaxed);
        }
        self.shared.unfinished.fetch_sub(1, Relaxed);
    }
}

impl<B: Body + Unpin> Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The stream of a client. It bounds what hyper buffers, and notes what the client has begun and not finished.
#[derive(Debug)]
struct ClientStream<I> {
    stream: I,
    /// The bytes that were read before hyper was started.
    first: Backlog,
    account: Option<Budget>,
    /// The memory of buffers beyond the first size, and of long headers.
    permit: Option<Permit>,
    /// The size of hyper's buffer, in bytes, and how much of it was free after the last read. If more or less is offered
    /// next, it is another buffer.
    buffer: usize,
    free: usize,
    /// The most bytes of headers that there can be.
    max_headers: usize,
    shared: Arc<Shared>,
    /// Set once the client has closed its side.
    end: Option<End>,
    /// Set once the server's side is closed while the client may still send.
    linger: Option<Linger>,
}

// === impl ClientStream ===

impl<I: AsyncRead + Unpin> ClientStream<I> {
    fn new(stream: I, first: &[u8], limits: &Limits, shared: Arc<Shared>) -> Self {
        let mut backlog = Backlog::default();
        backlog.put_back(first);
        Self {
            stream,
            first: backlog,
            account: limits.account.clone(),
            permit: None,
            buffer: 0,
            free: 0,
            max_headers: usize::try_from(limits.max_header_list_size)
                .map_or(LARGEST_BUFFER, |it| it.min(LARGEST_BUFFER)),
            shared,
            end: None,
            linger: None,
        }
    }

    /// Takes memory until `bytes` are held. Returns whether there is room.
    fn holds(&mut self, bytes: usize) -> bool {
        let Some(account) = &self.account else { return true };
        let permit = self.permit.get_or_insert_with(|| account.permit_for(Use::Frames));
        let more = bytes.saturating_sub(permit.bytes());
        more == 0 || (admission::has_room_for_frame(account, more) && permit.grow(more))
    }

    /// Returns how much may be read into a buffer of `offered` bytes. hyper doubles its buffer after a read that fills it.
    fn most(&mut self, offered: usize) -> usize {
        let next = offered.saturating_mul(2).min(LARGEST_BUFFER);
        if offered < FIRST_BUFFER || self.holds(next * BUFFERS) { offered } else { FIRST_BUFFER - 1 }
    }

    /// Reads the bytes that were read already, and what follows them. hyper gets both at once, since a head that comes in two
    /// pieces makes it double its buffer.
    fn read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let has_first = !self.first.is_empty();
        ready!(self.first.poll_read(&mut self.stream, cx, buf))?;
        if has_first
            && buf.remaining() > 0
            && let Poll::Ready(Err(error)) = Pin::new(&mut self.stream).poll_read(cx, buf)
        {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(()))
    }

    /// Gives back the memory of buffers that there are not now. Called when the client has sent no more bytes. Usual headers
    /// and the first buffer size are part of a connection's own memory, which covers a second such buffer too.
    fn give_back(&mut self) {
        let Shared { unfinished, headers, .. } = &*self.shared;
        let is_first = self.buffer <= FIRST_BUFFER;
        if headers.load(Relaxed) > USUAL_HEADERS || (!is_first && unfinished.load(Relaxed) > 0) {
            return;
        }
        // Between requests the service has nothing of the last one, so there is only hyper's own buffer.
        let keep = if is_first { 0 } else { self.buffer };
        if let Some(permit) = &mut self.permit {
            permit.shrink_to(keep);
        }
    }

    /// Returns whether the client may be sending the rest of a body that nobody reads, or of headers that hyper refused.
    fn is_unread(&self) -> bool {
        let Shared { unfinished, headers, is_unread, .. } = &*self.shared;
        is_unread.load(Relaxed) || (unfinished.load(Relaxed) == 0 && headers.load(Relaxed) > 0)
    }

    /// Waits until hyper may know that the client has closed its side.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.give_back();
        self.end.get_or_insert_default().poll(self.shared.unfinished.load(Relaxed), cx).map(Ok)
    }

    /// Notes that `read` bytes came.
    fn note(&self, read: usize) {
        let Shared { progress, unfinished, headers, .. } = &*self.shared;
        if read > 0 && unfinished.load(Relaxed) == 0 {
            headers.fetch_add(read, Relaxed);
            progress.unfinished.begin();
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for ClientStream<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.end.is_some() {
            return this.poll_end(cx);
        }
        let is_long = this.shared.headers.load(Relaxed) > USUAL_HEADERS;
        if is_long && !this.holds(this.max_headers.saturating_mul(BUFFERS)) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::OutOfMemory, "there is no memory for long headers")));
        }
        let (offered, before) = (buf.remaining(), buf.filled().len());
        if offered != this.free {
            this.buffer = offered;
        }
        this.free = offered;
        let most = this.most(offered);
        let polled = if most == offered {
            let polled = this.read(cx, buf)?;
            polled.map(|()| buf.filled().len() - before)
        } else {
            let mut part = ReadBuf::new(buf.initialize_unfilled_to(most));
            let polled = this.read(cx, &mut part)?;
            let read = part.filled().len();
            buf.advance(read);
            polled.map(|()| read)
        };
        let Poll::Ready(read) = polled else {
            this.give_back();
            return Poll::Pending;
        };
        if read == 0 && offered > 0 {
            return this.poll_end(cx);
        }
        this.free = offered - read;
        this.note(read);
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> ClientStream<I> {
    /// Notes whether the client takes what is written.
    fn note_write<T>(&self, polled: Poll<T>) -> Poll<T> {
        let untaken = &self.shared.progress.untaken;
        if polled.is_pending() {
            untaken.begin()
        } else {
            untaken.end()
        }
        polled
    }

    /// After a part of an answer, hyper looks at the client's end again if that was kept from it.
    fn wrote<T>(&self, polled: Poll<T>, cx: &Context<'_>) -> Poll<T> {
        if self.end.is_some() && polled.is_ready() {
            cx.waker().wake_by_ref();
        }
        self.note_write(polled)
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ClientStream<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, data);
        self.wrote(polled, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.note_write(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            if !this.is_unread() {
                return Poll::Ready(Ok(()));
            }
        }
        let linger = this.linger.get_or_insert_with(Linger::new);
        linger.poll(&mut this.stream, cx).map(Ok)
    }
}
