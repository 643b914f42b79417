//! A message that lies in several buffers, one after the other.
//!
//! A received request lies in its frames; a long part, and the body of a call, lie in several buffers. So bytes need not be
//! joined: the only further copy is the write to the socket.

use std::{io::IoSlice, sync::Arc};

use bytes::{Buf, Bytes};

/// A message in several buffers. Reading it as a [`Buf`] consumes it; what remains is the unread rest. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Rope {
    /// None of them is empty.
    buffers: Arc<[Bytes]>,
    /// Index of the buffer being read.
    at: usize,
    /// Bytes of that buffer already read.
    read: usize,
    /// Unread bytes in all.
    left: usize,
}

impl Rope {
    /// Builds a rope of these buffers.
    pub fn of(mut buffers: Vec<Bytes>) -> Self {
        // Empty buffers are left out, because an empty chunk means the end to a reader of `Buf`.
        buffers.retain(|bytes| !bytes.is_empty());
        let left = buffers.iter().map(Bytes::len).sum();
        Self { buffers: buffers.into(), at: 0, read: 0, left }
    }

    /// Iterates over the unread bytes, buffer by buffer, as shares of them.
    pub fn shares(&self) -> impl Iterator<Item = Bytes> {
        let mut read = self.read;
        self.buffers.iter().skip(self.at).map(move |buffer| {
            let mut rest = buffer.clone();
            rest.advance(std::mem::take(&mut read));
            rest
        })
    }

    /// Iterates over the unread bytes, buffer by buffer.
    pub fn runs(&self) -> impl Iterator<Item = &[u8]> {
        let mut read = self.read;
        self.buffers.iter().skip(self.at).filter_map(move |buffer| buffer.get(std::mem::take(&mut read)..))
    }
}

impl Buf for Rope {
    fn remaining(&self) -> usize {
        self.left
    }

    fn chunk(&self) -> &[u8] {
        self.buffers.get(self.at).and_then(|buffer| buffer.get(self.read..)).unwrap_or_default()
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
        while let Some(buffer) = self.buffers.get(self.at) {
            let rest = buffer.len() - self.read;
            if count < rest {
                self.read += count;
                return;
            }
            count -= rest;
            self.at += 1;
            self.read = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[u8] = b"12bcd3abcdefgh4";

    fn rope() -> Rope {
        Rope::of([&ALL[..2], &[], &ALL[2..5], &ALL[5..6], &ALL[6..]].map(Bytes::from_static).into())
    }

    #[test]
    fn a_rope_is_its_buffers_one_after_the_other_wherever_it_is_read_from() {
        for at in 0..=ALL.len() {
            for then in at..=ALL.len() {
                let mut rope = rope();
                rope.advance(at);
                rope.advance(then - at);
                assert_eq!(rope.remaining(), ALL.len() - then);
                assert_eq!(&ALL[then..then + rope.chunk().len()], rope.chunk());
                assert_eq!(rope.has_remaining(), !rope.chunk().is_empty());
                assert_eq!(rope.runs().collect::<Vec<_>>().concat(), &ALL[then..]);
                assert_eq!(rope.shares().collect::<Vec<_>>().concat(), &ALL[then..]);
                assert_eq!(rope.copy_to_bytes(rope.remaining()), &ALL[then..]);
            }
        }
    }

    #[test]
    fn slices_are_as_many_as_there_is_room_for() {
        let mut rope = rope();
        rope.advance(1);
        for room in 0..9 {
            let mut slices = vec![IoSlice::new(&[]); room];
            let count = rope.chunks_vectored(&mut slices);
            let got: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter()).copied().collect();
            assert_eq!(count, room.min(4));
            assert!(ALL[1..].starts_with(&got), "{got:?}");
        }
    }

    #[test]
    fn going_past_the_end_is_the_end() {
        let mut rope = rope();
        rope.advance(99);
        assert_eq!((rope.remaining(), rope.chunk()), (0, &b""[..]));
    }
}
