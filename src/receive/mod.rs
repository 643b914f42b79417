//! The OTLP receivers, which read, inflate and answer export requests.
//!
//! [`crate::listen`] accepts connections and serves them. There are two doors, `grpc` and `http`: each parses a request's
//! headers and writes its answer ([`reply`] has what both share). Between the two, `exchange` does the same for both:
//! `body` reads the message and `unpack` inflates it, within the size limit and the byte budget, and
//! [`crate::pipeline::Export`] delivers it. `discard` reads the rest of a body whose request was refused. `side_services`
//! serves health and reflection on the gRPC port.
//!
//! **Invariant:** memory for a message is taken as its bytes arrive, so a peer that announces a large message and sends
//! little of it takes little memory.
//! **Invariant:** every wait on a peer ends at a deadline, a limit or the end of the drain.

mod body;
mod config;
mod connection;
mod discard;
mod exchange;
mod grpc;
mod http;
pub mod metrics;
mod refusal;
pub mod reply;
mod side_services;
mod transcode;
mod unpack;

#[cfg(test)]
mod tests;

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::timeout;
use tonic::service::Routes;

pub use self::{
    config::{Config, GrpcConfig, HttpConfig},
    grpc::OtlpGrpc,
    http::{Cors, Paths, Unusable},
};
use self::{exchange::Exchange, http::OtlpHttp, side_services::SideServices};
use crate::{
    budget::Budget,
    descriptors,
    lifecycle::Tasks,
    listen,
    pipeline::Export,
    tls::{self, TlsError},
};

/// The names of the listeners in metrics and logs.
const GRPC: &str = "otlp_grpc";
const HTTP: &str = "otlp_http";

/// The answer of a gRPC port with TLS to an HTTP/1 request that came in plaintext.
const GRPC_SPEAKS_TLS: &str = "this port speaks gRPC over TLS, not HTTP/1.1 without it: set the exporter's endpoint to \
                               https:// and its protocol to grpc (OTEL_EXPORTER_OTLP_PROTOCOL=grpc)\n";

/// The answer of an HTTP port with TLS to a request that came in plaintext.
const HTTP_SPEAKS_TLS: &str = "this port speaks OTLP/HTTP over TLS: set the exporter's endpoint to https://\n";

/// The ALPN protocols that the doors offer with TLS, the preferred one first. The gRPC door takes HTTP/1.1 only to answer it
/// in words: a client that offers nothing else would otherwise see a failed handshake.
const GRPC_ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];
const HTTP_ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];

/// How long the requests of a door that is closed by a reload may take beyond their deadline.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// Receivers whose ports are bound, but which do not accept connections yet.
#[derive(Debug)]
pub struct Bound {
    grpc: Option<BoundGrpc>,
    http: Option<BoundHttp>,
    max_connections: usize,
}

struct BoundGrpc {
    port: listen::Bound,
    config: GrpcConfig,
    tls: Option<tls::Server>,
    side_services: Option<side_services::Factory>,
}

#[derive(Debug)]
struct BoundHttp {
    port: listen::Bound,
    config: HttpConfig,
    tls: Option<tls::Server>,
}

/// The addresses that the receivers listen on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listeners {
    /// The OTLP/gRPC address. If port 0 was configured, it has the port that the system chose.
    pub grpc: Option<SocketAddr>,
    /// The OTLP/HTTP address, likewise.
    pub http: Option<SocketAddr>,
}

/// Receivers that accept connections.
pub struct Receivers {
    listeners: Listeners,
    grpc: Option<ServingGrpc>,
    http: Option<ServingHttp>,
    /// Opens the HTTP door; a reload can do so too.
    serve_http: ServeHttp,
    open: listen::OpenConnections,
    budget: Budget,
    tasks: Tasks,
}

type ServeHttp = Box<dyn Fn(BoundHttp, Option<u16>) -> ServingHttp + Send + Sync>;

struct ServingGrpc {
    connections: listen::Handle,
    requests: grpc::LimitsHandle,
    tls: Option<tls::Server>,
}

struct ServingHttp {
    connections: listen::Handle,
    requests: http::SettingsHandle,
    tls: Option<tls::Server>,
    deadline: Duration,
    /// The tasks of this door alone.
    tasks: Tasks,
}

/// A door that a changed configuration adds, with its port bound.
#[derive(Debug)]
pub struct Added(Option<BoundHttp>);

