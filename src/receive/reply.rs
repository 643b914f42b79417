//! Maps the outcome of a request to the answer for its client: in gRPC, and as an HTTP status for OTLP/HTTP.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header::CONTENT_TYPE};
use http_body::{Body, Frame};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceResponse};
use prost::Message;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::side_services::Answer;
use crate::{
    codec::{Encoding, compress},
    otlp::{
        Framed, Outcome, Reason, Refusal,
        framed::PREFIX_LEN,
        text::{MAX_MESSAGE, shortened},
    },
};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// The encodings that requests may use.
pub(super) const ACCEPTED_ENCODINGS: HeaderValue = HeaderValue::from_static("identity,gzip,zstd,snappy");

/// The compression level of replies: the fastest, since they are short.
const REPLY_LEVEL: u32 = 1;

/// An empty `Export*ServiceResponse` with its prefix. It means full success for every signal.
static EMPTY_RESPONSE: Bytes = Bytes::from_static(&[0; PREFIX_LEN]);

/// The body of a reply. It is empty if the status is in the headers.
#[derive(Debug, Default)]
pub enum ReplyBody {
    /// Nothing is left to send.
    #[default]
    Done,
    /// A message, then `grpc-status: 0`.
    Message(Bytes),
    /// `grpc-status: 0`.
    Trailers,
    /// Plain text for clients that do not speak gRPC, without trailers.
    Text(Bytes),
    /// The answer of a side service.
    SideService(Box<Answer>),
}

/// Returns the gRPC reply to an export request. A partial success is compressed, if the client accepts an
/// `encoding`.
pub(super) fn grpc(outcome: Outcome, encoding: Option<Encoding>) -> Response<ReplyBody> {
    match outcome {
        Outcome::Accepted { rejected: 0, message: None } => with_message(EMPTY_RESPONSE.clone()),
        Outcome::Accepted { rejected, message } => {
            with_partial_success(&partial_success(rejected, &message.unwrap_or_default()), encoding)
        }
        Outcome::Refused(refusal) => refused(refusal),
    }
}

/// Returns the message of a partial success.
pub(super) fn partial_success(rejected: u64, message: &str) -> Vec<u8> {
    // The responses of all signals have the same fields with the same numbers.
    ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess {
            rejected_spans: i64::try_from(rejected).unwrap_or(i64::MAX),
            error_message: shortened(message, MAX_MESSAGE).into_owned(),
        }),
    }
    .encode_to_vec()
}

/// Returns the reply to a request that is not gRPC: an HTTP status together with the gRPC status, as grpc-go does. The
/// body repeats the message for people who use a browser or curl, unless the request is a HEAD.
pub(super) fn not_grpc(http: StatusCode, refusal: Refusal, method: &Method) -> Response<ReplyBody> {
    let text = if method == Method::HEAD { Bytes::new() } else { format!("{}\n", refusal.message).into() };
    let mut response = refused(refusal).map(|_| ReplyBody::Text(text));
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    *response.status_mut() = http;
    response
}

