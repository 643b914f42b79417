//! What deliveries say about a backend's health: each failure of the way to it, and the answer that ends a row of them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::Failure;
use crate::{
    health::{Events, HealthKind},
    tls::Reason,
};

/// A backend that has answered no call for so many times `timeout` is ejected, although it answers PINGs (design 3, Silence).
const MUTE_TIMEOUTS: u32 = 2;

/// The health of a backend, as deliveries see it.
#[derive(Debug)]
pub(super) struct Health {
    identity: Arc<str>,
    events: Events,
    pub(super) pulse: Arc<Pulse>,
    /// Whether it was seen to speak TLS, though it is spoken to in plaintext.
    speaks_tls: AtomicBool,
}

/// What was said last of one backend, and since when it has answered no call; its shards share it.
#[derive(Debug)]
pub(super) struct Pulse {
    failing: AtomicBool,
    /// What `unanswered_since` counts from.
    base: Instant,
    /// Milliseconds, plus one, from `base` to the first call since the last answer; 0 if there was none.
    unanswered_since: AtomicU64,
    /// Whether it was ejected for that and has answered no call since: answering probes does not make up for it.
    is_on_trial: AtomicBool,
    /// Whether a backend of that identity and address is in the table, which after a change of the configuration may be another
    /// object than the one that fails.
    is_listed: AtomicBool,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            failing: AtomicBool::new(false),
            base: Instant::now(),
            unanswered_since: AtomicU64::new(0),
            is_on_trial: AtomicBool::new(false),
            is_listed: AtomicBool::new(true),
        }
    }
}

impl Pulse {
    /// Notes that a call began. One relaxed load while another one is unanswered.
    pub(super) fn called(&self, now: Instant) {
        if self.unanswered_since.load(Ordering::Relaxed) == 0 {
            self.unanswered_since.store(self.millis(now).saturating_add(1), Ordering::Relaxed);
        }
    }

    /// Whether no call was answered for too long, although some were made. A backend that comes back from an ejection for
    /// this reason has half the time for its first answer, so that it costs clients less each time.
    pub(super) fn is_mute(&self, now: Instant, timeout: Duration) -> bool {
        let timeouts = if self.is_on_trial.load(Ordering::Relaxed) { 1 } else { MUTE_TIMEOUTS };
        let since = self.unanswered_since.load(Ordering::Relaxed);
        since > 0 && u128::from(self.millis(now).saturating_sub(since - 1)) >= (timeout * timeouts).as_millis()
    }

    /// Notes whether the table still has it.
    pub(super) fn list(&self, is_listed: bool) {
        self.is_listed.store(is_listed, Ordering::Release);
    }

    /// Whether the table still has it.
    pub(super) fn is_listed(&self) -> bool {
        self.is_listed.load(Ordering::Acquire)
    }

    /// It is reported as mute.
    pub(super) fn begin_trial(&self) {
        self.is_on_trial.store(true, Ordering::Relaxed);
    }

