//! Reads the reply to a call: headers, message and trailers. The message is decoded only if the status is OK and the message is
//! not empty.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, client::ResponseFuture};
use http::HeaderMap;
use prost::Message;

use super::{
    Failure,
    outcome::{Partial, Scope, Verdict},
};
use crate::{
    codec::{Encoding, inflate_uncounted},
    otlp::{
        framed::PREFIX_LEN,
        text::{MAX_MESSAGE, shortened},
    },
};

/// Maximum size of a reply's message: the size that OTLP asks clients to accept.
pub(super) const MAX_REPLY: usize = 64 << 10;

/// A reply that is being read.
#[derive(Debug)]
pub(super) enum Reply {
    /// Nothing has arrived yet.
    Head(ResponseFuture),
    /// The headers have arrived.
    Body { stream: RecvStream, headers: HeaderMap, data: Data },
}

/// The part of a reply's message that has arrived.
#[derive(Debug, Default)]
pub(super) enum Data {
    #[default]
    Empty,
    /// One frame, which is not copied.
    One(Bytes),
    Many(BytesMut),
    TooLarge,
}

/// `Export*ServiceResponse`. Its field numbers are the same for every signal (opentelemetry-proto 1.11).
#[derive(Clone, PartialEq, Message)]
struct ExportResponse {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

impl Reply {
    /// Reads what has arrived. Ready once the result of the call is known.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Verdict> {
        loop {
            match self {
                Self::Head(response) => match ready!(Pin::new(response).poll(cx)) {
                    Ok(response) => {
                        let (head, stream) = response.into_parts();
                        if let Some(verdict) = Verdict::of_http(head.status, &head.headers) {
                            return Poll::Ready(verdict);
                        }
                        *self = Self::Body { stream, headers: head.headers, data: Data::Empty };
                    }
                    Err(error) => return Poll::Ready(Verdict::of_h2(&error)),
                },
                Self::Body { stream, headers, data } => return poll_body(stream, headers, data, cx),
            }
        }
    }
}

fn poll_body(stream: &mut RecvStream, headers: &HeaderMap, data: &mut Data, cx: &mut Context<'_>) -> Poll<Verdict> {
    while let Some(chunk) = ready!(stream.poll_data(cx)) {
        match chunk {
            Ok(chunk) => {
                // This fails only if the stream has ended, and then it does not matter.
                drop(stream.flow_control().release_capacity(chunk.len()));
                data.add(chunk);
            }
            Err(error) => return Poll::Ready(early_status(headers).unwrap_or_else(|| Verdict::of_h2(&error))),
        }
    }
    let verdict = match ready!(stream.poll_trailers(cx)) {
        Ok(Some(trailers)) => Verdict::of_status(&trailers),
        Ok(None) => Verdict::of_status(headers),
        Err(error) => Some(early_status(headers).unwrap_or_else(|| Verdict::of_h2(&error))),
    };
    Poll::Ready(match verdict {
        Some(Verdict::Accepted(_)) => Verdict::Accepted(partial_of(headers, data)),
        Some(verdict) => verdict,
        // The reply has no status, so it is unknown whether the backend took the call.
        None => Verdict::Failed { failure: Failure::Protocol, reached: true, scope: Scope::Stream },
    })
}

/// The status of a reply that consists of headers only. A server that refuses a call may reset the rest of its request.
fn early_status(headers: &HeaderMap) -> Option<Verdict> {
    Verdict::of_status(headers).filter(|verdict| !matches!(verdict, Verdict::Accepted(_)))
}

/// Reads the `partial_success` of an OK reply. A reply that cannot be read is still OK, since the backend took the records.
fn partial_of(headers: &HeaderMap, data: &Data) -> Option<Partial> {
    let data = match data {
        Data::Empty => return None,
        Data::One(data) => data.as_ref(),
        Data::Many(data) => data.as_ref(),
        Data::TooLarge => return unread("it is larger than 64 KiB"),
    };
    let (prefix, message) = data.split_at_checked(PREFIX_LEN)?;
    if message.is_empty() {
        return None;
    }
    let inflated;
    let message = if prefix.first() == Some(&0) {
        message
    } else {
        let encoding = headers.get("grpc-encoding").and_then(|name| Encoding::from_name(name.as_bytes()));
        let message = encoding.and_then(|encoding| inflate_uncounted(encoding, message, MAX_REPLY).ok());
        let Some(message) = message else { return unread("it can't be decompressed") };
        inflated = message.payload().into_owned();
        inflated.as_slice()
    };
    partial_in(message)
}

/// Reads the `partial_success` of an `Export*ServiceResponse`.
pub(super) fn partial_in(message: &[u8]) -> Option<Partial> {
    match ExportResponse::decode(message) {
        Ok(ExportResponse { partial_success: Some(PartialSuccess { rejected, error_message }) })
            if rejected > 0 || !error_message.is_empty() =>
        {
            let rejected = u64::try_from(rejected).unwrap_or(0);
            Some(Partial { rejected, message: shortened(&error_message, MAX_MESSAGE).into_owned() })
        }
        Ok(_) => None,
        Err(_) => unread("it is malformed"),
    }
}

/// Tells the client that the answer to its request was not read.
pub(super) fn unread(why: &str) -> Option<Partial> {
    Some(Partial { rejected: 0, message: format!("the backend's reply was not read: {why}") })
}

impl Data {
    /// What has arrived. Empty if that was too large.
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Empty | Self::TooLarge => &[],
            Self::One(data) => data,
            Self::Many(data) => data,
        }
    }

    pub(super) fn add(&mut self, chunk: Bytes) {
        if chunk.is_empty() {
            return;
        }
        let room = |held: usize| held + chunk.len() <= MAX_REPLY + PREFIX_LEN;
        *self = match std::mem::take(self) {
            Self::Empty if room(0) => Self::One(chunk),
            Self::One(held) if room(held.len()) => {
                let mut data = BytesMut::with_capacity(held.len() + chunk.len());
                data.extend_from_slice(&held);
                data.extend_from_slice(&chunk);
                Self::Many(data)
            }
            Self::Many(mut data) if room(data.len()) => {
                data.extend_from_slice(&chunk);
                Self::Many(data)
            }
            _ => Self::TooLarge,
        };
    }
}
