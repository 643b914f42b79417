//! The timer of one connection: deadlines of its calls, silence, a peer that takes no calls, its last moments.

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

/// What is overdue is looked at once more after this time. The timer fires with the reactor's next turn, which reads the
/// sockets first: after a stall of this process (a stopped container, a starved CPU) answers that are there are heard.
pub(super) const SECOND_LOOK: Duration = Duration::from_millis(1);

/// How long a connection may allow no stream while parts wait.
const STARVED_FOR: Duration = Duration::from_secs(1);

/// How long a connection that is no longer needed may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// One timer for all deadlines of a connection: they are seconds away and seldom met, so it is set anew only when it fires
/// or something comes before it.
pub(super) struct Clock {
    sleep: Pin<Box<Sleep>>,
    at: Option<Instant>,
    waker: Waker,
    pub(super) silence: Silence,
    pinger: Option<PingPong>,
    /// The peer seemed to be dead when this was looked at last.
    doubt: bool,
    /// By then the peer must allow a stream again.
    starved_by: Option<Instant>,
    /// A connection that is no longer needed is over by then.
    goodbye_by: Option<Instant>,
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
            doubt: false,
            starved_by: None,
            goodbye_by: None,
        }
    }

    /// Whether it has fired; then it has to be set anew.
    pub(super) fn has_fired(&mut self) -> bool {
        let fired = self.sleep.as_mut().poll(&mut Context::from_waker(&self.waker)).is_ready();
        if fired {
            self.at = None;
        }
        fired
    }

    /// The connection is no longer needed: once it has no calls it is over soon.
    pub(super) fn say_goodbye(&mut self, has_calls: bool) {
        let by = *self.goodbye_by.get_or_insert_with(|| Instant::now() + GOODBYE);
        if !has_calls {
            self.set(by);
        }
    }

    /// Makes sure that it fires by `at`.
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

    /// Notes whether parts wait for a peer that allows no stream.
    pub(super) fn starve(&mut self, starved: bool) {
        if !starved {
            self.starved_by = None;
        } else if self.starved_by.is_none() {
            let by = Instant::now() + STARVED_FOR;
            self.starved_by = Some(by);
            self.set(by);
        }
    }

    /// Looks at a connection without calls: it may be starved, or no longer needed.
    pub(super) fn rest(&mut self, now: Instant) -> Result<(), Option<Failure>> {
        match (self.starved_by, self.goodbye_by) {
            (Some(by), _) if by <= now => return Err(Some(Failure::TurnedAway)),
            (_, Some(by)) if by <= now => return Err(None),
            (Some(by), _) | (None, Some(by)) => self.set(by),
            (None, None) => {}
        }
        Ok(())
    }

    /// Judges the silence and sends a PING if one is due, for the driver to write.
    pub(super) fn listen(&mut self, now: Instant, traffic: Traffic, is_waiting: bool) -> Advice {
        let advice = self.silence.look(now, traffic, is_waiting);
        let doubted = std::mem::replace(&mut self.doubt, advice == Advice::GiveUp);
        match advice {
            Advice::GiveUp if !doubted => return Advice::Wait(now + SECOND_LOOK),
            Advice::Ping => {
                if let Some(pinger) = &mut self.pinger {
                    // The answer to the last one makes way; if it is still on its way, it will do.
                    drop(pinger.poll_pong(&mut Context::from_waker(Waker::noop())));
                    drop(pinger.send_ping(Ping::opaque()));
                }
            }
            Advice::Ask | Advice::GiveUp | Advice::Rest | Advice::Wait(_) => {}
        }
        advice
    }
}
