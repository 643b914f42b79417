//! A set of keys in bounded memory: the traces that are known to have begun before a change. It is a Bloom filter, so it
//! may have a key that was not added, and never lacks one that was.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The number of bits, 2 MiB. With a million keys, 0.5 % of all other keys are taken to be in the set.
const BITS: u64 = 1 << 24;

/// The number of bits that a key sets.
const HASHES: u64 = 3;

/// The set. Threads add and look up keys at the same time.
#[derive(Debug)]
pub(super) struct Begun(Box<[AtomicU64]>);

impl Default for Begun {
    fn default() -> Self {
        Self((0..Self::BYTES / 8).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Begun {
    /// The memory that a set takes.
    pub(super) const BYTES: usize = 2 << 20;

    pub(super) fn insert(&self, key: &[u8]) {
        for (word, bit) in places(key) {
            if let Some(word) = self.0.get(word) {
                word.fetch_or(bit, Relaxed);
            }
        }
    }

    pub(super) fn contains(&self, key: &[u8]) -> bool {
        places(key).all(|(word, bit)| self.0.get(word).is_some_and(|word| word.load(Relaxed) & bit != 0))
    }

    /// Adds all keys of `others`.
    pub(super) fn insert_all(&self, others: &Self) {
        for (word, more) in self.0.iter().zip(&others.0) {
            word.fetch_or(more.load(Relaxed), Relaxed);
        }
    }
}

/// Returns the bits of a key, each as the index of its word and its mask.
fn places(key: &[u8]) -> impl Iterator<Item = (usize, u64)> {
    let [first, step] = [1, 2].map(|seed| xxh3_64_with_seed(key, seed));
    (0..HASHES).map(move |number| {
        let bit = first.wrapping_add((step | 1).wrapping_mul(number)) % BITS;
        (usize::try_from(bit / 64).unwrap_or_default(), 1 << (bit % 64))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_added_and_hardly_anything_else() {
        let (set, others) = (Begun::default(), Begun::default());
        for key in 0..100_000_u128 {
            if key % 2 == 0 { &set } else { &others }.insert(&key.to_be_bytes());
        }
        let of = |set: &Begun, keys: std::ops::Range<u128>| keys.filter(|key| set.contains(&key.to_be_bytes())).count();
        assert!((0..100_000_u128).step_by(2).all(|key| set.contains(&key.to_be_bytes())));
        assert!(of(&set, 0..100_000) < 50_020);
        set.insert_all(&others);
        assert_eq!(of(&set, 0..100_000), 100_000);
        assert!(of(&set, 100_000..200_000) < 20);
    }

    #[test]
    fn a_key_always_sets_three_different_bits() {
        // The second hash of these keys, which is the step between their bits, ends in 24 zeros, and in 23 zeros and a one.
        for key in [6_653_566_u64, 20_176_664].map(u64::to_be_bytes) {
            assert!(xxh3_64_with_seed(&key, 2) % BITS < 2);
            let set = Begun::default();
            set.insert(&key);
            assert_eq!(set.0.iter().map(|word| word.load(Relaxed).count_ones()).sum::<u32>(), 3);
        }
    }
}
