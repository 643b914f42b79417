//! A running pool: its resolver, membership and dispatch. It can be reconfigured while it runs, and ended independently
//! of the others.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use tracing::{error, info, warn};

use super::{ProxyError, STOP_TIMEOUT};
use crate::{
    access::Access,
    admin::{self, Readiness},
    config::PoolConfig,
    descriptors::Share,
    discovery::{self, Own, Resolvers},
    dispatch::{Dispatch, HealthCheck},
    health,
    lifecycle::Tasks,
    membership,
    otlp::Signal,
    tls::{Client, Reloads},
};

/// How often a retiring pool checks whether calls without a waiting client have ended.
const IDLE_POLL: Duration = Duration::from_millis(20);

/// How often to recompute the number of connections to backends, in addition to every change of the pool.
const SHARE_POLL: Duration = Duration::from_secs(10);

/// A running pool.
pub(super) struct Pool {
    config: PoolConfig,
    /// The resolver, and how backends are spoken to.
    resolvers: Resolvers,
    /// TLS settings of the newest configuration; its resolver may not have found any backends yet.
    client: Option<Client>,
    /// How the backends of the newest configuration are reached. It is replaced only if the configuration says otherwise,
    /// since another access means new connections.
    access: Access,
    membership: watch::Sender<membership::Config>,
    published: membership::Published,
    /// Probes ejected backends by the protocol of the newest configuration.
    health_check: HealthCheck,
    certificates: Reloads,
    dispatch: Arc<Dispatch>,
    /// Tracks the routes that lead here, including those held by requests in flight.
    users: TaskTracker,
    /// All tasks of this pool.
    tasks: Tasks,
}

impl Pool {
    /// Starts a pool, from discovery to dispatch. `own` are the addresses that must not become its backends.
    pub(super) fn start(
        config: &PoolConfig,
        certificates: &Reloads,
        builder: &membership::Builder,
        own: &Own,
        tasks: &Tasks,
    ) -> Result<Self, ProxyError> {
        let PoolConfig { name, .. } = config;
        let client = load_client(config)?;
        let tasks = tasks.child();
        let (resolvers, found) = Resolvers::new(name);
        let resolvers = resolvers.refusing(own.clone());
        let access = Access::new(name, client.clone(), config.headers.clone());
        discovery::start(&resolvers, name, &config.discovery, access.clone(), &tasks)
            .map_err(|source| ProxyError::Discovery { pool: name.clone(), source })?;
        let (events, inbox) = health::channel(name);
        let (membership, chosen) = watch::channel(config.membership.clone());
        let health_check = HealthCheck::new(&config.dispatch.keys);
        let published = membership::start(name, chosen, found, inbox, health_check.clone(), builder.clone(), &tasks);
        let tables = published.tables.clone();
        let budget = builder.budget.clone();
        let dispatch = Dispatch::start(name, config.dispatch.clone(), tables, &tasks, events, budget);
        tasks.spawn(keep_descriptors(Arc::clone(&dispatch), tasks.clone()));
        let pool = Self {
            config: config.clone(),
            resolvers,
            client,
            access,
            membership,
            published,
            health_check,
            certificates: certificates.clone(),
            dispatch,
            users: TaskTracker::new(),
            tasks,
        };
        pool.follow_files();
        Ok(pool)
    }

    /// Watches the certificate files of the newest TLS settings for as long as any connection uses them.
    fn follow_files(&self) {
        if let Some(client) = &self.client {
            self.certificates.add(&client.as_reload());
            client.watch(&self.tasks);
        }
    }

    /// Checks `config` and loads the files of changed TLS settings: everything about a reconfiguration that can fail.
    pub(super) fn prepare(&self, config: &PoolConfig) -> Result<Option<Client>, ProxyError> {
        config.discovery.check().map_err(|source| ProxyError::Discovery { pool: config.name.clone(), source })?;
        if self.config.tls == config.tls { Ok(None) } else { load_client(config) }
    }

    /// Returns the pool's dispatch, which takes requests.
    pub(super) fn dispatch(&self) -> Arc<Dispatch> {
        Arc::clone(&self.dispatch)
    }

    /// Returns the pool as admin pages show it. `signals` are the signals routed to it.
    pub(super) fn shown(&self, signals: Vec<Signal>) -> admin::Pool {
        admin::Pool { signals, membership: self.published.clone(), dispatch: self.dispatch() }
    }

