//! What deliveries say about a backend's health: each failure of the way to it, and the answer that ends a row of them.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::Failure;
use crate::health::{Events, HealthKind};

/// What was said last of one backend; its shards share it.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    failing: AtomicBool,
}

impl Pulse {
    /// Notes an answer. One relaxed load while all is well.
    pub(super) fn answered(&self, events: &Events, identity: &Arc<str>) {
        if self.failing.load(Ordering::Relaxed) && self.failing.swap(false, Ordering::Relaxed) {
            // What was not taken is said again with the next answer.
            let taken = events.send(identity, HealthKind::Answered);
            self.failing.fetch_or(!taken, Ordering::Relaxed);
        }
    }

    /// Notes a failure of the way to the backend. A shortage on this side is none.
    pub(super) fn failed(&self, events: &Events, identity: &Arc<str>, failure: Failure) {
        if let Some(kind) = kind_of(failure) {
            self.failing.store(true, Ordering::Relaxed);
            events.send(identity, kind);
        }
    }
}

/// What membership hears of a failure, if it says anything of the backend.
fn kind_of(failure: Failure) -> Option<HealthKind> {
    Some(match failure {
        Failure::Local(_) => return None,
        Failure::ConnectRefused | Failure::ResetAtOnce => HealthKind::Refused,
        Failure::Timeout => HealthKind::TimedOut,
        Failure::ConnectError
        | Failure::ConnectTimeout
        | Failure::Ping
        | Failure::Protocol
        | Failure::Reset
        | Failure::Tls(_)
        | Failure::TurnedAway => HealthKind::Failed(failure.as_str()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{health, shortage::Shortage};

    #[test]
    fn every_failure_is_a_reason_that_membership_knows() {
        use Failure::{ConnectError, ConnectRefused, ConnectTimeout, Ping, Protocol, Reset, ResetAtOnce, Timeout};
        let plain = [ConnectError, ConnectRefused, ConnectTimeout, Ping, Protocol, Reset, ResetAtOnce, Timeout];
        for failure in plain.into_iter().chain(crate::tls::Reason::ALL.map(Failure::Tls)) {
            assert!(kind_of(failure).is_some_and(|kind| health::REASONS.contains(&kind.as_str())), "{failure:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_is_said_once_after_failures_and_never_without() {
        let (events, mut inbox) = health::channel("test");
        let (pulse, identity) = (Pulse::default(), "a".into());
        pulse.answered(&events, &identity);
        pulse.failed(&events, &identity, Failure::Local(Shortage::Descriptors));
        pulse.answered(&events, &identity);
        pulse.failed(&events, &identity, Failure::Timeout);
        pulse.failed(&events, &identity, Failure::ResetAtOnce);
        pulse.answered(&events, &identity);
        pulse.answered(&events, &identity);
        drop(events);
        let mut kinds = Vec::new();
        while let Some(event) = inbox.recv().await {
            kinds.push(event.kind);
        }
        assert_eq!(kinds, [HealthKind::TimedOut, HealthKind::Refused, HealthKind::Answered]);
    }

    #[tokio::test]
    async fn an_answer_that_found_no_room_is_said_again() {
        let (events, mut inbox) = health::channel("test");
        let (pulse, identity) = (Pulse::default(), "a".into());
        while events.send(&identity, HealthKind::Refused) {}
        pulse.failed(&events, &identity, Failure::Reset);
        pulse.answered(&events, &identity);
        while inbox.recv().await.is_some_and(|event| event.kind == HealthKind::Refused) {
            pulse.answered(&events, &identity);
        }
        // The loop ended with something else: the answer.
        pulse.answered(&events, &identity);
        drop(events);
        assert_eq!(inbox.recv().await, None, "must be said once");
    }
}
