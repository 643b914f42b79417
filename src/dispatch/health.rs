//! What deliveries say about a backend's health: transport failures in a row, and the answer that ends them.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use tokio::sync::broadcast;

use super::Failure;

/// Events that are kept for a slow subscriber; it then learns that it missed some.
const KEPT: usize = 1024;

/// One observation. Sent when something failed and when the first answer came after failures, never for each success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthEvent {
    /// The backend.
    pub identity: Arc<str>,
    /// Where it was dialled.
    pub address: SocketAddr,
    /// What was seen.
    pub kind: HealthKind,
}

/// What was seen of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthKind {
    /// It answered, after failures. Its own `UNAVAILABLE` is an answer too.
    Answered,
    /// The way to it failed.
    Failed {
        /// How.
        failure: Failure,
        /// Failures since its last answer, this one included. A connection that dies with several calls counts once.
        in_a_row: u32,
    },
}

/// Where events go.
#[derive(Clone, Debug)]
pub(super) struct Health(broadcast::Sender<HealthEvent>);

/// The count of one backend.
#[derive(Debug, Default)]
pub(super) struct Pulse(AtomicU32);

impl Health {
    pub(super) fn new() -> Self {
        Self(broadcast::Sender::new(KEPT))
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<HealthEvent> {
        self.0.subscribe()
    }

    fn send(&self, identity: &Arc<str>, address: SocketAddr, kind: HealthKind) {
        // Nobody listening is no error: events are advice.
        drop(self.0.send(HealthEvent { identity: Arc::clone(identity), address, kind }));
    }
}

impl Pulse {
    /// Notes an answer. One relaxed load while all is well.
    pub(super) fn answered(&self, health: &Health, identity: &Arc<str>, address: SocketAddr) {
        if self.0.load(Ordering::Relaxed) != 0 && self.0.swap(0, Ordering::Relaxed) != 0 {
            health.send(identity, address, HealthKind::Answered);
        }
    }

    /// Notes a transport failure.
    pub(super) fn failed(&self, health: &Health, identity: &Arc<str>, address: SocketAddr, failure: Failure) {
        let in_a_row = self.0.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        health.send(identity, address, HealthKind::Failed { failure, in_a_row });
    }
}
