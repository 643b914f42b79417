//! Tests of the queues without a network. The test takes the place of the transport.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{sync::watch, time::Instant};
use tonic::Code;

use crate::{
    dispatch::{
        Cause, Config, Dispatch, Failure, Join, Part, PartOutcome,
        link::{Link, Transport},
        queue::Batch,
        transport::{Event, GIVE_UP, QUEUE, Scope, Verdict, Wakeups, Work},
    },
    health::{self, HealthKind, Inbox},
    lifecycle::Tasks,
    ring::Table,
    testing::{accepted, outcome, part, patient, table, with_keys},
};

/// The links that were given to the transport and are not used yet.
#[derive(Clone, Default)]
struct Opened(Arc<Mutex<Vec<Link>>>);

impl Transport for Opened {
    fn open(&self, link: Link, _tasks: &Tasks) {
        self.0.lock().unwrap().push(link);
    }
}

/// A dispatch whose transport is played by the test.
struct Bench {
    dispatch: Arc<Dispatch>,
    opened: Opened,
    events: Inbox,
    tables: watch::Sender<Option<Arc<Table>>>,
    tasks: Tasks,
}

/// A connection that is up.
struct Up {
    link: Link,
    wakeups: Arc<Wakeups>,
}

impl Bench {
    fn start(config: Config) -> Self {
        let (tables, receiver) = watch::channel(Some(table(1, &[address()], &[])));
        let (tasks, opened) = (Tasks::new(), Opened::default());
        let (sender, events) = health::channel("test");
        let dispatch = Dispatch::start_by(Arc::new(opened.clone()), "test", config, receiver, &tasks, sender);
        Self { dispatch, opened, events, tables, tasks }
    }

    fn submit(&self, parts: Vec<Part>) -> Join {
        let join = Join::new(Instant::now() + std::time::Duration::from_secs(60), Arc::default());
        self.dispatch.view().unwrap().submit(parts, &join).expect("there must be room");
        join
    }

    /// Returns the link that was opened last, if there is one.
    fn opened(&self) -> Option<Link> {
        self.opened.0.lock().unwrap().pop()
    }

    /// Returns the link that was opened last, after connecting it.
    fn up(&self) -> Up {
        let mut link = self.opened().expect("a connection must be wanted");
        let wakeups = Arc::new(Wakeups::default());
        link.note(Event::Connected(Arc::clone(&wakeups)));
        Up { link, wakeups }
    }

