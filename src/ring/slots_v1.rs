//! `slots_v1`: who owns each of 131,072 slots. Every byte that is hashed is stated here, since all replicas must agree on it.
//!
//! | what | bytes under xxh3-64, seed 0 |
//! | --- | --- |
//! | a routing key's slot | the key as it came; the top 17 bits of the hash are the slot |
//! | a point of the ring | the identity's UTF-8 bytes, then the virtual node (0 .. 4,096 × weight) as u32, little-endian |
//! | a slot's probe 0 | none: the middle of the slot's hashes, slot × 2⁴⁷ + 2⁴⁶, is taken as it is |
//! | a slot's later probes | the slot as u32, then the probe as u32, both little-endian |
//! | a backend's rank of a slot | xxh3-64 of the identity as u64, then the slot as u32, both little-endian |
//!
//! (A point and a probe could be the same bytes only for an identity of four bytes that spell a number below 131,072,
//! which has a zero byte in it.)
//!
//! A slot asks for the backend at `get((slot, 0))` of the ring, then `get((slot, 1))` and so on. A backend that is asked by more
//! slots than it may hold keeps those of the lowest rank and refuses the rest, which ask on. This is deferred acceptance:
//! since a backend's order of preference does not depend on who asks first, the outcome does not either.
//!
//! The ring is one of the crate `hashring`, which answers every probe. Two things are done before it gets the points, since
//! they are hundreds of thousands: they are hashed here, once, and it is told their hashes (it would hash whole identities
//! through `std`'s `Hash`, whose bytes differ between platforms); and they come sorted, in 16 bytes each, so that its own
//! stable sort of wider nodes finds nothing to do. Its `remove` and `get_with_replicas` are not used: the first
//! shifts the whole ring for each point, the second copies it.

use std::{
    hash::{BuildHasher, Hash, Hasher},
    sync::Arc,
};

use hashring::HashRing;
use xxhash_rust::xxh3::xxh3_64;

use super::Member;

/// The number of slots. With half as many, too many slots would move near 200 backends (`deploy/docs/performance.md`, "The
/// ring").
pub const SLOTS: u32 = 1 << SLOT_BITS;

/// Points on the ring for each unit of weight. The goal: when an ejected backend leaves, at most 1 % of its slots move again,
/// and at most 0.1 % of the others', at every size from 3 to 200. 3,072 points miss it in one of 3,824 departures, 4,096 never;
/// `deploy/docs/performance.md` has the figures of each number of points.
pub const POINTS_PER_WEIGHT: u32 = 4096;

/// The most that all weights may add up to: at 64 slots a unit, 5 % above the fair share still is whole slots more, and the
/// points of the largest ring take no more than some hundred MiB while it is built.
pub const MAX_TOTAL_WEIGHT: u64 = 2048;

const SLOT_BITS: u32 = 17;

/// Half of a slot's hashes.
const HALF_SLOT: u64 = 1 << (u64::BITS - SLOT_BITS - 1);

/// The bound on a backend's slots, in percent of its fair share.
const BOUND_PERCENT: u64 = 105;

/// Probes of one slot after which it takes any backend with room. With 3 % or more of all room free, as the weights' bound
/// ensures, the chance to get here is nil; the number makes it plain that the work ends.
const MAX_PROBES: u16 = 16_384;

/// Says that a slot's probe is in the list of those that asked often.
const MANY: u8 = u8::MAX;

/// What the fingerprint says of this algorithm beside its name.
pub(super) const PARAMETERS: [u64; 4] = [SLOTS as u64, POINTS_PER_WEIGHT as u64, BOUND_PERCENT, 0];

/// The same by name, for those who look.
pub(super) const NAMED_PARAMETERS: [(&str, u64); 3] =
    [("slots", SLOTS as u64), ("points_per_weight", POINTS_PER_WEIGHT as u64), ("bound_percent", BOUND_PERCENT)];

/// The slot of a routing key.
#[inline]
pub fn slot_of(key: &[u8]) -> u32 {
    (xxh3_64(key) >> (u64::BITS - SLOT_BITS)) as u32
}

/// Bytes of what is needed while a ring is built, at least: glibc gives a map of its own to so many, so that their pages go
/// back to the system at once (`allocator`). It takes pages for those that are used only.
const MAPPED: usize = 1 << 19;

