//! Takes the place of the `k8s` resolver in a build without the cargo feature `kubernetes`: it refuses to start.

use std::time::Duration;

use super::{DiscoveryError, Resolvers};
use crate::{access::Access, endpoint::Endpoints, lifecycle::Tasks, settings::KubernetesResolver};

/// Returns the error.
pub(super) fn check(_: &KubernetesResolver) -> Result<(), DiscoveryError> {
    Err(DiscoveryError::NotBuilt)
}

/// Returns the error.
pub(super) fn start(
    _: &Resolvers,
    _: &str,
    keys: &KubernetesResolver,
    _: Access,
    _: &Tasks,
) -> Result<(), DiscoveryError> {
    check(keys)
}

/// Returns the error.
pub(super) async fn resolve_once(_: &KubernetesResolver, _: Duration) -> Result<Endpoints, DiscoveryError> {
    Err(DiscoveryError::NotBuilt)
}
