//! A backend's health as seen by deliveries: reports each failure of its connections, and the first answer after failures.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
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

/// A backend that has answered no call for this many times `timeout` is ejected, even if it answers PINGs (design 3, Silence).
const MUTE_TIMEOUTS: u32 = 2;

/// The health of a backend, as deliveries see it.
#[derive(Debug)]
pub(super) struct Health {
    identity: Arc<str>,
    events: Events,
    pub(super) pulse: Arc<Pulse>,
    /// What the backend is known to speak instead of what its pool calls it by; `None` while that is not known.
    foreign: Mutex<Option<Foreign>>,
}

/// What a backend speaks instead of what its pool calls it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Foreign {
    /// TLS, and the pool is plaintext.
    Tls,
    /// HTTP/1.1, and the pool calls by gRPC.
    Http1,
    /// HTTP/2, and the pool calls by OTLP/HTTP.
    Http2,
}

/// The part of a backend's health that its shards share: the last report, and the time since which it has answered no call.
#[derive(Debug)]
pub(super) struct Pulse {
    /// Whether a failure was reported, and no answer since.
    failing: AtomicBool,
    /// The time that `unanswered_since` counts from.
    base: Instant,
    /// The milliseconds from `base` to the first call since the last answer, plus one; 0 if there was no call since.
    unanswered_since: AtomicU64,
    /// Whether the backend was reported as mute and has answered no call since. Answers to probes do not count.
    is_on_trial: AtomicBool,
    /// Whether the table has a backend with this identity and address. After a change of the configuration that can be another
    /// object than the one that reports a failure.
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
    /// Notes that a call began. While another call is unanswered, this costs one relaxed load.
    pub(super) fn called(&self, now: Instant) {
        if self.unanswered_since.load(Ordering::Relaxed) == 0 {
            self.unanswered_since.store(self.millis(now).saturating_add(1), Ordering::Relaxed);
        }
    }

    /// Whether no call was answered for too long, although some were made. A backend that returns after an ejection for this
    /// reason has half the time for its first answer, so that fewer clients wait for it in vain.
    pub(super) fn is_mute(&self, now: Instant, timeout: Duration) -> bool {
        let timeouts = if self.is_on_trial.load(Ordering::Relaxed) { 1 } else { MUTE_TIMEOUTS };
        let since = self.unanswered_since.load(Ordering::Relaxed);
        since > 0 && u128::from(self.millis(now).saturating_sub(since - 1)) >= (timeout * timeouts).as_millis()
    }

    /// Notes whether the table has the backend.
    pub(super) fn list(&self, is_listed: bool) {
        self.is_listed.store(is_listed, Ordering::Release);
    }

    /// Whether the table has the backend.
    pub(super) fn is_listed(&self) -> bool {
        self.is_listed.load(Ordering::Acquire)
    }

    /// Notes that the backend is reported as mute.
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

    /// Notes an answer. While the backend is healthy, this costs a few relaxed loads and stores.
    pub(super) fn answered(&self, events: &Events, identity: &Arc<str>) {
        self.begin_anew();
        self.is_on_trial.store(false, Ordering::Relaxed);
        if self.failing.load(Ordering::Relaxed) && self.failing.swap(false, Ordering::Relaxed) {
            // If the channel is full, the next answer is reported instead.
            let taken = events.send(identity, HealthKind::Answered);
            self.failing.fetch_or(!taken, Ordering::Relaxed);
        }
    }

    /// Notes a failure of the connection to the backend. A shortage of this process does not count as one.
    pub(super) fn failed(&self, events: &Events, identity: &Arc<str>, failure: Failure) {
        if let Some(kind) = kind_of(failure) {
            self.failing.store(true, Ordering::Relaxed);
            events.send(identity, kind);
        }
    }
}

