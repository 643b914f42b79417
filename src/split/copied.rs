//! Parts with bytes of their own, one after the other in buffers of a bounded size.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{measure::Out, sources::Lookup};
use crate::{buffers, otlp::Framed};

/// Bytes of a buffer, at most: as many as the largest frames that come in, so that an allocator has some at hand. One of some
/// MiB would be fresh memory each time, which the kernel clears.
const BUFFER: usize = 256 << 10;

/// The longest of what is written at once: a varint of 32 bits, or gRPC's prefix.
const LONGEST_HEADER: usize = 5;

/// Copies the bytes.
pub(super) struct Copied<'a> {
    sources: Lookup<'a>,
    /// Bytes of all parts.
    total: usize,
    full: VecDeque<Bytes>,
    /// Bytes in these.
    before: usize,
    open: Vec<u8>,
    /// Bytes that it takes.
    room: usize,
    /// Where each part ends.
    ends: Vec<usize>,
}

impl<'a> Copied<'a> {
    /// So many parts of `total` bytes.
    pub(super) fn new(sources: Lookup<'a>, parts: usize, total: usize) -> Self {
        let room = total.min(BUFFER);
        let (full, open, ends) = (VecDeque::new(), buffers::take(room), Vec::with_capacity(parts));
        Self { sources, total, full, before: 0, open, room, ends }
    }

    /// Ends a part.
    pub(super) fn end(&mut self) {
        self.ends.push(self.before + self.open.len());
    }

    /// The parts, in their order.
    pub(super) fn finish(mut self) -> impl Iterator<Item = Framed> {
        self.close(0);
        debug_assert_eq!(self.before, self.total, "parts are as long as measured");
        let (mut full, mut at) = (self.full, 0);
        self.ends.into_iter().map(move |end| {
            let len = end - std::mem::replace(&mut at, end);
            off_the_front(&mut full, len).unwrap_or_default()
        })
    }

    /// Bytes that the open buffer still takes.
    #[inline]
    fn spare(&self) -> usize {
        self.room.saturating_sub(self.open.len())
    }

    /// Begins another buffer, for at most `room` bytes.
    fn close(&mut self, room: usize) {
        self.before += self.open.len();
        self.room = room;
        let full = std::mem::replace(&mut self.open, buffers::take(room));
        self.full.push_back(buffers::share(full));
    }

    fn next(&mut self) {
        // At least one: it would not end if parts were longer than measured.
        let left = self.total.saturating_sub(self.before + self.open.len());
        self.close(left.clamp(1, BUFFER));
    }

    /// Adds what does not fit the open buffer.
    #[cold]
    fn add_across(&mut self, mut bytes: &[u8]) {
        while let Some((fits, rest)) = bytes.split_at_checked(self.spare())
            && !rest.is_empty()
        {
            self.open.extend_from_slice(fits);
            self.next();
            bytes = rest;
        }
        self.open.extend_from_slice(bytes);
    }
}

/// A part of `len` bytes, in as many buffers as it lies in.
fn off_the_front(buffers: &mut VecDeque<Bytes>, mut len: usize) -> Option<Framed> {
    let first = buffers.front_mut()?;
    if len <= first.len() {
        return Framed::from_prefixed(first.split_to(len));
    }
    let mut pieces = Vec::new();
    while len > 0 {
        let first = buffers.front_mut()?;
        let piece = first.split_to(first.len().min(len));
        len -= piece.len();
        pieces.push(piece);
        if first.is_empty() {
            buffers.pop_front();
        }
    }
    Framed::from_chunks(pieces)
}

impl Out for Copied<'_> {
    fn headers(&mut self) -> &mut Vec<u8> {
        // The last buffer has room for all that follows, however little that is.
        if self.spare() < LONGEST_HEADER && self.before + self.room < self.total {
            self.next();
        }
        &mut self.open
    }

    #[inline]
    fn run(&mut self, start: u32, end: u32) {
        let bytes = self.sources.bytes(start, end);
        if bytes.len() <= self.spare() {
            self.open.extend_from_slice(bytes);
        } else {
            self.add_across(bytes);
        }
    }
}
