//! Attributes as nearly all programs write them: `{"key":"…","value":{"stringValue":"…"}}` without spaces or escapes, and
//! the same with `intValue` and `boolValue`.
//!
//! They are most of the bytes of most requests. All of one is read before any of it is written, so the lengths of its two
//! messages are known, and nothing is left open. What is spelled differently, or is long, is left to the tables, which take
//! this spelling too and write the same bytes for it.

use super::{error::Fault, lexer, lexer::Lexer, output::Output, strings};

/// The tags of `KeyValue` and `AnyValue`: field number and wire type.
const KEY: u8 = 1 << 3 | 2;
const VALUE: u8 = 2 << 3 | 2;
const STRING_VALUE: u8 = 1 << 3 | 2;
const BOOL_VALUE: u8 = 2 << 3;
const INT_VALUE: u8 = 3 << 3;

/// How many objects are open inside an attribute: itself and its value.
pub(super) const DEPTH: usize = 2;

/// The longest attribute in bytes of protobuf: all lengths in it have one byte.
const LONGEST: usize = 0x7f;

/// An attribute, as it is written.
struct Attribute<'a> {
    key: &'a [u8],
    value: Value<'a>,
}

/// The value of an attribute.
#[derive(Clone, Copy)]
enum Value<'a> {
    String(&'a [u8]),
    Bool(bool),
    Int(u32),
}

/// Converts the attribute that comes next, whose field has this tag. Returns whether it was spelled as here; if not, nothing
/// was read.
#[inline(always)]
pub(super) fn convert(tag: u32, lexer: &mut Lexer<'_>, output: &mut Output<'_>) -> Result<bool, Fault> {
    let at = lexer.at();
    let Some(Attribute { key, value }) = lexer.eat_with(read) else { return Ok(false) };
    let byte = |len: usize| u8::try_from(len).unwrap_or_default();
    let before_value = key.len() + 4;
    match value {
        Value::String(text) => {
            let head = [VALUE, byte(text.len() + 2), STRING_VALUE, byte(text.len())];
            output.pieces(tag, [&[KEY, byte(key.len())], key, &head, text], before_value + 2 + text.len(), at)?;
        }
        Value::Bool(value) => {
            let tail = [VALUE, 2, BOOL_VALUE, value.into()];
            output.pieces(tag, [&[KEY, byte(key.len())], key, &tail, &[]], before_value + 2, at)?;
        }
        Value::Int(value) => {
            let (varint, len) = varint(value);
            let digits = varint.get(..len).unwrap_or_default();
            let head = [VALUE, byte(len + 1), INT_VALUE];
            output.pieces(tag, [&[KEY, byte(key.len())], key, &head, digits], before_value + 1 + len, at)?;
        }
    }
    Ok(true)
}

/// Reads an attribute. Returns it and what follows.
#[inline(always)]
fn read(json: &[u8]) -> Option<(Attribute<'_>, &[u8])> {
    let (key, rest) = text(json.strip_prefix(br#"{"key":""#)?)?;
    let rest = rest.strip_prefix(br#","value":{""#)?;
    let (value, rest) = match rest {
        [b's', ..] => {
            let (text, rest) = text(rest.strip_prefix(br#"stringValue":""#)?)?;
            (Value::String(text), rest)
        }
        [b'i', ..] => {
            let (int, rest) = lexer::short_integer(rest.strip_prefix(br#"intValue":"#)?)?;
            (Value::Int(int), rest)
        }
        [b'b', ..] => {
            let rest = rest.strip_prefix(br#"boolValue":"#)?;
            match rest.strip_prefix(b"true") {
                Some(rest) => (Value::Bool(true), rest),
                None => (Value::Bool(false), rest.strip_prefix(b"false")?),
            }
        }
        _ => return None,
    };
    let rest = rest.strip_prefix(b"}}")?;
    let text_len = if let Value::String(text) = value { text.len() } else { 0 };
    // The tables leave an empty key out. Besides both texts, an attribute has at most nine bytes.
    (!key.is_empty() && key.len().saturating_add(text_len) <= LONGEST - 9).then_some((Attribute { key, value }, rest))
}

/// Reads a text without escapes whose first quote was read.
#[inline(always)]
fn text(json: &[u8]) -> Option<(&[u8], &[u8])> {
    let (text, [b'"', rest @ ..]) = json.split_at_checked(strings::plain_len(json))? else { return None };
    Some((text, rest))
}

/// Returns a number of up to seven digits as a varint, and its length.
#[inline(always)]
fn varint(value: u32) -> ([u8; 4], usize) {
    let [a, b, c, d] = [value, value >> 7, value >> 14, value >> 21].map(|rest| rest.to_le_bytes()[0] & 0x7f);
    match value {
        0..0x80 => ([a, 0, 0, 0], 1),
        0x80..0x4000 => ([a | 0x80, b, 0, 0], 2),
        0x4000..0x20_0000 => ([a | 0x80, b | 0x80, c, 0], 3),
        _ => ([a | 0x80, b | 0x80, c | 0x80, d], 4),
    }
}
