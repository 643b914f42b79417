//! Tests of later attempts: which records count as possible duplicates, which parts are sent again and when, and which backends
//! the message of a late request names.

use super::*;
use crate::{
    budget::Portion,
    places::{LONG, Places},
};

#[tokio::test]
async fn each_attempt_after_one_that_may_have_arrived_counts_possible_duplicates() {
    let bench = Bench::with(1, even_pauses(HOUR)).await;
    let mut delivery = bench.delivery(3);
    let steps = [
        (owed(0, false, REFUSED), 0, "did not arrive"),
        (owed(0, true, Cause::Transport(Failure::Reset)), 0, "the first attempt that may have arrived"),
        (owed(0, false, REFUSED), 0, "a retry that did not arrive"),
        (owed(0, true, Cause::Transport(Failure::Reset)), 2, "a second attempt that may have arrived"),
        ((1, accepted()), 2, "another part"),
        ((0, accepted()), 4, "a third attempt that arrived"),
    ];
    for (outcome, expected, what) in steps {
        delivery.waiting = Waiting::default();
        delivery.take_in(vec![outcome]);
        assert_eq!(bench.duplicates(), expected, "{what}");
    }
    delivery.under_way = 0;
    assert_eq!(delivery.conclude(), Ok(Outcome::OK));
    drop(delivery);
    assert_eq!(bench.duplicates(), 4, "the client has its answer");
}

#[tokio::test]
async fn a_request_without_an_answer_counts_records_that_may_be_delivered() {
    let mut bench = Bench::with(2, even_pauses(HOUR)).await;
    let parts: Vec<_> = [&["a", "b"][..], &["c"], &["d", "e", "f", "g"]]
        .into_iter()
        .zip([0, 1, 1])
        .zip(0..)
        .map(|((names, backend), index)| Part { index, ..part(names, backend) })
        .collect();
    let view = Arc::clone(&bench.view);
    // The first part was accepted, the second is in a call, and the third waits for its next attempt.
    let (held, counted) = {
        let (mut backends, held);
        backends = std::mem::take(&mut bench.backends);
        let mut delivery = bench.delivery_of(&parts, 7);
        view.submit(parts[..2].to_vec(), &delivery.join).expect("room");
        backends[0].call().await.accept();
        held = backends[1].call().await;
        while delivery.tally.accepted == 0 {
            let arrived = delivery.join.arrived();
            delivery.take_in(arrived);
            tokio::task::yield_now().await;
        }
        let part = parts[2].clone();
        let retry = PartOutcome::Retry { owner: "x".into(), after: None, reached: false, cause: REFUSED, part };
        delivery.take_in(vec![(2, retry)]);
        drop(delivery);
        (held, bench.duplicates())
    };
    assert_eq!(counted, 2 + 1);
    drop(held);
    // A waiting part counts too if an earlier attempt may have arrived.
    let mut delivery = bench.delivery_of(&parts, 7);
    let part = parts[2].clone();
    let retry = PartOutcome::Retry { owner: "x".into(), after: None, reached: true, cause: REFUSED, part };
    delivery.take_in(vec![(2, retry)]);
    drop(delivery);
    assert_eq!(bench.duplicates(), counted + 4, "a part whose call never began must not count");
}

#[tokio::test]
async fn the_budget_share_of_a_cut_is_given_back_after_its_last_part() {
    let bench = Bench::with(1, even_pauses(HOUR)).await;
    let used = || bench.budget.used();
    let mut delivery = bench.delivery(3);
    delivery.take_in(vec![(0, accepted())]);
    assert_eq!(used(), HELD, "a part of the cut is under way");
    // The test assigns the other part to another cut.
    delivery.under_way += 1;
    delivery.take_in(vec![(1, accepted())]);
    assert_eq!(used(), 0);
}

