//! The protobuf message while it is written: one buffer, taken from the memory budget before it is allocated.
//!
//! Protobuf states the length of a message before its content, and JSON shows it only at the end. So a gap is left for
//! the length, as wide as a guess says. When the content is complete and its length needs another width, the content is
//! moved.
//!
//! **No byte is moved often**, however deep messages nest: when a gap turns out too narrow, all gaps around it that are
//! too narrow for this content as well are widened in the same pass. So a byte is moved at most once for each width
//! that is larger than the least, of which there are four.

use bytes::Bytes;

use super::error::{Fault, JsonErrorKind};
use crate::{
    budget::{Buffer, Permit},
    otlp::{
        Framed,
        framed::{PREFIX_LEN, prefix_of},
        wire::{put_varint, varint_len},
    },
};

/// The most bytes that the tag and the length of a field take, or the tag and the value of a number.
const MAX_HEAD: usize = 5 + 10;

/// The length of the message is guessed to be this part of the document's: three quarters. Spans, points and log records
/// with attributes of the usual lengths come to a half or two thirds.
const GUESSED_RATIO: (usize, usize) = (3, 4);

/// The least capacity of the buffer.
const LEAST: usize = 256;

/// How deep fields usually nest; for deeper ones, the list of gaps grows.
const USUAL_DEPTH: usize = 16;

/// The message.
pub(super) struct Output<'a> {
    buffer: Buffer,
    permit: &'a mut Permit,
    /// The most bytes of the message.
    most: usize,
    /// The lengths of the fields that are open, outermost first. None is wider than the one before it.
    gaps: Vec<Gap>,
}

/// The place of a length that is not known yet.
#[derive(Clone, Copy, Debug)]
struct Gap {
    /// The offset after it, where its content begins.
    start: usize,
    /// Its width in bytes.
    width: usize,
}

impl<'a> Output<'a> {
    /// Allocates a buffer for a document of `json` bytes. The message may have `most` bytes.
    pub(super) fn new(json: usize, most: usize, permit: &'a mut Permit) -> Result<Self, Fault> {
        let mut output = Self { buffer: Buffer::default(), permit, most, gaps: Vec::with_capacity(USUAL_DEPTH) };
        let (part, whole) = GUESSED_RATIO;
        let guess = (json / whole * part).max(LEAST).min(most);
        output.reach(PREFIX_LEN + guess, PREFIX_LEN, 0)?;
        output.buffer.bytes.extend_from_slice(&[0; PREFIX_LEN]);
        Ok(output)
    }

    /// Makes room for `more` bytes, `at` this offset of the document.
    #[inline(always)]
    fn room(&mut self, more: usize, at: usize) -> Result<(), Fault> {
        let bytes = &self.buffer.bytes;
        if more <= bytes.capacity() - bytes.len() { Ok(()) } else { self.grow(more, at) }
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self, more: usize, at: usize) -> Result<(), Fault> {
        let (len, capacity) = (self.buffer.bytes.len(), self.buffer.bytes.capacity());
        // The bytes of a head count for more than there may be, so they are left out here and counted in the end.
        let needed = len.saturating_add(more);
        if needed > self.most.saturating_add(PREFIX_LEN + MAX_HEAD) {
            return Err(self.too_large(at));
        }
        let most = self.most.saturating_add(PREFIX_LEN + MAX_HEAD);
        let doubled = capacity.saturating_mul(2).clamp(needed, most);
        self.reach(doubled, needed, at)
    }

    fn reach(&mut self, capacity: usize, needed: usize, at: usize) -> Result<(), Fault> {
        if self.buffer.reach(capacity, self.permit) || self.buffer.reach(needed, self.permit) {
            return Ok(());
        }
        Err(Fault { kind: JsonErrorKind::NoRoom(self.permit.bytes().saturating_add(needed)), at })
    }

    fn too_large(&self, at: usize) -> Fault {
        Fault { kind: JsonErrorKind::TooLarge(self.most), at }
    }

    /// Returns the offset of the next byte.
    fn len(&self) -> usize {
        self.buffer.bytes.len()
    }

    /// Writes a field of known content.
    #[inline(always)]
    pub(super) fn content(&mut self, tag: u32, content: &[u8], at: usize) -> Result<(), Fault> {
        self.room(MAX_HEAD + content.len(), at)?;
        let len = u32::try_from(content.len()).map_err(|_too_long| self.too_large(at))?;
        let bytes = &mut self.buffer.bytes;
        put_varint(bytes, tag);
        put_varint(bytes, len);
        bytes.extend_from_slice(content);
        Ok(())
    }

    /// Writes a field whose content comes in pieces, of `len` bytes altogether.
    #[inline(always)]
    pub(super) fn pieces(&mut self, tag: u32, pieces: [&[u8]; 4], len: usize, at: usize) -> Result<(), Fault> {
        self.room(MAX_HEAD + len, at)?;
        let len = u32::try_from(len).map_err(|_too_long| self.too_large(at))?;
        let bytes = &mut self.buffer.bytes;
        put_varint(bytes, tag);
        put_varint(bytes, len);
        for piece in pieces {
            bytes.extend_from_slice(piece);
        }
        Ok(())
    }

