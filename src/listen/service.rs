//! The trait of the service that a listener runs on each connection, and the body of the requests that it is given.

use std::{
    convert::Infallible,
    error::Error,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::{body::Incoming, service::Service};

use super::http1::Unfinished;

/// The body of a request.
#[derive(Debug)]
pub struct RequestBody {
    body: Incoming,
    /// Until the body has ended, if its connection has to know that: over HTTP/1, what comes next depends on it.
    unfinished: Option<Unfinished>,
}

/// A service for the requests of one connection: every [`Service`] with the properties that hyper needs. It answers all
/// requests, refused ones too, so it has no error.
pub trait HttpService:
    Service<Request<RequestBody>, Response = Response<Self::ReplyBody>, Error = Infallible, Future: Send + 'static>
    + Send
    + 'static
{
    /// The body of its responses.
    type ReplyBody: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static;
}

impl<S, B> HttpService for S
where
    S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible, Future: Send + 'static>
        + Send
        + 'static,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static,
{
    type ReplyBody = B;
}

// === impl RequestBody ===

impl RequestBody {
    pub(super) fn new(body: Incoming, unfinished: Option<Unfinished>) -> Self {
        Self { body, unfinished }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self { body, unfinished } = &mut *self;
        let polled = Pin::new(&mut *body).poll_frame(cx);
        if unfinished.is_some()
            && (matches!(polled, Poll::Ready(None)) || body.is_end_stream())
            && let Some(unfinished) = unfinished.take()
        {
            unfinished.has_ended();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