/// Backends of which each has such a list.
const MAPPED_EACH: usize = 16;

/// The owners of all slots and the probe that each slot was accepted with.
pub(super) struct Placement {
    pub(super) owners: Arc<[u16]>,
    pub(super) probes: Probes,
}

/// By slot, the probe that its owner accepted: where the search for a substitute begins.
///
/// Half as many bytes as numbers would take, since they stay as long as the base does.
#[derive(Debug)]
pub(super) struct Probes {
    /// [`MANY`] where it is that or more.
    few: Box<[u8]>,
    /// Slots, ascending, that asked more often, which is rare.
    many: Box<[(u32, u16)]>,
}

/// Points of members on a consistent-hash ring, sorted.
pub(super) struct Ring(HashRing<Point, OneShot>);

/// One virtual node of a backend. What it is ordered by is what the ring has to look like: placement must not depend on what
/// a sort makes of points with equal hashes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    hash: u64,
    backend: u16,
}

/// What a slot asks with.
struct Probe {
    slot: u32,
    probe: u16,
}

/// Hashes what was written in one piece, with xxh3-64 and seed 0; a number is taken as the hash that it is.
///
/// `std`'s own `Hash` of strings, slices and tuples writes several pieces, among them lengths as wide as the platform's
/// words; the types here write their bytes once.
#[derive(Clone, Copy, Default)]
struct OneShot(u64);

/// The slots that ask for each backend, while places are settled.
struct Asking<'a> {
    by_backend: Vec<Vec<u32>>,
    rooms: &'a [usize],
    identities: Vec<u64>,
    probes: Vec<u16>,
    /// Slots that ask no more.
    stranded: Vec<u32>,
}

/// Places all slots on `members`: sorted by identity, each once, weights within bounds.
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
    // What stays takes its room.
    drop(ring);
    asking.settled()
}

/// What each backend may hold: `floor(1.05 × fair share)`, and at least what makes all shares sum up.
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
    /// A ring of those `members` that `includes` admits by index; their points carry the index among all.
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

    /// The backend that `slot` asks with its `probe`; `None` on an empty ring.
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
            // Evenly spread positions. Hashed ones would vary like the points do, so that more backends would be overfull and a
            // departure would move more slots (`deploy/docs/performance.md`, "The ring").
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

    /// The probe that the slot's owner accepted.
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
        // Many would be much, if of addresses only.
        let least = if members.len() <= MAPPED_EACH { MAPPED / size_of::<u32>() } else { 0 };
        Self {
            by_backend: rooms.iter().map(|room| Vec::with_capacity((room + room / 4).max(least))).collect(),
            rooms,
            identities: members.iter().map(|member| xxh3_64(member.identity.as_bytes())).collect(),
            probes: by_slot(),
            stranded: Vec::new(),
        }
    }

    /// Lets a slot ask with its current probe.
    fn ask(&mut self, ring: &Ring, slot: u32) {
        let probe = self.probes.get(slot as usize).copied().unwrap_or_default();
        let backend = if probe < MAX_PROBES { ring.get(slot, probe) } else { None };
        match backend.and_then(|backend| self.by_backend.get_mut(usize::from(backend))) {
            Some(slots) => slots.push(slot),
            None => self.stranded.push(slot),
        }
    }

    /// Takes from each overfull backend the slots that it likes least, and raises their probes.
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

/// A number for each slot, while a ring is built.
fn by_slot() -> Vec<u16> {
    let mut numbers = Vec::with_capacity((SLOTS as usize).max(MAPPED / size_of::<u16>()));
    numbers.resize(SLOTS as usize, 0);
    numbers
}

/// A backend's order of the slots that ask for it; the lowest is kept first. It depends on no other backend, so that a change
/// of the membership leaves it as it is.
fn rank(identity: u64, slot: u32) -> u64 {
    let mut bytes = [0; 12];
    let (of_identity, of_slot) = bytes.split_at_mut(8);
    of_identity.copy_from_slice(&identity.to_le_bytes());
    of_slot.copy_from_slice(&slot.to_le_bytes());
    xxh3_64(&bytes)
}
