//! The layout's defaults. Where a room has a setting, its own default is the one that holds.

use std::time::Duration;

use super::{
    headers::Headers,
    layout::{
        AddressFamily, Admin, Codec, CompressionParams, DnsResolver, Grpc, HealthCheck, Keepalive, MemoryLimiter, Otlp,
        OutlierDetection, Pool, Protocols, Resolver, Retry, Ring, SendingQueue, ServerParameters, Shutdown, Sizer,
        StaticResolver,
    },
    rooms,
    values::{ByteSize, GoDuration, HostPort, MIB, OTLP_GRPC_PORT},
};

impl Default for Otlp {
    fn default() -> Self {
        Self { protocols: Protocols::default(), deadline: GoDuration(rooms::receive::GrpcConfig::default().deadline) }
    }
}

impl Default for Grpc {
    fn default() -> Self {
        let room = rooms::receive::GrpcConfig::default();
        Self {
            endpoint: local(room.endpoint.port()),
            max_recv_msg_size_mib: room.max_recv_msg_size / MIB,
            max_concurrent_streams: room.max_concurrent_streams,
            max_header_list_size: ByteSize(usize::try_from(room.max_header_list_size).unwrap_or(usize::MAX)),
            read_header_timeout: GoDuration(room.header_timeout),
            max_connections: room.max_connections,
            include_metadata: Vec::new(),
            keepalive: Keepalive::default(),
            tls: None,
        }
    }
}

impl Default for ServerParameters {
    fn default() -> Self {
        let room = rooms::receive::GrpcConfig::default();
        Self {
            max_connection_age: GoDuration(room.max_connection_age.unwrap_or_default()),
            max_connection_age_grace: GoDuration(room.max_connection_age_grace.unwrap_or_default()),
        }
    }
}

impl Default for Pool {
    fn default() -> Self {
        let room = rooms::dispatch::Config::default();
        Self {
            resolver: Resolver::default(),
            compression: Codec::default(),
            compression_params: CompressionParams::default(),
            tls: None,
            timeout: GoDuration(room.timeout),
            max_request_size_mib: room.max_request_size / MIB,
            connections: room.connections,
            shards: room.shards,
            headers: Headers::default(),
            sending_queue: SendingQueue { sizer: Sizer::Bytes, queue_size: ByteSize(room.queue_size) },
            retry_on_failure: Retry::default(),
            ring: Ring::default(),
            outlier_detection: OutlierDetection::default(),
            hold_down: GoDuration(rooms::membership::Config::default().hold_down),
        }
    }
}

impl Default for OutlierDetection {
    fn default() -> Self {
        let room = rooms::membership::OutlierDetection::default();
        Self {
            consecutive_failures: room.consecutive_failures,
            base_ejection_time: GoDuration(room.base_ejection_time),
            max_ejection_time: GoDuration(room.max_ejection_time),
            max_ejection_percent: room.max_ejection_percent,
        }
    }
}

impl Default for SendingQueue {
    fn default() -> Self {
        Pool::default().sending_queue
    }
}

impl Default for Retry {
    fn default() -> Self {
        let rooms::dispatch::Config { retry: room, retry_budget_percent: budget_percent, .. } = Default::default();
        Self {
            initial_interval: GoDuration(room.initial_interval),
            max_interval: GoDuration(room.max_interval),
            multiplier: room.multiplier,
            randomization_factor: room.jitter,
            budget_percent,
        }
    }
}

impl Default for CompressionParams {
    fn default() -> Self {
        // The fastest level of both codecs: telemetry is repetitive, and the proxy's CPU is dearer than the last 10 %.
        Self { level: 1 }
    }
}

impl Default for StaticResolver {
    fn default() -> Self {
        let dns = DnsResolver::default();
        Self { hostnames: Vec::new(), interval: dns.interval, timeout: dns.timeout }
    }
}

impl Default for DnsResolver {
    fn default() -> Self {
        Self {
            hostname: String::new(),
            port: OTLP_GRPC_PORT,
            // Both as in the Collector's DNS resolver.
            interval: GoDuration(Duration::from_secs(5)),
            timeout: GoDuration(Duration::from_secs(1)),
            ip_family: AddressFamily::Auto,
        }
    }
}

impl Default for MemoryLimiter {
    fn default() -> Self {
        Self { limit_mib: None, limit_percentage: 75 }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { endpoint: local(crate::admin::Config::default().endpoint.port()) }
    }
}

impl Default for HealthCheck {
    fn default() -> Self {
        let room = crate::admin::health_check::Config::default();
        Self { endpoint: local(room.endpoint.port()), path: room.path }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        let room = rooms::Shutdown::default();
        Self { delay: GoDuration(room.delay), timeout: GoDuration(room.timeout) }
    }
}

fn local(port: u16) -> HostPort {
    HostPort { host: "127.0.0.1".into(), port }
}
