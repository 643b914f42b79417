//! Counts the buffers that a client's headers keep in memory.
//!
//! HPACK's table (RFC 7541, 2.3.2) holds headers for later requests. h2 does not copy the authority, the path and the
//! scheme in it: a plain string is a slice of the buffer that it was read into, and a Huffman-coded one of the buffer that
//! it was decoded into. Such a buffer of 8 KiB or more stays until the header has left the table, which has room for
//! a hundred. So the buffers are taken from the account. A connection that has no room for them is told to finish.

use std::collections::VecDeque;

use tokio::io::ReadBuf;

use super::{admission, hpack::Inserted, streams::HEAD};
use crate::budget::{Budget, Permit, Use};

/// The size of HPACK's table, which is the default of the setting (RFC 9113, 6.5.2).
const TABLE: usize = 4 << 10;

/// What an entry of the table counts besides its name and value (RFC 7541, 4.1).
pub(super) const ENTRY: usize = 32;

/// The size of the buffers that h2 decodes strings into, unless a string needs more.
const DECODED: usize = 4 << 10;

/// h2 reserves this many times the length of a Huffman-coded string to decode it, and the string has at most 8/5 of it.
const RESERVED: usize = 2;

/// The buffers of a usual client, which are in the cost of its connection: one to read into, and one to decode into.
const USUAL: usize = (8 << 10) + DECODED;

/// Static entries of the table whose values are not copied: the authority, two paths and two schemes (RFC 7541, appendix A),
/// and the number of the first entry that is not static.
const KEPT: [usize; 5] = [1, 4, 5, 6, 7];
const FIRST_DYNAMIC: usize = 62;

/// An entry that may be longer than the table, by the coded length of its strings: then it is not inserted, and the table is
/// empty.
const MAYBE_TOO_LONG: usize = TABLE / 4;

/// What a connection may keep without room in the account until it is closed. It has been told to finish by then.
const MOST_UNCOUNTED: usize = 1 << 20;

/// The buffers of one connection.
#[derive(Debug)]
pub(super) struct Pins {
    /// `None` if they are not accounted for.
    account: Option<Budget>,
    permit: Option<Permit>,
    pub(super) names: Names,
    /// The buffers that entries of the table may be in, the oldest first.
    pins: VecDeque<Pin>,
    /// The size of these buffers.
    size: usize,
    /// The size of all entries so far, at least.
    inserted: usize,
    /// The buffer that h2 reads into: its end in memory, which tells it from others, and its size.
    read: (usize, usize),
    /// The number of the buffer that h2 decodes into, its size and the bytes left in it.
    decoded: (usize, usize, usize),
    /// The worst standing so far, and whether it was asked for since it became worse than well.
    standing: Standing,
    is_known: bool,
}

/// Follows which entries of the table have values that are not copied.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// A bit for each of the last entries, the latest first. The table has no more than 128.
    kept: u128,
    /// Whether it is unknown which entry has which number.
    is_lost: bool,
}

/// A buffer that entries of the table are in.
#[derive(Debug)]
struct Pin {
    buffer: Buffer,
    size: usize,
    /// The size of all entries up to the last one that is in it, at least.
    until: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Buffer {
    Read(usize),
    Decoded(usize),
}

/// How a connection stands with what its headers keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// All is accounted for.
    Well,
    /// There is no room for all of it: the client has to finish.
    NoRoom,
    /// The connection has to end.
    TooMuch,
}

// === impl Names ===

impl Names {
    /// Returns whether values are not copied whose name is that of the entry with this number.
    pub(super) fn keep(&self, index: usize) -> bool {
        match index.checked_sub(FIRST_DYNAMIC) {
            None => KEPT.contains(&index),
            Some(_) if self.is_lost => true,
            Some(at) => {
                u32::try_from(at).ok().and_then(|at| self.kept.checked_shr(at)).is_some_and(|bits| bits & 1 == 1)
            }
        }
    }

    /// Notes a new entry, whose strings have so many bytes as they are coded.
    pub(super) fn insert(&mut self, is_kept: bool, len: usize) {
        self.kept = self.kept << 1 | u128::from(is_kept);
        self.is_lost |= len > MAYBE_TOO_LONG;
    }

