//! The block format of snappy: one length, then all data. HTTP calls it `snappy`, and the framing format `x-snappy-framed`;
//! Collectors wrote the latter under both names, so the beginning of the data decides.

use super::{super::output::Output, InflateError};

/// What the framing format begins with: a chunk that identifies the stream.
const FRAMED: &[u8] = b"\xff\x06\x00\x00sNaPpY";

/// How many times its size a block inflates to at most: three bytes copy 64.
const RATIO: usize = 22;

const BROKEN: InflateError = InflateError::Corrupt("broken snappy data");

/// Whether data has the block format. No data at all is a stream without chunks.
pub(super) fn is_block(input: &[u8]) -> bool {
    !input.is_empty() && !input.starts_with(FRAMED)
}

/// Returns the inflated size that a block states.
fn size(input: &[u8]) -> Result<usize, InflateError> {
    let size = snap::raw::decompress_len(input).map_err(|_| BROKEN)?;
    // No data of that length inflates to more, so nothing is allocated for it.
    if size <= input.len().saturating_mul(RATIO) { Ok(size) } else { Err(BROKEN) }
}

pub(super) fn unsnappy_block(input: &[u8], output: &mut Output<'_>) -> Result<(), InflateError> {
    let size = size(input)?;
    output.start_stated(size as u64)?;
    let bytes = &mut output.open.bytes;
    let start = bytes.len();
    bytes.resize(start + size, 0);
    let room = bytes.get_mut(start..).unwrap_or_default();
    let written = snap::raw::Decoder::new().decompress(input, room).map_err(|_| BROKEN)?;
    if written == size { Ok(()) } else { Err(BROKEN) }
}
