//! Tests of requests for tables: which of them can wait, which table is what one asked for, and what it takes.

use super::{
    build::{Cause, View},
    builds::Builds,
    *,
};
use crate::{
    budget::Budget,
    ring::{Algorithm, memory},
    settings::{HandoffMode, Ring},
};

const CAUSES: [Cause; 7] = [
    Cause::Discovery,
    Cause::Departure,
    Cause::Configuration,
    Cause::Ejection,
    Cause::Return,
    Cause::Panic,
    Cause::WindowEnd,
];

/// Requests a table of backends with these letters, of which some are away and some fail.
fn request(cause: Cause, hosts: &str, away: &str, lost: &str) -> Rebuild {
    let names = |letters: &str| letters.chars().map(|letter| letter.to_string()).collect::<Vec<_>>();
    let hosts = names(hosts);
    let endpoints = endpoints(&hosts.iter().map(String::as_str).collect::<Vec<_>>(), 1);
    let set = |letters: &str| names(letters).into_iter().map(Arc::from).collect();
    let view = View { endpoints, away: set(away), lost: set(lost) };
    Rebuild { cause, ring: Ring::default(), view, previous: None, room: usize::MAX }
}

fn built(request: Rebuild) -> Arc<Table> {
    request.run(Instant::now()).expect("must be placeable").table
}

/// A table of `abc`, where `b` fails.
fn without_b() -> Arc<Table> {
    built(request(Cause::Ejection, "abc", "b", "b"))
}

#[test]
fn only_changes_that_discovery_announces_can_wait() {
    let waits = CAUSES.map(|cause| request(cause, "abc", "", "").can_wait(None));
    assert_eq!(waits, [true, true, false, false, false, false, false]);
}

#[test]
fn a_set_can_wait_while_the_same_backends_fail() {
    let table = without_b();
    let waits = |hosts: &str, lost: &str| request(Cause::Discovery, hosts, lost, lost).can_wait(Some(&table));
    assert!(waits("abcd", "b"));
    assert!(!waits("abcd", ""), "`b` answers again");
    assert!(!waits("abcd", "bc"), "`c` fails as well");
    assert!(waits("abcd", "bx"), "`x` has nothing of this table");
    assert!(waits("acd", ""), "`b` is gone");
}

#[test]
fn a_request_is_of_discovery_if_that_caused_it_or_the_backends_are_others() {
    let table = without_b();
    let is = |cause: Cause, hosts: &str| request(cause, hosts, "b", "b").is_of_discovery(Some(&table));
    assert_eq!([is(Cause::Discovery, "abc"), is(Cause::Ejection, "abc")], [true, false]);
    assert!(is(Cause::Ejection, "abcd"), "a set came with the failure");
    let first = |cause: Cause| request(cause, "abc", "", "").is_of_discovery(None);
    assert_eq!([first(Cause::Discovery), first(Cause::Configuration)], [true, false]);
}

#[test]
fn a_table_is_what_was_requested_if_all_that_it_depends_on_is_the_same() {
    let table = without_b();
    let wanted = || request(Cause::Ejection, "abc", "b", "b");
    assert!(wanted().is_for(&table));
    let mut other = wanted();
    other.ring.algorithm = Algorithm::OtelcolV2;
    assert!(!other.is_for(&table));
    let mut other = wanted();
    other.ring.handoff.window += SECOND;
    assert!(!other.is_for(&table));
    let is = |hosts: &str, away: &str, lost: &str| request(Cause::Ejection, hosts, away, lost).is_for(&table);
    assert!(!is("abcd", "b", "b"), "other members");
    assert!(!is("abc", "c", "b"), "another one is away");
    assert!(!is("abc", "b", ""), "`b` is away, but does not fail any more");
    assert!(!is("abc", "b", "bc"), "`c` fails as well");
    assert!(is("abc", "b", "bx"), "`x` has nothing of this table");
}

