//! The OTLP receivers, which read, inflate and answer export requests.
//!
//! [`crate::listen`] accepts connections and serves them. `grpc` parses a request's headers into a signal, a codec and
//! a deadline. `body` reads the message and `unpack` inflates it, both within the size limit and the byte budget.
//! [`crate::pipeline::Export`] delivers the message, and [`reply`] builds the answer from the outcome. `discard` reads
//! the rest of a body whose request was refused. `side_services` serves health and reflection on the same port.
//!
//! **Invariant:** memory for a message is taken as its bytes arrive, so a peer that announces a large message and sends
//! little of it takes little memory.
//! **Invariant:** every wait on a peer ends at a deadline, a limit or the end of the drain.

mod body;
mod connection;
mod discard;
mod grpc;
pub mod metrics;
mod refusal;
pub mod reply;
mod side_services;
mod unpack;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::HeaderName;
use tonic::service::Routes;

pub use grpc::OtlpGrpc;

use self::side_services::SideServices;
use crate::{
    budget::Budget,
    descriptors,
    lifecycle::Tasks,
    listen,
    pipeline::Export,
    settings::{Grpc, Otlp, addresses::OTLP_GRPC_PORT},
    tls::{self, TlsError},
};

/// The name of the OTLP/gRPC listener in metrics and logs.
const GRPC: &str = "otlp_grpc";

/// The answer to an HTTP/1 request on a port without TLS.
const SPEAKS_GRPC: &str = "this port speaks gRPC (HTTP/2 without TLS), not HTTP/1.1: set the exporter's protocol to \
                           grpc (OTEL_EXPORTER_OTLP_PROTOCOL=grpc); OTLP/HTTP is not served here, and probes are \
                           answered at the admin port (/livez, /readyz)\n";

/// The answer to an HTTP/1 request on a port with TLS, whether it came encrypted or in plaintext.
const SPEAKS_TLS: &str = "this port speaks gRPC over TLS, not HTTP/1.1 without it: set the exporter's endpoint to https:// \
                          and its protocol to grpc (OTEL_EXPORTER_OTLP_PROTOCOL=grpc)\n";

/// The ALPN protocols that a receiver with TLS offers.
const ALPN: &[&[u8]] = &[b"h2"];

/// The settings of all receivers.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The OTLP/gRPC receiver; `None` if it is switched off.
    pub grpc: Option<GrpcConfig>,
}

/// The settings of the OTLP/gRPC receiver.
#[derive(Clone, Debug, PartialEq)]
pub struct GrpcConfig {
    /// The section of the configuration file; the limits come from here.
    pub keys: Grpc,
    /// The address that `endpoint` names.
    pub endpoint: SocketAddr,
    /// The headers named by `include_metadata`.
    pub include_metadata: Vec<HeaderName>,
    /// The `tls` section; `None` means plaintext.
    pub tls: Option<tls::ServerConfig>,
    /// `receivers.otlp.deadline`: the longest time until a request is answered, before the margin is taken off.
    /// `grpc-timeout` can only shorten it.
    pub deadline: Duration,
}

/// Receivers whose ports are bound, but which do not accept connections yet.
#[derive(Debug)]
pub struct Bound {
    grpc: Option<BoundGrpc>,
}

struct BoundGrpc {
    port: listen::Bound,
    config: GrpcConfig,
    tls: Option<tls::Server>,
    side_services: Option<side_services::Factory>,
}

/// The addresses that the receivers listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listeners {
    /// The OTLP/gRPC address. If port 0 was configured, it has the port that the system chose.
    pub grpc: Option<SocketAddr>,
}

/// Receivers that accept connections.
#[derive(Debug)]
pub struct Receivers {
    listeners: Listeners,
    grpc: Option<ServingGrpc>,
}

#[derive(Debug)]
struct ServingGrpc {
    connections: listen::Handle,
    requests: grpc::LimitsHandle,
    tls: Option<tls::Server>,
    budget: Budget,
}

/// The reason why the receivers could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// A port could not be bound.
    #[error("cannot start the OTLP/gRPC receiver (receivers.otlp.protocols.grpc.endpoint)")]
    Grpc(#[source] listen::BindError),
    /// The certificate or key cannot be used.
    #[error("cannot start the OTLP/gRPC receiver (receivers.otlp.protocols.grpc.tls)")]
    Tls(#[from] TlsError),
}

impl Default for Config {
    fn default() -> Self {
        Self { grpc: Some(GrpcConfig::default()) }
    }
}

impl Default for GrpcConfig {
    fn default() -> Self {
        Self {
            keys: Grpc::default(),
            endpoint: SocketAddr::from((Ipv4Addr::LOCALHOST, OTLP_GRPC_PORT)),
            include_metadata: Vec::new(),
            tls: None,
            deadline: Otlp::default().deadline,
        }
    }
}

/// Binds the ports. It is separate from [`Bound::serve`] so that the process reports readiness only once every port is
/// bound.
pub fn bind(config: &Config) -> Result<Bound, ReceiveError> {
    let grpc = match &config.grpc {
        None => None,
        Some(grpc) => {
            let tls = grpc.tls.clone().map(|tls| tls::Server::load(GRPC, tls, ALPN)).transpose()?;
            let port = listen::bind(GRPC, grpc.endpoint).map_err(ReceiveError::Grpc)?;
            Some(BoundGrpc { port, config: grpc.clone(), tls, side_services: None })
        }
    };
    Ok(Bound { grpc })
}

/// Binds the ports with [`bind`] and serves them with [`Bound::serve`].
pub fn start<E: Export>(
    config: &Config,
    export: Arc<E>,
    budget: Budget,
    tasks: &Tasks,
) -> Result<Listeners, ReceiveError> {
    Ok(bind(config)?.serve(export, budget, tasks).listeners())
}

// === impl BoundGrpc ===

impl fmt::Debug for BoundGrpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundGrpc").field("port", &self.port).finish_non_exhaustive()
    }
}

