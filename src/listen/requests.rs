//! The requests of one HTTP/2 connection: calls the service for each of them, and runs hyper's task that sends its answer.
//!
//! Each task holds its stream's share of the memory account. A client that does not take an answer loses the stream:
//! otherwise it could hold the memory of its streams for as long as it likes.

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::{FutureExt, Map};
use http::Request;
use hyper::{body::Incoming, rt::Executor, service::Service};
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};

use super::{
    admission::{Admission, NoRoom, Stream},
    progress::Progress,
    service::RequestBody,
    streams::Tally,
    tracked::noting_waits,
};
use crate::lifecycle::Tasks;

/// How long a client may take to receive an answer until its stream is reset.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

thread_local! {
    /// Whether the service has answered the request whose task this thread polls.
    static HAS_ANSWERED: Cell<bool> = const { Cell::new(false) };
}

/// The state that the requests of one connection share.
#[derive(Debug)]
pub(super) struct Requests {
    pub(super) tally: Arc<Tally>,
    pub(super) admission: Arc<Admission>,
    pub(super) progress: Arc<Progress>,
    /// The stream of the last call, until hyper runs its task, which it does right after the call.
    called: Mutex<Option<Stream>>,
}

/// A service that counts its calls, and marks those that there is no room for.
pub(super) struct CountedService<S> {
    pub(super) service: S,
    pub(super) requests: Arc<Requests>,
}

/// The executor of one hyper connection. It runs streams as tasks that the process's shutdown waits for.
#[derive(Clone)]
pub(super) struct Spawner {
    pub(super) tasks: Tasks,
    pub(super) requests: Arc<Requests>,
}

pin_project! {
    /// The task of a stream, until its answer is sent, or was not taken in time. It is no async function: that would hold
    /// `future` twice, where it was passed and where it is polled.
    struct StreamTask<F> {
        #[pin]
        future: F,
        end: StreamEnd,
        is_first: bool,
        is_answered: bool,
        untaken: Option<Pin<Box<Sleep>>>,
    }
}

/// Counts the end of a stream's task, also if the task is dropped before it has ended.
struct StreamEnd {
    requests: Arc<Requests>,
    stream: Option<Stream>,
}

// === impl Requests ===

impl Requests {
    pub(super) fn new(tally: Tally, admission: Admission, progress: Progress) -> Self {
        Self {
            tally: Arc::new(tally),
            admission: Arc::new(admission),
            progress: Arc::new(progress),
            called: Mutex::default(),
        }
    }

    /// Accounts for requests that h2 refused itself. Called after h2 was polled.
    pub(super) fn settle(&self) {
        let is_all = self.tally.settle();
        self.admission.settle(is_all);
    }

    fn set_called(&self, stream: Option<Stream>) -> Option<Stream> {
        let mut called = self.called.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *called, stream)
    }
}

// === impl CountedService ===

impl<S: Service<Request<RequestBody>>> Service<Request<Incoming>> for CountedService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = Map<S::Future, fn(<S::Future as Future>::Output) -> <S::Future as Future>::Output>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        self.requests.tally.serves();
        let stream = self.requests.admission.serve();
        if stream.has_no_room() {
            request.extensions_mut().insert(NoRoom);
        }
        drop(self.requests.set_called(Some(stream)));
        self.service.call(request.map(|body| RequestBody::new(body, None))).map(note_answer)
    }
}

fn note_answer<T>(answer: T) -> T {
    HAS_ANSWERED.set(true);
    answer
}

// === impl Spawner ===

impl<F> Executor<F> for Spawner
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        // Without a call this is not the task of a stream, but that of an upgrade, which HTTP/2 has for CONNECT.
        let Some(stream) = self.requests.set_called(None) else {
            drop(self.tasks.spawn(future));
            return;
        };
        let end = StreamEnd { requests: Arc::clone(&self.requests), stream: Some(stream) };
        drop(self.tasks.spawn(StreamTask::new(future, end)));
    }
}

impl<F> StreamTask<F> {
    fn new(future: F, end: StreamEnd) -> Self {
        Self { future, end, is_first: true, is_answered: false, untaken: None }
    }
}

impl<F: Future> Future for StreamTask<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        HAS_ANSWERED.set(false);
        let (polled, waits) = noting_waits(|| this.future.poll(cx));
        if std::mem::take(this.is_first) {
            this.end.headers_are_read();
        }
        if polled.is_ready() {
            this.end.is_taken();
            return Poll::Ready(());
        }
        *this.is_answered |= HAS_ANSWERED.get();
        // The client of an endless answer has taken what there is while the answer waits for the service.
        if !*this.is_answered || waits {
            *this.untaken = None;
        } else if this.untaken.is_none() {
            *this.untaken = Some(Box::pin(sleep(ANSWER_WITHIN)));
        }
        ready!(poll_over(this.untaken, cx));
        this.end.is_not_taken();
        Poll::Ready(())
    }
}

fn poll_over(timer: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
    match timer {
        Some(timer) => timer.as_mut().poll(cx),
        None => Poll::Pending,
    }
}

// === impl StreamEnd ===

impl StreamEnd {
    fn headers_are_read(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.headers_are_read();
        }
    }

    fn is_taken(&self) {
        self.requests.progress.untaken.end();
        if let Some(stream) = &self.stream {
            stream.is_answered();
        }
    }

    fn is_not_taken(&self) {
        tracing::debug!("stream reset: its client did not take the answer in time");
        self.requests.progress.untaken.begin();
    }
}

impl Drop for StreamEnd {
    fn drop(&mut self) {
        self.requests.tally.ends();
    }
}
