//! The layout of a configuration file: the Collector's key names wherever the thing is the same.
//!
//! Every key has a default (`super::defaults`) except a pool's resolver and the routes. The table of
//! `deploy/docs/configuration.md` has a row for each key; a test compares the two.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    addresses,
    headers::Headers,
    tls,
    values::{Backend, ByteSize, GoDuration, HostPort, WorkerThreads},
};
pub use super::{
    invalid_ids::{InvalidIds, InvalidIdsBySignal},
    tls::{ClientTls, ServerTls},
};
use crate::telemetry::logs;

/// A whole file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Layout {
    /// Where OTLP comes in.
    pub receivers: Receivers,
    /// Named sets of backends.
    pub pools: BTreeMap<String, Pool>,
    /// Which signals go to which pool, by which key.
    pub routes: Vec<Route>,
    /// What is done with records whose trace ID is empty, zero or of a wrong length.
    pub invalid_trace_id: InvalidIdsBySignal,
    /// The bound on bytes that requests hold in memory.
    pub memory_limiter: MemoryLimiter,
    /// Threads that serve connections: `auto` is one for each CPU that the cgroup grants.
    pub worker_threads: WorkerThreads,
    /// Where metrics and probes are served.
    pub admin: Admin,
    /// Where probes are served apart from the admin pages, if they are.
    pub health_check: Option<HealthCheck>,
    /// How the process ends.
    pub shutdown: Shutdown,
    /// What the process says about itself.
    pub telemetry: Telemetry,
}

/// `receivers`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Receivers {
    /// OTLP.
    pub otlp: Otlp,
}

/// `receivers.otlp`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Otlp {
    /// One section for each protocol.
    pub protocols: Protocols,
    /// When a request that names no nearer deadline is answered. SDKs give up at 10 s and then send all again.
    pub deadline: GoDuration,
}

/// `receivers.otlp.protocols`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Protocols {
    /// OTLP/gRPC.
    pub grpc: Grpc,
}

/// `receivers.otlp.protocols.grpc`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grpc {
    /// Where it listens. A name is looked up once, IPv4 preferred.
    #[serde(deserialize_with = "addresses::grpc")]
    pub endpoint: HostPort,
    /// Bound on one inflated message.
    pub max_recv_msg_size_mib: usize,
    /// Bound on the unanswered requests of one connection.
    pub max_concurrent_streams: u32,
    /// Bound on the headers of one request.
    pub max_header_list_size: ByteSize,
    /// What the handshake of a connection may take, and the headers of a request once they have begun.
    pub read_header_timeout: GoDuration,
    /// Bound on connections.
    pub max_connections: usize,
    /// Headers of clients' requests whose values go on to backends; parts with different values never share a call.
    pub include_metadata: Vec<String>,
    /// How connections age.
    pub keepalive: Keepalive,
    /// TLS; without it plaintext.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "tls::section")]
    pub tls: Option<ServerTls>,
}

/// `receivers.otlp.protocols.grpc.keepalive`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keepalive {
    /// The server's part.
    pub server_parameters: ServerParameters,
}

/// `receivers.otlp.protocols.grpc.keepalive.server_parameters`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerParameters {
    /// Age at which a connection is told to go; `0s` is never.
    pub max_connection_age: GoDuration,
    /// How long its requests then have; `0s` is as long as they need.
    pub max_connection_age_grace: GoDuration,
}

/// `pools.NAME`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pool {
    /// Who the backends are.
    pub resolver: Resolver,
    /// How calls are compressed.
    pub compression: Codec,
    /// How hard.
    pub compression_params: CompressionParams,
    /// TLS; without it plaintext.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "tls::section")]
    pub tls: Option<ClientTls>,
    /// How long one attempt may take.
    pub timeout: GoDuration,
    /// Bound on one call's message, inflated. Collectors take 4 MiB unless told otherwise.
    pub max_request_size_mib: usize,
    /// HTTP/2 connections to each backend, for each shard.
    pub connections: usize,
    /// Independent sets of queues and connections.
    pub shards: usize,
    /// Headers of every call; their values are secrets.
    pub headers: Headers,
    /// What waits for one backend.
    pub sending_queue: SendingQueue,
    /// How failed parts are tried again, inside the request's deadline.
    pub retry_on_failure: Retry,
    /// How traces are placed.
    pub ring: Ring,
    /// When a backend that fails is ejected, so that its traces go elsewhere.
    pub outlier_detection: OutlierDetection,
    /// How long a backend that has left discovery and still answers is held.
    pub hold_down: GoDuration,
}

/// `pools.NAME.resolver`: exactly one of its sections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Resolver {
    /// A list.
    #[serde(rename = "static", skip_serializing_if = "Option::is_none")]
    pub r#static: Option<StaticResolver>,
    /// A name whose A and AAAA records are the backends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsResolver>,
}

