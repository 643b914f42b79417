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
//! The points of many backends take hundreds of MiB, and nearly all of them are the answer to no question. So with many
//! points the questions come first, and only the points that answer one are kept (see `Ring`). A slot that asks more
//! than was expected of it waits until the others are settled, and then a further ring is built. As the order of
//! questions does not matter, the placement is the same.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::Member;

mod nearest;
mod ring;

pub(super) use ring::{Question, Ring};

/// The number of slots. With half as many, a change of the membership would move too many slots near 200 backends.
pub const SLOTS: u32 = 1 << SLOT_BITS;

/// Points on the ring per unit of weight. The requirement: when an ejected backend leaves the membership, at most 1 %
/// of its slots and at most 0.1 % of the other slots move again, at every size from 3 to 200. In simulations with
/// names, IPv4 and IPv6 addresses as identities, 3,072 points fail it at one size and 4,096 at none.
pub const POINTS_PER_WEIGHT: u32 = 4096;

/// The maximum sum of all weights. It leaves 64 slots per unit, so that 5 % above the fair share is still whole slots,
/// and limits the time to hash all points.
pub const MAX_TOTAL_WEIGHT: u64 = 2048;

const SLOT_BITS: u32 = 17;

/// The bound on a backend's slots, in percent of its fair share.
const BOUND_PERCENT: u64 = 105;

/// Number of probes after which a slot takes any backend with room. The limit on weights ensures that at least 3 % of
/// the room stays free, so this is practically never reached; the constant proves that the loop ends.
const MAX_PROBES: u16 = 16_384;

/// In `Probes::few`: the probe is in `many` instead.
const MANY: u8 = u8::MAX;

/// The number of points up to which a ring has all of them: those of 128 backends. They take 25 MiB while the ring is built.
pub(super) const WHOLE: usize = 128 * POINTS_PER_WEIGHT as usize;

/// The number of questions of each slot that the first ring answers. With 2,000 backends, 6 % of the slots ask a second
/// time, 0.4 % a third and 30 slots a fourth time, so that the second ring is the last.
const AHEAD: u16 = 3;

/// Each ring answers so many times more questions of a slot than the one before.
const FURTHER: u16 = 8;

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

/// The owners of all slots and the probe that each slot was accepted with.
pub(super) struct Placement {
    pub(super) owners: Arc<[u16]>,
    pub(super) probes: Probes,
}

/// By slot, the probe that its owner accepted: the start of the search for a substitute.
///
/// Probes are stored as bytes where they fit, to save memory, since they are kept as long as the base.
#[derive(Debug, Default)]
pub(super) struct Probes {
    /// The probe, or [`MANY`] if it is in `many`.
    few: Box<[u8]>,
    /// Slots whose probe is [`MANY`] or more, ascending. There are few of them.
    many: Box<[(u32, u16)]>,
}

/// The slots asking each backend, while owners are being decided.
struct Asking<'a> {
    by_backend: Vec<Vec<u32>>,
    rooms: &'a [usize],
    identities: Vec<u64>,
    probes: Vec<u16>,
    /// By slot, the probe up to which a ring answers its questions, and the index of that ring. The rings before it
    /// are for other slots: a slot's probe never goes back.
    until: Vec<u16>,
    ring_of: Vec<u8>,
    rings: Vec<Ring>,
    /// Slots that have reached [`MAX_PROBES`].
    stranded: Vec<u32>,
}

/// Places all slots on `members`, which are sorted by identity, unique and within the limit of weights.
pub(super) fn place(members: &[Member]) -> Placement {
    place_with(members, WHOLE, AHEAD)
}

