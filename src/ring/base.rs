//! The base: a membership and the owner of each slot while all its backends are up.

use std::sync::Arc;

use super::{
    Algorithm, Member, RingError, fingerprint,
    slots_v1::{self, Placement, Probes},
};

/// Slots → owners, a pure function of algorithm and membership. Immutable; tables share it.
#[derive(Debug)]
pub struct Base {
    algorithm: Algorithm,
    members: Box<[Member]>,
    /// By slot, the index of its owner in `members`. Shared with tables that have no overlay.
    owners: Arc<[u16]>,
    /// Only `slots_v1` has probes.
    probes: Probes,
    fingerprint: u64,
}

impl Base {
    /// Places all slots on `members`, in any order, by the default algorithm.
    ///
    /// Takes tens of milliseconds for hundreds of backends; call it on a thread that may block.
    pub fn build(members: &[Member]) -> Result<Self, RingError> {
        Self::build_with(Algorithm::default(), members)
    }

    /// [`Base::build`] by the given algorithm.
    pub fn build_with(algorithm: Algorithm, members: &[Member]) -> Result<Self, RingError> {
        let mut members = members.to_vec();
        members.sort_unstable();
        members.dedup();
        check(&members)?;
        let Placement { owners, probes } = match algorithm.exporter_ring() {
            None => slots_v1::place(&members),
            Some(rules) => {
                check_for_exporter(algorithm, &members)?;
                let owners = rules.place(&members, |_| true).ok_or(RingError::Empty)?;
                Placement { owners, probes: Probes::default() }
            }
        };
        let fingerprint = fingerprint::of_membership(algorithm, &members);
        Ok(Self { algorithm, members: members.into(), owners, probes, fingerprint })
    }

    /// The algorithm that placed the slots.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The members, sorted by identity. Owners are indexes into this list.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// By slot, the index of its owner in [`Base::members`].
    pub fn owners(&self) -> &[u16] {
        &self.owners
    }

    /// The membership fingerprint: 48 bits over algorithm and members.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    pub(super) fn shared_owners(&self) -> Arc<[u16]> {
        Arc::clone(&self.owners)
    }

    pub(super) fn probes(&self) -> &Probes {
        &self.probes
    }
}

/// Checks that `members`, which are sorted, can be placed.
fn check(members: &[Member]) -> Result<(), RingError> {
    if members.is_empty() {
        return Err(RingError::Empty);
    }
    if let Some(member) = members.iter().find(|member| member.weight == 0) {
        return Err(RingError::Weightless { identity: Arc::clone(&member.identity) });
    }
    let mut neighbours = members.iter().zip(members.iter().skip(1));
    if let Some((member, _)) = neighbours.find(|(left, right)| left.identity == right.identity) {
        return Err(RingError::Duplicate { identity: Arc::clone(&member.identity) });
    }
    // The exporter's rings have no weights, but the same limit of points to sort.
    let total = members.iter().map(|member| u64::from(member.weight)).sum();
    if total > slots_v1::MAX_TOTAL_WEIGHT {
        return Err(RingError::TooHeavy { total, most: slots_v1::MAX_TOTAL_WEIGHT });
    }
    Ok(())
}

/// Checks that `members` can be placed on a ring of the exporter: it has no weights, and its names are unique.
fn check_for_exporter(algorithm: Algorithm, members: &[Member]) -> Result<(), RingError> {
    let algorithm = algorithm.name();
    if let Some(Member { identity, weight, .. }) = members.iter().find(|member| member.weight != 1) {
        return Err(RingError::Weighted { identity: Arc::clone(identity), weight: *weight, algorithm });
    }
    let mut by_name: Vec<&Member> = members.iter().collect();
    by_name.sort_unstable_by_key(|member| member.exporter_name());
    let mut neighbours = by_name.iter().zip(by_name.iter().skip(1));
    match neighbours.find(|(left, right)| left.exporter_name() == right.exporter_name()) {
        Some((left, right)) => Err(RingError::SameName {
            identities: [left, right].map(|member| Arc::clone(&member.identity)),
            name: left.exporter_name().into(),
            algorithm,
        }),
        None => Ok(()),
    }
}
