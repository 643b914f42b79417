//! Finds out whether a backend that ends plaintext connections at once speaks TLS. If so, the log and the answers to clients
//! name the missing configuration.

use std::sync::Arc;

use super::{Failure, backend::Backend, transport};

/// Asks the backend whether it speaks TLS, if that may be the cause of `failure`. Called for the first of consecutive failures
/// only, so that a failing backend is not asked each time.
pub(super) fn ask_for_tls(backend: &Arc<Backend>, failure: Failure) {
    let peer = &backend.peer;
    let Some(address) = peer.address.filter(|_| peer.access.tls().is_none()) else { return };
    if !backend.health.wants_to_know_of_tls(failure) {
        return;
    }
    let (backend, tasks) = (Arc::clone(backend), backend.shared.tasks.clone());
    tasks.clone().spawn(async move {
        let asked = tokio::select! {
            () = tasks.stopped() => return,
            asked = transport::speaks_tls(address) => asked,
        };
        let metrics = &backend.shared.metrics;
        if asked && backend.health.speaks_tls() && metrics.may_log() {
            let (pool, identity) = (&*metrics.pool, &backend.peer.identity);
            tracing::warn!(pool, backend = %identity, "backend unreachable: {}", Failure::SpeaksTls);
        }
    });
}
