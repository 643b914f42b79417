//! OTLP in: bodies and replies. Everything between an accepted connection and a whole, inflated message.
//!
//! The way through the room: [`crate::listen`] accepts connections and serves them; `grpc` turns a request's head into a
//! signal, a codec and a deadline; `body` reads the message, `inflate` inflates it, both within the limit and the byte
//! budget; [`crate::pipeline::Export`] delivers it; [`reply`] says what became of it, and `discard` reads what a refusal left
//! of a body. `beside` is what the port serves beside OTLP: health and reflection.
//!
//! **Invariant:** a peer that announces much and sends little costs little: memory is taken as bytes arrive.
//! **Invariant:** what a peer has to wait for is bounded by a deadline, a limit or the drain's hard end.

mod beside;
mod body;
mod discard;
mod grpc;
mod inflate;
pub mod metrics;
mod refusal;
pub mod reply;

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

use self::beside::Beside;
use crate::{
    budget::Budget,
    descriptors,
    lifecycle::Tasks,
    listen,
    pipeline::Export,
    settings::{Grpc, Otlp, addresses::OTLP_GRPC_PORT},
    tls::{self, TlsError},
};

/// The OTLP/gRPC listener in metrics and logs.
const GRPC: &str = "otlp_grpc";

/// What runs on its TLS.
const ALPN: &[&[u8]] = &[b"h2"];

/// The receivers.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// OTLP/gRPC, unless it is off.
    pub grpc: Option<GrpcConfig>,
}

/// OTLP/gRPC.
#[derive(Clone, Debug, PartialEq)]
pub struct GrpcConfig {
    /// The section of the file: its limits are taken from here.
    pub keys: Grpc,
    /// The address of its `endpoint`.
    pub endpoint: SocketAddr,
    /// The headers of its `include_metadata`.
    pub include_metadata: Vec<HeaderName>,
    /// Its `tls`; `None` is plaintext.
    pub tls: Option<tls::ServerConfig>,
    /// `receivers.otlp.deadline`: when a request is answered at the latest, before the margin is taken off. `grpc-timeout`
    /// can only shorten it.
    pub deadline: Duration,
}

/// Receivers whose ports are taken but which do not accept yet.
#[derive(Debug)]
pub struct Bound {
    grpc: Option<BoundGrpc>,
}

struct BoundGrpc {
    port: listen::Bound,
    config: GrpcConfig,
    tls: Option<tls::Server>,
    beside: Option<beside::Make>,
}

/// Where the receivers listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listeners {
    /// OTLP/gRPC, with the port that the system chose when 0 was asked for.
    pub grpc: Option<SocketAddr>,
}

/// Receivers that serve.
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
}

/// Why the receivers could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// A port could not be taken.
    #[error("cannot start the OTLP/gRPC receiver (receivers.otlp.protocols.grpc.endpoint)")]
    Grpc(#[source] listen::BindError),
    /// A certificate can't be used.
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

/// Takes the ports, so that the process can say that it is ready only when every listener is there.
pub fn bind(config: &Config) -> Result<Bound, ReceiveError> {
    let grpc = match &config.grpc {
        None => None,
        Some(grpc) => {
            let tls = grpc.tls.clone().map(|tls| tls::Server::load(GRPC, tls, ALPN)).transpose()?;
            let port = listen::bind(GRPC, grpc.endpoint).map_err(ReceiveError::Grpc)?;
            Some(BoundGrpc { port, config: grpc.clone(), tls, beside: None })
        }
    };
    Ok(Bound { grpc })
}

/// Takes the ports and serves: [`bind`] and [`Bound::serve`] in one.
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
    /// Where the receivers will serve.
    pub fn listeners(&self) -> Listeners {
        Listeners { grpc: self.grpc.as_ref().map(|grpc| grpc.port.address()) }
    }

    /// Serves `grpc.health.v1` and reflection too, at the OTLP/gRPC listener: those among what `make` makes when one is first
    /// asked for. What they send without end has to end when the tasks that `make` is given drain.
    #[must_use]
    pub fn beside(mut self, make: impl FnOnce(&Tasks) -> Routes + Send + 'static) -> Self {
        if let Some(grpc) = &mut self.grpc {
            grpc.beside = Some(Box::new(make));
        }
        self
    }

    /// TLS of the OTLP/gRPC listener, if it speaks it.
    pub fn tls(&self) -> Option<&tls::Server> {
        self.grpc.as_ref()?.tls.as_ref()
    }

    /// Accepts connections until the drain begins and hands each request to `export`.
    ///
    /// Metric handles are resolved here, so the recorder has to be installed before.
    pub fn serve<E: Export>(self, export: Arc<E>, budget: Budget, tasks: &Tasks) -> Receivers {
        let mut receivers = Receivers { listeners: self.listeners(), grpc: None };
        metrics::report_budget(budget.clone(), tasks);
        if let Some(BoundGrpc { port, config, tls, beside }) = self.grpc {
            let beside = beside.map(|make| Beside::new(make, tasks));
            let service = OtlpGrpc::with(beside, export, budget, &config, tasks);
            let limits = service.limits();
            descriptors::want(config.keys.max_connections);
            let make_service = move |_peer| service.for_connection();
            let connections = match &tls {
                None => port.serve(config.limits(), listen::Plain, make_service, tasks),
                Some(tls) => {
                    tls.watch(tasks);
                    port.serve(config.limits(), listen::Tls::new(GRPC, tls.clone()), make_service, tasks)
                }
            };
            receivers.grpc = Some(ServingGrpc { connections, requests: limits, tls });
        }
        receivers
    }
}

// === impl Receivers ===

impl Receivers {
    /// Where they serve.
    pub fn listeners(&self) -> Listeners {
        self.listeners
    }

    /// Takes over what differs in `config` but for endpoints: what is of a request with the next one, what is of a connection
    /// with the next connection.
    pub fn reconfigure(&self, config: &Config) {
        if let (Some(grpc), Some(config)) = (&self.grpc, &config.grpc) {
            descriptors::want(config.keys.max_connections);
            grpc.connections.set(config.limits());
            grpc.requests.set(config);
        }
    }

    /// Takes over other TLS settings, for handshakes from now on; nothing changes if their files can't be used. Whether there
    /// is TLS at all is decided when a listener starts.
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
    fn limits(&self) -> listen::Limits {
        let keys = &self.keys;
        let ages = &keys.keepalive.server_parameters;
        listen::Limits {
            protocol: listen::Protocol::Http2,
            max_connections: keys.max_connections,
            descriptors: descriptors::for_clients,
            header_timeout: keys.read_header_timeout,
            max_concurrent_streams: keys.max_concurrent_streams,
            max_header_list_size: u32::try_from(keys.max_header_list_size.0).unwrap_or(u32::MAX),
            max_connection_age: ages.max_connection_age,
            max_connection_age_grace: ages.max_connection_age_grace,
        }
    }
}
