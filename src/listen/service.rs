//! The trait of the service that a listener runs on each connection.

use std::{convert::Infallible, error::Error};

use http::{Request, Response};
use http_body::Body;
use hyper::{body::Incoming, service::Service};

/// A service for the requests of one connection: every [`Service`] with the properties that hyper needs. It answers all
/// requests, refused ones too, so it has no error.
pub trait HttpService:
    Service<Request<Incoming>, Response = Response<Self::ReplyBody>, Error = Infallible, Future: Send + 'static>
    + Send
    + 'static
{
    /// The body of its responses.
    type ReplyBody: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static;
}

impl<S, B> HttpService for S
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send + 'static> + Send + 'static,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static,
{
    type ReplyBody = B;
}
