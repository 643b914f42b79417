//! The `k8s` resolver: the EndpointSlices of a Service are listed and then watched.
//!
//! - `api` connects to the API server, lists and watches;
//! - `slices` has what is read of its answers, `failure` what can be wrong with them;
//! - `join` makes one set of backends of all slices;
//! - `log` has the lines about changes of the resolver's state;
//! - `watcher` keeps the slices up to date and publishes the set.
//!
//! **Invariant:** a list replaces the slices once it is complete. Until then, and whenever the API server fails, the
//! last good set stays in use.

mod api;
mod failure;
mod join;
mod log;
mod slices;
#[cfg(test)]
mod tests;
mod unready;
mod watcher;

use std::time::Duration;

use tokio::time::timeout;

use self::{
    api::Place,
    watcher::{Pace, Watcher},
};
use super::{Config, DiscoveryError, Meters, Resolvers, service::ServiceName};
use crate::{access::Access, endpoint::Endpoints, lifecycle::Tasks, settings::KubernetesResolver};

/// Checks the keys of a resolver.
pub(super) fn check(keys: &KubernetesResolver) -> Result<(), DiscoveryError> {
    service(keys)?;
    match keys.ports_in_effect() {
        [] => Err(DiscoveryError::NoPorts),
        ports if ports.contains(&0) => Err(DiscoveryError::Port),
        _ => Ok(()),
    }
}

/// Starts a resolver for a pool. Nothing is published yet when this returns.
pub(super) fn start(
    resolvers: &Resolvers,
    pool: &str,
    keys: &KubernetesResolver,
    access: Access,
    tasks: &Tasks,
) -> Result<(), DiscoveryError> {
    start_at(Place::Environment, Pace::default(), resolvers, pool, keys, access, tasks)
}

fn start_at(
    place: Place,
    pace: Pace,
    resolvers: &Resolvers,
    pool: &str,
    keys: &KubernetesResolver,
    access: Access,
    tasks: &Tasks,
) -> Result<(), DiscoveryError> {
    check(keys)?;
    let tasks = tasks.child();
    let meters = Meters::new(pool, &Config::Kubernetes(keys.clone()));
    let watcher = Watcher::new(place, pace, service(keys)?, keys, meters, pool, &tasks);
    let publisher = resolvers.register(access, tasks.clone());
    let stopped = tasks.clone();
    // It ends with its pool, when another resolver takes over, or when all receivers are dropped. It has no work in
    // hand then.
    tasks.spawn(async move {
        tokio::select! {
            biased;
            () = stopped.stopped() => {}
            () = publisher.closed() => {}
            () = watcher.run(&publisher) => {}
        }
        // Connections end with the watcher, which the select has dropped; this ends what they left.
        stopped.stop();
    });
    Ok(())
}

/// Lists once, for at most `limit`.
pub(super) async fn resolve_once(keys: &KubernetesResolver, limit: Duration) -> Result<Endpoints, DiscoveryError> {
    resolve_at(Place::Environment, keys, limit).await
}

async fn resolve_at(place: Place, keys: &KubernetesResolver, limit: Duration) -> Result<Endpoints, DiscoveryError> {
    check(keys)?;
    let tasks = Tasks::new();
    let mut watcher = Watcher::new(place, Pace::default(), service(keys)?, keys, Meters::silent(), "", &tasks);
    let unresolved = |reason| DiscoveryError::Unresolved { hostname: keys.service.clone(), reason };
    match timeout(limit, watcher.list_once()).await {
        Ok(Ok(endpoints)) => Ok(endpoints),
        Ok(Err(failure)) => Err(unresolved(failure.to_string())),
        Err(_) => Err(unresolved(format!("no answer within {limit:?}"))),
    }
}

fn service(keys: &KubernetesResolver) -> Result<ServiceName, DiscoveryError> {
    let parsed = keys.service.parse();
    parsed.map_err(|source| DiscoveryError::Service { written: keys.service.clone(), source })
}
