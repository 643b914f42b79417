//! Asks a backend that ends plaintext connections before a word whether it speaks TLS: then the log can say what is missing,
//! and so can the answers to clients.

use std::sync::{Arc, atomic::Ordering};

use super::{Failure, backend::Backend, dialer};

impl Backend {
    /// What `failure` of a connection is by what is known of the backend.
    pub(super) fn seen_through(&self, failure: Failure) -> Failure {
        let known = self.speaks_tls.load(Ordering::Relaxed);
        if known && may_be_tls(failure) { Failure::SpeaksTls } else { failure }
    }

    /// Asks, if `failure` may be because the backend speaks TLS and we do not. For the first failure of a row, so that a backend
    /// that fails is not asked each time.
    pub(super) fn ask_for_tls(self: &Arc<Self>, failure: Failure) {
        let Some(address) = self.address.filter(|_| self.access.tls().is_none() && may_be_tls(failure)) else { return };
        if self.speaks_tls.load(Ordering::Relaxed) {
            return;
        }
        let (backend, tasks) = (Arc::clone(self), self.shared.tasks.clone());
        self.shared.tasks.spawn(async move {
            let asked = tokio::select! {
                () = tasks.stopped() => return,
                asked = dialer::speaks_tls(address) => asked,
            };
            if asked && !backend.speaks_tls.swap(true, Ordering::Relaxed) && backend.shared.metrics.may_log() {
                let pool = &*backend.shared.metrics.pool;
                tracing::warn!(pool, backend = %backend.identity, "backend unreachable: {}", Failure::SpeaksTls);
            }
        });
    }
}

/// What a server of TLS does with a client that does not speak it: an alert, which is no HTTP/2, or the end.
fn may_be_tls(failure: Failure) -> bool {
    matches!(failure, Failure::Protocol | Failure::Reset | Failure::ResetAtOnce)
}
