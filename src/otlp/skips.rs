//! Which fields of a record are skipped without being read: nearly all of them, and most of the cut's time goes there.

/// By the first byte of a tag, how the field behind it is skipped.
///
/// A table instead of comparisons: a field costs one look at it, whatever its number, and none of the comparisons that a
/// general reader makes. A span of 17 fields is walked in 31 ns instead of 47 with it.
#[derive(Debug)]
pub(super) struct Skips {
    /// For a tag of one byte in front of a length, the length from which it takes more than one byte; 0 for all else.
    short: [u8; 256],
    kinds: [Kind; 256],
}

/// How to skip a field that is not of the usual kind.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// It is not skipped, but read: one that is asked for, or one that needs a closer look.
    Read,
    Varint,
    Fixed64,
    Len,
    Fixed32,
    /// `fixed32` behind a tag of two bytes: a span's flags.
    FarFixed32,
}

impl Skips {
    /// All fields but those of the numbers `id` and `start`.
    pub(super) const fn all_but(id: u32, start: u32) -> Self {
        let mut skips = Self { short: [0; 256], kinds: [Kind::Read; 256] };
        let mut tag: u8 = 0;
        while tag < u8::MAX {
            tag += 1;
            let number = (tag as u32) >> 3;
            let (mut short, mut kind) = (0, Kind::Read);
            if tag >= 0x80 {
                // Numbers of 16 and more have two bytes or more.
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

    /// Below this, the byte behind the tag is the length of a field that is skipped.
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
    /// What follows the field, given what follows the first byte of its tag; `None` where it takes a closer look.
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
