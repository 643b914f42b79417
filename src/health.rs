//! What is said of backends' health: the words that dispatch, which sees it, and membership, which judges it, share.
//!
//! Dispatch reports failures of the way to a backend and the answer that ends them, never each success. Membership ejects,
//! and asks a [`Prober`] before it lets a backend return. The channel between them is bounded and never waits: what finds no
//! room is dropped and counted, and the next failure says it again.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use metrics::Counter;
use tokio::sync::mpsc;

use crate::{access::Access, shortage::Shortage, telemetry::metrics::HEALTH_EVENTS_DROPPED_TOTAL};

/// Events that may wait for membership. A pool of hundreds of backends that die together fits.
const CAPACITY: usize = 1024;

/// How long a probe may take, as membership enforces it.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// One observation of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthEvent {
    /// The backend.
    pub identity: Arc<str>,
    /// What was seen.
    pub kind: HealthKind,
}

/// What was seen of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthKind {
    /// It answered, after failures. Its own `UNAVAILABLE` or `RESOURCE_EXHAUSTED` is an answer too.
    Answered,
    /// The way to it failed: a reset, a connect that timed out, a peer that does not speak HTTP/2. The label says how, in a word that fits a metric. A connection that dies with several calls counts once.
    Failed(&'static str),
    /// Nobody listens, or a new connection was reset at once: no doubt is left.
    Refused,
    /// It did not answer a connect, or TLS, within a second. Packets get lost, so once leaves a doubt; twice in a row is as long
    /// as a PING is waited for.
    Unanswered(&'static str),
    /// It answers no PING, or it has answered no call for long: no doubt is left. The label says which.
    Silent(&'static str),
}

/// Asks a backend whether it is there.
pub trait Prober: Send + Sync + 'static {
    /// Whether the backend of that identity, at `address` and spoken to by `access`, answers a question of its own protocol. A connect alone is not enough, since a
    /// stopped process still accepts; any status of its own is, except that it says it is not serving.
    ///
    /// An error says that it could not be asked for want of something of this process, which says nothing of the backend.
    ///
    /// Membership gives up after [`PROBE_TIMEOUT`] and drops the future.
    fn probe(
        &self,
        identity: &str,
        address: SocketAddr,
        access: &Access,
    ) -> impl Future<Output = Result<bool, Shortage>> + Send;
}

/// Where dispatch says what it saw. Cloning shares the channel.
#[derive(Clone, Debug)]
pub struct Events {
    sender: mpsc::Sender<HealthEvent>,
    dropped: Counter,
}

/// Why backends are ejected, as metrics and logs name it: the kinds of [`HealthKind`] that are failures, dispatch's words for
/// [`HealthKind::Failed`], and `unresolved`, which membership itself sees.
pub const REASONS: [&str; 22] = [
    "connect_error",
    "connect_timeout",
    "gateway",
    "ping",
    "protocol",
    "refused",
    "refused_stream",
    "reset",
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

/// Where membership hears it.
#[derive(Debug)]
pub struct Inbox(mpsc::Receiver<HealthEvent>);

/// The channel of one pool.
pub fn channel(pool: &str) -> (Events, Inbox) {
    let (sender, receiver) = mpsc::channel(CAPACITY);
    let dropped = metrics::counter!(HEALTH_EVENTS_DROPPED_TOTAL, "pool" => pool.to_owned());
    (Events { sender, dropped }, Inbox(receiver))
}

// === impl Events ===

impl Events {
    /// Says what was seen; never waits. Whether it was taken: an [`HealthKind::Answered`] that was not is to be said again
    /// with the next answer, since nothing else ends a row of failures.
    pub fn send(&self, identity: &Arc<str>, kind: HealthKind) -> bool {
        match self.sender.try_send(HealthEvent { identity: Arc::clone(identity), kind }) {
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.dropped.increment(1);
                false
            }
            // Nobody listening is no error: events are advice.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => true,
        }
    }
}

// === impl Inbox ===

impl Inbox {
    /// The next event; `None` once nobody can send any more.
    ///
    /// Cancel safety: what was not answered stays in the channel.
    pub async fn recv(&mut self) -> Option<HealthEvent> {
        self.0.recv().await
    }

    /// The next event, if one waits.
    pub fn try_recv(&mut self) -> Option<HealthEvent> {
        self.0.try_recv().ok()
    }
}

// === impl HealthKind ===

impl HealthKind {
    /// The reason in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Failed(label) | Self::Silent(label) | Self::Unanswered(label) => label,
            Self::Refused => "refused",
        }
    }

    /// How many failures in a row it counts as.
    pub fn weight(self) -> u32 {
        match self {
            Self::Answered => 0,
            Self::Unanswered(_) => 2,
            Self::Failed(_) | Self::Refused | Self::Silent(_) => 1,
        }
    }

    /// Whether it leaves no doubt that the backend cannot be reached.
    pub fn is_certain(self) -> bool {
        matches!(self, Self::Refused | Self::Silent(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_channel_drops_and_says_so() {
        let (events, mut inbox) = channel("tail");
        let identity: Arc<str> = "a".into();
        assert!((0..CAPACITY).all(|_| events.send(&identity, HealthKind::Failed("reset"))));
        assert!(!events.send(&identity, HealthKind::Answered), "must not be taken");
        assert_eq!(inbox.recv().await.map(|event| event.kind), Some(HealthKind::Failed("reset")));
        assert!(events.send(&identity, HealthKind::Answered), "there is room again");
        drop(inbox);
        assert!(events.send(&identity, HealthKind::Refused), "nobody listening is no reason to say it again");
    }
}
