//! Reads and classifies the answer to a call, as OTLP/HTTP says (opentelemetry-proto, "OTLP/HTTP Response").

use std::{
    future::Future,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::{body::Incoming, client::conn::TrySendError};
use prost::Message;
use tokio::time::timeout;
use tonic::Code;

use super::target::PROTOBUF;
use crate::{
    codec::{Encoding, inflate_uncounted},
    dispatch::transport::{
        Failure, Scope, Verdict,
        outcome::{Partial, retry_after},
        reply::{Data, MAX_REPLY, partial_in, unread},
    },
    otlp::text::{MAX_MESSAGE, shortened},
};

/// How long the body of a success may take. Its status has said already that the backend has the records.
const SUCCESS_TIMEOUT: Duration = Duration::from_secs(1);

/// An answer that is being read.
#[derive(Debug, Default)]
pub(super) struct Reply {
    head: Option<(StatusCode, HeaderMap)>,
    data: Data,
    /// Whether the body was read to its end.
    is_whole: bool,
}

/// The reason why an answer could not be read.
#[derive(Debug)]
pub(super) enum Unread {
    /// Nothing of the request was written.
    NotSent,
    /// The connection failed.
    Broken(hyper::Error),
}

impl Reply {
    /// Reads the answer. Of a body that is too large only the beginning is read. `is_success` is set once the status says
    /// that the backend has taken the records.
    pub(super) async fn read<B>(
        &mut self,
        response: impl Future<Output = Result<Response<Incoming>, TrySendError<B>>>,
        is_success: &AtomicBool,
    ) -> Result<(), Unread> {
        let response = response.await.map_err(|error| match error.message() {
            Some(_) => Unread::NotSent,
            None => Unread::Broken(error.into_error()),
        })?;
        let (head, body) = response.into_parts();
        let said_success = head.status.is_success();
        is_success.store(said_success, Ordering::Relaxed);
        let length = head.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        self.head = Some((head.status, head.headers));
        if length.is_some_and(|length: usize| length > MAX_REPLY) {
            self.data = Data::TooLarge;
        }
        if said_success {
            // The rest of a body that is late is not read.
            return timeout(SUCCESS_TIMEOUT, self.read_body(body)).await.unwrap_or(Ok(()));
        }
        self.read_body(body).await
    }

    async fn read_body(&mut self, mut body: Incoming) -> Result<(), Unread> {
        while !matches!(self.data, Data::TooLarge) {
            match body.frame().await {
                Some(Ok(frame)) => frame.into_data().into_iter().for_each(|data| self.data.add(data)),
                Some(Err(error)) => return Err(Unread::Broken(error)),
                None => {
                    self.is_whole = true;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Whether the answer was read to its end, so that the connection can carry another one.
    pub(super) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Classifies what was read; `None` if nothing was.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        let (status, headers) = self.head.as_ref()?;
        let after = retry_after(headers);
        // A backend's own answer has OTLP's media types. Proxies on the way say `text/html` or `text/plain`.
        let is_own = after.is_some() || is_otlp(headers);
        Some(match status.as_u16() {
            // A page for people says that this is no receiver.
            200..=299 if kind_of(headers).starts_with("text/html") => {
                let message = format!("the backend answered HTTP {status} with text/html: is it an OTLP/HTTP port?");
                Verdict::Refused { code: Code::Unknown, message }
            }
            200..=299 => Verdict::Accepted(self.partial(headers)),
            // A server or a proxy did not get the request in time.
            408 => Verdict::Busy { code: Code::DeadlineExceeded, after },
            429 => Verdict::Busy { code: Code::ResourceExhausted, after },
            503 if is_own => Verdict::Busy { code: Code::Unavailable, after },
            // A gateway gave up. What is behind it may have the records.
            502 if is_own => Verdict::Busy { code: Code::Aborted, after },
            504 if is_own => Verdict::Busy { code: Code::DeadlineExceeded, after },
            status @ 502..=504 => Verdict::gateway(status),
            // What servers with TLS answer to a request in plaintext: Go's "Client sent an HTTP request to an HTTPS server." and
            // nginx's "The plain HTTP request was sent to HTTPS port".
            400 if !is_own && self.names_https() => {
                Verdict::Failed { failure: Failure::SpeaksTls, reached: false, scope: Scope::Stream }
            }
            status => Verdict::Refused { code: code_of(status), message: self.message(status, headers) },
        })
    }

    fn names_https(&self) -> bool {
        self.data.bytes().windows(5).any(|word| word == b"HTTPS")
    }

    /// Reads the `partial_success` of a success. A body that cannot be read does not change that it is one.
    fn partial(&self, headers: &HeaderMap) -> Option<Partial> {
        let data = match &self.data {
            Data::TooLarge => return unread("it is larger than 64 KiB"),
            _ if !self.is_whole => return unread("it did not arrive completely"),
            data => data.bytes(),
        };
        if data.is_empty() || !is_otlp(headers) {
            return None;
        }
        match inflated(headers, data) {
            Some(message) if is_protobuf(headers) => partial_in(&message),
            Some(message) => partial_in_json(&message),
            None => unread("it can't be decompressed"),
        }
    }

    /// The message of a refusal: that of the `Status` in its body, or the body if it is plain text.
    fn message(&self, status: u16, headers: &HeaderMap) -> String {
        let data = inflated(headers, self.data.bytes()).unwrap_or_default();
        let kind = kind_of(headers);
        let said = if is_protobuf(headers) {
            tonic_types::Status::decode(data.as_slice()).map(|status| status.message).unwrap_or_default()
        } else if kind.starts_with("text/plain") {
            String::from_utf8_lossy(&data).trim().to_owned()
        } else {
            String::new()
        };
        let message = match (said.as_str(), kind.as_str()) {
            ("", "") => format!("the backend answered HTTP {status} with no content type: is it an OTLP/HTTP port?"),
            ("", kind) => format!("the backend answered HTTP {status} with {kind}"),
            (said, _) => said.to_owned(),
        };
        shortened(&message, MAX_MESSAGE).into_owned()
    }
}

/// Reads the partial success of a JSON answer. It is the same for all signals but for the name of the number.
fn partial_in_json(message: &[u8]) -> Option<Partial> {
    let Ok(answer) = serde_json::from_slice::<serde_json::Value>(message) else {
        return unread("it is malformed JSON");
    };
    let partial = answer.get("partialSuccess")?.as_object()?;
    let number = |value: &serde_json::Value| value.as_u64().or_else(|| value.as_str()?.parse().ok());
    let rejected = partial.iter().find(|(name, _)| name.starts_with("rejected")).and_then(|(_, value)| number(value));
    let said = partial.get("errorMessage").and_then(serde_json::Value::as_str).unwrap_or_default();
    let (rejected, message) = (rejected.unwrap_or(0), shortened(said, MAX_MESSAGE).into_owned());
    (rejected > 0 || !message.is_empty()).then_some(Partial { rejected, message })
}

/// The gRPC code that stands for a permanent status, as in the Collector's receiver. Clients over HTTP get the status back.
fn code_of(status: u16) -> Code {
    match status {
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 | 405 | 415 | 501 => Code::Unimplemented,
        413 => Code::ResourceExhausted,
        400..=499 => Code::InvalidArgument,
        500..=599 => Code::Internal,
        _ => Code::Unknown,
    }
}

/// The content type in lower case; empty if there is none.
fn kind_of(headers: &HeaderMap) -> String {
    let kind = headers.get(header::CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()));
    kind.unwrap_or_default().trim().to_ascii_lowercase()
}

fn is_protobuf(headers: &HeaderMap) -> bool {
    kind_of(headers).starts_with(PROTOBUF)
}

fn is_otlp(headers: &HeaderMap) -> bool {
    let kind = kind_of(headers);
    kind.starts_with(PROTOBUF) || kind.starts_with("application/json")
}

/// The body without its compression.
fn inflated(headers: &HeaderMap, data: &[u8]) -> Option<Vec<u8>> {
    let name = headers.get(header::CONTENT_ENCODING).map_or(&b"identity"[..], |value| value.as_bytes());
    if data.is_empty() || name.eq_ignore_ascii_case(b"identity") {
        return Some(data.to_vec());
    }
    let encoding = Encoding::from_content_encoding(&name.to_ascii_lowercase())?;
    Some(inflate_uncounted(encoding, data, MAX_REPLY).ok()?.payload().into_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderName, HeaderValue};

    use super::*;

    fn reply(status: u16, headers: &[(&'static str, &'static str)], body: &[u8]) -> Reply {
        let header = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let mut data = Data::default();
        data.add(body.to_vec().into());
        let headers = headers.iter().map(header).collect();
        Reply { head: Some((StatusCode::from_u16(status).unwrap(), headers)), data, is_whole: true }
    }

    fn verdict(status: u16, headers: &[(&'static str, &'static str)], body: &[u8]) -> Verdict {
        reply(status, headers, body).verdict().unwrap()
    }

    const OWN: (&str, &str) = ("content-type", "application/x-protobuf");

    #[test]
    fn a_success_is_accepted_unless_its_body_is_a_page_for_people() {
        for status in [200, 202, 204] {
            assert_eq!(verdict(status, &[OWN], b""), Verdict::Accepted(None));
        }
        assert_eq!(verdict(200, &[("content-type", "text/plain")], b"ok"), Verdict::Accepted(None));
        assert_eq!(verdict(200, &[], b"ok"), Verdict::Accepted(None));
        let partial = |body: &[u8], headers: &[(&'static str, &'static str)]| match verdict(200, headers, body) {
            Verdict::Accepted(Some(partial)) => (partial.rejected, partial.message),
            other => panic!("{other:?}"),
        };
        // `partial_success { rejected_spans: 3 error_message: "no" }`
        let said = b"\x0a\x06\x08\x03\x12\x02no";
        assert_eq!(partial(said, &[OWN]), (3, "no".to_owned()));
        assert_eq!(partial(said, &[("content-type", "Application/X-Protobuf; charset=utf-8")]), (3, "no".to_owned()));
        assert!(partial(b"\xff", &[OWN]).1.contains("malformed"));
        let json = ("content-type", "application/json");
        let said_in_json = br#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"no"}}"#;
        assert_eq!(partial(said_in_json, &[json]), (3, "no".to_owned()));
        assert_eq!(verdict(200, &[json], b"{}"), Verdict::Accepted(None));
        assert!(partial(b"{", &[json]).1.contains("malformed"));
        let page = verdict(200, &[("content-type", "text/html; charset=utf-8")], b"<html>");
        assert!(matches!(page, Verdict::Refused { code: Code::Unknown, .. }), "{page:?}");
        assert!(partial(said, &[OWN, ("content-encoding", "gzip")]).1.contains("decompressed"));
        assert!(partial(&vec![0; MAX_REPLY + 100], &[OWN]).1.contains("larger than 64 KiB"));
        let cut = Reply { is_whole: false, ..reply(200, &[OWN], said) };
        let Some(Verdict::Accepted(Some(unread))) = cut.verdict() else { panic!("must be accepted") };
        assert!(unread.rejected == 0 && unread.message.contains("did not arrive"), "{}", unread.message);
    }

    #[test]
    fn retryable_statuses_are_busy_if_they_are_the_backends_own() {
        let after = |seconds| Some(Duration::from_secs(seconds));
        let busy = |code, after| Verdict::Busy { code, after };
        assert_eq!(verdict(429, &[], b""), busy(Code::ResourceExhausted, None));
        assert_eq!(verdict(408, &[], b""), busy(Code::DeadlineExceeded, None));
        assert_eq!(verdict(429, &[("retry-after", "7")], b""), busy(Code::ResourceExhausted, after(7)));
        assert_eq!(verdict(503, &[OWN], b""), busy(Code::Unavailable, None));
        assert_eq!(verdict(503, &[("content-type", "application/json")], b"{}"), busy(Code::Unavailable, None));
        assert_eq!(verdict(503, &[("retry-after", "2")], b""), busy(Code::Unavailable, after(2)));
        assert_eq!(verdict(504, &[("retry-after", "2")], b""), busy(Code::DeadlineExceeded, after(2)));
        let past = ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT");
        let now = ("date", "Sun, 29 Nov 2026 08:00:00 GMT");
        assert_eq!(verdict(502, &[past, now], b""), busy(Code::Aborted, after(0)));
        for status in [502, 503, 504] {
            let verdict = verdict(status, &[("content-type", "text/html")], b"<html>");
            let Verdict::Failed { failure, reached, .. } = verdict else { panic!("{verdict:?}") };
            assert_eq!((failure, reached), (Failure::Gateway(status), status != 503));
        }
    }

    #[test]
    fn a_server_with_tls_that_is_called_in_plaintext_did_not_get_the_call() {
        let go = (&[][..], &b"Client sent an HTTP request to an HTTPS server.\n"[..]);
        let nginx: (&[_], &[u8]) =
            (&[("content-type", "text/html")], b"<center>The plain HTTP request was sent to HTTPS port</center>");
        let expected = Verdict::Failed { failure: Failure::SpeaksTls, reached: false, scope: Scope::Stream };
        for (headers, body) in [go, nginx] {
            assert_eq!(verdict(400, headers, body), expected);
        }
    }

    #[test]
    fn every_other_status_is_permanent_and_its_message_is_passed_on() {
        let expected = [
            (400, Code::InvalidArgument),
            (401, Code::Unauthenticated),
            (403, Code::PermissionDenied),
            (404, Code::Unimplemented),
            (405, Code::Unimplemented),
            (413, Code::ResourceExhausted),
            (415, Code::Unimplemented),
            (500, Code::Internal),
            (501, Code::Unimplemented),
            (505, Code::Internal),
            (302, Code::Unknown),
        ];
        for (status, expected) in expected {
            let Verdict::Refused { code, message } = verdict(status, &[OWN], b"\x08\x03\x12\x04why?") else {
                panic!("HTTP {status} must be permanent")
            };
            assert_eq!((code, message.as_str()), (expected, "why?"));
        }
        let message = |headers: &[_], body: &[u8]| match verdict(400, headers, body) {
            Verdict::Refused { message, .. } => message,
            other => panic!("{other:?}"),
        };
        assert_eq!(message(&[("content-type", "text/plain; charset=utf-8")], b"bad\n"), "bad");
        assert!(message(&[("content-type", "text/html")], b"<b>").contains("HTTP 400 with text/html"));
        assert!(message(&[], b"").contains("is it an OTLP/HTTP port?"));
        assert_eq!(message(&[OWN], b"\x08\x03\x12\x05HTTPS"), "HTTPS", "the backend's own word");
        assert!(message(&[OWN], b"\xff").contains("HTTP 400 with application/x-protobuf"));
        assert_eq!(message(&[("content-type", "text/plain")], "é".repeat(300).as_bytes()).len(), MAX_MESSAGE - 1);
    }
}
