//! Routing: maps a record's key to the lane that the record leaves by. Pure; the split calls it for every record.

use crate::{
    otlp::is_root_span,
    ring::{Owners, Table, Times, history::Decision},
    settings::InvalidTraceId,
    split::{Record, Router, Target, Targets},
    wall_clock::Moment,
};

/// Length of a trace ID in bytes (W3C Trace Context, OTLP `Span.trace_id`).
const TRACE_ID_LEN: usize = 16;

/// Numbers of invalid IDs in one request, added to counters at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InvalidIds {
    /// Records without an ID.
    pub empty: u64,
    /// Records whose ID is sixteen zero bytes.
    pub zero: u64,
    /// Records whose ID has another length.
    pub wrong_length: u64,
}

impl InvalidIds {
    /// The number of records with any of these faults.
    pub fn total(self) -> u64 {
        self.empty + self.zero + self.wrong_length
    }
}

/// Numbers of records whose slot moved within a hand-off's window, added to counters at a request's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandedOff {
    /// Records that go only to the current owner.
    pub current: u64,
    /// Records that go only to previous owners.
    pub previous: u64,
    /// Records that go to the current owner and to previous ones.
    pub both: u64,
    /// Records that would have had more owners than a record can go to.
    pub left_out: u64,
    /// Copies of records for which there was no room in memory.
    pub dropped: u64,
}

/// What happens to records whose slot has moved.
#[derive(Clone, Copy, Debug, Default)]
pub enum Moved<'a> {
    /// They go to the current owner.
    #[default]
    Immediate,
    /// They go where their traces may have begun. They arrived at this time.
    ByStart(Moment),
    /// The same without copies, for which there is no room.
    WithoutCopies(Moment),
    /// They go to the current owner once more, for one that counts and is gone. The owners that have a copy from the
    /// request are known by the table that the request was cut by, and by its arrival. A record whose current owner has
    /// one gets a lane that is marked as a copy.
    Again(Copied<'a>),
}

/// The copies of a request's records.
#[derive(Clone, Copy, Debug)]
pub struct Copied<'a> {
    /// The table that the request was cut by.
    pub table: &'a Table,
    /// When it arrived.
    pub arrival: Moment,
    /// The targets in that table whose copies were sent and not given up, ascending.
    pub sent: &'a [u16],
}

/// Routes by trace ID, using one table.
///
/// A lane is a backend's index. Records whose ID has a wrong length leave by a second lane of the same backend, because
/// a Collector refuses the whole call that contains such a record.
#[derive(Debug)]
pub struct ByTraceId<'a> {
    table: &'a Table,
    policy: InvalidTraceId,
    invalid: InvalidIds,
    moved: Moved<'a>,
    handed_off: HandedOff,
}

impl<'a> ByTraceId<'a> {
    /// Creates a router for one cut.
    pub fn new(table: &'a Table, policy: InvalidTraceId, moved: Moved<'a>) -> Self {
        Self { table, policy, invalid: InvalidIds::default(), moved, handed_off: HandedOff::default() }
    }

    /// Returns how many records were handed off so far.
    pub fn handed_off(&self) -> HandedOff {
        self.handed_off
    }

    /// Returns the invalid IDs seen so far.
    pub fn invalid(&self) -> InvalidIds {
        self.invalid
    }

    #[cold]
    fn route_invalid(&mut self, record: &Record<'_>) -> Targets {
        let wrong_length = match record.id.len() {
            0 => {
                self.invalid.empty += 1;
                false
            }
            TRACE_ID_LEN => {
                self.invalid.zero += 1;
                false
            }
            _ => {
                self.invalid.wrong_length += 1;
                true
            }
        };
        match self.policy {
            InvalidTraceId::Reject => Targets::None,
            InvalidTraceId::Forward if wrong_length => {
                Targets::One(Lane { alone: true, ..Lane::of_owner(self.table.owner(record.id)) }.target())
            }
            // Hashes the record's own bytes: all empty and zero IDs have the same hash, which would put them on one
            // backend.
            InvalidTraceId::Forward => Targets::One(Lane::of_owner(self.table.owner(record.bytes)).target()),
        }
    }

