//! The form of the tables: what JSON calls a field of a message, and how protobuf writes it.

use crate::otlp::wire::Value;

/// A message of OTLP.
#[derive(Debug)]
pub(super) struct Message {
    /// The message's place among all of them.
    pub(super) index: usize,
    /// The message's place among all messages and fields. Its fields have the places after it.
    pub(super) slot: usize,
    /// Its fields, in the order of their definition.
    pub(super) fields: &'static [Field],
}

/// A field of a message.
#[derive(Debug)]
pub(super) struct Field {
    /// Its name in JSON.
    pub(super) name: &'static str,
    /// The tag that protobuf writes before its value: number and wire type.
    pub(super) tag: u32,
    /// The type of its value, or of each of its values.
    pub(super) kind: Kind,
    /// Whether it is a list.
    pub(super) is_list: bool,
    /// Whether a value of zero or of no length differs from no value: members of a `oneof` and optional fields.
    pub(super) has_presence: bool,
}

/// The type of a value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Text.
    String,
    /// Bytes that JSON writes in base64.
    Bytes,
    /// An ID of this many bytes that JSON writes in hexadecimal.
    Hex(usize),
    /// The ID of a profile. OTLP's specification names only IDs of traces and spans as hexadecimal, so that base64 is
    /// right for this one, but OpenTelemetry's programs write it in hexadecimal too. Its length tells which it is.
    ProfileId,
    /// `true` or `false`.
    Bool,
    /// A floating-point number.
    Double,
    /// An integer.
    Int(Int),
    /// A name or number of an enumeration.
    Enumerated(&'static Enum),
    /// A message.
    Nested(&'static Message),
}

/// The type of an integer in protobuf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Int {
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Fixed32,
    Fixed64,
    Sfixed64,
}

/// The names and numbers of an enumeration.
#[derive(Debug)]
pub(super) struct Enum(pub(super) &'static [(&'static str, i32)]);

// === impl Message ===

impl Message {
    pub(super) const fn new(index: usize, slot: usize, fields: &'static [Field]) -> Self {
        Self { index, slot, fields }
    }
}

// === impl Field ===

impl Field {
    /// A field whose value is zero, or of no length, when it is absent.
    pub(super) const fn one(name: &'static str, number: u32, kind: Kind) -> Self {
        Self { name, tag: number << 3 | kind.wire_type(), kind, is_list: false, has_presence: false }
    }

    /// A field that is there or not, whatever its value.
    pub(super) const fn set(name: &'static str, number: u32, kind: Kind) -> Self {
        Self { name, tag: number << 3 | kind.wire_type(), kind, is_list: false, has_presence: true }
    }

    /// A list. Numbers of a list are packed into one field.
    pub(super) const fn many(name: &'static str, number: u32, kind: Kind) -> Self {
        Self { name, tag: number << 3 | Value::LEN, kind, is_list: true, has_presence: true }
    }
}

// === impl Kind ===

impl Kind {
    /// Whether protobuf writes the length before the value.
    pub(super) const fn has_length(self) -> bool {
        self.wire_type() == Value::LEN
    }

    const fn wire_type(self) -> u32 {
        match self {
            Self::String | Self::Bytes | Self::Hex(_) | Self::ProfileId | Self::Nested(_) => Value::LEN,
            Self::Double => Value::FIXED64,
            Self::Int(int) => int.wire_type(),
            Self::Bool | Self::Enumerated(_) => Value::VARINT,
        }
    }
}

// === impl Int ===

impl Int {
    const fn wire_type(self) -> u32 {
        match self {
            Self::Int32 | Self::Int64 | Self::Uint32 | Self::Uint64 | Self::Sint32 => Value::VARINT,
            Self::Fixed32 => Value::FIXED32,
            Self::Fixed64 | Self::Sfixed64 => Value::FIXED64,
        }
    }
}