/// Returns the HTTP status of a refusal. It is the one that the Collector's OTLP/HTTP receiver uses, except that a
/// message which is too large gets `413`.
///
/// OTLP/HTTP clients retry only 429, 502, 503 and 504. So a refusal with `retry_after` must become one of them, and a
/// permanent one must not.
pub fn http_status(refusal: &Refusal) -> StatusCode {
    match (refusal.code, refusal.reason) {
        (Code::ResourceExhausted, _) if refusal.retry_after.is_some() => StatusCode::TOO_MANY_REQUESTS,
        (Code::ResourceExhausted, _) => StatusCode::PAYLOAD_TOO_LARGE,
        (
            Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss,
            _,
        ) => StatusCode::SERVICE_UNAVAILABLE,
        (_, Reason::Framing) | (Code::InvalidArgument, _) => StatusCode::BAD_REQUEST,
        (Code::Unauthenticated, _) => StatusCode::UNAUTHORIZED,
        (Code::PermissionDenied, _) => StatusCode::FORBIDDEN,
        (Code::Unimplemented, _) => StatusCode::NOT_FOUND,
        (
            Code::Ok | Code::Unknown | Code::NotFound | Code::AlreadyExists | Code::FailedPrecondition | Code::Internal,
            _,
        ) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn with_message(message: Bytes) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::Message(message));
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

fn with_partial_success(response: &[u8], encoding: Option<Encoding>) -> Response<ReplyBody> {
    let compressed = encoding.and_then(|encoding| {
        let message = compress(encoding, REPLY_LEVEL, [response].into_iter(), response.len());
        Some((message.ok()?, encoding))
    });
    match (compressed, Framed::copy_from_payload(response)) {
        (Some((message, encoding)), _) => {
            let mut response = with_message(message);
            response.headers_mut().insert(GRPC_ENCODING, HeaderValue::from_static(encoding.as_str()));
            response
        }
        (None, Some(framed)) => with_message(framed.to_bytes()),
        // An empty message would mean that all records were accepted.
        (None, None) => {
            let what = "internal error of the proxy: its answer is too long for gRPC";
            refused(Refusal::retryable(Reason::Internal, what))
        }
    }
}

fn refused(refusal: Refusal) -> Response<ReplyBody> {
    let message = shortened(&refusal.message, MAX_MESSAGE);
    let status = match refusal.retry_after {
        Some(delay) => Status::with_error_details(refusal.code, message, ErrorDetails::with_retry_info(Some(delay))),
        None => Status::new(refusal.code, message),
    };
    let mut response = status.into_http();
    if refusal.reason == Reason::Unimplemented {
        response.headers_mut().insert(GRPC_ACCEPT_ENCODING, ACCEPTED_ENCODINGS);
    }
    response
}

// === impl ReplyBody ===

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Self::SideService(answer) = &mut *self {
            return answer.poll(context);
        }
        Poll::Ready(match std::mem::take(&mut *self) {
            Self::Done | Self::SideService(_) => None,
            Self::Message(message) => {
                *self = Self::Trailers;
                Some(Ok(Frame::data(message)))
            }
            Self::Text(text) if text.is_empty() => None,
            Self::Text(text) => Some(Ok(Frame::data(text))),
            Self::Trailers => {
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
                Some(Ok(Frame::trailers(trailers)))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Done => true,
            Self::Text(text) => text.is_empty(),
            Self::Message(_) | Self::Trailers => false,
            Self::SideService(answer) => answer.is_end(),
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::{
        logs::v1::ExportLogsServiceResponse, metrics::v1::ExportMetricsServiceResponse,
        profiles::v1development::ExportProfilesServiceResponse,
    };

    use super::*;

    #[test]
    fn http_status_and_grpc_code_agree_on_whether_to_retry() {
        let status = |code, reason| http_status(&Refusal::permanent(code, reason, "")).as_u16();
        for code in [
            Code::Cancelled,
            Code::DeadlineExceeded,
            Code::Aborted,
            Code::OutOfRange,
            Code::Unavailable,
            Code::DataLoss,
        ] {
            assert_eq!(status(code, Reason::Backend), 503, "{code:?}");
        }
        assert_eq!(status(Code::ResourceExhausted, Reason::TooLarge), 413);
        assert_eq!(status(Code::InvalidArgument, Reason::Malformed), 400);
        assert_eq!(status(Code::Internal, Reason::Framing), 400);
        assert_eq!(status(Code::Internal, Reason::Backend), 500);
        assert_eq!(status(Code::Unauthenticated, Reason::Backend), 401);
        assert_eq!(status(Code::PermissionDenied, Reason::Backend), 403);
        assert_eq!(status(Code::Unimplemented, Reason::Unimplemented), 404);
        assert_eq!(status(Code::Unknown, Reason::Backend), 500);
        let mut refusal = Refusal::retryable(Reason::Backend, "");
        assert_eq!(http_status(&refusal).as_u16(), 503);
        refusal.code = Code::ResourceExhausted;
        assert_eq!(http_status(&refusal).as_u16(), 429);
    }

    #[test]
    fn a_partial_success_decodes_for_every_signal() {
        let payload = &partial_success(7, "seven")[..];
        let metrics = ExportMetricsServiceResponse::decode(payload).unwrap().partial_success.unwrap();
        assert_eq!((metrics.rejected_data_points, metrics.error_message.as_str()), (7, "seven"));
        let logs = ExportLogsServiceResponse::decode(payload).unwrap().partial_success.unwrap();
        assert_eq!((logs.rejected_log_records, logs.error_message.as_str()), (7, "seven"));
        let profiles = ExportProfilesServiceResponse::decode(payload).unwrap().partial_success.unwrap();
        assert_eq!((profiles.rejected_profiles, profiles.error_message.as_str()), (7, "seven"));
    }

    #[test]
    fn long_messages_are_shortened() {
        let outcome = Outcome::Accepted { rejected: 1, message: Some("x".repeat(300)) };
        let ReplyBody::Message(framed) = grpc(outcome, None).into_body() else {
            panic!("a partial success must have a message");
        };
        let reply = ExportTraceServiceResponse::decode(&framed[PREFIX_LEN..]).unwrap().partial_success.unwrap();
        assert_eq!(reply.error_message, format!("{}…", "x".repeat(253)));
        let response = refused(Refusal::permanent(Code::Internal, Reason::Backend, "x".repeat(300)));
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.message(), reply.error_message);
    }
}
