//! Replaces an `:authority` that h2 cannot parse, inside of the compressed header block.
//!
//! h2 resets a stream whose `:authority` is not a URI's host and port, but some clients send others: gRPC's C core
//! percent-encodes its target (`10.0.0.1%3A4317,10.0.0.2%3A4317`, `%2Frun%2Fotlp.sock`). gRPC servers ignore the value,
//! and so does this proxy. So a value that h2 cannot parse is replaced by one that it can. The new value has the same
//! length in the block and the same number of characters, so the dynamic tables of both ends (RFC 7541, 2.3.2) stay in
//! step, and a later reference to the field finds the new value.
//!
//! This module does not track the dynamic table. It ignores a literal whose name refers to that table, even if the name
//! is `:authority`; encoders use entry 1 of the static table or the name itself. An empty `:authority` stays, since it
//! cannot grow. In both cases h2 resets the stream, and `refused_streams` counts it.

use std::ops::Range;

use http::uri::Authority;

use super::pins::{ENTRY, Names};

/// The index of `:authority` in the static table (RFC 7541, appendix A).
const AUTHORITY_INDEX: usize = 1;

/// The name `:authority`, plain and Huffman-coded.
const AUTHORITY: &[u8] = b":authority";
const AUTHORITY_HUFFMAN: &[u8] = &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];

/// The Huffman code of a colon, which has seven bits.
const COLON_CODE: u8 = 0x5c;

/// The Huffman codes of one length in bits. They are consecutive numbers.
struct Codes {
    bits: usize,
    /// The code of the first symbol.
    first: u32,
    symbols: &'static [u8],
    /// The symbol that replaces symbols of this length which h2 cannot parse.
    substitute: Option<u8>,
}

/// All codes of at most 15 bits (RFC 7541, appendix B). Longer codes stand for bytes that occur in no name or address.
const CODES: &[Codes] = &[
    Codes { bits: 5, first: 0x0, symbols: b"012aceiost", substitute: Some(b'a') },
    Codes { bits: 6, first: 0x14, symbols: b" %-./3456789=A_bdfghlmnpru", substitute: Some(b'-') },
    Codes { bits: 7, first: 0x5c, symbols: b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz", substitute: Some(b'z') },
    Codes { bits: 8, first: 0xf8, symbols: b"&*,;XZ", substitute: Some(b'X') },
    Codes { bits: 10, first: 0x3f8, symbols: b"!\"()?", substitute: Some(b'!') },
    Codes { bits: 11, first: 0x7fa, symbols: b"'+|", substitute: Some(b'+') },
    Codes { bits: 12, first: 0xffa, symbols: b"#>", substitute: None },
    Codes { bits: 13, first: 0x1ff8, symbols: b"\0$@[]~", substitute: Some(b'~') },
    Codes { bits: 14, first: 0x3ffc, symbols: b"^}", substitute: None },
    Codes { bits: 15, first: 0x7ffc, symbols: b"<`{", substitute: None },
];

/// What a header block inserts into the dynamic table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Inserted {
    /// The size of its entries (RFC 7541, 4.1), at least: of decoded strings only the coded length is known, and of names of
    /// the table nothing.
    pub(super) size: usize,
    /// Whether a plain string is kept where it was read.
    pub(super) is_plain: bool,
    /// Whether a Huffman-coded string is kept where it was decoded.
    pub(super) is_decoded: bool,
    /// The length of all Huffman-coded strings of the block, inserted or not.
    pub(super) huffman_len: usize,
}

/// Finds `:authority` in a complete header block and replaces its value if h2 cannot parse it. A malformed block is
/// left for h2 to refuse. Returns what the block inserts into the dynamic table, which `names` follows.
pub(super) fn repair(block: &mut [u8], names: &mut Names) -> Inserted {
    let mut fields = Fields { reader: Reader { block, at: 0 }, names, authority: None, inserted: Inserted::default() };
    while fields.read_one().is_some() {}
    let Fields { authority, inserted, .. } = fields;
    if let Some((huffman, value)) = authority
        && let Some(value) = block.get_mut(value)
    {
        if huffman {
            repair_huffman(value);
        } else if !is_readable(value) {
            value.iter_mut().filter(|byte| !is_plain(**byte)).for_each(|byte| *byte = b'-');
        }
    }
    inserted
}

