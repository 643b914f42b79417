//! The gRPC door: parses a request's headers, has the [`super::exchange`] read and deliver its message, and answers with
//! the outcome.

mod timeout;

use std::{
    convert::Infallible,
    error::Error,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header::CONTENT_TYPE, request::Parts};
use http_body::Body;
use hyper::service::service_fn;
use tokio::time::Instant;
use tonic::Code;

use self::timeout::parse_timeout;
use super::{
    GrpcConfig,
    body::Framing,
    connection::Connection,
    exchange::{Exchange, Limits, Order, check_loop},
    reply::{self, ReplyBody},
    side_services::SideServices,
};
use crate::{
    budget::Budget,
    codec::Encoding,
    lifecycle::Tasks,
    listen::NoRoom,
    otlp::{Outcome, Reason, Refusal, Signal},
    pipeline::Export,
};

/// The OTLP/gRPC service of one client connection, or of a test. Clones share their state.
pub struct OtlpGrpc<E> {
    shared: Arc<Shared<E>>,
    connection: Arc<Connection>,
}

struct Shared<E> {
    exchange: Arc<Exchange<E>>,
    limits: LimitsHandle,
    /// The services other than OTLP on the same port, if there are any.
    side_services: Option<SideServices>,
}

/// A handle that changes the limits of new requests.
#[derive(Clone, Debug)]
pub(super) struct LimitsHandle(Arc<ArcSwap<Limits>>);

/// A request that is not gRPC, or whose method this service does not have.
enum NotOurs {
    Grpc(Refusal),
    Http(StatusCode, Refusal),
}

// === impl OtlpGrpc ===

impl<E> Clone for OtlpGrpc<E> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), connection: Arc::clone(&self.connection) }
    }
}

impl<E: Export> OtlpGrpc<E> {
    /// Creates a service that delivers to `export` and takes memory from `budget`.
    ///
    /// The rest of a refused request's body is read on `tasks`.
    pub fn new(export: Arc<E>, budget: Budget, config: &GrpcConfig, tasks: &Tasks) -> Self {
        Self::with(None, Arc::new(Exchange::new(export, budget, tasks)), config)
    }

    /// Creates a service that serves `side_services` too.
    pub(super) fn with(side_services: Option<SideServices>, exchange: Arc<Exchange<E>>, config: &GrpcConfig) -> Self {
        let limits = LimitsHandle(Arc::new(ArcSwap::from_pointee(limits(config))));
        let connection = exchange.connection();
        Self { shared: Arc::new(Shared { exchange, limits, side_services }), connection }
    }

    /// Returns a handle that changes the limits.
    pub(super) fn limits(&self) -> LimitsHandle {
        self.shared.limits.clone()
    }

    /// Returns the account that requests are taken from.
    #[cfg(test)]
    pub(super) fn budget(&self) -> &Budget {
        self.shared.exchange.budget()
    }

    /// Returns the service of a new client connection.
    ///
    /// Each of its futures is in one allocation, which is as large as what a request needs. The futures that hold it, of
    /// which hyper's stream and the task are two, would otherwise have room for it several times.
    pub fn for_connection<B>(
        &self,
    ) -> impl hyper::service::Service<
        http::Request<B>,
        Response = Response<ReplyBody>,
        Error = Infallible,
        Future: Send + 'static,
    > + Send
    + use<E, B>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let service = Self { shared: Arc::clone(&self.shared), connection: self.shared.exchange.connection() };
        service_fn(move |request: http::Request<B>| {
            let service = service.clone();
            Box::pin(async move {
                Ok(match service.side_services(&request) {
                    _ if request.extensions().get::<NoRoom>().is_some() => service.refuse_without_room(request),
                    None => service.answer(request).await,
                    // It is boxed, so that it does not make the futures of exports larger.
                    Some(services) => Box::pin(services.answer(request)).await,
                })
            })
        })
    }

    /// Refuses a request whose stream there is no memory for.
    fn refuse_without_room<B>(&self, request: http::Request<B>) -> Response<ReplyBody>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let (parts, body) = request.into_parts();
        let Shared { exchange, limits, .. } = &*self.shared;
        exchange.discard(body, &limits.get());
        reply::grpc(exchange.without_room(Signal::from_grpc_path(parts.uri.path())), None)
    }

    /// Returns the side services if the request is a gRPC call of one of them. A request that is not gRPC gets `None`,
    /// and is refused like any other.
    fn side_services<B>(&self, request: &http::Request<B>) -> Option<SideServices> {
        if !SideServices::has(request.uri().path()) {
            return None;
        }
        let is_call = request.method() == Method::POST && request.headers().get(CONTENT_TYPE).is_some_and(is_grpc);
        self.shared.side_services.clone().filter(|_| is_call)
    }

    /// Answers one request.
    ///
    /// Cancel safety: HTTP/2 drops the future when the client is gone. This drops the export future too.
    pub async fn answer<B>(self, request: http::Request<B>) -> Response<ReplyBody>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let (parts, mut body) = request.into_parts();
        let limits = self.shared.limits.get();
        let response = self.answer_to(parts, &mut body, &limits).await;
        self.shared.exchange.discard(body, &limits);
        response
    }

    /// Answers one request. It may leave a part of the body unread.
    async fn answer_to<B>(&self, parts: Parts, body: &mut B, limits: &Limits) -> Response<ReplyBody>
    where
        B: Body<Data = Bytes> + Send + Unpin,
    {
        let (exchange, connection) = (&self.shared.exchange, &self.connection);
        let started = Instant::now();
        let signal = match signal_of(&parts) {
            Ok(signal) => signal,
            Err(NotOurs::Grpc(refusal)) => {
                exchange.note_unrouted(&refusal);
                return reply::grpc(Outcome::Refused(refusal), None);
            }
            Err(NotOurs::Http(status, refusal)) => {
                exchange.note_unrouted(&refusal);
                return reply::not_grpc(status, refusal, &parts.method);
            }
        };
        let order = order(&parts.headers, started, limits, connection);
        let encoding = order.as_ref().ok().and_then(|order| order.encoding);
        let reply_encoding = encoding.filter(|encoding| accepts(&parts.headers, *encoding));
        drop(parts);
        match exchange.outcome(signal, started, order, limits, body, connection).await {
            Some(outcome) => reply::grpc(outcome, reply_encoding),
            // The client left before its body had ended, so this answer will not be sent.
            None => reply::grpc(Outcome::Refused(exchange.gone(limits)), None),
        }
    }
}

