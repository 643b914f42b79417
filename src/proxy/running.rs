//! The components of a running proxy, and how they change to another configuration without dropping a connection.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::timeout;

use super::{
    ProxyError,
    pool::{Pool, condition},
};
use crate::{
    admin::{Pools, Readiness, side_services},
    budget::{Budget, Division},
    config::{Config, PoolConfig},
    discovery::Own,
    lifecycle::Tasks,
    membership::Builder,
    pipeline::{Pipeline, Routes},
    receive::{Added, ReceiveError, Receivers},
    settings::{Shutdown, values::MIB},
    telemetry::{logs, process},
    tls::{Client, Reloads, TlsError},
};

/// The time limit for a pool that a reload adds to find backends. It is enough for two look-ups and their timeouts.
const TABLE_WITHIN: Duration = Duration::from_secs(10);

/// How long calls of a removed pool may take beyond the deadline of the last request sent there.
const CALLS_WITHIN: Duration = Duration::from_secs(5);

/// The parts of a proxy that depend on the configuration.
pub(super) struct Running {
    /// The configuration in use. For keys that need a restart this has the values from the start, even if the file
    /// differs.
    config: Config,
    pools: BTreeMap<String, Pool>,
    pipeline: Arc<Pipeline>,
    receivers: Option<Receivers>,
    budget: Budget,
    builder: Builder,
    /// The memory of the process before it had clients, in bytes.
    fixed: usize,
    readiness: Readiness,
    /// The pools as admin pages show them.
    shown: Pools,
    certificates: Reloads,
    shutdown: Arc<Mutex<Shutdown>>,
    tasks: Tasks,
}

/// The changes of a reload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Applied {
    /// Names of pools that were added.
    pub(super) added: Vec<String>,
    /// Names of pools whose settings changed.
    pub(super) changed: Vec<String>,
    /// Names of pools that were removed, since no route leads to them any more.
    pub(super) removed: Vec<String>,
    /// Changed keys that need a restart; their old values stay in use.
    pub(super) restart: Vec<&'static str>,
    /// Whether nothing differed, apart from keys in `restart`.
    pub(super) is_unchanged: bool,
}