    /// Returns the targets of a record while hand-offs are open or a part is placed again.
    #[cold]
    #[inline(never)]
    fn route_moved(&mut self, id: &[u8], record: &Record<'_>) -> Targets {
        match self.moved {
            Moved::Immediate => Targets::One(Lane::of_owner(self.table.owner(id)).target()),
            Moved::ByStart(arrival) => {
                let owners = owners(self.table, id, record, arrival);
                self.count(&owners);
                targets_of(&owners)
            }
            Moved::WithoutCopies(arrival) => {
                let owners = owners(self.table, id, record, arrival);
                self.count(&owners);
                let (counting, copies) = owners.split();
                self.handed_off.dropped += copies.len() as u64;
                Targets::One(Lane::of_owner(u32::from(counting)).target())
            }
            Moved::Again(copied) => {
                let owner = self.table.owner(id);
                let copy = copied.has(id, record, self.table, owner);
                Targets::One(Lane { copy, ..Lane::of_owner(owner) }.target())
            }
        }
    }

    fn count(&mut self, owners: &Owners) {
        let HandedOff { current, previous, both, left_out, .. } = &mut self.handed_off;
        match owners.decision {
            Decision::Unmoved => {}
            Decision::Current => *current += 1,
            Decision::Previous => *previous += 1,
            Decision::Both => *both += 1,
        }
        *left_out += u64::from(owners.left_out > 0);
    }
}

impl Copied<'_> {
    /// Returns whether the backend that is now the `owner` in `table` has a copy of a record.
    fn has(&self, id: &[u8], record: &Record<'_>, table: &Table, owner: u32) -> bool {
        let owners = owners(self.table, id, record, self.arrival);
        let (_, copies) = owners.split();
        let owner = table.targets().get(owner as usize);
        copies.iter().any(|copy| {
            self.sent.binary_search(copy).is_ok()
                && self
                    .table
                    .targets()
                    .get(usize::from(*copy))
                    .zip(owner)
                    .is_some_and(|(one, other)| one.is_same(other))
        })
    }
}

/// Returns the owners that get a span which arrived at this time.
fn owners(table: &Table, id: &[u8], span: &Record<'_>, arrival: Moment) -> Owners {
    table.owners(id, Times { start: span.start, arrival }, || is_root_span(span.bytes))
}

/// Returns the lanes of the owners that get a record. The first one counts; the others get copies.
fn targets_of(owners: &Owners) -> Targets {
    let (counting, copies) = owners.split();
    let mut targets = Targets::One(Lane::of_owner(u32::from(counting)).target());
    for copy in copies {
        // There are at most as many owners as targets.
        let added = targets.add(Lane { copy: true, ..Lane::of_owner(u32::from(*copy)) }.target());
        debug_assert!(added, "a record has too many targets");
    }
    targets
}

impl Router for ByTraceId<'_> {
    #[inline]
    fn route(&mut self, record: &Record<'_>) -> Targets {
        match <[u8; TRACE_ID_LEN]>::try_from(record.id) {
            Ok(id) if id != [0; TRACE_ID_LEN] => {
                if matches!(self.moved, Moved::Immediate) {
                    Targets::One(Lane::of_owner(self.table.owner(&id)).target())
                } else {
                    self.route_moved(&id, record)
                }
            }
            _ => self.route_invalid(record),
        }
    }
}

/// A lane: a backend, whether the record goes in a call of its own, and whether it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    /// Index of the backend among the table's targets.
    pub backend: u32,
    /// Whether records of this lane must not share a call with others.
    pub alone: bool,
    /// Whether the records are copies, which do not count for the acknowledgement.
    pub copy: bool,
}

impl Lane {
    /// Encodes this lane as a target of the split.
    pub fn target(self) -> Target {
        self.backend << 2 | u32::from(self.copy) << 1 | u32::from(self.alone)
    }

    /// Decodes the lane of a target.
    pub fn of(target: Target) -> Self {
        Self { backend: target >> 2, copy: target & 2 != 0, alone: target & 1 != 0 }
    }

    /// Returns the lane of records that count and may share a call.
    fn of_owner(backend: u32) -> Self {
        Self { backend, alone: false, copy: false }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        endpoint::{Endpoint, Endpoints},
        ring::Algorithm,
        settings::{Handoff, HandoffMode},
    };

