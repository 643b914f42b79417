//! Fast paths of the reader for the fields that make up nearly every request. Skipping the fields of records takes most of
//! a cut's time.
//!
//! Each function reads exactly what [`Reader::field`] would, or nothing.

use super::{RecordFields, wire::Reader};

/// A tag that fits in one byte, or none. It can be compared without decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortTag(u32);

impl ShortTag {
    /// A tag that no field has.
    pub const NONE: Self = Self(u32::MAX);

    /// Returns the tag of field `number`; [`ShortTag::NONE`] for 0 and for numbers that do not fit one byte.
    pub const fn new(number: u32, wire_type: u32) -> Self {
        match number {
            1..16 => Self(number << 3 | wire_type),
            _ => Self::NONE,
        }
    }

    /// Whether a field with this first byte has this tag.
    #[inline(always)]
    fn is(self, first: u8) -> bool {
        self.0 == u32::from(first)
    }
}

/// How to skip a field, by the first byte of its tag.
///
/// A table replaces the comparisons of the general reader: a field costs one look-up, whatever its number and type.
#[derive(Debug)]
pub(super) struct Skips {
    /// For a one-byte tag with a length, 0x80: lengths below it take one byte. 0 for all other tags, and for the fields that
    /// are not skipped.
    short: [u8; 256],
    kinds: [Kind; 256],
}

/// How to skip a field for which the fast test by `short` failed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Do not skip: the router needs the field, or the general reader has to read it.
    Read,
    Varint,
    Fixed64,
    Len,
    Fixed32,
    /// A `fixed32` behind a tag of two bytes, such as a span's flags.
    FarFixed32,
}

impl Skips {
    /// A table that skips all fields except those numbered `id` and `start`.
    pub(super) const fn all_but(id: u32, start: u32) -> Self {
        let mut skips = Self { short: [0; 256], kinds: [Kind::Read; 256] };
        let mut tag: u8 = 0;
        while tag < u8::MAX {
            tag += 1;
            let number = (tag as u32) >> 3;
            let (mut short, mut kind) = (0, Kind::Read);
            if tag >= 0x80 {
                // The first byte of a longer tag does not tell the field's number (16 or more), so such fields are
                // skipped only if neither wanted field could have such a tag.
                if tag & 7 == 5 && id < 16 && start < 16 {
                    kind = Kind::FarFixed32;
                }
            } else if number != 0 && number != id && number != start {
                (short, kind) = match tag & 7 {
                    0 => (0, Kind::Varint),
                    1 => (0, Kind::Fixed64),
                    2 => (0x80, Kind::Len),
                    5 => (0, Kind::Fixed32),
                    _ => (0, Kind::Read),
                };
            }
            set(&mut skips, tag, short, kind);
        }
        skips
    }

    /// If the byte behind `tag` is less than this, it is the length of a field to skip.
    #[inline(always)]
    pub(super) fn short(&self, tag: u8) -> u8 {
        self.short.get(usize::from(tag)).copied().unwrap_or(0)
    }

    #[inline(always)]
    pub(super) fn kind(&self, tag: u8) -> Kind {
        self.kinds.get(usize::from(tag)).copied().unwrap_or(Kind::Read)
    }
}

#[expect(clippy::indexing_slicing, reason = "a byte is an index of 256, and `get_mut` is not const")]
const fn set(skips: &mut Skips, tag: u8, short: u8, kind: Kind) {
    skips.short[tag as usize] = short;
    skips.kinds[tag as usize] = kind;
}

impl Kind {
    /// Returns the bytes behind the field, given those behind the first byte of its tag; `None` if the general reader
    /// has to read it.
    #[inline(always)]
    pub(super) fn skip(self, rest: &[u8]) -> Option<&[u8]> {
        match (self, rest) {
            (Self::Varint, [value, rest @ ..]) if *value < 0x80 => Some(rest),
            (Self::Fixed64, [_, _, _, _, _, _, _, _, rest @ ..]) | (Self::Fixed32, [_, _, _, _, rest @ ..]) => {
                Some(rest)
            }
            (Self::Len, [low, high, rest @ ..]) if *low >= 0x80 && *high < 0x80 => {
                rest.get(usize::from(*low & 0x7f) | usize::from(*high) << 7..)
            }
            (Self::FarFixed32, [high, _, _, _, _, rest @ ..]) if (1..0x80).contains(high) => Some(rest),
            _ => None,
        }
    }
}

// === impl Reader ===

impl<'a> Reader<'a> {
    /// Advances to the next field that the router needs or the general reader has to read. [`Reader::field`] then reads
    /// that field.
    #[inline(always)]
    pub fn skim(&mut self, fields: &RecordFields) {
        let skips = &fields.skips;
        loop {
            // Nearly all fields are length-delimited, with a number below 16 and a length below 128.
            while let [tag, len, rest @ ..] = self.rest
                && *len < skips.short(*tag)
                && let Some(rest) = rest.get(usize::from(*len)..)
            {
                self.rest = rest;
            }
            match self.rest.split_first().and_then(|(tag, rest)| skips.kind(*tag).skip(rest)) {
                Some(rest) => self.rest = rest,
                None => return,
            }
        }
    }

    /// Reads the next field if it has this tag and a length of two bytes, as most nested messages have (128 to 16,383
    /// bytes). Returns the field and its value.
    #[inline(always)]
    pub fn child(&mut self, tag: ShortTag) -> Option<(&'a [u8], &'a [u8])> {
        let [first, low, high, ..] = self.rest else { return None };
        if !tag.is(*first) || *low < 0x80 || *high >= 0x80 {
            return None;
        }
        let len = usize::from(*low & 0x7f) | usize::from(*high) << 7;
        let (whole, rest) = self.rest.split_at_checked(3 + len)?;
        self.rest = rest;
        Some((whole, whole.get(3..)?))
    }

