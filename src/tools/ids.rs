//! IDs that say what they belong to: a trace ID names its run and number, a span ID its index and how many there are.
//!
//! So a sink can tell a complete trace from one seen in part, and a span that came twice, from 24 bytes and without
//! reading an attribute. IDs of other generators are told apart by a check that each ID carries.

/// Most spans that a trace may have: a sink keeps one bit for each in a `u64`.
pub const MAX_SPANS_PER_TRACE: usize = 64;

/// Sets IDs of ours apart from those of others; any constant serves.
const MARK: u64 = 0x5350_414e_5249_4e47;

/// One generated trace: the lower half of its ID, from which the upper half follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceKey(u64);

impl TraceKey {
    /// Trace `number` of the run with this seed. Within a run no two numbers share a key.
    pub fn new(seed: u64, number: u64) -> Self {
        Self(mix(mix(seed).wrapping_add(number)))
    }

    /// The trace ID.
    pub fn to_bytes(self) -> [u8; 16] {
        let id = u128::from(mix(self.0 ^ MARK)) << 64 | u128::from(self.0);
        id.to_be_bytes()
    }

    /// The key of a trace ID, if a generator of ours made it.
    pub fn from_bytes(id: [u8; 16]) -> Option<Self> {
        let id = u128::from_be_bytes(id);
        #[expect(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
        let key = Self(id as u64);
        (key.to_bytes() == id.to_be_bytes()).then_some(key)
    }

    /// The ID of span `index` of `count`.
    pub fn span_id(self, place: Place) -> [u8; 8] {
        let place = u64::from(place.count) << 8 | u64::from(place.index);
        let check = mix(self.0 ^ place) & !0xffff;
        (check | place).to_be_bytes()
    }

    /// Where a span stands in this trace, if a generator of ours made its ID for this trace.
    pub fn place_of(self, span_id: [u8; 8]) -> Option<Place> {
        let [.., count, index] = span_id;
        let place = Place { index, count };
        (index < count && usize::from(count) <= MAX_SPANS_PER_TRACE && self.span_id(place) == span_id).then_some(place)
    }
}

/// A span's place in its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// From 0; span 0 is the root.
    pub index: u8,
    /// How many spans the whole trace has.
    pub count: u8,
}

impl Place {
    /// The bit that stands for this span in a trace's set.
    pub fn bit(self) -> u64 {
        1_u64.checked_shl(u32::from(self.index)).unwrap_or(0)
    }

    /// The set of a trace of which every span was seen.
    pub fn full(count: u8) -> u64 {
        if usize::from(count) >= MAX_SPANS_PER_TRACE { u64::MAX } else { (1 << count) - 1 }
    }
}

/// A bijection of 64 bits that spreads neighbours far apart (the finalizer of SplitMix64, Steele et al. 2014).
pub(crate) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_back_and_those_of_others_are_not() {
        let key = TraceKey::new(7, 123);
        assert_eq!(TraceKey::from_bytes(key.to_bytes()), Some(key));
        let place = Place { index: 3, count: 8 };
        assert_eq!(key.place_of(key.span_id(place)), Some(place));
        assert_eq!(TraceKey::new(7, 124).place_of(key.span_id(place)), None, "a span of another trace");
        assert_eq!(TraceKey::from_bytes([7; 16]), None);
        let mut broken = key.to_bytes();
        broken[3] ^= 1;
        assert_eq!(TraceKey::from_bytes(broken), None);
    }

    #[test]
    fn a_full_set_has_one_bit_for_each_span() {
        for count in 1..=64_u8 {
            let bits = (0..count).fold(0, |bits, index| bits | Place { index, count }.bit());
            assert_eq!(bits, Place::full(count));
        }
    }
}
