//! The result of a call, classified by its source (the backend's own status, or our transport) and by whether a retry can help.

use std::{borrow::Cow, fmt, time::Duration};

use http::{HeaderMap, StatusCode, header::CONTENT_TYPE};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{
    otlp::{
        outcome::is_retryable,
        text::{MAX_MESSAGE, shortened},
    },
    shortage::Shortage,
    tls::Reason,
};

/// The longest pause that is accepted from a backend. Longer ones are shortened to it.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// A failure of the connection to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// Connecting failed for another reason, for example because there is no route.
    ConnectError,
    /// The connection was refused: nothing listens at the address.
    ConnectRefused,
    /// The peer did not answer the connect in time.
    ConnectTimeout,
    /// A proxy between us and the backend answered with this HTTP status, because it cannot reach the backend.
    Gateway(u16),
    /// This process or machine lacks a resource. This says nothing about the backend.
    Local(Shortage),
    /// The peer did not answer a PING or a probe.
    Ping,
    /// The peer violated HTTP or gRPC.
    Protocol,
    /// The peer refuses every stream without processing it.
    RefusedStream,
    /// The connection or the stream was reset or closed before the answer arrived.
    Reset,
    /// A new connection was reset or closed before the peer sent anything.
    ResetAtOnce,
    /// The pool calls by gRPC, but the peer seems to speak HTTP/1.1 only.
    SpeaksHttp1,
    /// The pool calls by OTLP/HTTP, but the peer seems to speak HTTP/2 only.
    SpeaksHttp2,
    /// The pool is plaintext, but the peer speaks TLS.
    SpeaksTls,
    /// The peer did not answer within the attempt's timeout.
    Timeout,
    /// TLS failed.
    Tls(Reason),
    /// The peer sends GOAWAY on each new connection, or allows no stream.
    TurnedAway,
}

/// The result of one call.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::dispatch) enum Verdict {
    /// The status is OK. The value is the reply's `partial_success`, if it has one.
    Accepted(Option<Partial>),
    /// The backend's own retryable status.
    Busy { code: Code, after: Option<Duration> },
    /// Our transport failed. `reached` says whether the call may have reached the backend.
    Failed { failure: Failure, reached: bool, scope: Scope },
    /// The call was given up, because [`Work::is_given_up`](super::Work::is_given_up) said so.
    GivenUp,
    /// The backend's own permanent status.
    Refused { code: Code, message: String },
    /// This process is stopping.
    Stopped,
    /// The backend did not process the call: it said so by `REFUSED_STREAM` (then `refused` is true) or by GOAWAY, or the call
    /// never began.
    Unprocessed { refused: bool },
}

/// `partial_success` of a reply.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::dispatch) struct Partial {
    pub(in crate::dispatch) rejected: u64,
    pub(in crate::dispatch) message: String,
}

/// The extent of a transport failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dispatch) enum Scope {
    /// The connection with all its calls. The driver reports it as one failure of the backend.
    Connection,
    /// This call only, because its deadline passed. This is not counted as a failure of the backend.
    Request,
    /// This call only. It is counted as a failure of the backend.
    Stream,
}

