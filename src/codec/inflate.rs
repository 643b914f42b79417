//! Inflates gzip, zstd and snappy. The size limit and the memory budget bound the output while it is made.

use std::{
    cell::RefCell,
    io::{self, Read},
};

use bytes::Bytes;
use flate2::{Crc, Decompress, FlushDecompress, Status};
use zstd::zstd_safe::{self, DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

use super::{Encoding, ZSTD_WINDOW_LOG};
use crate::{
    budget::{Budget, Buffer, Permit},
    otlp::{
        Framed,
        framed::{PREFIX_LEN, prefix_of},
    },
};

/// The most members that a gzip stream may have. Real clients send one; each costs a reset of the decoder.
const GZIP_MEMBERS: usize = 256;

/// The most bytes that one chunk of snappy inflates to.
const SNAPPY_CHUNK: usize = 64 << 10;

/// A stream states its inflated size. The first buffer has that size, but at most this many bytes ...
const BELIEVED: usize = 256 << 10;
/// ... or this many times the compressed size, which the sender really sent.
const BELIEVED_RATIO: usize = 8;

/// The reason why a message could not be inflated.
#[derive(Debug, PartialEq, Eq)]
pub enum InflateError {
    /// The inflated message is larger than the limit.
    TooLarge,
    /// The budget has no room.
    Budget,
    /// The data is not valid in its encoding.
    Corrupt(&'static str),
}

thread_local! {
    // Each thread keeps its decoders: making one costs more than inflating a small batch.
    static GZIP: RefCell<Decompress> = RefCell::new(Decompress::new(false));
    static ZSTD: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
}

/// Inflates `input` to a framed message of at most `limit` bytes.
///
/// The permit grows by the size of the output while it still covers the input. Returns the message and its size in
/// memory; the caller shrinks the permit to that size once it has dropped the input.
pub fn inflate(
    encoding: Encoding,
    input: &[u8],
    limit: usize,
    permit: &mut Permit,
) -> Result<(Framed, usize), InflateError> {
    let mut output = Output::new(limit, permit);
    match encoding {
        Encoding::Gzip => GZIP.with_borrow_mut(|decoder| gunzip(decoder, input, &mut output))?,
        Encoding::Snappy => unsnappy(input, &mut output)?,
        Encoding::Zstd => ZSTD.with_borrow_mut(|decoder| unzstd(decoder, input, &mut output))?,
    }
    output.seal()
}

/// Inflates `input` to a message of at most `limit` bytes that counts in no budget: a reply, or a message of a tool.
pub fn inflate_uncounted(encoding: Encoding, input: &[u8], limit: usize) -> Result<Framed, InflateError> {
    inflate(encoding, input, limit, &mut Budget::new(usize::MAX).permit()).map(|(message, _)| message)
}

fn gunzip(decoder: &mut Decompress, mut input: &[u8], output: &mut Output<'_>) -> Result<(), InflateError> {
    // The last four bytes are the inflated size modulo 2^32 (RFC 1952, 2.3.1, ISIZE).
    let stated = input.last_chunk().map_or(0, |size| u32::from_le_bytes(*size));
    output.start(u64::from(stated), input.len())?;
    for _ in 0..GZIP_MEMBERS {
        input = gunzip_member(decoder, skip_gzip_header(input)?, output)?;
        if input.is_empty() {
            return Ok(());
        }
    }
    Err(InflateError::Corrupt("gzip stream of too many members"))
}

/// Inflates one member whose header was skipped, and returns the input after it.
fn gunzip_member<'a>(
    decoder: &mut Decompress,
    mut input: &'a [u8],
    output: &mut Output<'_>,
) -> Result<&'a [u8], InflateError> {
    let start = output.buffer.bytes.len();
    decoder.reset(false);
    loop {
        output.make_room()?;
        let (taken, made) = (decoder.total_in(), decoder.total_out());
        let status = decoder
            .decompress_vec(input, &mut output.buffer.bytes, FlushDecompress::Finish)
            .map_err(|_| InflateError::Corrupt("broken deflate data"))?;
        let taken = usize::try_from(decoder.total_in() - taken).unwrap_or(usize::MAX);
        input = input.get(taken..).ok_or(InflateError::Corrupt("truncated gzip data"))?;
        match status {
            Status::StreamEnd => break,
            Status::Ok | Status::BufError if taken == 0 && decoder.total_out() == made => {
                return Err(InflateError::Corrupt("truncated gzip data"));
            }
            Status::Ok | Status::BufError => {}
        }
    }
    let Some((trailer, rest)) = input.split_first_chunk::<8>() else {
        return Err(InflateError::Corrupt("truncated gzip data"));
    };
    let mut crc = Crc::new();
    crc.update(output.buffer.bytes.get(start..).unwrap_or_default());
    let [a, b, c, d, e, f, g, h] = *trailer;
    if u32::from_le_bytes([a, b, c, d]) != crc.sum() || u32::from_le_bytes([e, f, g, h]) != crc.amount() {
        return Err(InflateError::Corrupt("gzip checksum does not match"));
    }
    Ok(rest)
}

