//! Routing: maps a record's key to the lane that the record leaves by. Pure; the split calls it for every record.

use crate::{
    ring::Table,
    settings::InvalidTraceId,
    split::{Record, Router, Target, Targets},
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

/// Routes by trace ID, using one table.
///
/// A lane is a backend's index. Records whose ID has a wrong length leave by a second lane of the same backend, because
/// a Collector refuses the whole call that contains such a record.
#[derive(Debug)]
pub struct ByTraceId<'a> {
    table: &'a Table,
    policy: InvalidTraceId,
    invalid: InvalidIds,
}

impl<'a> ByTraceId<'a> {
    /// Creates a router for one cut.
    pub fn new(table: &'a Table, policy: InvalidTraceId) -> Self {
        Self { table, policy, invalid: InvalidIds::default() }
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
                Targets::One(Lane { backend: self.table.owner(record.id), alone: true }.target())
            }
            // Hashes the record's own bytes: all empty and zero IDs have the same hash, which would put them on one
            // backend.
            InvalidTraceId::Forward => {
                Targets::One(Lane { backend: self.table.owner(record.bytes), alone: false }.target())
            }
        }
    }
}

impl Router for ByTraceId<'_> {
    #[inline]
    fn route(&mut self, record: &Record<'_>) -> Targets {
        match <[u8; TRACE_ID_LEN]>::try_from(record.id) {
            Ok(id) if id != [0; TRACE_ID_LEN] => {
                Targets::One(Lane { backend: self.table.owner(&id), alone: false }.target())
            }
            _ => self.route_invalid(record),
        }
    }
}

/// A lane: a backend, and whether the record goes in a call of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    /// Index of the backend in the table.
    pub backend: u32,
    /// Whether records of this lane must not share a call with others.
    pub alone: bool,
}

impl Lane {
    /// Encodes this lane as a target of the split.
    pub fn target(self) -> Target {
        self.backend << 1 | u32::from(self.alone)
    }

    /// Decodes the lane of a target.
    pub fn of(target: Target) -> Self {
        Self { backend: target >> 1, alone: target & 1 == 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        endpoint::{Endpoint, Endpoints},
        ring::Algorithm,
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
            let mut router = ByTraceId::new(&table, policy);
            for number in 1..200_u128 {
                let id = number.to_be_bytes();
                let lane = Lane { backend: table.owner(&id), alone: false };
                assert_eq!(router.route(&record(&id, b"span")), Targets::One(lane.target()), "trace {number}");
            }
            assert_eq!(router.invalid(), InvalidIds::default());
            assert_eq!(router.invalid().total(), 0);
        }
    }

    #[test]
    fn forwarded_invalid_ids_are_spread_by_their_records_and_wrong_lengths_go_alone() {
        let table = table();
        for backend in 0..3 {
            let bytes = (0_u32..).map(u32::to_be_bytes).find(|key| table.owner(key) == backend).expect("a key");
            let mut router = ByTraceId::new(&table, InvalidTraceId::Forward);
            let mut lane = |id: &[u8]| match router.route(&record(id, &bytes)) {
                Targets::One(target) => Lane::of(target),
                other => panic!("{other:?}"),
            };
            let [empty, zero, wrong_lengths @ ..] = INVALID;
            let shared = Lane { backend, alone: false };
            assert_eq!([lane(empty), lane(zero), lane(zero)], [shared; 3]);
            for id in wrong_lengths {
                assert_eq!(lane(id), Lane { backend: table.owner(id), alone: true }, "{} bytes", id.len());
            }
            assert_eq!(router.invalid(), InvalidIds { empty: 1, zero: 2, wrong_length: 3 });
        }
    }

    #[test]
    fn rejected_invalid_ids_have_no_target_and_are_counted() {
        let table = table();
        let mut router = ByTraceId::new(&table, InvalidTraceId::Reject);
        for id in INVALID {
            assert_eq!(router.route(&record(id, b"span")), Targets::None, "{} bytes", id.len());
        }
        assert_eq!(router.invalid(), InvalidIds { empty: 1, zero: 1, wrong_length: 3 });
        assert_eq!(InvalidIds { empty: 1, zero: 20, wrong_length: 300 }.total(), 321);
    }

    #[test]
    fn a_lane_is_encoded_as_a_target_and_back() {
        for backend in [0, 1, 2, 5, u32::from(u16::MAX), u32::MAX >> 1] {
            let lanes = [false, true].map(|alone| Lane { backend, alone });
            let targets = lanes.map(Lane::target);
            assert_eq!(targets, [2 * backend, 2 * backend + 1]);
            assert_eq!(targets.map(Lane::of), lanes);
        }
    }
}
