//! A delivery by itself: what it counts, places again and tells, and what it does with outcomes that cannot come unless the
//! program has a defect.

mod again;

use std::sync::atomic::{AtomicU64, Ordering};

use metrics::Counter;
use tonic::Code;

use super::*;
use crate::{
    budget::{Budget, Division},
    dispatch::{Config, Failure},
    otlp::{Reason, Signal},
    pipeline::{Routes, SignalMetrics, not_queued},
    settings::InvalidTraceIds,
    testing::*,
};

/// A delivery of two parts of three records in front of backends whose answers are scripted.
struct Bench {
    rig: Rig,
    backends: Vec<Script>,
    budget: Budget,
    pipeline: Pipeline,
    route: Route,
    view: Arc<View>,
    duplicates: Arc<AtomicU64>,
    retried: Arc<AtomicU64>,
    replaced: Arc<AtomicU64>,
}

impl Bench {
    /// Sets what requests may hold.
    fn set_limit(&self, requests: usize) {
        self.budget.divide(Division { fixed: 0, clients: 0, requests });
    }

    async fn new() -> Self {
        Self::with(1, Config::default()).await
    }

    async fn with(backends: usize, config: Config) -> Self {
        let tasks = Tasks::new();
        let mut scripts = Vec::new();
        for _ in 0..backends {
            scripts.push(Script::start(&tasks, None, 100).await);
        }
        // In the order of the table.
        scripts.sort_by_key(|script| script.address.to_string());
        let addresses: Vec<_> = scripts.iter().map(|script| script.address).collect();
        let rig = Rig::start_with(config, &addresses, tasks);
        let invalid_trace_id = InvalidTraceIds::default();
        let pipeline = Pipeline::new(Routes::new(invalid_trace_id));
        let budget = Budget::new(1 << 30);
        let [duplicates, retried, replaced] = std::array::from_fn(|_| Arc::new(AtomicU64::new(0)));
        let counter = |count: &Arc<AtomicU64>| Counter::from_arc(Arc::clone(count));
        let mut metrics = SignalMetrics::new("test", Signal::Traces);
        metrics.possible_duplicates = counter(&duplicates);
        metrics.retried = counter(&retried);
        metrics.replaced = counter(&replaced);
        let dispatch = Arc::clone(&rig.dispatch);
        let route = Route { invalid_trace_id, pool: "test".to_owned(), dispatch, metrics, _user: None };
        let view = rig.dispatch.view().expect("there is a table");
        Self { rig, backends: scripts, budget, pipeline, route, view, duplicates, retried, replaced }
    }

    /// Publishes another table of the same backends, of which those with these indices are away.
    async fn publish(&mut self, generation: u64, away: &[usize]) {
        let addresses: Vec<_> = self.backends.iter().map(|script| script.address).collect();
        let away: Vec<_> = away.iter().map(|at| addresses[*at]).collect();
        self.rig.publish(generation, &addresses, &away).await;
        self.view = self.rig.dispatch.view().expect("there is a table");
    }

    fn parts() -> Vec<Part> {
        vec![Part { index: 0, ..part(&["a", "b"], 0) }, Part { index: 1, ..part(&["c"], 0) }]
    }

    /// Returns the delivery of [`Self::parts`], of a request with this number of records.
    fn delivery(&self, records: u64) -> Delivery<'_> {
        self.delivery_of(&Self::parts(), records)
    }

    fn delivery_of(&self, parts: &[Part], records: u64) -> Delivery<'_> {
        let mut join = Join::new(Instant::now() + Duration::from_secs(60), Arc::default());
        join.add_cut(parts.len(), self.budget.take(HELD).expect("room"));
        let tally = Tally::new(records, 0);
        Delivery::new(&self.pipeline, &self.route, join, parts, &self.view, tally)
    }

    fn duplicates(&self) -> u64 {
        self.duplicates.load(Ordering::Relaxed)
    }
}

fn is_defect(outcome: Result<Outcome, Refusal>) -> bool {
    outcome.is_err_and(|refusal| refusal.reason == Reason::Internal && refusal.retry_after.is_some())
}

/// The budget share of a delivery's parts, in bytes.
const HELD: usize = 1_000;

