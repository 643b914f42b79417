//! The task of one connection: begins calls as places open, hears their replies, drives HTTP/2, notices when it is over.

mod watch;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use h2::client::{Connection, SendRequest};
use tokio::time::Instant;

use super::{
    Contents, Event, Failure, Scope, Verdict, Work,
    call::{Call, Place},
    client::Connected,
    clock::Clock,
    silence::SILENCE,
    stream::Stream,
    wakers::{ASKED, AWAY, MAX_PLACES, QUEUE, SOCKET, STOP, TIMER, WITNESS, Wakers},
    wire::{Outlet, Wire},
    witness::Witness,
};
use crate::{lifecycle::Tasks, otlp::Chunk, shortage::Shortage};

/// Times that a poll looks again at what came meanwhile before other tasks get their turn.
const MAX_ROUNDS: usize = 8;

/// Bits that can wait until others have run.
const GIVE_WAY: u64 = QUEUE | SOCKET | CALLS;

/// Bits of the calls.
const CALLS: u64 = (1 << MAX_PLACES) - 1;

/// One connection with its calls.
pub(super) struct Driver<W: Work> {
    work: W,
    /// Whether it takes further calls.
    is_open: bool,
    wakers: Arc<Wakers>,
    /// What is to be looked at.
    bits: u64,
    socket: Waker,
    calls: Box<[Slot<W::Contents>]>,
    running: usize,
    /// `None` once no call may begin: HTTP/2 then ends with the last of those that run.
    sender: Option<SendRequest<Chunk>>,
    connection: Connection<Wire<Stream>, Chunk>,
    outlet: Outlet<Stream>,
    /// Whether it let others run since it was woken: a thread runs the task that was woken last at once, while requests that
    /// are being cut at this moment may have more for the same call, and backends that answer the same requests their answers.
    /// That lowers the cost of a span (`deploy/docs/performance.md`).
    gave_way: bool,
    /// Whether the end of what was gathered waits to be written until others have run.
    has_end: bool,
    clock: Clock,
    /// A call that outlives its clients.
    witness: Option<Witness<<W::Contents as Contents>::Held>>,
    /// Whether the peer is alive, as it is asked on a fresh connection.
    question: Option<Question>,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// A question on a fresh connection, and when it was asked.
struct Question {
    asked_at: Instant,
    is_alive: Pin<Box<dyn Future<Output = bool> + Send>>,
}

/// A place of the connection.
struct Slot<C> {
    call: Option<Call<C>>,
    waker: Waker,
}

impl<W: Work> Driver<W> {
    /// Takes over a fresh connection.
    pub(super) fn new(mut work: W, connected: Connected, tasks: &Tasks) -> Self {
        let Connected { sender, mut connection, outlet } = connected;
        let wakers = Arc::new(Wakers::default());
        let places = work.peer().places.clamp(1, MAX_PLACES);
        let calls = (0..places).map(|slot| Slot { call: None, waker: wakers.waker(1 << slot) }).collect();
        let clock = Clock::new(connection.ping_pong(), wakers.waker(TIMER));
        let tasks = tasks.clone();
        work.note(Event::Connected(Arc::clone(&wakers)));
        Self {
            work,
            is_open: true,
            bits: SOCKET | QUEUE | STOP | AWAY,
            socket: wakers.waker(SOCKET),
            calls,
            running: 0,
            sender: Some(sender),
            connection,
            outlet,
            gave_way: false,
            has_end: false,
            clock,
            witness: None,
            question: None,
            stopped: Box::pin(async move { tasks.stopped().await }),
            wakers,
        }
    }

    /// Looks at everything that has its bit set.
    fn round(&mut self) -> Poll<()> {
        if self.takes(STOP) {
            let waker = self.wakers.waker(STOP);
            if self.stopped.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                self.stop();
                return Poll::Ready(());
            }
        }
        if self.takes(AWAY) && self.work.is_given_up() {
            self.give_up();
            return Poll::Ready(());
        }
        if let Err(failure) = self.watch() {
            self.end(failure);
            return Poll::Ready(());
        }
        self.takes(QUEUE);
        let mut begun = false;
        loop {
            self.hear();
            if !self.begin() {
                break;
            }
            begun = true;
        }
        // What was just begun has set the socket's bit: it is polled here and not once more.
        self.bits |= self.wakers.again();
        if (self.takes(SOCKET) || begun)
            && let Err(failure) = self.drive()
        {
            self.end(failure);
            return Poll::Ready(());
        }
        if self.running == 0 && self.is_open && self.work.is_finished() {
            self.leave();
        }
        if self.running == 0 && !self.is_open && self.question.is_none() && self.sender.is_some() {
            self.retire();
        }
        Poll::Pending
    }

