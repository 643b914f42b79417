//! The resolvers of one pool: the active one, whose sets are published, and, after a change of the configuration, the
//! next one, which takes over with its first good answer.
//!
//! **Invariant:** every published endpoint carries the access it was configured with. A new configuration that has
//! found no backend yet changes neither the set nor the access of its members.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use metrics::{Gauge, gauge};
use tokio::sync::watch;

use super::{Config, own::Own};
use crate::{
    access::Access,
    endpoint::{Endpoint, Endpoints, EndpointsReceiver},
    lifecycle::Tasks,
    telemetry::metrics::{DISCOVERY_CHANGE_PENDING, DISCOVERY_ENDPOINTS},
};

/// The handle through which all resolvers of a pool publish. Cloning shares it.
#[derive(Clone)]
pub struct Resolvers {
    pool: Arc<str>,
    sender: watch::Sender<Option<Endpoints>>,
    registrations: Arc<Mutex<Registrations>>,
    own: Own,
    count: Gauge,
    pending: Gauge,
    trouble: Trouble,
}

/// Why the newest resolver has no good answer now. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Trouble(Arc<Mutex<Option<String>>>);

#[derive(Default)]
struct Registrations {
    in_force: Option<Registration>,
    next: Option<Registration>,
    count: u64,
    /// The addresses of this process that the last set had.
    refused: BTreeSet<SocketAddr>,
}

/// A resolver that may publish now or later.
struct Registration {
    number: u64,
    access: Access,
    tasks: Tasks,
    /// The configuration that its task follows; `None` if the task follows none.
    config: Option<watch::Sender<Config>>,
}

/// The permission of one resolver to publish. What it publishes is ignored once another resolver has taken over.
pub(super) struct Publisher {
    resolvers: Resolvers,
    number: u64,
}

impl Resolvers {
    /// Creates the handle for `pool`, without a resolver, and the receiver of what its resolvers publish.
    pub fn new(pool: &str) -> (Self, EndpointsReceiver) {
        let (sender, receiver) = watch::channel(None);
        let gauge = |name: &'static str| gauge!(name, "pool" => pool.to_owned());
        let (count, pending) = (gauge(DISCOVERY_ENDPOINTS), gauge(DISCOVERY_CHANGE_PENDING));
        let (pool, registrations, own, trouble) = (pool.into(), Arc::default(), Own::default(), Trouble::default());
        (Self { pool, sender, registrations, own, count, pending, trouble }, receiver)
    }

    /// Leaves out backends that are this process itself.
    #[must_use]
    pub fn refusing(self, own: Own) -> Self {
        Self { own, ..self }
    }

    /// Returns the place in which resolvers write why they have no good answer.
    pub fn trouble(&self) -> Trouble {
        self.trouble.clone()
    }

    /// Sets the access of the members that the newest configuration found. If it has found none yet, the access applies
    /// to those that it will find.
    pub fn set_access(&self, access: Access) {
        let mut registrations = self.lock();
        if let Some(next) = &mut registrations.next {
            next.access = access;
        } else if let Some(in_force) = &mut registrations.in_force {
            in_force.access = access.clone();
            self.sender.send_if_modified(|set| {
                let Some(set) = set else { return false };
                let before = std::mem::replace(set, stamped(set, &access));
                before != *set
            });
        }
    }

    /// Lets the resolver in use, or the one that is to take over, go on with the interval and the timeout of `config` and
    /// with `access`, if it asks the same questions. Returns whether it does.
    pub(super) fn adjust(&self, config: &Config, access: &Access) -> bool {
        let mut registrations = self.lock();
        let Registrations { in_force, next, .. } = &mut *registrations;
        let is_next = next.as_ref().is_some_and(|next| next.is_adjusted(config));
        if !is_next {
            if !in_force.as_ref().is_some_and(|in_force| in_force.is_adjusted(config)) {
                return false;
            }
            // The configuration is again what it was before.
            if let Some(next) = next.take() {
                next.tasks.stop();
                self.pending.set(0.0);
            }
        }
        drop(registrations);
        self.set_access(access.clone());
        true
    }

    /// Registers a resolver whose task runs in `tasks`. It takes over when it publishes its first set, or at once if
    /// nothing was published yet.
    pub(super) fn register(&self, access: Access, tasks: Tasks) -> Publisher {
        let mut registrations = self.lock();
        registrations.count += 1;
        let registration = Registration { number: registrations.count, access, tasks, config: None };
        let is_first = self.sender.borrow().is_none();
        let entry = if is_first { &mut registrations.in_force } else { &mut registrations.next };
        if let Some(before) = entry.replace(registration) {
            before.tasks.stop();
        }
        self.pending.set(f64::from(u8::from(!is_first)));
        Publisher { resolvers: self.clone(), number: registrations.count }
    }