#[tokio::test]
async fn a_failed_part_waits_for_its_own_pause_or_the_longer_one_of_its_backend() {
    let bench = Bench::with(1, even_pauses(Duration::from_secs(10))).await;
    for (after, pause) in [(None, 10), (Some(5), 10), (Some(30), 30)] {
        let mut delivery = bench.delivery(3);
        let begun = Instant::now();
        let after = after.map(Duration::from_secs);
        delivery.take_in(vec![owed_by("somebody", 0, false, REFUSED, after)]);
        let due = delivery.waiting.next_due().expect("it waits");
        let expected = begun + Duration::from_secs(pause);
        assert!((expected..=expected + Duration::from_secs(1)).contains(&due), "{:?}", due - begun);
        assert_eq!(delivery.waiting.indices(), [0]);
    }
}

#[tokio::test]
async fn only_parts_that_are_due_are_sent_again_and_a_retry_takes_a_token() {
    let mut bench = Bench::with(1, even_pauses(HOUR)).await;
    let mut backends = std::mem::take(&mut bench.backends);
    let retries = bench.rig.dispatch.retries();
    let now = Instant::now();
    let mut delivery = bench.delivery(3);
    while retries.spend(now) {}
    delivery.take_in(vec![owed(0, false, REFUSED), owed(1, false, REFUSED)]);
    delivery.waiting.set_due(0, now);
    delivery.waiting.set_due(1, now + Duration::from_millis(1));
    assert_eq!(delivery.waiting.next_due(), Some(now));
    delivery.place_due(now);
    assert_eq!((delivery.under_way, delivery.waiting.indices().len()), (0, 2), "without a token it waits again");
    delivery.waiting.set_due(0, now);
    retries.give_back();
    delivery.place_due(now);
    assert_eq!((delivery.under_way, delivery.waiting.indices()), (1, vec![1]));
    assert!(!retries.spend(now), "its token was taken");
    assert!(delivery.placed[0].took_token && !delivery.placed[1].took_token);
    assert_eq!(bench.retried.load(Ordering::Relaxed), 1);
    assert_eq!(backends[0].call().await.spans, ["a", "b"]);
    assert_eq!(bench.replaced.load(Ordering::Relaxed), 0);
    // The retry reached no backend: its token is given back, once.
    delivery.take_in(vec![owed(0, false, REFUSED)]);
    assert!(retries.spend(now) && !retries.spend(now));
    delivery.under_way += 1;
    delivery.take_in(vec![owed(0, false, REFUSED)]);
    assert!(!retries.spend(now));
}

#[tokio::test]
async fn a_retry_that_reached_its_backend_keeps_its_token() {
    let bench = Bench::with(1, even_pauses(HOUR)).await;
    let retries = bench.rig.dispatch.retries();
    let now = Instant::now();
    while retries.spend(now) {}
    for (cause, reached) in [(REFUSED, true), (Cause::Status(Code::Unavailable), false)] {
        let mut delivery = bench.delivery(3);
        delivery.placed[0].took_token = true;
        delivery.take_in(vec![owed(0, reached, cause)]);
        assert!(!retries.spend(now), "{cause:?}");
        assert!(!delivery.placed[0].took_token);
    }
}

#[tokio::test]
async fn a_retry_that_finds_the_queue_full_gives_its_token_back() {
    let mut config = even_pauses(HOUR);
    config.places = 1;
    config.keys.sending_queue.queue_size.0 = 200;
    let mut bench = Bench::with(1, config).await;
    let mut backends = std::mem::take(&mut bench.backends);
    // One call is under way, and the queue is full.
    let _first = bench.rig.submit(vec![large_part(1, 150, 0)]);
    let held = backends[0].call().await;
    let _second = bench.rig.submit(vec![large_part(1, 150, 0)]);
    let retries = bench.rig.dispatch.retries();
    let now = Instant::now();
    while retries.spend(now) {}
    retries.give_back();
    let mut delivery = bench.delivery(3);
    delivery.take_in(vec![owed(0, false, REFUSED)]);
    delivery.waiting.set_due(0, now);
    delivery.place_due(now);
    assert_eq!((delivery.under_way, delivery.waiting.indices()), (1, vec![0]));
    assert!(matches!(&delivery.tally.last_failure, Some((_, Cause::Full))));
    assert_eq!((delivery.waiting.take_if(|_| true)[0].cause, delivery.defect), (Cause::Full, None));
    assert!(retries.spend(now), "the token was given back");
    drop(held);
}

