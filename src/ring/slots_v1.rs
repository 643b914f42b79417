//! `slots_v1`: places 131,072 slots on the members. All replicas must hash the same bytes, so every hashed byte is
//! specified here.
//!
//! | value | bytes hashed by xxh3-64 with seed 0 |
//! | --- | --- |
//! | a routing key's slot | the key as it came; the top 17 bits of the hash are the slot |
//! | a point of the ring | the identity in UTF-8, then the virtual node (0 .. 4,096 × weight) as u32, little-endian |
//! | a slot's probe 0 | nothing is hashed: the probe is the middle of the slot's hashes, slot × 2⁴⁷ + 2⁴⁶ |
//! | a slot's later probes | the slot as u32, then the probe as u32, both little-endian |
//! | a backend's rank of a slot | xxh3-64 of the identity as u64, then the slot as u32, both little-endian |
//!
//! (A point and a probe hash the same bytes only if an identity has four bytes that are also a number below 131,072 in
//! little-endian. Such an identity contains a zero byte.)
//!
//! A slot first asks the backend at `get((slot, 0))` of the ring, then the one at `get((slot, 1))`, and so on. A
//! backend asked by more slots than its bound keeps those with the lowest rank and refuses the rest, which continue
//! with their next probe. This is deferred acceptance: a backend's ranking does not depend on the order of questions,
//! so neither does the outcome.
//!
//! The ring is a `HashRing` of the crate `hashring`. There are hundreds of thousands of points, so they are prepared
//! before they are added. They are hashed here, once, and each point yields its stored hash; otherwise the crate would
//! hash the identities through `std`'s `Hash`, whose bytes differ between platforms. They are also sorted here, at 16
//! bytes each, so that the crate's stable sort of its larger nodes has nothing left to do. The crate's `remove` and
//! `get_with_replicas` are not used: the first shifts the whole ring for each point, the second copies it.

use std::{
    hash::{BuildHasher, Hash, Hasher},
    sync::Arc,
};

use hashring::HashRing;
use xxhash_rust::xxh3::xxh3_64;

use super::Member;

/// The number of slots. With half as many, a change of the membership would move too many slots near 200 backends.
pub const SLOTS: u32 = 1 << SLOT_BITS;

/// Points on the ring per unit of weight. The requirement: when an ejected backend leaves the membership, at most 1 %
/// of its slots and at most 0.1 % of the other slots move again, at every size from 3 to 200. In simulations with
/// names, IPv4 and IPv6 addresses as identities, 3,072 points fail it at one size and 4,096 at none.
pub const POINTS_PER_WEIGHT: u32 = 4096;

/// The maximum sum of all weights. It leaves 64 slots per unit, so that 5 % above the fair share is still whole slots,
/// and limits the memory for the points to a few hundred MiB while the ring is built.
pub const MAX_TOTAL_WEIGHT: u64 = 2048;

const SLOT_BITS: u32 = 17;

/// Half the width of a slot in the space of hashes.
const HALF_SLOT: u64 = 1 << (u64::BITS - SLOT_BITS - 1);

/// The bound on a backend's slots, in percent of its fair share.
const BOUND_PERCENT: u64 = 105;

/// Number of probes after which a slot takes any backend with room. The limit on weights ensures that at least 3 % of
/// the room stays free, so this is practically never reached; the constant proves that the loop ends.
const MAX_PROBES: u16 = 16_384;

/// In `Probes::few`: the probe is in `many` instead.
const MANY: u8 = u8::MAX;

/// The parameters that enter the fingerprint, after the algorithm's name.
pub(super) const PARAMETERS: [u64; 4] = [SLOTS as u64, POINTS_PER_WEIGHT as u64, BOUND_PERCENT, 0];

/// The same parameters by name, for display.
pub(super) const NAMED_PARAMETERS: [(&str, u64); 3] =
    [("slots", SLOTS as u64), ("points_per_weight", POINTS_PER_WEIGHT as u64), ("bound_percent", BOUND_PERCENT)];

/// The slot of a routing key.
#[inline]
pub fn slot_of(key: &[u8]) -> u32 {
    (xxh3_64(key) >> (u64::BITS - SLOT_BITS)) as u32
}

/// Minimum capacity in bytes of buffers used while a ring is built. glibc gives allocations of this size a memory map
/// of their own, which returns to the system when it is freed (see `allocator`). Only pages that are written to use
/// memory.
const MAPPED: usize = 1 << 19;

/// Up to this many backends, the list of slots of each gets that capacity.
const MAPPED_EACH: usize = 16;

/// The owners of all slots and the probe that each slot was accepted with.
pub(super) struct Placement {
    pub(super) owners: Arc<[u16]>,
    pub(super) probes: Probes,
}

