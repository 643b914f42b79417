//! Inflates what HTTP calls `deflate`: zlib's format (RFC 1950), or deflate data without a format around it (RFC 1951),
//! which some clients send under the same name.

use flate2::{Decompress, FlushDecompress, Status};

use super::{super::output::Output, GUESSED_RATIO, InflateError};

const TRUNCATED: InflateError = InflateError::Corrupt("truncated deflate data");

/// Inflates `input`.
pub(super) fn undeflate(
    decoder: &mut Decompress,
    mut input: &[u8],
    output: &mut Output<'_>,
) -> Result<(), InflateError> {
    // The format states no size.
    output.start_guessed(input.len().saturating_mul(GUESSED_RATIO))?;
    decoder.reset(is_zlib(input));
    loop {
        output.make_room()?;
        let (taken, made) = (decoder.total_in(), decoder.total_out());
        let status = decoder
            .decompress_vec(input, &mut output.open.bytes, FlushDecompress::Finish)
            .map_err(|_| InflateError::Corrupt("broken deflate data, or a wrong checksum"))?;
        let now = usize::try_from(decoder.total_in() - taken).unwrap_or(usize::MAX);
        input = input.get(now..).ok_or(TRUNCATED)?;
        match status {
            Status::StreamEnd if input.is_empty() => return Ok(()),
            Status::StreamEnd => return Err(InflateError::Corrupt("bytes after the end of deflate data")),
            Status::Ok | Status::BufError if now == 0 && decoder.total_out() == made => return Err(TRUNCATED),
            Status::Ok | Status::BufError => {}
        }
    }
}

/// Returns whether the data begins with zlib's header: its method is deflate, and its check bits are right.
fn is_zlib(input: &[u8]) -> bool {
    let Some(&[method, flags]) = input.first_chunk::<2>() else { return false };
    method & 0x0f == 8 && method >> 4 <= 7 && u16::from_be_bytes([method, flags]).is_multiple_of(31)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{
        Compression,
        write::{DeflateEncoder, ZlibEncoder},
    };

    use super::{super::*, is_zlib};
    use crate::places::LONG;

    fn zlib(data: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn raw(data: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn run(input: &[u8], limit: usize) -> Result<Vec<u8>, InflateError> {
        let budget = Budget::new(64 << 20);
        let mut permit = budget.take(input.len()).unwrap();
        let Inflated { message, held, .. } = inflate(Encoding::Deflate, input, limit, &mut permit)?;
        permit.shrink_to(held);
        assert_eq!(budget.used(), held);
        Ok(message.payload().to_vec())
    }

    #[test]
    fn both_forms_come_back_within_the_limit() {
        for len in [0, 1, 100, 4096, LONG, 5 << 20] {
            let data: Vec<u8> = (0..len).map(|at| u8::try_from(at * at / 7 % 64).unwrap()).collect();
            for input in [zlib(&data), raw(&data)] {
                assert_eq!(run(&input, len).as_ref(), Ok(&data), "{len}");
                if len > 0 {
                    assert_eq!(run(&input, len - 1), Err(InflateError::TooLarge), "{len}");
                }
            }
        }
        assert!(is_zlib(&zlib(b"")) && !is_zlib(&raw(b"some text")));
    }

    #[test]
    fn whatever_is_broken_is_an_error() {
        let whole = zlib(b"some text, some text, some text");
        for end in 0..whole.len() {
            assert!(matches!(run(&whole[..end], 1_000), Err(InflateError::Corrupt(_))), "{end}");
        }
        let mut wrong = whole.clone();
        *wrong.last_mut().unwrap() ^= 1;
        assert!(matches!(run(&wrong, 1_000), Err(InflateError::Corrupt(_))), "a wrong checksum");
        let trailing = [&whole[..], b"x"].concat();
        assert!(matches!(run(&trailing, 1_000), Err(InflateError::Corrupt(_))));
        assert_eq!(run(&zlib(&vec![0; 20 << 20]), 10 << 20).err(), Some(InflateError::TooLarge));
    }
}
