//! What the driver does as time passes: ends calls whose time is up, and judges whether the peer is still there.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::Instant;

use super::{
    super::{clock::SECOND_LOOK, probe, silence::Advice},
    ASKED, AWAY, Contents, Driver, Event, Failure, Question, SILENCE, SOCKET, Scope, Slot, TIMER, Verdict, WITNESS,
    Witness, Work,
};

impl<W: Work> Driver<W> {
    /// Looks at all that time brings; an error is the end of the connection.
    pub(super) fn watch(&mut self) -> Result<(), Option<Failure>> {
        if self.takes(WITNESS) {
            self.hear_witness();
        }
        if self.takes(ASKED) {
            self.hear_question()?;
        }
        if self.takes(TIMER) { self.tick() } else { Ok(()) }
    }

    /// Looks at the clock. What has come is heard first.
    fn tick(&mut self) -> Result<(), Option<Failure>> {
        if !self.clock.has_fired() {
            return Ok(());
        }
        self.drive()?;
        self.bits |= self.wakers.again();
        self.hear();
        if self.takes(WITNESS) {
            self.hear_witness();
        }
        let now = Instant::now();
        let next = [self.end_overdue(now), self.end_witness(now), self.listen(now)?].into_iter().flatten().min();
        // Calls whose time is up are reset: h2 has that to write.
        self.bits |= SOCKET;
        if let Some(next) = next {
            self.clock.set(next);
        }
        if !self.is_open {
            // Nobody wakes a connection that takes no more calls.
            self.bits |= AWAY;
        }
        // What the connection may still learn of its peer is not cut off by its end.
        let is_done = self.running == 0 && self.witness.is_none() && self.question.is_none();
        if is_done { self.clock.rest(now) } else { Ok(()) }
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

    /// Ends a call whose deadline has passed: it had its whole time, or its clients wait no longer.
    fn time_out(&mut self, at: usize, now: Instant) {
        let Some(call) = self.calls.get_mut(at).and_then(|slot| slot.call.take()) else { return };
        let until = call.started + self.work.peer().keys.timeout;
        // It keeps its stream; so a peer that allows few has none, unless the connection opens no more anyway.
        let calls = self.calls.len();
        let has_room = self.sender.as_ref().is_none_or(|sender| sender.current_max_send_streams() > calls);
        self.clock.silence.reset(now);
        if until <= now {
            self.work.note(Event::Unanswered(now));
        } else if self.witness.is_none() && has_room {
            self.witness = Some(Witness::new(call.reply, until, call.contents.hold()));
            self.bits |= WITNESS;
            self.clock.set(until);
        }
        let verdict = Verdict::Failed { failure: Failure::Timeout, reached: true, scope: Scope::Request };
        self.settle(at, call.contents, call.started, verdict);
    }

    fn hear_witness(&mut self) {
        let Some(witness) = &mut self.witness else { return };
        let waker = self.wakers.waker(WITNESS);
        if let Poll::Ready(is_answer) = witness.poll(&mut Context::from_waker(&waker)) {
            self.witness = None;
            // The connection may have nothing left to do.
            self.clock.set(Instant::now());
            if is_answer {
                self.note_answer();
            }
        }
    }

    /// Ends the call that outlives its clients once it has had its whole time. Returns when that will be.
    fn end_witness(&mut self, now: Instant) -> Option<Instant> {
        let until = self.witness.as_ref()?.until;
        if until > now {
            return Some(until);
        }
        self.witness = None;
        self.work.note(Event::Unanswered(now));
        None
    }

    /// Judges the silence. Returns when to look again.
    fn listen(&mut self, now: Instant) -> Result<Option<Instant>, Option<Failure>> {
        match self.clock.listen(now, self.outlet.traffic(), self.running > 0) {
            Advice::Ask => self.ask(now),
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

    /// Asks on a fresh connection whether the peer is alive. Further calls go to another connection, which may send PINGs;
    /// this one stays until its calls are over and the question is answered.
    fn ask(&mut self, now: Instant) {
        if std::mem::take(&mut self.is_open) {
            self.work.note(Event::InDoubt);
        }
        let peer = self.work.peer();
        let Some(address) = peer.address.filter(|_| self.question.is_none()) else { return };
        let (access, identity) = (peer.access.clone(), Arc::clone(&peer.identity));
        let is_alive = Box::pin(async move { probe::is_alive(&access, &identity, address).await });
        self.question = Some(Question { asked_at: now, is_alive });
        self.bits |= ASKED;
    }

    /// Hears whether the peer is alive. What was read here meanwhile says so, too.
    fn hear_question(&mut self) -> Result<(), Option<Failure>> {
        let Some(question) = &mut self.question else { return Ok(()) };
        let waker = self.wakers.waker(ASKED);
        let Poll::Ready(is_alive) = question.is_alive.as_mut().poll(&mut Context::from_waker(&waker)) else {
            return Ok(());
        };
        let asked_at = question.asked_at;
        self.question = None;
        let was_read = self.outlet.traffic().read_at.is_some_and(|read_at| read_at >= asked_at);
        if !is_alive && !was_read {
            return Err(Some(Failure::Ping));
        }
        let now = Instant::now();
        self.clock.silence.vouch(now);
        self.clock.set(now + SILENCE);
        Ok(())
    }
}