    fn takes(&mut self, bit: u64) -> bool {
        let set = self.bits & bit != 0;
        self.bits &= !bit;
        set
    }

    /// Begins calls while places are open; whether any began.
    fn begin(&mut self) -> bool {
        let Some(sender) = self.sender.as_mut().filter(|_| self.is_open) else { return false };
        let mut begun = false;
        let witnesses = usize::from(self.witness.is_some());
        while self.work.waits()
            && self.running < self.calls.len()
            && self.running + witnesses < sender.current_max_send_streams()
        {
            let now = Instant::now();
            let Some(at) = self.calls.iter().position(|slot| slot.call.is_none()) else { break };
            let Some(contents) = self.work.take(now) else { break };
            let mut place = Place { at, sender, outlet: &self.outlet };
            match Call::begin(contents, self.work.peer(), &mut place, now) {
                Ok(call) => {
                    self.clock.silence.begin(now, self.running > 0);
                    self.work.began(&call.contents, now);
                    self.running += 1;
                    self.clock.set(call.deadline.min(now + SILENCE));
                    if let Some(slot) = self.calls.get_mut(at) {
                        slot.call = Some(call);
                    }
                    // It registers its waker when it is first polled.
                    self.bits |= 1 << at;
                    begun = true;
                }
                Err(contents) => {
                    self.outlet.take_back(at);
                    self.work.done(contents, None, Verdict::Unprocessed { refused: false }, now);
                    self.bits |= SOCKET;
                    break;
                }
            }
        }
        let starved = self.running == 0 && sender.current_max_send_streams() == 0 && self.work.waits();
        self.clock.starve(starved);
        begun
    }

    /// Polls the calls that have something to hear.
    fn hear(&mut self) {
        let mut bits = self.bits & CALLS;
        self.bits &= !CALLS;
        while bits != 0 {
            let at = usize::try_from(bits.trailing_zeros()).unwrap_or(MAX_PLACES);
            bits &= bits - 1;
            let Some(Slot { call: Some(call), waker }) = self.calls.get_mut(at) else { continue };
            if let Poll::Ready(verdict) = call.poll(&mut Context::from_waker(waker)) {
                self.finish(at, verdict);
            }
        }
    }

    fn finish(&mut self, at: usize, verdict: Verdict) {
        let Some(call) = self.calls.get_mut(at).and_then(|slot| slot.call.take()) else { return };
        if verdict.is_answer() {
            self.note_answer();
        }
        self.settle(at, call.contents, call.started, verdict);
    }

    /// Frees the place of a call that is over and says what became of it.
    fn settle(&mut self, at: usize, contents: W::Contents, started: Instant, verdict: Verdict) {
        self.running -= 1;
        self.outlet.take_back(at);
        self.work.done(contents, Some(started), verdict, Instant::now());
    }

    /// The backend answered a call.
    fn note_answer(&mut self) {
        self.clock.silence.answered();
        self.work.note(Event::Answered);
    }

    /// Drives HTTP/2: reads, writes, notices its end (`Err`) and GOAWAY.
    fn drive(&mut self) -> Result<(), Option<Failure>> {
        let cx = &mut Context::from_waker(&self.socket);
        match Pin::new(&mut self.connection).poll(cx) {
            Poll::Ready(Ok(())) => return Err(None),
            Poll::Ready(Err(error)) => {
                tracing::debug!(backend = %self.work.peer().identity, %error, "connection failed");
                return Err(match Verdict::of_h2(&error) {
                    Verdict::Failed { failure, .. } => Some(failure),
                    // GOAWAY: what it left unprocessed goes out again.
                    _ => None,
                });
            }
            Poll::Pending => {}
        }
        match self.outlet.poll_flush(cx) {
            Poll::Ready(Ok(is_all)) => self.has_end = !is_all,
            Poll::Ready(Err(error)) => {
                tracing::debug!(backend = %self.work.peer().identity, %error, "cannot write to a connection");
                return Err(Some(Shortage::of(&error).map_or(Failure::Reset, Failure::Local)));
            }
            Poll::Pending => {}
        }
        // h2 says so of a connection that got GOAWAY, while its calls go on.
        if let Some(sender) = &mut self.sender
            && let Poll::Ready(Err(error)) = sender.poll_ready(cx)
        {
            tracing::debug!(backend = %self.work.peer().identity, %error, "connection takes no more calls");
            self.leave();
        }
        Ok(())
    }

