//! The timer of one connection. It covers the deadlines of calls, the peer's silence, a peer that allows no streams, and the
//! time that closing may take.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Waker},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep};

use super::{
    Failure,
    silence::{Advice, Silence, Traffic},
};

/// Time between the moment a deadline is found to have passed and the check that decides. The timer fires on the reactor's next
/// turn, which reads the sockets first. So answers that arrived while this process was stalled (a stopped container, a starved
/// CPU) still count.
pub(super) const SECOND_LOOK: Duration = Duration::from_millis(1);

/// How long a peer may allow no streams while parts wait.
const STARVED_FOR: Duration = Duration::from_secs(1);

/// How long it may take to close a connection that is no longer needed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// One timer for all deadlines of a connection. Deadlines are seconds away and seldom reached, so the timer is reset only when
/// it fires or when an earlier deadline is set.
pub(super) struct Clock {
    sleep: Pin<Box<Sleep>>,
    at: Option<Instant>,
    waker: Waker,
    pub(super) silence: Silence,
    pinger: Option<PingPong>,
    /// Whether the last check found that the peer does not answer. If the next one does too, the peer is given up.
    in_doubt: bool,
    /// The time by which the peer must allow a stream again.
    starved_by: Option<Instant>,
    /// The time by which a connection that is no longer needed must be closed.
    close_by: Option<Instant>,
}

impl Clock {
    pub(super) fn new(pinger: Option<PingPong>, waker: Waker) -> Self {
        let now = Instant::now();
        Self {
            sleep: Box::pin(tokio::time::sleep_until(now)),
            at: None,
            waker,
            silence: Silence::default(),
            pinger,
            in_doubt: false,
            starved_by: None,
            close_by: None,
        }
    }

    /// Whether the timer has fired. It has to be set again then.
    pub(super) fn has_fired(&mut self) -> bool {
        let fired = self.sleep.as_mut().poll(&mut Context::from_waker(&self.waker)).is_ready();
        if fired {
            self.at = None;
        }
        fired
    }

    /// Called when the connection is no longer needed. Once it has no calls, it has to be closed within a short time.
    pub(super) fn begin_close(&mut self, has_calls: bool) {
        let by = *self.close_by.get_or_insert_with(|| Instant::now() + CLOSE_TIMEOUT);
        if !has_calls {
            self.set(by);
        }
    }

    /// Makes the timer fire at `at` or earlier.
    pub(super) fn set(&mut self, at: Instant) {
        if self.at.is_some_and(|set| set <= at) {
            return;
        }
        self.at = Some(at);
        self.sleep.as_mut().reset(at);
        if self.sleep.as_mut().poll(&mut Context::from_waker(&self.waker)).is_ready() {
            self.waker.wake_by_ref();
        }
    }

    /// Notes whether parts wait while the peer allows no streams.
    pub(super) fn note_starved(&mut self, starved: bool) {
        if !starved {
            self.starved_by = None;
        } else if self.starved_by.is_none() {
            let by = Instant::now() + STARVED_FOR;
            self.starved_by = Some(by);
            self.set(by);
        }
    }

    /// Checks a connection without calls. An error ends it: with a failure if the peer allowed no streams for too long, without
    /// one if the connection is no longer needed.
    pub(super) fn check_idle(&mut self, now: Instant) -> Result<(), Option<Failure>> {
        match (self.starved_by, self.close_by) {
            (Some(by), _) if by <= now => return Err(Some(Failure::TurnedAway)),
            (_, Some(by)) if by <= now => return Err(None),
            (Some(by), _) | (None, Some(by)) => self.set(by),
            (None, None) => {}
        }
        Ok(())
    }

    /// Judges the peer's silence. If a PING is due, hands it to h2; the driver has to write it.
    pub(super) fn check_silence(&mut self, now: Instant, traffic: Traffic, is_waiting: bool) -> Advice {
        let advice = self.silence.judge(now, traffic, is_waiting);
        let doubted = std::mem::replace(&mut self.in_doubt, advice == Advice::GiveUp);
        match advice {
            Advice::GiveUp if !doubted => return Advice::Wait(now + SECOND_LOOK),
            Advice::Ping => {
                if let Some(pinger) = &mut self.pinger {
                    // h2 sends a PING only after the answer to the last one was taken. If that answer is still outstanding, the
                    // last PING serves as well.
                    drop(pinger.poll_pong(&mut Context::from_waker(Waker::noop())));
                    drop(pinger.send_ping(Ping::opaque()));
                }
            }
            Advice::Probe | Advice::GiveUp | Advice::Rest | Advice::Wait(_) => {}
        }
        advice
    }
}