/// The reason why the receivers could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The port of OTLP/gRPC could not be bound.
    #[error("cannot start the OTLP/gRPC receiver (receivers.otlp.protocols.grpc.endpoint)")]
    Grpc(#[source] listen::BindError),
    /// The certificate or key of OTLP/gRPC cannot be used.
    #[error("cannot start the OTLP/gRPC receiver (receivers.otlp.protocols.grpc.tls)")]
    GrpcTls(#[source] TlsError),
    /// The port of OTLP/HTTP could not be bound.
    #[error("cannot start the OTLP/HTTP receiver (receivers.otlp.protocols.http.endpoint)")]
    Http(#[source] listen::BindError),
    /// The certificate or key of OTLP/HTTP cannot be used.
    #[error("cannot start the OTLP/HTTP receiver (receivers.otlp.protocols.http.tls)")]
    HttpTls(#[source] TlsError),
}

/// Binds the ports. It is separate from [`Bound::serve`] so that the process reports readiness only once every port is
/// bound.
pub fn bind(config: &Config) -> Result<Bound, ReceiveError> {
    let grpc = match &config.grpc {
        None => None,
        Some(grpc) => {
            let tls = grpc.tls.clone().map(|tls| tls::Server::load(GRPC, tls, GRPC_ALPN)).transpose();
            let tls = tls.map_err(ReceiveError::GrpcTls)?;
            let port = listen::bind(GRPC, grpc.endpoint).map_err(ReceiveError::Grpc)?;
            Some(BoundGrpc { port, config: grpc.clone(), tls, side_services: None })
        }
    };
    let http = config.http.as_ref().map(BoundHttp::new).transpose()?;
    Ok(Bound { grpc, http, max_connections: config.max_connections() })
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

/// Returns the answer of the gRPC port to an HTTP/1 request. `http` is the address of OTLP/HTTP.
fn speaks_grpc(over_tls: bool, http: Option<SocketAddr>) -> Arc<str> {
    let (protocol, scheme) =
        if over_tls { ("gRPC over TLS", "its endpoint to https:// and ") } else { ("gRPC (HTTP/2 without TLS)", "") };
    let there = match http {
        Some(address) => format!("OTLP/HTTP is on port {}", address.port()),
        None => "OTLP/HTTP is not served here (receivers.otlp.protocols.http)".to_owned(),
    };
    format!(
        "this port speaks {protocol}, not HTTP/1.1; {there}. To send here, set {scheme}the exporter's protocol to grpc \
         (OTEL_EXPORTER_OTLP_PROTOCOL=grpc). Probes are answered at the admin port (/livez, /readyz)\n"
    )
    .into()
}

// === impl BoundGrpc ===

impl fmt::Debug for BoundGrpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundGrpc").field("port", &self.port).finish_non_exhaustive()
    }
}

impl BoundGrpc {
    fn serve<E: Export>(
        self,
        exchange: Arc<Exchange<E>>,
        http: Option<SocketAddr>,
        open: listen::OpenConnections,
        tasks: &Tasks,
    ) -> ServingGrpc {
        let Self { port, config, tls, side_services } = self;
        let side_services = side_services.map(|make| SideServices::new(make, tasks));
        let limits = config.limits(speaks_grpc(tls.is_some(), http), exchange.budget(), open);
        let service = OtlpGrpc::with(side_services, exchange, &config);
        let requests = service.limits();
        let make_service = move |_peer| service.for_connection();
        let connections = match &tls {
            None => port.serve(limits, listen::Plain, make_service, tasks),
            Some(tls) => {
                tls.watch(tasks);
                port.serve(limits, listen::Tls::new(GRPC, tls.clone(), GRPC_SPEAKS_TLS), make_service, tasks)
            }
        };
        ServingGrpc { connections, requests, tls }
    }
}

// === impl BoundHttp ===

impl BoundHttp {
    fn new(config: &HttpConfig) -> Result<Self, ReceiveError> {
        let tls = config.tls.clone().map(|tls| tls::Server::load(HTTP, tls, HTTP_ALPN)).transpose();
        let tls = tls.map_err(ReceiveError::HttpTls)?;
        let port = listen::bind(HTTP, config.endpoint).map_err(ReceiveError::Http)?;
        Ok(Self { port, config: config.clone(), tls })
    }

    fn serve<E: Export>(
        self,
        exchange: Arc<Exchange<E>>,
        grpc_port: Option<u16>,
        open: listen::OpenConnections,
        tasks: &Tasks,
    ) -> ServingHttp {
        let Self { port, config, tls } = self;
        let tasks = tasks.child();
        let limits = config.limits(exchange.budget(), open);
        let service = OtlpHttp::new(exchange, &config, grpc_port);
        let requests = service.settings();
        let make_service = move |_peer| service.for_connection();
        let connections = match &tls {
            None => port.serve(limits, listen::Plain, make_service, &tasks),
            Some(tls) => {
                tls.watch(&tasks);
                port.serve(limits, listen::Tls::new(HTTP, tls.clone(), HTTP_SPEAKS_TLS), make_service, &tasks)
            }
        };
        ServingHttp { connections, requests, tls, deadline: config.deadline, tasks }
    }
}

// === impl Bound ===

impl Bound {
    /// Returns the addresses that the receivers listen on.
    pub fn listeners(&self) -> Listeners {
        let address = |port: &listen::Bound| port.address();
        Listeners {
            grpc: self.grpc.as_ref().map(|grpc| address(&grpc.port)),
            http: self.http.as_ref().map(|http| address(&http.port)),
        }
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

    /// Returns the TLS settings of the listeners that have TLS.
    pub fn tls(&self) -> impl Iterator<Item = &tls::Server> {
        let grpc = self.grpc.as_ref().and_then(|grpc| grpc.tls.as_ref());
        grpc.into_iter().chain(self.http.as_ref().and_then(|http| http.tls.as_ref()))
    }

    /// Accepts connections until the drain begins, and passes each request to `export`.
    ///
    /// Metric handles are resolved here, so the recorder has to be installed first.
    pub fn serve<E: Export>(self, export: Arc<E>, budget: Budget, tasks: &Tasks) -> Receivers {
        let listeners = self.listeners();
        metrics::report_budget(budget.clone(), tasks);
        descriptors::want(self.max_connections);
        let open = listen::OpenConnections::default();
        let exchange = Arc::new(Exchange::new(export, budget.clone(), tasks));
        metrics::report_waiting(exchange.places(), tasks);
        let grpc = self.grpc.map(|grpc| grpc.serve(Arc::clone(&exchange), listeners.http, open.clone(), tasks));
        let serve_http: ServeHttp = {
            let (open, tasks) = (open.clone(), tasks.clone());
            Box::new(move |http, grpc_port| http.serve(Arc::clone(&exchange), grpc_port, open.clone(), &tasks))
        };
        let http = self.http.map(|http| serve_http(http, port_of(listeners.grpc)));
        Receivers { listeners, grpc, http, serve_http, open, budget, tasks: tasks.clone() }
    }
}

fn port_of(address: Option<SocketAddr>) -> Option<u16> {
    address.map(|address| address.port())
}

// === impl Receivers ===

impl Receivers {
    /// Returns the addresses that the receivers listen on.
    pub fn listeners(&self) -> Listeners {
        self.listeners
    }

    /// Binds the port of a receiver that `config` adds. This is all of a change that can fail, except for
    /// [`Receivers::replace_tls`].
    pub fn prepare(&self, config: &Config) -> Result<Added, ReceiveError> {
        let added = config.http.as_ref().filter(|_| self.http.is_none());
        added.map(BoundHttp::new).transpose().map(Added)
    }

    /// Applies a changed configuration, except for endpoints. Limits on requests apply from the next request on, limits
    /// on connections from the next connection on. A receiver that `config` no longer has is drained.
    pub fn reconfigure(&mut self, config: &Config, added: Added) {
        descriptors::want(config.max_connections());
        let grpc_port = port_of(self.listeners.grpc);
        match (&config.http, added.0) {
            (None, _) => {
                if let Some(http) = self.http.take() {
                    http.close(&self.tasks);
                    self.listeners.http = None;
                }
            }
            (Some(_), Some(added)) => {
                self.listeners.http = Some(added.port.address());
                self.http = Some((self.serve_http)(added, grpc_port));
            }
            (Some(config), None) => {
                if let Some(http) = &mut self.http {
                    http.connections.set(config.limits(&self.budget, self.open.clone()));
                    http.requests.set(config);
                    http.deadline = config.deadline;
                }
            }
        }
        if let (Some(grpc), Some(config)) = (&self.grpc, &config.grpc) {
            let for_http1 = speaks_grpc(grpc.tls.is_some(), self.listeners.http);
            grpc.connections.set(config.limits(for_http1, &self.budget, self.open.clone()));
            grpc.requests.set(config);
        }
    }

    /// Applies changed TLS settings to all handshakes from now on. If the files of a listener cannot be used, nothing
    /// changes at that listener. TLS cannot be switched on or off while a listener serves.
    pub fn replace_tls(&self, config: &Config) -> Result<(), TlsError> {
        let running = self.grpc.as_ref().and_then(|grpc| grpc.tls.as_ref());
        if let (Some(running), Some(wanted)) = (running, config.grpc.as_ref().and_then(|grpc| grpc.tls.as_ref())) {
            running.replace(wanted.clone(), GRPC_ALPN)?;
        }
        let running = self.http.as_ref().and_then(|http| http.tls.as_ref());
        if let (Some(running), Some(wanted)) = (running, config.http.as_ref().and_then(|http| http.tls.as_ref())) {
            running.replace(wanted.clone(), HTTP_ALPN)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Receivers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receivers").field("listeners", &self.listeners).finish_non_exhaustive()
    }
}

// === impl ServingHttp ===

impl ServingHttp {
    /// Accepts no more connections, and ends those that are open once their requests are answered.
    fn close(self, tasks: &Tasks) {
        let Self { tasks: own, deadline, .. } = self;
        own.drain();
        drop(tasks.spawn(async move {
            // What is still open then is cut.
            drop(timeout(deadline + CLOSE_WITHIN, own.wait()).await);
            own.stop();
        }));
    }
}

// === impl Added ===

impl Added {
    /// Returns the TLS settings of the door, if it has TLS.
    pub fn tls(&self) -> Option<&tls::Server> {
        self.0.as_ref()?.tls.as_ref()
    }

    /// Returns the address that it will listen on.
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.as_ref().map(|http| http.port.address())
    }
}
