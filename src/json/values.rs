//! Values other than messages: reads one and writes it.

use super::{
    error::{Fault, Malformed},
    lexer::{Lexer, Raw},
    numbers::{self, Integer},
    output::Output,
    schema::{Enum, Int, Kind},
    strings::{self, Base64, SHORT},
};
use crate::otlp::wire::varint_len;

/// The characters of an ID of a profile in hexadecimal, which has 16 bytes.
const PROFILE_ID_DIGITS: usize = 32;

/// Reads a value that begins with `first`, and writes it with this tag; without, if the tag is 0. If `may_omit`, a value
/// of zero or of no length is not written.
#[inline(always)]
pub(super) fn write(
    kind: Kind,
    tag: u32,
    may_omit: bool,
    first: u8,
    lexer: &mut Lexer<'_>,
    output: &mut Output<'_>,
) -> Result<(), Fault> {
    let mut value = Writer { tag, may_omit, at: lexer.at(), output };
    match kind {
        Kind::String => value.string(text(first, lexer)?),
        Kind::Hex(16) => value.id::<16>(text(first, lexer)?),
        Kind::Hex(_) => value.id::<8>(text(first, lexer)?),
        Kind::Int(int) => value.int(int, integer(first, lexer)?),
        Kind::Double => value.double(first, lexer),
        Kind::Bool => value.bool(first, lexer),
        Kind::Enumerated(names) => value.enumerated(names, first, lexer),
        Kind::Bytes => value.bytes(text(first, lexer)?),
        Kind::ProfileId => value.profile_id(text(first, lexer)?),
        Kind::Nested(_) => Err(Malformed::Expected("no message").at(value.at)),
    }
}

/// Reads a string.
#[inline(always)]
fn text<'d>(first: u8, lexer: &mut Lexer<'d>) -> Result<Raw<'d>, Fault> {
    match first {
        b'"' => lexer.string(),
        // An element of a list; a member that is null is no value.
        b'n' => lexer.literal("null").map(|()| Raw { bytes: &[], is_escaped: false }),
        _ => Err(lexer.expected("a string")),
    }
}

/// Reads an integer: a number, or a string that has one.
#[inline(always)]
fn integer(first: u8, lexer: &mut Lexer<'_>) -> Result<Integer, Fault> {
    if let Some(short) = lexer.short_integer() {
        return Ok(Integer::from(short));
    }
    let at = lexer.at();
    let mut buffer = [0; SHORT];
    let text = number(first, lexer, &mut buffer)?;
    Integer::parse(text).map_err(|what| what.at(at))
}

/// Returns the characters of a number that is written as such or as a string.
#[inline(always)]
fn number<'b, 'd: 'b>(first: u8, lexer: &mut Lexer<'d>, buffer: &'b mut [u8; SHORT]) -> Result<&'b [u8], Fault> {
    match first {
        b'"' => {
            let at = lexer.at();
            let raw = lexer.string()?;
            strings::short(raw, buffer).ok_or(Malformed::Number.at(at))
        }
        b'-' | b'0'..=b'9' => lexer.number(),
        b'n' => lexer.literal("null").map(|()| b"0".as_slice()),
        _ => Err(lexer.expected("a number")),
    }
}

/// Writes one value.
struct Writer<'w, 'p> {
    tag: u32,
    may_omit: bool,
    /// The offset of the value in the document.
    at: usize,
    output: &'w mut Output<'p>,
}

impl Writer<'_, '_> {
    #[inline(always)]
    fn string(&mut self, raw: Raw<'_>) -> Result<(), Fault> {
        if raw.is_escaped { self.escaped(raw) } else { self.content(raw.bytes) }
    }

    #[inline(always)]
    fn content(&mut self, content: &[u8]) -> Result<(), Fault> {
        if content.is_empty() && self.may_omit {
            return Ok(());
        }
        self.output.content(self.tag, content, self.at)
    }

    #[inline(never)]
    fn escaped(&mut self, raw: Raw<'_>) -> Result<(), Fault> {
        // No escape is shorter than what it stands for.
        self.open(raw.bytes.len())?;
        let mut written = Ok(());
        strings::unescape(raw.bytes, &mut |piece| {
            if written.is_ok() {
                written = self.output.append(piece, self.at);
            }
        });
        written?;
        self.output.close(self.at).map(drop)
    }

    /// Begins a field of at most `most` bytes.
    fn open(&mut self, most: usize) -> Result<(), Fault> {
        let width = u32::try_from(most).map_or(1, |most| varint_len(most) as usize);
        self.output.open(self.tag, width, self.at)
    }

    #[inline(never)]
    fn bytes(&mut self, raw: Raw<'_>) -> Result<(), Fault> {
        if raw.bytes.is_empty() {
            return self.content(&[]);
        }
        self.open(raw.bytes.len() / 4 * 3 + 3)?;
        let mut written = Ok(());
        let mut decoder = Base64::default();
        let mut decoded = Ok(());
        let mut put = |piece: &[u8]| {
            if written.is_ok() {
                written = self.output.append(piece, self.at);
            }
        };
        let mut decode = |text: &[u8]| {
            if decoded.is_ok() {
                decoded = decoder.decode(text, &mut put);
            }
        };
        if raw.is_escaped {
            strings::unescape(raw.bytes, &mut decode);
        } else {
            decode(raw.bytes);
        }
        let decoded = decoded.and_then(|()| decoder.finish(&mut put));
        written?;
        decoded.map_err(|what| what.at(self.at))?;
        self.output.close(self.at).map(drop)
    }

