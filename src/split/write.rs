//! Writes parts, one after the other, to buffers of a bounded length.
//!
//! Short ranges of bytes are copied. Long ones are shared: the part is then a list of buffers, and some of these are
//! slices of the buffers that the bytes came from.

use std::collections::VecDeque;

use bytes::Bytes;

use super::sources::{Lookup, offset};
use crate::otlp::Framed;

/// The greatest length of a buffer. The allocator usually has a buffer of this length free. A buffer of some MiB would be
/// new memory each time, which the kernel has to clear.
const BUFFER: usize = 256 << 10;

/// The greatest length that is written at once by [`Writer::header`]: a varint of 32 bits, or gRPC's prefix.
const LONGEST_HEADER: usize = 5;

/// The lengths from which ranges of bytes are shared instead of copied.
#[derive(Clone, Copy, Debug)]
pub(super) struct SharingLimits {
    /// For fields of envelopes, which lie in the request.
    pub(super) envelopes_from: u32,
    /// For runs of records.
    pub(super) records_from: u32,
}

impl SharingLimits {
    /// Copy everything.
    pub(super) const COPY_ALL: Self = Self { envelopes_from: u32::MAX, records_from: u32::MAX };

    /// Share early copies, which belong to one part anyway. Below 4 KiB, copying costs less than one more buffer costs
    /// when the part is sent.
    pub(super) const EARLY_COPIES: Self = Self { envelopes_from: u32::MAX, records_from: 4 << 10 };

    /// Share the request itself, to save memory. The list entries of a range take less than a third of this length.
    pub(super) const REQUEST: Self = Self { envelopes_from: 256, records_from: 256 };
}

/// Writes parts.
#[derive(Debug)]
pub(super) struct Writer {
    /// The total number of bytes that will be copied.
    total: usize,
    full: VecDeque<Bytes>,
    /// The number of bytes in `full`.
    full_len: usize,
    /// The buffer that is being filled, and how many bytes it can take.
    open: Vec<u8>,
    room: usize,
    /// The shared ranges in order.
    shared: Vec<SharedRange>,
    /// For each part, how many bytes were copied and how many ranges were shared up to its end.
    ends: Vec<(usize, usize)>,
}

/// A range that is shared.
#[derive(Debug)]
pub(super) struct SharedRange {
    /// How many bytes were copied before it.
    at: usize,
    bytes: Bytes,
}

impl Writer {
    /// Creates a writer of this number of parts. `total` is the number of bytes that will be copied, and `shared` the
    /// number of ranges that will be shared.
    pub(super) fn new(parts: usize, total: usize, shared: usize) -> Self {
        let room = total.min(BUFFER);
        Self {
            total,
            full: VecDeque::new(),
            full_len: 0,
            open: Vec::with_capacity(room),
            room,
            shared: Vec::with_capacity(shared),
            ends: Vec::with_capacity(parts),
        }
    }

    /// Returns how many buffers `total` copied bytes take.
    pub(super) fn buffers_for(total: usize) -> usize {
        total.div_ceil(BUFFER)
    }

    /// Returns the buffer to which a prefix, a tag or a length has to be appended.
    pub(super) fn header(&mut self) -> &mut Vec<u8> {
        // The last buffer has room for everything that remains, even if that is shorter than the longest header.
        if self.spare() < LONGEST_HEADER && self.full_len + self.room < self.total {
            self.next_buffer();
        }
        &mut self.open
    }

