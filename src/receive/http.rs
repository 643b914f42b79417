//! The HTTP door: finds a request's signal by its path, has the [`super::exchange`] read and deliver its message, and
//! answers with the outcome as OTLP/HTTP has it.
//!
//! `paths` has the paths of the signals, `head` parses headers, `answer` writes answers and `coding` compresses them, `polled`
//! knows whether a client has leave to send its body, and `cors` tells browsers which pages may send here.

mod answer;
mod coding;
mod cors;
mod head;
mod paths;
mod polled;
#[cfg(test)]
mod tests;

use std::{convert::Infallible, sync::Arc};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{
    Method, Request, Response, StatusCode, Version,
    header::{EXPECT, ORIGIN, TRANSFER_ENCODING},
    request::Parts,
};
use http_body::Body;
use http_body_util::Full;
use hyper::service::{Service, service_fn};
use tokio::time::Instant;
use tonic::Code;

use self::{
    coding::Accepted,
    head::{Format, format_of, is_grpc, order},
    polled::Polled,
};
pub use self::{
    cors::{Cors, Unusable},
    paths::Paths,
};
use super::{
    HttpConfig,
    connection::Connection,
    discard,
    exchange::{Exchange, Limits},
};
use crate::{
    listen::NoRoom,
    otlp::{Outcome, Reason, Refusal, Signal},
    pipeline::Export,
};

/// The OTLP/HTTP service of one client connection. Clones share their state.
pub(super) struct OtlpHttp<E> {
    shared: Arc<Shared<E>>,
    connection: Arc<Connection>,
}

struct Shared<E> {
    exchange: Arc<Exchange<E>>,
    settings: SettingsHandle,
}

/// What applies to a new request.
#[derive(Debug)]
struct Settings {
    limits: Limits,
    paths: Paths,
    cors: Option<Cors>,
    /// The port of OTLP/gRPC, for clients that speak it here.
    grpc_port: Option<u16>,
}

/// A handle that changes the settings of new requests.
#[derive(Clone, Debug)]
pub(super) struct SettingsHandle(Arc<ArcSwap<Settings>>);

/// A request that is not answered by an exchange: the status and the text of its answer.
struct NotOurs {
    status: StatusCode,
    reason: Reason,
    text: String,
}

// === impl OtlpHttp ===

impl<E> Clone for OtlpHttp<E> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), connection: Arc::clone(&self.connection) }
    }
}

impl<E: Export> OtlpHttp<E> {
    /// Creates a service whose requests `exchange` delivers. OTLP/gRPC is served on `grpc_port`.
    pub(super) fn new(exchange: Arc<Exchange<E>>, config: &HttpConfig, grpc_port: Option<u16>) -> Self {
        let settings = SettingsHandle(Arc::new(ArcSwap::from_pointee(Settings::new(config, grpc_port))));
        let connection = exchange.connection();
        Self { shared: Arc::new(Shared { exchange, settings }), connection }
    }

    /// Returns a handle that changes the settings.
    pub(super) fn settings(&self) -> SettingsHandle {
        self.shared.settings.clone()
    }

