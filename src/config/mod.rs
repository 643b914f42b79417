//! Reads, checks and prints the configuration file. It is read once, before any port is opened, and again at a reload.
//!
//! `node` reads YAML and remembers the position of every value. `references` replaces `${env:NAME}` and `${file:PATH}`.
//! `deserializer` reads the [`settings`](crate::settings) from the result. `check` checks that they are in range and
//! fit together, and makes the [`Config`] that a proxy is started with. Only modules that start components use this
//! module.

mod changes;
mod check;
mod deserializer;
mod draft;
mod error;
pub(crate) mod headers;
mod memory;
mod message;
pub(crate) mod node;
mod references;
mod restart;
mod tls;

#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, SocketAddr};

pub use self::{
    changes::changed_keys,
    draft::{Backends, Draft},
    error::{ConfigError, LoadError},
    node::Position,
    restart::RESTART_KEYS,
};
pub(crate) use self::{draft::problems_of, error::path_of};
use crate::{
    admin, discovery, dispatch, membership,
    otlp::Signal,
    receive,
    settings::{
        IfWritten, InvalidTraceIds, Logs, Shutdown,
        addresses::{Backend, HostPort, ListenAddress},
    },
};

/// A checked configuration: the settings of each room.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The receivers.
    pub receive: receive::Config,
    /// How records are handled whose trace ID is invalid.
    pub invalid_trace_id: InvalidTraceIds,
    /// The pools.
    pub pools: Vec<PoolConfig>,
    /// Which signals go to which pool. A signal is in one route at most.
    pub routes: Vec<RouteConfig>,
    /// The admin listener, if there is one.
    pub admin: Option<admin::Config>,
    /// The listener for probes alone, if there is one.
    pub health_check: Option<admin::health_check::Config>,
    /// The limit of the memory that requests may take, in bytes.
    pub memory_limit: usize,
    /// The number of the runtime's threads.
    pub worker_threads: usize,
    /// How the process ends.
    pub shutdown: Shutdown,
    /// How the process logs.
    pub logs: Logs,
    /// Warnings about settings that are allowed but probably unwanted.
    pub warnings: Vec<String>,
}

/// The configuration of a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolConfig {
    /// Its name, in labels and logs.
    pub name: String,
    /// How its backends are found.
    pub discovery: discovery::Config,
    /// How traces are placed, and what happens to backends that fail or leave.
    pub membership: membership::Config,
    /// How parts are delivered.
    pub dispatch: dispatch::Config,
    /// The headers that are added to every call. None of them has a meaning in gRPC or HTTP.
    pub headers: Vec<(http::HeaderName, http::HeaderValue)>,
    /// TLS of the connections to the backends; `None` is plaintext.
    pub tls: Option<crate::tls::ClientConfig>,
}

/// The configuration of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// Its signals.
    pub signals: Vec<Signal>,
    /// The name of one of [`Config::pools`].
    pub pool: String,
}

impl Config {
    /// Returns the configuration of a proxy in front of `backends` on free ports, for a process that runs several
    /// proxies.
    pub fn on_free_ports(backends: &[SocketAddr]) -> Result<Self, LoadError> {
        let any = HostPort::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let hostnames = backends.iter().map(|address| Backend::from(HostPort::from(*address))).collect();
        let mut draft = Draft::of_backends(Backends::Static(hostnames));
        let protocols = &mut draft.settings.receivers.otlp.protocols;
        protocols.grpc.endpoint = ListenAddress(any.clone());
        protocols.http = IfWritten(None);
        draft.settings.admin.endpoint = ListenAddress(any);
        draft.check()
    }
}
