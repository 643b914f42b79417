//! The bytes that wait to be written to one connection: copied bytes, and between them shared slices of the bodies.
//!
//! h2 writes slices of bodies that it owns. Each body is lent to this module before h2 gets it. If a slice lies in a lent body,
//! a reference to that body is kept instead of a copy, so that only the kernel copies its bytes.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, Bytes};

/// Slices of lent bodies that are at least this long are shared. For shorter ones a copy costs less than one more slice in a
/// write to the kernel.
const SHARED_FROM: usize = 2 << 10;

/// Up to this many bytes are copied to a small buffer that the connection keeps. Larger buffers are freed when all
/// was written, because the allocator has one at hand for the next connection, which is likely to be in the CPU's cache.
const KEPT: usize = 4 << 10;

/// Maximum number of slices in one write. A frame of 16 KiB has two slices, so this is enough for 512 KiB.
const SLICES: usize = 64;

/// The bytes that wait, in the order of writing.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    pieces: VecDeque<Piece>,
    /// The number of bytes in all pieces.
    len: usize,
    /// The copied bytes. Some of them may already be written.
    copied: Vec<u8>,
    /// The number of bytes of `copied` that are written.
    written: usize,
    /// The bodies that are lent.
    lent: VecDeque<Lent>,
    /// The index in `lent` of the last shared slice. The next slice is most likely found there or behind it.
    latest: usize,
}

#[derive(Debug)]
enum Piece {
    /// The next copied bytes, of this number.
    Copied(usize),
    /// A shared slice, and the place of its call.
    Shared(usize, Bytes),
}

/// A body, or a piece of one, that h2 will write slices of.
#[derive(Debug)]
struct Lent {
    place: usize,
    bytes: Bytes,
}

impl Outgoing {
    /// The number of bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Lends a body, or the next piece of one, before it goes to h2. `place` is the place of its call.
    pub(super) fn lend(&mut self, place: usize, bytes: &Bytes) {
        if bytes.len() >= SHARED_FROM {
            self.lent.push_back(Lent { place, bytes: bytes.clone() });
        }
    }

    /// Called when the call in `place` has ended, so that h2 writes no more of its body. Slices of it that still wait are copied,
    /// because shared ones would keep whole buffers that the memory budget no longer counts.
    pub(super) fn take_back(&mut self, place: usize) {
        self.lent.retain(|lent| lent.place != place);
        for piece in &mut self.pieces {
            if let Piece::Shared(of, bytes) = piece
                && *of == place
            {
                *bytes = Bytes::copy_from_slice(bytes);
            }
        }
    }

    /// Adds bytes. `large` is the capacity of a new buffer if they do not fit the small one.
    pub(super) fn add(&mut self, bytes: &[u8], large: usize) {
        match self.share_of(bytes) {
            Some((place, share)) => self.pieces.push_back(Piece::Shared(place, share)),
            None => self.copy(bytes, large),
        }
        self.len += bytes.len();
    }