    /// Returns the service of a new client connection.
    pub(super) fn for_connection<B>(
        &self,
    ) -> impl Service<Request<B>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send + 'static>
    + Send
    + use<E, B>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let service = Self { shared: Arc::clone(&self.shared), connection: self.shared.exchange.connection() };
        service_fn(move |request: Request<B>| {
            let service = service.clone();
            // One allocation, as large as what a request needs.
            Box::pin(async move { Ok(service.answer(request).await) })
        })
    }

    /// Answers one request.
    ///
    /// Cancel safety: HTTP drops the future when the client is gone. This drops the export future too.
    async fn answer<B>(self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let (parts, body) = request.into_parts();
        let mut body = Polled::new(body);
        let Shared { exchange, settings } = &*self.shared;
        let settings = settings.0.load_full();
        let Settings { limits, cors, .. } = &*settings;
        let origin = if cors.is_some() { parts.headers.get(ORIGIN).cloned() } else { None };
        let accepted = Accepted::of(&parts.headers);
        let expects = parts.version == Version::HTTP_11 && parts.headers.contains_key(EXPECT);
        if let Some(cors) = cors
            && cors::is_preflight(&parts)
        {
            exchange.discard(body, limits);
            return cors.preflight(&parts.headers);
        }
        let response = self.answer_to(parts, &mut body, &settings).await;
        let mut response = accepted.compress(response).map(Full::new);
        if let Some(cors) = cors {
            cors.allow(origin.as_ref(), response.headers_mut());
        }
        // A client that waits for leave to send its body gets none after a refusal, so the body is not read.
        if body.was_polled() || !expects {
            if !body.is_end_stream() {
                discard::arrived(&mut body).await;
            }
            exchange.discard(body, limits);
        }
        response
    }

    /// Answers one request. It may leave a part of the body unread.
    async fn answer_to<B>(&self, parts: Parts, body: &mut B, settings: &Settings) -> Response<Bytes>
    where
        B: Body<Data = Bytes> + Send + Unpin,
    {
        let Shared { exchange, .. } = &*self.shared;
        let started = Instant::now();
        let (signal, format) = match settings.route(&parts) {
            _ if is_grpc(&parts) => return self.answer_grpc(settings),
            Err(refused) => {
                exchange.note_unrouted(&Refusal::permanent(Code::InvalidArgument, refused.reason, ""));
                return answer::not_ours(refused.status, &refused.text, format_of(&parts.headers));
            }
            Ok(routed) => routed,
        };
        if parts.extensions.get::<NoRoom>().is_some() {
            return answer::outcome(exchange.without_room(Some(signal)), signal, format);
        }
        let length = body.size_hint().exact();
        let order = order(&parts.headers, format, length, started, &settings.limits, &self.connection);
        drop(parts);
        let outcome = exchange.outcome(signal, started, order, &settings.limits, body, &self.connection).await;
        let outcome = outcome.unwrap_or_else(|| {
            let what = "the body ended before it was complete";
            Outcome::Refused(Refusal::permanent(Code::InvalidArgument, Reason::Framing, what))
        });
        answer::outcome(outcome, signal, format)
    }

    /// Answers a gRPC call, which belongs on another port.
    fn answer_grpc(&self, settings: &Settings) -> Response<Bytes> {
        let there = match settings.grpc_port {
            Some(port) => format!("OTLP/gRPC is on port {port}"),
            None => "OTLP/gRPC is not served here".to_owned(),
        };
        let message = format!("this port speaks OTLP/HTTP; {there}");
        let refusal = Refusal::permanent(Code::Unimplemented, Reason::Unimplemented, message);
        self.shared.exchange.note_unrouted(&refusal);
        answer::grpc(&refusal)
    }
}

// === impl Settings ===

impl Settings {
    fn new(config: &HttpConfig, grpc_port: Option<u16>) -> Self {
        let HttpConfig { keys, paths, include_metadata, cors, deadline, .. } = config;
        let limits = Limits::new(keys.max_request_body_size.0, "max_request_body_size", *deadline, include_metadata);
        Self { limits, paths: paths.clone(), cors: cors.clone(), grpc_port }
    }

    /// Returns the signal of a request and the format of its message. The order of the checks is that of the Collector:
    /// transfer encoding, path, method, content type.
    fn route(&self, parts: &Parts) -> Result<(Signal, Format), NotOurs> {
        let refused = |status, reason, text: String| NotOurs { status, reason, text };
        if !is_in_chunks_or_whole(parts) {
            let text = "the transfer encoding has to be chunked; compression belongs in content-encoding".to_owned();
            return Err(refused(StatusCode::NOT_IMPLEMENTED, Reason::Framing, text));
        }
        let path = parts.uri.path();
        let signal = self.paths.signal(path).ok_or_else(|| {
            let text = format!("nothing is served at this path; OTLP/HTTP is at {}", self.paths);
            refused(StatusCode::NOT_FOUND, Reason::Unimplemented, text)
        })?;
        if parts.method != Method::POST {
            let text = "the method has to be POST".to_owned();
            return Err(refused(StatusCode::METHOD_NOT_ALLOWED, Reason::Framing, text));
        }
        let format = format_of(&parts.headers).ok_or_else(|| {
            let text = format!("the content type has to be {}", Format::TAKEN);
            refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, Reason::Framing, text)
        })?;
        Ok((signal, format))
    }
}

/// Returns whether the body comes as it is or in chunks. hyper passes other codings on undecoded, if the last one is chunks.
fn is_in_chunks_or_whole(parts: &Parts) -> bool {
    let mut codings = parts.headers.get_all(TRANSFER_ENCODING).iter();
    let is_known = codings.next().is_none_or(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked"));
    is_known && codings.next().is_none()
}

// === impl SettingsHandle ===

impl SettingsHandle {
    /// Sets what applies to all requests from now on.
    pub(super) fn set(&self, config: &HttpConfig) {
        let grpc_port = self.0.load().grpc_port;
        self.0.store(Arc::new(Settings::new(config, grpc_port)));
    }
}