// === impl Bound ===

impl Bound {
    /// Returns the addresses that the receivers listen on.
    pub fn listeners(&self) -> Listeners {
        Listeners { grpc: self.grpc.as_ref().map(|grpc| grpc.port.address()) }
    }

    /// Serves `grpc.health.v1` and reflection on the OTLP/gRPC listener too. `make` builds the services at the first
    /// request for one of them. Their streams that never end by themselves have to end when the tasks passed to `make`
    /// drain.
    #[must_use]
    pub fn side_services(mut self, make: impl FnOnce(&Tasks) -> Routes + Send + 'static) -> Self {
        if let Some(grpc) = &mut self.grpc {
            grpc.side_services = Some(Box::new(make));
        }
        self
    }

    /// Returns the TLS settings of the OTLP/gRPC listener, or `None` if it is plaintext.
    pub fn tls(&self) -> Option<&tls::Server> {
        self.grpc.as_ref()?.tls.as_ref()
    }

    /// Accepts connections until the drain begins, and passes each request to `export`.
    ///
    /// Metric handles are resolved here, so the recorder has to be installed first.
    pub fn serve<E: Export>(self, export: Arc<E>, budget: Budget, tasks: &Tasks) -> Receivers {
        let mut receivers = Receivers { listeners: self.listeners(), grpc: None };
        metrics::report_budget(budget.clone(), tasks);
        if let Some(BoundGrpc { port, config, tls, side_services }) = self.grpc {
            let side_services = side_services.map(|make| SideServices::new(make, tasks));
            let service = OtlpGrpc::with(side_services, export, budget.clone(), &config, tasks);
            let limits = service.limits();
            metrics::report_waiting(service.places(), tasks);
            descriptors::want(config.keys.max_connections);
            let make_service = move |_peer| service.for_connection();
            let connections = match &tls {
                None => port.serve(config.limits(false, &budget), listen::Plain, make_service, tasks),
                Some(tls) => {
                    tls.watch(tasks);
                    port.serve(
                        config.limits(true, &budget),
                        listen::Tls::new(GRPC, tls.clone(), SPEAKS_TLS),
                        make_service,
                        tasks,
                    )
                }
            };
            receivers.grpc = Some(ServingGrpc { connections, requests: limits, tls, budget });
        }
        receivers
    }
}

// === impl Receivers ===

impl Receivers {
    /// Returns the addresses that the receivers listen on.
    pub fn listeners(&self) -> Listeners {
        self.listeners
    }

    /// Applies a changed configuration, except for endpoints. Limits on requests apply from the next request on, limits
    /// on connections from the next connection on.
    pub fn reconfigure(&self, config: &Config) {
        if let (Some(grpc), Some(config)) = (&self.grpc, &config.grpc) {
            descriptors::want(config.keys.max_connections);
            grpc.connections.set(config.limits(grpc.tls.is_some(), &grpc.budget));
            grpc.requests.set(config);
        }
    }

    /// Applies changed TLS settings to all handshakes from now on. If the files cannot be used, nothing changes. TLS
    /// cannot be switched on or off while a listener serves.
    pub fn replace_tls(&self, config: &Config) -> Result<(), TlsError> {
        let running = self.grpc.as_ref().and_then(|grpc| grpc.tls.as_ref());
        let wanted = config.grpc.as_ref().and_then(|grpc| grpc.tls.as_ref());
        match (running, wanted) {
            (Some(running), Some(wanted)) => running.replace(wanted.clone(), ALPN),
            _ => Ok(()),
        }
    }
}

// === impl GrpcConfig ===

impl GrpcConfig {
    fn limits(&self, over_tls: bool, budget: &Budget) -> listen::Limits {
        let keys = &self.keys;
        let ages = &keys.keepalive.server_parameters;
        listen::Limits {
            protocol: listen::Protocol::Http2 { for_http1: if over_tls { SPEAKS_TLS } else { SPEAKS_GRPC } },
            max_connections: keys.max_connections,
            when_full: listen::WhenFull::CloseIdle,
            descriptors: descriptors::for_clients,
            header_timeout: keys.read_header_timeout,
            max_concurrent_streams: keys.max_concurrent_streams,
            windows: listen::Windows::LARGE,
            account: Some(budget.clone()),
            max_header_list_size: u32::try_from(keys.max_header_list_size.0).unwrap_or(u32::MAX),
            max_connection_age: ages.max_connection_age,
            max_connection_age_grace: ages.max_connection_age_grace,
            max_connection_idle: ages.max_connection_idle,
            write_timeout: None,
        }
    }
}
