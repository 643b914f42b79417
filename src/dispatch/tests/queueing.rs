//! Tests of the queue: when a call begins, which parts it carries, and that a request gets room in all queues or in none.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    dispatch::{
        Config, Join, Part, PartOutcome, WhyNotQueued,
        queue::{Queue, Rules},
        queued::Queued,
    },
    lifecycle::Tasks,
    otlp::Signal,
    testing::{Rig, Script, accepted, large_part, outcome, part, patient, wait_until, with_keys},
};

struct Bench {
    queue: Queue,
    join: Join,
    start: Instant,
}

impl Bench {
    fn new(config: Config) -> Self {
        let start = Instant::now();
        let join = Join::new(start + Duration::from_secs(10), Arc::default());
        Self { queue: Queue::new(Rules::new(&config)), join, start }
    }

    fn push(&mut self, part: Part, after: Duration) {
        self.queue.push(Queued::from_part(part, self.join.inbox(), self.start + after));
    }

    /// Takes a batch. Returns its number of parts, and the number of dropped entries.
    fn take(&mut self, after: Duration) -> Option<(usize, usize)> {
        let mut dropped = Vec::new();
        let batch = self.queue.take(self.start + after, &mut dropped);
        batch.map(|batch| (batch.parts.len(), dropped.len()))
    }
}

const NOW: Duration = Duration::ZERO;
const SOON: Duration = Duration::from_micros(1_999);
const LATER: Duration = Duration::from_millis(2);

#[test]
fn the_first_call_begins_at_once_and_a_further_one_after_a_while() {
    let mut bench = Bench::new(Config::default());
    assert_eq!(bench.take(NOW), None, "there is nothing to take");
    bench.push(part(&["a"], 0), NOW);
    assert_eq!(bench.take(NOW), Some((1, 0)));
    bench.push(part(&["b"], 0), NOW);
    bench.push(part(&["c"], 0), SOON);
    assert_eq!(bench.take(SOON), None, "the oldest entry has not waited long enough");
    assert_eq!(bench.take(LATER), Some((2, 0)), "waiting parts must leave together");
    bench.queue.done(0);
    bench.push(part(&["d"], 0), LATER);
    assert_eq!(bench.take(LATER), None, "one call still runs");
    bench.queue.done(0);
    assert_eq!(bench.take(LATER), Some((1, 0)));
}

#[test]
fn enough_bytes_begin_a_call_at_once_while_places_are_free() {
    let mut bench = Bench::new(Config { places: 2, ..Config::default() });
    bench.push(part(&["a"], 0), NOW);
    assert_eq!(bench.take(NOW), Some((1, 0)));
    bench.push(large_part(1, 256 << 10, 0), NOW);
    assert_eq!(bench.take(NOW), Some((1, 0)));
    bench.push(large_part(1, 256 << 10, 0), NOW);
    assert_eq!(bench.take(LATER), None, "there are two places");
}

#[test]
fn large_parts_wait_for_others_until_there_are_four() {
    let mut bench = Bench::new(Config::default());
    bench.push(part(&["a"], 0), NOW);
    assert_eq!(bench.take(NOW), Some((1, 0)));
    for count in 1..=3 {
        bench.push(large_part(1, 50 << 10, 0), NOW);
        assert_eq!(bench.take(SOON), None, "{count} of them");
    }
    bench.push(part(&["b"], 0), SOON);
    assert_eq!(bench.take(SOON), Some((4, 0)));
    for _ in 0..5 {
        bench.push(part(&["c"], 0), SOON);
    }
    assert_eq!(bench.take(SOON), None, "many small parts are not enough");
    bench.push(Part { signal: Signal::Profiles, ..large_part(1, 64 << 10, 0) }, NOW);
    assert_eq!(bench.take(SOON), Some((1, 0)), "a part that is sent alone must not wait for others");
}