impl Failure {
    /// The name in logs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConnectError => "connect_error",
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::Gateway(_) => "gateway",
            Self::Local(shortage) => shortage.as_str(),
            Self::Ping => "ping",
            Self::Protocol => "protocol",
            Self::RefusedStream => "refused_stream",
            Self::Reset => "reset",
            Self::ResetAtOnce => "reset_at_once",
            Self::SpeaksHttp1 => "speaks_http1",
            Self::SpeaksHttp2 => "speaks_http2",
            Self::SpeaksTls => "speaks_tls",
            Self::Timeout => "timeout",
            Self::Tls(reason) => match reason {
                Reason::BadName => "tls_bad_name",
                Reason::Closed => "tls_closed",
                Reason::Expired => "tls_expired",
                Reason::NoCertificate => "tls_no_certificate",
                Reason::NotTls => "tls_not_tls",
                Reason::Other => "tls_other",
                Reason::ProtocolVersion => "tls_protocol_version",
                Reason::Revoked => "tls_revoked",
                Reason::Timeout => "tls_timeout",
                Reason::UnknownCa => "tls_unknown_ca",
            },
            Self::TurnedAway => "turned_away",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConnectError => "cannot connect",
            Self::ConnectRefused => "connection refused",
            Self::ConnectTimeout => "no answer to a connect",
            Self::Gateway(status) => return write!(f, "a proxy on the way to it answered HTTP {status}"),
            Self::Local(shortage) => {
                return write!(f, "this proxy could not open a connection to it: {shortage} on this side");
            }
            Self::Ping => "no answer to a PING or a probe",
            Self::Protocol => "it does not speak gRPC or HTTP as it should",
            Self::RefusedStream => "it refuses every stream (REFUSED_STREAM)",
            Self::Reset => "connection or stream reset before the answer",
            Self::ResetAtOnce => "connection reset at once",
            Self::SpeaksHttp1 => {
                "its port seems to speak HTTP/1.1 and its pool calls by gRPC: use its port for OTLP/gRPC, or set the pool's \
                 protocol to otlp_http"
            }
            Self::SpeaksHttp2 => {
                "its port seems to speak HTTP/2 (gRPC) and its pool calls by OTLP/HTTP: set the pool's protocol to otlp, or use \
                 its port for OTLP/HTTP"
            }
            Self::SpeaksTls => "it speaks TLS and its pool is plaintext: add a tls section to the pool",
            Self::Timeout => "no answer within the timeout",
            Self::Tls(reason) => return write!(f, "TLS: {reason}"),
            Self::TurnedAway => "it accepts connections and takes no calls",
        })
    }
}

impl Verdict {
    /// Whether the backend itself answered.
    pub(in crate::dispatch) fn is_answer(&self) -> bool {
        matches!(self, Self::Accepted(_) | Self::Busy { .. } | Self::Refused { .. })
    }

    /// Classifies an error of the HTTP/2 layer.
    ///
    /// `REFUSED_STREAM` promises that nothing was processed (RFC 9113, 8.7), and h2 gives GOAWAY's error only to streams
    /// above the last one that the peer processed.
    pub(super) fn of_h2(error: &h2::Error) -> Self {
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        if error.is_remote() && (refused || error.is_go_away()) {
            return Self::Unprocessed { refused };
        }
        let scope = if error.is_reset() { Scope::Stream } else { Scope::Connection };
        Self::Failed { failure: failure_of(error), reached: true, scope }
    }

    /// Classifies the backend's own status: `grpc-status` and its details.
    pub(super) fn of_status(headers: &HeaderMap) -> Option<Self> {
        if headers.get("grpc-status")?.as_bytes() == b"0" {
            return Some(Self::Accepted(None));
        }
        let status = Status::from_header_map(headers)?;
        let after = status.get_details_retry_info().and_then(|info| info.retry_delay).map(sensible);
        let code = status.code();
        Some(if is_retryable(code, after.is_some()) {
            Self::Busy { code, after }
        } else {
            Self::Refused { code, message: shortened(status.message(), MAX_MESSAGE).into_owned() }
        })
    }

    /// Classifies an answer that is not gRPC by its HTTP status (grpc's `http-grpc-status-mapping.md`). Returns `None` if the
    /// answer is gRPC.
    pub(super) fn of_http(status: StatusCode, headers: &HeaderMap) -> Option<Self> {
        let content_type = headers.get(CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()));
        let is_grpc = content_type.as_ref().is_some_and(|value| value.starts_with("application/grpc"));
        if status == StatusCode::OK && (is_grpc || headers.contains_key("grpc-status")) {
            return None;
        }
        if let Some(verdict) = Self::of_status(headers).filter(|verdict| !matches!(verdict, Self::Accepted(_))) {
            return Some(verdict);
        }
        let code = match status.as_u16() {
            400 => Code::Internal,
            401 => Code::Unauthenticated,
            403 => Code::PermissionDenied,
            404 => Code::Unimplemented,
            429 => return Some(Self::Busy { code: Code::Unavailable, after: retry_after(headers) }),
            502..=504 => return Some(Self::gateway(status.as_u16())),
            _ => Code::Unknown,
        };
        let kind = content_type.unwrap_or(Cow::Borrowed("no content type"));
        let message = format!("the backend answered HTTP {} with {kind}: is it an OTLP/gRPC port?", status.as_u16());
        Some(Self::Refused { code, message: shortened(&message, MAX_MESSAGE).into_owned() })
    }

    /// The verdict if a proxy between us and the backend could not reach it. After 502 or 504 the backend may have the call;
    /// after 503 the proxy did not forward it.
    pub(super) fn gateway(status: u16) -> Self {
        Self::Failed { failure: Failure::Gateway(status), reached: status != 503, scope: Scope::Stream }
    }
}

