//! Assembly: configuration → every part wired, started and drained in order. The only file that knows everyone.

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
    config::Config,
    discovery,
    lifecycle::Tasks,
    listen, receive,
    settings::{Settings, Shutdown},
    telemetry::{Recorder, RecorderError},
    tls,
};

/// How long tasks behind the listeners get to end once they are told to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// How often [`Proxy::ready`] looks.
const READY_POLL: Duration = Duration::from_millis(5);

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    /// Where OTLP/gRPC is served, if it is.
    pub grpc: Option<SocketAddr>,
    /// Where the admin pages are served, if they are.
    pub admin: Option<SocketAddr>,
    /// Where probes are served apart from those, if they are.
    pub health_check: Option<SocketAddr>,
    shutdown: Arc<Mutex<Shutdown>>,
    running: Arc<tokio::sync::Mutex<Running>>,
    certificates: tls::Reloads,
    readiness: Readiness,
    /// Connections of clients.
    front: Tasks,
    /// Everything behind them: discovery, membership, dispatch, admin.
    back: Tasks,
}

/// Why a proxy could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The admin listener's port could not be taken.
    #[error("cannot start the admin listener (admin.endpoint)")]
    Admin(#[source] listen::BindError),
    /// The port for probes could not be taken.
    #[error("cannot start the listener for probes (health_check.endpoint)")]
    HealthCheck(#[source] listen::BindError),
    /// A pool's resolver could not be started.
    #[error("cannot start the resolver of pool {pool}")]
    Discovery {
        /// The pool.
        pool: String,
        /// What was wrong.
        #[source]
        source: discovery::DiscoveryError,
    },
    /// Metrics could not be recorded.
    #[error("cannot record metrics")]
    Recorder(#[from] RecorderError),
    /// A pool's certificates can't be used.
    #[error("cannot use the certificates of pool {pool} (pools.{pool}.tls)")]
    Tls {
        /// The pool.
        pool: String,
        /// What was wrong.
        #[source]
        source: tls::TlsError,
    },
    /// A receiver could not be started.
    #[error(transparent)]
    Receive(#[from] receive::ReceiveError),
}

// === impl Proxy ===

impl Proxy {
    /// Takes the ports, then starts everything from the back to the front. Ready as soon as every pool has a table.
    pub async fn start(config: Config) -> Result<Self, ProxyError> {
        let (front, back) = (Tasks::new(), Tasks::new());
        let recorder = Recorder::install()?;
        let certificates = tls::Reloads::default();
        let bound = receive::bind(&config.receive)?;
        if let Some(tls) = bound.tls() {
            certificates.add(&tls.as_reload());
        }
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
        // Metrics and probes answer from the start: what is missing is to be seen there.
        if let Some(admin) = admin {
            admin::serve(admin, admin::State { recorder, readiness: readiness.clone(), pools: pools.clone() }, &back);
        }
        if let (Some(probes), Some(config)) = (probes, &config.health_check) {
            admin::health_check::serve(probes, config.keys.path.clone(), readiness.clone(), &back);
        }

        let shutdown = Arc::new(Mutex::new(config.shutdown));
        let mut running = Running::start(config, &readiness, &pools, &certificates, &shutdown, &back)?;
        let listeners = running.serve(bound, &front);
        let others = [("admin", admin_address), ("health_check", health_check)];
        for (listener, address) in [("otlp_grpc", listeners.grpc)].into_iter().chain(others) {
            if let Some(address) = address {
                info!(%address, listener, "listening");
            }
        }
        started.set();
        Ok(Self {
            grpc: listeners.grpc,
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

    /// Resolves when clients should send here: every pool has a table.
    pub async fn ready(&self) {
        while !self.readiness.is_ready() {
            tokio::time::sleep(READY_POLL).await;
        }
    }

    /// Takes over what `source` says whenever the trigger that comes back asks for it and, with `watch`, whenever what it says
    /// is not what it was; `read` is what the proxy was started with.
    pub fn reload_from(&self, source: Source, read: Settings, watch: Option<Duration>) -> Trigger {
        let trigger = Trigger::default();
        let reloader =
            Reloader::new(Arc::clone(&self.running), self.certificates.clone(), source, read, watch, trigger.clone());
        drop(self.back.spawn(reloader.run(self.back.clone())));
        trigger
    }

    /// What runs it, from the front to the back, for those who end it without a drain.
    pub fn into_tasks(self) -> [Tasks; 2] {
        [self.front, self.back]
    }

    /// Ends in order: not ready, go on for `delay`, GOAWAY, finish what is in hand for at most `timeout`, stop.
    ///
    /// The time bounds hold whatever peers do: what has not ended by then is cut.
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
