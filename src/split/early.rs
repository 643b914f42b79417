//! Early copies: records are copied for their target while the walk goes on, when they have just been read and are in the
//! processor's nearest cache.
//!
//! Tags, lengths and envelopes are known only at the end of the walk. The writer puts them between these records then, which it
//! need not copy once more where they are long enough.

use bytes::Bytes;

use super::{Target, sources::Sources};
use crate::otlp::wire::Malformed;

/// The longest buffer, unless a single record is longer: the longest one that an allocator has at hand.
const LONGEST: usize = 256 << 10;

/// The shortest buffer.
const SHORTEST: usize = 4 << 10;

/// Buffers from half of this are multiples of it, so that the allocator can use one of them again in place of another.
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
        let sources = |copies: Copies| Sources::of(copies.full.into_iter().chain([copies.open]).map(Bytes::from));
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
        let buffer = Vec::with_capacity(size);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A request of that many bytes for two targets. Buffers are below 64 KiB: longer ones may come from a pool, and be longer.
    fn begun(len: usize) -> Early {
        let mut early = Early::default();
        early.begin(len, 2, Early::room(len, 2));
        early
    }

    fn never(_more: usize) -> bool {
        panic!("there is room")
    }

    fn bytes_of(sources: &Sources) -> Vec<u8> {
        let (mut lookup, mut bytes) = (sources.lookup(), Vec::new());
        while let found @ [_, ..] = lookup.bytes(u32::try_from(bytes.len()).unwrap(), u32::MAX) {
            bytes.extend_from_slice(found);
        }
        bytes
    }

    #[test]
    fn a_fourth_more_than_the_request_is_foreseen_and_a_buffer_for_each_target() {
        assert_eq!(Early::room(10_000, 3), 12_500 + 3 * 4_096);
    }

    #[test]
    fn nothing_is_copied_before_it_is_begun_and_after_it_is_cleared() {
        let mut early = Early::default();
        assert!(!early.is_on());
        early.begin(0, 0, 0);
        assert!(early.is_on(), "an empty request too");
        early.add_other(0, 7, 1, b"record", &mut |_| true).unwrap();
        assert!(early.taken().0 > 0 && early.buffers() == 1);
        early.clear();
        assert_eq!((early.is_on(), early.taken(), early.buffers(), early.finish().len()), (false, (0, 0), 0, 0));
    }

    #[test]
    fn a_record_goes_on_only_behind_one_of_its_target_and_message() {
        let mut early = begun(40_000);
        assert!(!early.add(0, 7, 1, b"a"), "it has no buffer yet");
        early.add_other(0, 7, 1, b"a", &mut never).unwrap();
        assert!(early.add(0, 7, 1, b"b"));
        assert!(!early.add(0, 8, 1, b"of another target"));
        assert!(!early.add(0, 7, 2, b"of another message"));
        assert!(!early.add(1, 7, 1, b"of another part"));
        assert_eq!(early.take_news(0), Some((2, 1)), "the first record is counted by the plan itself");
        assert_eq!(early.take_news(0), Some((2, 0)));
        assert_eq!(early.take_news(1), None);
        early.add_other(0, 7, 2, b"c", &mut never).unwrap();
        assert!(early.add(0, 7, 2, b"d"), "the message is the latest one's");
        assert_eq!(bytes_of(&early.finish()[0]), b"abcd");
    }

    #[test]
    fn a_part_that_was_left_out_is_an_error() {
        let mut early = begun(40_000);
        assert_eq!(early.add_other(1, 7, 1, b"a", &mut never), Err(Malformed::Inconsistent));
    }

    #[test]
    fn buffers_are_filled_to_the_end_and_never_beyond() {
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
            assert_eq!(buffers().map(Vec::capacity).sum::<usize>(), early.taken().0, "no buffer grew by itself");
            assert!(copies.full.iter().all(|full| full.len() == full.capacity()));
            assert_eq!(copies.len(), expected.len());
        }
        // What was expected, then a fourth of what there is, at least 4 KiB.
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
    fn what_a_kept_buffer_has_beyond_its_size_is_told() {
        let mut allowance = Allowance { granted: 10, taken: 25 };
        assert_eq!(Early { allowance, ..Early::default() }.taken(), (25, 15));
        allowance.granted = 30;
        assert_eq!(Early { allowance, ..Early::default() }.taken(), (25, 0));
    }
}
