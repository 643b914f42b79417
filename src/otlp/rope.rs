//! A message made of runs of other buffers, with tags and lengths of its own between them.
//!
//! A received request is a rope of its frames. The parts of a request are ropes that share the request's buffers and
//! one list of runs. A byte is then copied only when it is written to the socket; the parts themselves need memory only
//! for the list and for their tags and lengths.

use std::{io::IoSlice, sync::Arc};

use bytes::{Buf, Bytes};

/// A message of several runs. Reading it as a [`Buf`] leaves the unread rest. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Rope {
    strands: Arc<Strands>,
    /// Index of the run being read.
    run: u32,
    /// Bytes of that run already read.
    read: u32,
    left: usize,
}

/// What the parts of one request share.
#[derive(Debug, Default)]
struct Strands {
    sources: Vec<Bytes>,
    runs: Vec<Run>,
    /// Whether a [`Weaver`] built the runs; they are then many and short.
    is_woven: bool,
}

/// A range of bytes of one source.
#[derive(Clone, Copy, Debug)]
struct Run {
    source: u32,
    start: u32,
    end: u32,
}

/// Builds ropes over the same sources, one after the other.
#[derive(Debug)]
pub struct Weaver {
    strands: Strands,
    /// Tags and lengths of all ropes; they become the last source.
    headers: Vec<u8>,
    /// The length of `headers` that runs already cover.
    seen: usize,
    /// First run and length of each finished rope.
    done: Vec<(u32, usize)>,
    len: usize,
    first: u32,
}

impl Weaver {
    /// Size of a run in bytes.
    pub const RUN_LEN: usize = size_of::<Run>();

    /// Creates a weaver for at most `ropes` ropes, `runs` runs and `headers` bytes of headers. Returns `None` if a
    /// number could exceed 32 bits.
    pub fn new(sources: impl Iterator<Item = Bytes>, ropes: usize, runs: usize, headers: usize) -> Option<Self> {
        let mut list = Vec::with_capacity(sources.size_hint().0 + 1);
        list.extend(sources);
        u32::try_from(headers.max(list.len())).ok()?;
        let strands = Strands { sources: list, runs: Vec::with_capacity(runs), is_woven: true };
        let (headers, done) = (Vec::with_capacity(headers), Vec::with_capacity(ropes));
        Some(Self { strands, headers, seen: 0, done, len: 0, first: 0 })
    }

    /// Returns the buffer of headers. Bytes appended to it go to this position of the rope.
    pub fn headers(&mut self) -> &mut Vec<u8> {
        &mut self.headers
    }

    /// Appends the bytes from `start` to `end` of a source, given by its index.
    #[inline]
    pub fn share(&mut self, source: u32, start: u32, end: u32) {
        self.join_headers();
        self.push(Run { source, start, end });
    }

    /// Ends the current rope.
    pub fn end(&mut self) {
        self.join_headers();
        self.done.push((self.first, std::mem::take(&mut self.len)));
        self.first = small(self.strands.runs.len());
    }

    /// Returns the ropes in the order they were built.
    pub fn finish(mut self) -> impl Iterator<Item = Rope> {
        self.strands.sources.push(self.headers.into());
        let strands = Arc::new(self.strands);
        self.done.into_iter().map(move |(run, left)| Rope { strands: Arc::clone(&strands), run, read: 0, left })
    }

    #[inline]
    fn join_headers(&mut self) {
        let end = self.headers.len();
        if end > self.seen {
            let run = Run { source: small(self.strands.sources.len()), start: small(self.seen), end: small(end) };
            self.seen = end;
            self.push(run);
        }
    }

    #[inline]
    fn push(&mut self, run: Run) {
        if run.end > run.start {
            self.len += (run.end - run.start) as usize;
            self.strands.runs.push(run);
        }
    }
}

impl Strands {
    #[inline]
    fn get(&self, run: u32) -> &[u8] {
        let Some(Run { source, start, end }) = self.runs.get(run as usize).copied() else { return &[] };
        let source = self.sources.get(source as usize);
        source.and_then(|source| source.get(start as usize..end as usize)).unwrap_or_default()
    }
}

impl Rope {
    /// Builds a rope of whole buffers; `None` if the length of one does not fit 32 bits.
    pub fn of(mut sources: Vec<Bytes>) -> Option<Self> {
        // Empty buffers are left out, since a reader takes an empty run for the end.
        sources.retain(|bytes| !bytes.is_empty());
        let run =
            |(source, bytes): (u32, &Bytes)| Some(Run { source, start: 0, end: u32::try_from(bytes.len()).ok()? });
        let runs = (0..).zip(&sources).map(run).collect::<Option<Vec<_>>>()?;
        let left = sources.iter().map(Bytes::len).sum();
        Some(Self { strands: Arc::new(Strands { sources, runs, is_woven: false }), run: 0, read: 0, left })
    }

