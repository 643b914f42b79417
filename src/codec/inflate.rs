//! Inflates gzip, zstd, deflate and snappy. The size limit and the memory budget bound the output while it is made.
//!
//! A message that states its size is inflated at once, into a buffer of that size: gzip by libdeflate, zstd by its
//! decoder. All others are inflated piece by piece, and their buffers grow within the bounds.

mod at_once;
mod deflate;
mod snappy;

use std::{
    cell::RefCell,
    io::{self, Read},
};

use flate2::{Crc, Decompress, FlushDecompress, Status};
use zstd::zstd_safe::{self, DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

use self::{at_once::gunzip_at_once, deflate::undeflate, snappy::unsnappy_block};
use super::{Encoding, ZSTD_WINDOW_LOG, output::Output};
use crate::{
    budget::{Budget, Permit},
    otlp::Framed,
    places::LONG,
    spare::Spare,
};

/// The most members that a gzip stream may have. Real clients send one; each costs a reset of the decoder.
const GZIP_MEMBERS: usize = 256;

/// The most bytes that one chunk of snappy inflates to.
const SNAPPY_CHUNK: usize = 64 << 10;

/// How many times its compressed size a message is guessed to have that states no size: a usual ratio of telemetry.
const GUESSED_RATIO: usize = 4;

/// The highest ratio of deflate data, rounded up (zlib's documentation has 1032).
const DEFLATE_RATIO: usize = 1_040;

/// The reason why a message could not be inflated.
#[derive(Debug, PartialEq, Eq)]
pub enum InflateError {
    /// The inflated message is larger than the limit.
    TooLarge,
    /// The budget has no room. So far, the message and its compressed form take this many bytes.
    NoRoom(usize),
    /// The message inflates to more than 8 MiB and more than 1,000 times its compressed size.
    Ratio,
    /// The data is not valid in its encoding.
    Corrupt(&'static str),
}

thread_local! {
    // Each thread keeps its decoders: making one costs more than inflating a small batch.
    static GZIP: RefCell<Decompress> = RefCell::new(Decompress::new(false));
    static ZSTD: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
}

/// The decoders for long messages. Each may keep a window of 8 MiB, so fewer are kept than there are threads.
static LONG_ZSTD: Spare<Option<DCtx<'static>>> = Spare::new(2);

/// An inflated message.
#[derive(Debug)]
pub struct Inflated {
    /// The message.
    pub message: Framed,
    /// Its size in memory, in bytes.
    pub held: usize,
    /// Whether it came as one member of gzip without a name or the like, or as one frame of zstd, which every decoder reads to
    /// its end. Some decoders stop after the first of several.
    pub is_one: bool,
}

/// Inflates `input` to a framed message of at most `limit` bytes.
///
/// The permit grows by the size of the output while it still covers the input. The caller shrinks it to the size of the
/// message once it has dropped the input.
pub fn inflate(encoding: Encoding, input: &[u8], limit: usize, permit: &mut Permit) -> Result<Inflated, InflateError> {
    let mut output = Output::new(input.len(), limit, permit);
    let parts = match encoding {
        Encoding::Deflate => GZIP.with_borrow_mut(|decoder| undeflate(decoder, input, &mut output).map(|()| 1))?,
        Encoding::Gzip => gunzip(input, &mut output)?,
        Encoding::Snappy if snappy::is_block(input) => unsnappy_block(input, &mut output).map(|()| 1)?,
        Encoding::Snappy => unsnappy(input, &mut output).map(|()| 1)?,
        Encoding::Zstd if limit <= LONG => ZSTD.with_borrow_mut(|decoder| unzstd(decoder, input, &mut output))?,
        Encoding::Zstd => LONG_ZSTD.with(|| None, |decoder| unzstd(decoder, input, &mut output))?,
    };
    let (message, held) = output.seal()?;
    // Readers differ in what they take of a gzip header's further fields.
    let is_plain = encoding != Encoding::Gzip || input.get(3) == Some(&0);
    Ok(Inflated { message, held, is_one: parts == 1 && is_plain })
}

/// Inflates `input` to a message of at most `limit` bytes that counts in no budget: a reply, or a message of a tool.
pub fn inflate_uncounted(encoding: Encoding, input: &[u8], limit: usize) -> Result<Framed, InflateError> {
    inflate(encoding, input, limit, &mut Budget::new(usize::MAX).permit()).map(|inflated| inflated.message)
}

/// Returns the inflated size that `input` states, or a guess if it states none. Nothing is inflated for this.
pub fn expected_len(encoding: Encoding, input: &[u8]) -> usize {
    let stated = match encoding {
        Encoding::Gzip => gzip_size(input),
        Encoding::Zstd => zstd_size(input).ok().flatten().map(|size| usize::try_from(size).unwrap_or(usize::MAX)),
        Encoding::Deflate | Encoding::Snappy => None,
    };
    stated.unwrap_or(input.len().saturating_mul(GUESSED_RATIO))
}

/// Returns the size in the last four bytes, which is the inflated size of the last member modulo 2^32 (RFC 1952, 2.3.1,
/// ISIZE). `None` if no data of that length can have this size.
fn gzip_size(input: &[u8]) -> Option<usize> {
    let stated = usize::try_from(u32::from_le_bytes(*input.last_chunk()?)).ok()?;
    (stated <= input.len().saturating_mul(DEFLATE_RATIO)).then_some(stated)
}

/// Returns the size in the header of the first frame. A frame that has another size is broken.
fn zstd_size(input: &[u8]) -> Result<Option<u64>, InflateError> {
    zstd_safe::get_frame_content_size(input).map_err(|_| BROKEN_ZSTD)
}

/// Returns whether the first frame states a window that is too large (RFC 8878, 3.1.1.1). The decoder would refuse it, too, but
/// the output is allocated before that. A frame without a window states its size, and is its own window.
fn has_large_zstd_window(input: &[u8]) -> bool {
    const MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
    const SINGLE_SEGMENT: u8 = 1 << 5;

    let Some(([magic @ .., flags, window], _)) = input.split_first_chunk::<6>() else { return false };
    let (exponent, mantissa) = (u32::from(*window >> 3), u64::from(*window & 7));
    let base = 1_u64 << (10 + exponent);
    *magic == MAGIC && flags & SINGLE_SEGMENT == 0 && base + base / 8 * mantissa > 1 << ZSTD_WINDOW_LOG
}

/// Inflates a stream of members, and returns their number.
fn gunzip(input: &[u8], output: &mut Output<'_>) -> Result<usize, InflateError> {
    match gzip_size(input) {
        // Truncated data states any size, and must not be called too large.
        Some(size) if !output.takes(size) => output.start_unkept()?,
        Some(size) => {
            output.start_stated(size as u64)?;
            if gunzip_at_once(input, size, &mut output.open.bytes) {
                return Ok(1);
            }
        }
        None => output.start_guessed(input.len().saturating_mul(GUESSED_RATIO))?,
    }
    GZIP.with_borrow_mut(|decoder| gunzip_members(decoder, input, output))
}

/// Inflates the members one after the other, piece by piece.
fn gunzip_members(decoder: &mut Decompress, mut input: &[u8], output: &mut Output<'_>) -> Result<usize, InflateError> {
    for members in 1..=GZIP_MEMBERS {
        input = gunzip_member(decoder, skip_gzip_header(input)?, output)?;
        if input.is_empty() {
            return Ok(members);
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
    let mut crc = Crc::new();
    decoder.reset(false);
    loop {
        output.make_room()?;
        let (taken, made, start) = (decoder.total_in(), decoder.total_out(), output.open.bytes.len());
        let status = decoder
            .decompress_vec(input, &mut output.open.bytes, FlushDecompress::Finish)
            .map_err(|_| InflateError::Corrupt("broken deflate data"))?;
        crc.update(output.open.bytes.get(start..).unwrap_or_default());
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

const BROKEN_ZSTD: InflateError = InflateError::Corrupt("broken zstd data, or a window above 8 MiB");

/// Inflates a stream of frames, and returns their number. The decoder writes a frame that states its size, and for which
/// there is room, at once.
fn unzstd(kept: &mut Option<DCtx<'static>>, input: &[u8], output: &mut Output<'_>) -> Result<usize, InflateError> {
    if has_large_zstd_window(input) {
        return Err(BROKEN_ZSTD);
    }
    let decoder = match kept {
        Some(decoder) => decoder,
        // It fails only if the allocator does, which is no fault of the message.
        None => kept.insert(new_zstd_decoder().ok_or(InflateError::NoRoom(0))?),
    };
    decoder.reset(ResetDirective::SessionOnly).map_err(|_| BROKEN_ZSTD)?;
    match zstd_size(input)? {
        Some(size) => output.start_stated(size)?,
        None => output.start_guessed(input.len().saturating_mul(GUESSED_RATIO))?,
    }
    let mut source = InBuffer::around(input);
    let mut frames = 0;
    loop {
        output.make_room()?;
        let (taken, made) = (source.pos(), output.open.bytes.len());
        let mut target = OutBuffer::around_pos(&mut output.open.bytes, made);
        let left = decoder.decompress_stream(&mut target, &mut source).map_err(|_| BROKEN_ZSTD)?;
        let all_read = source.pos() == input.len();
        frames += usize::from(left == 0);
        if left == 0 && all_read {
            return Ok(frames);
        }
        let stalled = source.pos() == taken && output.open.bytes.len() == made;
        if stalled || (all_read && output.has_room()) {
            return Err(InflateError::Corrupt("truncated zstd data"));
        }
    }
}

/// Inflates the framing format of snappy: chunks of at most 64 KiB once inflated, each with a checksum. The format has
/// no end mark, so a stream that was cut between two chunks is not detected here; gRPC's prefix states the length.
fn unsnappy(input: &[u8], output: &mut Output<'_>) -> Result<(), InflateError> {
    // The format states no size.
    output.start_guessed(input.len().saturating_mul(GUESSED_RATIO))?;
    let mut decoder = snap::read::FrameDecoder::new(input);
    loop {
        output.make_room()?;
        let bytes = &mut output.open.bytes;
        let len = bytes.len();
        bytes.resize(bytes.capacity().min(len + SNAPPY_CHUNK), 0);
        // The decoder returns 0 both at the end of the stream and for an empty buffer, so the buffer must not be empty.
        let room = bytes.get_mut(len..).filter(|room| !room.is_empty()).ok_or(InflateError::NoRoom(0))?;
        let read = decoder.read(room);
        bytes.truncate(len + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(InflateError::Corrupt("truncated snappy data"));
            }
            Err(_) => return Err(InflateError::Corrupt("broken snappy data")),
        }
    }
}

fn new_zstd_decoder() -> Option<DCtx<'static>> {
    let mut decoder = DCtx::try_create()?;
    decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG)).ok()?;
    Some(decoder)
}

#[cfg(test)]
mod tests;
