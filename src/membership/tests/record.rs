//! Tests of the record: the state of each backend, since when and why it has it, and the latest changes.

use super::*;
use crate::access::Access;
use crate::membership::record::{KEPT_CHANGES, NAMED, Names, Record};
use crate::wall_clock::Moment;

/// A state and its record, updated together as the task does it.
struct Book {
    rig: Rig,
    record: Record,
}

impl Book {
    fn with(hosts: &[&str]) -> Self {
        let mut book = Self { rig: Rig::new(Config::default()), record: Record::new() };
        book.apply(Input::Discovered(endpoints(hosts, 1)));
        book
    }

    fn apply(&mut self, input: Input) {
        if let Input::Seen(event) = &input {
            self.record.note_failure(event);
        }
        self.rig.notes.clear();
        let may_be_others = matches!(input, Input::Configured(_) | Input::Discovered(_));
        let change = self.rig.step(input);
        if may_be_others {
            self.record.update(&self.rig.state);
        } else {
            self.record.update_changed(&self.rig.state, &self.rig.notes);
        }
        self.record.note_ejections(&self.rig.notes);
        let shown = self.record.standings();
        let shown = shown.iter().map(|(identity, standing)| (identity, standing.state));
        assert!(shown.eq(self.rig.state.states()), "what the notes are not about has not changed");
        if let Some(change) = change {
            self.record.note_change(&change, Duration::from_millis(3));
        }
    }

    fn state(&self, host: &str) -> BackendState {
        self.record.standings()[host].state
    }
}

fn refused(host: &str) -> Input {
    Input::Seen(HealthEvent { identity: host.into(), kind: HealthKind::Refused })
}

#[test]
fn standing_has_the_time_and_the_reason_of_the_state() {
    let mut book = Book::with(&["a", "b", "c"]);
    let before = book.record.standings();
    assert_eq!((book.state("b"), before["b"].last_failure), (BackendState::Active, None));
    book.apply(refused("b"));
    let after = book.record.standings();
    assert_eq!((after["b"].state, after["b"].ejected_for), (BackendState::Ejected, Some("refused")));
    assert!(after["b"].since >= before["b"].since, "the state is newer");
    assert_eq!(after["b"].last_failure.map(|(kind, _)| kind), Some("refused"));
    assert_eq!(after["a"].since, before["a"].since, "nothing happened to it");
    book.apply(Input::Seen(HealthEvent { identity: "b".into(), kind: HealthKind::Answered }));
    assert_eq!(book.record.standings()["b"].last_failure, after["b"].last_failure, "an answer is no failure");
    let state_of = |host: &str| book.record.standing(host).map(|standing| standing.state);
    assert_eq!(["a", "b", "x"].map(state_of), [Some(BackendState::Active), Some(BackendState::Ejected), None]);
}

#[test]
fn record_tells_whether_more_backends_fail_than_may_be_ejected() {
    let mut book = Book::with(&["a", "b", "c"]);
    let mut panics = vec![book.record.is_panicking()];
    for host in ["a", "b"] {
        book.apply(refused(host));
        panics.push(book.record.is_panicking());
    }
    assert_eq!(panics, [false, false, true]);
}

#[test]
fn change_that_moves_slots_tells_until_when_its_window_is_open() {
    let mut book = Book::with(&["a", "b"]);
    let until = |book: &Book| book.record.last_change().expect("a change").handoff_until;
    assert_eq!(until(&book), None, "nothing was placed before");
    book.apply(Input::Discovered(endpoints(&["a", "b", "c"], 1)));
    let now = std::time::UNIX_EPOCH + Duration::from_nanos(Moment::now().unix);
    let left = until(&book).expect("slots have moved").duration_since(now).expect("it is not over");
    assert!((15..=45).contains(&left.as_secs()), "{left:?}");
    book.apply(Input::Discovered(endpoints(&["a", "b", "c"], 2)));
    assert_eq!(until(&book), None, "only addresses are others");
}

#[test]
fn absent_backend_is_held_for_the_hold_down_and_then_forgotten() {
    let mut book = Book::with(&["a", "b", "c"]);
    book.apply(Input::Discovered(endpoints(&["a", "c"], 1)));
    let standing = book.record.standings()["b"].clone();
    assert_eq!(
        (standing.state, standing.held_until),
        (BackendState::Draining, Some(standing.since + Config::default().hold_down))
    );
    book.rig.now += Config::default().hold_down;
    book.apply(Input::Timer);
    assert!(!book.record.standings().contains_key("b"));
    let last = book.record.last_change().expect("a change");
    assert_eq!((last.cause.as_str(), &*last.removed.named), ("departure", &["b".into()][..]));
}

#[test]
fn changes_list_the_backends_they_are_about() {
    let mut book = Book::with(&["a", "b", "c"]);
    book.apply(refused("b"));
    let changes = book.record.changes();
    let [first, second] = &changes[..] else { panic!("two changes: {changes:?}") };
    assert_eq!((first.generation, first.membership.0, first.added.count), (1, None, 3));
    assert_eq!((second.generation, second.cause.as_str()), (2, "ejection"));
    assert_eq!((&*second.ejected.named, second.added.count), (&["b".into()][..], 0));
    assert_eq!(second.membership, (Some(first.membership.1), first.membership.1), "the membership must be the same");
    assert!(second.placement.0 == Some(first.placement.1) && second.placement.1 != first.placement.1);
    assert!((0.2..0.5).contains(&second.moved), "{}", second.moved);
    book.apply(Input::Discovered(endpoints(&["a", "b", "c", "d"], 1)));
    let joined = book.record.last_change().expect("a change");
    assert_eq!((joined.added.count, joined.ejected.count, joined.returned.count), (1, 0, 0), "`b` was and is away");
    let address = ([127, 0, 0, 1], 1).into();
    book.apply(Input::Probed {
        probe: Probe { identity: "b".into(), address, access: Access::default() },
        answered: true,
    });
    let third = book.record.last_change().expect("a change");
    assert_eq!((third.cause.as_str(), &*third.returned.named), ("return", &["b".into()][..]));
}

#[test]
fn numbers_of_changes_and_names_are_bounded() {
    let mut book = Book::with(&["a", "b"]);
    for n in 0..KEPT_CHANGES {
        book.apply(Input::Discovered(endpoints(if n % 2 == 0 { &["a", "b", "c"] } else { &["a", "b"] }, 1)));
        book.rig.now += Config::default().hold_down;
        book.apply(Input::Timer);
    }
    let changes = book.record.changes();
    assert_eq!(changes.len(), KEPT_CHANGES);
    assert!(changes[0].generation > 1, "the oldest is forgotten");
    let many: Vec<String> = (0..NAMED + 5).map(|n| format!("host-{n:04}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let added: &Names = &Book::with(&many).record.last_change().expect("a change").added.clone();
    assert_eq!((added.named.len(), added.count), (NAMED, NAMED + 5));
}
