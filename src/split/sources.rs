//! The list of buffers that a request's bytes are read and copied from. An offset is a position in all of them
//! together, as if they were one buffer.
//!
//! [`Sources`] is the list, and [`Lookup`] finds ranges in it. [`Feed`] passes a request's buffers to the walk one
//! after the other. A record or tag that begins in one buffer and ends in a later one is first reassembled: its bytes
//! are copied to a new buffer.

use bytes::{Buf, Bytes};

use super::scratch;
use crate::otlp::wire::Malformed;

/// How many bytes are reassembled at first if the length of a field cannot be read yet. A tag and a length are shorter.
const FIRST_REASSEMBLY: usize = 64;

/// The number of entries for which the list keeps its memory until the next request.
const RETAINED: usize = 1 << 10;

/// Converts an offset to the type in which it is stored.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "requests whose length does not fit 32 bits are refused before")]
pub(super) fn offset(at: usize) -> u32 {
    at as u32
}

/// The buffers in order, without gaps between them.
#[derive(Debug, Default)]
pub(super) struct Sources(Vec<Source>);

#[derive(Debug)]
struct Source {
    /// Offset of its first byte.
    start: u32,
    bytes: Bytes,
}

/// Finds ranges in the buffers. It looks into the latest buffer first, since ranges are mostly looked up in order.
#[derive(Clone, Debug)]
pub(super) struct Lookup<'s> {
    sources: &'s Sources,
    /// Index of the buffer that was found last.
    latest: usize,
}

/// Returns a request's buffers one by one, and a reassembled buffer for each field that lies in more than one of them.
#[derive(Debug)]
pub(super) struct Feed<'p> {
    buffers: std::slice::Iter<'p, Bytes>,
    /// The rest of a buffer whose first bytes were reassembled.
    rest: Bytes,
    /// If the latest buffer was reassembled: the part of a request's buffer that its end was copied from, and the
    /// offset of that part.
    copied_from: Option<(usize, Bytes)>,
    /// The buffer that was returned last, and its offset.
    latest: (usize, Bytes),
    /// If a field continues in the next buffer: the offset of its beginning and, if known, of its end.
    unfinished: Option<(usize, Option<usize>)>,
    /// The number of bytes that were reassembled.
    reassembled: usize,
}

// === impl Sources ===

impl Sources {
    /// Creates a list of these buffers.
    pub(super) fn of(buffers: impl Iterator<Item = Bytes>) -> Self {
        let mut start = 0;
        let mut sources = Self::default();
        for bytes in buffers {
            let len = bytes.len();
            sources.push(start, bytes);
            start += len;
        }
        sources
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
        self.0.shrink_to(RETAINED);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_full(&self) -> bool {
        scratch::is_full(&self.0)
    }

    /// Grows the list if it is full and `room` is given for that.
    pub(super) fn grow(&mut self, room: &mut dyn FnMut(usize) -> bool) -> Result<(), Malformed> {
        scratch::grow(&mut self.0, 1, room)
    }

    /// Adds the buffer whose first byte has this offset.
    pub(super) fn push(&mut self, start: usize, bytes: Bytes) {
        self.0.push(Source { start: offset(start), bytes });
    }

    /// Cuts off the bytes of the last buffer from `end` on, because the next buffer will contain them.
    pub(super) fn end_at(&mut self, end: usize) {
        let Some(last) = self.0.last_mut() else { return };
        last.bytes.truncate(end.saturating_sub(last.start as usize));
        if last.bytes.is_empty() {
            self.0.pop();
        }
    }

    /// Returns the number of buffers that a range lies in.
    pub(super) fn count(&self, start: u32, end: u32) -> usize {
        let begun_before = |at: u32| self.0.partition_point(|source| source.start < at);
        begun_before(end).saturating_sub(begun_before(start + 1)) + 1
    }

    pub(super) fn lookup(&self) -> Lookup<'_> {
        Lookup { sources: self, latest: 0 }
    }
}

