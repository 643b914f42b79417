//! Serves the side services, `grpc.health.v1` and reflection, on the OTLP/gRPC port. The caller of
//! [`super::Bound::side_services`] supplies them.
//!
//! They are built at the first request for one of them, so a process that gets no such request spends no memory on
//! them. An answer may last as long as its connection, as a watch of the health does. A drain waits for all answers, so
//! these are ended when the drain begins.

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
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tonic::{Status, service::Routes};
use tower::Service as _;

use super::reply::ReplyBody;
use crate::lifecycle::Tasks;

/// The prefix of the paths of the health service.
const HEALTH: &str = "/grpc.health.v1.";

/// The most health calls at a time whose request has arrived. The health service allows fewer watchers than this, so that
/// probes are answered too. Calls whose request has not arrived do not count: clients that open calls and send nothing
/// could take all places.
pub(super) const MAX_HEALTH: usize = 2048;

/// The longest request of the health service, in bytes: it is the name of a service.
const MAX_QUESTION: usize = 1 << 10;

/// The prefix of the paths of reflection.
const REFLECTION: &str = "/grpc.reflection.";

/// The most reflection calls at a time. Only people and their tools make them.
pub(super) const MAX_REFLECTION: usize = 16;

/// The time limit for a call's request to arrive and its answer to begin. Requests are short.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Builds the services. Their streams that never end by themselves have to end when the tasks drain.
pub(super) type Factory = Box<dyn FnOnce(&Tasks) -> Routes + Send>;

/// The side services. Clones share them.
#[derive(Clone)]
pub(super) struct SideServices(Arc<Shared>);

struct Shared {
    routes: LazyLock<Routes, Box<dyn FnOnce() -> Routes + Send>>,
    health: Arc<Semaphore>,
    reflection: Arc<Semaphore>,
    tasks: Tasks,
}

/// Resolves when the drain begins.
type Drained = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The body of such a service's answer. It ends when the drain begins.
pub struct Answer {
    /// `None` once the last frame was returned.
    body: Option<tonic::body::Body>,
    /// `None` once the drain has begun.
    drained: Option<Drained>,
    _place: OwnedSemaphorePermit,
}

/// The body of a request to such a service. It ends when the drain begins.
struct RequestBody<B> {
    body: B,
    drained: Option<Drained>,
}

// === impl SideServices ===

impl SideServices {
    pub(super) fn new(make: Factory, tasks: &Tasks) -> Self {
        let for_make = tasks.clone();
        Self(Arc::new(Shared {
            routes: LazyLock::new(Box::new(move || make(&for_make))),
            health: Arc::new(Semaphore::new(MAX_HEALTH)),
            reflection: Arc::new(Semaphore::new(MAX_REFLECTION)),
            tasks: tasks.clone(),
        }))
    }

    /// Returns whether a path belongs to one of the services. This is cheap for OTLP, whose paths differ in the second
    /// byte.
    pub(super) fn has(path: &str) -> bool {
        path.starts_with(HEALTH) || path.starts_with(REFLECTION)
    }

    /// Answers a request whose path belongs to one of the services.
    pub(super) async fn answer<B>(self, request: Request<B>) -> Response<ReplyBody>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let is_health = request.uri().path().starts_with(HEALTH);
        let request = request.map(|body| RequestBody { body, drained: Some(drained(&self.0.tasks)) });
        let answering = async {
            if is_health {
                self.call(&self.0.health, arrived(request).await?).await
            } else {
                self.call(&self.0.reflection, request).await
            }
        };
        match timeout(CALL_TIMEOUT, answering).await {
            Ok(answered) => answered.unwrap_or_else(Status::into_http),
            Err(_elapsed) => Status::deadline_exceeded("the request did not arrive in time").into_http(),
        }
    }

    /// Calls the service in one of `places`.
    async fn call<B>(&self, places: &Arc<Semaphore>, request: Request<B>) -> Result<Response<ReplyBody>, Status>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let place = Arc::clone(places)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted("too many concurrent calls of this service; try again later"))?;
        let Ok(response) = LazyLock::force(&self.0.routes).clone().call(request).await;
        let drained = Some(drained(&self.0.tasks));
        let answer = |body| ReplyBody::SideService(Box::new(Answer { body: Some(body), drained, _place: place }));
        Ok(response.map(answer))
    }
}

/// Waits until a short request has arrived whole.
async fn arrived<B>(request: Request<B>) -> Result<Request<Full<Bytes>>, Status>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let (parts, body) = request.into_parts();
    match Limited::new(body, MAX_QUESTION).collect().await {
        Ok(body) => Ok(Request::from_parts(parts, Full::new(body.to_bytes()))),
        Err(error) if error.is::<LengthLimitError>() => Err(Status::resource_exhausted("the request is too long")),
        Err(_gone) => Err(Status::cancelled("the client is gone")),
    }
}

fn drained(tasks: &Tasks) -> Drained {
    let tasks = tasks.clone();
    Box::pin(async move { tasks.drained().await })
}

/// Becomes ready once the drain has begun. It may be polled again after that.
fn poll_drained(drained: &mut Option<Drained>, context: &mut Context<'_>) -> Poll<()> {
    if let Some(until) = drained {
        ready!(until.as_mut().poll(context));
        *drained = None;
    }
    Poll::Ready(())
}

// === impl Answer ===

impl Answer {
    /// Polls the next frame. A frame that is ready when the drain begins is still returned.
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
        tracing::debug!(%error, "cannot write a status to trailers");
    }
    Frame::trailers(trailers)
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").finish_non_exhaustive()
    }
}

// === impl RequestBody ===

impl<B: Body<Data = Bytes> + Unpin> Body for RequestBody<B> {
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
