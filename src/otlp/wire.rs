//! Protobuf's wire format: a reader that never reads past the end, and the lengths of written fields.
//!
//! It knows tags, lengths and wire types, but no message types. It accepts what protobuf's own parsers accept: padded
//! varints of up to ten bytes, groups (deprecated, but part of the format) up to protobuf's default depth of 100, and
//! fields in any order and number. Strings are not checked for UTF-8.
//!
//! Functions that read well-formed fields with short tags are always inlined, since the cut reads every field of every
//! record with them.

use thiserror::Error;

/// The deepest nesting of groups that is accepted: protobuf's default recursion limit.
pub const MAX_GROUP_DEPTH: usize = 100;

/// Maximum length of a 64-bit varint, in bytes.
const MAX_VARINT_LEN: usize = 10;

/// Where and how a message is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("malformed protobuf at byte {offset}: {kind}")]
pub struct WireError {
    /// Offset of the malformed field in the message.
    pub offset: usize,
    /// What is wrong with the field.
    pub kind: Malformed,
}

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The message ends inside a tag or a value.
    #[error("the message ends inside a field")]
    Truncated,
    /// A length-delimited value is longer than the rest of its message.
    #[error("length {0} runs past the end of its message")]
    Length(u64),
    /// A varint has more than ten bytes, or more than 64 bits.
    #[error("a varint is longer than 64 bits")]
    Varint,
    /// A tag does not fit 32 bits.
    #[error("a tag is longer than 32 bits")]
    Tag,
    /// Field numbers start at 1.
    #[error("field number 0")]
    FieldZero,
    /// Wire types 6 and 7 do not exist.
    #[error("wire type {0} does not exist")]
    WireType(u32),
    /// A group's end has no matching beginning.
    #[error("the end of group {0} without its beginning")]
    GroupEnd(u32),
    /// Groups nest deeper than protobuf allows by default.
    #[error("groups nest deeper than {MAX_GROUP_DEPTH}")]
    GroupDepth,
    /// A field that the cut reads has another wire type than OTLP defines.
    #[error("field {number} has wire type {found} instead of {expected}")]
    Unexpected {
        /// The field's number.
        number: u32,
        /// The wire type that was found.
        found: u32,
        /// The wire type that OTLP defines.
        expected: u32,
    },
    /// The message's length does not fit gRPC's 32 bits.
    #[error("the message is longer than 4 GiB")]
    TooLong,
    /// The message has more resources, scopes and records than the cut takes. The message itself is not at fault.
    #[error("the message has more than {0} resources, scopes and records; send smaller batches")]
    Pieces(usize),
    /// Tracking the message's pieces needs more memory than is available. The message itself is not at fault.
    #[error("no room for {0} bytes more")]
    NoRoom(usize),
    /// What was noted of the message contradicts itself: a defect of ours, and no fault of its own.
    #[error("a defect of the cut: what it noted of the message contradicts itself")]
    Inconsistent,
}

/// One field of a message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Field<'a> {
    /// The field's number, never 0.
    pub number: u32,
    /// Its value.
    pub value: Value<'a>,
}

/// A field's value, by wire type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1: `fixed64`, `sfixed64`, `double`.
    Fixed64(u64),
    /// Wire type 2: messages, strings, bytes, packed repeated fields.
    Len(&'a [u8]),
    /// Wire types 3 and 4: a group, skipped to its matching end.
    Group,
    /// Wire type 5: `fixed32`, `sfixed32`, `float`.
    Fixed32(u32),
}

impl Value<'_> {
    /// Wire type of [`Value::Varint`].
    pub const VARINT: u32 = 0;
    /// Wire type of [`Value::Fixed64`].
    pub const FIXED64: u32 = 1;
    /// Wire type of [`Value::Len`].
    pub const LEN: u32 = 2;
    /// Wire type of [`Value::Fixed32`].
    pub const FIXED32: u32 = 5;

    /// Returns the number of the wire type.
    pub fn wire_type(&self) -> u32 {
        match self {
            Self::Varint(_) => Self::VARINT,
            Self::Fixed64(_) => Self::FIXED64,
            Self::Len(_) => Self::LEN,
            Self::Group => 3,
            Self::Fixed32(_) => Self::FIXED32,
        }
    }
}

