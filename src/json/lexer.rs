//! Reads JSON (RFC 8259) token by token, from one buffer and without copying.
//!
//! It knows strings, numbers and literals, and how to skip any value. It knows no fields.

use super::{
    error::{Fault, Malformed},
    numbers, strings,
};

/// The deepest nesting of objects and arrays. jsoniter, with which Collectors read JSON, has the same limit.
pub(super) const MAX_DEPTH: usize = 10_000;

/// Eight spaces.
const SPACES: u64 = u64::from_ne_bytes([b' '; 8]);

/// A cursor in a document.
#[derive(Debug)]
pub(super) struct Lexer<'a> {
    /// The length of the document.
    len: usize,
    /// What was not read yet.
    rest: &'a [u8],
    /// The ends of the objects and arrays that are open in a value that is being skipped. It is kept for the next one.
    open: Vec<u8>,
}

/// A string as it is written, without its quotes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw<'a> {
    pub(super) bytes: &'a [u8],
    /// Whether it has escapes. Each of them is valid.
    pub(super) is_escaped: bool,
}

/// Reads an integer of up to seven digits, with or without quotes around it. Returns it and what follows. Most numbers are as
/// short, and this is faster than finding their ends first.
#[inline(always)]
pub(super) fn short_integer(json: &[u8]) -> Option<(u32, &[u8])> {
    let (is_quoted, from) = match json {
        [b'"', from @ ..] => (true, from),
        from => (false, from),
    };
    let (len, value) = numbers::leading_digits(*from.first_chunk()?)?;
    let rest = from.get(len..)?;
    let rest = match (is_quoted, rest) {
        (true, [b'"', rest @ ..]) => rest,
        (true, _) | (false, [b'.' | b'e' | b'E', ..]) => return None,
        // JSON has no zeros in front of a number.
        (false, _) if len > 1 && from.first() == Some(&b'0') => return None,
        (false, rest) => rest,
    };
    Some((value, rest))
}

impl<'a> Lexer<'a> {
    pub(super) fn new(document: &'a [u8]) -> Self {
        Self { len: document.len(), rest: document, open: Vec::new() }
    }

    /// The offset of the next byte in the document.
    #[inline(always)]
    pub(super) fn at(&self) -> usize {
        self.len - self.rest.len()
    }

    /// The number of bytes that were not read yet.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Returns an error about the next byte: `expected` is not there.
    #[cold]
    #[inline(never)]
    pub(super) fn expected(&self, expected: &'static str) -> Fault {
        let what = if self.rest.is_empty() { Malformed::Truncated } else { Malformed::Expected(expected) };
        what.at(self.at())
    }

    /// Skips whitespace and returns the next byte, which stays unread. Returns 0, which is in no JSON, at the end.
    #[inline(always)]
    pub(super) fn peek(&mut self) -> u8 {
        match self.rest {
            [byte, ..] if *byte > b' ' => *byte,
            _ => self.peek_after_space(),
        }
    }

    #[inline(never)]
    fn peek_after_space(&mut self) -> u8 {
        loop {
            // Indentation is skipped eight spaces at a time.
            while let Some((chunk, rest)) = self.rest.split_first_chunk::<8>() {
                let others = u64::from_le_bytes(*chunk) ^ SPACES;
                if others != 0 {
                    self.rest = self.rest.get((others.trailing_zeros() >> 3) as usize..).unwrap_or_default();
                    break;
                }
                self.rest = rest;
            }
            match self.rest {
                [b' ' | b'\n' | b'\r' | b'\t', rest @ ..] => self.rest = rest,
                rest => return rest.first().copied().unwrap_or_default(),
            }
        }
    }

    /// Skips the next byte.
    #[inline(always)]
    pub(super) fn bump(&mut self) {
        if let [_, rest @ ..] = self.rest {
            self.rest = rest;
        }
    }

    /// Skips whitespace, and this byte if it follows. Returns whether it did.
    #[inline(always)]
    pub(super) fn eat(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == byte;
        if is_next {
            self.bump();
        }
        is_next
    }

    /// Reads this name, its quotes and the colon, if they follow. Returns whether they did.
    #[inline(always)]
    pub(super) fn eat_name(&mut self, name: &str) -> bool {
        if let [b'"', rest @ ..] = self.rest
            && let Some([b'"', b':', rest @ ..]) = rest.strip_prefix(name.as_bytes())
        {
            self.rest = rest;
            return true;
        }
        false
    }

