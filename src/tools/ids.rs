//! Trace and span IDs that describe what they belong to. A trace ID encodes the run's seed and the trace's number; a
//! span ID encodes the span's index in its trace and the number of spans of the trace.
//!
//! A sink can therefore tell a complete trace from an incomplete one, and find duplicate spans, from the 24 bytes of
//! the IDs and without reading attributes. Each ID contains a check value, so that IDs of other generators are
//! recognised.

/// Largest number of spans in a trace. A sink stores one bit per span in a `u64`.
pub const MAX_SPANS_PER_TRACE: usize = 64;

/// Constant in the check value of our IDs. Its value is arbitrary.
const MARK: u64 = 0x5350_414e_5249_4e47;

/// Identifies one generated trace. It is the lower half of the trace ID; the upper half is computed from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceKey(u64);

impl TraceKey {
    /// Returns the key of trace `number` in the run with this seed. Within a run, every number has its own key.
    pub fn new(seed: u64, number: u64) -> Self {
        Self(mix(mix(seed).wrapping_add(number)))
    }

    /// Returns the trace ID.
    pub fn to_bytes(self) -> [u8; 16] {
        let id = u128::from(mix(self.0 ^ MARK)) << 64 | u128::from(self.0);
        id.to_be_bytes()
    }

    /// Returns the key of a trace ID, or `None` if the ID was not made by this module.
    pub fn from_bytes(id: [u8; 16]) -> Option<Self> {
        let id = u128::from_be_bytes(id);
        #[expect(clippy::cast_possible_truncation, reason = "only the lower half is wanted")]
        let key = Self(id as u64);
        (key.to_bytes() == id.to_be_bytes()).then_some(key)
    }

    /// Returns the ID of the span at `place`.
    pub fn span_id(self, place: SpanPosition) -> [u8; 8] {
        let place = u64::from(place.count) << 8 | u64::from(place.index);
        let check = mix(self.0 ^ place) & !0xffff;
        (check | place).to_be_bytes()
    }

    /// Returns the place of a span in this trace, or `None` if its ID was not made by this module for this trace.
    pub fn position_of(self, span_id: [u8; 8]) -> Option<SpanPosition> {
        let [.., count, index] = span_id;
        let place = SpanPosition { index, count };
        (index < count && usize::from(count) <= MAX_SPANS_PER_TRACE && self.span_id(place) == span_id).then_some(place)
    }
}

/// Position of a span in its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SpanPosition {
    /// Index of the span, from 0; span 0 is the root.
    pub index: u8,
    /// Number of spans of the whole trace.
    pub count: u8,
}

impl SpanPosition {
    /// Returns the bit of this span in the bit set of its trace.
    pub fn bit(self) -> u64 {
        1_u64.checked_shl(u32::from(self.index)).unwrap_or(0)
    }

    /// Returns the bit set of a complete trace of `count` spans.
    pub fn full(count: u8) -> u64 {
        if usize::from(count) >= MAX_SPANS_PER_TRACE { u64::MAX } else { (1 << count) - 1 }
    }
}

/// Maps a `u64` to another one, bijectively; close inputs give distant outputs (the finalizer of SplitMix64, Steele et
/// al. 2014).
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
    fn only_ids_of_this_generator_are_recognised() {
        let key = TraceKey::new(7, 123);
        assert_eq!(TraceKey::from_bytes(key.to_bytes()), Some(key));
        let place = SpanPosition { index: 3, count: 8 };
        assert_eq!(key.position_of(key.span_id(place)), Some(place));
        assert_eq!(TraceKey::new(7, 124).position_of(key.span_id(place)), None, "a span of another trace");
        assert_eq!(TraceKey::from_bytes([7; 16]), None);
        let mut broken = key.to_bytes();
        broken[3] ^= 1;
        assert_eq!(TraceKey::from_bytes(broken), None);
    }

    #[test]
    fn a_full_set_has_one_bit_for_each_span() {
        for count in 1..=64_u8 {
            let bits = (0..count).fold(0, |bits, index| bits | SpanPosition { index, count }.bit());
            assert_eq!(bits, SpanPosition::full(count));
        }
    }
}
