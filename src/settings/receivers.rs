//! The section `receivers`: where and how OTLP is received.

use std::time::Duration;

use super::{
    addresses::{ListenAddress, OTLP_GRPC_PORT, OTLP_HTTP_PORT},
    protocol::url_path,
    section::{IfWritten, section},
    tls::ServerTls,
    values::{ByteSize, Mebibytes},
};
use crate::otlp::Signal;

section! {
    /// `receivers`
    pub struct Receivers {
        /// The OTLP receiver.
        otlp: Otlp,
    }

    /// `receivers.otlp`
    pub struct Otlp {
        /// One section for each protocol.
        protocols: Protocols,
        /// The time within which a request is answered, unless its client sets a shorter one (`grpc-timeout`). SDKs
        /// give up after 10 s and send everything again, so it should be below that.
        deadline: Duration = Duration::from_secs(8),
    }

    /// `receivers.otlp.protocols`
    pub struct Protocols {
        /// OTLP/gRPC.
        grpc: Grpc,
        /// OTLP/HTTP. It is served only if this section is written, if only as `http:`.
        http: IfWritten<Http>,
    }

    /// `receivers.otlp.protocols.grpc`
    pub struct Grpc {
        /// The address that accepts OTLP/gRPC, `host:port`. A host name is looked up once, at start; an IPv4 address is
        /// preferred.
        endpoint: ListenAddress<OTLP_GRPC_PORT> = ListenAddress::local(),
        // OTLP's recommendation (opentelemetry-proto 1.11, docs/specification.md, "OTLP/gRPC Request").
        /// The largest message that is accepted, in MiB after decompression. A larger one is refused with
        /// `RESOURCE_EXHAUSTED` without `RetryInfo`, so that the client does not send it again.
        max_recv_msg_size_mib: Mebibytes = Mebibytes::of(64),
        /// The most unanswered requests on one connection.
        max_concurrent_streams: u32 = 100,
        /// The largest size of one request's headers.
        max_header_list_size: ByteSize = ByteSize(16 << 10),
        /// How long a connection may take for its handshake, and a request for its headers once they have begun.
        read_header_timeout: Duration = Duration::from_secs(10),
        /// The most connections that are open at once. A further one takes the place of the one that has had no request in
        /// progress for the longest time, at least a second, or is closed. The limit of open files can lower it, because
        /// some descriptors are kept for the admin address, probes, backends and files.
        max_connections: usize = 10_000,
        /// Names of request headers that are passed on to backends, e.g. `[x-scope-orgid]`. All other headers are
        /// dropped. Parts with different values never share a call. One request may carry at most 64 values or 4 KiB of
        /// them.
        include_metadata: Vec<String>,
        /// How long connections live.
        keepalive: Keepalive,
        /// TLS of the listener; plaintext without it.
        tls: IfWritten<ServerTls>,
    }

    /// `receivers.otlp.protocols.grpc.keepalive`
    pub struct Keepalive {
        /// The keys of the Collector that concern the server's side.
        server_parameters: ServerParameters,
    }

    /// `receivers.otlp.protocols.grpc.keepalive.server_parameters`
    pub struct ServerParameters {
        // This is rare enough to cost nothing, and often enough that a new replica soon has its share of clients.
        /// Age, ± 10 %, at which a client's connection gets GOAWAY and the client connects again, so that new replicas
        /// get clients. `0s` switches this off.
        max_connection_age: Option<Duration> = Some(Duration::from_secs(600)),
        // Far above the deadline of any request.
        /// How long such a connection's requests then have before it is closed. `0s` sets no limit.
        max_connection_age_grace: Option<Duration> = Some(Duration::from_secs(60)),
        // Longer than the usual pauses between exports: metrics are often sent once a minute.
        /// How long a connection may have no request in progress until it gets GOAWAY. Its client connects again for the
        /// next request. `0s` switches this off. Whatever is set here, the connection that has been idle for the longest
        /// time is closed for a new one while `max_connections` are open.
        max_connection_idle: Option<Duration> = Some(Duration::from_secs(300)),
    }

    /// `receivers.otlp.protocols.http`
    pub struct Http {
        /// The address that accepts OTLP/HTTP, `host:port`, by HTTP/1.1 and HTTP/2. OTLP/HTTP is served only if the section
        /// `http` is written; `http:` alone has all defaults. A host name is looked up once, at start; an IPv4 address is
        /// preferred.
        endpoint: ListenAddress<OTLP_HTTP_PORT> = ListenAddress::local(),
        /// The largest body that is accepted, before and after decompression. A larger one is refused with 413, so that the
        /// client does not send it again.
        max_request_body_size: ByteSize = ByteSize(20 << 20),
        /// The path that takes traces.
        traces_url_path: String = "/v1/traces".into(),
        /// The path that takes metrics.
        metrics_url_path: String = "/v1/metrics".into(),
        /// The path that takes logs.
        logs_url_path: String = "/v1/logs".into(),
        /// The path that takes profiles.
        profiles_url_path: String = "/v1development/profiles".into(),
        /// How long a connection may take for its handshake, and a request for its headers once they have begun.
        read_header_timeout: Duration = Duration::from_secs(10),
        // Longer than the usual pauses between exports, and as long as for gRPC. The Collector has one minute.
        /// How long a connection may have no request in progress until it ends. `0s` switches this off. Whatever is set
        /// here, the connection that has been idle for the longest time is closed for a new one while `max_connections` are
        /// open.
        idle_timeout: Option<Duration> = Some(Duration::from_secs(300)),
        /// Age, ± 10 %, at which a client is told to connect again, so that new replicas get clients: by `connection: close`
        /// in HTTP/1.1, by GOAWAY in HTTP/2. `0s` switches this off.
        max_connection_age: Option<Duration> = Some(Duration::from_secs(600)),
        /// How long such a connection's requests then have before it is closed. `0s` sets no limit.
        max_connection_age_grace: Option<Duration> = Some(Duration::from_secs(60)),
        /// The most connections that are open at once, as for gRPC.
        max_connections: usize = 10_000,
        /// The most unanswered requests on one HTTP/2 connection.
        max_concurrent_streams: u32 = 100,
        /// The largest size of one request's headers. Over HTTP/1.1 it is at most 64 KiB, whatever is set here.
        max_header_list_size: ByteSize = ByteSize(16 << 10),
        /// Names of request headers that are passed on to backends, as for gRPC.
        include_metadata: Vec<String>,
        /// Which web pages may send to this port from a browser; none without it.
        cors: IfWritten<Cors>,
        /// TLS of the listener; plaintext without it.
        tls: IfWritten<ServerTls>,
    }

    /// `receivers.otlp.protocols.http.cors`
    #[derive(Eq)]
    pub struct Cors {
        /// The origins of the web pages that may send here: `https://shop.example.com`, with `*` for any text
        /// (`https://*.example.com`), or `"*"` for every page. `navigator.sendBeacon` does not work with `"*"`.
        allowed_origins: Vec<String>,
        /// The request headers that these pages may set besides `Accept`, `Content-Type`, `Content-Encoding`, `Origin` and
        /// `X-Requested-With`; `"*"` for any.
        allowed_headers: Vec<String>,
        /// The response headers that these pages may read besides the usual ones.
        exposed_headers: Vec<String>,
        /// How many seconds a browser may keep the answer about what is allowed. 0 leaves that to the browser (5 s).
        max_age: u32,
    }
}

impl Http {
    /// Returns the key of a signal's path, and the path.
    pub fn path(&self, signal: Signal) -> (&'static str, &str) {
        let Self { traces_url_path, metrics_url_path, logs_url_path, profiles_url_path, .. } = self;
        url_path(signal, [traces_url_path, metrics_url_path, logs_url_path, profiles_url_path])
    }
}