/// `pools.NAME.resolver.static`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StaticResolver {
    /// The backends, `host:port` each; 4317 where the port is missing. What is written here is what is hashed.
    /// One text is taken too: what a variable holds, a list in YAML or with commas.
    #[serde(deserialize_with = "addresses::backends")]
    pub hostnames: Vec<Backend>,
    /// How often names among them are looked up again.
    pub interval: GoDuration,
    /// How long one look-up may take.
    pub timeout: GoDuration,
}

/// `pools.NAME.resolver.dns`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DnsResolver {
    /// The name; search lists hold unless it ends with a dot.
    pub hostname: String,
    /// The port of every backend.
    pub port: u16,
    /// How often it is looked up, give or take 10 %.
    pub interval: GoDuration,
    /// How long one look-up may take.
    pub timeout: GoDuration,
    /// Which addresses are backends.
    pub ip_family: AddressFamily,
}

/// Which addresses of a name are backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AddressFamily {
    /// A records if there are any, else AAAA.
    #[default]
    Auto,
    /// A records.
    Ipv4,
    /// AAAA records.
    Ipv6,
    /// Both.
    Both,
}

/// How calls are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Not at all.
    #[default]
    #[serde(alias = "")]
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// `pools.NAME.compression_params`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CompressionParams {
    /// 1 to 9 for gzip, 1 to 22 for zstd.
    pub level: u32,
}

/// `pools.NAME.sending_queue`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SendingQueue {
    /// What the bound counts: `bytes`, and nothing else.
    pub sizer: Sizer,
    /// The bound, for each backend.
    pub queue_size: ByteSize,
}

/// What a queue's bound counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sizer {
    /// Bytes.
    #[default]
    Bytes,
}

/// `pools.NAME.retry_on_failure`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// The first wait.
    pub initial_interval: GoDuration,
    /// The longest wait.
    pub max_interval: GoDuration,
    /// By how much each wait is longer than the one before.
    pub multiplier: f64,
    /// Share of a wait that is left to chance, 0 to 1.
    pub randomization_factor: f64,
    /// Retries that may be made, as a percentage of the parts that are sent for the first time.
    pub budget_percent: u32,
}

/// `pools.NAME.ring`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ring {
    /// How slots are placed. All replicas must have the same.
    pub algorithm: Algorithm,
}

/// `pools.NAME.outlier_detection`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutlierDetection {
    /// Failures of the way to a backend in a row that eject it. A refused connection does so at once.
    pub consecutive_failures: u32,
    /// The time until the first probe; it doubles with each further one.
    pub base_ejection_time: GoDuration,
    /// The longest time between probes.
    pub max_ejection_time: GoDuration,
    /// Share of the pool that may be ejected at once; above it no backend counts as ejected. 0 is off.
    pub max_ejection_percent: u8,
}

/// A way to place slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// Spanring's own.
    #[default]
    SlotsV1,
}

/// One of `routes`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Route {
    /// Which signals.
    pub signals: Vec<SignalName>,
    /// What is hashed.
    pub routing_key: RoutingKey,
    /// Where they go.
    pub pool: String,
}

/// A signal by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SignalName {
    /// Spans.
    Traces,
    /// Metrics.
    Metrics,
    /// Log records.
    Logs,
    /// Profiles.
    Profiles,
}

/// What is hashed. The Collector's spellings are taken too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoutingKey {
    /// The trace ID.
    #[default]
    #[serde(alias = "traceID")]
    TraceId,
    /// The name of the service.
    Service,
    /// The whole resource.
    Resource,
    /// Chosen attributes.
    Attributes,
    /// The name of the metric.
    Metric,
    /// The identity of the metric's stream.
    #[serde(alias = "streamID")]
    StreamId,
}

impl RoutingKey {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TraceId => "trace_id",
            Self::Service => "service",
            Self::Resource => "resource",
            Self::Attributes => "attributes",
            Self::Metric => "metric",
            Self::StreamId => "stream_id",
        }
    }
}

/// `memory_limiter`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryLimiter {
    /// The bound; `null` leaves it to `limit_percentage`.
    pub limit_mib: Option<usize>,
    /// Its share of the cgroup's memory limit or, without one, of the machine's memory.
    pub limit_percentage: u8,
}

/// `admin`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Where it listens.
    #[serde(deserialize_with = "addresses::admin")]
    pub endpoint: HostPort,
}

/// `health_check`: the Collector's extension.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealthCheck {
    /// Where it listens.
    #[serde(deserialize_with = "addresses::probes")]
    pub endpoint: HostPort,
    /// The page that answers whether clients should send here.
    pub path: String,
}

/// `shutdown`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shutdown {
    /// After SIGTERM: how long it goes on serving, not ready, so that those who send to it learn of its end.
    pub delay: GoDuration,
    /// How long requests in hand then have, before connections are cut.
    pub timeout: GoDuration,
}

/// `telemetry`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// Logs, on stderr.
    pub logs: logs::Config,
}