    /// Reads trace ID and span ID if the span begins with them as SDKs write it, each with the right length. Returns
    /// the trace ID.
    #[inline(always)]
    pub fn ids_of_span(&mut self) -> Option<&'a [u8]> {
        let (front, rest) = self.rest.split_first_chunk::<28>()?;
        let [0x0a, 0x10, id @ .., 0x12, 0x08, _, _, _, _, _, _, _, _] = front else { return None };
        self.rest = rest;
        Some(id)
    }

    /// Reads the next field if it has this tag, which must be a `fixed64`'s.
    #[inline(always)]
    pub fn fixed64(&mut self, tag: ShortTag) -> Option<u64> {
        let ([first, value @ ..], rest) = self.rest.split_first_chunk::<9>()?;
        if !tag.is(*first) {
            return None;
        }
        self.rest = rest;
        Some(u64::from_le_bytes(*value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::otlp::{
        Signal,
        wire::{Field, Value},
    };

    #[test]
    fn skimming_skips_only_whole_fields_that_nobody_asked_for() {
        let mut random = fastrand::Rng::with_seed(7);
        let tags =
            [0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x12, 0x30, 0x39, 0x3a, 0x42, 0x4a, 0x7a, 0x82, 0x85, 0x8a, 0x02];
        let asked = [(1, 7), (9, 1), (0, 0), (16, 0), (2, 17)].map(|(id, start)| RecordFields::new(id, start));
        let mut passed = 0;
        for _ in 0..200_000 {
            let mut message = vec![0; random.usize(..24)];
            for byte in &mut message {
                *byte = match random.u8(..6) {
                    0 | 1 => tags[random.usize(..tags.len())],
                    2 => random.u8(..),
                    _ => random.u8(..9),
                };
            }
            let fields = &asked[random.usize(..asked.len())];
            let (mut skimmed, mut read) = (Reader::new(&message), Reader::new(&message));
            skimmed.skim(fields);
            while read.left() > skimmed.left() {
                let field = read.field().unwrap().unwrap();
                assert!(field.number != fields.id && field.number != fields.start, "{message:02x?}");
                passed += 1;
            }
            assert_eq!(read.left(), skimmed.left(), "between two fields: {message:02x?}");
        }
        assert!(passed > 20_000, "{passed} are too few to tell");
    }

    #[test]
    fn a_span_as_sdks_write_it_is_skimmed_to_what_the_router_is_shown() {
        let long = [&[0x4a, 0x80, 0x02][..], &[7; 256]].concat();
        let span = [
            &[0x12, 1, 7][..],
            &[0x2a, 2, 7, 7, 0x30, 2, 0x41, 1, 2, 3, 4, 5, 6, 7, 8, 0x4a, 0x7f],
            &[7; 0x7f],
            &long,
            &[0x7a, 0, 0x85, 0x01, 1, 1, 0, 0, 0x25, 1, 2, 3, 4],
            &[0x0a, 1, 7],
        ]
        .concat();
        let mut reader = Reader::new(&span);
        reader.skim(Signal::Traces.record_fields());
        assert_eq!(reader.field(), Ok(Some(Field { number: 1, value: Value::Len(&[7]) })));
        assert_eq!(reader.left(), 0);
    }

    #[test]
    fn shortcuts_take_what_the_reader_would_read_and_nothing_else() {
        let mut random = fastrand::Rng::with_seed(9);
        let numbers = [0, 1, 2, 7, 9, 15, 16, 31];
        let mut taken = [0; 3];
        for _ in 0..300_000 {
            let number = numbers[random.usize(..numbers.len())];
            let usual = [0x0a, 0x10, 0x12, 0x08, 0x39, 0x80, 0x81, 0x01, 0x00];
            let mut message: Vec<u8> = (0..random.usize(..40))
                .map(|_| if random.u8(..8) == 0 { usual[random.usize(..9)] } else { 0 })
                .collect();
            let tag = u8::try_from(number << 3).unwrap();
            let starts: [&[u8]; 6] = [&[], &[0x0a, 0x10], &[tag + 1], &[tag + 2, 0x90, 0x00], &[0], &[0x82, 1]];
            message.splice(..0, starts[random.usize(..6)].iter().copied());
            if random.bool() && message.len() > 28 {
                message[18..20].copy_from_slice(&[0x12, 0x08]);
            }
            let reader = Reader::new(&message);
            let (mut short, mut read) = (reader, reader);
            if let Some((whole, value)) = short.child(ShortTag::new(number, Value::LEN)) {
                assert_eq!(read.field(), Ok(Some(Field { number, value: Value::Len(value) })));
                assert_eq!((short.left(), whole.len()), (read.left(), message.len() - read.left()));
                taken[0] += 1;
            }
            let (mut short, mut read) = (reader, reader);
            if let Some(value) = short.fixed64(ShortTag::new(number, Value::FIXED64)) {
                assert_eq!(read.field(), Ok(Some(Field { number, value: Value::Fixed64(value) })));
                assert_eq!(short.left(), read.left());
                taken[1] += 1;
            }
            let (mut short, mut read) = (reader, reader);
            if let Some(id) = short.ids_of_span() {
                assert_eq!(read.field(), Ok(Some(Field { number: 1, value: Value::Len(id) })));
                assert_eq!(read.field().unwrap().unwrap().number, 2);
                assert_eq!((short.left(), id.len()), (read.left(), 16));
                taken[2] += 1;
            }
        }
        assert!(taken.iter().all(|times| *times > 1_000), "{taken:?} are too few to tell");
    }
}
