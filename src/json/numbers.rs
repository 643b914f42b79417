//! Numbers, of JSON and of strings.

use super::error::Malformed;

/// The most decimal digits that always fit 64 bits.
const SAFE_DIGITS: usize = 19;

/// The most significant digits of a decimal number that are kept: `u128` holds 38. An integer of OTLP has 20 at most.
const MAX_MANTISSA: u128 = 10_u128.pow(37);

/// An integer between the least `i64` and the greatest `u64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Integer {
    pub(super) is_negative: bool,
    pub(super) magnitude: u64,
}

impl From<u32> for Integer {
    fn from(value: u32) -> Self {
        Self { is_negative: false, magnitude: value.into() }
    }
}

impl Integer {
    /// Reads an integer. It may be written as any decimal number, such as `5.0` or `1.7e18`, if it has no fraction.
    /// Like Go's `ParseInt`, it takes a plus sign and zeros in front, which only strings can have.
    #[inline(always)]
    pub(super) fn parse(text: &[u8]) -> Result<Self, Malformed> {
        match digits(text) {
            Some(magnitude) => Ok(Self { is_negative: false, magnitude }),
            None => parse_decimal(text),
        }
    }

    /// Returns its value as `u64`, if it is at most `max`.
    #[inline(always)]
    pub(super) fn unsigned(self, max: u64) -> Result<u64, Malformed> {
        let fits = self.magnitude <= max && !(self.is_negative && self.magnitude != 0);
        if fits { Ok(self.magnitude) } else { Err(Malformed::Range) }
    }

    /// Returns its value as `i64`, if it is from `-max - 1` to `max`.
    #[inline(always)]
    pub(super) fn signed(self, max: i64) -> Result<i64, Malformed> {
        let value = if self.is_negative {
            0_i64.checked_sub_unsigned(self.magnitude)
        } else {
            i64::try_from(self.magnitude).ok()
        };
        value.filter(|value| (-max - 1..=max).contains(value)).ok_or(Malformed::Range)
    }
}

/// Reads up to 19 digits. Returns `None` if there is anything else.
#[inline(always)]
fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > SAFE_DIGITS {
        return None;
    }
    let (words, rest) = text.as_chunks::<8>();
    let mut value = 0;
    for word in words {
        value = value * 100_000_000 + eight_digits(u64::from_le_bytes(*word))?;
    }
    for digit in rest {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value * 10 + u64::from(digit);
    }
    Some(value)
}

/// Reads eight digits at once.
#[inline(always)]
fn eight_digits(word: u64) -> Option<u64> {
    let word = word ^ ZEROS;
    (no_digits(word) == 0).then(|| joined(word))
}

/// Reads the one to seven digits that these bytes begin with. Returns their number and their value; `None` if there is no
/// digit, or if all of them are.
#[inline(always)]
pub(super) fn leading_digits(bytes: [u8; 8]) -> Option<(usize, u32)> {
    let word = u64::from_le_bytes(bytes) ^ ZEROS;
    let bits = no_digits(word).trailing_zeros() & !7;
    if !(8..64).contains(&bits) {
        return None;
    }
    // The digits move to the end of the word, and zeros come in front of them.
    let value = u32::try_from(joined(word << (64 - bits))).ok()?;
    Some((bits as usize / 8, value))
}

/// Digits become 0 to 9 by an exclusive or with this.
const ZEROS: u64 = 0x3030_3030_3030_3030;

/// Returns a word whose lowest bit that is set is in the first byte that is above 9.
#[inline(always)]
fn no_digits(word: u64) -> u64 {
    // Six more do not carry 0 to 9 into the upper half of their byte. What a larger byte carries is in those after it.
    (word | word.wrapping_add(0x0606_0606_0606_0606)) & 0xf0f0_f0f0_f0f0_f0f0
}

