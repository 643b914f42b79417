//! The task of one connection: begins calls, polls their replies, and drives HTTP/2 until the connection ends.

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
    orphan::Orphan,
    silence::SILENCE,
    stream::Stream,
    wakeups::{GIVE_UP, MAX_PLACES, ORPHAN, PROBE, QUEUE, SOCKET, STOP, TIMER, Wakeups},
    wire::{Outlet, Wire},
};
use crate::{lifecycle::Tasks, otlp::Chunk, shortage::Shortage};

/// Maximum number of rounds in one poll. A further round handles wake-ups that arrived during the last one; after the maximum,
/// other tasks get their turn.
const MAX_ROUNDS: usize = 8;

/// Bits whose work can wait until other tasks have run.
const GIVE_WAY: u64 = QUEUE | SOCKET | CALLS;

/// The bits of the calls.
const CALLS: u64 = (1 << MAX_PLACES) - 1;

/// One connection and its calls.
pub(super) struct Driver<W: Work> {
    work: W,
    /// Whether the connection takes further calls.
    is_open: bool,
    wakeups: Arc<Wakeups>,
    /// The wake-ups that are not handled yet.
    bits: u64,
    socket: Waker,
    calls: Box<[Slot<W::Contents>]>,
    /// The number of calls in flight.
    running: usize,
    /// `None` once no more calls may begin. HTTP/2 then ends after the last call in flight.
    sender: Option<SendRequest<Chunk>>,
    connection: Connection<Wire<Stream>, Chunk>,
    outlet: Outlet<Stream>,
    /// Whether the task has let other tasks run since it was woken. A worker thread runs the task that was woken last first.
    /// Other tasks may be about to queue more parts for the same call, or to read more answers for the same requests. Waiting
    /// for them lowers the cost of a span (`deploy/docs/performance.md`).
    gave_way: bool,
    /// Whether the last, partial packet of the gathered bytes is held back until other tasks have run.
    has_tail: bool,
    clock: Clock,
    /// A call that is kept open after its clients have left.
    orphan: Option<Orphan<<W::Contents as Contents>::Held>>,
    /// A running probe of the peer.
    probe: Option<Probe>,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// A probe, which asks on a new connection whether the peer is alive.
struct Probe {
    started_at: Instant,
    is_alive: Pin<Box<dyn Future<Output = bool> + Send>>,
}

/// A place of the connection, with its call if it has one.
struct Slot<C> {
    call: Option<Call<C>>,
    waker: Waker,
}

impl<W: Work> Driver<W> {
    /// Creates the driver of a new connection.
    pub(super) fn new(mut work: W, connected: Connected, tasks: &Tasks) -> Self {
        let Connected { sender, mut connection, outlet } = connected;
        let wakeups = Arc::new(Wakeups::default());
        let places = work.peer().places.clamp(1, MAX_PLACES);
        let calls = (0..places).map(|slot| Slot { call: None, waker: wakeups.waker(1 << slot) }).collect();
        let clock = Clock::new(connection.ping_pong(), wakeups.waker(TIMER));
        let tasks = tasks.clone();
        work.note(Event::Connected(Arc::clone(&wakeups)));
        Self {
            work,
            is_open: true,
            bits: SOCKET | QUEUE | STOP | GIVE_UP,
            socket: wakeups.waker(SOCKET),
            calls,
            running: 0,
            sender: Some(sender),
            connection,
            outlet,
            gave_way: false,
            has_tail: false,
            clock,
            orphan: None,
            probe: None,
            stopped: Box::pin(async move { tasks.stopped().await }),
            wakeups,
        }
    }

    /// Handles every wake-up whose bit is set.
    fn round(&mut self) -> Poll<()> {
        if self.takes(STOP) {
            let waker = self.wakeups.waker(STOP);
            if self.stopped.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                self.stop();
                return Poll::Ready(());
            }
        }
        if self.takes(GIVE_UP) && self.work.is_given_up() {
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
            self.poll_calls();
            if !self.begin() {
                break;
            }
            begun = true;
        }
        // New calls have set the bit of the socket. It is cleared here, so that one round polls the socket once.
        self.bits |= self.wakeups.again();
        if (self.takes(SOCKET) || begun)
            && let Err(failure) = self.drive()
        {
            self.end(failure);
            return Poll::Ready(());
        }
        if self.running == 0 && self.is_open && self.work.is_finished() {
            self.leave();
        }
        if self.running == 0 && !self.is_open && self.probe.is_none() && self.sender.is_some() {
            self.retire();
        }
        Poll::Pending
    }

    /// Clears `bit`. Returns whether it was set.
    fn takes(&mut self, bit: u64) -> bool {
        let set = self.bits & bit != 0;
        self.bits &= !bit;
        set
    }