/// Skips a member's header (RFC 1952, 2.3), with any name and comment.
fn skip_gzip_header(input: &[u8]) -> Result<&[u8], InflateError> {
    const BROKEN: InflateError = InflateError::Corrupt("not a gzip header");
    const HCRC: u8 = 1 << 1;
    const EXTRA: u8 = 1 << 2;
    const NAME: u8 = 1 << 3;
    const COMMENT: u8 = 1 << 4;
    const RESERVED: u8 = 0b1110_0000;

    let Some((&[0x1f, 0x8b, 8, flags, ..], mut rest)) = input.split_first_chunk::<10>() else {
        return Err(BROKEN);
    };
    if flags & RESERVED != 0 {
        return Err(BROKEN);
    }
    if flags & EXTRA != 0 {
        let (len, after) = rest.split_first_chunk::<2>().ok_or(BROKEN)?;
        rest = after.get(usize::from(u16::from_le_bytes(*len))..).ok_or(BROKEN)?;
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            let end = rest.iter().position(|byte| *byte == 0).ok_or(BROKEN)?;
            rest = rest.get(end + 1..).ok_or(BROKEN)?;
        }
    }
    if flags & HCRC != 0 {
        rest = rest.get(2..).ok_or(BROKEN)?;
    }
    Ok(rest)
}

fn unzstd(kept: &mut Option<DCtx<'static>>, input: &[u8], output: &mut Output<'_>) -> Result<(), InflateError> {
    const BROKEN: InflateError = InflateError::Corrupt("broken zstd data, or a window above 8 MiB");
    let decoder = match kept {
        Some(decoder) => decoder,
        None => kept.insert(new_zstd_decoder().ok_or(InflateError::Budget)?),
    };
    decoder.reset(ResetDirective::SessionOnly).map_err(|_| BROKEN)?;
    // Without a stated size, assume a ratio that is usual for telemetry.
    let stated = zstd_safe::get_frame_content_size(input).map_err(|_| BROKEN)?;
    output.start(stated.unwrap_or(input.len() as u64 * 4), input.len())?;
    let mut source = InBuffer::around(input);
    loop {
        output.make_room()?;
        let (taken, made) = (source.pos(), output.buffer.bytes.len());
        let mut target = OutBuffer::around_pos(&mut output.buffer.bytes, made);
        let left = decoder.decompress_stream(&mut target, &mut source).map_err(|_| BROKEN)?;
        let all_read = source.pos() == input.len();
        if left == 0 && all_read {
            return Ok(());
        }
        let stalled = source.pos() == taken && output.buffer.bytes.len() == made;
        if stalled || (all_read && output.has_room()) {
            return Err(InflateError::Corrupt("truncated zstd data"));
        }
    }
}