    /// Trace IDs that no backend can store: an empty one, one of zeros, and three of a wrong length.
    const INVALID: [&[u8]; 5] = [b"", &[0; TRACE_ID_LEN], &[0; 8], &[7; TRACE_ID_LEN - 1], &[7; TRACE_ID_LEN + 1]];

    fn table() -> Table {
        let endpoints: Endpoints = ["a", "b", "c"].map(|identity| Endpoint::new(identity, None)).into();
        Table::of(1, Algorithm::SlotsV1, &endpoints).expect("three backends")
    }

    fn record<'a>(id: &'a [u8], bytes: &'a [u8]) -> Record<'a> {
        Record { bytes, id, start: 0 }
    }

    #[test]
    fn a_valid_id_goes_to_its_owner_in_shared_calls() {
        let table = table();
        for policy in [InvalidTraceId::Forward, InvalidTraceId::Reject] {
            let mut router = ByTraceId::new(&table, policy, Moved::Immediate);
            for number in 1..200_u128 {
                let id = number.to_be_bytes();
                let lane = Lane::of_owner(table.owner(&id));
                assert_eq!(router.route(&record(&id, b"span")), Targets::One(lane.target()), "trace {number}");
            }
            assert_eq!(router.invalid(), InvalidIds::default());
            assert_eq!(router.invalid().total(), 0);
        }
    }

    #[test]
    fn a_root_span_is_recognised_by_its_bytes() {
        let after = changed(&["abc", "abcd"]);
        let id = (1..).map(u128::to_be_bytes).find(|id| after.owner(id) == 3).expect("some keys move");
        let start = BEGIN + 20 * SECOND;
        let mut router = ByTraceId::new(&after, InvalidTraceId::Forward, Moved::ByStart(at(start + SECOND)));
        let mut targets = |bytes: &[u8]| match router.route(&Record { bytes, id: &id, start }) {
            Targets::Many(several) => several.as_slice().len(),
            Targets::One(_) => 1,
            Targets::None => 0,
        };
        assert_eq!([targets(&[0x22, 1, 7]), targets(&[])], [2, 1], "with a parent, and without one");
        assert_eq!(router.handed_off(), HandedOff { current: 1, both: 1, ..HandedOff::default() });
    }

    #[test]
    fn without_copies_a_record_goes_to_the_owner_that_counts() {
        let after = changed(&["abc", "abcd"]);
        let id = (1..).map(u128::to_be_bytes).find(|id| after.owner(id) == 3).expect("some keys move");
        let arrival = at(BEGIN + 2 * SECOND);
        let mut all = ByTraceId::new(&after, InvalidTraceId::Forward, Moved::ByStart(arrival));
        let mut one = ByTraceId::new(&after, InvalidTraceId::Forward, Moved::WithoutCopies(arrival));
        let [counting, copy] = lanes(&mut all, &id, 1)[..] else { panic!("two owners") };
        assert!(copy.copy && !counting.copy);
        assert_eq!(lanes(&mut one, &id, 1), [counting]);
        assert_eq!(one.handed_off(), HandedOff { dropped: 1, ..all.handed_off() });
    }

    #[test]
    fn forwarded_invalid_ids_are_spread_by_their_records_and_wrong_lengths_go_alone() {
        let table = table();
        for backend in 0..3 {
            let bytes = (0_u32..).map(u32::to_be_bytes).find(|key| table.owner(key) == backend).expect("a key");
            let mut router = ByTraceId::new(&table, InvalidTraceId::Forward, Moved::Immediate);
            let mut lane = |id: &[u8]| match router.route(&record(id, &bytes)) {
                Targets::One(target) => Lane::of(target),
                other => panic!("{other:?}"),
            };
            let [empty, zero, wrong_lengths @ ..] = INVALID;
            let shared = Lane::of_owner(backend);
            assert_eq!([lane(empty), lane(zero), lane(zero)], [shared; 3]);
            for id in wrong_lengths {
                assert_eq!(lane(id), Lane { alone: true, ..Lane::of_owner(table.owner(id)) }, "{} bytes", id.len());
            }
            assert_eq!(router.invalid(), InvalidIds { empty: 1, zero: 2, wrong_length: 3 });
        }
    }