    fn lock(&self) -> MutexGuard<'_, Registrations> {
        // No code panics while the lock is held, except when memory runs out.
        self.registrations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registration {
    /// Sends `config` to the resolver's task if it asks the same questions. Returns whether it does.
    fn is_adjusted(&self, config: &Config) -> bool {
        let asks_the_same = |own: &&watch::Sender<Config>| own.borrow().asks_the_same(config);
        let adjusted = self.config.as_ref().filter(asks_the_same).map(|own| own.send_replace(config.clone()));
        adjusted.is_some()
    }
}

impl Registrations {
    /// Logs the addresses of this process among the backends, when they change.
    fn note_refused(&mut self, pool: &str, refused: BTreeSet<SocketAddr>) {
        if refused != self.refused && !refused.is_empty() {
            tracing::warn!(
                pool,
                addresses = ?refused,
                "discovery leaves out this proxy itself: the pool has the address of its own OTLP listener"
            );
        }
        self.refused = refused;
    }
}

impl Trouble {
    /// Returns the reason, if there is one. Only the resolver of Kubernetes states it.
    pub fn reason(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Publisher {
    /// Returns the configuration that this resolver's task follows, which begins with `config`.
    pub(super) fn follow(&self, config: &Config) -> watch::Receiver<Config> {
        let (sender, receiver) = watch::channel(config.clone());
        let mut registrations = self.resolvers.lock();
        let Registrations { in_force, next, .. } = &mut *registrations;
        if let Some(own) = in_force.iter_mut().chain(next).find(|registration| registration.number == self.number) {
            own.config = Some(sender);
        }
        receiver
    }

    /// States why there is no good answer now, or that there is one.
    #[cfg_attr(not(feature = "kubernetes"), expect(dead_code, reason = "no other resolver states it"))]
    pub(super) fn set_trouble(&self, reason: Option<String>) {
        *self.resolvers.trouble.0.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// Returns whether this resolver has not taken over yet.
    pub(super) fn is_next(&self) -> bool {
        self.resolvers.lock().next.as_ref().is_some_and(|next| next.number == self.number)
    }

    /// Publishes a good answer, and takes over if this resolver is the next one. A backend that is this process itself is
    /// left out. If it is the only one, nothing is published.
    pub(super) fn publish(&self, endpoints: &[Endpoint]) {
        let Resolvers { pool, sender, own, count, pending, .. } = &self.resolvers;
        let is_own = |endpoint: &Endpoint| endpoint.address.is_some_and(|address| own.has(address));
        let (refused, endpoints): (Vec<Endpoint>, Vec<Endpoint>) = endpoints.iter().cloned().partition(is_own);
        let mut registrations = self.resolvers.lock();
        registrations.note_refused(pool, refused.iter().filter_map(|endpoint| endpoint.address).collect());
        if endpoints.is_empty() {
            return;
        }
        if let Some(next) = registrations.next.take_if(|next| next.number == self.number) {
            if let Some(before) = registrations.in_force.replace(next) {
                before.tasks.stop();
            }
            pending.set(0.0);
            tracing::info!(%pool, backends = endpoints.len(), "discovery has its first answer with the new settings: they are in use now");
        }
        if let Some(in_force) =
            registrations.in_force.as_ref().filter(|registration| registration.number == self.number)
        {
            let there = endpoints.iter().filter(|endpoint| !endpoint.is_missing).count();
            count.set(u32::try_from(there).unwrap_or(u32::MAX));
            sender.send_replace(Some(stamped(&endpoints, &in_force.access)));
        }
    }

    /// Logs that a new configuration is waiting for this resolver's first good answer.
    pub(super) fn warn_of_waiting(&self) {
        tracing::warn!(
            pool = %self.resolvers.pool,
            "discovery has no good answer by the new configuration yet: the pool keeps its backends, and their TLS and headers"
        );
    }

    /// Resolves when all receivers are dropped.
    pub(super) async fn closed(&self) {
        self.resolvers.sender.closed().await;
    }
}

fn stamped(endpoints: &[Endpoint], access: &Access) -> Endpoints {
    endpoints.iter().map(|endpoint| Endpoint { access: access.clone(), ..endpoint.clone() }).collect()
}
