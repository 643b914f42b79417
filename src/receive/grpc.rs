//! Serves OTLP/gRPC: checks a request's headers, reads and inflates its message, delivers it and answers with the
//! outcome.

mod timeout;

use std::{
    convert::Infallible,
    error::Error,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header::CONTENT_TYPE, request::Parts};
use http_body::Body;
use hyper::service::service_fn;
use tokio::time::{Instant, timeout_at};
use tonic::Code;

use self::timeout::{less_margin, parse_timeout};
use super::{
    GrpcConfig,
    body::{self, BodyError, Received},
    connection::Connection,
    discard,
    metrics::ReceiverMetrics,
    refusal::{Bound, refusal_of_body},
    reply::{self, ReplyBody},
    side_services::SideServices,
    unpack::{Unpacked, Waiting, unpack},
};
use crate::{
    budget::{Budget, Permit},
    codec::Encoding,
    lifecycle::{INSTANCE_HEADER, Tasks, instance},
    listen::NoRoom,
    otlp::{ClientConnection, Metadata, Outcome, Reason, Refusal, Signal, metadata::TooMuch},
    pipeline::{Export, Request},
    places::Places,
};

/// The OTLP/gRPC service of one client connection, or of a test. Clones share their state.
pub struct OtlpGrpc<E> {
    shared: Arc<Shared<E>>,
    connection: Arc<Connection>,
}

struct Shared<E> {
    export: Arc<E>,
    budget: Budget,
    metrics: ReceiverMetrics,
    limits: LimitsHandle,
    places: Places,
    /// The services other than OTLP on the same port, if there are any.
    side_services: Option<SideServices>,
    tasks: Tasks,
}

/// The limits that apply to a new request.
#[derive(Clone, Debug)]
struct Limits {
    max_recv_msg_size: usize,
    deadline: Duration,
    /// The names of the headers that are forwarded to backends; `None` if there are none.
    include_metadata: Option<Arc<[HeaderName]>>,
}

/// A handle that changes the limits of new requests.
#[derive(Clone, Debug)]
pub(super) struct LimitsHandle(Arc<ArcSwap<Limits>>);

