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

/// Returns about how much memory a table takes, without the tables that it replaced: see [`of_kept`].
pub fn of_table(table: &Table) -> usize {
    let members = table.targets().iter().map(|it| PER_MEMBER + it.identity.len());
    let probe = if table.base().algorithm().is_of_exporter() { 0 } else { PER_PROBE };
    table.slots() as usize * (PER_SLOT_IN_TABLE + probe) + members.sum::<usize>()
}

/// Returns about how much memory the tables take that a table replaced and still needs.
pub fn of_kept(table: &Table) -> usize {
    table.history().memory()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        endpoint::Endpoints,
        settings::{Handoff, HandoffMode},
    };

    fn endpoints(weights: &[(&str, u32)]) -> Endpoints {
        weights.iter().map(|(name, weight)| Endpoint { weight: *weight, ..Endpoint::new(*name, None) }).collect()
    }

    #[test]
    fn a_build_takes_memory_for_all_points_up_to_128_backends_and_no_more_beyond() {
        let of = |weights: &[(&str, u32)]| of_build(Algorithm::SlotsV1, &endpoints(weights));
        let for_slots = 16 * 131_072;
        assert_eq!(of(&[("a", 1), ("b", 2)]), 3 * 4096 * 52 + for_slots);
        assert_eq!(of(&[("a", 100), ("b", 28)]), 128 * 4096 * 52 + for_slots);
        assert_eq!(of(&[("a", 100), ("b", 29)]), (20 << 20) + for_slots);
        let of_exporter = of_build(Algorithm::OtelcolV3, &endpoints(&[("a", 1), ("b", 1), ("c", 1)]));
        assert_eq!(of_exporter, 3 * 200 * 12 + 131_071 * 6);
    }

    #[test]
    fn a_table_takes_memory_for_its_slots_its_targets_and_the_tables_before_it() {
        let table = |algorithm, names: &[(&str, u32)]| Table::of(1, algorithm, &endpoints(names)).unwrap();
        let names = [("a", 1), ("bcd", 1)];
        assert_eq!(of_table(&table(Algorithm::SlotsV1, &names)), 131_072 * 5 + 2 * 128 + 1 + 3);
        assert_eq!(of_table(&table(Algorithm::OtelcolV3, &names)), 131_071 * 4 + 2 * 128 + 1 + 3);
        let handoff = Handoff { mode: HandoffMode::Dual, ..Handoff::default() };
        let after = table(Algorithm::SlotsV1, &names[..1]);
        let after = after.replacing(&table(Algorithm::SlotsV1, &names), 1, handoff, &BTreeSet::new());
        assert_eq!(of_table(&after), 131_072 * 5 + 2 * 128 + 1 + 3, "the backend that left is a target");
        assert_eq!(of_kept(&after), 131_072 * 2);
    }
}
