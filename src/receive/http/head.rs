//! Parses the headers of a request: the format of its message, and how it is compressed.

use http::{
    HeaderMap, HeaderValue, Method,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
    request::Parts,
};
use tokio::time::Instant;
use tonic::Code;

use super::super::{
    body::Framing,
    connection::Connection,
    exchange::{Limits, Order, check_loop},
};
use crate::{
    codec::Encoding,
    otlp::{Reason, Refusal},
};

/// The format of a message. The answer has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// `application/x-protobuf`
    Protobuf,
    /// `application/json`
    Json,
}

// === impl Format ===

impl Format {
    /// The formats that are taken, for people.
    pub(super) const TAKEN: &str = "application/x-protobuf or application/json";

    /// Returns the content type.
    pub(super) fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Protobuf => "application/x-protobuf",
            Self::Json => "application/json",
        })
    }
}

/// Returns the format that `content-type` names, in any case and with any parameters.
pub(super) fn format_of(headers: &HeaderMap) -> Option<Format> {
    let value = headers.get(CONTENT_TYPE)?.as_bytes();
    let name = value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let formats = [(&b"application/x-protobuf"[..], Format::Protobuf), (b"application/json", Format::Json)];
    formats.into_iter().find(|(known, _)| name.eq_ignore_ascii_case(known)).map(|(_, format)| format)
}

/// Returns whether a request is a gRPC call. Only HTTP/2 has these.
pub(super) fn is_grpc(parts: &Parts) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let has_type =
        |value: &HeaderValue| value.as_bytes().get(..GRPC.len()).is_some_and(|it| it.eq_ignore_ascii_case(GRPC));
    parts.version == http::Version::HTTP_2
        && parts.method == Method::POST
        && parts.headers.get(CONTENT_TYPE).is_some_and(has_type)
}

/// Parses the headers of a request that came at `now`, and whose body has `length` bytes if that is stated.
pub(super) fn order(
    headers: &HeaderMap,
    format: Format,
    length: Option<u64>,
    now: Instant,
    limits: &Limits,
    connection: &Connection,
) -> Result<Order, Refusal> {
    check_loop(headers)?;
    let encoding = encoding(headers)?;
    let framing = Framing::Bare { length, is_compressed: encoding.is_some() };
    let metadata = limits.metadata(headers, connection)?;
    Ok(Order { framing, encoding, is_json: format == Format::Json, deadline: limits.deadline(now, None), metadata })
}

/// Returns the encoding that `content-encoding` names, in any case; `None` for none or `identity`.
pub(super) fn encoding(headers: &HeaderMap) -> Result<Option<Encoding>, Refusal> {
    let mut values = headers.get_all(CONTENT_ENCODING).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let name = value.as_bytes().trim_ascii().to_ascii_lowercase();
    match &name[..] {
        _ if values.next().is_some() => Err(unknown_encoding()),
        b"" | b"identity" => Ok(None),
        name => Encoding::from_content_encoding(name).map(Some).ok_or_else(unknown_encoding),
    }
}

fn unknown_encoding() -> Refusal {
    let message = "unknown content-encoding; identity, gzip, zstd, deflate and snappy are understood, one at a time";
    Refusal::permanent(Code::InvalidArgument, Reason::Unimplemented, message)
}
