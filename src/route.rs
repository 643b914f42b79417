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
