//! From the file's layout to what each room is configured by. The only file of this room that knows the rooms' own
//! settings; defaults come from them too, so that each stands in one place.

use std::{net::SocketAddr, time::Duration};

use super::headers;
use super::layout::{AddressFamily, Algorithm, Codec, InvalidIds, Layout, Pool, Resolver, ServerTls};
use super::values::MIB;
pub(super) use crate::{
    discovery, dispatch,
    lifecycle::Shutdown,
    membership, pipeline, receive, ring,
    route::{InvalidTraceId, InvalidTraceIds},
};

/// Receivers. `endpoint` is the resolved one.
pub(super) fn receive(layout: &Layout, endpoint: SocketAddr) -> receive::Config {
    let otlp = &layout.receivers.otlp;
    let grpc = &otlp.protocols.grpc;
    let ages = &grpc.keepalive.server_parameters;
    receive::Config {
        grpc: Some(receive::GrpcConfig {
            endpoint,
            max_recv_msg_size: grpc.max_recv_msg_size_mib.saturating_mul(MIB),
            max_concurrent_streams: grpc.max_concurrent_streams,
            max_header_list_size: u32::try_from(grpc.max_header_list_size.0).unwrap_or(u32::MAX),
            header_timeout: grpc.read_header_timeout.0,
            max_connections: grpc.max_connections,
            max_connection_age: unless_zero(ages.max_connection_age.0),
            max_connection_age_grace: unless_zero(ages.max_connection_age_grace.0),
            deadline: otlp.deadline.0,
            // Checked before.
            include_metadata: headers::names(&grpc.include_metadata).unwrap_or_default(),
            tls: grpc.tls.as_ref().map(ServerTls::room),
        }),
    }
}

/// `0s` in the file is never.
pub(super) fn unless_zero(duration: Duration) -> Option<Duration> {
    Some(duration).filter(|duration| !duration.is_zero())
}

/// What is done with requests.
pub(super) fn pipeline(layout: &Layout) -> pipeline::Config {
    pipeline::Config {
        invalid_trace_id: InvalidTraceIds {
            traces: invalid_ids(layout.invalid_trace_id.traces),
            logs: invalid_ids(layout.invalid_trace_id.logs),
        },
    }
}

fn invalid_ids(of_signal: InvalidIds) -> InvalidTraceId {
    match of_signal {
        InvalidIds::Forward => InvalidTraceId::Forward,
        InvalidIds::Reject => InvalidTraceId::Reject,
    }
}

/// A pool's resolver; `None` when the layout names none.
pub(super) fn discovery(resolver: &Resolver) -> Option<discovery::Config> {
    if let Some(list) = &resolver.r#static {
        return Some(discovery::Config::Static {
            hostnames: list.hostnames.iter().map(ToString::to_string).collect(),
            interval: list.interval.0,
            timeout: list.timeout.0,
        });
    }
    resolver.dns.as_ref().map(|dns| discovery::Config::Dns {
        hostname: dns.hostname.clone(),
        port: dns.port,
        interval: dns.interval.0,
        timeout: dns.timeout.0,
        ip_family: match dns.ip_family {
            AddressFamily::Auto => discovery::IpFamily::Auto,
            AddressFamily::Ipv4 => discovery::IpFamily::Ipv4,
            AddressFamily::Ipv6 => discovery::IpFamily::Ipv6,
            AddressFamily::Both => discovery::IpFamily::Both,
        },
    })
}

/// A pool's ring and what becomes of backends that fail or leave.
pub(super) fn membership(pool: &Pool) -> membership::Config {
    let detection = &pool.outlier_detection;
    membership::Config {
        ring: match pool.ring.algorithm {
            Algorithm::SlotsV1 => ring::Config { algorithm: ring::Algorithm::SlotsV1 },
        },
        outlier_detection: membership::OutlierDetection {
            consecutive_failures: detection.consecutive_failures,
            base_ejection_time: detection.base_ejection_time.0,
            max_ejection_time: detection.max_ejection_time.0,
            max_ejection_percent: detection.max_ejection_percent,
        },
        hold_down: pool.hold_down.0,
    }
}

/// A pool's queues, calls and connections.
pub(super) fn dispatch(pool: &Pool) -> dispatch::Config {
    let level = pool.compression_params.level;
    dispatch::Config {
        compression: match pool.compression {
            Codec::None => dispatch::Compression::None,
            Codec::Gzip => dispatch::Compression::Gzip { level },
            Codec::Zstd => dispatch::Compression::Zstd { level: i32::try_from(level).unwrap_or(i32::MAX) },
        },
        timeout: pool.timeout.0,
        connections: pool.connections,
        shards: pool.shards,
        max_request_size: pool.max_request_size_mib.saturating_mul(MIB),
        queue_size: pool.sending_queue.queue_size.0,
        retry: dispatch::RetryConfig {
            initial_interval: pool.retry_on_failure.initial_interval.0,
            max_interval: pool.retry_on_failure.max_interval.0,
            multiplier: pool.retry_on_failure.multiplier,
            jitter: pool.retry_on_failure.randomization_factor,
        },
        retry_budget_percent: pool.retry_on_failure.budget_percent,
        ..dispatch::Config::default()
    }
}