#[tokio::test]
async fn a_part_has_moved_when_a_newer_table_assigns_its_slots_to_others() {
    let mut bench = Bench::with(2, even_pauses(HOUR)).await;
    let [there, away] = [1, 0].map(|at| bench.backends[at].address.to_string());
    let has_moved = |bench: &Bench, owner: &str, cause| {
        let mut delivery = bench.delivery(3);
        delivery.placed[0].generation = 1;
        let part = Bench::parts().swap_remove(0);
        delivery.has_moved(&Failed { part, owner: owner.into(), cause }, &bench.view)
    };
    for cause in [REFUSED, Cause::Ejected] {
        assert!(!has_moved(&bench, "somebody", cause), "no newer table");
    }
    bench.publish(2, &[0]).await;
    assert!(has_moved(&bench, &away, REFUSED));
    assert!(!has_moved(&bench, &there, REFUSED), "its owner still has its slots");
    assert!(has_moved(&bench, "gone", REFUSED));
    for cause in [Cause::Ejected, Cause::Departed] {
        assert!(has_moved(&bench, &there, cause), "{cause:?}");
    }
}

#[tokio::test]
async fn a_moved_part_is_cut_again_and_its_parts_have_indices_of_their_own() {
    let mut bench = Bench::with(2, even_pauses(HOUR)).await;
    let mut backends = std::mem::take(&mut bench.backends);
    let mut delivery = bench.delivery(3);
    delivery.take_in(vec![(1, accepted())]);
    bench.rig.publish(2, &[backends[0].address, backends[1].address], &[backends[0].address]).await;
    delivery.take_in(vec![owed_by(&backends[0].address.to_string(), 0, false, Cause::Ejected, None)]);
    assert!(delivery.waiting.is_empty(), "it is placed at once");
    assert_eq!(bench.replaced.load(Ordering::Relaxed), 1);
    assert_eq!(bench.retried.load(Ordering::Relaxed), 0);
    assert_eq!((delivery.under_way, delivery.placed.len()), (1, 3));
    let [before, other, again] = &delivery.placed[..] else { panic!("three") };
    assert!(!before.open && !other.open && again.open);
    assert_eq!((again.records, again.generation, again.backend, again.cut), (2, 2, 1, 1));
    assert_eq!(delivery.tables.len(), 2);
    assert_eq!(delivery.owner_of(before), backends[0].address.to_string().into());
    assert_eq!(delivery.owner_of(again), backends[1].address.to_string().into());
    assert_eq!(delivery.owner_of(&Placed { generation: 3, ..*again }), "?".into());
    let call = backends[1].call().await;
    assert_eq!(call.spans, ["a", "b"]);
    call.accept();
    let results = patient(delivery.join.next()).await;
    delivery.take_in(results);
    assert_eq!(delivery.conclude(), Ok(Outcome::OK));
    drop(delivery);
    assert_eq!(bench.budget.used(), 0);
}

#[tokio::test]
async fn a_part_that_its_owner_reset_and_that_goes_to_another_backend_is_marked() {
    let reset = Cause::Transport(Failure::Reset);
    for (causes, expected) in [
        ([reset, reset], true),
        ([reset, Cause::Ejected], true),
        ([REFUSED, Cause::Ejected], false),
        ([Cause::Transport(Failure::Ping), Cause::Ejected], false),
    ] {
        let mut bench = Bench::with(2, even_pauses(HOUR)).await;
        let mut backends = std::mem::take(&mut bench.backends);
        let [first, second] = [0, 1].map(|at| backends[at].address);
        let mut delivery = bench.delivery(3);
        delivery.take_in(vec![(1, accepted()), owed_by(&first.to_string(), 0, true, causes[0], None)]);
        // The same part goes out again, and has to be placed elsewhere then.
        drop(delivery.waiting.take_if(|_| true));
        delivery.under_way += 1;
        bench.rig.publish(2, &[first, second], &[first]).await;
        delivery.take_in(vec![owed_by(&first.to_string(), 0, true, causes[1], None)]);
        backends[1].call().await.refuse(tonic::Status::unavailable("later"));
        let results = patient(delivery.join.next()).await;
        let [(_, PartOutcome::Retry { part, .. })] = &results[..] else { panic!("{results:?}") };
        assert_eq!(part.reset_elsewhere, expected, "{causes:?}");
        // It stays marked when it is cut again, wherever it goes.
        bench.rig.publish(3, &[first, second], &[first]).await;
        let part = part.clone();
        let (view, cause) = (bench.rig.dispatch.view().expect("there is a table"), Cause::Departed);
        assert!(delivery.place(Failed { part, owner: second.to_string().into(), cause }, &view));
        backends[1].call().await.refuse(tonic::Status::unavailable("later"));
        let results = patient(delivery.join.next()).await;
        let [(_, PartOutcome::Retry { part, .. })] = &results[..] else { panic!("{results:?}") };
        assert_eq!(part.reset_elsewhere, expected, "{causes:?}");
    }
}