/// The reason why a configuration was not applied, not even in part.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    /// A pool cannot be started.
    #[error(transparent)]
    Pool(#[from] ProxyError),
    /// The certificates of a receiver cannot be used.
    #[error("cannot use the certificates of receivers.otlp.protocols")]
    Certificates(#[from] TlsError),
    /// A receiver that the configuration adds cannot be started.
    #[error(transparent)]
    Receiver(#[from] ReceiveError),
    /// A new pool found no backends in time.
    #[error("pool {pool} found no backends within {TABLE_WITHIN:?}: check its resolver")]
    NoBackends {
        /// Name of the pool.
        pool: String,
    },
}

impl Running {
    /// Starts the pools of `config`, and a pipeline that routes to them. The account is divided later.
    pub(super) fn start(
        config: Config,
        budget: Budget,
        readiness: &Readiness,
        shown: &Pools,
        certificates: &Reloads,
        shutdown: &Arc<Mutex<Shutdown>>,
        tasks: &Tasks,
    ) -> Result<Self, ProxyError> {
        let builder = Builder::new(budget.clone());
        let (mut pools, own) = (BTreeMap::new(), own(&config));
        for pool in &config.pools {
            let started = Pool::start(pool, certificates, &builder, &own, tasks)?;
            started.require_table(readiness);
            pools.insert(pool.name.clone(), started);
        }
        let pipeline = Arc::new(Pipeline::new(routes(&config, &pools)));
        let running = Self {
            config,
            pools,
            pipeline,
            receivers: None,
            budget,
            builder,
            fixed: 0,
            readiness: readiness.clone(),
            shown: shown.clone(),
            certificates: certificates.clone(),
            shutdown: Arc::clone(shutdown),
            tasks: tasks.clone(),
        };
        running.show();
        Ok(running)
    }

    /// Starts to serve clients.
    pub(super) fn serve(&mut self, bound: crate::receive::Bound, front: &Tasks) -> crate::receive::Listeners {
        self.divide_memory();
        let bound = bound.side_services(side_services(self.readiness.clone()));
        let receivers = bound.serve(Arc::clone(&self.pipeline), self.budget.clone(), front);
        self.receivers.insert(receivers).listeners()
    }

    /// Measures the memory of the process and divides the rest of the limit between clients and requests.
    fn divide_memory(&mut self) {
        self.fixed = process::resident_memory().unwrap_or_default();
        let division = Division::of(self.config.memory_limit, self.fixed);
        self.budget.divide(division);
        tracing::info!(
            limit_mib = self.config.memory_limit / MIB,
            process_mib = division.fixed / MIB,
            connections_mib = division.clients / MIB,
            requests_mib = division.requests / MIB,
            "memory_limiter is divided between the process, connections with their streams, and requests"
        );
    }

    /// Applies `config`. Everything that can fail happens first.
    ///
    /// Requests use the old routes until every new pool has a table. A request finishes with the routes it started
    /// with.
    pub(super) async fn apply(&mut self, mut config: Config) -> Result<Applied, ApplyError> {
        let restart = config.keep_restart_keys(&self.config);
        if config == self.config {
            return Ok(Applied { restart, is_unchanged: true, ..Applied::default() });
        }
        let mut clients = self.prepare(&config.pools)?;
        let added = self.start_new(&config.pools).await?;
        let door = match self.prepare_receivers(&config) {
            Ok(door) => door,
            Err(error) => {
                self.give_up(added);
                return Err(error);
            }
        };
        let mut applied = Applied { added: added.keys().cloned().collect(), restart, ..Applied::default() };
        for pool in &config.pools {
            if let Some(running) = self.pools.get_mut(&pool.name)
                && running.reconfigure(pool, clients.remove(&pool.name))
            {
                applied.changed.push(pool.name.clone());
            }
        }
        added.values().for_each(|pool| pool.require_table(&self.readiness));
        self.pools.extend(added);
        self.pipeline.replace(routes(&config, &self.pools));
        applied.removed = self.retire_all_but(&config.pools);
        if let (Some(receivers), Some(door)) = (&mut self.receivers, door) {
            if let Some(address) = door.address() {
                tracing::info!(%address, listener = "otlp_http", "listening");
            }
            receivers.reconfigure(&config.receive, door);
        }
        self.budget.divide(Division::of(config.memory_limit, self.fixed));
        *self.shutdown.lock().unwrap_or_else(PoisonError::into_inner) = config.shutdown;
        logs::set_level(config.logs.level);
        self.config = config;
        self.show();
        Ok(applied)
    }

    /// Binds the port of a receiver that `config` adds, and applies changed TLS settings; all of this can fail.
    fn prepare_receivers(&self, config: &Config) -> Result<Option<Added>, ApplyError> {
        let Some(receivers) = &self.receivers else { return Ok(None) };
        let added = receivers.prepare(&config.receive)?;
        receivers.replace_tls(&config.receive)?;
        if let Some(tls) = added.tls() {
            self.certificates.add(&tls.as_reload());
        }
        Ok(Some(added))
    }

    /// Publishes the pools and the signals routed to them for the admin pages.
    fn show(&self) {
        for (name, pool) in &self.pools {
            let routes = self.config.routes.iter().filter(|route| route.pool == *name);
            self.shown.insert(name, pool.shown(routes.flat_map(|route| route.signals.iter().copied()).collect()));
        }
    }

    /// Checks the changes to running pools and loads their TLS settings; all of this can fail.
    fn prepare(&self, pools: &[PoolConfig]) -> Result<BTreeMap<String, Client>, ProxyError> {
        let mut clients = BTreeMap::new();
        for pool in pools {
            if let Some(running) = self.pools.get(&pool.name)
                && let Some(client) = running.prepare(pool)?
            {
                clients.insert(pool.name.clone(), client);
            }
        }
        Ok(clients)
    }

    /// Starts the pools that do not run yet and waits until each has a table. On an error, all of them are ended again.
    async fn start_new(&self, pools: &[PoolConfig]) -> Result<BTreeMap<String, Pool>, ApplyError> {
        let (mut added, own) = (BTreeMap::new(), own(&self.config));
        for pool in pools.iter().filter(|pool| !self.pools.contains_key(&pool.name)) {
            match Pool::start(pool, &self.certificates, &self.builder, &own, &self.tasks) {
                Ok(started) => drop(added.insert(pool.name.clone(), started)),
                Err(error) => {
                    self.give_up(added);
                    return Err(error.into());
                }
            }
        }
        let all_ready = async {
            for pool in added.values() {
                pool.ready().await;
            }
        };
        if timeout(TABLE_WITHIN, all_ready).await.is_err() {
            let missing = added.iter().find(|(_, pool)| pool.dispatch().view().is_none());
            let name = missing.map(|(name, _)| name.clone()).unwrap_or_default();
            self.give_up(added);
            return Err(ApplyError::NoBackends { pool: name });
        }
        Ok(added)
    }

    /// Ends the pools that are not among `pools`, and returns their names.
    fn retire_all_but(&mut self, pools: &[PoolConfig]) -> Vec<String> {
        let stay = |name: &String| pools.iter().any(|pool| pool.name == *name);
        let gone: Vec<String> = self.pools.keys().filter(|name| !stay(name)).cloned().collect();
        let deadline = self.config.receive.deadline();
        for name in &gone {
            self.readiness.forget(&condition(name));
            self.shown.remove(name);
            if let Some(pool) = self.pools.remove(name) {
                self.retire(pool, deadline + CALLS_WITHIN);
            }
        }
        gone
    }

    /// Ends pools that no route leads to yet.
    fn give_up(&self, pools: BTreeMap<String, Pool>) {
        pools.into_values().for_each(|pool| self.retire(pool, Duration::ZERO));
    }

    fn retire(&self, pool: Pool, patience: Duration) {
        drop(self.tasks.spawn(pool.retire(patience)));
    }
}

/// Returns the addresses at which this process takes OTLP.
fn own(config: &Config) -> Own {
    Own::new(config.receive.endpoints())
}

/// Builds the routes of `config` over `pools`.
fn routes(config: &Config, pools: &BTreeMap<String, Pool>) -> Routes {
    let mut routes = Routes::new(config.invalid_trace_id);
    for route in &config.routes {
        let Some(pool) = pools.get(&route.pool) else { continue };
        for signal in &route.signals {
            routes.add(*signal, &route.pool, pool.dispatch(), Some(pool.user()));
        }
    }
    routes
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("pools", &self.pools.keys()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Draft,
        telemetry::{LINGER, Recorder},
    };

    fn config(pools: &str) -> Config {
        let text =
            format!("pools: {{ a: {{ resolver: {{ static: {{ hostnames: [\"127.0.0.1:1\"] }} }} }} {pools} }}\n");
        let text = format!("{text}routes: [{{ signals: [traces], pool: a }}]\n");
        Draft::parse("test", &text, &|_| None).and_then(|draft| draft.check()).unwrap()
    }

    fn start(config: Config) -> (Running, Readiness, Tasks) {
        let (budget, readiness, tasks) = (Budget::new(config.memory_limit), Readiness::new(), Tasks::new());
        let running =
            Running::start(config, budget, &readiness, &Pools::new(), &Reloads::default(), &Arc::default(), &tasks)
                .unwrap();
        (running, readiness, tasks)
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_pool_without_backends_changes_nothing() {
        let (mut running, readiness, tasks) = start(config(""));
        let mut other = config(", b: { resolver: { dns: { hostname: nobody.invalid. } } }");
        other.shutdown.delay = Duration::from_secs(99);
        let before = running.config.clone();
        let error = running.apply(other).await.unwrap_err();
        assert_eq!(error.to_string(), "pool b found no backends within 10s: check its resolver");
        assert_eq!(running.config, before);
        assert_ne!(running.shutdown.lock().unwrap().delay, Duration::from_secs(99));
        let conditions = readiness.conditions();
        assert!(conditions.iter().all(|condition| condition.name != "pool b"), "{conditions:?}");
        assert_eq!(running.shown.current().len(), 1);
        tasks.stop();
    }

    #[tokio::test]
    async fn added_and_removed_pools_have_their_conditions_and_tasks() {
        let (mut running, readiness, tasks) = start(config(""));
        running.pools["a"].ready().await;
        let alone = tasks.len();
        let two = ", b: { resolver: { static: { hostnames: [\"127.0.0.1:2\"] } } }";
        let applied = running.apply(config(two)).await.unwrap();
        assert_eq!(applied, Applied { added: vec!["b".into()], ..Applied::default() });
        assert_eq!(readiness.conditions().len(), 2);
        assert!(readiness.is_ready(), "a pool joins with a table");
        assert!(tasks.len() > alone);
        let again = running.apply(config(two)).await.unwrap();
        assert_eq!(again, Applied { is_unchanged: true, ..Applied::default() });
        let applied = running.apply(config("")).await.unwrap();
        assert_eq!(applied.removed, ["b"]);
        assert_eq!(readiness.conditions().len(), 1);
        while tasks.len() > alone {
            tokio::task::yield_now().await;
        }
        tasks.stop();
    }

    #[tokio::test]
    async fn a_key_without_effect_is_no_change() {
        let level = |level: u8| {
            let resolver = "resolver: { static: { hostnames: [\"127.0.0.1:2\"] } }";
            config(&format!(", b: {{ {resolver}, compression: none, compression_params: {{ level: {level} }} }}"))
        };
        let (mut running, _readiness, tasks) = start(level(1));
        let applied = running.apply(level(5)).await.unwrap();
        assert_eq!(applied, Applied { is_unchanged: true, ..Applied::default() });
        tasks.stop();
    }

    #[test]
    fn the_series_of_a_removed_pool_are_removed() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Recorder::scoped(|recorder| {
            runtime.block_on(async {
                let (mut running, _readiness, tasks) = start(config(""));
                let alone = tasks.len();
                let two = ", b: { resolver: { static: { hostnames: [\"127.0.0.1:2\"] } } }";
                running.apply(config(two)).await.unwrap();
                running.apply(config("")).await.unwrap();
                assert!(recorder.render().contains("pool=\"b\""));
                while tasks.len() > alone {
                    tokio::task::yield_now().await;
                }
                let now = tokio::time::Instant::now();
                recorder.sweep(now);
                recorder.sweep(now + LINGER);
                let page = recorder.render();
                assert!(!page.contains("pool=\"b\"") && page.contains("pool=\"a\""), "{page}");
                tasks.stop();
            });
        });
    }
}
