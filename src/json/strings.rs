//! The contents of strings: escapes, hexadecimal and base64.

use super::{error::Malformed, lexer::Raw};

/// What a name or a number with escapes may have at most, in bytes. No name of OTLP is as long.
pub(super) const SHORT: usize = 64;

/// The number of bytes of base64 that stand for three bytes, and the padding.
const BASE64_GROUP: usize = 4;

/// Eight bytes, each 1.
const ONES: u64 = u64::from_ne_bytes([1; 8]);
/// Eight bytes, each with its highest bit only.
const HIGH: u64 = ONES << 7;

/// Returns how many bytes come before the first quote, backslash or control character.
#[inline(always)]
pub(super) fn plain_len(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while let Some((chunk, after)) = rest.split_first_chunk::<8>() {
        let stops = stops(u64::from_le_bytes(*chunk));
        if stops != 0 {
            return bytes.len() - rest.len() + (stops.trailing_zeros() >> 3) as usize;
        }
        rest = after;
    }
    let plain = rest.iter().take_while(|byte| !matches!(byte, b'"' | b'\\' | 0..0x20)).count();
    bytes.len() - rest.len() + plain
}

/// Returns a word whose lowest bit that is set is in the first of these eight bytes that ends plain text.
#[inline(always)]
fn stops(word: u64) -> u64 {
    // A byte below n has its high bit set after n was subtracted, unless it was set before. A borrow disturbs only
    // bytes after the first such one.
    let below = |word: u64, n: u64| word.wrapping_sub(ONES * n) & !word;
    // With its second bit inverted, the quote (0x22) comes right after the control characters, and the space leaves its place.
    let quote_or_control = below(word ^ (ONES * 0x02), 0x21);
    let backslash = below(word ^ (ONES * u64::from(b'\\')), 1);
    (quote_or_control | backslash) & HIGH
}

/// Returns the length of an escape whose backslash was read, if it is valid.
pub(super) fn escape_len(escape: &[u8]) -> Result<usize, Malformed> {
    match escape {
        [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => Ok(1),
        [b'u', digits @ ..] => match digits.first_chunk::<4>() {
            Some(digits) if digits.iter().all(u8::is_ascii_hexdigit) => Ok(5),
            Some(_) => Err(Malformed::Escape),
            None => Err(Malformed::Truncated),
        },
        [] => Err(Malformed::Truncated),
        _ => Err(Malformed::Escape),
    }
}

/// Passes on the pieces of a string with its escapes replaced. Half of a surrogate pair becomes U+FFFD, as in Go.
pub(super) fn unescape(raw: &[u8], put: &mut impl FnMut(&[u8])) {
    let mut rest = raw;
    loop {
        let plain = plain_len(rest);
        put(rest.get(..plain).unwrap_or_default());
        let Some([b'\\', kind, after @ ..]) = rest.get(plain..) else { return };
        rest = after;
        let simple = match kind {
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let character;
                (character, rest) = unicode(after);
                put(character.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            other => *other,
        };
        put(&[simple]);
    }
}

/// Reads the four digits after `\u`, and the second half of a surrogate pair if they are the first.
fn unicode(digits: &[u8]) -> (char, &[u8]) {
    let (first, rest) = code_unit(digits);
    if (0xd800..0xdc00).contains(&first)
        && let [b'\\', b'u', second @ ..] = rest
        && let (second @ 0xdc00..0xe000, after) = code_unit(second)
    {
        let pair = 0x1_0000 + ((first - 0xd800) << 10 | (second - 0xdc00));
        return (char::from_u32(pair).unwrap_or(char::REPLACEMENT_CHARACTER), after);
    }
    (char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER), rest)
}

fn code_unit(digits: &[u8]) -> (u32, &[u8]) {
    let (digits, rest) = digits.split_at_checked(4).unwrap_or_default();
    let value = digits.iter().fold(0, |value, digit| value << 4 | char::from(*digit).to_digit(16).unwrap_or_default());
    (value, rest)
}

/// Returns a string with its escapes replaced, in `buffer` if it has any. Returns `None` if it has some and is longer
/// than the buffer.
#[inline(always)]
pub(super) fn short<'b>(raw: Raw<'b>, buffer: &'b mut [u8; SHORT]) -> Option<&'b [u8]> {
    if raw.is_escaped { short_unescaped(raw.bytes, buffer) } else { Some(raw.bytes) }
}

#[cold]
fn short_unescaped<'b>(raw: &[u8], buffer: &'b mut [u8; SHORT]) -> Option<&'b [u8]> {
    let mut len = Some(0);
    unescape(raw, &mut |piece| {
        len = len.and_then(|len| {
            let end = len + piece.len();
            buffer.get_mut(len..end)?.copy_from_slice(piece);
            Some(end)
        });
    });
    buffer.get(..len?)
}

/// Decodes twice as many hexadecimal digits as there are bytes. Returns `None` if one is none.
#[inline(always)]
pub(super) fn unhex<const BYTES: usize>(digits: &[u8]) -> Option<[u8; BYTES]> {
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    let pairs: &[[u8; 2]; BYTES] = pairs.try_into().ok()?;
    // Bytes that are digits get a value below 16; without branches, so that all of them are decoded at once.
    let value = |digit: u8| {
        let decimal = digit.wrapping_sub(b'0');
        let letter = (digit | 0x20).wrapping_sub(b'a');
        let of_letter = if letter < 6 { letter + 10 } else { 0xff };
        if decimal < 10 { decimal } else { of_letter }
    };
    let mut bytes = [0; BYTES];
    let mut all = 0;
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        let (high, low) = (value(*high), value(*low));
        all |= high | low;
        *byte = high << 4 | (low & 0x0f);
    }
    (all < 16).then_some(bytes)
}

/// Decodes base64, of RFC 4648's alphabet (section 4) or the one for URLs (section 5), with or without padding. Line
/// ends are skipped, as Go does.
#[derive(Default)]
pub(super) struct Base64 {
    /// The digits that do not make a whole group yet.
    bits: u32,
    digits: usize,
    padding: usize,
}

impl Base64 {
    /// Decodes more text, and passes on groups of three bytes.
    pub(super) fn decode(&mut self, text: &[u8], put: &mut impl FnMut(&[u8])) -> Result<(), Malformed> {
        for byte in text {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' | b'-' => 62,
                b'/' | b'_' => 63,
                b'\r' | b'\n' => continue,
                b'=' => {
                    self.padding += 1;
                    continue;
                }
                _ => return Err(Malformed::Base64),
            };
            if self.padding > 0 {
                return Err(Malformed::Base64);
            }
            self.bits = self.bits << 6 | u32::from(value);
            self.digits += 1;
            if self.digits == BASE64_GROUP {
                let [_, a, b, c] = self.bits.to_be_bytes();
                put(&[a, b, c]);
                (self.bits, self.digits) = (0, 0);
            }
        }
        Ok(())
    }

    /// Passes on the rest.
    pub(super) fn finish(self, put: &mut impl FnMut(&[u8])) -> Result<(), Malformed> {
        // Padding fills the last group, or is left out.
        if self.padding > 0 && (self.digits == 0 || self.digits + self.padding != BASE64_GROUP) {
            return Err(Malformed::Base64);
        }
        match self.digits {
            0 => {}
            2 => put(&[(self.bits >> 4).to_le_bytes()[0]]),
            3 => {
                let [_, _, a, b] = (self.bits >> 2).to_be_bytes();
                put(&[a, b]);
            }
            _ => return Err(Malformed::Base64),
        }
        Ok(())
    }
}