    /// Notes another size of the table, with which an entry may be too long.
    pub(super) fn resize(&mut self, size: usize) {
        self.is_lost |= size < TABLE;
    }
}

// === impl Pins ===

impl Pins {
    pub(super) fn new(account: Option<Budget>) -> Self {
        let pins = VecDeque::new();
        let (read, decoded, standing) = ((0, 0), (0, 0, 0), Standing::Well);
        Self {
            account,
            permit: None,
            names: Names::default(),
            pins,
            size: 0,
            inserted: 0,
            read,
            decoded,
            standing,
            is_known: false,
        }
    }

    /// Returns the worst standing so far.
    pub(super) fn standing(&self) -> Standing {
        self.standing
    }

    /// Returns, once, that there is no room any more.
    pub(super) fn has_just_no_room(&mut self) -> bool {
        self.standing > Standing::Well && !std::mem::replace(&mut self.is_known, true)
    }

    /// Notes the buffer that is read into next, in a frame with a payload of `frame` bytes, or 0. h2 makes a buffer as large
    /// as a frame.
    pub(super) fn reads_into(&mut self, buf: &ReadBuf<'_>, frame: usize) {
        let (filled, left) = (buf.filled(), buf.remaining());
        let end = filled.as_ptr().addr() + filled.len() + left;
        if end != self.read.0 {
            self.read = (end, left.max(frame + HEAD));
        }
    }

    /// Notes what a header block inserts into the table.
    pub(super) fn note(&mut self, inserted: Inserted) {
        if self.account.is_none() {
            return;
        }
        self.decode(inserted.huffman_len);
        if inserted.size > 0 {
            self.insert(inserted);
            self.standing = self.standing.max(self.account_for());
        }
    }

    fn insert(&mut self, inserted: Inserted) {
        self.inserted += inserted.size;
        if inserted.is_plain {
            self.pin(Buffer::Read(self.read.0), self.read.1);
        }
        if inserted.is_decoded {
            let (number, size, _) = self.decoded;
            self.pin(Buffer::Decoded(number), size);
        }
        while let Some(first) = self.pins.front()
            // An entry stays as long as it and those after it fit into the table.
            && self.inserted - first.until > TABLE - ENTRY
        {
            self.size -= first.size;
            self.pins.pop_front();
        }
    }

    /// Takes what is kept from the account.
    fn account_for(&mut self) -> Standing {
        let wanted = self.size.saturating_sub(USUAL);
        let Some(account) = self.account.as_ref().filter(|_| wanted > 0 || self.permit.is_some()) else {
            return Standing::Well;
        };
        let permit = self.permit.get_or_insert_with(|| account.permit_for(Use::Frames));
        permit.shrink_to(wanted);
        let more = wanted - permit.bytes();
        match more {
            0 => Standing::Well,
            _ if admission::has_room_for_frame(account, more) && permit.grow(more) => Standing::Well,
            1..=MOST_UNCOUNTED => Standing::NoRoom,
            _ => Standing::TooMuch,
        }
    }

    /// Follows how h2 decodes strings of this length into one buffer after the other.
    fn decode(&mut self, huffman_len: usize) {
        let (number, size, left) = self.decoded;
        let reserved = huffman_len.saturating_mul(RESERVED);
        self.decoded = match left.checked_sub(reserved) {
            Some(left) => (number, size, left),
            None => (number + 1, reserved.max(DECODED), reserved.max(DECODED) - reserved),
        };
    }

