//! The writer of parts: it puts their bytes into buffers of a bounded length, one part after the other.
//!
//! Bytes are copied, except for ranges that are long enough to be shared: a part is then a list of buffers, some of which are
//! slices of the buffers that its bytes came from.

use std::collections::VecDeque;

use bytes::Bytes;

use super::sources::{Lookup, offset};
use crate::{buffers, otlp::Framed};

/// Length of a buffer, at most: as long as the largest frames that come in, so that an allocator has one at hand. A buffer of
/// some MiB would be fresh memory each time, which the kernel clears first.
const BUFFER: usize = 256 << 10;

/// The longest bytes that are written at once: a varint of 32 bits, or gRPC's prefix.
const LONGEST_HEADER: usize = 5;

/// From which length on a range of bytes is shared instead of copied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shared {
    /// Fields of envelopes, which lie in the request.
    pub(super) envelopes_from: u32,
    /// Runs of records.
    pub(super) records_from: u32,
}

impl Shared {
    /// Everything is copied.
    pub(super) const NOTHING: Self = Self { envelopes_from: u32::MAX, records_from: u32::MAX };

    /// Early copies are the part's own already. Below 4 KiB a copy costs less than what a buffer more costs on the way to the
    /// socket.
    pub(super) const EARLY_COPIES: Self = Self { envelopes_from: u32::MAX, records_from: 4 << 10 };

    /// The request itself is shared, to save memory: a segment in lists takes less than a third of that.
    pub(super) const REQUEST: Self = Self { envelopes_from: 256, records_from: 256 };

    /// Bytes that lists of segments take for each of them.
    pub(super) const SEGMENT_LEN: usize = size_of::<Segment>() + size_of::<Bytes>();
}

/// Writes parts.
#[derive(Debug)]
pub(super) struct Writer {
    /// Bytes that will be copied in all.
    total: usize,
    full: VecDeque<Bytes>,
    /// Bytes in these.
    full_len: usize,
    /// The buffer that is being filled, and how much it takes.
    open: Vec<u8>,
    room: usize,
    /// What the parts are made of.
    segments: Vec<Segment>,
    /// Copied bytes up to here are in a segment.
    noted: usize,
    /// How many segments there were when each part ended.
    ends: Vec<usize>,
}

/// A segment of a part.
#[derive(Debug)]
enum Segment {
    /// So many of the copied bytes, the next ones.
    Copied(usize),
    Shared(Bytes),
}

impl Writer {
    /// A writer of so many parts, of so many segments in all, for which `total` bytes will be copied.
    pub(super) fn new(parts: usize, segments: usize, total: usize) -> Self {
        let room = total.min(BUFFER);
        Self {
            total,
            full: VecDeque::new(),
            full_len: 0,
            open: buffers::take(room),
            room,
            segments: Vec::with_capacity(segments.max(parts)),
            noted: 0,
            ends: Vec::with_capacity(parts),
        }
    }

    /// How many buffers `total` copied bytes take.
    pub(super) fn buffers_for(total: usize) -> usize {
        total.div_ceil(BUFFER)
    }

    /// Where a prefix, a tag or a length is written to.
    pub(super) fn header(&mut self) -> &mut Vec<u8> {
        // The last buffer has room for all that follows, however little that is.
        if self.spare() < LONGEST_HEADER && self.full_len + self.room < self.total {
            self.next_buffer();
        }
        &mut self.open
    }

    /// Adds the bytes from `start` to `end`: a share of them if they are at least `shared_from` bytes, a copy if not. Bytes that
    /// are nowhere are left out, which makes the part too short.
    #[inline]
    pub(super) fn add(&mut self, from: &mut Lookup<'_>, start: u32, end: u32, shared_from: u32) {
        let len = end.saturating_sub(start);
        if len >= shared_from {
            return self.share(from, start, end);
        }
        let bytes = from.bytes(start, end);
        self.copy(bytes);
        if bytes.len() < len as usize {
            self.copy_rest(from, start + offset(bytes.len()), end);
        }
    }

    /// Ends a part.
    pub(super) fn end_part(&mut self) {
        self.note_copied();
        self.ends.push(self.segments.len());
    }