    /// Adds the bytes from `start` to `end`. They are shared if they are at least `shared_from` bytes, and copied
    /// otherwise. Bytes that no buffer contains are left out, which makes the part too short.
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
        self.ends.push((self.copied(), self.shared.len()));
    }

    /// Returns how many bytes were copied.
    pub(super) fn copied(&self) -> usize {
        self.full_len + self.open.len()
    }

    /// Returns the parts in order, each with one of `tags`. Returns `None` if a part does not have the length in its
    /// prefix, or if there are fewer parts than tags.
    pub(super) fn finish<T>(mut self, tags: impl Iterator<Item = T>) -> Option<Vec<(T, Framed)>> {
        self.close(0);
        let mut parts = Vec::with_capacity(self.ends.len());
        let mut taken = CopiedBytes { full: self.full, at: 0 };
        let (mut ends, mut shared, mut before) = (self.ends.into_iter(), self.shared.into_iter(), 0);
        for tag in tags {
            let (end, ranges) = ends.next()?;
            let ranges = ranges - std::mem::replace(&mut before, ranges);
            parts.push((tag, taken.part(end, &mut shared, ranges)?));
        }
        Some(parts)
    }

    /// Returns how many more bytes the open buffer can take.
    #[inline]
    fn spare(&self) -> usize {
        self.room.saturating_sub(self.open.len())
    }

    #[inline]
    fn copy(&mut self, bytes: &[u8]) {
        if bytes.len() <= self.spare() {
            self.open.extend_from_slice(bytes);
        } else {
            self.copy_to_several(bytes);
        }
    }

    /// Copies bytes that do not fit into the open buffer.
    #[cold]
    fn copy_to_several(&mut self, mut bytes: &[u8]) {
        while let Some((fits, rest)) = bytes.split_at_checked(self.spare())
            && !rest.is_empty()
        {
            self.open.extend_from_slice(fits);
            self.next_buffer();
            bytes = rest;
        }
        self.open.extend_from_slice(bytes);
    }

    /// Copies the rest of a range, which lies in further buffers of the origin.
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
        while start < end {
            let bytes = from.share(start, end);
            if bytes.is_empty() {
                return;
            }
            start += offset(bytes.len());
            self.shared.push(SharedRange { at: self.copied(), bytes });
        }
    }

    /// Ends the open buffer and begins another one, for at most `room` bytes.
    fn close(&mut self, room: usize) {
        self.full_len += self.open.len();
        self.room = room;
        let full = std::mem::replace(&mut self.open, Vec::with_capacity(room));
        self.full.push_back(Bytes::from(full));
    }

    fn next_buffer(&mut self) {
        // Take at least one byte: otherwise the loop would not end if a part were longer than it was measured.
        let left = self.total.saturating_sub(self.copied());
        self.close(left.clamp(1, BUFFER));
    }
}

/// The bytes that were copied. Parts are taken from their front.
struct CopiedBytes {
    full: VecDeque<Bytes>,
    /// The number of bytes taken so far.
    at: usize,
}

impl CopiedBytes {
    /// Returns a part: the copied bytes up to `end`, with the next `ranges` shared ranges between them.
    fn part(&mut self, end: usize, shared: &mut std::vec::IntoIter<SharedRange>, ranges: usize) -> Option<Framed> {
        let len = end - self.at;
        if ranges == 0
            && let Some(first) = self.full.front_mut().filter(|first| len <= first.len())
        {
            // The usual case: one buffer, for which no list is needed.
            self.at = end;
            return Framed::from_prefixed(first.split_to(len));
        }
        // There is one more buffer for the copied bytes in front of each range, unless there are none, and for each
        // border between buffers of copied bytes.
        let places = shared.as_slice().iter().take(ranges).map(|range| range.at).chain([end]);
        let between = places.scan(self.at, |before, at| Some(usize::from(std::mem::replace(before, at) < at)));
        let mut chunks = Vec::with_capacity(ranges + between.sum::<usize>() + len / BUFFER);
        for range in shared.take(ranges) {
            self.take_to(range.at, &mut chunks);
            chunks.push(range.bytes);
        }
        self.take_to(end, &mut chunks);
        Framed::from_chunks(chunks)
    }

