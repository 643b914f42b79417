//! The time-driven part of the driver: ends calls whose deadline has passed, and checks that the peer is alive.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::Instant;

use super::{
    super::{clock::SECOND_LOOK, probe, silence::Advice},
    Contents, Driver, Event, Failure, GIVE_UP, ORPHAN, Orphan, PROBE, Probe, SILENCE, SOCKET, Scope, Slot, TIMER,
    Verdict, Work,
};

impl<W: Work> Driver<W> {
    /// Handles the wake-ups of the orphan, the probe and the timer. An error ends the connection.
    pub(super) fn watch(&mut self) -> Result<(), Option<Failure>> {
        if self.takes(ORPHAN) {
            self.poll_orphan();
        }
        if self.takes(PROBE) {
            self.poll_probe()?;
        }
        if self.takes(TIMER) { self.tick() } else { Ok(()) }
    }

    /// Handles the timer. Answers that have arrived are handled first.
    fn tick(&mut self) -> Result<(), Option<Failure>> {
        if !self.clock.has_fired() {
            return Ok(());
        }
        self.drive()?;
        self.bits |= self.wakeups.again();
        self.poll_calls();
        if self.takes(ORPHAN) {
            self.poll_orphan();
        }
        let now = Instant::now();
        let next = [self.end_overdue(now), self.end_orphan(now), self.check_silence(now)?].into_iter().flatten().min();
        // h2 has to write the resets of calls whose deadline has passed.
        self.bits |= SOCKET;
        if let Some(next) = next {
            self.clock.set(next);
        }
        if !self.is_open {
            // The backend does not wake a connection that takes no more calls, so that it has to ask.
            self.bits |= GIVE_UP;
        }
        // A connection without calls still waits for its orphan and its probe: both show whether the peer is alive.
        let is_done = self.running == 0 && self.orphan.is_none() && self.probe.is_none();
        if is_done { self.clock.check_idle(now) } else { Ok(()) }
    }

    /// Ends calls whose deadline has passed. Returns the next deadline.
    fn end_overdue(&mut self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for at in 0..self.calls.len() {
            let Some(Slot { call: Some(call), .. }) = self.calls.get_mut(at) else { continue };
            let due = if call.deadline > now {
                call.deadline
            } else if !std::mem::replace(&mut call.overdue, true) {
                now + SECOND_LOOK
            } else {
                self.time_out(at, now);
                continue;
            };
            next = Some(next.map_or(due, |next| next.min(due)));
        }
        next
    }

    /// Ends a call whose deadline has passed: that of the attempt, or that of its clients.
    fn time_out(&mut self, at: usize, now: Instant) {
        let Some(call) = self.calls.get_mut(at).and_then(|slot| slot.call.take()) else { return };
        let until = call.started + self.work.peer().keys.timeout;
        // An orphan keeps its stream. So it is allowed only if the peer allows more streams than there are places, or if the
        // connection begins no more calls.
        let calls = self.calls.len();
        let has_room = self.sender.as_ref().is_none_or(|sender| sender.current_max_send_streams() > calls);
        self.clock.silence.reset(now);
        if until <= now {
            self.work.note(Event::Unanswered(now));
        } else if self.orphan.is_none() && has_room {
            self.orphan = Some(Orphan::new(call.reply, until, call.contents.hold()));
            self.bits |= ORPHAN;
            self.clock.set(until);
        }
        let verdict = Verdict::Failed { failure: Failure::Timeout, reached: true, scope: Scope::Request };
        self.settle(at, call.contents, call.started, verdict);
    }

    /// Polls the orphan.
    fn poll_orphan(&mut self) {
        let Some(orphan) = &mut self.orphan else { return };
        let waker = self.wakeups.waker(ORPHAN);
        if let Poll::Ready(is_answer) = orphan.poll(&mut Context::from_waker(&waker)) {
            self.orphan = None;
            // Makes the timer check whether the connection has anything left to do.
            self.clock.set(Instant::now());
            if is_answer {
                self.note_answer();
            }
        }
    }

    /// Ends the orphan once the attempt's timeout has passed. Returns the time when it will have passed.
    fn end_orphan(&mut self, now: Instant) -> Option<Instant> {
        let until = self.orphan.as_ref()?.until;
        if until > now {
            return Some(until);
        }
        self.orphan = None;
        self.work.note(Event::Unanswered(now));
        None
    }

    /// Acts on the peer's silence. Returns the time of the next check.
    fn check_silence(&mut self, now: Instant) -> Result<Option<Instant>, Option<Failure>> {
        match self.clock.check_silence(now, self.outlet.traffic(), self.running > 0) {
            Advice::Probe => self.start_probe(now),
            Advice::GiveUp => return Err(Some(Failure::Ping)),
            Advice::Ping => {
                self.drive()?;
                self.outlet.mark();
                return Ok(Some(now + SILENCE));
            }
            Advice::Rest => {}
            Advice::Wait(until) => return Ok(Some(until)),
        }
        Ok(None)
    }

    /// Probes the peer on a new connection. Further calls go to another connection, which may send PINGs. This connection stays
    /// until its calls have ended and the probe is done.
    fn start_probe(&mut self, now: Instant) {
        if std::mem::take(&mut self.is_open) {
            self.work.note(Event::InDoubt);
        }
        let peer = self.work.peer();
        let Some(address) = peer.address.filter(|_| self.probe.is_none()) else { return };
        let (access, identity) = (peer.access.clone(), Arc::clone(&peer.identity));
        let is_alive = Box::pin(async move { probe::is_alive(&access, &identity, address).await });
        self.probe = Some(Probe { started_at: now, is_alive });
        self.bits |= PROBE;
    }

    /// Polls the probe. The peer is also alive if anything was read on this connection since the probe began.
    fn poll_probe(&mut self) -> Result<(), Option<Failure>> {
        let Some(probe) = &mut self.probe else { return Ok(()) };
        let waker = self.wakeups.waker(PROBE);
        let Poll::Ready(is_alive) = probe.is_alive.as_mut().poll(&mut Context::from_waker(&waker)) else {
            return Ok(());
        };
        let started_at = probe.started_at;
        self.probe = None;
        let was_read = self.outlet.traffic().read_at.is_some_and(|read_at| read_at >= started_at);
        if !is_alive && !was_read {
            return Err(Some(Failure::Ping));
        }
        let now = Instant::now();
        self.clock.silence.probed(now);
        self.clock.set(now + SILENCE);
        Ok(())
    }
}
