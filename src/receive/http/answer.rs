//! Writes answers: the outcome of an export as OTLP/HTTP has it, and the refusals of requests that are none.

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS},
};
use prost::Message;
use serde_json::json;
use tonic::Code;

use super::{
    super::reply::{self, http_status},
    head::Format,
};
use crate::otlp::{
    Outcome, Reason, Refusal, Signal,
    text::{MAX_MESSAGE, shortened},
};

/// The value of `Allow`.
const METHODS: HeaderValue = HeaderValue::from_static("POST");

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const NO_SNIFF: HeaderValue = HeaderValue::from_static("nosniff");

/// Returns the answer to an export request.
pub(super) fn outcome(outcome: Outcome, signal: Signal, format: Format) -> Response<Bytes> {
    match outcome {
        Outcome::Accepted { rejected: 0, message: None } => {
            let empty: &'static [u8] = match format {
                Format::Protobuf => b"",
                Format::Json => b"{}",
            };
            with(StatusCode::OK, format.content_type(), Bytes::from_static(empty))
        }
        Outcome::Accepted { rejected, message } => {
            let message = message.unwrap_or_default();
            let body = match format {
                Format::Protobuf => reply::partial_success(rejected, &message),
                Format::Json => json_partial_success(signal, rejected, &message),
            };
            with(StatusCode::OK, format.content_type(), body.into())
        }
        Outcome::Refused(refusal) => refused(&refusal, format),
    }
}

/// Returns the answer to a gRPC call, without a message.
pub(super) fn grpc(refusal: &Refusal) -> Response<Bytes> {
    tonic::Status::new(refusal.code, &*refusal.message).into_http()
}

/// Returns the answer to a request that is no export of ours. Without a format of OTLP in its content type, a person may have
/// sent it, who gets a text.
pub(super) fn not_ours(status: StatusCode, text: &str, format: Option<Format>) -> Response<Bytes> {
    let mut response = match format {
        // gRPC has this code for what a server does not serve.
        Some(format) => with_status(status, Code::Unimplemented, text, format),
        None => {
            let mut response = with(status, TEXT, format!("{text}\n").into());
            response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
            response
        }
    };
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, METHODS);
    }
    response
}

fn with(status: StatusCode, content_type: HeaderValue, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

fn json_partial_success(signal: Signal, rejected: u64, message: &str) -> Vec<u8> {
    let field = match signal {
        Signal::Traces => "rejectedSpans",
        Signal::Metrics => "rejectedDataPoints",
        Signal::Logs => "rejectedLogRecords",
        Signal::Profiles => "rejectedProfiles",
    };
    // A 64-bit integer is a string in proto3's JSON.
    json!({ "partialSuccess": { field: rejected.to_string(), "errorMessage": shortened(message, MAX_MESSAGE) } })
        .to_string()
        .into_bytes()
}

/// Returns the answer to a request that was refused.
fn refused(refusal: &Refusal, format: Format) -> Response<Bytes> {
    // gRPC has INTERNAL for a body that is not as its headers say; in HTTP it is the client's fault by its status.
    let code = if refusal.reason == Reason::Framing { Code::InvalidArgument } else { refusal.code };
    let mut response = with_status(http_status(refusal), code, &refusal.message, format);
    if let Some(delay) = refusal.retry_after {
        let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Returns an answer with `google.rpc.Status` as its body.
fn with_status(status: StatusCode, code: Code, message: &str, format: Format) -> Response<Bytes> {
    let message = shortened(message, MAX_MESSAGE);
    let code = i32::from(code);
    let body = match format {
        Format::Protobuf => {
            tonic_types::Status { code, message: message.into_owned(), details: Vec::new() }.encode_to_vec()
        }
        Format::Json => json!({ "code": code, "message": message }).to_string().into_bytes(),
    };
    with(status, format.content_type(), body.into())
}
