//! A message that is not in one place: runs of another message's bytes, with tags and lengths of its own between them.
//!
//! The parts of a request are such messages: all share the request, and one list says which of its runs each part has. A
//! byte is then copied once, when it is gathered for the socket. Lists and headers are the only memory that parts take.

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
    source: Bytes,
    headers: Vec<u8>,
    runs: Vec<Run>,
}

/// A run of the source or, behind its end, of the headers.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: u32,
    end: u32,
}

/// Builds the ropes of one source, one after the other.
#[derive(Debug)]
pub struct Weaver {
    strands: Strands,
    /// Headers up to here have their run.
    seen: usize,
    source_len: u32,
    /// First run and length of each rope that is done.
    done: Vec<(u32, usize)>,
    len: usize,
    first: u32,
}

impl Weaver {
    /// Bytes that a run takes.
    pub const RUN_LEN: usize = size_of::<Run>();

    /// Ropes of `source` with at most so many runs and bytes of headers; `None` where an offset could pass 32 bits.
    pub fn new(source: &Bytes, ropes: usize, runs: usize, headers: usize) -> Option<Self> {
        u32::try_from(source.len().checked_add(headers)?).ok()?;
        let strands =
            Strands { source: source.clone(), headers: Vec::with_capacity(headers), runs: Vec::with_capacity(runs) };
        let source_len = u32::try_from(source.len()).ok()?;
        Some(Self { strands, seen: 0, source_len, done: Vec::with_capacity(ropes), len: 0, first: 0 })
    }

    /// Where bytes of its own are written to, to go at this place.
    pub fn headers(&mut self) -> &mut Vec<u8> {
        &mut self.strands.headers
    }

    /// Adds a run of the source.
    #[inline]
    pub fn share(&mut self, start: u32, end: u32) {
        self.join_headers();
        self.push(Run { start, end });
    }

    /// Ends a rope.
    pub fn end(&mut self) {
        self.join_headers();
        self.done.push((self.first, std::mem::take(&mut self.len)));
        self.first = small(self.strands.runs.len());
    }

    /// The ropes, in their order.
    pub fn finish(self) -> impl Iterator<Item = Rope> {
        let strands = Arc::new(self.strands);
        self.done.into_iter().map(move |(run, left)| Rope { strands: Arc::clone(&strands), run, read: 0, left })
    }

    #[inline]
    fn join_headers(&mut self) {
        let end = self.strands.headers.len();
        if end > self.seen {
            let run = Run { start: self.source_len + small(self.seen), end: self.source_len + small(end) };
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
        let Some(Run { start, end }) = self.runs.get(run as usize).copied() else { return &[] };
        let (start, end) = (start as usize, end as usize);
        let at = self.source.len();
        if start < at { self.source.get(start..end) } else { self.headers.get(start - at..end - at) }
            .unwrap_or_default()
    }
}

impl Rope {
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
        while let Some(Run { start, end }) = self.strands.runs.get(self.run as usize) {
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

/// A number that [`Weaver::new`] has made sure of.
#[expect(clippy::cast_possible_truncation, reason = "all offsets are below the 32 bits that `Weaver::new` checks")]
fn small(number: usize) -> u32 {
    number as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ropes() -> Vec<Rope> {
        let mut weaver = Weaver::new(&Bytes::from_static(b"abcdefgh"), 2, 9, 9).unwrap();
        weaver.headers().extend_from_slice(b"1");
        weaver.headers().extend_from_slice(b"2");
        weaver.share(1, 4);
        weaver.share(4, 4);
        weaver.headers().extend_from_slice(b"3");
        weaver.share(0, 8);
        weaver.headers().extend_from_slice(b"4");
        weaver.end();
        weaver.end();
        weaver.share(7, 8);
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
            assert_eq!(count, room.min(5));
            assert!(b"2bcd3abcdefgh4".starts_with(&got), "{got:?}");
        }
    }

    #[test]
    fn going_past_the_end_is_the_end() {
        let mut rope = ropes().swap_remove(0);
        rope.advance(99);
        assert_eq!((rope.remaining(), rope.chunk()), (0, &b""[..]));
    }
}