/// The fields of a header block, as they are read one after the other.
struct Fields<'a> {
    reader: Reader<'a>,
    names: &'a mut Names,
    /// Whether the value of the literal `:authority` is Huffman-coded, and its range. There is at most one literal: h2 resets
    /// a stream with two.
    authority: Option<(bool, Range<usize>)>,
    inserted: Inserted,
}

impl Fields<'_> {
    /// Reads one field. Returns `None` at the end of the block, or where it is malformed.
    fn read_one(&mut self) -> Option<()> {
        let Self { reader, names, authority, inserted } = self;
        // The first byte states the kind of the field (RFC 7541, 6).
        let first = *reader.block.get(reader.at)?;
        let (prefix, is_inserted) = match first {
            0x80.. => return reader.integer(7).map(drop),
            0x20..0x40 => return reader.integer(5).map(|size| names.resize(size)),
            0x40..0x80 => (6, true),
            0x00..0x20 => (4, false),
        };
        let index = reader.integer(prefix)?;
        let name = if index == 0 { Some(reader.string()?) } else { None };
        let value = reader.string()?;
        let lens = |coded: bool| {
            name.iter().chain([&value]).filter(move |(is_coded, _)| *is_coded == coded).map(|(_, range)| range.len())
        };
        let (plain_len, coded_len) = (lens(false).sum::<usize>(), lens(true).sum::<usize>());
        inserted.huffman_len += coded_len;
        if is_inserted {
            inserted.size += ENTRY + plain_len;
            let is_kept = match &name {
                Some((is_coded, range)) => {
                    let first = reader.block.get(range.start).copied().unwrap_or_default();
                    if *is_coded { first >> 1 == COLON_CODE } else { first == b':' }
                }
                None => names.keep(index),
            };
            names.insert(is_kept, plain_len + coded_len);
            inserted.is_plain |= is_kept && !value.0 && !value.1.is_empty();
            inserted.is_decoded |= is_kept && value.0;
        }
        let is_authority = match name {
            Some((huffman, name)) => reader.block.get(name)? == if huffman { AUTHORITY_HUFFMAN } else { AUTHORITY },
            None => index == AUTHORITY_INDEX,
        };
        if is_authority && authority.is_none() {
            *authority = Some(value);
        }
        Some(())
    }
}

