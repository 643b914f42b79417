//! From the file's layout to what each room is configured by. The only file of this room that knows the rooms' own
//! settings; defaults come from them too, so that each stands in one place.

use std::{net::SocketAddr, time::Duration};

use super::layout::{AddressFamily, Codec, InvalidIds, Layout, Pool, Resolver};
use super::values::MIB;

/// Settings of the receivers.
pub mod receive {
    use std::{
        net::{Ipv4Addr, SocketAddr},
        time::Duration,
    };

    /// Which protocols are served.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Config {
        /// OTLP/gRPC.
        pub grpc: Option<GrpcConfig>,
    }

    impl Default for Config {
        fn default() -> Self {
            Self { grpc: Some(GrpcConfig::default()) }
        }
    }

    /// OTLP/gRPC.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct GrpcConfig {
        /// Where it listens.
        pub endpoint: SocketAddr,
        /// Bound on one inflated message, in bytes.
        pub max_recv_msg_size: usize,
        /// Bound on the requests of one connection that are unanswered.
        pub max_concurrent_streams: u32,
        /// Bound on the headers of one request, in bytes.
        pub max_header_list_size: u32,
        /// How long a new connection has until its first headers.
        pub header_timeout: Duration,
        /// Bound on connections.
        pub max_connections: usize,
        /// When a request without a nearer deadline of its own is to be answered.
        pub deadline: Duration,
    }

    impl Default for GrpcConfig {
        fn default() -> Self {
            Self {
                endpoint: (Ipv4Addr::LOCALHOST, 4317).into(),
                max_recv_msg_size: 64 << 20,
                max_concurrent_streams: 100,
                max_header_list_size: 16 << 10,
                header_timeout: Duration::from_secs(10),
                max_connections: 10_000,
                deadline: Duration::from_secs(8),
            }
        }
    }
}

/// Settings of the pipeline.
pub mod pipeline {
    /// What happens to records whose trace ID is empty, zero or of a wrong length.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub enum InvalidTraceId {
        /// They are sent on.
        #[default]
        Forward,
        /// They are refused.
        Reject,
    }

    /// How requests are treated.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct Config {
        /// What happens to records whose trace ID no backend can hold.
        pub invalid_trace_id: InvalidTraceId,
    }
}

/// Settings of the resolvers.
pub mod discovery {
    use std::time::Duration;

    /// Which addresses of a name are backends.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub enum IpFamily {
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

    /// A resolver.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Config {
        /// A list.
        Static {
            /// `name:port` each.
            hostnames: Vec<String>,
            /// How often names are looked up again.
            interval: Duration,
            /// How long one look-up may take.
            timeout: Duration,
        },
        /// A name.
        Dns {
            /// The name.
            hostname: String,
            /// The port of every backend.
            port: u16,
            /// How often it is looked up.
            interval: Duration,
            /// How long one look-up may take.
            timeout: Duration,
            /// Which addresses count.
            ip_family: IpFamily,
        },
    }
}

/// Settings of the ring.
pub mod ring {
    /// A way to place slots.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub enum Algorithm {
        /// Spanring's own.
        #[default]
        SlotsV1,
    }

    /// How traces are placed.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct Config {
        /// How slots are placed.
        pub algorithm: Algorithm,
    }
}

/// Settings of dispatch.
pub mod dispatch {
    use std::time::Duration;

    /// How calls are compressed.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub enum Compression {
        /// Not at all.
        #[default]
        None,
        /// gzip.
        Gzip {
            /// 1 to 9.
            level: u32,
        },
        /// Zstandard.
        Zstd {
            /// 1 to 22.
            level: i32,
        },
    }

    /// How failed parts are tried again.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct RetryConfig {
        /// The first wait.
        pub initial_interval: Duration,
        /// The longest wait.
        pub max_interval: Duration,
        /// What each wait is longer than the one before.
        pub multiplier: f64,
        /// Share of a wait that is left to chance.
        pub jitter: f64,
    }

    /// How parts reach their backends.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Config {
        /// How calls are compressed.
        pub compression: Compression,
        /// How long one attempt may take.
        pub timeout: Duration,
        /// HTTP/2 connections for each backend and shard.
        pub connections: usize,
        /// Independent sets of queues and connections.
        pub shards: usize,
        /// Bound on one call's message, in bytes.
        pub max_request_size: usize,
        /// Bound on what waits for one backend, in bytes.
        pub queue_size: usize,
        /// Calls that one backend may have in flight.
        pub places: usize,
        /// Bytes waiting at which a further place opens.
        pub open_place_bytes: usize,
        /// Wait at which a further place opens.
        pub open_place_after: Duration,
        /// How failed parts are tried again.
        pub retry: RetryConfig,
    }

    impl Default for Config {
        fn default() -> Self {
            Self {
                compression: Compression::None,
                timeout: Duration::from_secs(5),
                connections: 1,
                shards: 1,
                max_request_size: 4 << 20,
                queue_size: 16 << 20,
                places: 8,
                open_place_bytes: 64 << 10,
                open_place_after: Duration::from_millis(2),
                retry: RetryConfig {
                    initial_interval: Duration::from_millis(50),
                    max_interval: Duration::from_secs(1),
                    multiplier: 1.5,
                    jitter: 0.5,
                },
            }
        }
    }
}

pub use pipeline::InvalidTraceId;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// How long it goes on serving, not ready, so that those who send to it learn of its end.
    pub delay: Duration,
    /// How long requests in hand then have, before connections are cut.
    pub timeout: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { delay: Duration::from_secs(5), timeout: Duration::from_secs(25) }
    }
}

/// Receivers. `endpoint` is the resolved one.
pub(super) fn receive(layout: &Layout, endpoint: SocketAddr) -> receive::Config {
    let otlp = &layout.receivers.otlp;
    let grpc = &otlp.protocols.grpc;
    receive::Config {
        grpc: Some(receive::GrpcConfig {
            endpoint,
            max_recv_msg_size: grpc.max_recv_msg_size_mib.saturating_mul(MIB),
            max_concurrent_streams: grpc.max_concurrent_streams,
            max_header_list_size: u32::try_from(grpc.max_header_list_size.0).unwrap_or(u32::MAX),
            header_timeout: grpc.read_header_timeout.0,
            max_connections: grpc.max_connections,
            deadline: otlp.deadline.0,
        }),
    }
}

/// What is done with requests.
pub(super) fn pipeline(layout: &Layout) -> pipeline::Config {
    pipeline::Config {
        invalid_trace_id: match layout.invalid_trace_id {
            InvalidIds::Forward => InvalidTraceId::Forward,
            InvalidIds::Reject => InvalidTraceId::Reject,
        },
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

/// A pool's ring.
pub(super) fn ring(_pool: &Pool) -> ring::Config {
    ring::Config { algorithm: ring::Algorithm::SlotsV1 }
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
        ..dispatch::Config::default()
    }
}
