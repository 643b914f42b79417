//! Header blocks of HTTP/2: finds the pieces of one in its frames, and repairs them.

use std::ops::Range;

use super::super::{
    hpack::{self, Inserted},
    pins::Names,
};

/// The length of a frame's head: length, type, flags and stream (RFC 9113, 4.1).
pub(in crate::listen) const HEAD: usize = 9;

/// Types of frames (RFC 9113, 6).
pub(super) const HEADERS: u8 = 0x1;
pub(super) const CONTINUATION: u8 = 0x9;

/// Flags of HEADERS (RFC 9113, 6.2).
pub(super) const END_HEADERS: u8 = 0x4;
pub(super) const PADDED: u8 = 0x8;
pub(super) const PRIORITY: u8 = 0x20;

/// The length of the priority fields in HEADERS.
pub(super) const PRIORITY_LEN: usize = 5;

/// A header block with this many CONTINUATION frames is not held back. h2 accepts fewer than half as many.
const MOST_PIECES: usize = 16;

/// The state of a header block.
pub(super) enum Block {
    /// Complete: its pieces, and the end of its last frame.
    Complete(Pieces, usize),
    /// Incomplete: at least this many more bytes are needed.
    Incomplete(usize),
    /// It has too many pieces.
    TooLong,
    /// Malformed.
    Malformed,
}

/// The ranges of a header block's pieces: one in HEADERS, and one in each CONTINUATION frame; these are rare.
pub(super) struct Pieces {
    first: Range<usize>,
    more: Vec<Range<usize>>,
}

pub(in crate::listen) fn length_of([high, middle, low, ..]: &[u8; HEAD]) -> usize {
    usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low)
}

/// Finds the pieces of a header block. `len` and `flags` are those of its HEADERS frame, whose payload begins at the
/// beginning of `bytes`; its CONTINUATION frames follow.
pub(super) fn block(bytes: &[u8], len: usize, flags: u8) -> Block {
    let Some(payload) = bytes.get(..len) else { return Block::Incomplete(len - bytes.len()) };
    // Padding longer than the payload is a connection error, which h2 reports.
    let Some(first) = fragment(payload, flags) else { return Block::Malformed };
    let mut pieces = Pieces { first, more: Vec::new() };
    let (mut end, mut flags) = (len, flags);
    while flags & END_HEADERS == 0 {
        let rest = bytes.get(end..).unwrap_or_default();
        let Some(head) = rest.first_chunk::<HEAD>() else { return Block::Incomplete(HEAD - rest.len()) };
        let [_, _, _, CONTINUATION, its_flags, ..] = *head else { return Block::Malformed };
        let (start, len) = (end + HEAD, length_of(head));
        end = start + len;
        if bytes.len() < end {
            return Block::Incomplete(end - bytes.len());
        }
        flags = its_flags;
        pieces.more.push(start..end);
        if pieces.more.len() == MOST_PIECES {
            return Block::TooLong;
        }
    }
    Block::Complete(pieces, end)
}

/// Returns the range of the header block's piece in the payload of HEADERS (RFC 9113, 6.2).
pub(super) fn fragment(payload: &[u8], flags: u8) -> Option<Range<usize>> {
    let (mut start, mut end) = (0, payload.len());
    if flags & PADDED != 0 {
        start += 1;
        end = end.checked_sub(usize::from(*payload.first()?))?;
    }
    if flags & PRIORITY != 0 {
        start += PRIORITY_LEN;
    }
    (start <= end).then_some(start..end)
}

// === impl Pieces ===

impl Pieces {
    /// Repairs the block. Returns what it inserts into the dynamic table.
    pub(super) fn repair(&self, bytes: &mut [u8], names: &mut Names) -> Inserted {
        if self.more.is_empty() {
            return hpack::repair(bytes.get_mut(self.first.clone()).unwrap_or_default(), names);
        }
        let all = || std::iter::once(&self.first).chain(&self.more);
        let mut whole: Vec<u8> = all().filter_map(|piece| bytes.get(piece.clone())).flatten().copied().collect();
        let inserted = hpack::repair(&mut whole, names);
        let mut rest = &whole[..];
        for piece in all() {
            let (now, later) = rest.split_at(piece.len().min(rest.len()));
            if let Some(place) = bytes.get_mut(piece.clone()).filter(|place| place.len() == now.len()) {
                place.copy_from_slice(now);
            }
            rest = later;
        }
        inserted
    }
}