    #[test]
    fn rejected_invalid_ids_have_no_target_and_are_counted() {
        let table = table();
        let mut router = ByTraceId::new(&table, InvalidTraceId::Reject, Moved::Immediate);
        for id in INVALID {
            assert_eq!(router.route(&record(id, b"span")), Targets::None, "{} bytes", id.len());
        }
        assert_eq!(router.invalid(), InvalidIds { empty: 1, zero: 1, wrong_length: 3 });
        assert_eq!(InvalidIds { empty: 1, zero: 20, wrong_length: 300 }.total(), 321);
    }

    const SECOND: u64 = 1_000_000_000;

    /// When the tests begin, in nanoseconds since the Unix epoch.
    const BEGIN: u64 = 1_800_000_000 * SECOND;

    /// A moment at which both clocks say the same.
    fn at(nanos: u64) -> Moment {
        Moment { unix: nanos, steady: nanos }
    }

    /// A table after changes at one second each: of backends with these letters, each at a port of its own.
    fn changed(memberships: &[&str]) -> Table {
        let handoff = Handoff { mode: HandoffMode::Dual, ..Handoff::default() };
        let table = |names: &&str| {
            let endpoint = |name: char| {
                let port = u16::try_from(u32::from(name)).expect("a letter");
                Endpoint::new(name.to_string(), Some(([127, 0, 0, 1], port).into()))
            };
            let endpoints: Endpoints = names.chars().map(endpoint).collect();
            Table::of(1, Algorithm::SlotsV1, &endpoints).expect("some backends")
        };
        let mut tables = memberships.iter().map(table);
        let first = tables.next().expect("a table").with_handoff(handoff);
        let after = |before: Table, (at, table): (u64, Table)| {
            table.replacing(&before, BEGIN + at * SECOND, handoff, &BTreeSet::new())
        };
        (0..).zip(tables).fold(first, after)
    }

    /// Returns the lanes of a record that starts and arrives at these times in seconds after the tests' begin.
    fn lanes(router: &mut ByTraceId<'_>, id: &[u8], start: u64) -> Vec<Lane> {
        match router.route(&Record { bytes: b"span", id, start: BEGIN + start * SECOND }) {
            Targets::None => Vec::new(),
            Targets::One(target) => vec![Lane::of(target)],
            Targets::Many(several) => several.as_slice().iter().copied().map(Lane::of).collect(),
        }
    }

    #[test]
    fn records_that_are_handed_off_are_counted_by_where_they_go() {
        let table = changed(&["abc", "bcd"]);
        let mut router = ByTraceId::new(&table, InvalidTraceId::Forward, Moved::ByStart(at(BEGIN + 100 * SECOND)));
        let id = (1_u128..)
            .map(u128::to_be_bytes)
            .find(|id| table.previous_owners(id).first().is_some_and(|(previous, _)| &*previous.identity == "a"))
            .expect("a trace of the backend that left");
        let new = Lane::of_owner(table.owner(&id));
        let old = Lane { copy: true, ..Lane::of_owner(table.target("a").expect("it is a target").into()) };
        assert_eq!(lanes(&mut router, &id, 1), [new, old], "it is late, so it goes to both");
        assert_eq!(router.handed_off(), HandedOff { both: 1, ..HandedOff::default() });
        assert_eq!(lanes(&mut router, &id, 31), [new], "its trace began after the change");
        assert_eq!(router.handed_off(), HandedOff { both: 1, current: 1, ..HandedOff::default() });
        let unmoved = (1_u128..)
            .map(u128::to_be_bytes)
            .find(|id| table.previous_owners(id).is_empty())
            .expect("a trace that did not move");
        assert_eq!(lanes(&mut router, &unmoved, 1), [Lane::of_owner(table.owner(&unmoved))]);
        assert_eq!(router.handed_off(), HandedOff { both: 1, current: 1, ..HandedOff::default() });

        let mut router = ByTraceId::new(&table, InvalidTraceId::Forward, Moved::ByStart(at(BEGIN)));
        let before = router.route(&Record { bytes: b"span", id: &id, start: BEGIN - 1 });
        assert_eq!(before, Targets::One(Lane { copy: false, ..old }.target()), "it counts there");
        assert_eq!(router.handed_off(), HandedOff { previous: 1, ..HandedOff::default() });
    }