    async fn event(&mut self) -> HealthKind {
        patient(self.events.recv()).await.expect("the dispatch must run").kind
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

impl Up {
    /// Begins a call with the parts that wait.
    fn begin(&mut self) -> Batch {
        let batch = self.link.take(Instant::now()).expect("something must wait");
        self.link.began(&batch, Instant::now());
        batch
    }

    fn end(&mut self, batch: Batch, verdict: Verdict) {
        if verdict.is_answer() {
            self.link.note(Event::Answered);
        }
        self.link.done(batch, Some(Instant::now()), verdict, Instant::now());
    }
}

/// An address that nothing is sent to.
fn address() -> SocketAddr {
    ([127, 0, 0, 1], 1).into()
}

fn refused() -> Verdict {
    Verdict::Refused { code: Code::InvalidArgument, message: "no".to_owned() }
}

async fn all_accepted(joins: &[Join]) {
    for join in joins {
        assert_eq!(outcome(join).await, accepted());
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_parts_are_taken_and_their_outcomes_reach_the_request() {
    let bench = Bench::start(Config::default());
    assert!(bench.opened().is_none(), "must not connect before a part waits");
    let join = bench.submit(vec![part(&["a"], 0)]);
    let mut up = bench.up();
    assert!(bench.opened().is_none(), "one connection is enough");
    assert!(up.link.waits());
    let batch = up.begin();
    assert!(!up.link.waits() && !bench.dispatch.is_idle());
    assert!(join.may_have_begun(0));
    up.end(batch, Verdict::Accepted(None));
    assert_eq!(outcome(&join).await, accepted());
    assert!(bench.dispatch.is_idle());
    // The next part wakes the connection that is up.
    let _next = bench.submit(vec![part(&["b"], 0)]);
    assert_eq!(up.wakeups.woken_for(), QUEUE);
    assert!(bench.opened().is_none() && up.link.waits());
}

#[tokio::test(start_paused = true)]
async fn a_failed_connect_hands_waiting_parts_back() {
    let mut bench = Bench::start(Config::default());
    let join = bench.submit(vec![part(&["a"], 0)]);
    bench.opened().unwrap().note(Event::NotConnected(Failure::ConnectRefused));
    let PartOutcome::Retry { after, reached, cause, .. } = outcome(&join).await else { panic!("must be owed") };
    assert_eq!((reached, cause), (false, Cause::Transport(Failure::ConnectRefused)));
    assert_eq!(bench.event().await, HealthKind::Refused);
    // Until the pause is over there is no other attempt.
    let pause = after.expect("a pause");
    assert_eq!(cause_of(&bench.submit(vec![part(&["b"], 0)])).await, Cause::Transport(Failure::ConnectError));
    assert!(bench.opened().is_none());
    tokio::time::advance(pause).await;
    let _waits = bench.submit(vec![part(&["c"], 0)]);
    assert!(bench.opened().is_some());
}

#[tokio::test(start_paused = true)]
async fn each_part_of_a_refused_call_is_sent_again_alone() {
    let bench = Bench::start(Config { places: 1, ..Config::default() });
    let first = bench.submit(vec![part(&["first"], 0)]);
    let mut up = bench.up();
    let running = up.begin();
    let joins = ["good", "bad"].map(|name| bench.submit(vec![part(&[name], 0)]));
    assert!(up.link.take(Instant::now()).is_none(), "there is one place");
    up.end(running, Verdict::Accepted(None));
    assert_eq!(outcome(&first).await, accepted());
    let both = up.begin();
    assert_eq!(both.parts.len(), 2);
    up.end(both, refused());
    for (join, verdict) in joins.iter().zip([Verdict::Accepted(None), refused()]) {
        let one = up.begin();
        assert_eq!(one.parts.len(), 1);
        up.end(one, verdict.clone());
        assert_eq!(matches!(outcome(join).await, PartOutcome::Rejected { .. }), verdict == refused());
    }
}

#[tokio::test(start_paused = true)]
async fn calls_to_an_ejected_backend_are_given_up() {
    let bench = Bench::start(Config::default());
    let join = bench.submit(vec![part(&["a"], 0)]);
    let mut up = bench.up();
    let batch = up.begin();
    assert!(!up.link.is_given_up());
    up.wakeups.woken_for();
    // There is a second backend, since a single one is never ejected.
    let other = ([127, 0, 0, 1], 2).into();
    bench.tables.send_replace(Some(table(2, &[address(), other], &[address()])));
    patient(bench.dispatch.changes().wait_for(|generation| *generation == 2)).await.unwrap();
    assert_eq!(up.wakeups.woken_for(), GIVE_UP);
    assert!(up.link.is_given_up());
    up.end(batch, Verdict::GivenUp);
    up.link.note(Event::GaveUp);
    let PartOutcome::Retry { reached, cause, .. } = outcome(&join).await else { panic!("must be owed") };
    assert_eq!((reached, cause), (true, Cause::Ejected));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_writes_an_answered_request_is_not_woken_for_others() {
    let bench = Bench::start(Config { open_place_bytes: 1, ..with_keys(|keys| keys.connections = 2) });
    let alone = |name| Part { alone: true, ..part(&[name], 0) };
    let mut joins = vec![bench.submit(vec![alone("a")])];
    let mut one = bench.up();
    let running = one.begin();
    joins.push(bench.submit(vec![alone("b")]));
    let mut two = bench.up();
    let beside = two.begin();
    one.link.note(Event::Writing);
    one.end(running, Verdict::Accepted(None));
    for wakeups in [&one.wakeups, &two.wakeups] {
        wakeups.woken_for();
    }
    joins.push(bench.submit(vec![alone("c")]));
    assert_eq!((one.wakeups.woken_for(), two.wakeups.woken_for()), (0, QUEUE), "the busy one is the only one");
    two.link.note(Event::Writing);
    joins.push(bench.submit(vec![alone("d")]));
    assert_eq!((one.wakeups.woken_for(), two.wakeups.woken_for()), (0, 0), "both take calls once they can");
    assert!(bench.opened().is_none(), "there is no third connection");
    one.link.note(Event::Written);
    joins.push(bench.submit(vec![alone("e")]));
    assert_eq!((one.wakeups.woken_for(), two.wakeups.woken_for()), (QUEUE, 0));
    two.link.note(Event::Written);
    two.end(beside, Verdict::Accepted(None));
    for _ in 0..3 {
        let batch = one.begin();
        one.end(batch, Verdict::Accepted(None));
    }
    all_accepted(&joins).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_made_while_the_only_one_writes_an_answered_request() {
    let bench = Bench::start(with_keys(|keys| keys.connections = 2));
    let first = bench.submit(vec![part(&["a"], 0)]);
    let mut one = bench.up();
    let running = one.begin();
    one.link.note(Event::Writing);
    one.end(running, Verdict::Accepted(None));
    assert_eq!(outcome(&first).await, accepted());
    let second = bench.submit(vec![part(&["b"], 0)]);
    let mut two = bench.up();
    assert_eq!(one.wakeups.woken_for() & QUEUE, 0);
    let batch = two.begin();
    two.end(batch, Verdict::Accepted(None));
    assert_eq!(outcome(&second).await, accepted());
}

#[tokio::test(start_paused = true)]
async fn further_connections_are_made_while_all_are_busy_up_to_the_configured_number() {
    let bench = Bench::start(Config { open_place_bytes: 1, ..with_keys(|keys| keys.connections = 2) });
    let alone = |name| Part { alone: true, ..part(&[name], 0) };
    let mut joins = vec![bench.submit(vec![alone("a")])];
    let mut one = bench.up();
    let running = one.begin();
    joins.push(bench.submit(vec![alone("b")]));
    let mut two = bench.up();
    assert_eq!(one.wakeups.woken_for() & QUEUE, QUEUE, "must not wait for the new connection");
    let beside = two.begin();
    two.wakeups.woken_for();
    joins.push(bench.submit(vec![alone("c")]));
    assert!(bench.opened().is_none(), "must not make a third connection");
    for (up, batch) in [(&mut one, running), (&mut two, beside)] {
        up.end(batch, Verdict::Accepted(None));
    }
    let last = one.begin();
    one.end(last, Verdict::Accepted(None));
    all_accepted(&joins).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_fails_before_its_first_answer_delays_the_next_one() {
    for has_answered in [false, true] {
        let mut bench = Bench::start(Config::default());
        let join = bench.submit(vec![part(&["a"], 0)]);
        let mut up = bench.up();
        let mut batch = up.begin();
        if has_answered {
            up.end(batch, Verdict::Accepted(None));
            assert_eq!(outcome(&join).await, accepted());
            drop(bench.submit(vec![part(&["b"], 0)]));
            let join = bench.submit(vec![part(&["c"], 0)]);
            batch = up.begin();
            drop(join);
        }
        let failure = Failure::Reset;
        up.end(batch, Verdict::Failed { failure, reached: true, scope: Scope::Connection });
        up.link.note(Event::Ended { failure: Some(failure), lost: true });
        assert_eq!(bench.event().await, HealthKind::Failed("reset"));
        // After an answer another connection is made at once.
        let next = bench.submit(vec![part(&["d"], 0)]);
        assert_eq!(bench.opened().is_some(), has_answered);
        drop(next);
    }
}

async fn cause_of(join: &Join) -> Cause {
    match outcome(join).await {
        PartOutcome::Retry { cause, .. } => cause,
        other => panic!("must be owed: {other:?}"),
    }
}
