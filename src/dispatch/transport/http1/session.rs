//! The task of one connection: rests until something waits to be sent, and carries one call after the other.
//!
//! A request that hyper did not write goes out again on another connection, and was no attempt. If a connection ends after a
//! request was begun, the backend may have taken it. So its records are sent again and counted as possible duplicates, as
//! over HTTP/2. One such end is not counted as a failure of the backend: a connection that was idle, and is closed before any
//! byte of the answer. Then the backend has closed it for being idle just as the request was sent (RFC 9112, 9.6). Bytes that a
//! backend sends before a request answer nothing, and end the connection (`socket`).

use std::{
    error::Error,
    future::Future,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use hyper::client::conn::http1::{Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{
    task::yield_now,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    Connected,
    flight::{Due, Flight, Landing},
    reply::{Reply, Unread},
    socket::{Seen, Socket},
    target::{Payload, Target, least_len},
};
use crate::{
    dispatch::transport::{Contents, Event, Failure, GIVE_UP, Scope, Verdict, Wakeups, Work},
    lifecycle::Tasks,
    shortage::Shortage,
};

/// How long a connection may be busy after an answer, with the rest of a request or with its own end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A backend that ends a connection within this time, before any call, accepts connections and takes no calls.
const AT_ONCE: Duration = Duration::from_secs(1);

/// How long a connection has had no call when its end can be that of an idle connection. Servers wait for longer.
const IDLE: Duration = Duration::from_secs(1);

/// One connection.
pub(in crate::dispatch::transport) struct Session<W: Work> {
    work: W,
    target: Arc<Target>,
    wakeups: Arc<Wakeups>,
    sender: SendRequest<Payload>,
    /// `None` once it has ended.
    connection: Option<Http>,
    seen: Seen,
    /// Keeps the memory of a request that is still being written although it was answered.
    held: Option<<W::Contents as Contents>::Held>,
    opened_at: Instant,
    idle_since: Instant,
    has_called: bool,
    has_answered: bool,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
}

type Http = Connection<TokioIo<Socket>, Payload>;

/// How a connection ended.
enum End {
    /// Without a call that it could have carried.
    Closed,
    /// With a failure of the backend, which took the call in flight with it.
    Failed(Failure),
    GaveUp,
    /// No more calls will come.
    Left,
    Stopped,
}

impl<W: Work> Session<W> {
    /// Begins with a new connection to `target`.
    pub(in crate::dispatch::transport) fn new(
        mut work: W,
        target: Arc<Target>,
        connected: Connected,
        tasks: &Tasks,
    ) -> Self {
        let Connected { sender, connection, seen } = connected;
        let (wakeups, now, tasks) = (Arc::<Wakeups>::default(), Instant::now(), tasks.clone());
        work.note(Event::Connected(Arc::clone(&wakeups)));
        Self {
            work,
            target,
            wakeups,
            sender,
            connection: Some(connection),
            seen,
            held: None,
            opened_at: now,
            idle_since: now,
            has_called: false,
            has_answered: false,
            stopped: Box::pin(async move { tasks.stopped().await }),
        }
    }

    /// Carries calls until the connection ends.
    pub(in crate::dispatch::transport) async fn run(mut self) {
        let end = loop {
            let contents = match self.rest().await {
                Ok(contents) => contents,
                Err(end) => break end,
            };
            if let Err(end) = self.call(contents).await {
                break end;
            }
            self.idle_since = Instant::now();
        };
        self.finish(end).await;
    }

    /// Waits until something is to be sent, and takes it.
    async fn rest(&mut self) -> Result<W::Contents, End> {
        self.seen.rest();
        let mut is_ready = false;
        let idle_until = self.target.idle_timeout.map(|timeout| self.idle_since + timeout);
        let mut timer = pin!(sleep(CLOSE_TIMEOUT));
        loop {
            if is_ready && self.work.waits() {
                // Reads the end of a connection that the backend has closed meanwhile.
                if over(&mut self.connection).now_or_never().is_some() {
                    return Err(self.closed());
                }
                if let Some(contents) = self.work.take(Instant::now()) {
                    return Ok(contents);
                }
            }
            if is_ready && self.work.is_finished() {
                return Err(End::Left);
            }
            let Self { sender, connection, wakeups, stopped, .. } = &mut *self;
            tokio::select! {
                biased;
                () = stopped.as_mut() => return Err(End::Stopped),
                bits = wakeups.woken() => {
                    if bits & GIVE_UP != 0 && self.work.is_given_up() {
                        return Err(End::GaveUp);
                    }
                    // Others may be about to queue more parts for the same call.
                    yield_now().await;
                }
                ready = sender.ready(), if !is_ready => {
                    if ready.is_err() {
                        return Err(self.closed());
                    }
                    is_ready = true;
                    if self.held.take().is_some() {
                        self.work.note(Event::Written);
                    }
                    if let Some(until) = idle_until {
                        timer.as_mut().reset(until);
                    }
                }
                () = over(connection) => return Err(self.closed()),
                () = timer.as_mut(), if !is_ready || idle_until.is_some() => return Err(End::Closed),
            }
        }
    }

    /// Carries one call. An error ends the connection.
    async fn call(&mut self, contents: W::Contents) -> Result<(), End> {
        let now = Instant::now();
        let keys = &self.work.peer().keys;
        let request = match self.target.request(&contents, keys) {
            Ok(request) => request,
            Err(error) => {
                tracing::debug!(backend = %self.work.peer().identity, %error, "cannot begin a call");
                self.work.done(contents, None, Verdict::Unprocessed { refused: false }, now);
                return Ok(());
            }
        };
        let whole_at = self.seen.written().saturating_add(least_len(&request));
        let mut flight = Flight::new(contents, now, keys.timeout);
        let (mut reply, is_success) = (Reply::default(), AtomicBool::new(false));
        if let Some(contents) = flight.contents() {
            self.work.began(contents, now);
        }
        // Bytes of the call before may have been written after its answer was read.
        self.seen.rest();
        let mut landing = {
            let response = self.sender.try_send_request(request);
            let exchange = pin!(reply.read(response, &is_success));
            self.watch(exchange, &mut flight, &is_success).await
        };
        let mut is_taken = true;
        if is_success.into_inner() {
            let is_early = matches!(landing, Landing::Read(_)) && self.seen.written() < whole_at;
            if is_early && self.write_rest(flight.deadline()).await {
                landing = Landing::Stopped;
            }
            is_taken = self.seen.written() >= whole_at;
        }
        self.land(flight, &reply, landing, is_taken)
    }

    /// Writes the rest of a request whose answer came early, at most until `deadline`. Returns whether the process stops.
    async fn write_rest(&mut self, deadline: Instant) -> bool {
        let Self { sender, connection, stopped, .. } = self;
        tokio::select! {
            biased;
            () = stopped.as_mut() => return true,
            () = sleep_until(deadline) => {}
            // An error means that the connection has ended.
            _ = sender.ready() => {}
            () = over(connection) => {}
        }
        false
    }

    /// Waits for the end of a call. `is_success` says whether the backend is known to have taken the records.
    async fn watch(
        &mut self,
        mut exchange: Pin<&mut impl Future<Output = Result<(), Unread>>>,
        flight: &mut Flight<W::Contents>,
        is_success: &AtomicBool,
    ) -> Landing {
        let mut timer = pin!(sleep_until(flight.check_at(&self.seen)));
        loop {
            let Self { work, connection, wakeups, stopped, seen, target, .. } = &mut *self;
            tokio::select! {
                biased;
                () = stopped.as_mut() => return Landing::Stopped,
                // Before the connection: as long as a backend sends without end, what is polled behind that is not ready.
                () = timer.as_mut() => {
                    let now = Instant::now();
                    if flight.check(now, seen, target) == Due::Deadline {
                        let kept = if is_success.load(Ordering::Relaxed) { None } else { flight.keep_open(now, target) };
                        let Some(contents) = kept else { return Landing::TimedOut };
                        work.done(contents, Some(flight.started), failed(Failure::Timeout, Scope::Request), now);
                        // Other calls need the place of this connection.
                        work.note(Event::InDoubt);
                    }
                    timer.as_mut().reset(flight.check_at(seen));
                }
                read = exchange.as_mut() => return Landing::Read(read),
                // The exchange then ends too.
                () = over(connection) => {}
                bits = wakeups.woken() => {
                    if bits & GIVE_UP != 0 && work.is_given_up() {
                        // An answer that has already arrived still counts.
                        return match exchange.as_mut().now_or_never() {
                            Some(Ok(())) => Landing::Read(Ok(())),
                            _ => Landing::GivenUp,
                        };
                    }
                }
                is_alive = flight.probed(seen) => {
                    if !is_alive {
                        return Landing::Silent;
                    }
                    timer.as_mut().reset(flight.check_at(seen));
                }
            }
        }
    }

    /// Reports the result of a call. `is_taken` says whether the whole request was written, without which a success is none. An
    /// error ends the connection.
    fn land(
        &mut self,
        flight: Flight<W::Contents>,
        reply: &Reply,
        landing: Landing,
        is_taken: bool,
    ) -> Result<(), End> {
        let now = Instant::now();
        self.has_called |= !matches!(landing, Landing::Read(Err(Unread::NotSent)));
        let is_success = |verdict: &Verdict| matches!(verdict, Verdict::Accepted(_));
        let answer = reply.verdict().filter(|verdict| is_taken || !is_success(verdict));
        // A success is one, whatever happens while its body is read.
        let success_or = |answer: Option<Verdict>, other| answer.filter(is_success).unwrap_or(other);
        let (verdict, mut end) = match (landing, answer) {
            (Landing::GivenUp, answer) => (success_or(answer, Verdict::GivenUp), Err(End::GaveUp)),
            (Landing::Stopped, answer) => (success_or(answer, Verdict::Stopped), Err(End::Stopped)),
            (Landing::Read(Ok(())), Some(verdict)) if reply.is_whole() => (verdict, Ok(())),
            // The rest of the answer is not read, or was not sent.
            (Landing::Read(_) | Landing::TimedOut, Some(verdict)) => (verdict, Err(End::Closed)),
            (Landing::Silent, answer) => {
                let failure = Failure::Ping;
                (success_or(answer, failed(failure, Scope::Connection)), Err(End::Failed(failure)))
            }
            (Landing::TimedOut, None) => {
                if flight.is_over(now) {
                    self.work.note(Event::Unanswered(now));
                }
                (failed(Failure::Timeout, Scope::Request), Err(End::Closed))
            }
            // Nothing of the request was written, since the backend had sent something before, or had closed an idle connection.
            (Landing::Read(_), None)
                if !self.seen.has_asked() && (self.has_answered || self.seen.has_spoken_first()) =>
            {
                (Verdict::Unprocessed { refused: false }, Err(self.closed()))
            }
            (Landing::Read(_), None) if !is_taken => (failed(Failure::Reset, Scope::Stream), Err(End::Closed)),
            (Landing::Read(Err(Unread::Broken(error))), None) => self.broken(&error, flight.started),
            (Landing::Read(Ok(()) | Err(Unread::NotSent)), None) => {
                (Verdict::Unprocessed { refused: false }, Err(self.closed()))
            }
        };
        if verdict.is_answer() {
            self.has_answered = true;
            self.work.note(Event::Answered);
        }
        if flight.contents().is_none() {
            // Its place was given away.
            end = end.and(Err(End::Closed));
        }
        if end.is_err() {
            // Its buffers are freed before the memory is given back.
            self.connection = None;
        }
        let started = flight.started;
        if let Some(contents) = flight.into_contents() {
            if end.is_ok() && self.still_writes() {
                self.held = Some(contents.hold());
                // Before the call is counted off: until then the connection is no better than others.
                self.work.note(Event::Writing);
            }
            self.work.done(contents, Some(started), verdict, now);
        }
        end
    }

    /// Whether the request is not written yet although it was answered, or the connection is about to end.
    fn still_writes(&mut self) -> bool {
        // Without a poll, hyper does not notice that the request was written.
        over(&mut self.connection).now_or_never().is_none() && !self.sender.is_ready()
    }

    /// Classifies a connection that has ended before the answer to a call that began at `started`.
    fn broken(&mut self, error: &hyper::Error, started: Instant) -> (Verdict, Result<(), End>) {
        tracing::debug!(backend = %self.work.peer().identity, %error, "connection failed");
        let failure = self.tls_failure().unwrap_or_else(|| failure_of(error));
        let was_idle = self.has_answered && started.saturating_duration_since(self.idle_since) >= IDLE;
        let read_at = self.seen.read_at();
        if failure == Failure::Reset && was_idle && read_at.is_none_or(|at| at < started) {
            return (failed(failure, Scope::Request), Err(End::Closed));
        }
        if self.speaks_http2() {
            let failure = Failure::SpeaksHttp2;
            let verdict = Verdict::Failed { failure, reached: false, scope: Scope::Connection };
            return (verdict, Err(End::Failed(failure)));
        }
        // Servers for HTTP/1.1 say nothing before they answer. So a connection that ends in its first call is no worse than
        // another, unlike one for HTTP/2 without its SETTINGS: one request that a backend cannot bear must not eject it.
        let verdict = Verdict::Failed { failure, reached: self.seen.has_asked(), scope: Scope::Connection };
        (verdict, Err(End::Failed(failure)))
    }

    /// Classifies the end of a connection without a call. Bytes before a request are a failure only on a new connection that has
    /// carried no call: with them some servers announce that they close a connection that is idle (`408`).
    fn closed(&self) -> End {
        let is_new = self.opened_at.elapsed() < AT_ONCE;
        let unasked = || (is_new && self.seen.has_spoken_first()).then_some(Failure::Protocol);
        let failure =
            || self.tls_failure().or_else(|| self.speaks_http2().then_some(Failure::SpeaksHttp2)).or_else(unasked);
        if self.has_answered { End::Closed } else { failure().map_or(End::Closed, End::Failed) }
    }

    /// Whether the backend sent what an HTTP/2 server begins with, and has answered no call.
    fn speaks_http2(&self) -> bool {
        !self.has_answered && self.seen.begins_http2()
    }

    fn tls_failure(&self) -> Option<Failure> {
        let reason = self.seen.tls_failure()?;
        let peer = self.work.peer();
        if let Some(address) = peer.address {
            peer.access.note_tls_failure(reason, address, &"the backend ended it after the handshake");
        }
        Some(Failure::Tls(reason))
    }

    async fn finish(mut self, end: End) {
        let was_turned_away = !self.has_called && self.opened_at.elapsed() < AT_ONCE;
        self.work.note(match end {
            End::Closed if was_turned_away => Event::Left,
            End::Closed => Event::Closed,
            End::Failed(failure) => Event::Ended { failure: Some(failure), lost: true },
            End::GaveUp => {
                self.seen.reset_on_close();
                self.connection = None;
                Event::GaveUp
            }
            End::Left => Event::Left,
            End::Stopped => Event::Stopped,
        });
        drop(self.sender);
        if let Some(connection) = self.connection {
            // Without a sender hyper ends the connection. Whether the backend takes part in that does not matter.
            drop(timeout(CLOSE_TIMEOUT, connection).await);
        }
    }
}

/// Drives the connection until it has ended.
///
/// Cancel safety: the connection stays.
async fn over(connection: &mut Option<Http>) {
    let Some(open) = connection else { return std::future::pending().await };
    if let Err(error) = open.await {
        tracing::debug!(%error, "connection ended");
    }
    *connection = None;
}

fn failed(failure: Failure, scope: Scope) -> Verdict {
    Verdict::Failed { failure, reached: true, scope }
}

fn failure_of(error: &hyper::Error) -> Failure {
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    match source.and_then(Shortage::of) {
        Some(shortage) => Failure::Local(shortage),
        None if error.is_parse() => Failure::Protocol,
        None => Failure::Reset,
    }
}
