//! The placement of a table that was replaced, and of several that were merged.

use std::{collections::BTreeMap, sync::Arc};

use super::MOST_TARGETS;
use crate::{
    endpoint::{Endpoint, Endpoints},
    ring::Algorithm,
};

/// In [`Layer::targets`]: the backend is gone, or takes no records now.
pub(super) const NO_TARGET: u16 = u16::MAX;

/// The greatest number of owners that a slot of merged tables has: one more than a record can have, so that records which
/// lack an owner are noticed.
const MOST_OWNERS: usize = MOST_TARGETS + 1;

/// The placement of a table that was replaced.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) algorithm: Algorithm,
    /// By slot, the index of its owner in `endpoints`.
    pub(super) owners: Arc<[u16]>,
    pub(super) endpoints: Endpoints,
    /// By index in `endpoints`, the index among the targets of the current table.
    pub(super) targets: Box<[u16]>,
    /// By index in `endpoints`, whether the backend has failed since the table was in force.
    pub(super) failed: Box<[bool]>,
}

impl Layer {
    /// Returns the target that owned a key; [`NO_TARGET`] if it takes no records.
    #[inline]
    pub(super) fn target(&self, key: &[u8]) -> u16 {
        self.owner(key).and_then(|owner| self.targets.get(owner)).copied().unwrap_or(NO_TARGET)
    }

    /// Whether the owner of a key has failed since. Others got its records meanwhile.
    pub(super) fn has_failed(&self, key: &[u8]) -> bool {
        self.owner(key).and_then(|owner| self.failed.get(owner)).copied().unwrap_or(false)
    }

    /// Notes which backends fail.
    pub(super) fn note_failed(&mut self, fails: impl Fn(&Endpoint) -> bool) {
        for (failed, endpoint) in self.failed.iter_mut().zip(self.endpoints.iter()) {
            *failed |= fails(endpoint);
        }
    }

    /// Returns the index of a key's owner in `endpoints`.
    #[inline]
    fn owner(&self, key: &[u8]) -> Option<usize> {
        self.owners.get(self.algorithm.slot_of(key) as usize).map(|owner| usize::from(*owner))
    }

    /// Returns the backends that own slots.
    pub(super) fn owning(&self) -> Vec<Endpoint> {
        let mut owns = vec![false; self.endpoints.len()];
        for owner in self.owners.iter() {
            if let Some(owns) = owns.get_mut(usize::from(*owner)) {
                *owns = true;
            }
        }
        self.endpoints.iter().zip(owns).filter(|(_, owns)| *owns).map(|(endpoint, _)| endpoint.clone()).collect()
    }
}

/// Returns layers in which each slot has the owners that it has in `layers`, the first [`MOST_OWNERS`] of them.
pub(super) fn united(layers: Vec<Layer>) -> Vec<Layer> {
    let Some(algorithm) = layers.first().map(|layer| layer.algorithm) else { return layers };
    // The address that the latest table has counts.
    let mut known: BTreeMap<Arc<str>, (u16, Endpoint, bool)> = BTreeMap::new();
    let mut numbers: Vec<Vec<u16>> = Vec::new();
    for layer in &layers {
        let number = |(endpoint, failed): (&Endpoint, &bool)| {
            let next = u16::try_from(known.len()).unwrap_or(NO_TARGET);
            let known = known.entry(Arc::clone(&endpoint.identity)).or_insert_with(|| (next, endpoint.clone(), false));
            known.2 |= failed;
            known.0
        };
        numbers.push(layer.endpoints.iter().zip(&layer.failed).map(number).collect());
    }
    let slots = layers.iter().map(|layer| layer.owners.len()).max().unwrap_or_default();
    let mut owners: [Vec<u16>; MOST_OWNERS] = std::array::from_fn(|_| Vec::with_capacity(slots));
    let mut distinct: Vec<u16> = Vec::with_capacity(layers.len());
    for slot in 0..slots {
        distinct.clear();
        for (layer, numbers) in layers.iter().zip(&numbers) {
            let owner = layer.owners.get(slot).and_then(|owner| numbers.get(usize::from(*owner)));
            distinct.extend(owner.filter(|owner| !distinct.contains(owner)));
        }
        let first = distinct.first().copied().unwrap_or(NO_TARGET);
        for (at, owners) in owners.iter_mut().enumerate() {
            owners.push(distinct.get(at).copied().unwrap_or(first));
        }
    }
    let mut listed: Vec<(u16, Endpoint, bool)> = known.into_values().collect();
    listed.sort_by_key(|(number, ..)| *number);
    let failed: Box<[bool]> = listed.iter().map(|(.., failed)| *failed).collect();
    let endpoints: Endpoints = listed.into_iter().map(|(_, endpoint, _)| endpoint).collect();
    let mut seen: Vec<Vec<u16>> = Vec::new();
    for owners in owners {
        if !seen.contains(&owners) {
            seen.push(owners);
        }
    }
    let layer = |owners: Vec<u16>| Layer {
        algorithm,
        owners: owners.into(),
        endpoints: Arc::clone(&endpoints),
        targets: Box::default(),
        failed: failed.clone(),
    };
    seen.into_iter().map(layer).collect()
}
