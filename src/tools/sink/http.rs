//! OTLP/HTTP at a sink: HTTP/1.1 with hyper, on the same port as gRPC. The paths are OTLP's.

use std::{
    io,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{Code, Status};

use super::{
    Inner,
    behaviour::{Behaviour, FailureCode, Refusal},
    count::Batch,
    serve::{Reader, keep, partial, refusal_status},
};
use crate::{codec::Encoding, lifecycle::Tasks, otlp::Signal};

const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");

/// Serves one connection. When `tasks` drain, it ends after its request.
pub(super) async fn connection<S>(stream: S, inner: &Inner, tasks: &Tasks) -> Result<(), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(|request| answer(request, inner));
    let mut connection =
        pin!(http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service));
    let (mut drained, mut stopped) = (pin!(tasks.drained()), pin!(tasks.stopped()));
    let mut is_draining = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = &mut drained, if !is_draining => {
                is_draining = true;
                connection.as_mut().graceful_shutdown();
            }
            () = &mut stopped => return Ok(()),
        }
    }
}

/// Answers a request. An error ends the connection without an answer.
async fn answer(request: Request<Incoming>, inner: &Inner) -> io::Result<Response<Full<Bytes>>> {
    if request.method() != Method::POST {
        let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, Bytes::new());
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        return Ok(response);
    }
    inner.counters.requests.fetch_add(1, Relaxed);
    let behaviour: Arc<Behaviour> = inner.behaviour.load_full();
    let number = inner.sequence.next();
    let failure = behaviour.failure(number).map(FailureCode::refusal);
    if failure == Some(Refusal::Reset) {
        inner.counters.failed.fetch_add(1, Relaxed);
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    let batch = match receive(request, number, &behaviour, inner).await? {
        Ok(batch) => batch,
        Err(status) => {
            inner.counters.invalid_requests.fetch_add(1, Relaxed);
            return Ok(refuse(&status, None));
        }
    };
    if !behaviour.delay().is_zero() {
        tokio::time::sleep(behaviour.delay()).await;
    }
    if failure.is_some() {
        inner.counters.failed.fetch_add(1, Relaxed);
    }
    if (failure.is_none() || behaviour.failure_keeps_spans)
        && let Err(unwritten) = keep(&batch, inner)
    {
        return Ok(refuse(&unwritten, None));
    }
    let after = behaviour.failure_retry_after_ms.map(Duration::from_millis);
    Ok(match failure {
        Some(Refusal::Page(status)) => {
            let mut page = respond(status, Bytes::from(format!("<html><h1>{status}</h1></html>")));
            page.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
            page
        }
        Some(Refusal::Status(code)) => refuse(&refusal_status(code, &behaviour), after),
        Some(Refusal::Reset) | None => respond(StatusCode::OK, partial(batch.rejected()).into()),
    })
}

/// Reads a request. The outer error is that of the connection.
async fn receive(
    request: Request<Incoming>,
    number: u64,
    behaviour: &Behaviour,
    inner: &Inner,
) -> io::Result<Result<Batch, Status>> {
    let (head, mut body) = request.into_parts();
    let Some(signal) = signal_of(head.uri.path()) else {
        return Ok(Err(Status::unimplemented(format!("no such path: {}", head.uri.path()))));
    };
    let mut reader = Reader::of_body(signal, number, encoding_of(&head.headers), behaviour, inner);
    let mut read = Ok(());
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(io::Error::other)?.into_data() else { continue };
        inner.counters.wire_bytes.fetch_add(piece.len() as u64, Relaxed);
        // The rest of an invalid body is read too, so that the connection can carry the next request.
        read = read.and_then(|()| reader.take(piece));
    }
    Ok(read.and_then(|()| reader.finish()))
}

/// The encoding of a body. Unknown ones are refused as a message that cannot be decompressed.
fn encoding_of(headers: &HeaderMap) -> Option<Encoding> {
    let name = headers.get(header::CONTENT_ENCODING)?.as_bytes().to_ascii_lowercase();
    if name == b"identity" { None } else { Some(Encoding::from_content_encoding(&name).unwrap_or(Encoding::Snappy)) }
}

fn signal_of(path: &str) -> Option<Signal> {
    let paths = crate::settings::OtlpHttp::default();
    Signal::ALL.into_iter().find(|signal| paths.path(*signal).1 == path)
}

fn respond(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, PROTOBUF);
    response
}

/// The answer that stands for a gRPC status, as in the Collector's receiver.
fn refuse(status: &Status, after: Option<Duration>) -> Response<Full<Bytes>> {
    let http = match status.code() {
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::Unimplemented => StatusCode::NOT_FOUND,
        Code::Aborted
        | Code::Cancelled
        | Code::DataLoss
        | Code::DeadlineExceeded
        | Code::OutOfRange
        | Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let body =
        tonic_types::Status { code: status.code().into(), message: status.message().to_owned(), details: Vec::new() };
    let mut response = respond(http, body.encode_to_vec().into());
    if let Some(after) = after {
        response.headers_mut().insert(
            header::RETRY_AFTER,
            after.as_millis().div_ceil(1000).to_string().parse().unwrap_or(HeaderValue::from_static("1")),
        );
    }
    response
}
