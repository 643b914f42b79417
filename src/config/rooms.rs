//! From the file's layout to what each room is configured by. The only file of this room that knows the rooms' own
//! settings; defaults come from them too, so that each stands in one place.

use std::net::SocketAddr;

use super::headers;
use crate::settings::{Compression, Pool, Resolver, ServerTls, Settings};
pub(super) use crate::{discovery, dispatch, membership, pipeline, receive};

/// Receivers. `endpoint` is the resolved one.
pub(super) fn receive(settings: &Settings, endpoint: SocketAddr) -> receive::Config {
    let otlp = &settings.receivers.otlp;
    let grpc = &otlp.protocols.grpc;
    let ages = &grpc.keepalive.server_parameters;
    receive::Config {
        grpc: Some(receive::GrpcConfig {
            endpoint,
            max_recv_msg_size: grpc.max_recv_msg_size_mib.bytes,
            max_concurrent_streams: grpc.max_concurrent_streams,
            max_header_list_size: u32::try_from(grpc.max_header_list_size.0).unwrap_or(u32::MAX),
            header_timeout: grpc.read_header_timeout,
            max_connections: grpc.max_connections,
            max_connection_age: ages.max_connection_age,
            max_connection_age_grace: ages.max_connection_age_grace,
            deadline: otlp.deadline,
            // Checked before.
            include_metadata: headers::names(&grpc.include_metadata).unwrap_or_default(),
            tls: grpc.tls.as_ref().map(ServerTls::room),
        }),
    }
}

/// What is done with requests.
pub(super) fn pipeline(settings: &Settings) -> pipeline::Config {
    pipeline::Config { invalid_trace_id: settings.invalid_trace_id }
}

/// A pool's resolver; `None` when the layout names none.
pub(super) fn discovery(resolver: &Resolver) -> Option<discovery::Config> {
    if let Some(list) = &resolver.r#static {
        return Some(discovery::Config::Static {
            hostnames: list.hostnames.iter().map(ToString::to_string).collect(),
            interval: list.interval,
            timeout: list.timeout,
        });
    }
    resolver.dns.as_ref().map(|dns| discovery::Config::Dns {
        hostname: dns.hostname.clone(),
        port: dns.port,
        interval: dns.interval,
        timeout: dns.timeout,
        ip_family: dns.ip_family,
    })
}

/// A pool's ring and what becomes of backends that fail or leave.
pub(super) fn membership(pool: &Pool) -> membership::Config {
    pool.placement.clone()
}

/// A pool's queues, calls and connections.
pub(super) fn dispatch(pool: &Pool) -> dispatch::Config {
    let pool = &pool.delivery;
    let level = pool.compression_params.level;
    dispatch::Config {
        compression: match pool.compression {
            Compression::None => dispatch::Compression::None,
            Compression::Gzip => dispatch::Compression::Gzip { level },
            Compression::Zstd => dispatch::Compression::Zstd { level: i32::try_from(level).unwrap_or(i32::MAX) },
        },
        timeout: pool.timeout,
        connections: pool.connections,
        shards: pool.shards,
        max_request_size: pool.max_request_size_mib.bytes,
        queue_size: pool.sending_queue.queue_size.0,
        retry: dispatch::RetryConfig {
            initial_interval: pool.retry_on_failure.initial_interval,
            max_interval: pool.retry_on_failure.max_interval,
            multiplier: pool.retry_on_failure.multiplier,
            jitter: pool.retry_on_failure.randomization_factor,
        },
        retry_budget_percent: pool.retry_on_failure.budget_percent,
        ..dispatch::Config::default()
    }
}