    /// Returns a token that a route to this pool holds for as long as it is in use.
    pub(super) fn user(&self) -> TaskTrackerToken {
        self.users.token()
    }

    /// Makes the pool's first table a condition of readiness.
    pub(super) fn require_table(&self, readiness: &Readiness) {
        let (delivers, trouble) = (self.dispatch(), self.resolvers.trouble());
        let unmet = move || match trouble.reason() {
            Some(reason) => format!("no backends yet: discovery has found none ({reason})"),
            None => "no backends yet: discovery has found none".to_owned(),
        };
        let trouble = self.resolvers.trouble();
        let note = move || {
            let reason = trouble.reason()?;
            Some(format!("discovery fails, and the last good set stays in use ({reason})"))
        };
        // This checks dispatch's view and not membership's table: a request that arrives at once must find queues.
        let unmet = move || delivers.view().is_none().then(&unmet);
        readiness.require_and_note(condition(&self.config.name), unmet, note);
    }

    /// Resolves when requests find a table and queues.
    pub(super) async fn ready(&self) {
        self.dispatch.ready().await;
    }

    /// Applies the differences in place and returns whether there were any. Backends, their states, the table and its
    /// generation stay.
    ///
    /// `client` is the result of [`Pool::prepare`]. The backends of a changed resolver replace the current ones with
    /// its first good answer; until then the current ones keep their TLS settings and headers. Changes that reveal no
    /// credential to a backend apply at once.
    pub(super) fn reconfigure(&mut self, config: &PoolConfig, client: Option<Client>) -> bool {
        if self.config == *config {
            return false;
        }
        if self.config.membership != config.membership {
            self.membership.send_replace(config.membership.clone());
        }
        if self.config.dispatch != config.dispatch {
            self.health_check.follow(&config.dispatch.keys);
            self.dispatch.reconfigure(config.dispatch.clone());
        }
        if self.config.tls != config.tls {
            self.client = client;
            self.follow_files();
        }
        let has_other_access = self.config.tls != config.tls || self.config.headers != config.headers;
        if has_other_access {
            self.access = Access::new(&config.name, self.client.clone(), config.headers.clone());
        }
        let access = self.access.clone();
        if self.config.discovery != config.discovery {
            if let Err(error) = discovery::start(&self.resolvers, &config.name, &config.discovery, access, &self.tasks)
            {
                // `prepare` has checked it before.
                error!(pool = config.name, %error, "cannot start the resolver: the backends stay as they are");
            }
        } else if has_other_access {
            self.resolvers.set_access(access);
        }
        self.config = config.clone();
        true
    }

    /// Ends a pool that no route leads to any more. Requests in flight get at most `patience` to finish; then all tasks
    /// and connections end.
    pub(super) async fn retire(self, patience: Duration) {
        let pool = &*self.config.name;
        self.users.close();
        let in_hand = async {
            self.users.wait().await;
            while !self.dispatch.is_idle() {
                tokio::time::sleep(IDLE_POLL).await;
            }
        };
        if timeout(patience, in_hand).await.is_err() {
            warn!(pool, "pool removed before all its requests were finished");
        }
        end(&self.tasks).await;
        info!(pool, "pool removed");
    }
}

/// Keeps descriptors reserved for connections to the pool's backends, as many as it currently needs, while the pool
/// runs.
async fn keep_descriptors(dispatch: Arc<Dispatch>, tasks: Tasks) {
    let (mut share, mut changes) = (Share::unknown(), dispatch.changes());
    loop {
        if dispatch.view().is_some() {
            share.set(dispatch.sockets());
        }
        tokio::select! {
            () = tasks.stopped() => return,
            changed = changes.changed() => if changed.is_err() { return },
            // Connections to backends that left close some time later, without a change of the pool.
            () = tokio::time::sleep(SHARE_POLL) => {}
        }
    }
}

fn load_client(config: &PoolConfig) -> Result<Option<Client>, ProxyError> {
    let load = |tls: &crate::tls::ClientConfig| Client::load(&config.name, tls.clone());
    config.tls.as_ref().map(load).transpose().map_err(|source| ProxyError::Tls { pool: config.name.clone(), source })
}

/// Returns the name of a pool's readiness condition.
pub(super) fn condition(pool: &str) -> String {
    format!("pool {pool}")
}

async fn end(tasks: &Tasks) {
    tasks.stop();
    if timeout(STOP_TIMEOUT, tasks.wait()).await.is_err() {
        warn!(tasks = tasks.len(), "some tasks did not end");
    }
}