/// Inflates the framing format of snappy: chunks of at most 64 KiB once inflated, each with a checksum. The format has
/// no end mark, so a stream that was cut between two chunks is not detected here; gRPC's prefix states the length.
fn unsnappy(input: &[u8], output: &mut Output<'_>) -> Result<(), InflateError> {
    // The format states no size: assume a ratio that is usual for telemetry.
    output.start(input.len() as u64 * 4, input.len())?;
    let mut decoder = snap::read::FrameDecoder::new(input);
    loop {
        output.make_room()?;
        let bytes = &mut output.buffer.bytes;
        let len = bytes.len();
        bytes.resize(bytes.capacity().min(len + SNAPPY_CHUNK), 0);
        // The decoder returns 0 both at the end of the stream and for an empty buffer, so the buffer must not be empty.
        let room = bytes.get_mut(len..).filter(|room| !room.is_empty()).ok_or(InflateError::Budget)?;
        let read = decoder.read(room);
        bytes.truncate(len + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(InflateError::Corrupt("truncated snappy data"));
            }
            Err(_) => return Err(InflateError::Corrupt("broken snappy data: it has to have snappy's framing format")),
        }
    }
}

fn new_zstd_decoder() -> Option<DCtx<'static>> {
    let mut decoder = DCtx::try_create()?;
    decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG)).ok()?;
    Some(decoder)
}

/// The inflated message while it is made, with room for its prefix in front.
struct Output<'a> {
    buffer: Buffer,
    permit: &'a mut Permit,
    limit: usize,
}

impl<'a> Output<'a> {
    fn new(limit: usize, permit: &'a mut Permit) -> Self {
        Self { buffer: Buffer::default(), permit, limit }
    }

    /// Allocates the first buffer for a message whose stated size is `stated`. The statement is believed up to a bound.
    fn start(&mut self, stated: u64, compressed: usize) -> Result<(), InflateError> {
        let believed = compressed.saturating_mul(BELIEVED_RATIO).max(BELIEVED).min(self.limit);
        let size = usize::try_from(stated).unwrap_or(usize::MAX).min(believed);
        // One byte more than stated, so that a decoder which has still to read its end does not need a larger buffer.
        self.reach(PREFIX_LEN + size + 1)?;
        self.buffer.bytes.extend_from_slice(&[0; PREFIX_LEN]);
        Ok(())
    }

    fn reach(&mut self, capacity: usize) -> Result<(), InflateError> {
        if self.buffer.reach(capacity, self.permit) { Ok(()) } else { Err(InflateError::Budget) }
    }

    fn has_room(&self) -> bool {
        self.buffer.bytes.len() < self.buffer.bytes.capacity()
    }

    /// Doubles a full buffer, up to one byte above the limit. If that byte gets used, the message is too large.
    fn make_room(&mut self) -> Result<(), InflateError> {
        if self.has_room() {
            return Ok(());
        }
        let most = self.limit.saturating_add(PREFIX_LEN + 1);
        if self.buffer.bytes.len() >= most {
            return Err(InflateError::TooLarge);
        }
        let doubled = self.buffer.bytes.capacity().saturating_mul(2).min(most);
        self.reach(doubled)
    }

    fn seal(self) -> Result<(Framed, usize), InflateError> {
        let mut bytes = self.buffer.bytes;
        let held = bytes.capacity();
        let len = bytes.len().saturating_sub(PREFIX_LEN);
        let prefix = u32::try_from(len).ok().filter(|_| len <= self.limit).map(prefix_of);
        match (prefix, bytes.first_chunk_mut::<PREFIX_LEN>()) {
            (Some(prefix), Some(spare)) => *spare = prefix,
            (None, _) | (_, None) => return Err(InflateError::TooLarge),
        }
        let framed = Framed::from_prefixed(Bytes::from(bytes)).ok_or(InflateError::TooLarge)?;
        Ok((framed, held))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const MIB: usize = 1 << 20;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        zstd::encode_all(data, 1).unwrap()
    }