    /// Takes the copied bytes up to `end`, as one slice of each buffer that they lie in.
    fn take_to(&mut self, end: usize, chunks: &mut Vec<Bytes>) {
        while self.at < end
            && let Some(first) = self.full.front_mut()
        {
            let bytes = first.split_to(first.len().min(end - self.at));
            self.at += bytes.len();
            if first.is_empty() {
                self.full.pop_front();
            }
            if !bytes.is_empty() {
                chunks.push(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::sources::Sources, *};
    use crate::otlp::framed::{PREFIX_LEN, prefix_of};

    /// Writes a part of these ranges of the source. The third number is the length from which a range is shared.
    fn write(writer: &mut Writer, sources: &Sources, ranges: &[(u32, u32, u32)]) {
        let len = ranges.iter().map(|(start, end, _)| end - start).sum();
        writer.header().extend_from_slice(&prefix_of(len));
        let mut lookup = sources.lookup();
        ranges.iter().for_each(|(start, end, from)| writer.add(&mut lookup, *start, *end, *from));
        writer.end_part();
    }

    fn source(len: usize) -> Sources {
        Sources::of([(0..=255).cycle().take(len).collect::<Vec<u8>>().into()].into_iter())
    }

    #[test]
    fn short_parts_that_are_copied_share_one_buffer() {
        let sources = source(100);
        let mut writer = Writer::new(3, 3 * PREFIX_LEN + 90, 0);
        for part in [&[(0, 50, 99)][..], &[], &[(10, 30, 99), (80, 100, 99)]] {
            write(&mut writer, &sources, part);
        }
        let parts = writer.finish(0..3).unwrap();
        let bytes: Vec<_> = parts.iter().map(|(_, part)| part.to_bytes()).collect();
        assert_eq!(
            parts.iter().map(|(tag, part)| (*tag, part.payload_len())).collect::<Vec<_>>(),
            [(0, 50), (1, 0), (2, 40)]
        );
        assert!(parts.iter().all(|(_, part)| part.buffers().len() == 1));
        let ends = bytes.iter().map(|bytes| bytes.as_ptr_range());
        assert!(ends.clone().zip(ends.skip(1)).all(|(one, next)| one.end == next.start));
        assert_eq!(
            bytes[2][PREFIX_LEN..],
            [&(10..30).collect::<Vec<u8>>()[..], &(80..100).collect::<Vec<u8>>()].concat()
        );
    }

    #[test]
    fn ranges_are_shared_from_the_given_length_on() {
        let sources = source(100);
        let mut writer = Writer::new(2, 2 * PREFIX_LEN + 19 + 3, 2);
        write(&mut writer, &sources, &[(0, 20, 20), (20, 39, 20), (50, 75, 20)]);
        write(&mut writer, &sources, &[(1, 4, 20)]);
        assert_eq!((writer.copied(), writer.shared.len()), (writer.total, 2));
        let parts = writer.finish(0..2).unwrap();
        let lens = |part: &Framed| part.buffers().iter().map(Bytes::len).collect::<Vec<_>>();
        assert_eq!(parts.iter().map(|(_, part)| lens(part)).collect::<Vec<_>>(), [vec![5, 20, 19, 25], vec![8]]);
        let at = |start: u32| sources.lookup().bytes(start, 100).as_ptr();
        let pointers = parts[0].1.buffers().iter().map(|bytes| bytes.as_ptr()).collect::<Vec<_>>();
        assert_eq!((pointers[1], pointers[3]), (at(0), at(50)), "shared ranges must not be copied");
    }

    #[test]
    fn long_parts_lie_in_buffers_of_256_kib_and_each_header_in_one_buffer() {
        let sources = source(BUFFER + 300);
        for len in [BUFFER - 6, BUFFER - 5, BUFFER - 4, BUFFER - 3, BUFFER, BUFFER + 300] {
            let second = 2 * PREFIX_LEN + len + 40;
            let mut writer = Writer::new(2, second, 0);
            write(&mut writer, &sources, &[(0, offset(len), u32::MAX)]);
            write(&mut writer, &sources, &[(7, 47, u32::MAX)]);
            assert!(writer.full.iter().all(|full| full.len() <= BUFFER) && writer.open.len() <= writer.room);
            assert_eq!(writer.full_len, writer.full.iter().map(Bytes::len).sum::<usize>());
            assert_eq!(writer.full_len + writer.room, second, "the last buffer is as long as what is left");
            let buffers = if second > BUFFER { 1 } else { 0 };
            assert_eq!(writer.full.len(), buffers, "{len} bytes");
            let parts = writer.finish(0..2).unwrap();
            assert!(parts[0].1.payload() == sources.lookup().bytes(0, offset(len)));
            assert!(parts[1].1.payload() == sources.lookup().bytes(7, 47));
            assert!(parts[1].1.buffers()[0].len() >= PREFIX_LEN, "the prefix must be in one buffer");
        }
        assert_eq!([0, 1, BUFFER, BUFFER + 1].map(Writer::buffers_for), [0, 1, 1, 2]);
    }

    #[test]
    fn no_buffer_follows_one_that_the_last_byte_has_filled() {
        let sources = source(BUFFER);
        let mut writer = Writer::new(1, BUFFER, 0);
        write(&mut writer, &sources, &[(0, offset(BUFFER - PREFIX_LEN), u32::MAX)]);
        assert_eq!((writer.full.len(), writer.open.len()), (0, BUFFER));
        writer.header();
        assert_eq!(writer.full.len(), 0, "nothing more will be copied");
    }

    #[test]
    fn a_header_goes_to_the_next_buffer_only_if_it_does_not_fit() {
        for (spare, full) in [(LONGEST_HEADER, 0), (LONGEST_HEADER - 1, 1)] {
            let mut writer = Writer::new(1, BUFFER + 100, 0);
            writer.copy(&vec![1; BUFFER - spare]);
            writer.header();
            assert_eq!(writer.full.len(), full, "{spare} bytes are left");
        }
    }

    #[test]
    fn a_part_whose_length_is_not_that_of_its_prefix_is_an_error() {
        let sources = source(100);
        for (said, has) in [(10, 11), (10, 9), (0, 1)] {
            let mut writer = Writer::new(1, 20, 0);
            writer.header().extend_from_slice(&prefix_of(said));
            writer.add(&mut sources.lookup(), 0, has, u32::MAX);
            writer.end_part();
            assert!(writer.finish(0..1).is_none(), "{has} bytes instead of {said}");
        }
    }

    #[test]
    fn bytes_that_no_buffer_contains_are_left_out() {
        let sources = source(100);
        for from in [1, u32::MAX] {
            let mut writer = Writer::new(1, 20, 3);
            write(&mut writer, &sources, &[(90, 110, from)]);
            assert!(writer.finish(0..1).is_none());
        }
    }

    #[test]
    fn fewer_parts_than_tags_are_an_error() {
        let sources = source(10);
        let mut writer = Writer::new(2, 20, 0);
        write(&mut writer, &sources, &[(0, 3, 9)]);
        assert!(writer.finish(0..2).is_none());
    }

    #[test]
    fn a_range_can_continue_in_the_next_buffer_of_its_origin() {
        let pieces: Vec<Bytes> = (0..10).map(|piece| vec![piece; 10].into()).collect();
        let sources = Sources::of(pieces.iter().cloned());
        let all = pieces.concat();
        for from in [30, u32::MAX] {
            let mut writer = Writer::new(2, 200, 20);
            write(&mut writer, &sources, &[(5, 95, from)]);
            write(&mut writer, &sources, &[(0, 12, from), (95, 100, from)]);
            let parts = writer.finish(0..2).unwrap();
            assert_eq!(*parts[0].1.payload(), all[5..95]);
            assert_eq!(parts[1].1.payload(), [&all[..12], &all[95..]].concat());
            assert_eq!(parts[0].1.buffers().len(), if from == 30 { 11 } else { 1 });
        }
    }
}