    /// Calls `write` with the bytes that wait, in their order: at most `most` bytes in at most [`SLICES`] slices.
    pub(super) fn slices<T>(&self, most: usize, write: impl FnOnce(&[IoSlice<'_>]) -> T) -> T {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let (mut left, mut copied, mut count) = (most, self.written, 0);
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            let bytes: &[u8] = match piece {
                Piece::Shared(_, bytes) => bytes,
                Piece::Copied(len) => {
                    let start = copied;
                    copied += len;
                    self.copied.get(start..copied).unwrap_or_default()
                }
            };
            let bytes = bytes.get(..left).unwrap_or(bytes);
            *slice = IoSlice::new(bytes);
            left -= bytes.len();
            count += 1;
            if left == 0 {
                break;
            }
        }
        write(slices.get(..count).unwrap_or_default())
    }

    /// Removes `count` bytes, which have been written.
    pub(super) fn advance(&mut self, mut count: usize) {
        self.len = self.len.saturating_sub(count);
        while count > 0
            && let Some(piece) = self.pieces.front_mut()
        {
            let left = match piece {
                Piece::Copied(len) => {
                    let now = count.min(*len);
                    self.written += now;
                    *len -= now;
                    count -= now;
                    *len
                }
                Piece::Shared(_, bytes) => {
                    let now = count.min(bytes.len());
                    bytes.advance(now);
                    count -= now;
                    bytes.len()
                }
            };
            if left == 0 {
                self.pieces.pop_front();
            }
        }
        if self.pieces.is_empty() {
            self.copied.clear();
            self.written = 0;
        }
    }

    /// Frees a large buffer if nothing waits.
    pub(super) fn rest(&mut self) {
        if self.pieces.is_empty() && !self.keeps_little() {
            self.copied = Vec::new();
        }
    }

    /// Whether it keeps no large buffer.
    pub(super) fn keeps_little(&self) -> bool {
        self.copied.capacity() <= 2 * KEPT
    }

    /// The number of bytes copied since nothing waited.
    #[cfg(test)]
    pub(super) fn copied_len(&self) -> usize {
        self.copied.len()
    }

    /// Returns a reference to `slice` and the place of its call, if it lies in a lent body. A body is no longer lent once its end
    /// was written.
    fn share_of(&mut self, slice: &[u8]) -> Option<(usize, Bytes)> {
        if slice.len() < SHARED_FROM {
            return None;
        }
        let range = slice.as_ptr_range();
        let is_of = |at: &usize| {
            let body = self.lent.get(*at).map(|lent| lent.bytes.as_ptr_range());
            body.is_some_and(|body| body.start <= range.start && range.end <= body.end)
        };
        let at = (self.latest..self.lent.len()).chain(0..self.latest).find(is_of)?;
        self.latest = at;
        let Lent { place, bytes } = self.lent.get(at)?;
        let (place, share) = (*place, bytes.slice_ref(slice));
        if bytes.as_ptr_range().end == range.end {
            self.lent.remove(at);
        }
        Some((place, share))
    }

    fn copy(&mut self, bytes: &[u8], large: usize) {
        if self.copied.capacity() - self.copied.len() < bytes.len() {
            self.make_room(bytes.len(), large);
        }
        self.copied.extend_from_slice(bytes);
        match self.pieces.back_mut() {
            Some(Piece::Copied(len)) => *len += bytes.len(),
            _ => self.pieces.push_back(Piece::Copied(bytes.len())),
        }
    }

    /// Makes room for `len` copied bytes: moves those that wait to the front of the buffer, or to a larger buffer.
    #[cold]
    fn make_room(&mut self, len: usize, large: usize) {
        let waiting = self.copied.len() - self.written;
        if waiting + len > KEPT {
            let mut larger = Vec::with_capacity(large.max(waiting + len));
            larger.extend_from_slice(self.copied.get(self.written..).unwrap_or_default());
            self.copied = larger;
        } else {
            self.copied.drain(..self.written);
        }
        self.written = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes all bytes that wait, `step` bytes at a time.
    fn drain(out: &mut Outgoing, step: usize) -> Vec<u8> {
        let mut seen = Vec::new();
        while out.len() > 0 {
            let front =
                out.slices(step, |slices| slices.iter().flat_map(|slice| slice.iter()).copied().collect::<Vec<_>>());
            assert!((1..=step).contains(&front.len()), "{} bytes of {step}", front.len());
            out.advance(front.len());
            seen.extend(front);
        }
        seen
    }

    #[test]
    fn copied_and_shared_bytes_are_written_in_their_order() {
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..300 {
            let (mut out, mut expected, mut seen) = (Outgoing::default(), Vec::new(), Vec::new());
            for place in 0..random.usize(1..6) {
                let body: Bytes = (0..random.usize(0..60_000)).map(|_| random.u8(..)).collect();
                if random.bool() {
                    out.lend(place, &body);
                }
                let mut rest = &body[..];
                while !rest.is_empty() {
                    let head = [random.u8(..); 9];
                    let (now, later) = rest.split_at(random.usize(1..=rest.len().min(30_000)));
                    for bytes in [&head[..], now] {
                        out.add(bytes, 1 << 16);
                        expected.extend_from_slice(bytes);
                    }
                    rest = later;
                }
                if random.bool() {
                    let before = out.len();
                    seen.extend(drain(&mut out, random.usize(1..40_000)));
                    assert_eq!((out.len(), expected.len() - seen.len()), (0, 0), "{before} bytes waited");
                }
                out.take_back(place);
            }
            seen.extend(drain(&mut out, 7_000));
            assert!(seen == expected);
            assert!(out.lent.is_empty(), "must not hold a body after its call has ended");
            out.rest();
            assert!(out.keeps_little());
        }
    }

    #[test]
    fn a_lent_body_is_not_copied_and_is_released_after_its_last_byte() {
        let body = Bytes::from(vec![7; 3 * SHARED_FROM]);
        let mut out = Outgoing::default();
        out.lend(0, &body);
        let (front, back) = body.split_at(SHARED_FROM);
        for slice in [front, back] {
            out.add(b"head", 1 << 16);
            out.add(slice, 1 << 16);
        }
        let at = |slice: &[u8]| (slice.as_ptr() as usize, slice.len());
        let seen = out.slices(out.len(), |slices| slices.iter().map(|slice| at(slice)).collect::<Vec<_>>());
        assert_eq!((seen[1], seen[3]), (at(front), at(back)), "the body itself is written");
        assert!(out.copied.len() < 10 && out.lent.is_empty());
        let small = Bytes::from_static(b"short");
        out.lend(1, &small);
        assert!(out.lent.is_empty(), "must not hold a short body, which is copied anyway");
        out.lend(2, &body);
        out.take_back(1);
        assert_eq!(out.lent.len(), 1);
        out.take_back(2);
        assert!(out.lent.is_empty());
        out.advance(out.len());
        assert!(body.is_unique(), "must not hold a body that was written");
    }

    #[test]
    fn waiting_bytes_of_an_ended_call_are_copied_to_free_its_buffer() {
        let bodies = [1, 2].map(|byte| Bytes::from(vec![byte; 100_000]));
        let mut out = Outgoing::default();
        for (place, body) in bodies.iter().enumerate() {
            out.lend(place, body);
            out.add(&body[..SHARED_FROM], 1 << 16);
        }
        out.take_back(0);
        assert!(bodies[0].is_unique() && !bodies[1].is_unique());
        assert_eq!(drain(&mut out, 700), [[1; SHARED_FROM], [2; SHARED_FROM]].concat());
        out.take_back(1);
        assert!(bodies[1].is_unique());
    }

    #[test]
    fn slices_of_many_lent_pieces_are_found_in_any_order() {
        let pieces: Vec<Bytes> = (0..300_u32).map(|at| vec![at.to_le_bytes()[0]; 3_000].into()).collect();
        let mut out = Outgoing::default();
        pieces.iter().for_each(|piece| out.lend(3, piece));
        // The end of every third piece is short and therefore copied, so that the piece stays lent.
        for (at, piece) in pieces.iter().enumerate().filter(|(at, _)| at % 7 != 0) {
            let (now, end) = piece.split_at(if at % 3 == 0 { 2_500 } else { 3_000 });
            [now, end].iter().filter(|bytes| !bytes.is_empty()).for_each(|bytes| out.add(bytes, 1 << 16));
        }
        pieces.iter().step_by(7).for_each(|piece| out.add(piece, 1 << 16));
        let of_end = |at: &usize| at.is_multiple_of(3) && !at.is_multiple_of(7);
        assert_eq!(out.copied_len(), 500 * (0..300).filter(of_end).count(), "must copy these ends only");
        assert_eq!(out.lent.len(), (0..300).filter(of_end).count());
        out.take_back(3);
        assert!(out.lent.is_empty());
    }
}