/// Returns the outcome that the part with this index was not delivered.
fn owed(index: usize, reached: bool, cause: Cause) -> (u32, PartOutcome) {
    owed_by("somebody", index, reached, cause, None)
}

fn owed_by(owner: &str, index: usize, reached: bool, cause: Cause, after: Option<Duration>) -> (u32, PartOutcome) {
    let part = Bench::parts().swap_remove(index);
    (part.index, PartOutcome::Retry { owner: owner.into(), after, reached, cause, part })
}

/// Returns a configuration with pauses of this length, without jitter.
fn even_pauses(pause: Duration) -> Config {
    with_keys(|keys| {
        let retry = &mut keys.retry_on_failure;
        (retry.initial_interval, retry.max_interval, retry.randomization_factor) = (pause, pause, 0.0);
    })
}

const REFUSED: Cause = Cause::Transport(Failure::ConnectRefused);

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn every_part_accepted_is_a_request_accepted() {
    let bench = Bench::new().await;
    let mut delivery = bench.delivery(3);
    delivery.take_in(vec![(0, accepted()), (1, accepted())]);
    assert_eq!(delivery.conclude(), Ok(Outcome::OK));
    drop(delivery);
    assert_eq!(bench.duplicates(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_before_its_answer_sends_all_of_it_again() {
    let bench = Bench::new().await;
    let mut delivery = bench.delivery(3);
    delivery.take_in(vec![(0, accepted()), (1, accepted())]);
    drop(delivery);
    assert_eq!(bench.duplicates(), 3);
}

#[tokio::test]
async fn a_part_refused_for_good_is_told_in_a_partial_success() {
    let bench = Bench::new().await;
    let mut delivery = bench.delivery(3);
    let refused = PartOutcome::Rejected { code: Code::InvalidArgument, message: "bad".to_owned() };
    delivery.take_in(vec![(0, refused), (1, accepted())]);
    assert_eq!(delivery.conclude(), Ok(Outcome::Accepted { rejected: 2, message: Some("bad".to_owned()) }));
}

#[tokio::test]
async fn a_request_with_a_part_that_waits_or_is_under_way_is_late() {
    let bench = Bench::with(1, even_pauses(HOUR)).await;
    let mut delivery = bench.delivery(3);
    delivery.take_in(vec![(0, accepted())]);
    assert!(delivery.is_unfinished() && delivery.waiting.next_due().is_none());
    delivery.take_in(vec![owed(1, false, REFUSED)]);
    assert!(delivery.is_unfinished() && delivery.under_way == 0);
    assert!(delivery.waiting.next_due().is_some_and(|due| due > Instant::now()));
    let refusal = delivery.conclude().expect_err("a part is owed");
    assert_eq!((refusal.code, refusal.reason), (Code::Unavailable, Reason::Deadline));
    assert_eq!(refusal.message, "not all of 3 records were acknowledged in time; backend somebody: connection refused");
}

#[tokio::test]
async fn two_outcomes_of_one_part_do_not_stand_for_another() {
    let bench = Bench::new().await;
    for twice in [0, 1] {
        let mut delivery = bench.delivery(3);
        delivery.take_in(vec![(twice, accepted()), (twice, accepted())]);
        assert!(!delivery.is_unfinished(), "as many outcomes came as parts were sent");
        assert_eq!(delivery.defect, Some("a part has more outcomes than one"));
        assert!(is_defect(delivery.conclude()));
    }
    // The client sends all of it again: both times two records, then one, are there already.
    assert_eq!(bench.duplicates(), 2 + 1);
    let mut delivery = bench.delivery(3);
    delivery.take_in(vec![(0, accepted()), (0, accepted()), (1, accepted())]);
    assert!(is_defect(delivery.conclude()), "although each part has one");
}

#[tokio::test]
async fn an_outcome_of_an_unknown_part_acknowledges_nothing() {
    let bench = Bench::new().await;
    for outcome in [accepted(), owed(0, false, Cause::Full).1] {
        let mut delivery = bench.delivery(3);
        delivery.take_in(vec![(0, accepted()), (7, outcome)]);
        assert_eq!(delivery.defect, Some("an outcome is of a part that is unknown"));
        assert!(is_defect(delivery.conclude()));
    }
}

#[tokio::test]
async fn a_part_without_an_outcome_acknowledges_nothing() {
    let bench = Bench::new().await;
    let mut delivery = bench.delivery(3);
    delivery.take_in(vec![(0, accepted())]);
    delivery.under_way = 0;
    assert!(is_defect(delivery.conclude()));
    // Nor if its backend says that it refused so many records that the sum is right.
    let mut delivery = bench.delivery(3);
    delivery.take_in(vec![(0, PartOutcome::Accepted { rejected: 3, message: None })]);
    delivery.under_way = 0;
    assert!(is_defect(delivery.conclude()));
}

#[tokio::test]
async fn a_request_whose_parts_all_wait_beyond_its_deadline_is_answered_at_once() {
    let bench = Bench::with(1, even_pauses(HOUR)).await;
    let mut delivery = bench.delivery(3);
    delivery.take_in(vec![(0, accepted()), owed(1, false, REFUSED)]);
    let refusal = patient(delivery.finish(Instant::now() + HOUR / 2)).await.expect_err("a part is owed");
    assert_eq!(refusal.reason, Reason::Deadline);
}

#[tokio::test]
async fn a_part_that_fails_at_the_end_is_owed() {
    let mut bench = Bench::with(1, even_pauses(HOUR)).await;
    let mut backends = std::mem::take(&mut bench.backends);
    let mut delivery = bench.delivery_of(&Bench::parts()[..1], 2);
    bench.view.submit(Bench::parts()[..1].to_vec(), delivery.join()).expect("there is room");
    backends[0].call().await.refuse(tonic::Status::unavailable("busy"));
    patient(async {
        while delivery.under_way > 0 {
            delivery.take_last();
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!((delivery.waiting.indices(), delivery.defect), (vec![0], None));
}

#[tokio::test]
async fn parts_with_fewer_or_more_records_than_the_request_acknowledge_nothing() {
    let bench = Bench::new().await;
    for records in [2, 4] {
        let mut delivery = bench.delivery(records);
        delivery.take_in(vec![(0, accepted()), (1, accepted())]);
        assert!(is_defect(delivery.conclude()), "{records} records");
    }
}

#[tokio::test]
async fn a_part_that_lost_records_is_not_placed_again_with_the_rest() {
    let mut bench = Bench::new().await;
    bench.publish(2, &[]).await;
    let mut delivery = bench.delivery(3);
    // As if an older table had placed them.
    delivery.placed.iter_mut().for_each(|placed| placed.generation = 1);
    let [counted, short] = [2, 3].map(|records| Part { records, index: 0, ..part(&["a", "b"], 0) });
    let failed = |part| Failed { part, owner: "somebody".into(), cause: Cause::Ejected };
    assert!(delivery.place(failed(counted), &bench.view), "it is queued");
    assert_eq!(delivery.defect, None);
    assert_eq!(delivery.tables.len(), 1, "its table is there already");
    assert!(!delivery.place(failed(short), &bench.view));
    assert!(is_defect(delivery.conclude()));
}

#[tokio::test]
async fn a_part_that_is_unknown_when_it_is_placed_or_waits_is_a_defect() {
    let bench = Bench::new().await;
    let failed = || Failed { part: Part { index: 9, ..part(&["x"], 0) }, owner: "somebody".into(), cause: Cause::Full };
    let mut delivery = bench.delivery(3);
    assert!(!delivery.place(failed(), &bench.view));
    assert!(is_defect(delivery.conclude()));
    let mut delivery = bench.delivery(3);
    delivery.wait_for(failed(), None);
    assert!(delivery.waiting.is_empty() && is_defect(delivery.conclude()));
}

#[tokio::test]
async fn a_part_for_a_backend_that_is_not_there_ends_the_request_at_once() {
    let bench = Bench::new().await;
    let mut delivery = bench.delivery(3);
    delivery.under_way = 0;
    assert!(!delivery.submit(&bench.view, vec![Part { index: 1, ..part(&["c"], 9) }]));
    assert!(is_defect(patient(delivery.finish(Instant::now() + HOUR)).await));
    assert!(is_defect(Err(not_queued(bench.view.table(), WhyNotQueued::NoSuchBackend))));
    let full = not_queued(bench.view.table(), WhyNotQueued::Full(0));
    assert_eq!(full.reason, Reason::QueueFull);
    assert_eq!(full.message, format!("the queue of backend {} is full", bench.backends[0].address));
}