    /// Takes no more calls, since the peer said GOAWAY or nothing is left to do: what waits goes to another connection.
    fn leave(&mut self) {
        self.retire();
        if std::mem::take(&mut self.is_open) {
            self.work.note(Event::Left);
        }
    }

    /// No call begins any more: HTTP/2 ends with those that run.
    fn retire(&mut self) {
        self.sender = None;
        self.bits |= SOCKET;
        self.clock.say_goodbye(self.running > 0);
    }

    /// The connection is over: its calls hear so, and if it was still in use its failure is counted, once.
    fn end(&mut self, failure: Option<Failure>) {
        let tls = self.outlet.tls_failure();
        let peer = self.work.peer();
        if let (Some(reason), Some(address)) = (tls, peer.address) {
            peer.access.refused(reason, address, &"the backend ended it after the handshake");
        }
        let failure = tls.map(Failure::Tls).or(failure);
        let mut lost = false;
        for at in 0..self.calls.len() {
            let Some(Slot { call: Some(call), waker }) = self.calls.get_mut(at) else { continue };
            let verdict = match (call.poll(&mut Context::from_waker(waker)), tls) {
                (Poll::Ready(Verdict::Failed { reached, scope, .. }), Some(reason)) => {
                    Verdict::Failed { failure: Failure::Tls(reason), reached, scope }
                }
                (Poll::Ready(verdict), _) => verdict,
                (Poll::Pending, _) => {
                    let failure = failure.unwrap_or(Failure::Reset);
                    Verdict::Failed { failure, reached: true, scope: Scope::Connection }
                }
            };
            lost |= matches!(verdict, Verdict::Failed { scope: Scope::Connection, .. });
            self.finish(at, verdict);
        }
        // A peer that is silent or mute has failed although no call was lost with it.
        lost |= failure == Some(Failure::Ping);
        let heard = self.outlet.has_read();
        let failed = failure.or(lost.then_some(Failure::Reset)).map(|failure| match failure {
            Failure::Reset if !heard => Failure::ResetAtOnce,
            failure => failure,
        });
        self.is_open = false;
        self.work.note(Event::Ended { failure: failed, lost });
    }

    /// Gives up the calls that run: what the backend has answered counts.
    fn give_up(&mut self) {
        if self.drive().is_err() {
            tracing::debug!(backend = %self.work.peer().identity, "connection ended as its calls were given up");
        }
        for at in 0..self.calls.len() {
            let Some(Slot { call: Some(call), waker }) = self.calls.get_mut(at) else { continue };
            let verdict = match call.poll(&mut Context::from_waker(waker)) {
                Poll::Ready(verdict) if verdict.is_answer() => verdict,
                Poll::Ready(_) | Poll::Pending => Verdict::GivenUp,
            };
            self.finish(at, verdict);
        }
        self.outlet.reset_on_close();
        self.is_open = false;
        self.work.note(Event::GaveUp);
    }

    /// Everything ends.
    fn stop(&mut self) {
        for at in 0..self.calls.len() {
            self.finish(at, Verdict::Stopped);
        }
        self.work.note(Event::Stopped);
    }
}

impl<W: Work> Future for Driver<W> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.bits |= this.wakers.begin(cx);
        if this.bits & !GIVE_WAY == 0 && !std::mem::replace(&mut this.gave_way, true) {
            this.wakers.give_way(cx);
            return Poll::Pending;
        }
        this.gave_way = false;
        for _ in 0..MAX_ROUNDS {
            if this.round().is_ready() {
                return Poll::Ready(());
            }
            if std::mem::take(&mut this.has_end) {
                this.bits |= SOCKET;
                break;
            }
            if this.bits == 0 && this.wakers.rest() {
                return Poll::Pending;
            }
            this.bits |= this.wakers.again();
        }
        // Once is enough.
        this.gave_way = true;
        this.wakers.give_way(cx);
        Poll::Pending
    }
}
