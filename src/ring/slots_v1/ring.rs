//! The ring: points of the members, and the point that answers a question.
//!
//! It is a `HashRing` of the crate `hashring`. Points are hashed here, once, and each yields its stored hash; otherwise
//! the crate would hash the identities through `std`'s `Hash`, whose bytes differ between platforms. They are also sorted
//! here, at 16 bytes each, so that the crate's stable sort of its larger nodes has nothing left to do. The crate's `remove`
//! and `get_with_replicas` are not used: the first shifts the whole ring for each point, the second copies it.
//!
//! With 2,000 backends there are eight million points, which would take 330 MiB. Such a ring gets the questions before it
//! is built and has only the points that answer one of them (see [`Nearest`]).

use std::hash::{BuildHasher, Hash, Hasher};

use hashring::HashRing;
use xxhash_rust::xxh3::xxh3_64;

use super::{Member, POINTS_PER_WEIGHT, SLOT_BITS, nearest::Nearest};

/// Half the width of a slot in the space of hashes.
const HALF_SLOT: u64 = 1 << (u64::BITS - SLOT_BITS - 1);

/// The number of points that are hashed together.
pub(super) const TOGETHER: usize = 64;

/// The members' points on a consistent-hash ring, sorted: all of them, or those that answer the questions that the ring
/// was built for.
pub(in crate::ring) struct Ring {
    points: HashRing<Point, OneShot>,
    is_whole: bool,
}

/// A virtual node of a backend. Points with equal hashes are ordered by backend, so that placement never depends on the
/// sorting algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Point {
    pub(super) hash: u64,
    pub(super) backend: u16,
}

/// A slot's question to the ring.
#[derive(Clone, Copy, Debug)]
pub(in crate::ring) struct Question {
    pub(in crate::ring) slot: u32,
    pub(in crate::ring) probe: u16,
}

/// Hashes bytes written in one call by xxh3-64 with seed 0; a `u64` is taken as the hash itself.
///
/// `std`'s `Hash` of strings, slices and tuples makes several calls, and writes lengths as wide as the platform's
/// words. The types here write a hash.
#[derive(Clone, Copy, Default)]
struct OneShot(u64);

// === impl Ring ===

impl Ring {
    /// Builds a ring of the `members` whose index `includes` accepts. Points carry the index among all members.
    ///
    /// If these have more than `whole` points, the ring answers only the `questions`.
    pub(in crate::ring) fn new(
        members: &[Member],
        includes: impl Fn(u16) -> bool,
        whole: usize,
        questions: impl FnOnce() -> Vec<Question>,
    ) -> Self {
        let included = || (0_u16..).zip(members).filter(|(backend, _)| includes(*backend));
        let count = included().map(|(_, member)| (POINTS_PER_WEIGHT * member.weight) as usize).sum();
        let is_whole = count <= whole;
        let points = if is_whole {
            let mut points = Vec::with_capacity(count);
            each_point(included(), |some| points.extend_from_slice(some));
            points.sort_unstable();
            points
        } else {
            let mut nearest = Nearest::new(questions().into_iter().map(Question::position).collect());
            each_point(included(), |some| nearest.add(some));
            nearest.into_points()
        };
        let mut ring = HashRing::with_hasher(OneShot::default());
        ring.batch_add(points);
        Self { points: ring, is_whole }
    }

    /// Returns whether the ring has all points, so that it answers every question.
    pub(super) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Returns the backend that `question` asks; `None` on an empty ring.
    pub(in crate::ring) fn get(&self, question: Question) -> Option<u16> {
        self.points.get(&question).map(|point| point.backend)
    }
}

/// Calls `take` with all points of the members, which come with their indexes, several at a time.
///
/// The bytes of several points are written before the first of them is hashed: a processor waits if it reads what it has
/// just written in pieces of another width.
fn each_point<'a>(members: impl Iterator<Item = (u16, &'a Member)>, mut take: impl FnMut(&[Point])) {
    let (mut bytes, mut points) = (Vec::new(), Vec::with_capacity(TOGETHER));
    for (backend, member) in members {
        let identity = member.identity.as_bytes();
        let len = identity.len() + size_of::<u32>();
        bytes.clear();
        for _ in 0..TOGETHER {
            bytes.extend_from_slice(identity);
            bytes.extend_from_slice(&[0; size_of::<u32>()]);
        }
        let mut nodes = 0..POINTS_PER_WEIGHT * member.weight;
        while !nodes.is_empty() {
            let count = nodes.len().min(TOGETHER);
            for (bytes, node) in bytes.chunks_exact_mut(len).zip(nodes.by_ref().take(count)) {
                if let Some(place) = bytes.last_chunk_mut() {
                    *place = node.to_le_bytes();
                }
            }
            points.clear();
            let hashes = bytes.chunks_exact(len).take(count).map(xxh3_64);
            points.extend(hashes.map(|hash| Point { hash, backend }));
            take(&points);
        }
    }
}

// === impl Point, Question ===

impl Hash for Point {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Question {
    /// Returns the place on the ring where the search for a point begins.
    fn position(self) -> u64 {
        if self.probe == 0 {
            // First probes are evenly spaced. If they were hashed, their scatter would add to that of the points: more
            // backends would be overfull, and a departure would move more slots, twice as many of them a second time.
            u64::from(self.slot) << (u64::BITS - SLOT_BITS) | HALF_SLOT
        } else {
            let pair = u64::from(self.slot) | u64::from(self.probe) << 32;
            xxh3_64(&pair.to_le_bytes())
        }
    }
}

impl Hash for Question {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.position());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_ask_where_the_specification_says() {
        let position = |slot: u32, probe: u16| Question { slot, probe }.position();
        assert_eq!(position(5, 0), (5 << 47) + (1 << 46));
        assert_eq!(position(5, 3), xxh3_64(&[5, 0, 0, 0, 3, 0, 0, 0]));
        assert_eq!(position(0x1_02_03, 0x04_05), xxh3_64(&[3, 2, 1, 0, 5, 4, 0, 0]));
    }

    #[test]
    fn bytes_are_hashed_and_a_number_is_its_own_hash() {
        let hash = |write: &dyn Fn(&mut OneShot)| {
            let mut hasher = OneShot::default().build_hasher();
            write(&mut hasher);
            hasher.finish()
        };
        assert_eq!(hash(&|hasher| hasher.write(b"bytes")), xxh3_64(b"bytes"));
        assert_eq!(hash(&|hasher| hasher.write_u64(7)), 7);
    }
}