impl<'a> Field<'a> {
    /// Returns the value of a field that OTLP defines as a message, a string or bytes.
    #[inline(always)]
    pub fn len_value(&self) -> Result<&'a [u8], Malformed> {
        match self.value {
            Value::Len(value) => Ok(value),
            _ => Err(self.unexpected(Value::LEN)),
        }
    }

    /// Returns the value of a field that OTLP defines as `fixed64`.
    #[inline(always)]
    pub fn fixed64_value(&self) -> Result<u64, Malformed> {
        match self.value {
            Value::Fixed64(value) => Ok(value),
            _ => Err(self.unexpected(Value::FIXED64)),
        }
    }

    #[cold]
    fn unexpected(&self, expected: u32) -> Malformed {
        Malformed::Unexpected { number: self.number, found: self.value.wire_type(), expected }
    }
}

/// Reads the fields of one message, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    pub(super) rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Creates a reader at the start of `message`.
    #[inline(always)]
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// Number of unread bytes.
    #[inline(always)]
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// Returns the number of the next field, the length of its value and the length of its tag and length. The value
    /// may be incomplete. Returns `None` if tag or length are incomplete, or if the field is not length-delimited.
    #[cold]
    pub fn header(&self) -> Option<(u32, u64, usize)> {
        let (tag, rest) = long_tag(self.rest).ok()?;
        let (len, rest) = long_varint(rest).ok()?;
        (tag & 7 == Value::LEN).then(|| (tag >> 3, len, self.rest.len() - rest.len()))
    }

    /// Reads the next field; `None` at the end of the message. After an error the reader stays at the malformed field.
    #[inline(always)]
    pub fn field(&mut self) -> Result<Option<Field<'a>>, Malformed> {
        // Nearly all fields are length-delimited, with a number below 16 and a length below 128. One comparison checks
        // both bytes.
        if let [tag, len, rest @ ..] = self.rest
            && u16::from_be_bytes([*tag, *len]) & 0x8780 == 0x0200
            && *tag > 0x07
            && let Some((value, rest)) = rest.split_at_checked(usize::from(*len))
        {
            self.rest = rest;
            return Ok(Some(Field { number: u32::from(*tag >> 3), value: Value::Len(value) }));
        }
        let Some((&first, rest)) = self.rest.split_first() else { return Ok(None) };
        let (tag, rest) = if first < 0x80 { (u32::from(first), rest) } else { long_tag(self.rest)? };
        let number = tag >> 3;
        if number == 0 {
            return Err(Malformed::FieldZero);
        }
        let (value, rest) = match tag & 7 {
            Value::LEN => {
                let (len, rest) = varint(rest)?;
                let (value, rest) = split(rest, len)?;
                (Value::Len(value), rest)
            }
            Value::FIXED64 => {
                let (value, rest) = rest.split_first_chunk().ok_or(Malformed::Truncated)?;
                (Value::Fixed64(u64::from_le_bytes(*value)), rest)
            }
            0 => {
                let (value, rest) = varint(rest)?;
                (Value::Varint(value), rest)
            }
            5 => {
                let (value, rest) = rest.split_first_chunk().ok_or(Malformed::Truncated)?;
                (Value::Fixed32(u32::from_le_bytes(*value)), rest)
            }
            3 => (Value::Group, skip_group(number, rest)?),
            4 => return Err(Malformed::GroupEnd(number)),
            wire_type => return Err(Malformed::WireType(wire_type)),
        };
        self.rest = rest;
        Ok(Some(Field { number, value }))
    }
}

/// Splits `len` bytes off the front.
#[inline(always)]
fn split(rest: &[u8], len: u64) -> Result<(&[u8], &[u8]), Malformed> {
    usize::try_from(len).ok().and_then(|len| rest.split_at_checked(len)).ok_or(Malformed::Length(len))
}

