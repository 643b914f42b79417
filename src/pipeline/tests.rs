//! Tests of whole requests with scripted backends: which parts are placed again, when, and how the client is answered.

mod handoff;
mod histories;

use std::{
    collections::BTreeSet,
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message;
use tokio::{task::JoinHandle, time::Instant};
use tonic::{Code, Status};

use super::*;
use crate::{
    budget::Budget,
    dispatch::{self, Cause, Failure},
    settings::RetryOnFailure,
    testing::*,
};

const SPANS: u8 = 32;

/// A pipeline with its dispatch.
struct Stage {
    rig: Rig,
    budget: Budget,
    pipeline: Arc<Pipeline>,
}

impl Stage {
    fn new(config: dispatch::Config, backends: &[SocketAddr], tasks: Tasks) -> Self {
        let rig = Rig::start_with(config, backends, tasks);
        let routes = Routes::new(InvalidTraceIds::default()).with(Signal::Traces, "test", Arc::clone(&rig.dispatch));
        Self { rig, budget: Budget::new(1 << 30), pipeline: Arc::new(Pipeline::new(routes)) }
    }

    /// Returns a request whose spans each have a trace of their own.
    fn request(&self, deadline: Duration) -> Request {
        self.request_started(deadline, 0)
    }

    /// The same, with spans that started at this time.
    fn request_started(&self, deadline: Duration, start_time_unix_nano: u64) -> Request {
        let span = |n: u8| Span { name: n.to_string(), trace_id: vec![n; 16], start_time_unix_nano, ..Span::default() };
        let scope_spans = vec![ScopeSpans { spans: (1..=SPANS).map(span).collect(), ..ScopeSpans::default() }];
        let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
        let payload = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        Request {
            signal: Signal::Traces,
            message: Framed::copy_from_payload(&payload).expect("small"),
            encoding: None,
            original: None,
            permit: self.budget.take(payload.len()).expect("room"),
            place: None,
            deadline: Instant::now() + deadline,
            connection: Arc::default(),
            metadata: None,
        }
    }

    fn send(&self, deadline: Duration) -> JoinHandle<Outcome> {
        self.send_started(deadline, 0)
    }

    fn send_started(&self, deadline: Duration, start: u64) -> JoinHandle<Outcome> {
        let (pipeline, request) = (Arc::clone(&self.pipeline), self.request_started(deadline, start));
        self.rig.tasks.spawn(async move { pipeline.export(request).await })
    }
}

/// Returns a configuration with retry pauses of an hour, so that no retry happens in a test.
fn long_pauses() -> dispatch::Config {
    let hour = Duration::from_secs(3600);
    with_keys(|keys| {
        let retry = &mut keys.retry_on_failure;
        (retry.initial_interval, retry.max_interval, retry.randomization_factor) = (hour, hour, 0.0);
    })
}

fn short_pauses() -> RetryOnFailure {
    let pause = Duration::from_millis(5);
    RetryOnFailure { initial_interval: pause, max_interval: pause, ..RetryOnFailure::default() }
}

async fn outcome_of(sent: JoinHandle<Outcome>) -> Outcome {
    patient(sent).await.expect("must not panic")
}

/// Returns an address on which nobody listens.
async fn nobody() -> SocketAddr {
    listen().await.local_addr().expect("bound")
}

fn all() -> BTreeSet<String> {
    (1..=SPANS).map(|n| n.to_string()).collect()
}

#[tokio::test]
async fn what_an_ejected_backend_has_is_placed_again_without_a_pause() {
    let tasks = Tasks::new();
    let mut sick = Script::start(&tasks, None, 100).await;
    let mut well = Script::start(&tasks, None, 100).await;
    let stage = Stage::new(long_pauses(), &[sick.address, well.address], tasks);
    let sent = stage.send(Duration::from_secs(8));
    let (held, own) = (sick.call().await, well.call().await);
    let (lost, mut seen) = (held.spans.clone(), BTreeSet::from_iter(own.spans.clone()));
    own.accept();
    stage.rig.publish(2, &[sick.address, well.address], &[sick.address]).await;
    let moved = well.call().await;
    assert_eq!(moved.spans, lost, "only what has no outcome is sent again");
    seen.extend(moved.spans.iter().cloned());
    moved.accept();
    assert_eq!(outcome_of(sent).await, Outcome::OK);
    assert_eq!(seen, all());
    assert!(well.is_quiet() && sick.is_quiet());
}

#[tokio::test]
async fn what_waits_for_its_next_attempt_moves_when_its_owner_is_ejected_or_leaves() {
    for leaves in [false, true] {
        let tasks = Tasks::new();
        let dead = nobody().await;
        let mut well = Script::start(&tasks, None, 100).await;
        let mut stage = Stage::new(long_pauses(), &[dead, well.address], tasks);
        let sent = stage.send(Duration::from_secs(8));
        let own = well.call().await;
        let count = own.spans.len();
        assert_eq!(stage.rig.event().await, HealthKind::Refused);
        let (backends, away): (&[_], &[_]) =
            if leaves { (&[well.address], &[]) } else { (&[dead, well.address], &[dead]) };
        stage.rig.publish(2, backends, away).await;
        let moved = well.call().await;
        assert_eq!(moved.spans.len() + count, usize::from(SPANS));
        own.accept();
        moved.accept();
        assert_eq!(outcome_of(sent).await, Outcome::OK);
    }
}

#[tokio::test]
async fn a_table_that_leaves_the_owner_alone_ends_no_pause() {
    let tasks = Tasks::new();
    let mut busy = Script::start(&tasks, None, 100).await;
    let mut slow = Script::start(&tasks, None, 100).await;
    let other = Script::start(&tasks, None, 100).await;
    let stage = Stage::new(long_pauses(), &[busy.address, slow.address], tasks);
    let sent = stage.send(Duration::from_millis(500));
    // It keeps the request waiting until its deadline.
    let held = slow.call().await;
    busy.call().await.refuse(Status::unavailable("busy"));
    stage.rig.publish(2, &[busy.address, slow.address, other.address], &[]).await;
    let Outcome::Refused(refusal) = outcome_of(sent).await else { panic!("it must be refused") };
    assert_eq!(refusal.code, Code::Unavailable);
    assert!(busy.is_quiet(), "it must not be asked before its pause is over");
    drop(held);
}

#[tokio::test]
async fn a_hung_backend_costs_a_request_its_deadline_and_no_other_backend_a_repeat() {
    let tasks = Tasks::new();
    let mut hung = Script::start(&tasks, None, 100).await;
    let mut well = Script::start(&tasks, None, 100).await;
    let config = with_keys(|keys| {
        keys.timeout = Duration::from_millis(100);
        keys.retry_on_failure = short_pauses();
    });
    let stage = Stage::new(config, &[hung.address, well.address], tasks);
    let begun = Instant::now();
    let sent = stage.send(Duration::from_millis(500));
    well.call().await.accept();
    let held = hung.call().await;
    let Outcome::Refused(refusal) = outcome_of(sent).await else { panic!("it must be refused") };
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(refusal.code, Code::Unavailable);
    assert!(refusal.retry_after.is_some());
    let expected = format!(
        "not all of 32 records were acknowledged in time; backend {}: no answer within the timeout",
        hung.address
    );
    assert_eq!(refusal.message, expected);
    assert!(well.is_quiet(), "what was delivered must not be sent again");
    drop(held);
}

#[tokio::test]
async fn a_late_request_names_the_backend_that_has_not_answered() {
    let tasks = Tasks::new();
    let mut hung = Script::start(&tasks, None, 100).await;
    let mut well = Script::start(&tasks, None, 100).await;
    let stage = Stage::new(dispatch::Config::default(), &[hung.address, well.address], tasks);
    // The deadline is shorter than the timeout of an attempt, so nothing has failed by then.
    let sent = stage.send(Duration::from_millis(300));
    well.call().await.accept();
    let held = hung.call().await;
    let Outcome::Refused(refusal) = outcome_of(sent).await else { panic!("it must be refused") };
    let expected =
        format!("not all of 32 records were acknowledged in time; no answer yet from backend {}", hung.address);
    assert_eq!(refusal.message, expected);
    drop(held);
}

#[tokio::test]
async fn a_request_that_waits_for_its_next_attempt_rests() {
    let dead = nobody().await;
    let stage = Stage::new(long_pauses(), &[dead], Tasks::new());
    let polls = AtomicUsize::new(0);
    let mut export = pin!(stage.pipeline.export(stage.request(Duration::from_secs(3600 * 2))));
    let counted = poll_fn(|cx| {
        polls.fetch_add(1, Ordering::Relaxed);
        export.as_mut().poll(cx)
    });
    assert!(tokio::time::timeout(Duration::from_millis(300), counted).await.is_err(), "nothing can have come");
    assert!(polls.load(Ordering::Relaxed) < 10, "{polls:?}");
}

#[tokio::test]
async fn without_a_retry_budget_parts_wait_and_do_not_fail() {
    let tasks = Tasks::new();
    let mut busy = Script::start(&tasks, None, 100).await;
    let mut well = Script::start(&tasks, None, 100).await;
    let config = with_keys(|keys| keys.retry_on_failure = RetryOnFailure { budget_percent: 0, ..short_pauses() });
    let stage = Stage::new(config, &[busy.address, well.address], tasks);
    while stage.rig.dispatch.retries().spend(Instant::now()) {}
    let begun = Instant::now();
    let sent = stage.send(Duration::from_secs(8));
    well.call().await.accept();
    for _ in 0..3 {
        busy.call().await.refuse(Status::unavailable("busy"));
    }
    busy.call().await.accept();
    assert_eq!(outcome_of(sent).await, Outcome::OK);
    // Three retries at ten per second; the pauses alone would take 15 ms.
    assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
    assert!(well.is_quiet(), "what was delivered must not be sent again");
}

#[tokio::test]
async fn retries_that_nobody_heard_of_cost_nothing() {
    let dead = nobody().await;
    let config = with_keys(|keys| keys.retry_on_failure = RetryOnFailure { budget_percent: 0, ..short_pauses() });
    let stage = Stage::new(config, &[dead], Tasks::new());
    let retries = stage.rig.dispatch.retries();
    while retries.spend(Instant::now()) {}
    for _ in 0..3 {
        retries.give_back();
    }
    // There are many more attempts than tokens. The last attempt may still be running.
    let Outcome::Refused(_) = outcome_of(stage.send(Duration::from_millis(300))).await else {
        panic!("it must be refused")
    };
    assert!((0..4).all(|_| retries.spend(Instant::now())));
}

#[tokio::test]
async fn pieces_of_a_large_part_have_outcomes_of_their_own() {
    let tasks = Tasks::new();
    let mut backend = Script::start(&tasks, None, 100).await;
    let keys = with_keys(|keys| {
        keys.max_request_size_mib.bytes = 300;
        keys.retry_on_failure = short_pauses();
    });
    let config = dispatch::Config { places: 1, ..keys };
    let stage = Stage::new(config, &[backend.address], tasks);
    let sent = stage.send(Duration::from_secs(8));
    let first = backend.call().await;
    assert!(first.spans.len() < usize::from(SPANS), "must be cut by size");
    let mut seen = BTreeSet::from_iter(first.spans.clone());
    first.accept_partly(2, "two were bad");
    let second = backend.call().await;
    let open = BTreeSet::from_iter(second.spans.clone());
    second.refuse(Status::unavailable("later"));
    let mut again = BTreeSet::new();
    while seen.len() < usize::from(SPANS) {
        let call = backend.call().await;
        again.extend(call.spans.iter().filter(|name| open.contains(*name)).cloned());
        assert!(call.spans.iter().all(|name| seen.insert(name.clone())), "only what has no outcome must be sent again");
        call.accept();
    }
    assert_eq!((again, seen), (open, all()));
    assert_eq!(outcome_of(sent).await, Outcome::Accepted { rejected: 2, message: Some("two were bad".into()) });
    assert_eq!(stage.budget.used(), 0);
}

#[tokio::test]
async fn a_part_that_is_placed_again_holds_its_bytes_once() {
    let tasks = Tasks::new();
    let mut backends = [Script::start(&tasks, None, 100).await, Script::start(&tasks, None, 100).await];
    let addresses = [backends[0].address, backends[1].address];
    let stage = Stage::new(long_pauses(), &addresses, tasks);
    let sent = stage.send(Duration::from_secs(8));
    let (open, own) = (backends[0].call().await, backends[1].call().await);
    let (all, count) = (stage.budget.used(), own.spans.len());
    own.accept();
    wait_until(|| stage.rig.dispatch.loads().values().map(|load| load.calls).sum::<usize>() == 1).await;
    // The part moves back and forth, each time with the same bytes.
    let mut held = open;
    for (generation, from, to) in [(2, 0, 1), (3, 1, 0), (4, 0, 1)] {
        let expected = held.spans.clone();
        stage.rig.publish(generation, &addresses, &[addresses[from]]).await;
        held = backends[to].call().await;
        assert_eq!(held.spans, expected);
        // The request holds about half of the bytes, according to the part's share of the spans.
        let used = stage.budget.used();
        assert!(used * usize::from(SPANS) <= all * (usize::from(SPANS) - count) + all, "{used} of {all} for {count}");
    }
    held.accept();
    assert_eq!(outcome_of(sent).await, Outcome::OK);
    assert_eq!(stage.budget.used(), 0);
}

#[tokio::test]
async fn a_request_whose_plan_contradicts_itself_is_not_acknowledged_and_nothing_of_it_is_sent() {
    let tasks = Tasks::new();
    let mut backends = [Script::start(&tasks, None, 100).await, Script::start(&tasks, None, 100).await];
    let stage = Stage::new(long_pauses(), &[backends[0].address, backends[1].address], tasks);
    cut::damage_next_plan();
    let Outcome::Refused(refusal) = patient(stage.pipeline.export(stage.request(Duration::from_secs(8)))).await else {
        panic!("it must not be acknowledged")
    };
    assert_eq!((refusal.reason, refusal.code), (Reason::Internal, Code::Unavailable));
    assert!(refusal.retry_after.is_some(), "the client must send it again");
    assert_eq!(stage.pipeline.defects.admit(), None, "it was logged");
    assert_eq!(stage.budget.used(), 0);
    assert!(stage.rig.dispatch.is_idle() && backends.iter_mut().all(Script::is_quiet));
    // The next request is cut as usual.
    let sent = stage.send(Duration::from_secs(8));
    for backend in &mut backends {
        backend.call().await.accept();
    }
    assert_eq!(outcome_of(sent).await, Outcome::OK);
}

#[test]
fn causes_are_said_in_words() {
    let text_of = |cause: Cause| cause.to_string();
    assert_eq!(text_of(Cause::Ejected), "taken out of service");
    assert_eq!(text_of(Cause::Status(Code::Unavailable)), "answered Unavailable");
    assert_eq!(text_of(Cause::Transport(Failure::ConnectRefused)), "connection refused");
}

#[test]
fn a_signal_without_a_route_is_told_what_can_be_done() {
    let pipeline = Pipeline::new(Routes::new(InvalidTraceIds::default()));
    let text_of = |signal| pipeline.route(signal).err().map(|refusal| refusal.message).unwrap_or_default();
    assert_eq!(text_of(Signal::Logs), "no route for logs; add one with signals: [logs]");
    assert_eq!(
        text_of(Signal::Metrics),
        "metrics are not taken here: they have no trace ID, and only traces and logs can be routed yet"
    );
}
