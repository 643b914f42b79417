//! The vocabulary of backend health, shared by dispatch, which observes it, and membership, which decides about
//! ejection.
//!
//! Dispatch reports each failure to reach a backend, and the first answer after failures, but no other success.
//! Membership ejects backends and asks a [`Prober`] before a backend takes records again. The channel between them is
//! bounded and never blocks the sender. If it is full, the event is dropped and counted. A lost failure is harmless, as
//! further ones follow; a lost [`HealthKind::Answered`] has to be sent again (see [`Events::send`]).

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use metrics::Counter;
use tokio::sync::mpsc;

use crate::{access::Access, shortage::Shortage, telemetry::metrics::HEALTH_EVENTS_DROPPED_TOTAL};

/// The capacity of the channel of one pool: hundreds of backends can fail at the same time without a lost event.
const CAPACITY: usize = 1024;

/// The longest time for a probe. Membership enforces it.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// One observation about one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthEvent {
    /// The backend.
    pub identity: Arc<str>,
    /// The observation.
    pub kind: HealthKind,
}

/// An observation about a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthKind {
    /// It answered after failures. A status of its own, even `UNAVAILABLE` or `RESOURCE_EXHAUSTED`, is an answer too.
    Answered,
    /// It could not be reached: a reset, a failed connect, a peer that does not speak HTTP/2. The label names the
    /// failure in metrics. A connection that ends while several calls are open counts once.
    Failed(&'static str),
    /// The connection was refused, or reset as soon as it was made. This is certain enough to eject at once.
    Refused,
    /// It did not answer a connect or a TLS handshake within a second. A packet may have been lost, so one such failure
    /// does not eject. Two in a row do; they take as long as an unanswered PING.
    Unanswered(&'static str),
    /// It answers no PING, or has answered no call for a long time. This is certain enough to eject at once. The label
    /// says which.
    Silent(&'static str),
}

/// Asks backends whether they are alive.
pub trait Prober: Send + Sync + 'static {
    /// Returns whether the backend with this identity, at `address` and with `access`, answers a request at application
    /// level. A TCP connect is not enough, since the kernel still accepts connections for a stopped process; any gRPC
    /// status counts, except "not serving".
    ///
    /// An error means that the probe could not be sent because this process lacks a resource, which says nothing about
    /// the backend.
    ///
    /// Membership gives up after [`PROBE_TIMEOUT`] and drops the future.
    fn probe(
        &self,
        identity: &str,
        address: SocketAddr,
        access: &Access,
    ) -> impl Future<Output = Result<bool, Shortage>> + Send;
}

/// The sending side, for dispatch. Cloning shares the channel.
#[derive(Clone, Debug)]
pub struct Events {
    sender: mpsc::Sender<HealthEvent>,
    dropped: Counter,
}

/// All reasons of ejections in metrics and logs: `refused`, dispatch's labels, and `unresolved`, which membership itself
/// observes.
pub const REASONS: [&str; 24] = [
    "connect_error",
    "connect_timeout",
    "gateway",
    "ping",
    "protocol",
    "refused",
    "refused_stream",
    "reset",
    "speaks_http1",
    "speaks_http2",
    "speaks_tls",
    "timeout",
    "tls_bad_name",
    "tls_closed",
    "tls_expired",
    "tls_no_certificate",
    "tls_not_tls",
    "tls_other",
    "tls_protocol_version",
    "tls_revoked",
    "tls_timeout",
    "tls_unknown_ca",
    "turned_away",
    "unresolved",
];

/// The receiving side, for membership.
#[derive(Debug)]
pub struct Inbox(mpsc::Receiver<HealthEvent>);

/// Creates the channel of one pool.
pub fn channel(pool: &str) -> (Events, Inbox) {
    let (sender, receiver) = mpsc::channel(CAPACITY);
    let dropped = metrics::counter!(HEALTH_EVENTS_DROPPED_TOTAL, "pool" => pool.to_owned());
    (Events { sender, dropped }, Inbox(receiver))
}

// === impl Events ===

impl Events {
    /// Sends an observation without waiting. Returns `false` if the channel was full. The caller must then send an
    /// [`HealthKind::Answered`] again with the next answer, since nothing else ends a row of failures.
    pub fn send(&self, identity: &Arc<str>, kind: HealthKind) -> bool {
        match self.sender.try_send(HealthEvent { identity: Arc::clone(identity), kind }) {
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.dropped.increment(1);
                false
            }
            // A closed channel is not an error: no membership is left that needs the event.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => true,
        }
    }
}

// === impl Inbox ===

impl Inbox {
    /// Receives the next event; `None` once all senders are dropped.
    ///
    /// Cancel safety: an event that was not returned stays in the channel.
    pub async fn recv(&mut self) -> Option<HealthEvent> {
        self.0.recv().await
    }

    /// Returns the next event, if there is one.
    pub fn try_recv(&mut self) -> Option<HealthEvent> {
        self.0.try_recv().ok()
    }
}

// === impl HealthKind ===

impl HealthKind {
    /// Returns the reason for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Failed(label) | Self::Silent(label) | Self::Unanswered(label) => label,
            Self::Refused => "refused",
        }
    }

    /// Returns how many of `consecutive_failures` this event counts as.
    pub fn weight(self) -> u32 {
        match self {
            Self::Answered => 0,
            Self::Unanswered(_) => 2,
            Self::Failed(_) | Self::Refused | Self::Silent(_) => 1,
        }
    }

    /// Returns whether it is certain that the backend cannot be reached.
    pub fn is_certain(self) -> bool {
        matches!(self, Self::Refused | Self::Silent(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_channel_drops_the_event_and_returns_false() {
        let (events, mut inbox) = channel("tail");
        let identity: Arc<str> = "a".into();
        assert!((0..CAPACITY).all(|_| events.send(&identity, HealthKind::Failed("reset"))));
        assert!(!events.send(&identity, HealthKind::Answered), "a full channel must refuse the event");
        assert_eq!(inbox.recv().await.map(|event| event.kind), Some(HealthKind::Failed("reset")));
        assert!(events.send(&identity, HealthKind::Answered), "there is room again");
        drop(inbox);
        assert!(events.send(&identity, HealthKind::Refused), "an event for a closed channel must not be repeated");
    }
}
