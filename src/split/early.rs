//! Copies records for their targets during the walk, right after they were read, while they are in the CPU's nearest
//! cache.
//!
//! Tags, lengths and envelopes are known only after the walk. The writer then places them between the copied records.
//! It shares runs of these that are long enough, so they are not copied again.

use bytes::Bytes;

use super::{Target, sources::Sources};
use crate::otlp::wire::Malformed;

/// The greatest length of a buffer, unless a single record is longer. The allocator usually has buffers of this length
/// free.
const LONGEST: usize = 256 << 10;

/// The least length of a buffer.
const SHORTEST: usize = 4 << 10;

/// Buffers longer than half of this have a multiple of it as their length, so that the allocator can reuse one of them in
/// place of another.
const ROUNDED: usize = 64 << 10;

/// The copies of one request's records.
#[derive(Debug, Default)]
pub(super) struct Early {
    /// The copies by the number of the target's part.
    copies: Vec<Copies>,
    /// The expected length of each target's records; 0 if nothing is copied early.
    expected: usize,
    allowance: Allowance,
}

/// How many bytes the buffers may take, and how many they take.
#[derive(Clone, Copy, Debug, Default)]
struct Allowance {
    granted: usize,
    taken: usize,
}

/// The records of one target.
#[derive(Debug)]
struct Copies {
    target: Target,
    /// The message that contains the latest record.
    message: u32,
    /// The number of copied records that the part's plan has not counted yet.
    uncounted: u32,
    /// The buffer that is being filled.
    open: Vec<u8>,
    /// The buffers before it, and their total length.
    full: Vec<Vec<u8>>,
    full_len: usize,
}

impl Early {
    /// Clears the state of the previous request.
    pub(super) fn clear(&mut self) {
        self.copies.clear();
        (self.expected, self.allowance) = (0, Allowance::default());
    }

    /// Returns an estimate of the bytes that copying `len` bytes of records for this number of targets takes.
    pub(super) fn room(len: usize, targets: usize) -> usize {
        (len + len / 4).saturating_add(targets.saturating_mul(SHORTEST))
    }

    /// Starts copying records. `granted` is the number of bytes that may be taken without asking for room.
    pub(super) fn begin(&mut self, len: usize, targets: usize, granted: usize) {
        self.expected = (len / targets.max(1)).max(1);
        self.allowance.granted = granted;
    }

    pub(super) fn is_on(&self) -> bool {
        self.expected > 0
    }

    /// Copies a record, if the latest record of its part has the same target and message and the buffer has room.
    /// Returns whether it did. The record counts as uncounted.
    #[inline(always)]
    pub(super) fn add(&mut self, part: u32, target: Target, message: u32, record: &[u8]) -> bool {
        let Some(copies) = self.copies.get_mut(part as usize) else { return false };
        if copies.target != target || copies.message != message || copies.spare() < record.len() {
            return false;
        }
        copies.open.extend_from_slice(record);
        copies.uncounted += 1;
        true
    }

    /// Copies any other record. The caller counts it in the part's plan.
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
            self.copies.push(Copies { target, message, uncounted: 0, open, full: Vec::new(), full_len: 0 });
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

    /// Returns the length of a part's records and how many records its plan has not counted yet. They count as counted
    /// from then on. Returns `None` if there is no such part.
    pub(super) fn take_uncounted(&mut self, part: u32) -> Option<(usize, u32)> {
        let copies = self.copies.get_mut(part as usize)?;
        Some((copies.len(), std::mem::take(&mut copies.uncounted)))
    }

    /// Returns how many bytes the buffers take, and how many of these were not granted.
    pub(super) fn taken(&self) -> (usize, usize) {
        let Allowance { granted, taken } = self.allowance;
        (taken, taken.saturating_sub(granted))
    }

    /// Returns the number of buffers.
    pub(super) fn buffers(&self) -> usize {
        self.copies.iter().map(|copies| copies.full.len() + 1).sum()
    }

    /// Returns the records of each part, by the number of the part.
    pub(super) fn finish(&mut self) -> Vec<Sources> {
        let sources = |copies: Copies| Sources::of(copies.full.into_iter().chain([copies.open]).map(Bytes::from));
        std::mem::take(&mut self.copies).into_iter().map(sources).collect()
    }
}

