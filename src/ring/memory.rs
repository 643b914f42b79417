//! Estimates of the memory that placement takes, for the account of the process.

use super::{
    Algorithm, Table,
    slots_v1::{POINTS_PER_WEIGHT, SLOTS, WHOLE},
};
use crate::endpoint::Endpoint;

/// Bytes for each point of a whole ring while it is built: the point, the crate's node of it, and half a node while the
/// crate sorts.
const PER_POINT: usize = 16 + 24 + 12;

/// Bytes for the questions and their points, where the ring is not whole: as measured, with little to spare.
const QUESTIONS: usize = 20 << 20;

/// Bytes for each slot while owners are decided: probes, windows of questions, the lists of slots.
const PER_SLOT: usize = 16;

/// Bytes for each slot in a table: its owner in the base, and its owner with the overlay.
const PER_SLOT_IN_TABLE: usize = 2 + 2;

/// Bytes for each slot's probe, which only `slots_v1` keeps in a table.
const PER_PROBE: usize = 1;

/// Bytes for each member in a table beside its identity: as a member and as an endpoint.
const PER_MEMBER: usize = 128;

/// Returns about how much memory a build by `algorithm` takes until it ends, apart from the table.
pub fn of_build(algorithm: Algorithm, endpoints: &[Endpoint]) -> usize {
    if let Some(rules) = algorithm.exporter_ring() {
        return rules.memory(endpoints.len());
    }
    let points: usize = endpoints.iter().map(|it| it.weight as usize * POINTS_PER_WEIGHT as usize).sum();
    let ring = if points <= WHOLE { points * PER_POINT } else { QUESTIONS };
    ring + SLOTS as usize * PER_SLOT
}

/// Returns about how much memory a table takes.
pub fn of_table(table: &Table) -> usize {
    let members = table.targets().iter().map(|it| PER_MEMBER + it.identity.len());
    let probe = if table.base().algorithm().is_of_exporter() { 0 } else { PER_PROBE };
    table.slots() as usize * (PER_SLOT_IN_TABLE + probe) + members.sum::<usize>() + table.history().memory()
}
