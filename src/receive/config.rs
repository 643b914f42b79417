//! The settings of the receivers, and the limits of their connections.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::HeaderName;

use super::http::{Cors, Paths};
use crate::{
    budget::Budget,
    descriptors, listen,
    settings::{
        Grpc, Http, Otlp,
        addresses::{OTLP_GRPC_PORT, OTLP_HTTP_PORT},
    },
    tls,
};

/// The settings of all receivers.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The OTLP/gRPC receiver; `None` if it is switched off.
    pub grpc: Option<GrpcConfig>,
    /// The OTLP/HTTP receiver; `None` if it is switched off.
    pub http: Option<HttpConfig>,
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

/// The settings of the OTLP/HTTP receiver.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpConfig {
    /// The section of the configuration file; the limits come from here.
    pub keys: Http,
    /// The address that `endpoint` names.
    pub endpoint: SocketAddr,
    /// The paths of the signals.
    pub paths: Paths,
    /// The headers named by `include_metadata`.
    pub include_metadata: Vec<HeaderName>,
    /// The `cors` section; `None` if no page of another origin may send here.
    pub cors: Option<Cors>,
    /// The `tls` section; `None` means plaintext.
    pub tls: Option<tls::ServerConfig>,
    /// `receivers.otlp.deadline`: the longest time until a request is answered, before the margin is taken off.
    pub deadline: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { grpc: Some(GrpcConfig::default()), http: None }
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

impl Default for HttpConfig {
    fn default() -> Self {
        let keys = Http::default();
        Self {
            paths: Paths::of(&keys),
            keys,
            endpoint: SocketAddr::from((Ipv4Addr::LOCALHOST, OTLP_HTTP_PORT)),
            include_metadata: Vec::new(),
            cors: None,
            tls: None,
            deadline: Otlp::default().deadline,
        }
    }
}

// === impl Config ===

impl Config {
    /// Returns the addresses at which OTLP is received.
    pub fn endpoints(&self) -> impl Iterator<Item = SocketAddr> {
        let grpc = self.grpc.as_ref().map(|grpc| grpc.endpoint);
        grpc.into_iter().chain(self.http.as_ref().map(|http| http.endpoint))
    }

    /// Returns the longest time until a request is answered.
    pub fn deadline(&self) -> Duration {
        let grpc = self.grpc.as_ref().map(|grpc| grpc.deadline);
        grpc.max(self.http.as_ref().map(|http| http.deadline)).unwrap_or_default()
    }

    /// Returns how many client connections may be open.
    pub(super) fn max_connections(&self) -> usize {
        let grpc = self.grpc.as_ref().map_or(0, |grpc| grpc.keys.max_connections);
        grpc.saturating_add(self.http.as_ref().map_or(0, |http| http.keys.max_connections))
    }
}

// === impl GrpcConfig ===

impl GrpcConfig {
    /// Returns the limits of connections. `for_http1` is the answer to a client that sends an HTTP/1 request.
    pub(super) fn limits(&self, for_http1: Arc<str>, budget: &Budget, open: listen::OpenConnections) -> listen::Limits {
        let keys = &self.keys;
        let ages = &keys.keepalive.server_parameters;
        listen::Limits {
            protocol: listen::Protocol::Http2 { for_http1 },
            max_connections: keys.max_connections,
            when_full: listen::WhenFull::CloseIdle,
            descriptors: descriptors::for_clients,
            open,
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

// === impl HttpConfig ===

impl HttpConfig {
    /// Returns the limits of connections.
    pub(super) fn limits(&self, budget: &Budget, open: listen::OpenConnections) -> listen::Limits {
        let keys = &self.keys;
        listen::Limits {
            protocol: listen::Protocol::Any,
            max_connections: keys.max_connections,
            when_full: listen::WhenFull::CloseIdle,
            descriptors: descriptors::for_clients,
            open,
            header_timeout: keys.read_header_timeout,
            max_concurrent_streams: keys.max_concurrent_streams,
            windows: listen::Windows::LARGE,
            account: Some(budget.clone()),
            max_header_list_size: u32::try_from(keys.max_header_list_size.0).unwrap_or(u32::MAX),
            max_connection_age: keys.max_connection_age,
            max_connection_age_grace: keys.max_connection_age_grace,
            max_connection_idle: keys.idle_timeout,
            write_timeout: None,
        }
    }
}
