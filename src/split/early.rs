//! Early copies: records are copied for their target while the walk goes on, when they have just been read and are in the
//! processor's nearest cache.
//!
//! Tags, lengths and envelopes are known only at the end of the walk. The writer puts them between these records then, which it
//! need not copy once more where they are long enough.

use super::{Target, sources::Sources};
use crate::{buffers, otlp::wire::Malformed};

/// The longest buffer, unless a single record is longer: the longest one that an allocator has at hand.
const LONGEST: usize = 256 << 10;

/// The shortest buffer.
const SHORTEST: usize = 4 << 10;

/// Buffers from half of this are multiples of it, so that one of them can be used again in place of another.
const ROUNDED: usize = 64 << 10;

/// The copies of one request's records.
#[derive(Debug, Default)]
pub(super) struct Early {
    /// By the number of the target's part.
    copies: Vec<Copies>,
    /// Bytes of records that are expected for each target; 0 if nothing is copied early.
    expected: usize,
    allowance: Allowance,
}

/// Bytes that buffers may take, and do.
#[derive(Clone, Copy, Debug, Default)]
struct Allowance {
    granted: usize,
    taken: usize,
}

/// The records of one target.
#[derive(Debug)]
struct Copies {
    target: Target,
    /// The message that the latest record is of.
    message: u32,
    /// Records that were copied since the part's plan was told.
    news: u32,
    /// The buffer that is being filled.
    open: Vec<u8>,
    /// Those in front of it, and their length.
    full: Vec<Vec<u8>>,
    full_len: usize,
}

impl Early {
    /// Forgets the request before.
    pub(super) fn clear(&mut self) {
        self.copies.clear();
        (self.expected, self.allowance) = (0, Allowance::default());
    }

    /// Bytes that it takes to copy `len` bytes of records for so many targets, as far as that can be foreseen.
    pub(super) fn room(len: usize, targets: usize) -> usize {
        (len + len / 4).saturating_add(targets.saturating_mul(SHORTEST))
    }

    /// Copies records from now on, at first into `granted` bytes.
    pub(super) fn begin(&mut self, len: usize, targets: usize, granted: usize) {
        self.expected = (len / targets.max(1)).max(1);
        self.allowance.granted = granted;
    }

    pub(super) fn is_on(&self) -> bool {
        self.expected > 0
    }

    /// Copies one more record of a target and a message, if the latest record of that part was of both and there is room.
    #[inline(always)]
    pub(super) fn add(&mut self, part: u32, target: Target, message: u32, record: &[u8]) -> bool {
        let Some(copies) = self.copies.get_mut(part as usize) else { return false };
        if copies.target != target || copies.message != message || copies.spare() < record.len() {
            return false;
        }
        copies.open.extend_from_slice(record);
        copies.news += 1;
        true
    }

    /// Copies any other record. Its part's plan counts it by itself.
    pub(super) fn add_other(
        &mut self,
        part: u32,
        target: Target,
        message: u32,
        record: &[u8],
        room: &mut dyn FnMut(usize) -> bool,
    ) -> Result<(), Malformed> {
        if self.copies.len() == part as usize {
            let open = self.allowance.take(self.expected, record.len(), room)?;
            self.copies.push(Copies { target, message, news: 0, open, full: Vec::new(), full_len: 0 });
        }
        let copies = self.copies.get_mut(part as usize).ok_or(Malformed::Inconsistent)?;
        copies.message = message;
        let (fits, rest) = record.split_at(record.len().min(copies.spare()));
        copies.open.extend_from_slice(fits);
        if rest.is_empty() {
            return Ok(());
        }
        let fourth = copies.len() / 4;
        let more = if copies.len() > ROUNDED / 2 { fourth.max(ROUNDED) } else { fourth };
        let mut next = self.allowance.take(more, rest.len(), room)?;
        next.extend_from_slice(rest);
        copies.full_len += copies.open.len();
        copies.full.push(std::mem::replace(&mut copies.open, next));
        Ok(())
    }

    /// Bytes of a part's records, and how many of them its plan was not told of yet. `None` if there is no such part.
    pub(super) fn take_news(&mut self, part: u32) -> Option<(usize, u32)> {
        let copies = self.copies.get_mut(part as usize)?;
        Some((copies.len(), std::mem::take(&mut copies.news)))
    }

    /// Bytes that the buffers take, and how many of them were not granted.
    pub(super) fn taken(&self) -> (usize, usize) {
        let Allowance { granted, taken } = self.allowance;
        (taken, taken.saturating_sub(granted))
    }

    /// How many buffers there are.
    pub(super) fn buffers(&self) -> usize {
        self.copies.iter().map(|copies| copies.full.len() + 1).sum()
    }

    /// The records of each part, by its number.
    pub(super) fn finish(&mut self) -> Vec<Sources> {
        let sources = |copies: Copies| Sources::of(copies.full.into_iter().chain([copies.open]).map(buffers::share));
        std::mem::take(&mut self.copies).into_iter().map(sources).collect()
    }
}

impl Allowance {
    /// A buffer of about that size, and of `least` at least.
    fn take(&mut self, about: usize, least: usize, room: &mut dyn FnMut(usize) -> bool) -> Result<Vec<u8>, Malformed> {
        let size = rounded(about).clamp(SHORTEST, LONGEST).max(least);
        let needed = self.taken.saturating_add(size);
        if let Some(more) = needed.checked_sub(self.granted)
            && more > 0
        {
            if !room(more) {
                return Err(Malformed::NoRoom(more));
            }
            self.granted = needed;
        }
        let buffer = buffers::take(size);
        // A buffer that was kept from an earlier request may be longer.
        self.taken += buffer.capacity();
        Ok(buffer)
    }
}

impl Copies {
    /// Bytes of all its records.
    fn len(&self) -> usize {
        self.full_len + self.open.len()
    }

    /// Bytes that the open buffer still takes.
    #[inline(always)]
    fn spare(&self) -> usize {
        self.open.capacity() - self.open.len()
    }
}

fn rounded(len: usize) -> usize {
    if len > ROUNDED / 2 { len.next_multiple_of(ROUNDED) } else { len }
}
