//! The table: one immutable snapshot of the owners of all slots and the backends' addresses. Tables are replaced whole,
//! never changed.

use std::{fmt, sync::Arc};

use tokio::sync::watch;

use super::{Algorithm, Base, Member, Overlay, RingError, fingerprint};
use crate::endpoint::{Endpoint, Endpoints};

/// The current table, published by membership; `None` until discovery's first good answer.
pub type Tables = watch::Receiver<Option<Arc<Table>>>;

/// Base, overlay and addresses. (Hand-off windows will be a further part beside the overlay.)
pub struct Table {
    /// By slot, the index of its owner in `backends`, with the overlay applied. The first field, since look-ups read
    /// only this.
    owners: Arc<[u16]>,
    algorithm: Algorithm,
    /// Number of this table among those that this process published for the pool.
    pub generation: u64,
    base: Arc<Base>,
    overlay: Overlay,
    backends: Endpoints,
    placement: u64,
}

impl Table {
    /// Creates a snapshot of `base` under `overlay`, which must have been made from it. `endpoints` give the members'
    /// addresses.
    ///
    /// A member missing from `endpoints` has no address. An endpoint that is not a member is left out.
    pub fn new(generation: u64, base: Arc<Base>, overlay: Overlay, endpoints: Endpoints) -> Self {
        let owners = overlay.applied_to(&base);
        let backends = aligned(base.members(), endpoints);
        let placement = fingerprint::of_placement(base.algorithm(), base.members(), &owners);
        Self { owners, algorithm: base.algorithm(), generation, base, overlay, backends, placement }
    }

    /// Creates a table of `endpoints` without an overlay, for tools and tests.
    pub fn of(generation: u64, algorithm: Algorithm, endpoints: &Endpoints) -> Result<Self, RingError> {
        let base = Base::build_with(algorithm, &members_of(endpoints))?;
        Ok(Self::new(generation, Arc::new(base), Overlay::default(), Arc::clone(endpoints)))
    }

    /// Returns the owner of a routing key, as an index into [`Table::backends`]. Costs one hash and one index.
    #[inline]
    pub fn owner(&self, key: &[u8]) -> u32 {
        self.owner_of_slot(self.algorithm.slot_of(key))
    }

    /// Returns the owner of a slot below [`Table::slots`], as an index into [`Table::backends`].
    #[inline]
    pub fn owner_of_slot(&self, slot: u32) -> u32 {
        debug_assert!(slot < self.slots(), "slot {slot} does not exist");
        self.owners.get(slot as usize).copied().map_or(0, u32::from)
    }

    /// Returns the slot of a routing key.
    #[inline]
    pub fn slot_of(&self, key: &[u8]) -> u32 {
        self.algorithm.slot_of(key)
    }

    /// The number of slots.
    pub fn slots(&self) -> u32 {
        self.algorithm.slots()
    }

    /// The backends, sorted by identity; never empty.
    pub fn backends(&self) -> &[Endpoint] {
        &self.backends
    }

    /// The base: slots → owners by membership alone.
    pub fn base(&self) -> &Arc<Base> {
        &self.base
    }

    /// The slots that currently go to substitutes.
    pub fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// 48 bits over sorted identities, weights, algorithm and its parameters: equal in all replicas that agree on the
    /// membership.
    pub fn membership_fingerprint(&self) -> u64 {
        self.base.fingerprint()
    }

    /// 48 bits over the current owners of all slots: equal in all replicas that send every key to the same backend.
    pub fn placement_fingerprint(&self) -> u64 {
        self.placement
    }

    /// Returns each backend's share of all slots. The shares add up to 1.
    pub fn ownership(&self) -> Vec<f64> {
        self.owned_slots().into_iter().map(|count| f64::from(count) / f64::from(self.slots())).collect()
    }

    /// Returns the number of slots that each backend owns.
    pub fn owned_slots(&self) -> Vec<u32> {
        let mut counts = vec![0_u32; self.backends.len()];
        for owner in self.owners.iter() {
            if let Some(count) = counts.get_mut(usize::from(*owner)) {
                *count += 1;
            }
        }
        counts
    }

    /// Returns the share of slots whose owner, compared by identity, differs from that in `older`; 1 if the algorithms
    /// differ.
    pub fn moved_share(&self, older: &Self) -> f64 {
        if self.algorithm != older.algorithm {
            return 1.0;
        }
        let now: Vec<Option<u16>> = older.backends.iter().map(|backend| self.position(&backend.identity)).collect();
        let stayed = |(new, old): &(&u16, &u16)| now.get(usize::from(**old)).copied().flatten() == Some(**new);
        let moved = self.owners.iter().zip(older.owners.iter()).filter(|pair| !stayed(pair)).count();
        moved as f64 / f64::from(self.slots())
    }

    /// Returns a backend's index in [`Table::backends`].
    pub fn position(&self, identity: &str) -> Option<u16> {
        let found = self.backends.binary_search_by(|backend| (*backend.identity).cmp(identity)).ok()?;
        u16::try_from(found).ok()
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("generation", &self.generation)
            .field("algorithm", &self.algorithm.name())
            .field("backends", &self.backends)
            .field("away", self.overlay.away())
            .field("membership", &format_args!("{:012x}", self.membership_fingerprint()))
            .field("placement", &format_args!("{:012x}", self.placement))
            .finish_non_exhaustive()
    }
}

/// Returns what placement needs of the endpoints.
pub fn members_of(endpoints: &[Endpoint]) -> Vec<Member> {
    let member = |endpoint: &Endpoint| Member {
        identity: Arc::clone(&endpoint.identity),
        weight: endpoint.weight,
        exporter_name: endpoint.exporter_name.clone(),
    };
    endpoints.iter().map(member).collect()
}

/// Returns the endpoints in the order of `members`, which the owners' indexes refer to.
fn aligned(members: &[Member], endpoints: Endpoints) -> Endpoints {
    let same = |(member, endpoint): (&Member, &Endpoint)| {
        member.identity == endpoint.identity && member.weight == endpoint.weight
    };
    if members.len() == endpoints.len() && members.iter().zip(endpoints.iter()).all(same) {
        return endpoints;
    }
    let backend = |member: &Member| {
        let listed = endpoints.iter().find(|endpoint| endpoint.identity == member.identity);
        let identity = || Arc::clone(&member.identity);
        Endpoint { weight: member.weight, ..listed.cloned().unwrap_or_else(|| Endpoint::new(identity(), None)) }
    };
    members.iter().map(backend).collect()
}