#[test]
fn bytes_in_flight_are_limited_even_if_places_are_free() {
    let full = large_part(10, 1_000, 0);
    let size = full.message.payload_len();
    let mut bench =
        Bench::new(Config { open_place_bytes: 1, ..with_keys(|keys| keys.max_request_size_mib.bytes = size) });
    for _ in 0..10 {
        bench.push(full.clone(), NOW);
    }
    let taken = std::iter::from_fn(|| bench.take(LATER)).count();
    assert_eq!((taken, bench.queue.running_bytes()), (8, 8 * size));
    bench.queue.done(size);
    assert_eq!(bench.take(LATER), Some((1, 0)));
    assert_eq!(bench.take(LATER), None);
}

#[test]
fn thirty_two_calls_may_run_and_no_more() {
    let mut bench = Bench::new(Config::default());
    for round in 0..32 {
        bench.push(part(&["a"], 0), LATER * round);
        assert_eq!(bench.take(LATER * (round + 1)), Some((1, 0)), "{round}");
    }
    bench.push(part(&["a"], 0), NOW);
    assert_eq!(bench.take(LATER * 100), None);
    bench.queue.done(0);
    assert_eq!(bench.take(LATER * 100), Some((1, 0)));
}

#[test]
fn a_record_larger_than_the_limit_of_bytes_in_flight_is_sent_while_no_other_call_is() {
    let small = large_part(1, 1_000, 0);
    let (size, huge) = (small.message.payload_len(), large_part(1, 10_000, 0));
    let mut bench =
        Bench::new(Config { open_place_bytes: 1, ..with_keys(|keys| keys.max_request_size_mib.bytes = size) });
    // Without a call in flight it is sent at once, and no call begins beside it.
    bench.push(huge.clone(), NOW);
    bench.push(small.clone(), NOW);
    assert_eq!(bench.take(NOW), Some((1, 0)));
    assert_eq!(bench.take(LATER), None);
    bench.queue.done(huge.message.payload_len());
    // Otherwise it waits for the end of the call in flight.
    assert_eq!(bench.take(LATER), Some((1, 0)));
    bench.push(huge.clone(), LATER);
    bench.push(small, LATER);
    assert_eq!(bench.take(LATER), None);
    bench.queue.done(size);
    assert_eq!(bench.take(LATER), Some((1, 0)));
    assert_eq!(bench.queue.running_bytes(), huge.message.payload_len());
}

#[test]
fn a_large_record_behind_a_dropped_entry_still_needs_room() {
    let small = large_part(1, 1_000, 0);
    let (size, larger) = (small.message.payload_len(), large_part(1, 7_500, 0));
    let mut bench =
        Bench::new(Config { open_place_bytes: 1, ..with_keys(|keys| keys.max_request_size_mib.bytes = size) });
    bench.push(small.clone(), NOW);
    assert_eq!(bench.take(NOW), Some((1, 0)));
    let late = Join::new(bench.start + SOON, Arc::default());
    bench.queue.push(Queued::from_part(small, late.inbox(), bench.start));
    bench.push(larger, NOW);
    assert_eq!(bench.take(LATER), None, "its bytes and those in flight exceed eight calls of full size");
    bench.queue.done(size);
    assert_eq!(bench.take(LATER), Some((1, 0)));
}

#[tokio::test]
async fn a_hung_backend_holds_at_most_eight_full_or_thirty_two_calls_and_a_full_queue() {
    let full = large_part(10, 1_000, 0);
    let (size, cost) = (full.message.payload_len(), full.message.framed_len());
    for (part, calls) in [(full, 8), (part(&["small"], 0), 32)] {
        let tasks = Tasks::new();
        let mut backend = Script::start(&tasks, None, 100).await;
        // Each part begins a call of its own at once.
        let part = Part { alone: true, ..part };
        let keys = with_keys(|keys| {
            keys.max_request_size_mib.bytes = size;
            keys.sending_queue.queue_size.0 = 4 * cost;
        });
        let config = Config { open_place_bytes: 1, ..keys };
        let rig = Rig::start_with(config, &[backend.address], tasks);
        let load = || rig.dispatch.view().unwrap().backends().next().unwrap().load();
        let (mut joins, mut held) = (Vec::new(), Vec::new());
        for _ in 0..calls {
            joins.push(rig.submit(vec![part.clone()]));
            held.push(backend.call().await);
        }
        // Further parts wait until the queue is full too.
        let join = Join::new(Instant::now() + Duration::from_secs(60), Arc::default());
        let refused = (0..).find_map(|_| rig.dispatch.view().unwrap().submit(vec![part.clone()], &join).err());
        assert_eq!(refused.map(|refused| refused.why), Some(WhyNotQueued::Full(0)));
        let all = load();
        assert_eq!((all.calls, all.call_bytes), (calls, calls * part.message.payload_len()));
        assert!(all.call_bytes <= 8 * size && all.waiting_bytes <= 4 * cost, "{all:?}");
        assert!(backend.is_quiet());
        // The end of one call makes room for one part.
        held.remove(0).accept();
        assert_eq!(outcome(&joins.remove(0)).await, accepted());
        held.push(backend.call().await);
        assert_eq!(load().calls, calls);
    }
}