impl<E: Export, B> tower::Service<http::Request<B>> for OtlpGrpc<E>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    type Response = Response<ReplyBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { Ok(service.answer(request).await) })
    }
}

// === impl LimitsHandle ===

impl LimitsHandle {
    /// Sets the limits for all requests from now on.
    pub(super) fn set(&self, config: &GrpcConfig) {
        self.0.store(Arc::new(limits(config)));
    }

    fn get(&self) -> Limits {
        Limits::clone(&self.0.load())
    }
}

fn limits(config: &GrpcConfig) -> Limits {
    let GrpcConfig { keys, include_metadata, deadline, .. } = config;
    Limits::new(keys.max_recv_msg_size_mib.bytes, "max_recv_msg_size_mib", *deadline, include_metadata)
}

fn signal_of(parts: &Parts) -> Result<Signal, NotOurs> {
    if parts.method != Method::POST {
        let refusal = Refusal::permanent(Code::Internal, Reason::Framing, "gRPC requests have the method POST");
        return Err(NotOurs::Http(StatusCode::METHOD_NOT_ALLOWED, refusal));
    }
    if !parts.headers.get(CONTENT_TYPE).is_some_and(is_grpc) {
        let message = "not a gRPC request: content-type has to be application/grpc; OTLP/HTTP has a port of its own";
        let refusal = Refusal::permanent(Code::InvalidArgument, Reason::Framing, message);
        return Err(NotOurs::Http(StatusCode::UNSUPPORTED_MEDIA_TYPE, refusal));
    }
    Signal::from_grpc_path(parts.uri.path()).ok_or_else(|| {
        let message = "unknown method; Export is served by opentelemetry.proto.collector.{trace.v1.TraceService, \
                       metrics.v1.MetricsService, logs.v1.LogsService, profiles.v1development.ProfilesService}";
        NotOurs::Grpc(Refusal::permanent(Code::Unimplemented, Reason::Unimplemented, message))
    })
}

/// Returns whether a content type is `application/grpc`, with protobuf as its subtype if it has one.
fn is_grpc(value: &HeaderValue) -> bool {
    let value = value.as_bytes();
    let Some((name, rest)) = value.split_at_checked(b"application/grpc".len()) else {
        return false;
    };
    let subtype = rest.split(|byte| *byte == b';').next().unwrap_or_default();
    name.eq_ignore_ascii_case(b"application/grpc") && (subtype.is_empty() || subtype.eq_ignore_ascii_case(b"+proto"))
}

/// Parses the headers of a request that came at `now`.
fn order(headers: &HeaderMap, now: Instant, limits: &Limits, connection: &Connection) -> Result<Order, Refusal> {
    check_loop(headers)?;
    let encoding = match headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
        None | Some(b"identity") => None,
        Some(name) => Some(Encoding::from_name(name).ok_or_else(unknown_encoding)?),
    };
    let timeout = headers.get("grpc-timeout").and_then(|value| parse_timeout(value.as_bytes()));
    let metadata = limits.metadata(headers, connection)?;
    Ok(Order {
        framing: Framing::Prefixed,
        encoding,
        is_json: false,
        deadline: limits.deadline(now, timeout),
        metadata,
    })
}

fn unknown_encoding() -> Refusal {
    let message = "unknown grpc-encoding; identity, gzip, zstd and snappy are understood";
    Refusal::permanent(Code::Unimplemented, Reason::Unimplemented, message)
}

fn accepts(headers: &HeaderMap, encoding: Encoding) -> bool {
    let Some(accepted) = headers.get("grpc-accept-encoding").and_then(|value| value.to_str().ok()) else {
        return false;
    };
    accepted.split(',').any(|name| name.trim() == encoding.as_str())
}

#[cfg(test)]
mod tests;