impl Allowance {
    /// Returns a buffer of about the size `about`, but at least `least`. Asks for room if that was not granted.
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
        let buffer = Vec::with_capacity(size);
        // The capacity may be greater than requested.
        self.taken += buffer.capacity();
        Ok(buffer)
    }
}

impl Copies {
    /// Returns the length of all its records.
    fn len(&self) -> usize {
        self.full_len + self.open.len()
    }

    /// Returns how many more bytes the open buffer can take.
    #[inline(always)]
    fn spare(&self) -> usize {
        self.open.capacity() - self.open.len()
    }
}

fn rounded(len: usize) -> usize {
    if len > ROUNDED / 2 { len.next_multiple_of(ROUNDED) } else { len }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Begins a request of that many bytes for two targets.
    fn begun(len: usize) -> Early {
        let mut early = Early::default();
        early.begin(len, 2, Early::room(len, 2));
        early
    }

    fn never(_more: usize) -> bool {
        panic!("there is enough room")
    }

    fn bytes_of(sources: &Sources) -> Vec<u8> {
        let (mut lookup, mut bytes) = (sources.lookup(), Vec::new());
        while let found @ [_, ..] = lookup.bytes(u32::try_from(bytes.len()).unwrap(), u32::MAX) {
            bytes.extend_from_slice(found);
        }
        bytes
    }

    #[test]
    fn the_estimate_is_a_fourth_more_than_the_request_and_a_buffer_for_each_target() {
        assert_eq!(Early::room(10_000, 3), 12_500 + 3 * 4_096);
    }

    #[test]
    fn nothing_is_copied_before_it_begins_or_after_it_is_cleared() {
        let mut early = Early::default();
        assert!(!early.is_on());
        early.begin(0, 0, 0);
        assert!(early.is_on(), "even for an empty request");
        early.add_other(0, 7, 1, b"record", &mut |_| true).unwrap();
        assert!(early.taken().0 > 0 && early.buffers() == 1);
        early.clear();
        assert_eq!((early.is_on(), early.taken(), early.buffers(), early.finish().len()), (false, (0, 0), 0, 0));
    }

    #[test]
    fn a_record_is_appended_only_to_one_of_the_same_target_and_message() {
        let mut early = begun(40_000);
        assert!(!early.add(0, 7, 1, b"a"), "the part has no buffer yet");
        early.add_other(0, 7, 1, b"a", &mut never).unwrap();
        assert!(early.add(0, 7, 1, b"b"));
        assert!(!early.add(0, 8, 1, b"of another target"));
        assert!(!early.add(0, 7, 2, b"of another message"));
        assert!(!early.add(1, 7, 1, b"of another part"));
        assert_eq!(early.take_uncounted(0), Some((2, 1)), "the first record is counted by the plan itself");
        assert_eq!(early.take_uncounted(0), Some((2, 0)));
        assert_eq!(early.take_uncounted(1), None);
        early.add_other(0, 7, 2, b"c", &mut never).unwrap();
        assert!(early.add(0, 7, 2, b"d"), "the message is that of the latest record");
        assert_eq!(bytes_of(&early.finish()[0]), b"abcd");
    }

    #[test]
    fn a_part_that_was_left_out_is_an_error() {
        let mut early = begun(40_000);
        assert_eq!(early.add_other(1, 7, 1, b"a", &mut never), Err(Malformed::Inconsistent));
    }

    #[test]
    fn buffers_are_filled_to_the_end_and_do_not_grow() {
        let mut early = begun(40_000);
        let record: Vec<u8> = (0..=255).cycle().take(999).collect();
        let mut expected = Vec::new();
        for _ in 0..45 {
            if !early.add(0, 7, 1, &record) {
                early.add_other(0, 7, 1, &record, &mut |_| true).unwrap();
            }
            expected.extend_from_slice(&record);
            let [copies] = &early.copies[..] else { panic!("one target") };
            let buffers = || copies.full.iter().chain([&copies.open]);
            assert_eq!(buffers().map(Vec::capacity).sum::<usize>(), early.taken().0, "no buffer may grow");
            assert!(copies.full.iter().all(|full| full.len() == full.capacity()));
            assert_eq!(copies.len(), expected.len());
        }
        // The first buffer has the expected length. Each further one has a fourth of the length so far, at least 4 KiB.
        let sizes = |early: &Early| early.copies[0].full.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(&early), [20_000, 5_000, 6_250, 7_812]);
        assert_eq!(early.buffers(), 5);
        assert!(bytes_of(&early.finish()[0]) == expected);
    }

    #[test]
    fn a_record_that_fits_exactly_takes_no_further_buffer() {
        let mut early = begun(40_000);
        early.add_other(0, 7, 1, &[1; 19_000], &mut never).unwrap();
        assert!(!early.add(0, 7, 1, &[2; 1_001]));
        early.add_other(0, 7, 2, &[2; 1_000], &mut never).unwrap();
        assert_eq!(early.buffers(), 1);
        early.add_other(0, 7, 2, &[3; 1], &mut never).unwrap();
        assert_eq!(early.buffers(), 2);
    }

    #[test]
    fn a_record_that_fills_the_buffer_is_appended() {
        let mut early = begun(40_000);
        early.add_other(0, 7, 1, &[1; 19_000], &mut never).unwrap();
        assert!(early.add(0, 7, 1, &[2; 1_000]));
        assert_eq!((early.buffers(), early.take_uncounted(0)), (1, Some((20_000, 1))));
    }

    #[test]
    fn a_buffer_that_takes_all_that_was_granted_asks_for_nothing() {
        let mut early = Early::default();
        early.begin(40_000, 2, 20_000);
        early.add_other(0, 7, 1, &[1; 20_000], &mut never).unwrap();
        assert_eq!(early.taken(), (20_000, 0));
    }

    #[test]
    fn room_is_asked_for_beyond_what_was_granted_and_only_then() {
        let mut early = Early::default();
        early.begin(40_000, 2, 20_000 + 4_096);
        early.add_other(0, 7, 1, &[1; 20_000], &mut never).unwrap();
        assert_eq!(early.taken(), (20_000, 0));
        // The next buffer would have 5,000 bytes.
        let mut asked = Vec::new();
        let mut room = |gives: bool| {
            early.add_other(0, 7, 1, &[2; 100], &mut |more| {
                asked.push(more);
                gives
            })
        };
        assert_eq!(room(false), Err(Malformed::NoRoom(904)));
        assert_eq!(room(true), Ok(()));
        assert_eq!((asked, early.taken()), (vec![904, 904], (25_000, 0)));
    }

    #[test]
    fn long_buffers_are_multiples_of_64_kib_up_to_256_unless_a_record_is_longer() {
        let sizes = [0, 4_095, 4_096, 4_097, 32_768, 32_769, 65_537, 200_000, 1 << 20];
        let size_of = |about: usize, least: usize| {
            let mut asked = 0;
            let mut allowance = Allowance::default();
            let refused = allowance.take(about, least, &mut |more| {
                asked = more;
                false
            });
            assert_eq!(refused, Err(Malformed::NoRoom(asked)));
            asked
        };
        let expected = [4_096, 4_096, 4_096, 4_097, 32_768, 65_536, 131_072, 262_144, 262_144];
        assert_eq!(sizes.map(|about| size_of(about, 0)), expected);
        assert_eq!(size_of(100, 1 << 20), 1 << 20);
    }

    #[test]
    fn a_part_of_more_than_32_kib_grows_by_64_kib_at_least() {
        for (len, grown) in [(32_768, 8_192), (32_769, 65_536)] {
            let mut early = Early::default();
            early.begin(1, 1, usize::MAX);
            early.add_other(0, 7, 1, &vec![1; len], &mut never).unwrap();
            let before = early.taken().0;
            early.allowance.granted = before;
            let refused = early.add_other(0, 7, 1, &[1], &mut |_| false);
            assert_eq!(refused, Err(Malformed::NoRoom(grown)), "{len} bytes");
        }
    }

    #[test]
    fn bytes_above_those_granted_are_not_granted() {
        let mut allowance = Allowance { granted: 10, taken: 25 };
        assert_eq!(Early { allowance, ..Early::default() }.taken(), (25, 15));
        allowance.granted = 30;
        assert_eq!(Early { allowance, ..Early::default() }.taken(), (25, 0));
    }
}
