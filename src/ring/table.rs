//! The table: one immutable snapshot of the owners of all slots and the backends' addresses. Tables are replaced whole,
//! never changed.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use tokio::sync::watch;

use super::{
    Algorithm, Base, History, Member, Overlay, Owners, RingError, Times, fingerprint,
    history::{Before, Moves},
};
use crate::{
    endpoint::{Endpoint, Endpoints},
    settings::Handoff,
};

/// The current table, published by membership; `None` until discovery's first good answer.
pub type Tables = watch::Receiver<Option<Arc<Table>>>;

/// Base, overlay, addresses, and the tables that it replaced a short time ago.
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
    /// When its placement began, in nanoseconds by the steady clock; 0 if no other is known before it.
    began: u64,
    history: History,
    /// The backends, and behind them those that left and still take what began with them.
    targets: Endpoints,
    /// Those that take no records, as indexes of `targets`.
    lost: BTreeSet<u16>,
    /// By index of `targets`, the first one with the same address; `None` if all addresses differ. A list can have a backend
    /// twice, under two names.
    firsts: Option<Box<[u16]>>,
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
        let away = overlay.away();
        let (targets, lost) =
            (Arc::clone(&backends), if away.len() < backends.len() { away.clone() } else { BTreeSet::new() });
        let (algorithm, began, history) = (base.algorithm(), 0, History::default());
        let firsts = None;
        Self {
            owners,
            algorithm,
            generation,
            base,
            overlay,
            backends,
            placement,
            began,
            history,
            targets,
            lost,
            firsts,
        }
    }

    /// Makes this the table that replaces `before` at the time `at`, in nanoseconds by the steady clock. `lost` says
    /// which backends fail, whether they are members or not.
    #[must_use]
    pub fn replacing(mut self, before: &Self, at: u64, handoff: Handoff, lost: &BTreeSet<Arc<str>>) -> Self {
        let moved = self.moved_since(before, lost);
        self.began = if moved == Moves::None { before.began } else { at.max(before.began) };
        let previous = Before {
            began: before.began,
            algorithm: before.algorithm,
            owners: &before.owners,
            endpoints: &before.backends,
            history: &before.history,
        };
        let history = History::after(previous, at, handoff, moved);
        self.with_history(history, lost)
    }

    /// Makes the tables that this one replaced take at most `room` bytes, if that is possible: they are merged, and only one
    /// is left in the end. `lost` is as for [`Table::replacing`].
    #[must_use]
    pub fn within(mut self, room: usize, lost: &BTreeSet<Arc<str>>) -> Self {
        if self.history.memory() <= room {
            return self;
        }
        let mut history = std::mem::take(&mut self.history);
        history.shrink_to(room);
        self.with_history(history, lost)
    }

    fn with_history(mut self, history: History, lost: &BTreeSet<Arc<str>>) -> Self {
        self.history = history;
        self.add_former_targets(lost);
        let mut history = std::mem::take(&mut self.history);
        history.note_failed(|endpoint| lost.contains(&endpoint.identity));
        history.aim(|endpoint| self.target_of(endpoint).filter(|target| !self.is_away(*target)));
        self.history = history;
        self.firsts = if self.history.is_empty() { None } else { firsts_of(&self.targets) };
        self
    }

    /// Returns whether slots have other owners than in `before`, and why. `lost` says which backends fail.
    fn moved_since(&self, before: &Self, lost: &BTreeSet<Arc<str>>) -> Moves {
        let failed_before = before.lost().filter(|identity| before.position(identity).is_some());
        let fail_now = self.lost().filter(|identity| lost.contains(*identity));
        match self.moved_share(before) > 0.0 {
            false => Moves::None,
            true if self.algorithm == before.algorithm && failed_before.eq(fail_now) => Moves::ByDiscovery,
            true => Moves::Otherwise,
        }
    }

    /// Sets the mode and the window of hand-offs of a table that replaces no other.
    #[must_use]
    pub fn with_handoff(mut self, handoff: Handoff) -> Self {
        self.history = History::none(handoff);
        self
    }

    /// Adds the backends that own slots in the tables before and are no members. Backends with the same address are the
    /// same, however they are spelled. Of one that had several addresses, the last one counts.
    fn add_former_targets(&mut self, lost: &BTreeSet<Arc<str>>) {
        let mut former: Vec<Endpoint> = Vec::new();
        for endpoint in self.history.owning() {
            let is_there = |other: &Endpoint| other.is_same(&endpoint);
            if self.position(&endpoint.identity).is_none()
                && !self.backends.iter().any(is_there)
                && !former.iter().any(|other| is_there(other) || other.identity == endpoint.identity)
            {
                former.push(endpoint);
            }
        }
        former.sort_unstable();
        if !former.is_empty() {
            self.targets = self.backends.iter().cloned().chain(former).collect();
        }
        // A member that is away for another reason than a failure still takes what began with it.
        let takes = |target: &u16| usize::from(*target) < self.backends.len() && !self.lost.contains(target);
        let fails = |(_, endpoint): &(u16, &Endpoint)| lost.contains(&endpoint.identity);
        let failing = (0..).zip(self.targets.iter()).filter(fails).map(|(at, _)| at);
        self.lost = failing.filter(|target| !takes(target)).collect();
    }

    /// Returns the index of a backend in [`Table::targets`].
    fn target_of(&self, endpoint: &Endpoint) -> Option<u16> {
        self.target(&endpoint.identity).or_else(|| {
            let found = self.targets.iter().position(|target| target.is_same(endpoint))?;
            u16::try_from(found).ok()
        })
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

    /// Returns the owners that get a record of this key, as indexes into [`Table::targets`]. `is_root` says whether it is
    /// the root span of its trace; it is asked only if that matters.
    pub fn owners(&self, key: &[u8], times: Times, is_root: impl FnOnce() -> bool) -> Owners {
        let current = u16::try_from(self.owner(key)).unwrap_or_default();
        let owners = self.history.owners(key, times, current, self.began, is_root);
        match &self.firsts {
            Some(firsts) => owners.distinct(|target| firsts.get(usize::from(target)).copied()),
            None => owners,
        }
    }

    /// Returns the previous owners of a key that still take what began with them, latest first, and when each is forgotten,
    /// in nanoseconds by the steady clock.
    pub fn previous_owners(&self, key: &[u8]) -> Vec<(&Endpoint, u64)> {
        let current = u16::try_from(self.owner(key)).unwrap_or_default();
        let previous = self.history.previous(key, current).into_iter();
        previous.filter_map(|(target, until)| Some((self.targets.get(usize::from(target))?, until))).collect()
    }

    /// By slot, the index of its owner.
    #[cfg(test)]
    pub(super) fn shared_owners(&self) -> Arc<[u16]> {
        Arc::clone(&self.owners)
    }

    /// The tables that were replaced a short time ago.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The backends, and behind them those that left the membership and still take what began with them. An index of a
    /// backend is its index here too.
    pub fn targets(&self) -> &Endpoints {
        &self.targets
    }

    /// Returns a backend's index in [`Table::targets`].
    pub fn target(&self, identity: &str) -> Option<u16> {
        let former = || {
            let former = self.targets.get(self.backends.len()..).unwrap_or_default();
            let found = former.binary_search_by(|backend| (*backend.identity).cmp(identity)).ok()?;
            u16::try_from(self.backends.len() + found).ok()
        };
        self.position(identity).or_else(former)
    }

    /// Whether a backend takes no records, as an index of [`Table::targets`]: it fails, and others have its slots if it is
    /// a member. If all members are away, none counts as away, since there is no other to take its slots.
    pub fn is_away(&self, target: u16) -> bool {
        self.lost.contains(&target)
    }

    /// The backends that take no records.
    pub fn lost(&self) -> impl Iterator<Item = &Arc<str>> {
        self.lost.iter().filter_map(|at| self.targets.get(usize::from(*at))).map(|backend| &backend.identity)
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
            .field("former", &self.targets.get(self.backends.len()..))
            .field("kept", &self.history.len())
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

/// Returns, by index, the first of the endpoints with the same address; `None` if all are different backends.
fn firsts_of(targets: &[Endpoint]) -> Option<Box<[u16]>> {
    let mut by_address = HashMap::with_capacity(targets.len());
    let first = |(at, endpoint): (u16, &Endpoint)| match endpoint.address {
        Some(address) => *by_address.entry(address).or_insert(at),
        None => at,
    };
    let firsts: Box<[u16]> = (0..).zip(targets).map(first).collect();
    (0..).zip(&firsts).any(|(at, first)| at != *first).then_some(firsts)
}