/// The parsed headers of a request.
struct Head {
    encoding: Option<Encoding>,
    reply_encoding: Option<Encoding>,
    deadline: Instant,
    /// The headers that are forwarded to backends.
    metadata: Option<Arc<Metadata>>,
}

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
        Self::with(None, export, budget, config, tasks)
    }

    /// Creates a service that serves `side_services` too.
    pub(super) fn with(
        side_services: Option<SideServices>,
        export: Arc<E>,
        budget: Budget,
        config: &GrpcConfig,
        tasks: &Tasks,
    ) -> Self {
        let shared = Shared {
            export,
            budget,
            metrics: ReceiverMetrics::new(),
            limits: LimitsHandle(Arc::new(ArcSwap::from_pointee(Limits::new(config)))),
            places: Places::as_many_as_workers(),
            side_services,
            tasks: tasks.clone(),
        };
        let connection = Arc::new(Connection::new(&shared.budget));
        Self { shared: Arc::new(shared), connection }
    }

    /// Returns a handle that changes the limits.
    pub(super) fn limits(&self) -> LimitsHandle {
        self.shared.limits.clone()
    }

    /// Returns the places of large requests.
    pub(super) fn places(&self) -> Places {
        self.shared.places.clone()
    }

    /// Returns the account that requests are taken from.
    #[cfg(test)]
    pub(super) fn budget(&self) -> &Budget {
        &self.shared.budget
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
        let connection = Arc::new(Connection::new(&self.shared.budget));
        let service = Self { shared: Arc::clone(&self.shared), connection };
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
        discard::rest(body, self.shared.limits.get().max_recv_msg_size, &self.shared.budget, &self.shared.tasks);
        let refusal =
            Refusal::retryable(Reason::Budget, "no memory is left for further requests of clients; retry later");
        match Signal::from_grpc_path(parts.uri.path()) {
            Some(signal) => {
                let outcome = Outcome::Refused(refusal);
                self.shared.metrics.of(signal).begin(Instant::now()).answered(&outcome);
                reply::grpc(outcome, None)
            }
            None => {
                self.shared.metrics.refused_unrouted(refusal.reason);
                reply::grpc(Outcome::Refused(refusal), None)
            }
        }
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
        let (budget, tasks) = (self.shared.budget.clone(), self.shared.tasks.clone());
        let response = self.answer_to(parts, &mut body, &limits).await;
        discard::rest(body, limits.max_recv_msg_size, &budget, &tasks);
        response
    }

    /// Answers one request. It may leave a part of the body unread.
    async fn answer_to<B>(self, parts: Parts, body: &mut B, limits: &Limits) -> Response<ReplyBody>
    where
        B: Body<Data = Bytes> + Send + Unpin,
    {
        let Self { shared, connection } = self;
        let started = Instant::now();
        let signal = match signal_of(&parts) {
            Ok(signal) => signal,
            Err(NotOurs::Grpc(refusal)) => {
                shared.metrics.refused_unrouted(refusal.reason);
                return reply::grpc(Outcome::Refused(refusal), None);
            }
            Err(NotOurs::Http(status, refusal)) => {
                shared.metrics.refused_unrouted(refusal.reason);
                return reply::not_grpc(status, refusal, &parts.method);
            }
        };
        let in_flight = shared.metrics.of(signal).begin(started);
        let head = Head::parse(&parts.headers, started, limits, &connection.client);
        drop(parts);
        let (outcome, encoding) = match head {
            Ok(head) => {
                let reply_encoding = head.reply_encoding;
                let delivery = shared.deliver(signal, head, limits.max_recv_msg_size, body, &connection);
                (CatchPanic(pin!(delivery)).await, reply_encoding)
            }
            Err(refusal) => (Some(Outcome::Refused(refusal)), None),
        };
        let Some(outcome) = outcome else {
            // The client left before its body had ended, so this answer will not be sent.
            drop(in_flight);
            let bound = Bound::of(limits.max_recv_msg_size, &shared.budget);
            return reply::grpc(Outcome::Refused(refusal_of_body(BodyError::Gone, bound)), None);
        };
        in_flight.answered(&outcome);
        reply::grpc(outcome, encoding)
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

// === impl Limits ===

impl Limits {
    fn new(config: &GrpcConfig) -> Self {
        let names = &config.include_metadata;
        Self {
            max_recv_msg_size: config.keys.max_recv_msg_size_mib.bytes,
            deadline: config.deadline,
            include_metadata: (!names.is_empty()).then(|| names.as_slice().into()),
        }
    }
}

impl LimitsHandle {
    /// Sets the limits for all requests from now on.
    pub(super) fn set(&self, config: &GrpcConfig) {
        self.0.store(Arc::new(Limits::new(config)));
    }

    fn get(&self) -> Limits {
        Limits::clone(&self.0.load())
    }
}

// === impl Shared ===

impl<E: Export> Shared<E> {
    /// Reads, inflates and exports one request. Returns `None` if the client left before its body had ended.
    async fn deliver<B>(
        &self,
        signal: Signal,
        head: Head,
        limit: usize,
        body: &mut B,
        connection: &Connection,
    ) -> Option<Outcome>
    where
        B: Body<Data = Bytes> + Send + Unpin,
    {
        let bound = Bound::of(limit, &self.budget);
        let received = match self.read(body, limit, connection.portion.permit(), head.deadline).await {
            Ok(Ok(received)) => received,
            Ok(Err(BodyError::Gone)) => return None,
            Ok(Err(error)) => return Some(Outcome::Refused(refusal_of_body(error, bound))),
            Err(refusal) => return Some(Outcome::Refused(refusal)),
        };
        let wire = received.chunks.iter().map(Bytes::len).sum();
        let waiting = Waiting { places: &self.places, connection, deadline: head.deadline };
        let Unpacked { message, permit, place } = match unpack(received, head.encoding, bound, waiting).await {
            Ok(unpacked) => unpacked,
            Err(refusal) => return Some(Outcome::Refused(refusal)),
        };
        self.metrics.of(signal).read(wire, message.payload_len());
        let Head { deadline, metadata, .. } = head;
        let connection = Arc::clone(&connection.client);
        Some(self.export.export(Request { signal, message, permit, place, deadline, connection, metadata }).await)
    }

    /// Reads the message. A timer is created only if the body did not arrive together with the headers, as it usually
    /// does.
    async fn read<B>(
        &self,
        body: &mut B,
        limit: usize,
        permit: Permit,
        deadline: Instant,
    ) -> Result<Result<Received, BodyError>, Refusal>
    where
        B: Body<Data = Bytes> + Send + Unpin,
    {
        let mut reading = pin!(body::read(body, limit, permit));
        let at_once = std::future::poll_fn(|context| Poll::Ready(reading.as_mut().poll(context))).await;
        if let Poll::Ready(received) = at_once {
            return Ok(received);
        }
        timeout_at(deadline, reading)
            .await
            .map_err(|_| Refusal::retryable(Reason::Deadline, "the request did not arrive within its deadline"))
    }
}

#[cold]
fn too_much(error: TooMuch) -> Refusal {
    Refusal::permanent(Code::ResourceExhausted, Reason::TooLarge, error.to_string())
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

// === impl Head ===

impl Head {
    fn parse(
        headers: &HeaderMap,
        now: Instant,
        limits: &Limits,
        connection: &ClientConnection,
    ) -> Result<Self, Refusal> {
        if headers.get(INSTANCE_HEADER).is_some_and(|caller| caller.as_bytes() == instance().as_bytes()) {
            return Err(Refusal::permanent(
                Code::FailedPrecondition,
                Reason::Loop,
                "this proxy sent the request to itself: its pool contains its own address; remove that address from the pool",
            ));
        }
        let encoding = match headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
            None | Some(b"identity") => None,
            Some(name) => Some(Encoding::from_name(name).ok_or_else(unknown_encoding)?),
        };
        let reply_encoding = encoding.filter(|encoding| accepts(headers, *encoding));
        let timeout = headers.get("grpc-timeout").and_then(|value| parse_timeout(value.as_bytes()));
        let time = timeout.map_or(limits.deadline, |timeout| timeout.min(limits.deadline));
        let metadata = match &limits.include_metadata {
            None => None,
            Some(names) => connection.metadata(names, headers).map_err(too_much)?,
        };
        Ok(Self { encoding, reply_encoding, deadline: now + less_margin(time), metadata })
    }
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

/// Turns a panic in a delivery into a refusal that the client may retry, so that the process and its other requests are
/// not affected.
struct CatchPanic<'a, F>(Pin<&'a mut F>);

impl<F: Future<Output = Option<Outcome>>> Future for CatchPanic<'_, F> {
    type Output = Option<Outcome>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // A future that panicked is not polled again, so its inconsistent state cannot be observed.
        catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(context))).unwrap_or_else(|_| {
            let message = "internal error of the proxy; the request may be sent again";
            Poll::Ready(Some(Outcome::Refused(Refusal::retryable(Reason::Internal, message))))
        })
    }
}

#[cfg(test)]
mod tests;