impl Source {
    #[inline]
    fn has(&self, at: u32) -> bool {
        at.checked_sub(self.start).is_some_and(|within| (within as usize) < self.bytes.len())
    }
}

// === impl Lookup ===

impl<'s> Lookup<'s> {
    /// Returns the bytes from `start` to `end`, as far as they are in the same buffer as the first one. Returns no
    /// bytes if no buffer contains `start`.
    #[inline]
    pub(super) fn bytes(&mut self, start: u32, end: u32) -> &'s [u8] {
        let Some(source) = self.source_of(start) else { return &[] };
        let to = (end.saturating_sub(source.start) as usize).min(source.bytes.len());
        source.bytes.get((start - source.start) as usize..to).unwrap_or_default()
    }

    /// Returns the same bytes as [`Lookup::bytes`], as a slice that shares their buffer.
    pub(super) fn share(&mut self, start: u32, end: u32) -> Bytes {
        let bytes = self.bytes(start, end);
        self.sources.0.get(self.latest).map_or_else(Bytes::new, |source| source.bytes.slice_ref(bytes))
    }

    #[inline]
    fn source_of(&mut self, at: u32) -> Option<&'s Source> {
        match self.sources.0.get(self.latest) {
            Some(source) if source.has(at) => Some(source),
            _ => self.search(at),
        }
    }

    #[cold]
    fn search(&mut self, at: u32) -> Option<&'s Source> {
        self.latest = self.sources.0.partition_point(|source| source.start <= at).checked_sub(1)?;
        self.sources.0.get(self.latest).filter(|source| source.has(at))
    }
}

// === impl Feed ===

impl<'p> Feed<'p> {
    pub(super) fn new(buffers: &'p [Bytes]) -> Self {
        Self {
            buffers: buffers.iter(),
            rest: Bytes::new(),
            copied_from: None,
            latest: (0, Bytes::new()),
            unfinished: None,
            reassembled: 0,
        }
    }

    /// Returns the next buffer and its offset.
    pub(super) fn next(&mut self) -> Option<(usize, Bytes)> {
        let (start, bytes) = &self.latest;
        let next = match self.unfinished.take() {
            Some((at, end)) => (at, self.reassemble(at, bytes.slice(at - start..), end.map(|end| end - at))),
            None => {
                let start = start + bytes.len();
                self.copied_from = None;
                (start, self.take_buffer()?)
            }
        };
        self.latest = next;
        Some(self.latest.clone())
    }

    /// Records that the field at offset `at` does not end in the latest buffer. `end` is the offset of its end, if
    /// known. The next buffer will begin with this field. Returns how many bytes have to be copied for this.
    pub(super) fn continues(&mut self, at: usize, end: Option<usize>) -> usize {
        let (start, bytes) = &mut self.latest;
        if let Some((copied_at, buffer)) = self.copied_from.take()
            && at >= copied_at
        {
            // The latest buffer was reassembled, and this field begins in the bytes that were copied to its end. It is
            // complete in the buffer that they were copied from, or at least longer, so reading continues there.
            bytes.truncate(at - *start);
            self.rest = buffer.slice(at - copied_at..);
            return 0;
        }
        self.unfinished = Some((at, end));
        bytes_for((*start + bytes.len()).saturating_sub(at), end.map(|end| end - at))
    }

    /// Returns how many bytes were reassembled.
    pub(super) fn reassembled(&self) -> usize {
        self.reassembled
    }

    /// Returns a buffer with `head`, whose offset is `at`, and the bytes that follow it.
    fn reassemble(&mut self, at: usize, head: Bytes, len: Option<usize>) -> Bytes {
        let len = bytes_for(head.len(), len);
        let mut whole = Vec::with_capacity(len);
        whole.extend_from_slice(&head);
        while whole.len() < len
            && let Some(mut buffer) = self.take_buffer()
        {
            self.copied_from = Some((at + whole.len(), buffer.clone()));
            let more = buffer.split_to(buffer.len().min(len - whole.len()));
            whole.extend_from_slice(&more);
            self.rest = buffer;
        }
        self.reassembled += whole.len();
        whole.into()
    }