    /// Begins calls while places are free. Returns whether any call began.
    fn begin(&mut self) -> bool {
        let Some(sender) = self.sender.as_mut().filter(|_| self.is_open) else { return false };
        let mut begun = false;
        let orphans = usize::from(self.orphan.is_some());
        while self.work.waits()
            && self.running < self.calls.len()
            && self.running + orphans < sender.current_max_send_streams()
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
                    // The first poll of the call registers its waker.
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
        self.clock.note_starved(starved);
        begun
    }

    /// Polls the calls whose bits are set.
    fn poll_calls(&mut self) {
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

    /// Frees the place of a call that has ended, and reports its result.
    fn settle(&mut self, at: usize, contents: W::Contents, started: Instant, verdict: Verdict) {
        self.running -= 1;
        self.outlet.take_back(at);
        self.work.done(contents, Some(started), verdict, Instant::now());
    }

    /// Notes that the backend has answered a call.
    fn note_answer(&mut self) {
        self.clock.silence.answered();
        self.work.note(Event::Answered);
    }

    /// Drives HTTP/2: reads, writes, and notices GOAWAY. Returns an error when the connection has ended, with the failure if
    /// there was one.
    fn drive(&mut self) -> Result<(), Option<Failure>> {
        let cx = &mut Context::from_waker(&self.socket);
        match Pin::new(&mut self.connection).poll(cx) {
            Poll::Ready(Ok(())) => return Err(None),
            Poll::Ready(Err(error)) => {
                tracing::debug!(backend = %self.work.peer().identity, %error, "connection failed");
                return Err(match Verdict::of_h2(&error) {
                    Verdict::Failed { failure, .. } => Some(failure),
                    // GOAWAY: calls that the peer left unprocessed are sent again.
                    _ => None,
                });
            }
            Poll::Pending => {}
        }
        match self.outlet.poll_flush(cx) {
            Poll::Ready(Ok(is_all)) => self.has_tail = !is_all,
            Poll::Ready(Err(error)) => {
                tracing::debug!(backend = %self.work.peer().identity, %error, "cannot write to a connection");
                return Err(Some(Shortage::of(&error).map_or(Failure::Reset, Failure::Local)));
            }
            Poll::Pending => {}
        }
        // After GOAWAY the sender fails, while calls in flight go on.
        if let Some(sender) = &mut self.sender
            && let Poll::Ready(Err(error)) = sender.poll_ready(cx)
        {
            tracing::debug!(backend = %self.work.peer().identity, %error, "connection takes no more calls");
            self.leave();
        }
        Ok(())
    }

    /// Stops taking calls, because the peer sent GOAWAY or no more calls will come. Waiting parts go to another connection.
    fn leave(&mut self) {
        self.retire();
        if std::mem::take(&mut self.is_open) {
            self.work.note(Event::Left);
        }
    }

    /// Lets no more calls begin, so that HTTP/2 ends after those in flight.
    fn retire(&mut self) {
        self.sender = None;
        self.bits |= SOCKET;
        self.clock.begin_close(self.running > 0);
    }

    /// Ends all calls because the connection has ended, and reports the end with its failure, if there was one.
    fn end(&mut self, failure: Option<Failure>) {
        let tls = self.outlet.tls_failure();
        let peer = self.work.peer();
        if let (Some(reason), Some(address)) = (tls, peer.address) {
            peer.access.note_tls_failure(reason, address, &"the backend ended it after the handshake");
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
        // A silent peer has failed even if no call was lost.
        lost |= failure == Some(Failure::Ping);
        let heard = self.outlet.has_read();
        let failed = failure.or(lost.then_some(Failure::Reset)).map(|failure| match failure {
            Failure::Reset if !heard => Failure::ResetAtOnce,
            failure => failure,
        });
        self.is_open = false;
        self.work.note(Event::Ended { failure: failed, lost });
    }

    /// Gives up the calls in flight. Answers that have already arrived still count.
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

    /// Ends all calls because the process is stopping.
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
        this.bits |= this.wakeups.begin(cx);
        if this.bits & !GIVE_WAY == 0 && !std::mem::replace(&mut this.gave_way, true) {
            this.wakeups.give_way(cx);
            return Poll::Pending;
        }
        this.gave_way = false;
        for _ in 0..MAX_ROUNDS {
            if this.round().is_ready() {
                return Poll::Ready(());
            }
            if std::mem::take(&mut this.has_tail) {
                this.bits |= SOCKET;
                break;
            }
            if this.bits == 0 && this.wakeups.rest() {
                return Poll::Pending;
            }
            this.bits |= this.wakeups.again();
        }
        // The next poll need not give way a second time.
        this.gave_way = true;
        this.wakeups.give_way(cx);
        Poll::Pending
    }
}