    /// Iterates over the unread runs as shared buffers.
    pub fn shares(&self) -> impl Iterator<Item = Bytes> {
        let numbers = self.strands.runs.iter().skip(self.run as usize).map(|run| run.source as usize);
        numbers.zip(self.runs()).filter_map(|(source, run)| Some(self.strands.sources.get(source)?.slice_ref(run)))
    }

    /// Whether a [`Weaver`] built the runs; otherwise they are whole buffers.
    pub fn is_woven(&self) -> bool {
        self.strands.is_woven
    }

    /// Iterates over the unread runs.
    pub fn runs(&self) -> impl Iterator<Item = &[u8]> {
        let (mut run, mut read, mut left) = (self.run, self.read as usize, self.left);
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let bytes = self.strands.get(run).get(read..)?;
            let bytes = bytes.get(..left).unwrap_or(bytes);
            (run, read, left) = (run + 1, 0, left - bytes.len());
            Some(bytes)
        })
    }
}

impl Buf for Rope {
    fn remaining(&self) -> usize {
        self.left
    }

    fn chunk(&self) -> &[u8] {
        self.runs().next().unwrap_or_default()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        for (slice, run) in slices.iter_mut().zip(self.runs()) {
            *slice = IoSlice::new(run);
            count += 1;
        }
        count
    }

    /// Skips `count` bytes, at most to the end.
    fn advance(&mut self, count: usize) {
        let mut count = count.min(self.left);
        self.left -= count;
        while let Some(Run { start, end, .. }) = self.strands.runs.get(self.run as usize) {
            let rest = (end - start - self.read) as usize;
            if count < rest {
                self.read += small(count);
                return;
            }
            count -= rest;
            self.run += 1;
            self.read = 0;
            if count == 0 {
                return;
            }
        }
    }
}

/// Converts a number that [`Weaver::new`] or [`Rope::of`] has checked.
#[expect(clippy::cast_possible_truncation, reason = "offsets are below the 32 bits that are checked at the beginning")]
fn small(number: usize) -> u32 {
    number as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ropes() -> Vec<Rope> {
        let sources = [Bytes::from_static(b"abcdef"), Bytes::from_static(b"gh")];
        let mut weaver = Weaver::new(sources.into_iter(), 2, 9, 9).unwrap();
        weaver.headers().extend_from_slice(b"1");
        weaver.headers().extend_from_slice(b"2");
        weaver.share(0, 1, 4);
        weaver.share(0, 4, 4);
        weaver.headers().extend_from_slice(b"3");
        weaver.share(0, 0, 6);
        weaver.share(1, 0, 2);
        weaver.headers().extend_from_slice(b"4");
        weaver.end();
        weaver.end();
        weaver.share(1, 1, 2);
        weaver.end();
        weaver.finish().collect()
    }

    #[test]
    fn ropes_are_what_was_woven_wherever_they_are_read_from() {
        let ropes = ropes();
        let all: Vec<Vec<u8>> = ropes.iter().map(|rope| rope.runs().flatten().copied().collect()).collect();
        assert_eq!(all, [&b"12bcd3abcdefgh4"[..], b"", b"h"]);
        for (rope, all) in ropes.iter().zip(&all) {
            for at in 0..=all.len() {
                for then in at..=all.len() {
                    let mut rope = rope.clone();
                    rope.advance(at);
                    rope.advance(then - at);
                    assert_eq!(rope.remaining(), all.len() - then);
                    assert_eq!(&all[then..then + rope.chunk().len()], rope.chunk());
                    assert_eq!(rope.has_remaining(), !rope.chunk().is_empty());
                    assert_eq!(rope.shares().collect::<Vec<_>>().concat(), &all[then..]);
                    assert_eq!(rope.copy_to_bytes(rope.remaining()), &all[then..]);
                }
            }
        }
    }

    #[test]
    fn slices_are_as_many_as_there_is_room_for() {
        let mut rope = ropes().swap_remove(0);
        rope.advance(1);
        for room in 0..9 {
            let mut slices = vec![IoSlice::new(&[]); room];
            let count = rope.chunks_vectored(&mut slices);
            let got: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter()).copied().collect();
            assert_eq!(count, room.min(6));
            assert!(b"2bcd3abcdefgh4".starts_with(&got), "{got:?}");
        }
    }

    #[test]
    fn going_past_the_end_is_the_end() {
        let mut rope = ropes().swap_remove(0);
        rope.advance(99);
        assert_eq!((rope.remaining(), rope.chunk()), (0, &b""[..]));
    }

    #[test]
    fn buffers_one_after_the_other_are_a_rope() {
        let mut rope = Rope::of(vec![Bytes::from_static(b"ab"), Bytes::new(), Bytes::from_static(b"c")]).unwrap();
        assert_eq!(rope.shares().collect::<Vec<_>>().concat(), b"abc");
        assert_eq!(rope.copy_to_bytes(3), &b"abc"[..]);
    }
}