#[tokio::test]
async fn waiting_parts_are_placed_when_a_table_moves_them() {
    let mut bench = Bench::with(2, even_pauses(HOUR)).await;
    let mut backends = std::mem::take(&mut bench.backends);
    let [first, second] = [0, 1].map(|at| backends[at].address);
    let mut delivery = bench.delivery(3);
    delivery.take_in(vec![
        owed_by(&first.to_string(), 0, false, REFUSED, None),
        owed_by(&second.to_string(), 1, false, REFUSED, None),
    ]);
    assert_eq!(delivery.waiting.indices(), [0, 1]);
    delivery.place_moved();
    assert_eq!(delivery.waiting.indices(), [0, 1], "no table has moved anything");
    bench.rig.publish(2, &[first, second], &[first]).await;
    patient(changed(&mut delivery.changes)).await;
    delivery.place_moved();
    assert_eq!(delivery.waiting.indices(), [1], "the owner of the other part still has its slots");
    assert_eq!(backends[1].call().await.spans, ["a", "b"]);
    let failed = delivery.waiting.take_if(|_| true).remove(0);
    assert!(delivery.place(failed, &bench.rig.dispatch.view().expect("there is a table")));
    let generations: Vec<_> = delivery.tables.iter().map(|table| table.generation).collect();
    assert_eq!(generations, [1, 2], "each table is kept once");
}

