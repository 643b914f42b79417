//! A message that is not in one place: runs of other buffers, with tags and lengths of its own between them.
//!
//! A request is such a message: its frames as they came. Its parts are: all share the request, and one list says which of
//! its runs each part has. A byte is then copied once, when it is gathered for the socket. Lists and headers are the only
//! memory that parts take.

use std::{io::IoSlice, sync::Arc};

use bytes::{Buf, Bytes};

/// A message of several runs, or what is left of it: reading it goes through a [`Buf`]. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Rope {
    strands: Arc<Strands>,
    /// The run that is read.
    run: u32,
    /// Bytes of it that were read.
    read: u32,
    left: usize,
}

/// What the parts of one request share.
#[derive(Debug, Default)]
struct Strands {
    sources: Vec<Bytes>,
    runs: Vec<Run>,
    /// Whether runs are what a [`Weaver`] was given: many, and short.
    is_woven: bool,
}

/// A run of one source.
#[derive(Clone, Copy, Debug)]
struct Run {
    source: u32,
    start: u32,
    end: u32,
}

/// Builds the ropes of the same sources, one after the other.
#[derive(Debug)]
pub struct Weaver {
    strands: Strands,
    /// They become the last source.
    headers: Vec<u8>,
    /// Headers up to here have their run.
    seen: usize,
    /// First run and length of each rope that is done.
    done: Vec<(u32, usize)>,
    len: usize,
    first: u32,
}

impl Weaver {
    /// Bytes that a run takes.
    pub const RUN_LEN: usize = size_of::<Run>();

    /// Ropes of `sources` with at most so many runs and bytes of headers; `None` where an offset could pass 32 bits.
    pub fn new(sources: impl Iterator<Item = Bytes>, ropes: usize, runs: usize, headers: usize) -> Option<Self> {
        let mut list = Vec::with_capacity(sources.size_hint().0 + 1);
        list.extend(sources);
        u32::try_from(headers.max(list.len())).ok()?;
        let strands = Strands { sources: list, runs: Vec::with_capacity(runs), is_woven: true };
        let (headers, done) = (Vec::with_capacity(headers), Vec::with_capacity(ropes));
        Some(Self { strands, headers, seen: 0, done, len: 0, first: 0 })
    }

    /// Where bytes of its own are written to, to go at this place.
    pub fn headers(&mut self) -> &mut Vec<u8> {
        &mut self.headers
    }

    /// Adds a run of the source of that number.
    #[inline]
    pub fn share(&mut self, source: u32, start: u32, end: u32) {
        self.join_headers();
        self.push(Run { source, start, end });
    }

    /// Ends a rope.
    pub fn end(&mut self) {
        self.join_headers();
        self.done.push((self.first, std::mem::take(&mut self.len)));
        self.first = small(self.strands.runs.len());
    }

    /// The ropes, in their order.
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
    /// What lies in several buffers, one after the other; `None` if one is longer than 32 bits can say.
    pub fn of(mut sources: Vec<Bytes>) -> Option<Self> {
        // A reader takes an empty run for the end.
        sources.retain(|bytes| !bytes.is_empty());
        let run =
            |(source, bytes): (u32, &Bytes)| Some(Run { source, start: 0, end: u32::try_from(bytes.len()).ok()? });
        let runs = (0..).zip(&sources).map(run).collect::<Option<Vec<_>>>()?;
        let left = sources.iter().map(Bytes::len).sum();
        Some(Self { strands: Arc::new(Strands { sources, runs, is_woven: false }), run: 0, read: 0, left })
    }

    /// The bytes that are left, run by run, sharing the buffers.
    pub fn shares(&self) -> impl Iterator<Item = Bytes> {
        let numbers = self.strands.runs.iter().skip(self.run as usize).map(|run| run.source as usize);
        numbers.zip(self.runs()).filter_map(|(source, run)| Some(self.strands.sources.get(source)?.slice_ref(run)))
    }

    /// Whether its runs are what a [`Weaver`] was given, not whole buffers.
    pub fn is_woven(&self) -> bool {
        self.strands.is_woven
    }

    /// The bytes that are left, run by run.
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

    /// Goes on by `count` bytes, at most to the end.
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

/// A number that [`Weaver::new`] or [`Rope::of`] has made sure of.
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