/// Reads a varint off the front.
#[inline(always)]
fn varint(rest: &[u8]) -> Result<(u64, &[u8]), Malformed> {
    match rest {
        [first, rest @ ..] if *first < 0x80 => Ok((u64::from(*first), rest)),
        [first, second, rest @ ..] if *second < 0x80 => Ok((u64::from(*first & 0x7f) | u64::from(*second) << 7, rest)),
        _ => long_varint(rest),
    }
}

/// Like [`varint`], for any length; kept out of line.
#[inline(never)]
fn long_varint(rest: &[u8]) -> Result<(u64, &[u8]), Malformed> {
    let mut value = 0;
    for (index, byte) in rest.iter().enumerate().take(MAX_VARINT_LEN) {
        // Nine bytes hold 63 bits, so the tenth may add only one.
        if index + 1 == MAX_VARINT_LEN && *byte > 1 {
            return Err(Malformed::Varint);
        }
        value |= u64::from(byte & 0x7f) << (7 * index);
        if *byte < 0x80 {
            return Ok((value, rest.get(index + 1..).unwrap_or_default()));
        }
    }
    Err(Malformed::Truncated)
}

#[inline(never)]
fn long_tag(rest: &[u8]) -> Result<(u32, &[u8]), Malformed> {
    let (tag, rest) = long_varint(rest)?;
    Ok((u32::try_from(tag).map_err(|_too_long| Malformed::Tag)?, rest))
}

/// Skips the rest of a group that has just begun, nested groups included, and returns the bytes behind its end tag.
#[cold]
#[inline(never)]
fn skip_group(number: u32, rest: &[u8]) -> Result<&[u8], Malformed> {
    let mut open = [0; MAX_GROUP_DEPTH];
    let (mut depth, mut innermost, mut rest) = (0, number, rest);
    loop {
        let (tag, after) = long_tag(rest)?;
        let (number, wire_type) = (tag >> 3, tag & 7);
        if number == 0 {
            return Err(Malformed::FieldZero);
        }
        rest = after;
        match wire_type {
            3 => {
                // The outermost group counts too, hence one entry less.
                *open
                    .get_mut(..MAX_GROUP_DEPTH - 1)
                    .and_then(|open| open.get_mut(depth))
                    .ok_or(Malformed::GroupDepth)? = innermost;
                innermost = number;
                depth += 1;
            }
            4 if number != innermost => return Err(Malformed::GroupEnd(number)),
            4 if depth == 0 => return Ok(rest),
            4 => {
                depth -= 1;
                innermost = open.get(depth).copied().unwrap_or_default();
            }
            0 => rest = varint(rest)?.1,
            1 => rest = split(rest, 8).map_err(|_past| Malformed::Truncated)?.1,
            Value::LEN => {
                let (len, after) = varint(rest)?;
                rest = split(after, len)?.1;
            }
            5 => rest = split(rest, 4).map_err(|_past| Malformed::Truncated)?.1,
            _ => return Err(Malformed::WireType(wire_type)),
        }
    }
}

/// Returns the length of the shortest varint of `value`, in bytes.
#[inline]
pub const fn varint_len(value: u32) -> u32 {
    // ceil(bits / 7), where 0 counts as one bit; 9/64 approximates 1/7 closely enough for up to 64 bits.
    ((32 - (value | 1).leading_zeros()) * 9 + 64) / 64
}

/// Returns the tag of a length-delimited field.
#[inline]
pub const fn len_tag(number: u32) -> u32 {
    number << 3 | Value::LEN
}

