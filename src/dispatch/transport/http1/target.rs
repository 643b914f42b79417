//! A backend as its HTTP/1.1 connections see it: the prepared requests, and what the connections share.

use std::{convert::Infallible, io, net::SocketAddr, pin::Pin, sync::Arc, task::Poll, time::Duration, vec};

use bytes::{Buf, Bytes};
use http::{
    HeaderMap, HeaderValue, Method, Request, Uri,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderName, USER_AGENT},
};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::probe::Probes;
use crate::{
    access::Access,
    dispatch::transport::{Contents, body, client::authority_of},
    lifecycle::{INSTANCE_HEADER, instance},
    otlp::{Signal, framed::PREFIX_LEN, metadata::HOPS_HEADER},
    settings::{Delivery, OtlpHttp},
};

/// The media type of OTLP/HTTP with protobuf.
pub(super) const PROTOBUF: &str = "application/x-protobuf";

/// One backend that is called by OTLP/HTTP.
#[derive(Debug)]
pub(in crate::dispatch::transport) struct Target {
    /// One request for each signal; `None` if the backend has no address.
    requests: Option<[Request<()>; Signal::ALL.len()]>,
    /// How long a connection may have no call until it is closed.
    pub(super) idle_timeout: Option<Duration>,
    /// Asks the backend whether it is alive.
    pub(super) probes: Arc<Probes>,
    /// The place of the one call that is kept open after its clients have left.
    orphans: Arc<Semaphore>,
}

/// The body of a request.
#[derive(Debug)]
pub(super) struct Payload {
    buffers: vec::IntoIter<Bytes>,
    /// The number of bytes that were not handed out yet.
    left: u64,
}

impl Target {
    /// Prepares the requests to the backend with this identity.
    pub(in crate::dispatch::transport) fn new(
        identity: &Arc<str>,
        address: Option<SocketAddr>,
        http: &OtlpHttp,
        access: &Access,
    ) -> Self {
        let host = authority_of(identity, address).and_then(|host| HeaderValue::from_str(host.as_str()).ok());
        let request = |host: &HeaderValue| {
            Signal::ALL.map(|signal| {
                let mut request = Request::new(());
                *request.method_mut() = Method::POST;
                *request.uri_mut() = path_of(http, signal);
                *request.headers_mut() = headers_of(host.clone(), access);
                request
            })
        };
        Self {
            requests: host.as_ref().map(request),
            idle_timeout: http.idle_conn_timeout,
            probes: Arc::new(Probes::new(identity, address, access, http)),
            orphans: Arc::new(Semaphore::new(1)),
        }
    }

    /// Returns the request of one call with these `contents`.
    pub(super) fn request(&self, contents: &impl Contents, keys: &Delivery) -> io::Result<Request<Payload>> {
        let request = self.requests.as_ref().and_then(|requests| requests.get(contents.signal().index()));
        let (mut head, ()) = request.ok_or(io::ErrorKind::AddrNotAvailable)?.clone().into_parts();
        if let Some(metadata) = contents.metadata() {
            metadata.add_to(&mut head.headers);
        }
        let encoding = contents.encoding(keys.compression);
        if let Some(encoding) = encoding {
            head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding.as_str()));
        }
        let buffers = body::build(contents, encoding, keys.compression_params.level)?;
        Ok(Request::from_parts(head, Payload::after_prefix(buffers)))
    }

    /// Takes the place of the call that is kept open after its clients have left, if it is free.
    pub(super) fn take_orphans_place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.orphans).try_acquire_owned().ok()
    }
}

/// Returns the least number of bytes that a request has when it is written: hyper adds the length of the body.
pub(super) fn least_len(request: &Request<Payload>) -> u64 {
    let line = "POST  HTTP/1.1\r\n\r\n".len() + request.uri().path().len();
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    u64::try_from(line + headers.sum::<usize>()).unwrap_or(u64::MAX).saturating_add(request.body().left)
}

/// The path of a signal. It was checked when the configuration was read.
pub(in crate::dispatch::transport) fn path_of(http: &OtlpHttp, signal: Signal) -> Uri {
    http.path(signal).1.parse().unwrap_or_default()
}

fn headers_of(host: HeaderValue, access: &Access) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(HOST, host);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROTOBUF));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("spanring/", env!("CARGO_PKG_VERSION"))));
    // Answers have a few bytes.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    // If the backend turns out to be this process, it recognizes its own calls and refuses them.
    if let Ok(instance) = HeaderValue::from_str(instance()) {
        headers.insert(HeaderName::from_static(INSTANCE_HEADER), instance);
    }
    // A request that came through another proxy brings a larger number.
    headers.insert(HeaderName::from_static(HOPS_HEADER), HeaderValue::from_static("1"));
    headers.extend(access.headers().iter().cloned());
    headers
}

// === impl Payload ===

impl Payload {
    /// The body of a gRPC call without gRPC's prefix.
    fn after_prefix(mut buffers: Vec<Bytes>) -> Self {
        let mut skip = PREFIX_LEN;
        for buffer in &mut buffers {
            let skipped = skip.min(buffer.len());
            buffer.advance(skipped);
            skip -= skipped;
        }
        buffers.retain(|buffer| !buffer.is_empty());
        let left = buffers.iter().map(|buffer| u64::try_from(buffer.len()).unwrap_or(u64::MAX)).sum();
        Self { buffers: buffers.into_iter(), left }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.buffers.next();
        if let Some(buffer) = &next {
            self.left = self.left.saturating_sub(u64::try_from(buffer.len()).unwrap_or(u64::MAX));
        }
        Poll::Ready(next.map(|buffer| Ok(Frame::data(buffer))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests;