/// Reads `Retry-After`, in seconds or as a date (RFC 9110, 10.2.3). A date is compared with the answer's own `Date`, so that
/// no clock here matters; without that it says nothing. A date in the past is no pause.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok().map(str::trim);
    let date = |text| httpdate::parse_http_date(text).ok();
    let until = text(http::header::RETRY_AFTER)?;
    let pause = match until.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => date(until)?.duration_since(text(http::header::DATE).and_then(date)?).unwrap_or_default(),
    };
    Some(sensible(pause))
}

/// Limits a pause, so that it can be added to any time without overflow. No request lives as long as the limit.
fn sensible(pause: Duration) -> Duration {
    pause.min(LONGEST_PAUSE)
}

fn failure_of(error: &h2::Error) -> Failure {
    if error.is_io() || (error.is_remote() && error.is_reset()) { Failure::Reset } else { Failure::Protocol }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn verdict_of(status: u16, headers: &[(&'static str, &'static str)]) -> Option<Verdict> {
        let header = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), http::HeaderValue::from_static(value))
        };
        Verdict::of_http(StatusCode::from_u16(status).unwrap(), &headers.iter().map(header).collect())
    }

    #[test]
    fn what_has_a_content_type_or_a_status_of_grpc_is_grpc() {
        for header in [("content-type", "application/grpc+proto"), ("grpc-status", "0")] {
            assert_eq!(verdict_of(200, &[header]), None);
        }
        let Some(Verdict::Refused { code: Code::Unknown, message }) = verdict_of(200, &[]) else { panic!("no gRPC") };
        assert!(message.contains("HTTP 200 with no content type"), "{message}");
    }

    #[test]
    fn a_backends_own_failure_counts_more_than_the_http_status() {
        let own = verdict_of(503, &[("grpc-status", "7"), ("grpc-message", "no")]);
        assert_eq!(own, Some(Verdict::Refused { code: Code::PermissionDenied, message: "no".to_owned() }));
        assert_eq!(verdict_of(503, &[("grpc-status", "0")]), Some(Verdict::gateway(503)), "nothing was accepted");
    }

    #[test]
    fn an_http_status_is_a_code() {
        let expected = [
            (400, Code::Internal),
            (401, Code::Unauthenticated),
            (403, Code::PermissionDenied),
            (404, Code::Unimplemented),
            (500, Code::Unknown),
        ];
        for (status, expected) in expected {
            let verdict = verdict_of(status, &[("content-type", "text/html")]);
            assert!(matches!(verdict, Some(Verdict::Refused { code, .. }) if code == expected), "{verdict:?}");
        }
        for status in [502, 503, 504] {
            let Some(Verdict::Failed { reached, .. }) = verdict_of(status, &[]) else { panic!("HTTP {status}") };
            assert_eq!(reached, status != 503);
        }
    }

    #[test]
    fn a_pause_in_seconds_or_until_a_date_is_taken_up_to_an_hour() {
        let dates = [("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)), ("Fri, 31 Dec 9999 23:59:59 GMT", Some(3600))];
        let pauses = [("7", Some(7)), (" 8 ", Some(8)), ("99999999999", Some(3600)), ("soon", None), ("-1", None)];
        for (value, expected) in pauses.into_iter().chain(dates) {
            let verdict = verdict_of(429, &[("retry-after", value), ("date", "Sun, 29 Nov 2026 08:00:00 GMT")]);
            let after = expected.map(Duration::from_secs);
            assert_eq!(verdict, Some(Verdict::Busy { code: Code::Unavailable, after }), "{value:?}");
        }
        let without_date = verdict_of(429, &[("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT")]);
        assert_eq!(without_date, Some(Verdict::Busy { code: Code::Unavailable, after: None }));
        assert_eq!(verdict_of(429, &[]), Some(Verdict::Busy { code: Code::Unavailable, after: None }));
    }
}