    #[inline(always)]
    fn id<const BYTES: usize>(&mut self, raw: Raw<'_>) -> Result<(), Fault> {
        let mut buffer = [0; SHORT];
        let Some(digits) = strings::short(raw, &mut buffer) else {
            return Err(self.wrong_length(BYTES, raw.bytes));
        };
        if digits.is_empty() {
            return self.content(&[]);
        }
        if digits.len() != 2 * BYTES {
            return Err(self.wrong_length(BYTES, digits));
        }
        let id = strings::unhex::<BYTES>(digits).ok_or_else(|| Malformed::Hex.at(self.at))?;
        self.content(&id)
    }

    /// Writes an ID of 16 bytes that is written in hexadecimal or, with fewer characters, in base64.
    #[inline(never)]
    fn profile_id(&mut self, raw: Raw<'_>) -> Result<(), Fault> {
        let mut buffer = [0; SHORT];
        let digits = strings::short(raw, &mut buffer).map(<[u8]>::len);
        if digits == Some(PROFILE_ID_DIGITS) { self.id::<16>(raw) } else { self.bytes(raw) }
    }

    #[cold]
    fn wrong_length(&self, bytes: usize, digits: &[u8]) -> Fault {
        let found = str::from_utf8(digits).map_or(digits.len(), |digits| digits.chars().count());
        Malformed::IdLength { bytes, found }.at(self.at)
    }

    #[inline(always)]
    fn int(&mut self, int: Int, integer: Integer) -> Result<(), Fault> {
        if integer.magnitude == 0 && self.may_omit {
            return Ok(());
        }
        let value = match int {
            Int::Fixed64 | Int::Uint64 => integer.unsigned(u64::MAX),
            Int::Fixed32 | Int::Uint32 => integer.unsigned(u64::from(u32::MAX)),
            Int::Int64 | Int::Sfixed64 => integer.signed(i64::MAX).map(i64::cast_unsigned),
            Int::Int32 => integer.signed(i64::from(i32::MAX)).map(i64::cast_unsigned),
            // Negative numbers alternate with the others, so that small ones of both are short.
            Int::Sint32 => integer.signed(i64::from(i32::MAX)).map(|value| (value << 1 ^ value >> 63).cast_unsigned()),
        };
        let value = value.map_err(|what| what.at(self.at))?;
        match int {
            Int::Fixed64 | Int::Sfixed64 => self.output.fixed(self.tag, value.to_le_bytes(), self.at),
            Int::Fixed32 => {
                let [a, b, c, d, ..] = value.to_le_bytes();
                self.output.fixed(self.tag, [a, b, c, d], self.at)
            }
            Int::Int32 | Int::Int64 | Int::Uint32 | Int::Uint64 | Int::Sint32 => {
                self.output.varint(self.tag, value, self.at)
            }
        }
    }

    #[inline(never)]
    fn double(&mut self, first: u8, lexer: &mut Lexer<'_>) -> Result<(), Fault> {
        let value = match lexer.short_integer() {
            Some(short) => f64::from(short),
            None => numbers::double(number(first, lexer, &mut [0; SHORT])?).map_err(|what| what.at(self.at))?,
        };
        if value.to_bits() == 0 && self.may_omit {
            return Ok(());
        }
        self.output.fixed(self.tag, value.to_le_bytes(), self.at)
    }

    #[inline(always)]
    fn bool(&mut self, first: u8, lexer: &mut Lexer<'_>) -> Result<(), Fault> {
        let value = match first {
            b't' => lexer.literal("true").map(|()| true)?,
            b'f' => lexer.literal("false").map(|()| false)?,
            b'n' => lexer.literal("null").map(|()| false)?,
            _ => return Err(lexer.expected("true or false")),
        };
        if !value && self.may_omit {
            return Ok(());
        }
        self.output.varint(self.tag, u64::from(value), self.at)
    }

    #[inline(always)]
    fn enumerated(&mut self, names: &Enum, first: u8, lexer: &mut Lexer<'_>) -> Result<(), Fault> {
        if let Some(short) = lexer.short_integer() {
            return self.int(Int::Int32, Integer::from(short));
        }
        let mut buffer = [0; SHORT];
        let text = number(first, lexer, &mut buffer)?;
        let is_name = first == b'"' && text.first().is_none_or(|byte| !matches!(byte, b'-' | b'+' | b'0'..=b'9'));
        let integer = if is_name { names.number(text) } else { Integer::parse(text) };
        self.int(Int::Int32, integer.map_err(|what| what.at(self.at))?)
    }
}

impl Enum {
    /// Returns the number of a name.
    fn number(&self, name: &[u8]) -> Result<Integer, Malformed> {
        let found = self.0.iter().find(|(known, _)| known.as_bytes() == name);
        let (_, number) = found.ok_or(Malformed::EnumName)?;
        Ok(Integer { is_negative: *number < 0, magnitude: u64::from(number.unsigned_abs()) })
    }
}
