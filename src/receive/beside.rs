//! What the port for OTLP/gRPC serves beside OTLP: `grpc.health.v1` and reflection, which the room above makes.
//!
//! They are made when one is first asked for, so that those who never ask hold no memory for them. Their answers may last as
//! long as the connection (a watch of the health), and a drain waits for answers: they are ended when the drain begins.

use std::{
    convert::Infallible,
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tonic::{Status, service::Routes};
use tower::Service as _;

use super::reply::ReplyBody;
use crate::lifecycle::Tasks;

/// How the paths of health begin.
const HEALTH: &str = "/grpc.health.v1.";

/// Calls of health at a time. Those who make the service bound its watchers below this, so that probes find a place.
const MAX_HEALTH: usize = 2048;

/// How the paths of reflection begin.
const REFLECTION: &str = "/grpc.reflection.";

/// Calls of reflection at a time: people and their tools.
pub(super) const MAX_REFLECTION: usize = 16;

/// How long a call may take to be whole: questions are short.
const QUESTION_WITHIN: Duration = Duration::from_secs(10);

/// Makes the services. What they send without end is to end when the tasks drain.
pub(super) type Make = Box<dyn FnOnce(&Tasks) -> Routes + Send>;

/// The services. Cloning shares them.
#[derive(Clone)]
pub(super) struct Beside(Arc<Shared>);

struct Shared {
    routes: LazyLock<Routes, Box<dyn FnOnce() -> Routes + Send>>,
    health: Arc<Semaphore>,
    reflection: Arc<Semaphore>,
    tasks: Tasks,
}

/// Resolves when the drain begins.
type Drained = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What such a service answers, until the drain begins.
pub struct Answer {
    /// `None` once all is said.
    body: Option<tonic::body::Body>,
    /// `None` once the drain has begun.
    drained: Option<Drained>,
    _place: OwnedSemaphorePermit,
}

/// What such a service is asked, until the drain begins.
struct Question<B> {
    body: B,
    drained: Option<Drained>,
}

// === impl Beside ===

impl Beside {
    pub(super) fn new(make: Make, tasks: &Tasks) -> Self {
        let for_make = tasks.clone();
        Self(Arc::new(Shared {
            routes: LazyLock::new(Box::new(move || make(&for_make))),
            health: Arc::new(Semaphore::new(MAX_HEALTH)),
            reflection: Arc::new(Semaphore::new(MAX_REFLECTION)),
            tasks: tasks.clone(),
        }))
    }

    /// Whether a path is one of theirs. Those of OTLP differ in the second byte.
    pub(super) fn has(path: &str) -> bool {
        path.starts_with(HEALTH) || path.starts_with(REFLECTION)
    }

    /// Answers a request whose path is one of theirs.
    pub(super) async fn answer<B>(self, request: Request<B>) -> Response<ReplyBody>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let places = if request.uri().path().starts_with(HEALTH) { &self.0.health } else { &self.0.reflection };
        let Ok(place) = Arc::clone(places).try_acquire_owned() else {
            return Status::resource_exhausted("too many such calls at a time; ask again later").into_http();
        };
        let request = request.map(|body| Question { body, drained: Some(drained(&self.0.tasks)) });
        let answering = LazyLock::force(&self.0.routes).clone().call(request);
        let Ok(answered) = timeout(QUESTION_WITHIN, answering).await else {
            return Status::deadline_exceeded("the question was not whole in time").into_http();
        };
        let Ok(response) = answered;
        let drained = Some(drained(&self.0.tasks));
        response.map(|body| ReplyBody::Beside(Box::new(Answer { body: Some(body), drained, _place: place })))
    }
}

fn drained(tasks: &Tasks) -> Drained {
    let tasks = tasks.clone();
    Box::pin(async move { tasks.drained().await })
}

/// Resolves when the drain begins, and at once after that.
fn poll_drained(drained: &mut Option<Drained>, context: &mut Context<'_>) -> Poll<()> {
    if let Some(until) = drained {
        ready!(until.as_mut().poll(context));
        *drained = None;
    }
    Poll::Ready(())
}

// === impl Answer ===

impl Answer {
    /// The next frame. What is ready when the drain begins is still sent.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let mut next = Pin::new(&mut *body).poll_frame(context);
        if next.is_pending() {
            ready!(poll_drained(&mut self.drained, context));
            next = Pin::new(body).poll_frame(context);
        }
        let end = match next {
            Poll::Ready(Some(Ok(frame))) => return Poll::Ready(Some(Ok(frame))),
            Poll::Ready(None) => None,
            Poll::Ready(Some(Err(status))) => Some(trailers(&status)),
            Poll::Pending => Some(trailers(&Status::unavailable("the process is ending"))),
        };
        self.body = None;
        Poll::Ready(end.map(Ok))
    }

    pub(super) fn is_end(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }
}

fn trailers(status: &Status) -> Frame<Bytes> {
    let mut trailers = HeaderMap::with_capacity(2);
    if let Err(error) = status.add_header(&mut trailers) {
        tracing::debug!(%error, "a status that no header can say");
    }
    Frame::trailers(trailers)
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").finish_non_exhaustive()
    }
}

// === impl Question ===

impl<B: Body<Data = Bytes> + Unpin> Body for Question<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Self { body, drained } = &mut *self;
        let next = Pin::new(body).poll_frame(context);
        if next.is_ready() { next } else { poll_drained(drained, context).map(|()| None) }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