/// Joins eight bytes of 0 to 9 to a number: neighbours are joined to numbers of two, four and eight digits. The first digit
/// is in the lowest byte.
#[inline(always)]
fn joined(word: u64) -> u64 {
    let pairs = (word * 10 + (word >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs * 100 + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
    (fours * 10_000 + (fours >> 32)) & 0xffff_ffff
}

#[inline(never)]
fn parse_decimal(text: &[u8]) -> Result<Integer, Malformed> {
    let (is_negative, rest) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let mut number = Decimal::default();
    let rest = number.whole(rest)?;
    let rest = match rest {
        [b'.', rest @ ..] => number.fraction(rest)?,
        _ => rest,
    };
    match rest {
        [] => {}
        [b'e' | b'E', exponent @ ..] => number.exponent(exponent)?,
        _ => return Err(Malformed::Number),
    }
    Ok(Integer { is_negative, magnitude: number.integer()? })
}

/// A decimal number: `mantissa × 10^scale`.
#[derive(Default)]
struct Decimal {
    mantissa: u128,
    scale: i64,
    /// Whether a digit other than 0 did not fit the mantissa.
    is_cut: bool,
}

impl Decimal {
    /// Adds a digit. Returns whether the mantissa had room for it.
    fn push(&mut self, digit: u8) -> bool {
        let has_room = self.mantissa < MAX_MANTISSA;
        if has_room {
            self.mantissa = self.mantissa * 10 + u128::from(digit - b'0');
        } else {
            self.is_cut |= digit != b'0';
        }
        has_room
    }

    fn whole<'t>(&mut self, text: &'t [u8]) -> Result<&'t [u8], Malformed> {
        let (digits, rest) = split_digits(text)?;
        for digit in digits {
            self.scale += i64::from(!self.push(*digit));
        }
        Ok(rest)
    }

    fn fraction<'t>(&mut self, text: &'t [u8]) -> Result<&'t [u8], Malformed> {
        let (digits, rest) = split_digits(text)?;
        for digit in digits {
            self.scale -= i64::from(self.push(*digit));
        }
        Ok(rest)
    }

    fn exponent(&mut self, text: &[u8]) -> Result<(), Malformed> {
        let (is_negative, text) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            _ => (false, text),
        };
        let (digits, []) = split_digits(text)? else { return Err(Malformed::Number) };
        // Beyond 18 digits, a larger exponent changes nothing.
        let exponent = digits.iter().fold(0_i64, |value, digit| {
            if value > i64::MAX / 100 { value } else { value * 10 + i64::from(digit - b'0') }
        });
        self.scale = self.scale.saturating_add(if is_negative { -exponent } else { exponent });
        Ok(())
    }

    fn integer(self) -> Result<u64, Malformed> {
        let Self { mut mantissa, mut scale, is_cut } = self;
        if mantissa == 0 {
            return Ok(0);
        }
        while scale < 0 {
            if mantissa % 10 != 0 {
                return Err(Malformed::Integer);
            }
            mantissa /= 10;
            scale += 1;
        }
        while scale > 0 && mantissa <= u128::from(u64::MAX) {
            mantissa *= 10;
            scale -= 1;
        }
        let integer = u64::try_from(mantissa).map_err(|_too_large| Malformed::Range)?;
        if is_cut { Err(Malformed::Integer) } else { Ok(integer) }
    }
}

/// Splits the digits off the front, of which there has to be one.
fn split_digits(text: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let len = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    text.split_at_checked(len).filter(|(digits, _)| !digits.is_empty()).ok_or(Malformed::Number)
}

/// Reads a floating-point number: one of JSON, `NaN`, `Infinity` or `-Infinity`. Like Go's `ParseFloat`, it takes these
/// words in any case and short as well.
pub(super) fn double(text: &[u8]) -> Result<f64, Malformed> {
    // Few digits are read faster as an integer, and every integer of 32 bits is a floating-point number.
    if let Some(integer) = digits(text).and_then(|integer| u32::try_from(integer).ok()) {
        return Ok(f64::from(integer));
    }
    let text = str::from_utf8(text).map_err(|_no_text| Malformed::Number)?;
    let value: f64 = text.parse().map_err(|_no_number| Malformed::Number)?;
    // Digits that are out of range are read as infinity. All words for infinity and for no number have an "n".
    if value.is_finite() || text.contains(['n', 'N']) { Ok(value) } else { Err(Malformed::Range) }
}
