//! The base: a membership and who owns each slot because of it, as long as everybody is there.

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
    /// By slot, the index of its owner in `members`. Tables without an overlay share it.
    owners: Arc<[u16]>,
    probes: Probes,
    fingerprint: u64,
}

impl Base {
    /// Places all slots on `members`, in whatever order they come, by the default algorithm.
    ///
    /// Takes tens of milliseconds with hundreds of backends: for a blocking thread.
    pub fn build(members: &[Member]) -> Result<Self, RingError> {
        Self::build_with(Algorithm::default(), members)
    }

    /// [`Base::build`] by a given algorithm.
    pub fn build_with(algorithm: Algorithm, members: &[Member]) -> Result<Self, RingError> {
        let mut members = members.to_vec();
        members.sort_unstable();
        members.dedup();
        check(&members)?;
        let Placement { owners, probes } = match algorithm {
            Algorithm::SlotsV1 => slots_v1::place(&members),
        };
        let fingerprint = fingerprint::of_membership(algorithm, &members);
        Ok(Self { algorithm, members: members.into(), owners, probes, fingerprint })
    }

    /// How slots are placed.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The membership, sorted by identity. Owners are indexes into it.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// By slot, the index of its owner in [`Base::members`].
    pub fn owners(&self) -> &[u16] {
        &self.owners
    }

    /// 48 bits over algorithm and membership.
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

/// Refuses what has no placement. `members` are sorted.
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
    let total = members.iter().map(|member| u64::from(member.weight)).sum();
    if total > slots_v1::MAX_TOTAL_WEIGHT {
        return Err(RingError::TooHeavy { total, most: slots_v1::MAX_TOTAL_WEIGHT });
    }
    Ok(())
}