#[test]
fn a_call_has_at_most_its_maximum_size_and_only_one_signal() {
    let one = part(&["a"], 0);
    let size = one.message.payload_len();
    let mut bench = Bench::new(with_keys(|keys| keys.max_request_size_mib.bytes = 2 * size));
    for signal in [Signal::Traces, Signal::Logs, Signal::Traces, Signal::Traces, Signal::Profiles, Signal::Profiles] {
        bench.push(Part { signal, ..one.clone() }, NOW);
    }
    let sizes: Vec<_> = std::iter::from_fn(|| bench.take(LATER)).map(|(parts, _)| parts).collect();
    assert_eq!(sizes.iter().sum::<usize>(), 6);
    assert_eq!(sizes.iter().max(), Some(&2), "two fit");
    assert_eq!(sizes.len(), 5, "two traces; one trace; one log; two profiles alone: {sizes:?}");
}

#[test]
fn abandoned_parts_are_dropped_when_their_turn_comes() {
    let mut bench = Bench::new(Config::default());
    let gone = Join::new(bench.start + Duration::from_secs(10), Arc::default());
    let late = Join::new(bench.start + SOON, Arc::default());
    bench.queue.push(Queued::from_part(part(&["gone"], 0), gone.inbox(), bench.start));
    bench.queue.push(Queued::from_part(part(&["late"], 0), late.inbox(), bench.start));
    drop(gone);
    assert_eq!(bench.take(LATER), None, "nothing is left to send");
    bench.push(part(&["a"], 0), NOW);
    assert_eq!(bench.take(LATER), Some((1, 0)), "dropped parts must not take a place");
}

#[tokio::test]
async fn no_part_is_queued_if_one_is_for_a_backend_that_is_not_in_the_table() {
    let tasks = Tasks::new();
    let mut backend = Script::start(&tasks, None, 100).await;
    let rig = Rig::start_with(Config::default(), &[backend.address], tasks);
    let parts = vec![part(&["a"], 0), part(&["b"], 1)];
    let join = Join::new(Instant::now() + Duration::from_secs(10), Arc::default());
    let refused = rig.dispatch.view().unwrap().submit(parts.clone(), &join).expect_err("there is one backend");
    assert_eq!((refused.why, refused.parts), (WhyNotQueued::NoSuchBackend, parts));
    assert!(join.next().await.is_empty(), "nothing must have been queued");
    assert_eq!(rig.dispatch.view().unwrap().backends().next().unwrap().load().waiting_bytes, 0);
    assert!(rig.dispatch.is_idle() && backend.is_quiet());
}

