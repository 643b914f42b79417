//! Backends without a network: the test decides what becomes of each connection and of each call. With a paused clock,
//! seconds of such a dispatch take a moment.

use std::{sync::Arc, time::Duration};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::{
    dispatch::{
        Config, Dispatch, Failure,
        link::{Link, Transport},
        queue::Batch,
        transport::{Contents, Event, GIVE_UP, Partial, Scope, Verdict, Wakeups, Work},
    },
    health::{self, Inbox},
    lifecycle::Tasks,
    ring::Tables,
    testing::names_of,
};

/// What becomes of a call once its time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// All records are accepted.
    Accept,
    /// One record is refused for good, the others are accepted. A merged call is accepted.
    AcceptAllButOne,
    /// All are refused for good.
    Refuse,
    /// The backend is busy.
    Busy,
    /// The connection ends before the call is answered. The backend may have accepted it.
    Reset {
        /// Whether it has.
        has_taken: bool,
    },
    /// The backend says that it did not process the call.
    Unprocessed,
    /// The call is not answered before its deadline. The backend may have accepted it.
    Silent {
        /// Whether it has.
        has_taken: bool,
    },
}

/// The backends of a test.
pub(crate) trait Players: Send + Sync + 'static {
    /// Whether a connection to this backend can be made now.
    fn connects(&self, backend: &str) -> bool;

    /// Returns the answer to a call, and after what time it comes.
    fn answer(&self, backend: &str) -> (Answer, Duration);

    /// Notes that a backend has received these spans.
    fn received(&self, backend: &str, spans: &[String]);

    /// Notes that a backend has accepted these spans. `is_known` is whether the proxy hears that all of the call was
    /// accepted, so that the spans need not come again.
    fn accepted(&self, backend: &str, spans: &[String], is_known: bool);

    /// Notes that a backend has refused these spans for good.
    fn refused(&self, backend: &str, spans: &[String]);
}

/// Starts a dispatch to `players`.
pub(crate) fn start<P: Players>(
    players: &Arc<P>,
    config: Config,
    tables: Tables,
    tasks: &Tasks,
) -> (Arc<Dispatch>, Inbox) {
    let (sender, events) = health::channel("test");
    let stage = Arc::new(Stage(Arc::clone(players)));
    (Dispatch::start_by(stage, "test", config, tables, tasks, sender), events)
}

/// Connects to players.
struct Stage<P>(Arc<P>);

impl<P: Players> Transport for Stage<P> {
    fn open(&self, link: Link, tasks: &Tasks) {
        let (players, until) = (Arc::clone(&self.0), tasks.clone());
        drop(tasks.spawn(async move {
            tokio::select! {
                () = until.stopped() => {}
                () = Connection { link, players, wakeups: Arc::default() }.serve() => {}
            }
        }));
    }
}

/// One connection. It makes one call after the other.
struct Connection<P> {
    link: Link,
    players: Arc<P>,
    wakeups: Arc<Wakeups>,
}

impl<P: Players> Connection<P> {
    async fn serve(mut self) {
        let identity = Arc::clone(&self.link.peer().identity);
        if !self.players.connects(&identity) {
            return self.link.note(Event::NotConnected(Failure::ConnectRefused));
        }
        self.link.note(Event::Connected(Arc::clone(&self.wakeups)));
        loop {
            while let Some(batch) = self.link.take(Instant::now()) {
                if !self.call(&identity, batch).await {
                    return;
                }
            }
            if self.link.is_finished() {
                self.link.note(Event::Left);
                return self.link.note(Event::Ended { failure: None, lost: false });
            }
            if self.wakeups.woken().await & GIVE_UP != 0 && self.link.is_given_up() {
                return self.link.note(Event::GaveUp);
            }
        }
    }

    /// Makes a call. Returns whether the connection goes on.
    async fn call(&mut self, identity: &str, batch: Batch) -> bool {
        let spans = spans_of(&batch);
        let started = Instant::now();
        self.link.began(&batch, started);
        self.players.received(identity, &spans);
        let (answer, time) = self.players.answer(identity);
        let timeout = started + self.link.peer().keys.timeout;
        let deadline = batch.deadline().map_or(timeout, |latest| latest.min(timeout));
        let time = if matches!(answer, Answer::Silent { .. }) { Duration::from_secs(3600) } else { time };
        tokio::select! {
            biased;
            () = sleep(time.min(deadline.saturating_duration_since(started))) => {}
            () = given_up(&self.wakeups, &mut self.link) => {
                if answer == Answer::Accept {
                    self.players.accepted(identity, &spans, false);
                }
                self.end(batch, started, Verdict::GivenUp);
                self.link.note(Event::GaveUp);
                return false;
            }
        }
        let is_late = started + time > deadline;
        let late = Answer::Silent { has_taken: matches!(answer, Answer::Accept | Answer::Silent { has_taken: true }) };
        self.finish(identity, batch, &spans, started, if is_late { late } else { answer })
    }

    /// Ends a call with its answer. Returns whether the connection goes on.
    fn finish(&mut self, identity: &str, batch: Batch, spans: &[String], started: Instant, answer: Answer) -> bool {
        let failed = |failure, scope| Verdict::Failed { failure, reached: true, scope };
        let is_merged = batch.parts.len() > 1;
        match answer {
            Answer::AcceptAllButOne if !is_merged => {
                let (bad, good) = spans.split_at(1);
                self.players.accepted(identity, good, false);
                self.players.refused(identity, bad);
                let partial = Partial { rejected: 1, message: "one is bad".to_owned() };
                self.end(batch, started, Verdict::Accepted(Some(partial)));
            }
            Answer::Accept | Answer::AcceptAllButOne => {
                self.players.accepted(identity, spans, true);
                self.end(batch, started, Verdict::Accepted(None));
            }
            Answer::Refuse => {
                // A merged call is taken apart, and its parts come again.
                if !is_merged {
                    self.players.refused(identity, spans);
                }
                let verdict = Verdict::Refused { code: Code::InvalidArgument, message: "bad".to_owned() };
                self.end(batch, started, verdict);
            }
            Answer::Busy => self.end(batch, started, Verdict::Busy { code: Code::Unavailable, after: None }),
            Answer::Unprocessed => self.end(batch, started, Verdict::Unprocessed { refused: false }),
            Answer::Silent { has_taken } => {
                if has_taken {
                    self.players.accepted(identity, spans, false);
                }
                self.end(batch, started, failed(Failure::Timeout, Scope::Request));
            }
            Answer::Reset { has_taken } => {
                if has_taken {
                    self.players.accepted(identity, spans, false);
                }
                self.end(batch, started, failed(Failure::Reset, Scope::Connection));
                self.link.note(Event::Ended { failure: Some(Failure::Reset), lost: true });
                return false;
            }
        }
        true
    }

    fn end(&mut self, batch: Batch, started: Instant, verdict: Verdict) {
        if verdict.is_answer() {
            self.link.note(Event::Answered);
        }
        self.link.done(batch, Some(started), verdict, Instant::now());
    }
}

/// Waits until calls have to be given up.
async fn given_up(wakeups: &Wakeups, link: &mut Link) {
    while wakeups.woken().await & GIVE_UP == 0 || !link.is_given_up() {}
}

fn spans_of(batch: &Batch) -> Vec<String> {
    let message = |message: &crate::otlp::Framed| {
        names_of(&ExportTraceServiceRequest::decode(&*message.payload()).expect("a part is a whole request"))
    };
    batch.messages().flat_map(message).collect()
}
