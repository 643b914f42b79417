//! What a call hears: header, message, trailers; the message is looked at only when it says more than "all accepted".

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

/// A reply's message, at most: what OTLP asks clients to take.
pub(super) const MAX_REPLY: usize = 4 << 20;

/// A reply on its way.
#[derive(Debug)]
pub(super) enum Reply {
    /// Nothing was heard yet.
    Head(ResponseFuture),
    /// The header was heard.
    Body { stream: RecvStream, headers: HeaderMap, data: Data },
}

/// A reply's message as far as it was heard.
#[derive(Debug, Default)]
pub(super) enum Data {
    #[default]
    Empty,
    /// What came in one frame is not copied.
    One(Bytes),
    Many(BytesMut),
    TooLarge,
}

/// `Export*ServiceResponse`: the same numbers for every signal (opentelemetry-proto 1.11).
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
    /// Hears what came.
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
                // A stream that ended meanwhile has no window left to give back.
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
        // It ended without a status: what it did with the call is unknown.
        None => Verdict::Failed { failure: Failure::Protocol, reached: true, scope: Scope::Stream },
    })
}

/// The status of an answer that consists of its header: a server may reset the rest of a request that it refused.
fn early_status(headers: &HeaderMap) -> Option<Verdict> {
    Verdict::of_status(headers).filter(|verdict| !matches!(verdict, Verdict::Accepted(_)))
}

/// What an OK reply says beyond OK. It stays OK when it can't be read: the backend took the records.
fn partial_of(headers: &HeaderMap, data: &Data) -> Option<Partial> {
    let data = match data {
        Data::Empty => return None,
        Data::One(data) => data.as_ref(),
        Data::Many(data) => data.as_ref(),
        Data::TooLarge => return unread("it is larger than 4 MiB"),
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

fn unread(why: &str) -> Option<Partial> {
    Some(Partial { rejected: 0, message: format!("the backend's reply was not read: {why}") })
}

impl Data {
    fn add(&mut self, chunk: Bytes) {
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
