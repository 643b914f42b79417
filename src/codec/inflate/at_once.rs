//! Inflates a gzip member that states its size, as a whole. libdeflate does this in about half the time of a decoder that
//! works piece by piece.

use std::cell::RefCell;

use libdeflater::{Decompressor, crc32};
use memchr::memmem;

thread_local! {
    /// A decoder is tables of some 11 KiB, and keeps nothing between messages.
    static DECODER: RefCell<Decompressor> = RefCell::new(Decompressor::new());
}

/// The length of a member's trailer: the checksum and the size of its content (RFC 1952, 2.3).
const TRAILER: usize = 8;

/// Appends the content of `input` to `output`, whose capacity was taken from the memory budget, and returns whether it
/// did. It does if `input` is one valid member whose content has `size` bytes. If not, `output` is as before, and whoever
/// reads the data piece by piece finds out what it is.
pub(super) fn gunzip_at_once(input: &[u8], size: usize, output: &mut Vec<u8>) -> bool {
    let before = output.len();
    if output.capacity() - before < size {
        return false;
    }
    // The decoder writes to bytes that exist.
    output.resize(before + size, 0);
    let content = output.get_mut(before..).unwrap_or_default();
    let made = DECODER.with_borrow_mut(|decoder| decoder.gzip_decompress(input, content));
    let is_all = made == Ok(size) && ends_with_member(input, content);
    if !is_all {
        output.truncate(before);
    }
    is_all
}

/// Returns whether the first member of `input`, which has this valid content, ends where `input` ends.
///
/// The decoder does not tell where the member ends: it ignores what follows. But it has found the member's trailer there.
/// If the bytes of that trailer occur only at the end, this is where the member ends. (Those of an empty member are zeros,
/// which may be preceded by a further zero. It is left to others.) The size in the trailer mostly occurs only once, which
/// spares a second checksum of the content.
fn ends_with_member(input: &[u8], content: &[u8]) -> bool {
    let Ok(size) = u32::try_from(content.len()) else { return false };
    let is_at_end = |bytes: &[u8]| memmem::find(input, bytes).is_some_and(|at| at + bytes.len() == input.len());
    if is_at_end(&size.to_le_bytes()) {
        return true;
    }
    let mut trailer = [0; TRAILER];
    let (checksum, len) = trailer.split_at_mut(TRAILER / 2);
    checksum.copy_from_slice(&crc32(content).to_le_bytes());
    len.copy_from_slice(&size.to_le_bytes());
    is_at_end(&trailer)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use flate2::{Compression, bufread::MultiGzDecoder, write::GzEncoder};

    use super::*;

    fn gzip(data: &[u8], level: u32) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    /// Returns the content if it was inflated.
    fn run(input: &[u8], size: usize) -> Option<Vec<u8>> {
        let mut output = Vec::with_capacity(size + 10);
        output.extend_from_slice(b"before");
        let capacity = output.capacity();
        let is_done = gunzip_at_once(input, size, &mut output);
        assert_eq!(output.capacity(), capacity, "it must not allocate");
        assert!(output.starts_with(b"before"));
        if is_done {
            return Some(output.split_off(6));
        }
        assert_eq!(output.len(), 6, "it must leave nothing behind");
        None
    }

    #[test]
    fn every_member_inflates_to_what_another_library_reads() {
        let mut random = fastrand::Rng::with_seed(19);
        for len in [0, 1, 2, 100, 4_096, 70_000, 300_000] {
            let alphabet = random.u8(2..);
            let data: Vec<u8> = (0..len).map(|_| random.u8(..alphabet)).collect();
            for level in [0, 1, 6, 9] {
                let packed = gzip(&data, level);
                let mut oracle = Vec::new();
                MultiGzDecoder::new(packed.as_slice()).read_to_end(&mut oracle).unwrap();
                assert!(run(&packed, len) == Some(oracle) || len == 0, "{len} {level}");
                for size in [len + 1, len.saturating_sub(1)].into_iter().filter(|size| *size != len) {
                    assert_eq!(run(&packed, size), None, "the size is wrong");
                }
            }
        }
    }

    #[test]
    fn whatever_is_not_one_member_is_left_to_others() {
        let one = gzip(b"the same", 6);
        let other = gzip(b"the rest", 6);
        let trailer = &one[one.len() - TRAILER..];
        for (what, input) in [
            ("the same member twice", [&one[..], &one].concat()),
            ("another member of the same size", [&one[..], &other].concat()),
            ("a byte of garbage", [&one[..], b"x"].concat()),
            ("garbage that ends like the member", [&one[..], b"garbage", trailer].concat()),
            ("the trailer twice", [&one[..], trailer].concat()),
            ("a cut member", one[..one.len() - 1].to_vec()),
            ("garbage before the trailer", [&one[..one.len() - TRAILER], b"garbage!", trailer].concat()),
            ("nothing", Vec::new()),
        ] {
            assert_eq!(run(&input, 8), None, "{what}");
        }
        let long = [gzip(&vec![1; 70_000], 6), gzip(&vec![2; 70_000], 6)];
        assert!(run(&long[0], 70_000).is_some());
        assert_eq!(run(&long.concat(), 70_000), None, "two members of the same size");
        assert_eq!(
            run(&[long[0].as_slice(), &long[1][long[1].len() - TRAILER..]].concat(), 70_000),
            None,
            "a size twice"
        );
        for at in 0..one.len() {
            let mut broken = one.clone();
            broken[at] ^= 0x55;
            assert!(run(&broken, 8).is_none_or(|content| content == b"the same"), "{at}");
        }
    }

    #[test]
    fn without_room_nothing_is_inflated() {
        let mut output = Vec::with_capacity(4);
        assert!(!gunzip_at_once(&gzip(b"more than four", 6), 14, &mut output));
        assert!(output.is_empty() && output.capacity() < 14);
    }
}
