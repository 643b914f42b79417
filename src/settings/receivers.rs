//! The section `receivers`: where and how OTLP is received.

use std::time::Duration;

use super::{
    addresses::{ListenAddress, OTLP_GRPC_PORT},
    section::{IfWritten, section},
    tls::ServerTls,
    values::{ByteSize, Mebibytes},
};

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
}