impl Health {
    pub(super) fn new(identity: &Arc<str>, events: Events, pulse: Arc<Pulse>) -> Self {
        Self { identity: Arc::clone(identity), events, pulse, foreign: Mutex::new(None) }
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

    /// Returns `failure`, or its cause if the backend is known to speak something else.
    pub(super) fn seen_through(&self, failure: Failure) -> Failure {
        let foreign = if may_be_foreign(failure) { *self.foreign() } else { None };
        foreign.map_or(failure, Foreign::failure)
    }

    /// Whether to ask the backend what it speaks, after `failure` of a plaintext connection.
    pub(super) fn wants_to_know_the_protocol(&self, failure: Failure) -> bool {
        may_be_foreign(failure) && self.foreign().is_none()
    }

    /// Notes what the backend speaks instead of what its pool calls it by. Returns whether this was not known before.
    pub(super) fn speaks(&self, foreign: Foreign) -> bool {
        self.foreign().replace(foreign) != Some(foreign)
    }

    /// Notes that the backend has answered a call.
    pub(super) fn speaks_as_it_should(&self) {
        *self.foreign() = None;
    }

    fn foreign(&self) -> MutexGuard<'_, Option<Foreign>> {
        self.foreign.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Foreign {
    /// The failure of calls that it causes.
    pub(super) fn failure(self) -> Failure {
        match self {
            Self::Tls => Failure::SpeaksTls,
            Self::Http1 => Failure::SpeaksHttp1,
            Self::Http2 => Failure::SpeaksHttp2,
        }
    }
}

/// Whether a server of another protocol can cause this failure of a plaintext connection. It answers with something that is
/// neither HTTP/2 nor HTTP/1.1 as expected, such as an alert of TLS, or closes the connection.
fn may_be_foreign(failure: Failure) -> bool {
    matches!(failure, Failure::Protocol | Failure::Reset | Failure::ResetAtOnce)
}

/// The report to membership about a failure; `None` if the failure says nothing about the backend.
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
        | Failure::SpeaksHttp1
        | Failure::SpeaksHttp2
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
    fn membership_knows_the_reason_of_every_failure() {
        use Failure::{
            ConnectError, ConnectRefused, ConnectTimeout, Gateway, Ping, Protocol, RefusedStream, Reset, ResetAtOnce,
            SpeaksHttp1, SpeaksHttp2, SpeaksTls, Timeout, TurnedAway,
        };
        let connecting = [ConnectError, ConnectRefused, ConnectTimeout];
        let calling = [Gateway(502), Ping, Protocol, RefusedStream, Reset, ResetAtOnce, Timeout, TurnedAway];
        let foreign = [SpeaksHttp1, SpeaksHttp2, SpeaksTls];
        for failure in connecting.into_iter().chain(calling).chain(foreign).chain(Reason::ALL.map(Failure::Tls)) {
            assert!(kind_of(failure).is_some_and(|kind| health::REASONS.contains(&kind.as_str())), "{failure:?}");
        }
    }

    #[tokio::test]
    async fn a_backend_is_mute_after_two_timeouts_without_an_answer() {
        let (events, _inbox) = health::channel("test");
        let (pulse, start) = (Pulse::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let is_mute = |seconds| pulse.is_mute(at(seconds), Duration::from_secs(5));
        assert!(!is_mute(100), "there was no call");
        pulse.called(at(100));
        pulse.called(at(109));
        assert!(!is_mute(109) && is_mute(110), "measured from the first call on");
        pulse.begin_trial();
        pulse.begin_anew();
        pulse.called(at(200));
        assert!(!is_mute(204) && is_mute(205), "after its return it has half the time");
        pulse.answered(&events, &"a".into());
        pulse.called(at(300));
        assert!(!is_mute(309) && is_mute(310), "after an answer it has the whole time again");
    }

    #[tokio::test]
    async fn an_answer_is_reported_once_and_only_after_failures() {
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
    async fn an_answer_is_reported_later_if_the_channel_is_full() {
        let (events, mut inbox) = health::channel("test");
        let (pulse, identity) = (Pulse::default(), "a".into());
        while events.send(&identity, HealthKind::Refused) {}
        pulse.failed(&events, &identity, Failure::Reset);
        pulse.answered(&events, &identity);
        while inbox.recv().await.is_some_and(|event| event.kind == HealthKind::Refused) {
            pulse.answered(&events, &identity);
        }
        // The loop ended with the report of an answer.
        pulse.answered(&events, &identity);
        drop(events);
        assert_eq!(inbox.recv().await, None, "must be reported once");
    }
}