/// [`place`] by whole rings if they have at most `whole` points, and otherwise by rings that answer expected questions:
/// the first one `ahead` of each slot.
fn place_with(members: &[Member], whole: usize, mut ahead: u16) -> Placement {
    let rooms = rooms(members);
    let mut asking = Asking::new(members, &rooms);
    let mut waiting: Vec<u32> = (0..SLOTS).collect();
    while !waiting.is_empty() {
        asking.expect(&waiting, ahead);
        let ring = Ring::new(members, |_| true, whole, || asking.expected(&waiting));
        asking.rings.push(ring);
        waiting = asking.settle(waiting);
        ahead = ahead.saturating_mul(FURTHER);
    }
    // Frees the rings before memory for the result is allocated.
    asking.rings.clear();
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
        Self {
            by_backend: rooms.iter().map(|room| Vec::with_capacity(room + room / 4)).collect(),
            rooms,
            identities: members.iter().map(|member| xxh3_64(member.identity.as_bytes())).collect(),
            probes: by_slot(),
            until: by_slot(),
            ring_of: by_slot(),
            rings: Vec::new(),
            stranded: Vec::new(),
        }
    }

    /// Notes that the next ring will answer `ahead` questions of each slot that waits.
    fn expect(&mut self, waiting: &[u32], ahead: u16) {
        for slot in waiting {
            let at = *slot as usize;
            if let (Some(probe), Some(until), Some(ring)) =
                (self.probes.get(at), self.until.get_mut(at), self.ring_of.get_mut(at))
            {
                *until = probe.saturating_add(ahead);
                *ring = u8::try_from(self.rings.len()).unwrap_or(u8::MAX);
            }
        }
    }

    /// Returns the questions that are expected of the slots that wait.
    fn expected(&self, waiting: &[u32]) -> Vec<Question> {
        let probes = |slot: u32| {
            let [from, until] =
                [&self.probes, &self.until].map(|it| it.get(slot as usize).copied().unwrap_or_default());
            from..until
        };
        let mut questions = Vec::with_capacity(waiting.iter().map(|slot| probes(*slot).len()).sum());
        for slot in waiting {
            questions.extend(probes(*slot).map(|probe| Question { slot: *slot, probe }));
        }
        questions
    }

    /// Makes slots ask until each is accepted or asks more than is expected of it. Returns the latter.
    fn settle(&mut self, mut refused: Vec<u32>) -> Vec<u32> {
        let mut waiting = Vec::new();
        while !refused.is_empty() {
            for slot in refused.drain(..) {
                if !self.ask(slot) {
                    waiting.push(slot);
                }
            }
            self.refuse(&mut refused);
        }
        waiting
    }

    /// Makes a slot ask with its current probe. Returns `false` if no ring answers that.
    fn ask(&mut self, slot: u32) -> bool {
        let at = slot as usize;
        let [probe, until] = [&self.probes, &self.until].map(|it| it.get(at).copied().unwrap_or_default());
        let ring = self.ring_of.get(at).and_then(|ring| self.rings.get(usize::from(*ring)));
        let Some(ring) = ring.filter(|ring| probe < until || ring.is_whole() || probe >= MAX_PROBES) else {
            return false;
        };
        let backend = if probe < MAX_PROBES { ring.get(Question { slot, probe }) } else { None };
        match backend.and_then(|backend| self.by_backend.get_mut(usize::from(backend))) {
            Some(slots) => slots.push(slot),
            None => self.stranded.push(slot),
        }
        true
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
        let mut owners: Vec<u16> = by_slot();
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

/// A zero for each slot.
fn by_slot<T: Copy + Default>() -> Vec<T> {
    vec![T::default(); SLOTS as usize]
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

    fn member(identity: &str, weight: u32) -> Member {
        Member { identity: identity.into(), weight, exporter_name: None }
    }

    #[test]
    fn a_slot_that_asked_too_often_takes_the_first_backend_with_room() {
        let members = [member("a", 1), member("b", 1)];
        let rooms = [2, 2];
        let mut asking = Asking::new(&members, &rooms);
        asking.rings.push(Ring::new(&members, |_| true, WHOLE, Vec::new));
        asking.probes[7] = MAX_PROBES - 1;
        assert!(asking.ask(7));
        assert!(asking.stranded.is_empty(), "the last probe must still be asked");
        let asked: Vec<u32> = asking.by_backend.iter_mut().flat_map(|slots| slots.drain(..)).collect();
        assert_eq!(asked, [7]);

        asking.by_backend[0].push(3);
        asking.by_backend[1].push(4);
        for slot in [9, 8] {
            asking.probes[slot as usize] = MAX_PROBES;
            assert!(asking.ask(slot));
        }
        assert_eq!(asking.stranded, [9, 8]);
        let placement = asking.settled();
        assert_eq!([3, 4, 8, 9].map(|slot: usize| placement.owners[slot]), [0, 1, 0, 1]);
    }

    #[test]
    fn a_rank_hashes_the_bytes_that_are_specified() {
        let bytes = [8, 7, 6, 5, 4, 3, 2, 1, 3, 2, 1, 0];
        assert_eq!(rank(0x01_02_03_04_05_06_07_08, 0x1_02_03), xxh3_64(&bytes));
    }

    #[test]
    fn rings_that_answer_expected_questions_place_like_whole_rings() {
        // Some of so many backends are overfull.
        let mut members: Vec<Member> = (0..200).map(|index| member(&format!("10.0.0.{index}:4317"), 1)).collect();
        members.sort();
        let (whole, parts) = (place_with(&members, usize::MAX, 1), place_with(&members, 0, 1));
        assert!(whole.owners == parts.owners, "the owners must be the same");
        assert!((0..SLOTS).all(|slot| whole.probes.of(slot) == parts.probes.of(slot)), "and so must the probes");
        assert!((0..SLOTS).any(|slot| whole.probes.of(slot) > 0), "or one ring was enough");
    }
}