/// Appends the shortest varint of `value`.
#[inline]
pub fn put_varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(message: &[u8]) -> Result<Vec<Field<'_>>, Malformed> {
        let mut reader = Reader::new(message);
        std::iter::from_fn(|| reader.field().transpose()).collect()
    }

    fn only(message: &[u8]) -> Result<Value<'_>, Malformed> {
        fields(message).map(|fields| fields[0].value)
    }

    #[test]
    fn every_wire_type_is_read() {
        let message = [
            &[0x08, 0x96, 0x01, 0x11, 1, 0, 0, 0, 0, 0, 0, 0x80, 0x1a, 2, b'h', b'i', 0x23, 0x24][..],
            &[0x2d, 7, 0, 0, 0],
        ]
        .concat();
        let values: Vec<_> = fields(&message).unwrap().into_iter().map(|field| (field.number, field.value)).collect();
        assert_eq!(
            values,
            [
                (1, Value::Varint(150)),
                (2, Value::Fixed64(0x8000_0000_0000_0001)),
                (3, Value::Len(b"hi")),
                (4, Value::Group),
                (5, Value::Fixed32(7)),
            ]
        );
    }

    #[test]
    fn padded_tags_lengths_and_values_are_read() {
        assert_eq!(only(&[0x8a, 0x80, 0x00, 0x82, 0x80, 0x80, 0x00, 7, 8]), Ok(Value::Len(&[7, 8])));
        let ten = [0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(only(&ten), Ok(Value::Varint(u64::MAX)));
    }

    #[test]
    fn what_protobuf_refuses_is_refused() {
        let eleven = [&[0x08][..], &[0x80; 10], &[0]].concat();
        let sixty_five_bits = [&[0x08][..], &[0xff; 9], &[0x02]].concat();
        let cases: [(&[u8], Malformed); 17] = [
            (&[0x0a], Malformed::Truncated),
            (&[0x8a], Malformed::Truncated),
            (&[0x0a, 0x80], Malformed::Truncated),
            (&[0x0a, 5, 1], Malformed::Length(5)),
            (&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], Malformed::Length(u64::MAX)),
            (&[0x09, 1, 2, 3], Malformed::Truncated),
            (&[0x0d, 1, 2, 3], Malformed::Truncated),
            (&eleven, Malformed::Varint),
            (&sixty_five_bits, Malformed::Varint),
            (&[0xfa, 0xff, 0xff, 0xff, 0x1f, 0], Malformed::Tag),
            (&[0x02, 0], Malformed::FieldZero),
            (&[0x0e], Malformed::WireType(6)),
            (&[0x0f], Malformed::WireType(7)),
            (&[0x0c], Malformed::GroupEnd(1)),
            (&[0x0b, 0x14], Malformed::GroupEnd(2)),
            (&[0x0b, 0x08, 1], Malformed::Truncated),
            (&[0x0b, 0x03, 0x0c], Malformed::FieldZero),
        ];
        for (message, expected) in cases {
            assert_eq!(fields(message), Err(expected), "{message:02x?}");
        }
    }

    #[test]
    fn groups_are_followed_to_the_depth_of_protobuf() {
        let nested = |depth| [vec![0x0b; depth], vec![0x0c; depth]].concat();
        assert_eq!(only(&nested(MAX_GROUP_DEPTH)), Ok(Value::Group));
        assert_eq!(only(&nested(MAX_GROUP_DEPTH + 1)), Err(Malformed::GroupDepth));
        assert_eq!(only(&nested(1 << 20)), Err(Malformed::GroupDepth));
        assert_eq!(
            only(&[0x0b, 0x13, 0x0a, 1, 9, 0x11, 1, 2, 3, 4, 5, 6, 7, 8, 0x15, 1, 2, 3, 4, 0x14, 0x0c]),
            Ok(Value::Group)
        );
    }

    #[test]
    fn an_error_leaves_the_cursor_at_its_field() {
        let mut reader = Reader::new(&[0x08, 1, 0x0a, 9]);
        assert!(reader.field().unwrap().is_some());
        assert_eq!(reader.field(), Err(Malformed::Length(9)));
        assert_eq!(reader.left(), 2);
    }

    #[test]
    fn written_varints_are_the_shortest_and_as_long_as_said() {
        for value in (0..32).flat_map(|bit| [(1_u32 << bit) - 1, 1 << bit]).chain([u32::MAX]) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value) as usize, "{value}");
            assert_eq!(out.len(), prost::encoding::encoded_len_varint(u64::from(value)), "{value}");
            assert_eq!(varint(&out), Ok((u64::from(value), &[][..])));
        }
    }
}