#[test]
fn the_end_of_a_window_is_done_with_any_later_table() {
    let table = without_b();
    let end = Rebuild::forgetting(&table);
    assert_eq!((end.cause, end.view(), end.ring), (Cause::WindowEnd, &View::of(&table), Ring::default()));
    assert!(!end.is_for(&table), "that one has the window still");
    let later = built(Rebuild { previous: Some(Arc::clone(&table)), ..request(Cause::Return, "abc", "", "") });
    assert_eq!((later.generation, end.is_for(&later)), (2, true));
}

#[test]
fn the_keys_of_a_ring_are_those_of_its_table() {
    let mut ring = Ring { algorithm: Algorithm::OtelcolV3, ..Ring::default() };
    ring.handoff.mode = HandoffMode::Sticky;
    ring.handoff.window += SECOND;
    let table = built(Rebuild { ring, ..request(Cause::Discovery, "abc", "", "") });
    assert_eq!(Rebuild::ring_of(&table), ring);
}

#[test]
fn a_request_that_waited_replaces_the_table_of_then() {
    let table = without_b();
    let after = request(Cause::Discovery, "abcd", "b", "b").after(Some(&table)).expect("it has other members");
    assert_eq!(built(after).generation, 2);
    assert!(request(Cause::Ejection, "abc", "b", "b").after(Some(&table)).is_none(), "it is published");
    assert!(request(Cause::Discovery, "abc", "", "").after(None).is_some());
}

#[test]
fn a_request_takes_the_memory_of_its_build() {
    let request = request(Cause::Discovery, "abc", "", "");
    assert_eq!(request.memory(), memory::of_build(Algorithm::SlotsV1, &request.view.endpoints));
    assert!(request.memory() > 1 << 20);
}

async fn next(builds: &mut Builds, published: Option<&Arc<Table>>) -> Arc<Table> {
    builds.next(published).await.expect("must be placeable").0.table
}

#[tokio::test(start_paused = true)]
async fn a_request_for_what_is_published_is_withdrawn() {
    let mut builds = Builds::new(Builder::new(Budget::new(1 << 30)));
    assert!(!builds.has_other_members() && !builds.is_back_at(None));
    builds.want(request(Cause::Discovery, "abc", "", ""));
    assert!(builds.has_other_members());
    let table = next(&mut builds, None).await;
    builds.want(request(Cause::Ejection, "abc", "b", "b"));
    assert!(!builds.has_other_members() && !builds.is_back_at(Some(&table)));
    builds.want(request(Cause::Return, "abc", "", ""));
    assert!(builds.is_back_at(Some(&table)));
    assert!(!builds.is_back_at(Some(&table)), "nothing is requested any more");
    builds.want(request(Cause::Discovery, "abcd", "", ""));
    assert!(builds.has_other_members() && !builds.is_back_at(Some(&table)));
}

#[tokio::test(start_paused = true)]
async fn replaced_tables_may_take_a_fourth_of_the_memory_for_requests() {
    // The owners of one table take 256 KiB.
    for (limit, kept) in [(4 * (512 << 10), 2), (4 * (512 << 10) - 4, 1)] {
        let mut builds = Builds::new(Builder::new(Budget::new(limit)));
        let mut table: Option<Arc<Table>> = None;
        for hosts in ["abc", "abcd", "abc"] {
            builds.want(request(Cause::Discovery, hosts, "", ""));
            table = Some(next(&mut builds, table.as_ref()).await);
        }
        assert_eq!(table.map(|table| table.history().len()), Some(kept), "{limit} bytes");
    }
}

#[tokio::test]
async fn the_pause_after_a_build_is_nine_times_as_long() {
    let mut builds = Builds::new(Builder::new(Budget::new(1 << 30)));
    let begun = Instant::now();
    builds.want(request(Cause::Discovery, "abcdefgh", "", ""));
    let (change, took) = builds.next(None).await.expect("must be placeable");
    builds.want(request(Cause::Ejection, "abcdefgh", "b", "b"));
    next(&mut builds, Some(&change.table)).await;
    let least = took + (9 * took).clamp(Duration::from_millis(20), SECOND);
    assert!(begun.elapsed() >= least, "{:?} for a build of {took:?}", begun.elapsed());
}
