//! Assembly: builds every component from the configuration, starts them and drains them in order. Only this room knows
//! all others.

mod pool;
pub mod reload;
mod running;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::timeout;
use tracing::{info, warn};

use self::{
    reload::{Reloader, Source, Trigger},
    running::Running,
};
use crate::{
    admin::{self, Pools, Readiness},
    budget::{Budget, Division},
    config::Config,
    discovery,
    lifecycle::Tasks,
    listen, receive,
    settings::{Settings, Shutdown},
    telemetry::{Recorder, RecorderError},
    tls,
};

/// How long tasks may take to end after they are stopped.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// How often [`Proxy::ready`] checks.
const READY_POLL: Duration = Duration::from_millis(5);

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    /// Address of the OTLP/gRPC listener, if there is one.
    pub grpc: Option<SocketAddr>,
    /// Address of the OTLP/HTTP listener, if there was one at the start.
    pub http: Option<SocketAddr>,
    /// Address of the admin listener, if there is one.
    pub admin: Option<SocketAddr>,
    /// Address of the separate listener for probes, if there is one.
    pub health_check: Option<SocketAddr>,
    shutdown: Arc<Mutex<Shutdown>>,
    running: Arc<tokio::sync::Mutex<Running>>,
    certificates: tls::Reloads,
    readiness: Readiness,
    /// Tasks of client connections.
    front: Tasks,
    /// All other tasks: discovery, membership, dispatch, admin.
    back: Tasks,
}

/// Why a proxy could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The admin listener could not bind its port.
    #[error("cannot start the admin listener (admin.endpoint)")]
    Admin(#[source] listen::BindError),
    /// The listener for probes could not bind its port.
    #[error("cannot start the listener for probes (health_check.endpoint)")]
    HealthCheck(#[source] listen::BindError),
    /// A pool's resolver could not be started.
    #[error("cannot start the resolver of pool {pool}")]
    Discovery {
        /// Name of the pool.
        pool: String,
        /// The cause.
        #[source]
        source: discovery::DiscoveryError,
    },
    /// The recorder of metrics could not be installed.
    #[error("cannot record metrics")]
    Recorder(#[from] RecorderError),
    /// A pool's certificates cannot be used.
    #[error("cannot use the certificates of pool {pool} (pools.{pool}.tls)")]
    Tls {
        /// Name of the pool.
        pool: String,
        /// The cause.
        #[source]
        source: tls::TlsError,
    },
    /// A receiver could not be started.
    #[error(transparent)]
    Receive(#[from] receive::ReceiveError),
}

// === impl Proxy ===

impl Proxy {
    /// Binds all ports, then starts the components, those next to the backends first. The proxy is ready as soon as
    /// every pool has a table.
    pub async fn start(config: Config) -> Result<Self, ProxyError> {
        let (front, back) = (Tasks::new(), Tasks::new());
        let recorder = Recorder::install()?;
        let certificates = tls::Reloads::default();
        let bound = receive::bind(&config.receive)?;
        bound.tls().for_each(|tls| certificates.add(&tls.as_reload()));
        let admin = config.admin.as_ref().map(|admin| listen::bind("admin", admin.endpoint));
        let admin = admin.transpose().map_err(ProxyError::Admin)?;
        let probes = config.health_check.as_ref().map(|probes| listen::bind("health_check", probes.endpoint));
        let probes = probes.transpose().map_err(ProxyError::HealthCheck)?;
        let health_check = probes.as_ref().map(listen::Bound::address);
        let admin_address = admin.as_ref().map(listen::Bound::address);
        let readiness = Readiness::new();
        let pools = Pools::new();
        let started = readiness.flag("start", "the process is starting");
        recorder.start_upkeep(&back);
        // Metrics and probes are served first, so that they show what is still missing.
        let budget = Budget::divided(Division::of(config.memory_limit, 0));
        if let (Some(admin), Some(config)) = (admin, &config.admin) {
            let (readiness, pools) = (readiness.clone(), pools.clone());
            let state = admin::State { recorder, readiness, pools, budget: budget.clone(), hosts: config.hosts() };
            admin::serve(admin, state, &back);
        }
        if let (Some(probes), Some(config)) = (probes, &config.health_check) {
            admin::health_check::serve(probes, config.keys.path.clone(), readiness.clone(), &back);
        }

        let shutdown = Arc::new(Mutex::new(config.shutdown));
        let mut running = Running::start(config, budget, &readiness, &pools, &certificates, &shutdown, &back)?;
        let listeners = running.serve(bound, &front);
        let others = [("admin", admin_address), ("health_check", health_check)];
        let receivers = [("otlp_grpc", listeners.grpc), ("otlp_http", listeners.http)];
        for (listener, address) in receivers.into_iter().chain(others) {
            if let Some(address) = address {
                info!(%address, listener, "listening");
            }
        }
        started.set();
        Ok(Self {
            grpc: listeners.grpc,
            http: listeners.http,
            admin: admin_address,
            health_check,
            shutdown,
            running: Arc::new(tokio::sync::Mutex::new(running)),
            certificates,
            readiness,
            front,
            back,
        })
    }

    /// Resolves when the proxy is ready for clients: every pool has a table.
    pub async fn ready(&self) {
        while !self.readiness.is_ready() {
            tokio::time::sleep(READY_POLL).await;
        }
    }

    /// Starts a task that applies the configuration from `source` whenever the returned trigger asks for it. With
    /// `watch`, the task also checks the source at that interval and applies it when it has changed. `read` is the
    /// configuration that the proxy was started with.
    pub fn reload_from(&self, source: Source, read: Settings, watch: Option<Duration>) -> Trigger {
        let trigger = Trigger::default();
        let reloader =
            Reloader::new(Arc::clone(&self.running), self.certificates.clone(), source, read, watch, trigger.clone());
        drop(self.back.spawn(reloader.run(self.back.clone())));
        trigger
    }

    /// Returns the tasks of the listeners and those behind them, for callers that end the proxy without a drain.
    pub fn into_tasks(self) -> [Tasks; 2] {
        [self.front, self.back]
    }

    /// Shuts the proxy down: it becomes not ready, serves on for `shutdown.delay`, sends GOAWAY, gives requests in
    /// flight at most `shutdown.timeout`, and stops.
    ///
    /// These bounds hold whatever peers do: connections that are still open after `timeout` are cut.
    pub async fn drain(self) {
        self.readiness.drain();
        let shutdown = *self.shutdown.lock().unwrap_or_else(PoisonError::into_inner);
        info!(delay = ?shutdown.delay, timeout = ?shutdown.timeout, "draining: not ready any more");
        tokio::time::sleep(shutdown.delay).await;
        self.front.drain();
        if timeout(shutdown.timeout, self.front.wait()).await.is_err() {
            warn!(connections = self.front.len(), "not drained in time: cutting the connections that are left");
        }
        self.front.stop();
        self.back.stop();
        let stopped = async { tokio::join!(self.front.wait(), self.back.wait()) };
        if timeout(STOP_TIMEOUT, stopped).await.is_err() {
            warn!(tasks = self.front.len() + self.back.len(), "some tasks did not end");
        }
        info!("stopped");
    }
}
