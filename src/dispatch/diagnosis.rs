//! Finds out what a backend speaks that ends plaintext connections before it has answered a call: TLS, HTTP/2 where its pool
//! calls by HTTP/1.1, or the other way round. The log and the answers to clients then name the key to change.

use std::{net::SocketAddr, sync::Arc};

use tokio::sync::Semaphore;

use super::{
    Failure,
    backend::Backend,
    health::Foreign,
    transport::{speaks_http1, speaks_http2, speaks_tls},
};

/// The number of backends that are asked at a time. When more fail, the others are not asked: each question takes up to three
/// connections.
static QUESTIONS: Semaphore = Semaphore::const_new(16);

/// Asks the backend what it speaks, if that may be the cause of `failure`. Called for the first of consecutive failures only, so
/// that a failing backend is not asked each time.
pub(super) fn ask(backend: &Arc<Backend>, failure: Failure) {
    let peer = &backend.peer;
    let Some(address) = peer.address.filter(|_| peer.access.tls().is_none()) else { return };
    if !backend.health.wants_to_know_the_protocol(failure) {
        return;
    }
    let Ok(question) = QUESTIONS.try_acquire() else { return };
    let is_http = peer.keys.protocol.http().is_some();
    let (backend, tasks) = (Arc::clone(backend), backend.shared.tasks.clone());
    tasks.clone().spawn(async move {
        let asked = tokio::select! {
            () = tasks.stopped() => return,
            asked = foreign(address, is_http) => asked,
        };
        drop(question);
        if let Some(foreign) = asked {
            found(&backend, foreign);
        }
    });
}

/// Notes and logs what the backend speaks, if that was not known before. Returns whether it was logged.
pub(super) fn found(backend: &Backend, foreign: Foreign) -> bool {
    let metrics = &backend.shared.metrics;
    let is_logged = backend.health.speaks(foreign) && metrics.may_log();
    if is_logged {
        let (pool, identity) = (&*metrics.pool, &backend.peer.identity);
        tracing::warn!(pool, backend = %identity, "backend unreachable: {}", foreign.failure());
    }
    is_logged
}

/// Returns what the peer speaks instead of the protocol that it is called by. A peer that speaks that as well has another reason
/// to end connections.
async fn foreign(address: SocketAddr, is_http: bool) -> Option<Foreign> {
    if speaks_tls(address).await {
        return Some(Foreign::Tls);
    }
    if is_http {
        (speaks_http2(address).await && !speaks_http1(address).await).then_some(Foreign::Http2)
    } else {
        (speaks_http1(address).await && !speaks_http2(address).await).then_some(Foreign::Http1)
    }
}
