//! The HTTP/2 client: the settings of a new connection to a backend, and the request headers of its calls.

use std::{net::SocketAddr, time::Duration};

use h2::client::{Builder, Connection, SendRequest};
use http::{
    HeaderMap, HeaderValue, Method, Request, Uri, Version,
    header::{CONTENT_TYPE, HeaderName, TE, USER_AGENT},
    uri::{Authority, PathAndQuery, Scheme},
};

use super::{
    Failure, dialer,
    stream::Stream,
    wire::{Outlet, Wire, gather},
};
use crate::{
    access::Access,
    lifecycle::{INSTANCE_HEADER, instance},
    otlp::{Chunk, Signal, metadata::HOPS_HEADER},
    settings::Delivery,
};

/// Receive window of one stream. Most replies have a few bytes; the largest have 4 MiB and are read as they arrive.
const REPLY_WINDOW: u32 = 64 << 10;

/// Maximum size of a reply's headers or trailers. A Collector's longest status message fits.
const MAX_HEADER_LIST: u32 = 16 << 10;

/// The protocol in TLS's handshake (RFC 9113, 3.2).
const ALPN: &[u8] = b"h2";

/// Maximum number of reset streams that h2 remembers, because frames for them may still arrive. Only calls that time out are
/// reset.
const MAX_RESET_STREAMS: usize = 64;

/// A new connection.
pub(super) struct Connected {
    pub(super) sender: SendRequest<Chunk>,
    pub(super) connection: Connection<Wire<Stream>, Chunk>,
    pub(super) outlet: Outlet<Stream>,
}

/// The prepared requests to one backend, one for each signal.
#[derive(Debug)]
pub(super) struct Templates {
    requests: Option<[Request<()>; Signal::ALL.len()]>,
    timeout: Duration,
}

/// Connects to the backend with this identity and begins HTTP/2. Does not wait for the peer's SETTINGS.
pub(super) async fn connect(access: &Access, identity: &str, address: SocketAddr) -> Result<Connected, Failure> {
    let stream = dialer::dial(access, identity, address, ALPN).await?;
    let (wire, outlet) = gather(stream, Stream::packet_len);
    let (sender, connection) = Builder::new()
        .enable_push(false)
        .initial_window_size(REPLY_WINDOW)
        .initial_connection_window_size(1 << 20)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_concurrent_reset_streams(MAX_RESET_STREAMS)
        // A backend that pauses and resumes answers many calls that were reset long before. That must not end the connection
        // with all its calls in flight.
        .max_local_error_reset_streams(None)
        // Allows one call until the peer's SETTINGS arrive: it might refuse more.
        .initial_max_send_streams(1)
        .handshake(wire)
        .await
        .map_err(|_| Failure::Protocol)?;
    Ok(Connected { sender, connection, outlet })
}

/// The authority of requests to a backend: its identity if that is a valid authority with a port, else its address.
pub(super) fn authority_of(identity: &str, address: Option<SocketAddr>) -> Option<Authority> {
    let of_identity = Authority::try_from(identity).ok().filter(|authority| authority.port().is_some());
    of_identity.or_else(|| Authority::try_from(address?.to_string()).ok())
}

impl Templates {
    /// Prepares the requests to a backend.
    pub(super) fn new(identity: &str, address: Option<SocketAddr>, keys: &Delivery, access: &Access) -> Self {
        let authority = authority_of(identity, address);
        let headers = headers_of(keys, access);
        let request = |signal: Signal| {
            let mut uri = http::uri::Parts::default();
            uri.scheme = Some(if access.tls().is_some() { Scheme::HTTPS } else { Scheme::HTTP });
            uri.authority.clone_from(&authority);
            uri.path_and_query = Some(PathAndQuery::from_static(signal.grpc_path()));
            let mut request = Request::new(());
            *request.method_mut() = Method::POST;
            *request.version_mut() = Version::HTTP_2;
            *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
            *request.headers_mut() = headers.clone();
            request
        };
        Self { requests: authority.is_some().then(|| Signal::ALL.map(request)), timeout: keys.timeout }
    }

    /// Returns the request of one call with this `timeout`.
    pub(super) fn request(&self, signal: Signal, timeout: Duration) -> Option<Request<()>> {
        let mut request = self.requests.as_ref()?.get(signal.index())?.clone();
        if timeout < self.timeout {
            request.headers_mut().insert(GRPC_TIMEOUT, timeout_value(timeout));
        }
        Some(request)
    }
}

/// The header that names the encoding of a call's message.
pub(super) const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

fn headers_of(keys: &Delivery, access: &Access) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(9);
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("spanring/", env!("CARGO_PKG_VERSION"))));
    headers.insert(GRPC_TIMEOUT, timeout_value(keys.timeout));
    // If the backend turns out to be this process, it recognizes its own calls and refuses them.
    if let Ok(instance) = HeaderValue::from_str(instance()) {
        headers.insert(HeaderName::from_static(INSTANCE_HEADER), instance);
    }
    // A request that came through another proxy brings a larger number.
    headers.insert(HeaderName::from_static(HOPS_HEADER), HeaderValue::from_static("1"));
    // All encodings that requests may use: grpc-go answers in the request's encoding, whatever this header says.
    headers.insert("grpc-accept-encoding", HeaderValue::from_static("identity,gzip,zstd"));
    if let Some(encoding) = keys.compression.encoding() {
        headers.insert(GRPC_ENCODING, HeaderValue::from_static(encoding.as_str()));
    }
    headers.extend(access.headers().iter().cloned());
    headers
}

/// Formats a `grpc-timeout` in milliseconds, with at most eight digits.
fn timeout_value(timeout: Duration) -> HeaderValue {
    let mut left = timeout.as_millis().clamp(1, 99_999_999);
    let mut text = [b'm'; 9];
    let mut start = text.len() - 1;
    while left > 0 && start > 0 {
        start -= 1;
        if let Some(digit) = text.get_mut(start) {
            *digit = b'0' + u8::try_from(left % 10).unwrap_or(0);
        }
        left /= 10;
    }
    HeaderValue::from_bytes(text.get(start..).unwrap_or_default())
        .unwrap_or_else(|_| HeaderValue::from_static("99999999m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_written_in_milliseconds() {
        assert_eq!(timeout_value(Duration::from_secs(5)), "5000m");
        assert_eq!(timeout_value(Duration::ZERO), "1m");
        assert_eq!(timeout_value(Duration::MAX), "99999999m");
    }

    #[test]
    fn an_identity_that_is_no_authority_is_replaced_by_the_address() {
        let address = Some("[::1]:4317".parse().unwrap());
        let uri = |identity| {
            let templates = Templates::new(identity, address, &Delivery::default(), &Access::default());
            templates.request(Signal::Traces, Duration::MAX).unwrap().uri().authority().unwrap().to_string()
        };
        assert_eq!(uri("collector-0.obs:4317"), "collector-0.obs:4317");
        assert_eq!(uri("collector-0"), "[::1]:4317");
        assert_eq!(uri("what ever:1"), "[::1]:4317");
    }
}