    /// Returns the rest of a buffer whose first bytes were reassembled, or the next buffer that is not empty.
    fn take_buffer(&mut self) -> Option<Bytes> {
        let rest = std::mem::take(&mut self.rest);
        if rest.has_remaining() { Some(rest) } else { self.buffers.find(|buffer| !buffer.is_empty()).cloned() }
    }
}

/// Returns how many bytes to reassemble for a field of which `here` bytes are in the latest buffer. If its length is
/// not known, this is twice as many as `here`.
fn bytes_for(here: usize, len: Option<usize>) -> usize {
    len.unwrap_or_else(|| here.saturating_mul(2).max(FIRST_REASSEMBLY))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources() -> Sources {
        Sources::of([&b"abc"[..], b"d", b"efgh"].into_iter().map(Bytes::from_static))
    }

    #[test]
    fn ranges_are_found_buffer_by_buffer_in_any_order() {
        let sources = sources();
        assert_eq!(sources.len(), 3);
        let mut lookup = sources.lookup();
        let all = b"abcdefgh";
        let ends = [3, 3, 3, 4, 8, 8, 8, 8];
        for start in (0..8).chain((0..8).rev()).chain([5, 0, 7, 3, 4, 2]) {
            for end in start..12 {
                let here = ends[start as usize].min(end);
                let expected = &all[start as usize..here as usize];
                assert_eq!(lookup.bytes(start, end), expected, "{start}..{end}");
                assert_eq!(lookup.share(start, end), expected, "{start}..{end}");
            }
        }
        assert_eq!(lookup.bytes(8, 9), b"", "after the end");
        assert_eq!(lookup.share(8, 9), b""[..]);
        assert_eq!(lookup.bytes(2, 1), b"", "no range");
        assert_eq!(Sources::default().lookup().bytes(0, 1), b"");
    }

    #[test]
    fn a_shared_range_is_a_slice_of_its_buffer() {
        let buffer = Bytes::from(vec![7; 100]);
        let sources = Sources::of([buffer.clone()].into_iter());
        let share = sources.lookup().share(10, 20);
        assert_eq!((share.as_ptr(), share.len()), (buffer[10..].as_ptr(), 10));
    }

    #[test]
    fn the_buffers_of_a_range_are_counted() {
        let sources = sources();
        let counts = [(0, 1, 1), (0, 3, 1), (0, 4, 2), (2, 4, 2), (2, 5, 3), (0, 8, 3), (3, 4, 1), (4, 8, 1)];
        for (start, end, count) in counts {
            assert_eq!(sources.count(start, end), count, "{start}..{end}");
        }
    }

    #[test]
    fn the_last_buffer_is_shortened_or_removed() {
        let mut sources = sources();
        sources.end_at(6);
        assert_eq!((sources.len(), sources.lookup().bytes(4, 8)), (3, &b"ef"[..]));
        sources.end_at(4);
        assert_eq!(sources.len(), 2);
        sources.push(4, Bytes::from_static(b"xyz"));
        assert_eq!(sources.lookup().bytes(4, 9), b"xyz");
    }

    #[test]
    fn the_memory_of_a_long_list_is_freed() {
        let mut sources = Sources::of((0..3 * RETAINED).map(|_| Bytes::from_static(b"x")));
        sources.clear();
        assert_eq!(sources.len(), 0);
        assert!((RETAINED..2 * RETAINED).contains(&sources.0.capacity()), "{}", sources.0.capacity());
    }

    /// Returns the buffers of a request in these pieces, as [`Feed`] returns them. Each of `unfinished` is the offset
    /// of a buffer, and the offsets of the beginning and, if known, the end of a field that continues after that
    /// buffer.
    fn fed(pieces: &[&'static [u8]], unfinished: &[(usize, usize, Option<usize>)]) -> (Vec<(usize, Vec<u8>)>, usize) {
        let pieces: Vec<Bytes> = pieces.iter().map(|piece| Bytes::from_static(piece)).collect();
        let (mut feed, mut seen) = (Feed::new(&pieces), Vec::new());
        while let Some((start, bytes)) = feed.next() {
            seen.push((start, bytes.to_vec()));
            if let Some((_, at, end)) = unfinished.iter().find(|(of, ..)| *of == start) {
                feed.continues(*at, *end);
            }
        }
        (seen, feed.reassembled())
    }

    #[test]
    fn buffers_are_returned_unchanged_unless_a_field_continues() {
        let (seen, reassembled) = fed(&[b"abc", b"", b"def"], &[]);
        assert_eq!((seen, reassembled), (vec![(0, b"abc".to_vec()), (3, b"def".to_vec())], 0));
    }

    #[test]
    fn a_field_in_two_buffers_is_reassembled_and_the_rest_follows() {
        // "cde" is a field.
        let (seen, reassembled) = fed(&[b"abc", b"def"], &[(0, 2, Some(5))]);
        assert_eq!(seen, [(0, b"abc".to_vec()), (2, b"cde".to_vec()), (5, b"f".to_vec())]);
        assert_eq!(reassembled, 3);
    }

    #[test]
    fn a_field_in_many_buffers_is_reassembled_once() {
        let (seen, reassembled) = fed(&[b"ab", b"c", b"d", b"efgh"], &[(0, 1, Some(6))]);
        assert_eq!(seen, [(0, b"ab".to_vec()), (1, b"bcdef".to_vec()), (6, b"gh".to_vec())]);
        assert_eq!(reassembled, 5);
    }

    #[test]
    fn a_request_that_ends_inside_a_field_ends_there() {
        let (seen, reassembled) = fed(&[b"abc", b"d"], &[(0, 2, Some(9))]);
        assert_eq!((seen.last(), reassembled), (Some(&(2, b"cd".to_vec())), 2));
    }

    #[test]
    fn at_first_64_bytes_are_reassembled_of_a_field_of_unknown_length() {
        let long = [b'x'; 200];
        let pieces = [Bytes::from_static(b"abc"), Bytes::copy_from_slice(&long)];
        let mut feed = Feed::new(&pieces);
        feed.next();
        assert_eq!(feed.continues(2, None), FIRST_REASSEMBLY);
        let (start, bytes) = feed.next().unwrap();
        assert_eq!((start, bytes.len(), &bytes[..2]), (2, FIRST_REASSEMBLY, &b"cx"[..]));
        // The next field begins in the bytes that were copied. It is read in the buffer that they came from; nothing is
        // copied.
        assert_eq!(feed.continues(10, None), 0);
        assert_eq!(feed.next().unwrap(), (10, pieces[1].slice(7..)));
        assert_eq!((feed.next(), feed.reassembled()), (None, FIRST_REASSEMBLY));
    }

    #[test]
    fn a_field_that_begins_with_the_first_copied_byte_is_read_where_that_came_from() {
        let pieces = [Bytes::from_static(b"abc"), Bytes::from(vec![b'x'; 200])];
        let mut feed = Feed::new(&pieces);
        feed.next();
        feed.continues(2, None);
        feed.next();
        assert_eq!(feed.continues(3, None), 0);
        assert_eq!(feed.next().unwrap(), (3, pieces[1].clone()));
        assert_eq!((feed.next(), feed.reassembled()), (None, FIRST_REASSEMBLY));
    }

    #[test]
    fn if_a_field_is_longer_than_its_reassembled_bytes_twice_as_many_are_reassembled() {
        let pieces = [Bytes::from(vec![1; 100]), Bytes::from(vec![2; 500])];
        let mut feed = Feed::new(&pieces);
        feed.next();
        assert_eq!(feed.continues(10, None), 180);
        let (start, bytes) = feed.next().unwrap();
        assert_eq!((start, bytes.len()), (10, 180));
        // Still the same field.
        assert_eq!(feed.continues(10, Some(310)), 300);
        assert_eq!(feed.next().map(|(start, bytes)| (start, bytes.len())), Some((10, 300)));
        assert_eq!(feed.next(), Some((310, pieces[1].slice(210..))));
    }
}