#[tokio::test]
async fn without_room_for_its_copy_a_moved_part_waits() {
    let mut bench = Bench::with(1, even_pauses(HOUR)).await;
    bench.publish(2, &[]).await;
    let mut delivery = bench.delivery(3);
    bench.set_limit(HELD + 10);
    delivery.placed.iter_mut().for_each(|placed| placed.generation = 1);
    let failed = Failed { part: Bench::parts().swap_remove(0), owner: "somebody".into(), cause: Cause::Ejected };
    assert!(!delivery.place(failed, &bench.view));
    assert_eq!((delivery.waiting.indices(), delivery.defect), (vec![0], None));
    // Once there is room it is placed, without a token: it goes to another backend.
    bench.set_limit(1 << 20);
    let (now, retries) = (Instant::now(), bench.rig.dispatch.retries());
    while retries.spend(now) {}
    delivery.waiting.set_due(0, now);
    delivery.place_due(now);
    assert!(delivery.waiting.is_empty());
    assert_eq!(bench.replaced.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_part_that_moves_to_two_backends_is_cut_once_there_is_room_and_refused_if_there_can_be_none() {
    let mut bench = Bench::with(2, even_pauses(HOUR)).await;
    bench.publish(2, &[]).await;
    let message = many_traces(100, 10);
    let len = message.framed_len();
    let whole = Part { message, records: 100, ..part(&[], 0) };
    for (limit, is_refused) in [(2 * len + HELD / 2, false), (len + HELD + 10, true)] {
        bench.set_limit(1 << 20);
        let mut delivery = bench.delivery_of(std::slice::from_ref(&whole), 100);
        delivery.placed[0].generation = 1;
        bench.set_limit(limit);
        delivery.under_way = 0;
        let failed = Failed { part: whole.clone(), owner: "somebody".into(), cause: Cause::Ejected };
        assert!(!delivery.place(failed, &bench.view));
        assert_eq!((delivery.waiting.is_empty(), delivery.defect), (is_refused, None));
        let refusal = delivery.conclude().expect_err("nothing was accepted");
        assert_eq!(refusal.reason, if is_refused { Reason::Backend } else { Reason::Deadline });
    }
    bench.set_limit(1 << 20);
    let mut delivery = bench.delivery_of(std::slice::from_ref(&whole), 100);
    delivery.placed[0].generation = 1;
    assert!(delivery.place(Failed { part: whole, owner: "somebody".into(), cause: Cause::Ejected }, &bench.view));
    let [_, first, second] = &delivery.placed[..] else { panic!("two more") };
    assert!(first.records > 0 && second.records > 0 && first.records + second.records == 100);
    assert_eq!((first.backend + second.backend, delivery.tables.len()), (1, 1));
}

#[tokio::test]
async fn the_share_of_a_part_that_was_cut_in_two_is_held_until_both_are_done() {
    let mut bench = Bench::with(2, even_pauses(HOUR)).await;
    bench.publish(2, &[]).await;
    let whole = Part { message: many_traces(100, 10), records: 100, ..part(&[], 0) };
    let mut delivery = bench.delivery_of(std::slice::from_ref(&whole), 100);
    delivery.placed[0].generation = 1;
    delivery.under_way = 0;
    assert!(delivery.place(Failed { part: whole, owner: "somebody".into(), cause: Cause::Ejected }, &bench.view));
    let held = bench.budget.used();
    assert!(held > 0 && delivery.under_way == 2);
    delivery.take_in(vec![(1, accepted())]);
    assert_eq!(bench.budget.used(), held, "the other one is under way");
    delivery.under_way += 1;
    delivery.take_in(vec![(2, accepted())]);
    assert_eq!(bench.budget.used(), 0);
}

#[tokio::test]
async fn only_a_part_longer_than_what_is_long_waits_for_a_place() {
    let mut bench = Bench::with(1, even_pauses(HOUR)).await;
    bench.publish(2, &[]).await;
    bench.pipeline.places = Places::new(1);
    let _taken = bench.pipeline.places.take_now().expect("a free place");
    let len_of = |size: usize| large_part(1, size, 0).message.payload_len();
    let size = (LONG - 99..LONG).find(|size| len_of(*size) == LONG).expect("a part of this length");
    for (size, is_placed) in [(size, true), (size + 1, false)] {
        let long = large_part(1, size, 0);
        let mut delivery = bench.delivery_of(std::slice::from_ref(&long), 1);
        delivery.placed[0].generation = 1;
        let failed = Failed { part: long, owner: "somebody".into(), cause: Cause::Ejected };
        assert_eq!(delivery.place(failed, &bench.view), is_placed, "{} bytes", len_of(size));
    }
}

#[tokio::test]
async fn only_spans_stay_at_a_backend_that_a_hand_off_may_have_sent_them_to() {
    let bench = Bench::new().await;
    let delivery = bench.delivery(3);
    let stays_at = |signal: Signal| {
        let part = Part { signal, ..Bench::parts().swap_remove(0) };
        let owner = bench.backends[0].address.to_string().into();
        delivery.stays_at(&Failed { part, owner, cause: Cause::Full }, &bench.view)
    };
    assert_eq!([Signal::Traces, Signal::Logs].map(stays_at), [Some(0), None]);
}

#[tokio::test]
async fn a_late_request_names_three_backends_and_counts_the_others() {
    let mut bench = Bench::with(6, even_pauses(HOUR)).await;
    let names: Vec<_> = bench.backends.iter().map(|script| script.address.to_string()).collect();
    bench.backends.clear();
    let parts: Vec<_> = (0..6).map(|at| Part { index: at, ..part(&["x"], at) }).collect();
    let mut delivery = bench.delivery_of(&parts, 6);
    let said = |delivery: &Delivery<'_>| delivery.missing_answers();
    assert_eq!(said(&delivery), format!("no answer yet from backend {} and 3 more", names[..3].join(", ")));
    let retry = |at: usize, owner: &str| {
        let part = parts[at].clone();
        (part.index, PartOutcome::Retry { owner: owner.into(), after: None, reached: false, cause: REFUSED, part })
    };
    delivery.take_in(vec![(0, accepted()), (1, accepted())]);
    assert_eq!(said(&delivery), format!("no answer yet from backend {} and 1 more", names[2..5].join(", ")));
    delivery.take_in(vec![retry(2, &names[2])]);
    let failure = format!("backend {}: connection refused", names[2]);
    assert_eq!(said(&delivery), format!("no answer yet from backend {}; {failure}", names[3..].join(", ")));
    // The backend that failed last is not named twice.
    delivery.take_in(vec![(3, accepted()), retry(4, &names[5])]);
    assert_eq!(said(&delivery), format!("backend {}: connection refused", names[5]));
}

#[tokio::test]
async fn a_late_request_names_each_backend_once_and_in_the_same_order() {
    let bench = Bench::with(2, even_pauses(HOUR)).await;
    let names: Vec<_> = bench.backends.iter().map(|script| script.address.to_string()).collect();
    let parts: Vec<_> = (0..).zip([1, 0, 1]).map(|(index, at)| Part { index, ..part(&["x"], at) }).collect();
    let delivery = bench.delivery_of(&parts, 3);
    assert_eq!(delivery.missing_answers(), format!("no answer yet from backend {}", names.join(", ")));
}

#[tokio::test]
async fn a_change_is_noticed_only_with_a_subscription() {
    let bench = Bench::new().await;
    let never = tokio::time::timeout(Duration::from_millis(20), changed(&mut None)).await;
    assert!(never.is_err());
    let (sender, receiver) = watch::channel(1);
    let mut changes = Some(receiver);
    sender.send_replace(2);
    patient(changed(&mut changes)).await;
    drop(sender);
    let never = tokio::time::timeout(Duration::from_millis(20), changed(&mut changes)).await;
    assert!(never.is_err(), "there is no sender any more");
    drop(bench);
}

#[tokio::test]
async fn a_large_part_that_moves_is_cut_in_a_place_and_counts_in_the_portion_of_its_connection() {
    let mut bench = Bench::with(2, even_pauses(HOUR)).await;
    bench.pipeline.places = Places::new(1);
    bench.set_limit(4 << 20);
    let mut backends = std::mem::take(&mut bench.backends);
    let parts = [Part { index: 0, ..large_part(30, 10_000, 0) }, Part { index: 1, ..part(&["small"], 0) }];
    assert!(parts[0].message.payload_len() > LONG);
    let portion = Portion::of(&bench.budget);
    let mut held = portion.permit();
    assert!(held.grow((4 << 20) / 4));
    let mut join = Join::new(Instant::now() + Duration::from_secs(60), Arc::default());
    join.add_cut(2, held);
    let mut delivery = Delivery::new(&bench.pipeline, &bench.route, join, &parts, &bench.view, Tally::new(31, 0));
    bench.rig.publish(2, &[backends[0].address, backends[1].address], &[backends[0].address]).await;
    let place = bench.pipeline.places.take_now().expect("a free place");
    let moves = |part: &Part| {
        let owner = backends[0].address.to_string().into();
        let retry =
            PartOutcome::Retry { owner, after: None, reached: false, cause: Cause::Ejected, part: part.clone() };
        (part.index, retry)
    };
    let moved = parts.iter().map(moves).collect();
    delivery.take_in(moved);
    assert_eq!((delivery.under_way, delivery.waiting.indices()), (1, vec![0]), "a small part needs no place");
    drop(place);
    delivery.place_moved();
    assert_eq!((delivery.under_way, delivery.waiting.indices()), (2, vec![]));
    // What they were cut from is given back, and the copies count in the portion of the connection.
    let copies: usize = parts.iter().map(|part| part.message.framed_len()).sum();
    assert!((copies..copies + 10_000).contains(&bench.budget.used()), "{} for {copies}", bench.budget.used());
    assert!(portion.permit().grow((1 << 20) - copies - 10_000));
    assert!(!portion.permit().grow(1 << 20));
    let mut spans = 0;
    while spans < 31 {
        let call = backends[1].call().await;
        spans += call.spans.len();
        call.accept();
    }
    drop(delivery);
    wait_until(|| bench.budget.used() == 0).await;
    assert!(portion.permit().grow(1));
}