    /// Reads any name and the colon.
    pub(super) fn name(&mut self) -> Result<Raw<'a>, Fault> {
        if self.peek() != b'"' {
            return Err(self.expected("a name in quotes"));
        }
        let name = self.string()?;
        if self.eat(b':') { Ok(name) } else { Err(self.expected("a colon")) }
    }

    /// Reads a string, whose first quote comes next.
    #[inline(always)]
    pub(super) fn string(&mut self) -> Result<Raw<'a>, Fault> {
        let from = self.rest.get(1..).unwrap_or_default();
        let plain = strings::plain_len(from);
        if let Some((bytes, [b'"', rest @ ..])) = from.split_at_checked(plain) {
            self.rest = rest;
            return Ok(Raw { bytes, is_escaped: false });
        }
        self.escaped_string(from, plain)
    }

    /// Reads a string with escapes: `plain` bytes of `from` come before the first.
    #[inline(never)]
    fn escaped_string(&mut self, from: &'a [u8], plain: usize) -> Result<Raw<'a>, Fault> {
        let start = self.len - from.len();
        let mut len = plain;
        loop {
            let rest = from.get(len..).unwrap_or_default();
            match rest {
                [b'"', after @ ..] => {
                    self.rest = after;
                    return Ok(Raw { bytes: from.get(..len).unwrap_or_default(), is_escaped: true });
                }
                [b'\\', escape @ ..] => {
                    len += 1 + strings::escape_len(escape).map_err(|what| what.at(start + len))?;
                }
                [_, ..] => return Err(Malformed::Control.at(start + len)),
                [] => return Err(Malformed::Truncated.at(start + len)),
            }
            len += strings::plain_len(from.get(len..).unwrap_or_default());
        }
    }

    /// Reads `true`, `false` or `null`.
    pub(super) fn literal(&mut self, literal: &'static str) -> Result<(), Fault> {
        self.rest = self.rest.strip_prefix(literal.as_bytes()).ok_or_else(|| self.expected("a value"))?;
        Ok(())
    }

    /// Reads a number, whose first byte comes next.
    #[inline(always)]
    pub(super) fn number(&mut self) -> Result<&'a [u8], Fault> {
        let from = self.rest;
        let digits = |from: &[u8], at: usize| {
            from.get(at..).unwrap_or_default().iter().take_while(|byte| byte.is_ascii_digit()).count()
        };
        let byte = |at: usize| from.get(at).copied().unwrap_or_default();
        let sign = usize::from(byte(0) == b'-');
        let whole = digits(from, sign);
        let mut len = sign + whole;
        let mut is_valid = whole == 1 || (whole > 1 && byte(sign) != b'0');
        if byte(len) == b'.' {
            let fraction = digits(from, len + 1);
            is_valid &= fraction > 0;
            len += 1 + fraction;
        }
        if matches!(byte(len), b'e' | b'E') {
            len += 1 + usize::from(matches!(byte(len + 1), b'+' | b'-'));
            let exponent = digits(from, len);
            is_valid &= exponent > 0;
            len += exponent;
        }
        let Some((number, rest)) = from.split_at_checked(len).filter(|_| is_valid) else {
            return Err(Malformed::Number.at(self.at()));
        };
        self.rest = rest;
        Ok(number)
    }

    /// Reads what comes next by this function, which returns what it found and what follows. Otherwise nothing is read.
    #[inline(always)]
    pub(super) fn eat_with<T>(&mut self, read: impl FnOnce(&'a [u8]) -> Option<(T, &'a [u8])>) -> Option<T> {
        let (found, rest) = read(self.rest)?;
        self.rest = rest;
        Some(found)
    }

    /// Reads a short integer, as [`short_integer`] does.
    #[inline(always)]
    pub(super) fn short_integer(&mut self) -> Option<u32> {
        self.eat_with(short_integer)
    }

    /// Reads a short integer and the comma behind it.
    #[inline(always)]
    pub(super) fn short_integer_and_comma(&mut self) -> Option<u32> {
        self.eat_with(|json| {
            let (value, [b',', rest @ ..]) = short_integer(json)? else { return None };
            Some((value, rest))
        })
    }

    /// Reads a value of any shape that begins at `depth`.
    pub(super) fn skip(&mut self, depth: usize) -> Result<(), Fault> {
        self.open.clear();
        loop {
            match self.peek() {
                b'"' => drop(self.string()?),
                b'-' | b'0'..=b'9' => drop(self.number()?),
                b't' => self.literal("true")?,
                b'f' => self.literal("false")?,
                b'n' => self.literal("null")?,
                begin @ (b'{' | b'[') => {
                    if depth + self.open.len() >= MAX_DEPTH {
                        return Err(Malformed::Depth(MAX_DEPTH).at(self.at()));
                    }
                    self.bump();
                    // In ASCII, the ends of both come two after their beginnings.
                    let end = begin + 2;
                    if !self.eat(end) {
                        self.open.push(end);
                        self.name_if_in_object()?;
                        continue;
                    }
                }
                _ => return Err(self.expected("a value")),
            }
            if !self.skip_ends()? {
                return Ok(());
            }
        }
    }

    /// Reads what follows a value that is skipped, up to the next. Returns whether there is one.
    fn skip_ends(&mut self) -> Result<bool, Fault> {
        while let Some(end) = self.open.last().copied() {
            if self.eat(b',') {
                self.name_if_in_object()?;
                return Ok(true);
            }
            if !self.eat(end) {
                return Err(self.expected(if end == b'}' { "a comma or }" } else { "a comma or ]" }));
            }
            self.open.pop();
        }
        Ok(false)
    }

    fn name_if_in_object(&mut self) -> Result<(), Fault> {
        if self.open.last() == Some(&b'}') {
            self.name()?;
        }
        Ok(())
    }
}
