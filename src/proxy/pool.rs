//! A pool as a unit: resolver, membership and dispatch, which can be told of another configuration while they run and can
//! be ended alone.

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
    discovery::{self, Resolvers},
    dispatch::{Dispatch, HealthCheck},
    health,
    lifecycle::Tasks,
    membership,
    otlp::Signal,
    tls::{Client, Reloads},
};

/// How often it is looked whether calls that nobody waits for any more have ended.
const IDLE_POLL: Duration = Duration::from_millis(20);

/// How often it is looked how many connections to backends may be needed, beside each change of the pool.
const SHARE_POLL: Duration = Duration::from_secs(10);

/// A running pool.
pub(super) struct Pool {
    config: PoolConfig,
    /// Who finds its backends, and how these are spoken to.
    resolvers: Resolvers,
    /// TLS by the newest configuration, which may have found nobody yet.
    client: Option<Client>,
    membership: watch::Sender<membership::Config>,
    published: membership::Published,
    certificates: Reloads,
    dispatch: Arc<Dispatch>,
    /// Routes that lead here, those of requests in hand included.
    users: TaskTracker,
    /// The whole.
    tasks: Tasks,
}

impl Pool {
    /// Starts a pool from discovery to dispatch.
    pub(super) fn start(config: &PoolConfig, certificates: &Reloads, tasks: &Tasks) -> Result<Self, ProxyError> {
        let PoolConfig { name, .. } = config;
        let client = load_client(config)?;
        let tasks = tasks.child();
        let (resolvers, found) = Resolvers::new(name);
        let access = Access::new(name, client.clone(), config.headers.clone());
        discovery::start(&resolvers, name, &config.discovery, access, &tasks)
            .map_err(|source| ProxyError::Discovery { pool: name.clone(), source })?;
        let (events, inbox) = health::channel(name);
        let (membership, chosen) = watch::channel(config.membership.clone());
        let published = membership::start(name, chosen, found, inbox, HealthCheck, &tasks);
        let tables = published.tables.clone();
        let dispatch = Dispatch::start(name, config.dispatch.clone(), tables, &tasks, events);
        tasks.spawn(keep_descriptors(Arc::clone(&dispatch), tasks.clone()));
        let pool = Self {
            config: config.clone(),
            resolvers,
            client,
            membership,
            published,
            certificates: certificates.clone(),
            dispatch,
            users: TaskTracker::new(),
            tasks,
        };
        pool.follow_files();
        Ok(pool)
    }

    /// Has the files of the newest TLS settings looked at for as long as anybody is spoken to by them.
    fn follow_files(&self) {
        if let Some(client) = &self.client {
            self.certificates.add(&client.as_reload());
            client.watch(&self.tasks);
        }
    }

    /// Does what can fail of a change to `config`: reads the files of other TLS settings.
    pub(super) fn prepare(&self, config: &PoolConfig) -> Result<Option<Client>, ProxyError> {
        config.discovery.check().map_err(|source| ProxyError::Discovery { pool: config.name.clone(), source })?;
        if self.config.tls == config.tls { Ok(None) } else { load_client(config) }
    }

    /// What requests are handed to.
    pub(super) fn dispatch(&self) -> Arc<Dispatch> {
        Arc::clone(&self.dispatch)
    }

    /// What pages show of it; `signals` are routed here.
    pub(super) fn shown(&self, signals: Vec<Signal>) -> admin::Pool {
        admin::Pool { signals, membership: self.published.clone(), dispatch: self.dispatch() }
    }

    /// What a route that leads here keeps for as long as it is in use.
    pub(super) fn user(&self) -> TaskTrackerToken {
        self.users.token()
    }

    /// Makes the pool's table a condition of readiness.
    pub(super) fn require_table(&self, readiness: &Readiness) {
        let delivers = self.dispatch();
        // Dispatch's view and not membership's table: a request that comes at once is to find its queues.
        readiness.require(condition(&self.config.name), move || {
            delivers.view().is_none().then(|| "no backends yet: discovery has found none".to_owned())
        });
    }

    /// Waits until requests find a table and queues.
    pub(super) async fn ready(&self) {
        self.dispatch.ready().await;
    }

    /// Takes over what differs, in place: backends, their states, the table and its generations stay. Whether anything did.
    ///
    /// `client` is what [`Pool::prepare`] gave. A new resolver's first good answer replaces the set of the one before, which
    /// stays in force until then, with its TLS and headers; what shows nobody a credential holds at once.
    pub(super) fn reconfigure(&mut self, config: &PoolConfig, client: Option<Client>) -> bool {
        if self.config == *config {
            return false;
        }
        if self.config.membership != config.membership {
            self.membership.send_replace(config.membership.clone());
        }
        if self.config.dispatch != config.dispatch {
            self.dispatch.reconfigure(config.dispatch.clone());
        }
        if self.config.tls != config.tls {
            self.client = client;
            self.follow_files();
        }
        let access = || Access::new(&config.name, self.client.clone(), config.headers.clone());
        if self.config.discovery != config.discovery {
            if let Err(error) =
                discovery::start(&self.resolvers, &config.name, &config.discovery, access(), &self.tasks)
            {
                // It was checked before.
                error!(pool = config.name, %error, "cannot start the resolver: the backends stay as they are");
            }
        } else if self.config.tls != config.tls || self.config.headers != config.headers {
            self.resolvers.speak_by(access());
        }
        self.config = config.clone();
        true
    }

    /// Ends a pool that no route leads to any more: requests in hand finish, for `patience` at most; then what runs for
    /// nobody, connections and all.
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
            warn!(pool, "pool removed, not everything in hand was finished in time");
        }
        end(&self.tasks).await;
        info!(pool, "pool removed");
    }
}

/// Keeps descriptors for connections to the pool's backends, as many as it has need of, for as long as it runs.
async fn keep_descriptors(dispatch: Arc<Dispatch>, tasks: Tasks) {
    let (mut share, mut changes) = (Share::unknown(), dispatch.changes());
    loop {
        if dispatch.view().is_some() {
            share.set(dispatch.sockets());
        }
        tokio::select! {
            () = tasks.stopped() => return,
            changed = changes.changed() => if changed.is_err() { return },
            // Backends that left close their connections some time later.
            () = tokio::time::sleep(SHARE_POLL) => {}
        }
    }
}

fn load_client(config: &PoolConfig) -> Result<Option<Client>, ProxyError> {
    let load = |tls: &crate::tls::ClientConfig| Client::load(&config.name, tls.clone());
    config.tls.as_ref().map(load).transpose().map_err(|source| ProxyError::Tls { pool: config.name.clone(), source })
}

/// The name of a pool's condition.
pub(super) fn condition(pool: &str) -> String {
    format!("pool {pool}")
}

async fn end(tasks: &Tasks) {
    tasks.stop();
    if timeout(STOP_TIMEOUT, tasks.wait()).await.is_err() {
        warn!(tasks = tasks.len(), "some tasks did not end");
    }
}