    #[test]
    fn records_with_more_owners_than_they_can_go_to_are_counted() {
        let table = changed(&["abcdef", "bcdef", "cdef", "def", "ef", "f"]);
        let mut router = ByTraceId::new(&table, InvalidTraceId::Forward, Moved::ByStart(at(BEGIN + 9 * SECOND)));
        let with = |owners: usize| {
            let mut ids = (1_u128..).map(u128::to_be_bytes);
            ids.find(|id| table.previous_owners(id).len() + 1 == owners).expect("a trace that moved so often")
        };
        let counts = [2, 4, 5, 6].map(|owners| {
            let lanes = lanes(&mut router, &with(owners), 9);
            assert!(lanes.iter().skip(1).all(|lane| lane.copy) && lanes.first().is_some_and(|lane| !lane.copy));
            (lanes.len(), router.handed_off().left_out)
        });
        assert_eq!(counts, [(2, 0), (4, 0), (4, 1), (4, 2)], "each record once");
        assert_eq!(router.handed_off(), HandedOff { both: 4, left_out: 2, ..HandedOff::default() });
    }

    #[test]
    fn a_record_that_is_placed_again_is_a_copy_if_its_owner_has_one() {
        // The owner of all traces leaves while another backend takes its place.
        let (cut_by, now) = (changed(&["a", "b"]), changed(&["b", "c"]));
        let arrival = at(BEGIN + 9 * SECOND);
        let ids: Vec<[u8; 16]> = (1..50_u128).map(u128::to_be_bytes).collect();
        let of = |table: &Table, sent: &[u16]| -> Vec<Vec<Lane>> {
            let again = Moved::Again(Copied { table: &cut_by, arrival, sent });
            let mut router = ByTraceId::new(table, InvalidTraceId::Forward, again);
            ids.iter().map(|id| lanes(&mut router, id, 9)).collect()
        };
        let all = |lane: Lane| vec![vec![lane]; ids.len()];
        let a = cut_by.target("a").expect("it is a target");
        let only = |name: &str| changed(&[name]);
        let counts = Lane::of_owner(0);
        assert_eq!(of(&only("a"), &[a]), all(Lane { copy: true, ..counts }));
        assert_eq!(of(&only("a"), &[]), all(counts), "its copy was not sent or was given up");
        assert_eq!(of(&only("b"), &[0, a]), all(counts), "it had the part that counted, and no copy");
        assert_eq!(of(&only("c"), &[0, a]), all(counts), "it had nothing");
        assert_eq!(of(&now, &[0, a]), all(counts));
    }

    #[test]
    fn any_owner_with_a_copy_of_a_record_that_is_placed_again_has_it() {
        let cut_by = changed(&["a", "b", "c"]);
        let mut sent = ["a", "b"].map(|name| cut_by.target(name).expect("it is a target"));
        sent.sort_unstable();
        for name in ["a", "b"] {
            let again = Moved::Again(Copied { table: &cut_by, arrival: at(BEGIN + 9 * SECOND), sent: &sent });
            let table = changed(&[name]);
            let mut router = ByTraceId::new(&table, InvalidTraceId::Forward, again);
            assert_eq!(lanes(&mut router, &[7; 16], 9), [Lane { copy: true, ..Lane::of_owner(0) }], "{name}");
        }
    }

    #[test]
    fn a_lane_is_encoded_as_a_target_and_back() {
        for backend in [0, 1, 2, 5, u32::from(u16::MAX), u32::MAX >> 2] {
            let lanes = [(false, false), (true, false), (false, true), (true, true)].map(|(alone, copy)| Lane {
                backend,
                alone,
                copy,
            });
            let targets = lanes.map(Lane::target);
            assert_eq!(targets, [0, 1, 2, 3].map(|way| 4 * backend + way));
            assert_eq!(targets.map(Lane::of), lanes);
        }
    }
}