#[tokio::test]
async fn a_request_gets_room_in_all_queues_or_in_none() {
    let tasks = Tasks::new();
    let mut backends = [Script::start(&tasks, None, 100).await, Script::start(&tasks, None, 100).await];
    let size = large_part(1, 1_000, 0).message.framed_len();
    let config = Config { places: 1, ..with_keys(|keys| keys.sending_queue.queue_size.0 = 2 * size) };
    let addresses = [backends[0].address, backends[1].address];
    let rig = Rig::start_with(config, &addresses, tasks);
    let index = addresses.map(|address| rig.index_of(address));
    let first = addresses.map(|address| rig.submit(vec![large_part(1, 1_000, rig.index_of(address))]));
    let held = [backends[0].call().await, backends[1].call().await];
    // Fills the second backend's queue.
    let filling: Vec<_> = (0..2).map(|_| rig.submit(vec![large_part(1, 1_000, index[1])])).collect();
    let parts: Vec<_> = [0, 0, 1].iter().map(|at| large_part(1, 1_000, index[*at])).collect();
    let join = Join::new(Instant::now() + Duration::from_secs(10), Arc::default());
    let full = rig.dispatch.view().unwrap().submit(parts.clone(), &join).expect_err("there is no room");
    assert_eq!(full.why, WhyNotQueued::Full(index[1]));
    assert_eq!(full.parts, parts, "the parts must be given back");
    assert!(join.next().await.is_empty(), "nothing must have been queued");
    // No room is taken in the first backend's queue: two more parts fit.
    let fitting = rig.submit(vec![parts[0].clone(), parts[1].clone()]);
    for call in held {
        call.accept();
    }
    for join in &first {
        assert_eq!(outcome(join).await, accepted());
    }
    backends[0].call().await.accept();
    backends[1].call().await.accept();
    for join in &filling {
        assert_eq!(outcome(join).await, accepted());
    }
    assert_eq!(fitting.next().await.len(), 2);
}

#[tokio::test]
async fn two_parts_for_one_queue_get_room_together() {
    let tasks = Tasks::new();
    let mut backend = Script::start(&tasks, None, 100).await;
    let normal = large_part(1, 1_000, 0);
    let lone = Part { alone: true, index: 1, ..normal.clone() };
    // Each part fits by itself. Both together fit only an empty queue.
    let config = with_keys(|keys| keys.sending_queue.queue_size.0 = 2 * normal.message.framed_len() - 1);
    let rig = Rig::start_with(config, &[backend.address], tasks);
    let join = rig.submit(vec![normal, lone]);
    for _ in 0..2 {
        backend.call().await.accept();
    }
    assert_eq!(patient(join.next()).await.len(), 2);
    let load = rig.dispatch.view().unwrap().backends().next().unwrap().load();
    assert_eq!(load.waiting_bytes, 0, "all room must have been given back");
}

#[tokio::test]
async fn abandoned_parts_make_room() {
    let tasks = Tasks::new();
    let mut backend = Script::start(&tasks, None, 100).await;
    let size = large_part(1, 1_000, 0).message.framed_len();
    let config = Config { places: 1, ..with_keys(|keys| keys.sending_queue.queue_size.0 = size) };
    let rig = Rig::start_with(config, &[backend.address], tasks);
    let first = rig.submit(vec![large_part(1, 1_000, 0)]);
    let held = backend.call().await;
    drop(rig.submit(vec![large_part(1, 1_000, 0)]));
    let next = rig.submit(vec![large_part(1, 1_000, 0)]);
    held.accept();
    assert_eq!(outcome(&first).await, accepted());
    backend.call().await.accept();
    assert_eq!(outcome(&next).await, accepted());
}

#[tokio::test]
async fn a_backend_that_left_finishes_what_it_has() {
    let tasks = Tasks::new();
    let mut old = Script::start(&tasks, None, 100).await;
    let mut new = Script::start(&tasks, None, 100).await;
    let rig = Rig::start_with(Config { places: 1, ..Config::default() }, &[old.address], tasks);
    let view = rig.dispatch.view().unwrap();
    let first = rig.submit(vec![part(&["a"], 0)]);
    let held = old.call().await;
    let second = rig.submit(vec![part(&["b"], 0)]);
    rig.change(2, &[new.address]).await;
    let third = rig.submit(vec![part(&["c"], 0)]);
    new.call().await.accept();
    assert_eq!(outcome(&third).await, accepted());
    held.accept();
    old.call().await.accept();
    assert_eq!(outcome(&first).await, accepted());
    assert_eq!(outcome(&second).await, accepted());
    wait_until(|| view.backends().all(|backend| backend.is_idle())).await;
    // A request that still uses the old view is served too.
    let join = Join::new(Instant::now() + Duration::from_secs(10), Arc::default());
    view.submit(vec![part(&["d"], 0)], &join).expect("there must be room");
    old.call().await.accept();
    assert_eq!(outcome(&join).await, accepted());
}