/// By slot, the probe that its owner accepted: the start of the search for a substitute.
///
/// Probes are stored as bytes where they fit, to save memory, since they are kept as long as the base.
#[derive(Debug)]
pub(super) struct Probes {
    /// The probe, or [`MANY`] if it is in `many`.
    few: Box<[u8]>,
    /// Slots whose probe is [`MANY`] or more, ascending. There are few of them.
    many: Box<[(u32, u16)]>,
}

/// The members' points on a consistent-hash ring, sorted.
pub(super) struct Ring(HashRing<Point, OneShot>);

/// A virtual node of a backend. Points with equal hashes are ordered by backend, so that placement never depends on the
/// sorting algorithm.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    hash: u64,
    backend: u16,
}

/// The key of a slot's question to the ring.
struct Probe {
    slot: u32,
    probe: u16,
}

/// Hashes bytes written in one call by xxh3-64 with seed 0; a `u64` is taken as the hash itself.
///
/// `std`'s `Hash` of strings, slices and tuples makes several calls, and writes lengths as wide as the platform's
/// words. The types here write their bytes in one call.
#[derive(Clone, Copy, Default)]
struct OneShot(u64);

/// The slots asking each backend, while owners are being decided.
struct Asking<'a> {
    by_backend: Vec<Vec<u32>>,
    rooms: &'a [usize],
    identities: Vec<u64>,
    probes: Vec<u16>,
    /// Slots that have reached [`MAX_PROBES`].
    stranded: Vec<u32>,
}

/// Places all slots on `members`, which are sorted by identity, unique and within the limit of weights.
pub(super) fn place(members: &[Member]) -> Placement {
    let ring = Ring::new(members, |_| true);
    let rooms = rooms(members);
    let mut asking = Asking::new(members, &rooms);
    let mut refused: Vec<u32> = (0..SLOTS).collect();
    while !refused.is_empty() {
        for slot in refused.drain(..) {
            asking.ask(&ring, slot);
        }
        asking.refuse(&mut refused);
    }
    // Frees the ring before memory for the result is allocated.
    drop(ring);
    asking.settled()
}

/// Returns how many slots each backend may hold: `floor(1.05 × fair share)`, but at least `ceil(fair share)`.
fn rooms(members: &[Member]) -> Vec<usize> {
    let total: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
    let room = |member: &Member| {
        let slots = u64::from(SLOTS) * u64::from(member.weight);
        let bound = slots * BOUND_PERCENT / (100 * total);
        usize::try_from(bound.max(slots.div_ceil(total))).unwrap_or(usize::MAX)
    };
    members.iter().map(room).collect()
}

// === impl Ring ===

impl Ring {
    /// Builds a ring of the `members` whose index `includes` accepts. Points carry the index among all members.
    pub(super) fn new(members: &[Member], includes: impl Fn(u16) -> bool) -> Self {
        let admitted = || (0_u16..).zip(members).filter(|(backend, _)| includes(*backend));
        let count: u32 = admitted().map(|(_, member)| POINTS_PER_WEIGHT * member.weight).sum();
        let mut points = Vec::with_capacity((count as usize).max(MAPPED / size_of::<Point>()));
        let mut bytes = Vec::new();
        for (backend, member) in admitted() {
            let identity = member.identity.as_bytes();
            bytes.clear();
            bytes.extend_from_slice(identity);
            for node in 0..POINTS_PER_WEIGHT * member.weight {
                bytes.truncate(identity.len());
                bytes.extend_from_slice(&node.to_le_bytes());
                points.push(Point { hash: xxh3_64(&bytes), backend });
            }
        }
        points.sort_unstable();
        let mut ring = HashRing::with_hasher(OneShot::default());
        ring.batch_add(points);
        Self(ring)
    }

    /// Returns the backend that `slot` asks with `probe`; `None` on an empty ring.
    pub(super) fn get(&self, slot: u32, probe: u16) -> Option<u16> {
        self.0.get(&Probe { slot, probe }).map(|point| point.backend)
    }
}

// === impl Point, Probe ===

impl Hash for Point {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Hash for Probe {
    fn hash<H: Hasher>(&self, state: &mut H) {
        if self.probe == 0 {
            // First probes are evenly spaced. If they were hashed, their scatter would add to that of the points: more
            // backends would be overfull, and a departure would move more slots, twice as many of them a second time.
            state.write_u64(u64::from(self.slot) << (u64::BITS - SLOT_BITS) | HALF_SLOT);
        } else {
            let pair = u64::from(self.slot) | u64::from(self.probe) << 32;
            state.write(&pair.to_le_bytes());
        }
    }
}

// === impl OneShot ===

impl Hasher for OneShot {
    fn write(&mut self, bytes: &[u8]) {
        debug_assert_eq!(self.0, 0, "bytes must be written once");
        self.0 = xxh3_64(bytes);
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl BuildHasher for OneShot {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        Self(0)
    }
}

// === impl Probes ===

impl Probes {
    pub(super) fn new(probes: &[u16]) -> Self {
        let few = probes.iter().map(|probe| u8::try_from(*probe).unwrap_or(MANY)).collect();
        let many = (0..).zip(probes.iter().copied()).filter(|(_, probe)| *probe >= u16::from(MANY)).collect();
        Self { few, many }
    }