    /// Forgets that calls were unanswered: the backend returned to service.
    pub(super) fn begin_anew(&self) {
        self.unanswered_since.store(0, Ordering::Relaxed);
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.base).as_millis()).unwrap_or(u64::MAX)
    }

    /// Notes an answer. A few relaxed loads and stores while all is well.
    pub(super) fn answered(&self, events: &Events, identity: &Arc<str>) {
        self.begin_anew();
        self.is_on_trial.store(false, Ordering::Relaxed);
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

impl Health {
    pub(super) fn new(identity: &Arc<str>, events: Events, pulse: Arc<Pulse>) -> Self {
        Self { identity: Arc::clone(identity), events, pulse, speaks_tls: AtomicBool::new(false) }
    }

    /// Notes that a call begins.
    pub(super) fn called(&self, now: Instant) {
        self.pulse.called(now);
    }

    /// Notes that the backend has answered a call.
    pub(super) fn answered(&self) {
        self.pulse.answered(&self.events, &self.identity);
    }

    /// Notes that the backend is in service again.
    pub(super) fn begin_anew(&self) {
        self.pulse.begin_anew();
    }

    /// Called when a call was not answered within its timeout. Returns whether no call at all was answered for so long that the
    /// backend counts as failed. `timeout` is that of one attempt.
    pub(super) fn is_mute(&self, now: Instant, timeout: Duration) -> bool {
        let is_mute = self.pulse.is_mute(now, timeout);
        if is_mute {
            self.pulse.begin_trial();
        }
        is_mute
    }

    /// Reports a failure of the transport. A backend that is closing reports only silence, and only if the table still lists it:
    /// then another object with a new configuration has taken over, and the same process does not answer.
    pub(super) fn failed(&self, failure: Failure, is_closing: bool) {
        let is_silence = matches!(failure, Failure::Ping | Failure::Timeout);
        if !is_closing || self.pulse.is_listed() && is_silence {
            self.pulse.failed(&self.events, &self.identity, failure);
        }
    }

    /// Returns `failure`, or [`Failure::SpeaksTls`] if that is known to be its cause.
    pub(super) fn seen_through(&self, failure: Failure) -> Failure {
        if self.speaks_tls.load(Ordering::Relaxed) && may_be_tls(failure) { Failure::SpeaksTls } else { failure }
    }

    /// Whether to ask the backend if it speaks TLS, after `failure` of a plaintext connection.
    pub(super) fn wants_to_know_of_tls(&self, failure: Failure) -> bool {
        may_be_tls(failure) && !self.speaks_tls.load(Ordering::Relaxed)
    }

    /// Notes that the backend speaks TLS. Returns whether this was not known before.
    pub(super) fn speaks_tls(&self) -> bool {
        !self.speaks_tls.swap(true, Ordering::Relaxed)
    }

    /// Notes that the backend has answered in plaintext.
    pub(super) fn speaks_plaintext(&self) {
        self.speaks_tls.store(false, Ordering::Relaxed);
    }
}

/// What a server of TLS does with a client that does not speak it: an alert, which is no HTTP/2, or the end.
fn may_be_tls(failure: Failure) -> bool {
    matches!(failure, Failure::Protocol | Failure::Reset | Failure::ResetAtOnce)
}

/// What membership hears of a failure, if it says anything of the backend.
fn kind_of(failure: Failure) -> Option<HealthKind> {
    Some(match failure {
        Failure::Local(_) => return None,
        Failure::ConnectRefused | Failure::ResetAtOnce => HealthKind::Refused,
        Failure::Ping | Failure::Timeout => HealthKind::Silent(failure.as_str()),
        Failure::ConnectTimeout | Failure::Tls(Reason::Timeout) => HealthKind::Unanswered(failure.as_str()),
        Failure::ConnectError
        | Failure::Gateway(_)
        | Failure::Protocol
        | Failure::RefusedStream
        | Failure::Reset
        | Failure::SpeaksTls
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
        use Failure::{
            ConnectError, ConnectRefused, ConnectTimeout, Gateway, Ping, Protocol, RefusedStream, Reset, ResetAtOnce,
            Timeout, TurnedAway,
        };
        let connecting = [ConnectError, ConnectRefused, ConnectTimeout];
        let calling = [Gateway(502), Ping, Protocol, RefusedStream, Reset, ResetAtOnce, Timeout, TurnedAway];
        for failure in connecting.into_iter().chain(calling).chain(Reason::ALL.map(Failure::Tls)) {
            assert!(kind_of(failure).is_some_and(|kind| health::REASONS.contains(&kind.as_str())), "{failure:?}");
        }
    }

    #[tokio::test]
    async fn a_backend_is_mute_once_no_call_was_answered_for_long() {
        let (events, _inbox) = health::channel("test");
        let (pulse, start) = (Pulse::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let is_mute = |seconds| pulse.is_mute(at(seconds), Duration::from_secs(5));
        assert!(!is_mute(100), "nobody called it");
        pulse.called(at(100));
        pulse.called(at(109));
        assert!(!is_mute(109) && is_mute(110), "measured from the first call on");
        pulse.begin_trial();
        pulse.begin_anew();
        pulse.called(at(200));
        assert!(!is_mute(204) && is_mute(205), "it came back and owes its first answer sooner");
        pulse.answered(&events, &"a".into());
        pulse.called(at(300));
        assert!(!is_mute(309) && is_mute(310), "an answer makes up for it");
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
        assert_eq!(kinds, [HealthKind::Silent("timeout"), HealthKind::Refused, HealthKind::Answered]);
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
