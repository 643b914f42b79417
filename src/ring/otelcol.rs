//! `otelcol_v1`, `otelcol_v2` and `otelcol_v3`: the three rings that the Collector's load-balancing exporter has had.
//! Each places every key on the backend that the exporter sends it to, so that both can serve the same traces side by
//! side.
//!
//! | | `otelcol_v1` | `otelcol_v2` | `otelcol_v3` |
//! | --- | --- | --- | --- |
//! | exporter | v0.129 and older | v0.150 | v0.157 and newer |
//! | positions (the slots) | 36,000 | 36,000 | 131,071 |
//! | points of each backend | 100 | 100 | 200 |
//! | number of a point, as hashed | 1 byte | 4 bytes, little-endian | 4 bytes, little-endian |
//! | a point whose position is taken | is left out | takes the next free one of 9 | takes the next free one of 9 |
//! | order in which points take positions | by name, then number | by name, then number | by position, hash, name |
//!
//! (These versions of the exporter were read. The second ring came in July 2025, after v0.129, and the third in July
//! 2026, with v0.157.)
//!
//! A point's position is the CRC-32 (IEEE) of the backend's name and the point's number, modulo the number of positions.
//! A key's position is the CRC-32 of the key, modulo the same. Its owner is the backend of the first point at or after
//! this position, and after the last position comes the first one.
//!
//! The name is [`Member::exporter_name`]. Names are sorted by bytes, as the exporter's resolvers sort them. Weights do
//! not exist.

use std::sync::Arc;

use super::Member;

/// The rules of one ring.
#[derive(Debug)]
pub(super) struct Rules {
    /// The number of positions.
    pub(super) positions: u32,
    /// The number of points of each backend.
    points: u32,
    /// A point takes the first free one of so many positions, beginning with its own. If none is free, it is left out.
    reach: u32,
    /// The number of bytes of a point's number that are hashed, the lowest ones first.
    number_bytes: usize,
    /// Whether points take positions in the order of their hashes, and not one backend after the other.
    by_hash: bool,
}

/// The ring of the exporter from its beginning (v0.15) to v0.129.
pub(super) const V1: Rules = Rules { positions: 36_000, points: 100, reach: 1, number_bytes: 1, by_hash: false };

/// The ring of pull request 41271 of the exporter's repository: points that would be left out take other positions.
pub(super) const V2: Rules = Rules { positions: 36_000, points: 100, reach: 10, number_bytes: 4, by_hash: false };

/// The ring of pull request 49585: more points and positions, and no backend takes its positions before others.
pub(super) const V3: Rules = Rules { positions: 131_071, points: 200, reach: 10, number_bytes: 4, by_hash: true };

/// A position without a point. No backend has this index (see `discovery::MAX_ENDPOINTS`).
const FREE: u16 = u16::MAX;

/// Bytes for each point while a ring is built.
const PER_POINT: usize = size_of::<Point>();

/// Bytes for each position while a ring is built: its point, and its owner twice, since the result is copied once.
const PER_POSITION: usize = 3 * size_of::<u16>();

/// A virtual node of a backend. Its order is the one in which the third ring assigns positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    position: u32,
    hash: u32,
    /// The index of the backend among the names, sorted.
    rank: u16,
}

impl Rules {
    /// Returns the position of a key.
    #[inline]
    pub(super) const fn position(&self, hash: u32) -> u32 {
        hash % self.positions
    }

    /// The parameters that enter the fingerprint.
    pub(super) const fn parameters(&self) -> [u64; 4] {
        let variant = self.number_bytes as u64 + if self.by_hash { 256 } else { 0 };
        [self.positions as u64, self.points as u64, self.reach as u64, variant]
    }

    /// The parameters by name, for display.
    pub(super) const fn named_parameters(&self) -> [(&'static str, u64); 3] {
        [("slots", self.positions as u64), ("points", self.points as u64), ("positions_tried", self.reach as u64)]
    }

    /// Returns about how much memory [`Rules::place`] takes for so many backends.
    pub(super) const fn memory(&self, backends: usize) -> usize {
        backends * self.points as usize * PER_POINT + self.positions as usize * PER_POSITION
    }

    /// Returns the owner of each position, as an index into `members`, in the ring of those whose index `includes`
    /// accepts; `None` if it accepts none.
    pub(super) fn place(&self, members: &[Member], includes: impl Fn(u16) -> bool) -> Option<Arc<[u16]>> {
        owners(&self.ring(members, includes))
    }

    /// Returns the ring: by position, the backend of the point there, or [`FREE`].
    fn ring(&self, members: &[Member], includes: impl Fn(u16) -> bool) -> Vec<u16> {
        let mut named: Vec<(&str, u16)> = (0..).zip(members).map(|(index, it)| (it.exporter_name(), index)).collect();
        named.retain(|(_, index)| includes(*index));
        named.sort_unstable();
        let mut points: Vec<Point> = Vec::with_capacity(named.len() * self.points as usize);
        for (rank, (name, _)) in (0..).zip(&named) {
            points.extend(self.hashes(name).map(|hash| Point { position: self.position(hash), hash, rank }));
        }
        if self.by_hash {
            points.sort_unstable();
        }
        let mut ring = vec![FREE; self.positions as usize];
        for point in points {
            if let (Some(place), Some((_, index))) = (self.free(&mut ring, &point), named.get(usize::from(point.rank)))
            {
                *place = *index;
            }
        }
        ring
    }

    /// Returns the hashes of a backend's points.
    fn hashes(&self, name: &str) -> impl Iterator<Item = u32> {
        let mut of_name = crc32fast::Hasher::new();
        of_name.update(name.as_bytes());
        (0..self.points).map(move |number| {
            let mut hasher = of_name.clone();
            hasher.update(number.to_le_bytes().get(..self.number_bytes).unwrap_or_default());
            hasher.finalize()
        })
    }

    /// Returns the position that a point takes; `None` if all that it may take have points.
    fn free<'r>(&self, ring: &'r mut [u16], point: &Point) -> Option<&'r mut u16> {
        let mut tried = (0..self.reach).map(|step| self.position(point.position + step) as usize);
        let free = tried.find(|at| ring.get(*at) == Some(&FREE))?;
        ring.get_mut(free)
    }
}

/// Returns the owner of each position: the backend of the first point at or after it. `None` if there is no point.
fn owners(ring: &[u16]) -> Option<Arc<[u16]>> {
    let is_point = |it: &u16| *it != FREE;
    // The positions behind the last point belong to the first one.
    let mut next = ring.iter().copied().find(is_point)?;
    let mut owners = vec![next; ring.len()];
    for (owner, point) in owners.iter_mut().zip(ring).rev() {
        if is_point(point) {
            next = *point;
        }
        *owner = next;
    }
    Some(owners.into())
}

#[cfg(test)]
mod tests;