    /// Writes a tag, unless it is 0, and a varint.
    #[inline(always)]
    pub(super) fn varint(&mut self, tag: u32, value: u64, at: usize) -> Result<(), Fault> {
        self.room(MAX_HEAD, at)?;
        self.tag(tag);
        let (bytes, mut value) = (&mut self.buffer.bytes, value);
        while value >= 0x80 {
            bytes.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        bytes.push(value.to_le_bytes()[0]);
        Ok(())
    }

    /// Writes a tag, unless it is 0, and a number of fixed length.
    #[inline(always)]
    pub(super) fn fixed<const LEN: usize>(&mut self, tag: u32, value: [u8; LEN], at: usize) -> Result<(), Fault> {
        self.room(MAX_HEAD, at)?;
        self.tag(tag);
        self.buffer.bytes.extend_from_slice(&value);
        Ok(())
    }

    #[inline(always)]
    fn tag(&mut self, tag: u32) {
        if tag != 0 {
            put_varint(&mut self.buffer.bytes, tag);
        }
    }

    /// Adds bytes to an open field.
    pub(super) fn append(&mut self, content: &[u8], at: usize) -> Result<(), Fault> {
        self.room(content.len(), at)?;
        self.buffer.bytes.extend_from_slice(content);
        Ok(())
    }

    /// Begins a field whose length is not known yet. The gap for the length is no wider than the one around it, since no
    /// content is longer than what it is part of.
    #[inline(always)]
    pub(super) fn open(&mut self, tag: u32, width: usize, at: usize) -> Result<(), Fault> {
        self.room(MAX_HEAD, at)?;
        let width = self.gaps.last().map_or(width, |outer| width.min(outer.width));
        let bytes = &mut self.buffer.bytes;
        put_varint(bytes, tag);
        for _ in 0..width {
            bytes.push(0);
        }
        self.gaps.push(Gap { start: bytes.len(), width });
        Ok(())
    }

    /// Ends the field that was begun last: writes its length. Returns the width of the length.
    #[inline(always)]
    pub(super) fn close(&mut self, at: usize) -> Result<usize, Fault> {
        let Some(gap) = self.gaps.pop() else { return Ok(0) };
        let content = self.len().saturating_sub(gap.start);
        if let Ok(len @ 0..0x80) = u8::try_from(content)
            && gap.width == 1
            && let Some(byte) = gap.start.checked_sub(1).and_then(|begin| self.buffer.bytes.get_mut(begin))
        {
            *byte = len;
            return Ok(1);
        }
        self.close_wide(gap, content, at)
    }

    #[inline(never)]
    fn close_wide(&mut self, mut gap: Gap, content: usize, at: usize) -> Result<usize, Fault> {
        let len = u32::try_from(content).map_err(|_too_long| self.too_large(at))?;
        let width = varint_len(len) as usize;
        if gap.width < width {
            gap = self.widen(gap, width, at)?;
        } else if gap.width > width {
            let start = gap.start - gap.width + width;
            self.buffer.bytes.copy_within(gap.start.., start);
            self.buffer.bytes.truncate(start + content);
            gap = Gap { start, width };
        }
        let mut rest = len;
        if let Some(bytes) = self.buffer.bytes.get_mut(gap.start - width..gap.start) {
            for byte in bytes.iter_mut() {
                *byte = rest.to_le_bytes()[0] | 0x80;
                rest >>= 7;
            }
            if let Some(last) = bytes.last_mut() {
                *last &= 0x7f;
            }
        }
        Ok(width)
    }

    /// Widens the gap of what ends now, and those around it that its content alone makes too narrow. As no gap is wider
    /// than the one around it, these are the innermost ones.
    fn widen(&mut self, gap: Gap, width: usize, at: usize) -> Result<Gap, Fault> {
        let too_narrow = |gap: &&Gap| gap.width < width;
        let missing: usize = self.gaps.iter().rev().take_while(too_narrow).map(|gap| width - gap.width).sum();
        let mut shift = missing + width - gap.width;
        let mut end = self.len();
        self.room(shift, at)?;
        let bytes = &mut self.buffer.bytes;
        bytes.resize(end + shift, 0);
        let mut widen = |gap: &mut Gap| {
            bytes.copy_within(gap.start..end, gap.start + shift);
            end = gap.start - gap.width;
            gap.start += shift;
            shift -= width - gap.width;
            gap.width = width;
        };
        let mut widened = gap;
        widen(&mut widened);
        self.gaps.iter_mut().rev().take_while(|gap| gap.width < width).for_each(widen);
        Ok(widened)
    }

    /// Returns the message, and its size in memory.
    pub(super) fn seal(self, at: usize) -> Result<(Framed, usize), Fault> {
        let len = self.len().saturating_sub(PREFIX_LEN);
        let prefix = u32::try_from(len).ok().filter(|_| len <= self.most).map(prefix_of);
        let prefix = prefix.ok_or_else(|| self.too_large(at))?;
        let Self { buffer, permit, .. } = self;
        let mut bytes = buffer.bytes;
        if bytes.len() < bytes.capacity() / 2 {
            let before = bytes.capacity();
            bytes.shrink_to_fit();
            permit.shrink_to(permit.bytes().saturating_sub(before - bytes.capacity()));
        }
        let held = bytes.capacity();
        if let Some(spare) = bytes.first_chunk_mut::<PREFIX_LEN>() {
            *spare = prefix;
        }
        let too_large = Fault { kind: JsonErrorKind::TooLarge(len), at };
        Ok((Framed::from_prefixed(Bytes::from(bytes)).ok_or(too_large)?, held))
    }
}