    fn snappy(data: &[u8]) -> Vec<u8> {
        let mut encoder = snap::write::FrameEncoder::new(Vec::new());
        encoder.write_all(data).unwrap();
        encoder.into_inner().unwrap()
    }

    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|i| u8::try_from((i * i / 7) % 64).unwrap()).collect()
    }

    fn run(encoding: Encoding, input: &[u8], limit: usize, budget: usize) -> Result<Vec<u8>, InflateError> {
        let budget = Budget::new(budget);
        let mut permit = budget.take(input.len()).expect("the budget must hold the input");
        let (framed, held) = inflate(encoding, input, limit, &mut permit)?;
        assert!(budget.used() >= input.len() + framed.payload_len(), "both must be in the budget while both live");
        permit.shrink_to(held);
        assert_eq!(budget.used(), held);
        assert!(held >= framed.framed_len());
        Ok(framed.payload().to_vec())
    }

    #[test]
    fn what_was_deflated_comes_back() {
        for len in [0, 1, 100, 4096, BELIEVED, 5 * MIB + 3] {
            let data = text(len);
            assert_eq!(run(Encoding::Gzip, &gzip(&data), len, 64 * MIB), Ok(data.clone()), "gzip of {len}");
            assert_eq!(run(Encoding::Zstd, &zstd(&data), len, 64 * MIB), Ok(data.clone()), "zstd of {len}");
            assert_eq!(run(Encoding::Snappy, &snappy(&data), len, 64 * MIB), Ok(data.clone()), "snappy of {len}");
        }
    }

    #[test]
    fn one_byte_above_the_limit_is_too_large() {
        let data = text(10_000);
        let inputs = [(Encoding::Gzip, gzip(&data)), (Encoding::Zstd, zstd(&data)), (Encoding::Snappy, snappy(&data))];
        for (encoding, input) in inputs {
            assert_eq!(run(encoding, &input, 9_999, MIB), Err(InflateError::TooLarge), "{encoding:?}");
        }
    }

    #[test]
    fn a_bomb_never_holds_more_than_the_limit() {
        let zeros = vec![0; 64 * MIB];
        let bombs =
            [(Encoding::Gzip, gzip(&zeros)), (Encoding::Zstd, zstd(&zeros)), (Encoding::Snappy, snappy(&zeros))];
        for (encoding, bomb) in bombs {
            // Snappy inflates to about twenty times its size at most.
            assert!(bomb.len() < 4 * MIB, "{encoding:?}");
            assert_eq!(run(encoding, &bomb, 4 * MIB, 512 * MIB), Err(InflateError::TooLarge), "{encoding:?}");
            // The budget is used up before the limit is reached.
            assert_eq!(run(encoding, &bomb, 63 * MIB, bomb.len() + 2 * MIB), Err(InflateError::Budget), "{encoding:?}");
        }
    }

    #[test]
    fn several_members_are_one_message_and_garbage_after_them_is_not() {
        let two = [gzip(b"one, "), gzip(b"two")].concat();
        assert_eq!(run(Encoding::Gzip, &two, 100, MIB), Ok(b"one, two".to_vec()));
        let two = [zstd(b"one, "), zstd(b"two")].concat();
        assert_eq!(run(Encoding::Zstd, &two, 100, MIB), Ok(b"one, two".to_vec()));
        for (encoding, good) in [(Encoding::Gzip, gzip(b"good")), (Encoding::Zstd, zstd(b"good"))] {
            for garbage in [&b"\0"[..], b"garbage, and more of it", &good[..good.len() - 1]] {
                let input = [&good[..], garbage].concat();
                assert!(
                    matches!(run(encoding, &input, 100, MIB), Err(InflateError::Corrupt(_))),
                    "{encoding:?} {garbage:?}"
                );
            }
        }
        let many: Vec<u8> = std::iter::repeat_n(gzip(b""), GZIP_MEMBERS + 1).flatten().collect();
        assert!(matches!(run(Encoding::Gzip, &many, 100, MIB), Err(InflateError::Corrupt(_))));
    }

    #[test]
    fn every_truncation_and_every_broken_byte_is_an_error_or_the_same_data() {
        let data = text(600);
        for (encoding, good) in [(Encoding::Gzip, gzip(&data)), (Encoding::Zstd, zstd(&data))] {
            for len in 0..good.len() {
                assert!(
                    matches!(run(encoding, &good[..len], 1000, MIB), Err(InflateError::Corrupt(_))),
                    "{encoding:?} {len}"
                );
            }
            for at in 0..good.len() {
                let mut broken = good.clone();
                broken[at] ^= 0x55;
                if let Ok(inflated) = run(encoding, &broken, 1000, MIB) {
                    // Only bytes that do not affect the data may change: a time stamp, an operating system.
                    assert!(inflated == data || encoding == Encoding::Zstd, "{encoding:?} at {at}");
                }
            }
        }
        assert_eq!(run(Encoding::Gzip, &gzip(&data), 1000, MIB), Ok(data), "a decoder must survive broken input");
    }

    #[test]
    fn snappy_is_read_in_chunks_and_whatever_is_broken_in_them_is_found() {
        let data = text(200_000);
        let good = snappy(&data);
        // A stream may have a second stream identifier, padding and skippable chunks.
        let odd = [&good[..], &[0xfe, 3, 0, 0, 1, 2, 3], &[0x80, 0, 0, 0], &good].concat();
        assert_eq!(run(Encoding::Snappy, &odd, MIB, 64 * MIB), Ok([&data[..], &data].concat()));
        assert_eq!(run(Encoding::Snappy, b"", 100, MIB), Ok(Vec::new()), "an empty message");
        let raw = snap::raw::Encoder::new().compress_vec(&data).unwrap();
        for broken in
            [&raw[..], b"\xff\x06\0\0sNaPpX", &[&good[..], &[0x02, 0, 0, 0]].concat(), &[&good[..], b"x"].concat()]
        {
            assert!(matches!(run(Encoding::Snappy, broken, MIB, 64 * MIB), Err(InflateError::Corrupt(_))));
        }
        let good = snappy(&text(600));
        for len in 1..good.len() {
            let cut = run(Encoding::Snappy, &good[..len], 1000, MIB);
            // A stream that is cut after the first chunk, the stream identifier, is an empty message.
            assert!(matches!(cut, Err(InflateError::Corrupt(_))) || (len == 10 && cut == Ok(Vec::new())), "{len}");
        }
        for at in 0..good.len() {
            let mut broken = good.clone();
            broken[at] ^= 0x55;
            if let Ok(inflated) = run(Encoding::Snappy, &broken, 1000, MIB) {
                assert!(
                    inflated == text(600) || inflated.is_empty(),
                    "a chunk may have become one that is skipped: {at}"
                );
            }
        }
    }

    #[test]
    fn gzip_headers_with_every_field_are_skipped() {
        let plain = gzip(b"named");
        let mut input = plain[..10].to_vec();
        input[3] = 0b1_1110;
        input.extend_from_slice(b"\x03\0abc");
        input.extend_from_slice(b"name\0comment\0\x12\x34");
        input.extend_from_slice(&plain[10..]);
        assert_eq!(run(Encoding::Gzip, &input, 100, MIB), Ok(b"named".to_vec()));
    }

    #[test]
    fn a_zstd_window_above_the_cap_is_refused() {
        let data = text(10_000);
        let deflate = |window_log| {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            encoder.include_contentsize(false).unwrap();
            encoder.window_log(window_log).unwrap();
            // Written in pieces, so that the frame states its window and not its size.
            for piece in data.chunks(1000) {
                encoder.write_all(piece).unwrap();
                encoder.flush().unwrap();
            }
            encoder.finish().unwrap()
        };
        assert_eq!(run(Encoding::Zstd, &deflate(23), MIB, 64 * MIB), Ok(data.clone()));
        assert!(matches!(run(Encoding::Zstd, &deflate(24), MIB, 64 * MIB), Err(InflateError::Corrupt(_))));
    }
}
