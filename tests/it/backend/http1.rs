//! The scripted backend over HTTP/1.1: OTLP/HTTP with the same answers.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceResponse};
use prost::Message;
use socket2::SockRef;
use spanring::lifecycle::Tasks;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{Answer, Call, Inner, lock, spans_of};

const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");

/// Serves one connection until it ends.
pub(super) async fn serve<S>(stream: S, duplicate: &std::net::TcpStream, inner: &Inner, life: &Tasks) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let is_reset = AtomicBool::new(false);
    let service = service_fn(|request| answer(request, inner, &is_reset));
    let ended = tokio::select! {
        _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service) => is_reset.load(Relaxed),
        () = life.stopped() => true,
    };
    if ended {
        // Without lingering, closing the socket sends RST.
        SockRef::from(duplicate).set_linger(Some(Duration::ZERO))?;
    }
    Ok(())
}

/// Answers a request. An error ends the connection without an answer.
async fn answer(request: Request<Incoming>, inner: &Inner, is_reset: &AtomicBool) -> io::Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let authorization = head.headers.get("authorization").map(|value| String::from_utf8_lossy(value.as_bytes()));
    lock(&inner.authorizations).insert(authorization.unwrap_or_default().into_owned());
    let message = body.collect().await.map_err(io::Error::other)?.to_bytes();
    if head.method == Method::HEAD {
        return Ok(respond(StatusCode::METHOD_NOT_ALLOWED, Bytes::new()));
    }
    inner.http_calls.fetch_add(1, Relaxed);
    let path = head.uri.path().to_owned();
    let spans = if path == "/v1/traces" { spans_of(&message) } else { Vec::new() };
    let call = Call { number: inner.calls.fetch_add(1, Relaxed) + 1, path, spans };
    let mut answer = std::sync::Arc::clone(&lock(&inner.script))(&call);
    while let Answer::After(pause, then) = answer {
        tokio::time::sleep(pause).await;
        answer = *then;
    }
    if matches!(answer, Answer::Accept | Answer::Partial(..) | Answer::AcceptAndGo) {
        inner.keep(call.spans, message);
    }
    Ok(match answer {
        Answer::Accept | Answer::NoTrailers => respond(StatusCode::OK, Bytes::new()),
        Answer::Partial(rejected, message) => respond(StatusCode::OK, partial(rejected, message)),
        Answer::AcceptAndGo => {
            let mut response = respond(StatusCode::OK, Bytes::new());
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            response
        }
        Answer::Status(status) => refusal(&status),
        Answer::Hang | Answer::After(..) => std::future::pending().await,
        Answer::Rst | Answer::ResetStream(_) => {
            is_reset.store(true, Relaxed);
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Answer::Fin => return Err(io::ErrorKind::ConnectionAborted.into()),
        Answer::Http(status, content_type, body) => {
            let status = StatusCode::from_u16(status).map_err(io::Error::other)?;
            let mut response = respond(status, Bytes::from_static(body.as_bytes()));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
            response
        }
    })
}

fn respond(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, PROTOBUF);
    response
}

fn partial(rejected: i64, message: &str) -> Bytes {
    let partial = ExportTracePartialSuccess { rejected_spans: rejected, error_message: message.to_owned() };
    ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec().into()
}

/// The answer that stands for a gRPC status, as in the Collector.
fn refusal(status: &Status) -> Response<Full<Bytes>> {
    let http = match status.code() {
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unimplemented => StatusCode::NOT_FOUND,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let body =
        tonic_types::Status { code: status.code().into(), message: status.message().to_owned(), details: Vec::new() };
    let mut response = respond(http, body.encode_to_vec().into());
    if let Some(after) = status.get_details_retry_info().and_then(|info| info.retry_delay) {
        response.headers_mut().insert(header::RETRY_AFTER, after.as_secs().into());
    }
    response
}