/// Reads the integers and strings of header fields.
struct Reader<'a> {
    block: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    /// Reads an integer whose first byte holds `prefix` bits of it (RFC 7541, 5.1). h2 accepts up to five bytes.
    fn integer(&mut self, prefix: u32) -> Option<usize> {
        let mut next = || {
            let byte = self.block.get(self.at).copied()?;
            self.at += 1;
            Some(usize::from(byte))
        };
        let most = (1 << prefix) - 1;
        let mut value = next()? & most;
        if value < most {
            return Some(value);
        }
        for shift in [0, 7, 14, 21] {
            let byte = next()?;
            value += (byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// Reads a string (RFC 7541, 5.2). Returns whether it is Huffman-coded, and its range.
    fn string(&mut self) -> Option<(bool, Range<usize>)> {
        let huffman = self.block.get(self.at)? & 0x80 != 0;
        let len = self.integer(7)?;
        let start = self.at;
        self.at = start.checked_add(len).filter(|end| *end <= self.block.len())?;
        Some((huffman, start..self.at))
    }
}

/// Returns whether h2 can parse the value.
fn is_readable(value: &[u8]) -> bool {
    Authority::try_from(value).is_ok()
}

/// Returns whether a byte may be anywhere in a host name.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}

fn repair_huffman(value: &mut [u8]) {
    let decoded: Option<Vec<u8>> = Symbols { bytes: value, bit: 0 }.map(|it| it.map(|(_, symbol)| symbol)).collect();
    let Some(decoded) = decoded else { return };
    if is_readable(&decoded) {
        return;
    }
    let mut bit = 0;
    while let Some(Some((codes, symbol))) = (Symbols { bytes: value, bit }).next() {
        if !is_plain(symbol)
            && let Some(code) = codes.substitute.and_then(|substitute| codes.code_of(substitute))
        {
            write(value, bit, codes.bits, code);
        }
        bit += codes.bits;
    }
}

/// Iterates over the symbols of a Huffman-coded string from `bit` on. An item is `None` if its code is truncated or not
/// in [`CODES`].
struct Symbols<'a> {
    bytes: &'a [u8],
    bit: usize,
}

impl Iterator for Symbols<'_> {
    type Item = Option<(&'static Codes, u8)>;

    fn next(&mut self) -> Option<Self::Item> {
        let left = (self.bytes.len() * 8).saturating_sub(self.bit);
        // The padding is less than a byte and consists of ones.
        let ahead = window(self.bytes, self.bit);
        if left < 8 && ahead >> (WINDOW - left) == (1 << left) - 1 {
            return None;
        }
        let found = CODES.iter().find_map(|codes| {
            let at = (ahead >> (WINDOW - codes.bits)).checked_sub(codes.first)?;
            let symbol = *codes.symbols.get(usize::try_from(at).ok()?)?;
            (codes.bits <= left).then_some((codes, symbol))
        });
        if let Some((codes, _)) = found {
            self.bit += codes.bits;
        }
        Some(found)
    }
}

impl Codes {
    fn code_of(&self, symbol: u8) -> Option<u32> {
        let at = self.symbols.iter().position(|known| *known == symbol)?;
        Some(self.first + u32::try_from(at).ok()?)
    }
}

/// The number of bits that [`window`] returns: those of the longest code in [`CODES`], and one more.
const WINDOW: usize = 16;

/// Returns the [`WINDOW`] bits from `bit` on. Bits after the end are ones.
fn window(bytes: &[u8], bit: usize) -> u32 {
    let start = bit / 8;
    let three = (start..start + 3).fold(0, |sum, at| sum << 8 | u32::from(bytes.get(at).copied().unwrap_or(0xff)));
    (three >> (24 - WINDOW - bit % 8)) & 0xffff
}

/// Overwrites `bits` bits from `bit` on with a code of that length.
fn write(bytes: &mut [u8], bit: usize, bits: usize, code: u32) {
    for n in 0..bits {
        let (at, mask) = ((bit + n) / 8, 0x80 >> ((bit + n) % 8));
        if let Some(byte) = bytes.get_mut(at) {
            *byte = if code >> (bits - 1 - n) & 1 == 1 { *byte | mask } else { *byte & !mask };
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn repair(block: &mut [u8]) -> Inserted {
        super::repair(block, &mut Names::default())
    }

    /// Encodes a string with its length, Huffman-coded or plain.
    pub(crate) fn string(text: &[u8], huffman: bool) -> Vec<u8> {
        let bytes = if huffman { coded(text) } else { text.to_vec() };
        let mut out = integer(bytes.len(), 7, if huffman { 0x80 } else { 0 });
        out.extend(bytes);
        out
    }

    pub(crate) fn integer(value: usize, prefix: u32, first: u8) -> Vec<u8> {
        let most = (1_usize << prefix) - 1;
        if value < most {
            return vec![first | u8::try_from(value).unwrap()];
        }
        let (mut out, mut rest) = (vec![first | u8::try_from(most).unwrap()], value - most);
        while rest >= 0x80 {
            out.push(0x80 | u8::try_from(rest & 0x7f).unwrap());
            rest >>= 7;
        }
        out.push(u8::try_from(rest).unwrap());
        out
    }

    /// Huffman-codes a text. Bytes above 0x7f and control characters have no code in [`CODES`].
    fn coded(text: &[u8]) -> Vec<u8> {
        let mut bits = Vec::new();
        for byte in text {
            let codes = CODES.iter().find(|codes| codes.symbols.contains(byte)).expect("a code");
            let code = codes.code_of(*byte).unwrap();
            bits.extend((0..codes.bits).rev().map(|n| code >> n & 1 == 1));
        }
        bits.resize(bits.len().next_multiple_of(8), true);
        bits.chunks(8).map(|byte| byte.iter().fold(0, |sum, bit| sum << 1 | u8::from(*bit))).collect()
    }

    /// Writes a literal `:authority` of this value in every possible way, repairs it and returns the values that h2
    /// would read.
    fn repaired(value: &[u8]) -> Vec<Vec<u8>> {
        let long = [b'n'; 300];
        let names = [vec![0x41], vec![0x01], vec![0x11]].into_iter().chain(
            [0x40, 0x00, 0x10]
                .into_iter()
                .flat_map(|first| [true, false].map(|huffman| [vec![first], string(b":authority", huffman)].concat())),
        );
        let mut seen = Vec::new();
        for name in names {
            for huffman in [true, false] {
                // A table size update, indexed fields, a literal with a long value, and a literal with a name of the
                // dynamic table.
                let before = [
                    &[0x3f, 0xe1, 0x1f, 0x83, 0xff, 0x85, 0x01, 0x44][..],
                    &string(&long, huffman),
                    &[0x7e],
                    &string(b"5S", huffman),
                    &name,
                ]
                .concat();
                let behind =
                    [&[0x5f][..], &string(b"application/grpc", true), &[0x41], &string(b"a%b", false)].concat();
                let written = string(value, huffman);
                let mut block = [before.clone(), written.clone(), behind.clone()].concat();
                repair(&mut block);
                assert!(block.starts_with(&before) && block.ends_with(&behind), "only the value may change");
                let now = &block[before.len()..before.len() + written.len()];
                let head = written.len() - if huffman { coded(value).len() } else { value.len() };
                assert_eq!(now[..head], written[..head]);
                seen.push(if huffman {
                    let symbols = Symbols { bytes: &now[head..], bit: 0 };
                    symbols.map(|symbol| symbol.expect("every code must be known").1).collect()
                } else {
                    now[head..].to_vec()
                });
            }
        }
        seen
    }

    #[test]
    fn targets_of_clients_become_parsable_and_plain_names_stay() {
        for value in [
            "10.0.0.1%3A4317,10.0.0.2%3A4317",
            "%2Frun%2Fotlp.sock",
            "::1:4317",
            "a:1:2",
            "/run/x",
            "a b",
            "%",
            "a|b",
            "x:y@",
            "[::1",
        ] {
            for seen in repaired(value.as_bytes()) {
                assert_eq!(
                    seen.len(),
                    value.len(),
                    "{value}: the size of a table entry depends on the number of characters"
                );
                assert!(is_readable(&seen), "{value}: {:?}", String::from_utf8_lossy(&seen));
            }
        }
        for value in [
            "collector:4317",
            "10.0.0.1:4317",
            "[::1]:4317",
            "localhost",
            "me@host:1",
            "a%20b@host",
            "[fe80::1%25eth0]:1",
            "",
        ] {
            for seen in repaired(value.as_bytes()) {
                assert_eq!(seen, value.as_bytes(), "{value}");
            }
        }
        for seen in repaired(b"10.0.0.1%3A4317").chunks(2) {
            assert_eq!(seen, [b"10.0.0.1-3A4317", b"10.0.0.1-3A4317"]);
        }
        let mut wide = [&[0x41][..], &string("caf\u{e9}".as_bytes(), false)].concat();
        repair(&mut wide);
        assert_eq!(wide[2..], *b"caf--", "characters outside of ASCII would end the whole connection");
    }

    #[test]
    fn the_huffman_codes_are_those_of_the_specification() {
        assert_eq!(coded(AUTHORITY), AUTHORITY_HUFFMAN);
        // RFC 7541, C.4.1 and C.6.1.
        assert_eq!(coded(b"www.example.com"), [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff]);
        assert_eq!(coded(b"https://www.example.com")[..6], [0x9d, 0x29, 0xad, 0x17, 0x18, 0x63]);
        for codes in CODES {
            assert!(codes.substitute.is_none_or(|it| is_plain(it) && codes.symbols.contains(&it)), "{}", codes.bits);
        }
    }

    #[test]
    fn values_without_a_substitute_and_truncated_blocks_are_left_to_h2() {
        for value in [&b"a<b"[..], b"#"] {
            let block = [&[0x41][..], &string(value, true)].concat();
            let mut now = block.clone();
            repair(&mut now);
            let changed = now != block;
            assert!(!changed || !is_readable(value));
        }
        let whole = [&[0x41][..], &string(b"10.0.0.1%3A4317", true)].concat();
        for len in 0..whole.len() {
            let mut cut = whole[..len].to_vec();
            repair(&mut cut);
            assert_eq!(cut, whole[..len], "{len}");
        }
    }

    #[test]
    fn what_a_block_inserts_is_counted() {
        let block = [
            &[0x3f, 0xe1, 0x1f, 0x83][..],
            &[0x40],
            &string(b"x-plain", false),
            &string(b"0123456789", false),
            &[0x00],
            &string(b"x-not-inserted", true),
            &string(b"whatever", false),
            &[0x41],
            &string(b"10.0.0.1%3A4317", false),
            &[0x10],
            &string(b"x", false),
            &string(b"never", false),
        ]
        .concat();
        let inserted = repair(&mut block.clone());
        let huffman_len = coded(b"x-not-inserted").len();
        assert_eq!(inserted, Inserted { size: 2 * ENTRY + 17 + 15, is_plain: true, is_decoded: false, huffman_len });
        let value = string(b"application/grpc", true);
        let coded_value = repair(&mut [&[0x5f][..], &value].concat());
        assert_eq!(coded_value, Inserted { size: ENTRY, huffman_len: value.len() - 1, ..Inserted::default() });
        let path = string(b"/a/path", true);
        assert!(repair(&mut [&[0x44][..], &path].concat()).is_decoded);
        for huffman in [true, false] {
            let name = string(b":authority", huffman);
            assert!(repair(&mut [&[0x40][..], &name, &string(b"a", false)].concat()).is_plain, "a literal name");
        }
        assert_eq!(repair(&mut [0x82, 0xbe, 0x84]), Inserted::default(), "references");
        assert_eq!(repair(&mut block[..block.len() - 1].to_vec()).size, inserted.size, "the last one was cut off");
    }

    #[test]
    fn names_of_the_table_are_followed() {
        let mut names = Names::default();
        let mut is_plain = |block: &[u8]| super::repair(&mut block.to_vec(), &mut names).is_plain;
        let value = string(b"a:1", false);
        let literal = |first: &[u8]| [first, &value].concat();
        assert!(is_plain(&literal(&[0x41])), "entry 62 has an authority");
        assert!(is_plain(&literal(&[0x7e])), "entries 62 and 63");
        assert!(!is_plain(&[&[0x40][..], &string(b"x-other", false), &value].concat()), "entry 62 is no authority");
        assert!(!is_plain(&literal(&[0x7e])), "nor are now 62 and 63");
        assert!(!is_plain(&literal(&[0x7f, 0])), "63, so 62 to 64");
        assert!(is_plain(&literal(&[0x7f, 2])), "65");
        assert!(!is_plain(&literal(&[0x5f])), "a static name that is copied");
        // What is longer than the table leaves it empty, so that the numbers are not known any more.
        let long = string(&[b'y'; 5_000], false);
        assert!(!is_plain(&[&[0x40][..], &string(b"x-long", false), &long].concat()));
        assert!(is_plain(&literal(&[0x7e])), "any name of the table may be an authority");
    }

    proptest! {
        #[test]
        fn every_printable_authority_is_repaired_or_left(value in "[ -;=?-Z\\[\\]_a-z|~]{0,60}") {
            let value = value.as_bytes();
            for seen in repaired(value) {
                prop_assert_eq!(seen.len(), value.len());
                if is_readable(value) {
                    prop_assert_eq!(&seen, value);
                } else if !value.is_empty() && !value.contains(&b'#') {
                    prop_assert!(is_readable(&seen));
                }
            }
        }

        #[test]
        fn arbitrary_blocks_keep_their_length_and_do_not_panic(mut block in proptest::collection::vec(any::<u8>(), 0..200)) {
            let len = block.len();
            repair(&mut block);
            prop_assert_eq!(block.len(), len);
        }
    }
}