#[tokio::test]
async fn a_backend_that_stays_keeps_its_queue() {
    let tasks = Tasks::new();
    let mut stays = Script::start(&tasks, None, 100).await;
    let other = Script::start(&tasks, None, 100).await;
    let rig = Rig::start_with(Config { places: 1, ..Config::default() }, &[stays.address], tasks);
    let _first = rig.submit(vec![part(&["a"], 0)]);
    let held = stays.call().await;
    let second = rig.submit(vec![part(&["b"], 0)]);
    rig.change(2, &[stays.address, other.address]).await;
    let third = rig.submit(vec![part(&["c"], rig.index_of(stays.address))]);
    held.accept();
    let call = stays.call().await;
    assert_eq!(call.spans, ["b", "c"], "both tables must share one queue");
    call.accept();
    assert_eq!(outcome(&second).await, accepted());
    assert_eq!(outcome(&third).await, accepted());
}

#[tokio::test]
async fn waiting_parts_are_handed_back_when_the_process_stops() {
    let tasks = Tasks::new();
    let mut backend = Script::start(&Tasks::new(), None, 100).await;
    let rig = Rig::start_with(Config { places: 1, ..Config::default() }, &[backend.address], tasks);
    let sent = rig.submit(vec![part(&["a"], 0)]);
    let _held = backend.call().await;
    let waiting = rig.submit(vec![part(&["b"], 0)]);
    rig.tasks.stop();
    for (join, expected) in [(&sent, true), (&waiting, false)] {
        let PartOutcome::Retry { reached, cause, .. } = outcome(join).await else { panic!("must be handed back") };
        assert_eq!((reached, cause), (expected, crate::dispatch::Cause::Stopped));
    }
    rig.tasks.wait().await;
}

/// Queues a part that carries `value` of a forwarded header.
fn push_of(bench: &mut Bench, value: &str) {
    let name = http::HeaderName::from_static("x-scope-orgid");
    let headers = [(name.clone(), http::HeaderValue::from_str(value).unwrap())].into_iter().collect();
    let metadata = crate::otlp::Metadata::of(&[name], &headers).unwrap().map(Arc::new);
    let join = Join::carrying(bench.start + Duration::from_secs(10), Arc::default(), metadata);
    bench.queue.push(Queued::from_part(part(&[value], 0), join.inbox(), bench.start));
    // The request must not be abandoned while the test runs.
    std::mem::forget(join);
}

fn drained(bench: &mut Bench) -> Vec<usize> {
    let mut sizes: Vec<usize> = std::iter::from_fn(|| bench.take(LATER)).map(|(parts, _)| parts).collect();
    sizes.sort_unstable();
    sizes
}

#[test]
fn only_parts_with_the_same_forwarded_headers_share_a_call() {
    let config = || Config { places: 48, ..Config::default() };
    let mut bench = Bench::new(config());
    for value in ["a", "b", "a", "c", "b", "a"] {
        push_of(&mut bench, value);
    }
    bench.push(part(&["none"], 0), NOW);
    bench.push(part(&["none"], 0), NOW);
    assert_eq!(drained(&mut bench), [1, 2, 2, 3]);
    // Empty lanes are reused for other values.
    (0..30).for_each(|round| push_of(&mut bench, &format!("later {round}")));
    assert_eq!(drained(&mut bench).len(), 30);
    assert_eq!(bench.queue.take_crowded(), 0);
}

#[test]
fn parts_without_a_free_lane_for_their_headers_go_alone() {
    let mut bench = Bench::new(Config { places: 48, ..Config::default() });
    for round in 0..2 {
        for value in 0..70 {
            push_of(&mut bench, &format!("{value}"));
        }
        assert_eq!(bench.queue.take_crowded(), 6, "{round}");
    }
    let mut sizes = Vec::new();
    while let Some((parts, _)) = bench.take(LATER) {
        sizes.push(parts);
        bench.queue.done(0);
    }
    sizes.sort_unstable();
    let expected: Vec<usize> = std::iter::repeat_n(1, 12).chain(std::iter::repeat_n(2, 64)).collect();
    assert_eq!(sizes, expected);
}
