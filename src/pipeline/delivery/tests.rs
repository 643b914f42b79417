//! Tests with outcomes that only a defect of the program can cause: the delivery acknowledges nothing.

use super::*;
use crate::{
    budget::Budget,
    dispatch::Config,
    otlp::Signal,
    pipeline::{Routes, not_queued},
    testing::*,
};

/// Makes deliveries of two parts with three records in total. Their backend is never called.
struct Bench {
    rig: Rig,
    pipeline: Pipeline,
    route: Arc<Route>,
    view: Arc<View>,
}

impl Bench {
    async fn new() -> Self {
        let tasks = Tasks::new();
        let backend = Script::start(&tasks, None, 100).await;
        let rig = Rig::start_with(Config::default(), &[backend.address], tasks);
        let routes =
            Routes::new(super::super::Config::default()).with(Signal::Traces, "test", Arc::clone(&rig.dispatch));
        let pipeline = Pipeline::new(routes, Budget::new(1 << 30));
        let route = pipeline.route(Signal::Traces).expect("it was added");
        let view = rig.dispatch.view().expect("there is a table");
        Self { rig, pipeline, route, view }
    }

    fn parts() -> Vec<Part> {
        vec![Part { index: 0, ..part(&["a", "b"], 0) }, Part { index: 1, ..part(&["c"], 0) }]
    }

    /// Returns a delivery of a request that counted `records` records.
    fn delivery(&self, records: u64) -> Delivery<'_> {
        let join = Join::new(Instant::now() + Duration::from_secs(60), Arc::default());
        let tally = Tally::new(records, 0);
        let mut delivery = Delivery::new(&self.pipeline, &self.route, join, &Self::parts(), &self.view, tally);
        delivery.under_way = 2;
        delivery
    }
}

fn is_defect(outcome: Result<Outcome, Refusal>) -> bool {
    outcome.is_err_and(|refusal| refusal.reason == Reason::Internal && refusal.retry_after.is_some())
}

fn retry(part: Part) -> PartOutcome {
    PartOutcome::Retry { owner: "somebody".into(), after: None, reached: false, cause: Cause::Full, part }
}

#[tokio::test]
async fn every_part_accepted_is_a_request_accepted() {
    let bench = Bench::new().await;
    let mut delivery = bench.delivery(3);
    delivery.take_in(vec![(0, accepted()), (1, accepted())]);
    assert_eq!(delivery.conclude(), Ok(Outcome::OK));
}

#[tokio::test]
async fn two_outcomes_of_one_part_do_not_stand_for_another() {
    let bench = Bench::new().await;
    for twice in [0, 1] {
        let mut delivery = bench.delivery(3);
        delivery.take_in(vec![(twice, accepted()), (twice, accepted())]);
        assert!(!delivery.is_unfinished(), "as many outcomes came as parts were sent");
        assert!(is_defect(delivery.conclude()));
    }
}

#[tokio::test]
async fn an_outcome_of_an_unknown_part_acknowledges_nothing() {
    let bench = Bench::new().await;
    for outcome in [accepted(), retry(Part { index: 7, ..part(&["x"], 0) })] {
        let mut delivery = bench.delivery(3);
        delivery.take_in(vec![(0, accepted()), (7, outcome)]);
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
    let address = bench.view.table().backends()[0].address.expect("it has one");
    bench.rig.publish(2, &[address], &[]).await;
    bench.view = bench.rig.dispatch.view().expect("there is a table");
    let mut delivery = bench.delivery(3);
    // Pretend that an older table has placed them.
    delivery.placed.iter_mut().for_each(|placed| placed.generation = 1);
    let [counted, short] = [2, 3].map(|records| Part { records, index: 0, ..part(&["a", "b"], 0) });
    let failed = |part| Failed { part, owner: "somebody".into(), cause: Cause::Ejected };
    assert!(delivery.place(failed(counted), &bench.view), "it is queued");
    assert_eq!(delivery.defect, None);
    assert!(!delivery.place(failed(short), &bench.view));
    assert!(is_defect(delivery.conclude()));
}

#[tokio::test]
async fn a_part_for_a_backend_that_is_not_there_ends_the_request_at_once() {
    let bench = Bench::new().await;
    let mut delivery = bench.delivery(3);
    delivery.under_way = 0;
    assert!(!delivery.submit(&bench.view, vec![Part { index: 1, ..part(&["c"], 9) }]));
    assert!(is_defect(patient(delivery.finish(Instant::now() + Duration::from_secs(3600))).await));
    assert!(is_defect(Err(not_queued(bench.view.table(), WhyNotQueued::NoSuchBackend))));
    let full = not_queued(bench.view.table(), WhyNotQueued::Full(0));
    assert_eq!(full.reason, Reason::QueueFull);
}