    fn pin(&mut self, buffer: Buffer, size: usize) {
        let until = self.inserted;
        // The two kinds may take turns.
        match self.pins.iter_mut().rev().take(2).find(|pin| pin.buffer == buffer) {
            Some(pin) => pin.until = until,
            None => {
                self.size += size;
                self.pins.push_back(Pin { buffer, size, until });
            }
        }
        // The oldest comes first.
        if let [.., last, latest] = self.pins.make_contiguous()
            && last.until > latest.until
        {
            std::mem::swap(last, latest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1 << 10;

    fn plain(size: usize) -> Inserted {
        Inserted { size, is_plain: true, ..Inserted::default() }
    }

    /// Reads into a buffer of this size, which is another one each time as long as all are kept.
    fn read_into(pins: &mut Pins, kept: &mut Vec<Vec<u8>>, size: usize) {
        kept.push(vec![0; size]);
        let buf = kept.last_mut().unwrap();
        pins.reads_into(&ReadBuf::new(buf), 0);
    }

    #[test]
    fn each_buffer_counts_while_an_entry_of_it_may_be_in_the_table() {
        let budget = Budget::new(64 << 20);
        let (mut pins, mut kept) = (Pins::new(Some(budget.clone())), Vec::new());
        read_into(&mut pins, &mut kept, 8 * KIB);
        for _ in 0..10 {
            pins.note(plain(60));
        }
        assert_eq!(budget.used_for(Use::Frames), 0, "a usual client");
        // Each of these has one short entry; 4,096 / 40 fit.
        for _ in 0..300 {
            read_into(&mut pins, &mut kept, 100 * KIB);
            pins.note(plain(40));
        }
        let held = budget.used_for(Use::Frames) / (100 * KIB);
        assert!((101..=103).contains(&held), "{held} buffers");
        // One large entry takes the place of them all.
        pins.note(plain(4_090));
        assert_eq!(pins.standing(), Standing::Well);
        assert!(budget.used_for(Use::Frames) <= 100 * KIB);
        drop(pins);
        assert_eq!(budget.used_for(Use::Frames), 0);
    }

    #[test]
    fn without_room_a_connection_has_to_finish_and_then_to_end() {
        let budget = Budget::new(2 << 20);
        let (mut pins, mut kept) = (Pins::new(Some(budget.clone())), Vec::new());
        let mut standings = Vec::new();
        for _ in 0..12 {
            read_into(&mut pins, &mut kept, 256 * KIB);
            pins.note(plain(40));
            standings.push(pins.standing());
        }
        // Half of 2 MiB are for frames, and the usual 12 KiB count elsewhere.
        let [well, no_room, too_much] = [Standing::Well, Standing::NoRoom, Standing::TooMuch];
        assert_eq!(standings[..4], [well; 4]);
        assert!(standings[4..8].iter().all(|standing| *standing == no_room), "{standings:?}");
        assert_eq!(standings[9..], [too_much; 3]);
        assert!(budget.used_for(Use::Frames) <= 1 << 20);
    }

    #[test]
    fn decoded_strings_share_a_buffer_until_it_is_full() {
        let budget = Budget::new(64 << 20);
        let mut pins = Pins::new(Some(budget.clone()));
        let coded = |huffman_len| Inserted { size: 40, is_decoded: true, huffman_len, ..Inserted::default() };
        for _ in 0..1_000 {
            pins.note(coded(20));
        }
        // 102 entries lie in two or three buffers of 4 KiB.
        assert!(budget.used_for(Use::Frames) == 0, "{}", budget.used_for(Use::Frames));
        for _ in 0..1_000 {
            pins.note(coded(10 * KIB));
        }
        let held = budget.used_for(Use::Frames) / (20 * KIB);
        assert!((101..=103).contains(&held), "{held} buffers");
    }

    #[test]
    fn a_buffer_is_as_large_as_the_frame_that_it_was_made_for() {
        let mut pins = Pins::new(Some(Budget::new(1 << 20)));
        let mut room = [0; 100];
        pins.reads_into(&ReadBuf::new(&mut room), 5_000);
        assert_eq!(pins.read.1, 5_000 + HEAD);
        // The rest of the same buffer.
        pins.reads_into(&ReadBuf::new(&mut room[90..]), 0);
        assert_eq!(pins.read.1, 5_000 + HEAD);
        let mut buf = ReadBuf::new(&mut room);
        buf.put_slice(&[1; 30]);
        pins.reads_into(&buf, 0);
        assert_eq!(pins.read.1, 5_000 + HEAD);
    }
}