    /// Returns the probe that the slot's owner accepted.
    pub(super) fn of(&self, slot: u32) -> u16 {
        match self.few.get(slot as usize) {
            Some(&MANY) => {
                let found = self.many.binary_search_by_key(&slot, |(slot, _)| *slot);
                found.ok().and_then(|at| self.many.get(at)).map_or(0, |(_, probe)| *probe)
            }
            few => few.copied().map_or(0, u16::from),
        }
    }
}

// === impl Asking ===

impl<'a> Asking<'a> {
    fn new(members: &[Member], rooms: &'a [usize]) -> Self {
        // With many backends this capacity would use much address space.
        let least = if members.len() <= MAPPED_EACH { MAPPED / size_of::<u32>() } else { 0 };
        Self {
            by_backend: rooms.iter().map(|room| Vec::with_capacity((room + room / 4).max(least))).collect(),
            rooms,
            identities: members.iter().map(|member| xxh3_64(member.identity.as_bytes())).collect(),
            probes: by_slot(),
            stranded: Vec::new(),
        }
    }

    /// Makes a slot ask with its current probe.
    fn ask(&mut self, ring: &Ring, slot: u32) {
        let probe = self.probes.get(slot as usize).copied().unwrap_or_default();
        let backend = if probe < MAX_PROBES { ring.get(slot, probe) } else { None };
        match backend.and_then(|backend| self.by_backend.get_mut(usize::from(backend))) {
            Some(slots) => slots.push(slot),
            None => self.stranded.push(slot),
        }
    }

    /// Makes each overfull backend refuse its lowest-ranked slots, and advances their probes.
    fn refuse(&mut self, refused: &mut Vec<u32>) {
        let Self { by_backend, rooms, identities, probes, .. } = self;
        for ((slots, room), identity) in by_backend.iter_mut().zip(*rooms).zip(identities) {
            if slots.len() > *room {
                slots.select_nth_unstable_by_key(*room, |slot| (rank(*identity, *slot), *slot));
                refused.extend(slots.drain(*room..));
            }
        }
        for slot in refused {
            if let Some(probe) = probes.get_mut(*slot as usize) {
                *probe += 1;
            }
        }
    }

    fn settled(mut self) -> Placement {
        self.stranded.sort_unstable();
        for (slots, room) in self.by_backend.iter_mut().zip(self.rooms) {
            let free = room.saturating_sub(slots.len()).min(self.stranded.len());
            slots.extend(self.stranded.drain(..free));
        }
        let mut owners = by_slot();
        for (backend, slots) in (0..).zip(self.by_backend) {
            for slot in slots {
                if let Some(owner) = owners.get_mut(slot as usize) {
                    *owner = backend;
                }
            }
        }
        Placement { owners: owners.into(), probes: Probes::new(&self.probes) }
    }
}

/// A zero for each slot, with the capacity for buffers used while a ring is built.
fn by_slot() -> Vec<u16> {
    let mut numbers = Vec::with_capacity((SLOTS as usize).max(MAPPED / size_of::<u16>()));
    numbers.resize(SLOTS as usize, 0);
    numbers
}

/// A backend's ranking of the slots that ask it; lower values are kept first. It depends on no other backend, so a
/// change of the membership does not affect it.
fn rank(identity: u64, slot: u32) -> u64 {
    let mut bytes = [0; 12];
    let (of_identity, of_slot) = bytes.split_at_mut(8);
    of_identity.copy_from_slice(&identity.to_le_bytes());
    of_slot.copy_from_slice(&slot.to_le_bytes());
    xxh3_64(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_asked_too_often_takes_the_first_backend_with_room() {
        let member = |identity: &str| Member { identity: identity.into(), weight: 1 };
        let members = [member("a"), member("b")];
        let ring = Ring::new(&members, |_| true);
        let rooms = [2, 2];
        let mut asking = Asking::new(&members, &rooms);
        asking.probes[7] = MAX_PROBES - 1;
        asking.ask(&ring, 7);
        assert!(asking.stranded.is_empty(), "the last probe must still be asked");
        let asked: Vec<u32> = asking.by_backend.iter_mut().flat_map(|slots| slots.drain(..)).collect();
        assert_eq!(asked, [7]);

        asking.by_backend[0].push(3);
        asking.by_backend[1].push(4);
        for slot in [9, 8] {
            asking.probes[slot as usize] = MAX_PROBES;
            asking.ask(&ring, slot);
        }
        assert_eq!(asking.stranded, [9, 8]);
        let placement = asking.settled();
        assert_eq!([3, 4, 8, 9].map(|slot: usize| placement.owners[slot]), [0, 1, 0, 1]);
    }
}