    /// The parts in their order, each with one of `tags`. `None` if a part does not have the length that its prefix says, or if
    /// there are fewer parts than tags.
    pub(super) fn finish<T>(mut self, tags: impl Iterator<Item = T>) -> Option<Vec<(T, Framed)>> {
        self.close(0);
        let mut parts = Vec::with_capacity(self.ends.len());
        let (mut ends, mut segments, mut before) = (self.ends.into_iter(), self.segments.into_iter(), 0);
        for tag in tags {
            let count = ends.next()? - before;
            before += count;
            parts.push((tag, take_part(&mut self.full, &mut segments, count)?));
        }
        Some(parts)
    }

    /// Bytes that the open buffer still takes.
    #[inline]
    fn spare(&self) -> usize {
        self.room.saturating_sub(self.open.len())
    }

    #[inline]
    fn copy(&mut self, bytes: &[u8]) {
        if bytes.len() <= self.spare() {
            self.open.extend_from_slice(bytes);
        } else {
            self.copy_across(bytes);
        }
    }

    /// Copies bytes that do not fit the open buffer.
    #[cold]
    fn copy_across(&mut self, mut bytes: &[u8]) {
        while let Some((fits, rest)) = bytes.split_at_checked(self.spare())
            && !rest.is_empty()
        {
            self.open.extend_from_slice(fits);
            self.next_buffer();
            bytes = rest;
        }
        self.open.extend_from_slice(bytes);
    }

    /// Copies what lies in further buffers of the origin.
    #[cold]
    fn copy_rest(&mut self, from: &mut Lookup<'_>, mut start: u32, end: u32) {
        while start < end {
            let bytes = from.bytes(start, end);
            if bytes.is_empty() {
                return;
            }
            self.copy(bytes);
            start += offset(bytes.len());
        }
    }

    #[inline(never)]
    fn share(&mut self, from: &mut Lookup<'_>, mut start: u32, end: u32) {
        self.note_copied();
        while start < end {
            let bytes = from.share(start, end);
            if bytes.is_empty() {
                return;
            }
            start += offset(bytes.len());
            self.segments.push(Segment::Shared(bytes));
        }
    }

    /// Makes a segment of what was copied since the last one.
    fn note_copied(&mut self) {
        let copied = self.full_len + self.open.len();
        if copied > self.noted {
            self.segments.push(Segment::Copied(copied - self.noted));
            self.noted = copied;
        }
    }

    /// Begins another buffer, for at most `room` bytes.
    fn close(&mut self, room: usize) {
        self.full_len += self.open.len();
        self.room = room;
        let full = std::mem::replace(&mut self.open, buffers::take(room));
        self.full.push_back(buffers::share(full));
    }

    fn next_buffer(&mut self) {
        // At least one byte: otherwise it would not end, were a part longer than it was measured.
        let left = self.total.saturating_sub(self.full_len + self.open.len());
        self.close(left.clamp(1, BUFFER));
    }
}

/// Takes a part of so many segments off the front.
fn take_part(copied: &mut VecDeque<Bytes>, segments: &mut std::vec::IntoIter<Segment>, count: usize) -> Option<Framed> {
    if let (1, Some(Segment::Copied(len)), Some(first)) = (count, segments.as_slice().first(), copied.front_mut())
        && *len <= first.len()
    {
        // The usual case needs no list.
        let bytes = first.split_to(*len);
        segments.next();
        return Framed::from_prefixed(bytes);
    }
    let mut chunks = Vec::with_capacity(count);
    for segment in segments.take(count) {
        match segment {
            Segment::Copied(len) => take_off(copied, len, &mut chunks),
            Segment::Shared(bytes) => chunks.push(bytes),
        }
    }
    Framed::from_chunks(chunks)
}

/// Takes `len` bytes off the front, in as many buffers as they lie in.
fn take_off(buffers: &mut VecDeque<Bytes>, mut len: usize, chunks: &mut Vec<Bytes>) {
    while len > 0
        && let Some(first) = buffers.front_mut()
    {
        let bytes = first.split_to(first.len().min(len));
        len -= bytes.len();
        if !bytes.is_empty() {
            chunks.push(bytes);
        }
        if first.is_empty() {
            buffers.pop_front();
        }
    }
}
