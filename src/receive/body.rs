//! Reads one length-prefixed message from a request's frames, within the size limit and the memory budget.
//!
//! Large frames stay in the buffers that HTTP/2 read them into; small frames are copied together. So the bytes of a
//! large request are not touched before the split reads them.
//!
//! A buffer is as long as the frames that have arrived when it is needed, or as all bytes so far if these are more. So
//! a message whose frames have all arrived lies in one buffer of its size, and a peer that announces much and sends
//! little holds little.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http_body::Body;

use crate::{
    budget::{Buffer, Permit},
    otlp::framed::PREFIX_LEN,
};

/// A message that came in one frame is copied if it is shorter than this. A frame is a slice of h2's read buffer, which
/// begins with 8 KiB and grows with larger frames. As long as the slice exists, h2 cannot reuse the buffer, and the
/// memory budget does not count it.
const COPY_BELOW: usize = 32 << 10;

/// In a message of several frames, a frame is copied if it is shorter than this. It is half of the largest frame, since
/// the read buffer may be as large as that. The bound is higher than for one frame because a slow client would keep the
/// buffers in use for longer.
const KEEP_FROM: usize = 128 << 10;

/// The least capacity of a buffer that small frames are copied to, unless the message is shorter.
const LEAST: usize = 256;

/// The largest capacity of such a buffer.
const MOST: usize = 256 << 10;

/// Reads one message. Its permit covers the buffers of the bytes so far.
#[derive(Debug)]
pub(super) struct Reader {
    limit: usize,
    permit: Permit,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The prefix is incomplete: `len` bytes of it have arrived.
    Prefix { have: [u8; PREFIX_LEN], len: usize },
    /// The prefix is complete.
    Filling(Filling),
    /// The whole message, with its prefix.
    Whole(Vec<Bytes>),
}

/// A message that has begun.
#[derive(Debug, Default)]
struct Filling {
    /// Its bytes that lie in buffers, and their number.
    chunks: Vec<Bytes>,
    open: Buffer,
    buffered: usize,
    /// Frames that are still to be copied, and their length. They are copied before the reader waits for more.
    waiting: Vec<Bytes>,
    waiting_len: usize,
    /// Its length, prefix included.
    total: usize,
}

/// A message as it was received, possibly compressed.
#[derive(Debug)]
pub(super) struct Received {
    /// The prefix and the message, in one or more buffers.
    pub(super) chunks: Vec<Bytes>,
    /// The budget share of the message.
    pub(super) permit: Permit,
}

/// The reason why a body could not be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BodyError {
    /// The message is larger than the limit.
    TooLarge,
    /// The budget has no room. The message takes this many bytes.
    NoRoom(usize),
    /// The compression flag is neither 0 nor 1.
    Flag,
    /// The body ended inside a message.
    Truncated,
    /// The body ended before the message began.
    Missing,
    /// The body has more than one message, or bytes after it.
    Excess,
    /// The connection or the stream broke, so there is no client to answer.
    Gone,
}

/// Reads a body to its end.
///
/// Cancel safety: the bytes read so far are lost, and their share of the budget is given back.
pub(super) async fn read<B>(body: &mut B, limit: usize, permit: Permit) -> Result<Received, BodyError>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut reader = Reader::new(limit, permit);
    poll_fn(|context| reader.poll(body, context)).await?;
    reader.finish()
}

// === impl Reader ===

impl Reader {
    pub(super) fn new(limit: usize, permit: Permit) -> Self {
        Self { limit, permit, state: State::Prefix { have: [0; PREFIX_LEN], len: 0 } }
    }

    /// Reads all frames that have arrived. Ready at the end of the body.
    fn poll<B>(&mut self, body: &mut B, context: &mut Context<'_>) -> Poll<Result<(), BodyError>>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        loop {
            match Pin::new(&mut *body).poll_frame(context) {
                // Any other frame is trailers, which OTLP requests do not use.
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.push(data)?;
                    }
                }
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(BodyError::Gone)),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    self.pause()?;
                    return Poll::Pending;
                }
            }
        }
    }

    /// Adds the data of one frame.
    pub(super) fn push(&mut self, mut data: Bytes) -> Result<(), BodyError> {
        let State::Prefix { have, len } = &mut self.state else { return self.fill(data) };
        // The usual case: the frame begins with a complete prefix, and may hold the whole message.
        if *len == 0
            && let Some(prefix) = data.first_chunk::<PREFIX_LEN>()
        {
            let total = announced(*prefix, self.limit)?;
            return self.begin(total, data);
        }
        while let Some(slot) = have.get_mut(*len)
            && data.has_remaining()
        {
            *slot = data.get_u8();
            *len += 1;
        }
        if *len < PREFIX_LEN {
            return Ok(());
        }
        let prefix = *have;
        let total = announced(prefix, self.limit)?;
        self.begin(total, Bytes::copy_from_slice(&prefix))?;
        self.fill(data)
    }

    /// Returns the message at the end of the body.
    pub(super) fn finish(self) -> Result<Received, BodyError> {
        match self.state {
            State::Whole(chunks) => Ok(Received { chunks, permit: self.permit }),
            State::Prefix { len: 0, .. } => Err(BodyError::Missing),
            State::Prefix { .. } | State::Filling(_) => Err(BodyError::Truncated),
        }
    }

    /// Starts a message of `total` bytes. `first` is its beginning, prefix included.
    fn begin(&mut self, total: usize, first: Bytes) -> Result<(), BodyError> {
        if total > self.permit.alone() {
            return Err(BodyError::NoRoom(total));
        }
        if first.len() == total && total >= COPY_BELOW {
            if !self.permit.grow(total) {
                return Err(BodyError::NoRoom(total));
            }
            self.state = State::Whole(vec![first]);
            return Ok(());
        }
        self.state = State::Filling(Filling { total, ..Filling::default() });
        self.fill(first)
    }

    fn fill(&mut self, data: Bytes) -> Result<(), BodyError> {
        let State::Filling(filling) = &mut self.state else {
            // Empty frames after the message are legal: some clients end the stream with one.
            return if data.is_empty() { Ok(()) } else { Err(BodyError::Excess) };
        };
        if filling.add(data, &mut self.permit)? {
            self.state = State::Whole(std::mem::take(&mut filling.chunks));
        }
        Ok(())
    }

    /// Copies all frames that are still to be copied, since the next one may take its time.
    fn pause(&mut self) -> Result<(), BodyError> {
        match &mut self.state {
            State::Filling(filling) => filling.copy(&mut self.permit),
            State::Prefix { .. } | State::Whole(_) => Ok(()),
        }
    }
}

// === impl Filling ===

impl Filling {
    /// Adds the data of one frame. Returns whether the message is complete.
    fn add(&mut self, data: Bytes, permit: &mut Permit) -> Result<bool, BodyError> {
        let left = self.total - self.buffered - self.waiting_len;
        if data.len() > left {
            return Err(BodyError::Excess);
        }
        let is_last = data.len() == left;
        if data.len() >= KEEP_FROM {
            self.copy(permit)?;
            if !permit.grow(data.len()) {
                return Err(BodyError::NoRoom(self.total));
            }
            self.close(permit);
            self.buffered += data.len();
            self.chunks.push(data);
        } else if is_last && self.waiting.is_empty() {
            self.copy_one(&data, data.len(), permit)?;
        } else if !data.is_empty() {
            if self.waiting_len + data.len() > MOST {
                self.copy(permit)?;
            }
            self.waiting_len += data.len();
            self.waiting.push(data);
        }
        if is_last {
            self.copy(permit)?;
            self.close(permit);
        }
        Ok(is_last)
    }

    /// Copies the frames that are waiting.
    fn copy(&mut self, permit: &mut Permit) -> Result<(), BodyError> {
        let mut left = std::mem::take(&mut self.waiting_len);
        for frame in std::mem::take(&mut self.waiting) {
            self.copy_one(&frame, left, permit)?;
            left -= frame.len();
        }
        Ok(())
    }

    /// Copies one frame. It is the first of `waiting` bytes that are to be copied now.
    fn copy_one(&mut self, frame: &[u8], waiting: usize, permit: &mut Permit) -> Result<(), BodyError> {
        let spare = self.open.bytes.capacity() - self.open.bytes.len();
        let (fits, rest) = frame.split_at(spare.min(frame.len()));
        self.open.bytes.extend_from_slice(fits);
        self.buffered += fits.len();
        if rest.is_empty() {
            return Ok(());
        }
        self.close(permit);
        let least = waiting - fits.len();
        let left = self.total - self.buffered;
        let wanted = least.max(self.buffered.clamp(LEAST, MOST)).min(left);
        if !self.open.reach(wanted, permit) && !self.open.reach(least, permit) {
            return Err(BodyError::NoRoom(self.total));
        }
        self.open.bytes.extend_from_slice(rest);
        self.buffered += rest.len();
        Ok(())
    }

    /// Moves the bytes of the open buffer to the chunks, and leaves an empty buffer for the next ones.
    fn close(&mut self, permit: &mut Permit) {
        let mut bytes = std::mem::take(&mut self.open.bytes);
        let capacity = bytes.capacity();
        if bytes.len() < capacity / 2 {
            bytes.shrink_to_fit();
            permit.shrink_to(permit.bytes().saturating_sub(capacity - bytes.capacity()));
        }
        if !bytes.is_empty() {
            self.chunks.push(Bytes::from(bytes));
        }
    }
}

/// Returns the length of the message that a prefix announces, including the prefix.
fn announced(prefix: [u8; PREFIX_LEN], limit: usize) -> Result<usize, BodyError> {
    let [flag, a, b, c, d] = prefix;
    if flag > 1 {
        return Err(BodyError::Flag);
    }
    match usize::try_from(u32::from_be_bytes([a, b, c, d])) {
        Ok(len) if len <= limit => len.checked_add(PREFIX_LEN).ok_or(BodyError::TooLarge),
        Ok(_) | Err(_) => Err(BodyError::TooLarge),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;

    fn message(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Reads a message that comes in frames of `piece` bytes. Each comes by itself, or `at_once` all together.
    fn read_frames(bytes: &[u8], piece: usize, limit: usize, at_once: bool) -> Result<Vec<u8>, BodyError> {
        let budget = Budget::new(1 << 30);
        let mut reader = Reader::new(limit, budget.permit());
        for piece in bytes.chunks(piece.max(1)) {
            reader.push(Bytes::copy_from_slice(piece))?;
            if !at_once {
                reader.pause()?;
            }
        }
        let received = reader.finish()?;
        assert_eq!(budget.used(), received.permit.bytes());
        let bytes = received.chunks.concat();
        assert!(received.permit.bytes() >= bytes.len(), "the permit must cover the bytes");
        assert!(received.permit.bytes() <= 2 * bytes.len(), "{} for {}", received.permit.bytes(), bytes.len());
        assert!(received.chunks.iter().all(|chunk| !chunk.is_empty()));
        assert!(received.chunks.len() <= 12 + bytes.len() / KEEP_FROM, "{} buffers", received.chunks.len());
        Ok(bytes)
    }

    fn read_in_pieces(bytes: &[u8], piece: usize, limit: usize) -> Result<Vec<u8>, BodyError> {
        let read = read_frames(bytes, piece, limit, true);
        assert_eq!(read_frames(bytes, piece, limit, false), read);
        read
    }

    #[test]
    fn a_message_is_the_same_however_it_is_cut() {
        for len in [0, 1, 4, 5, 6, 100, LEAST - 5, LEAST, COPY_BELOW, KEEP_FROM, MOST - 5, MOST, 3 * MOST + 17] {
            let payload: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
            let bytes = message(&payload);
            for piece in [1, 2, 3, 4, 5, 6, 7, 1000, 16_384, KEEP_FROM, 50_000, bytes.len()] {
                if bytes.len() / piece < 200_000 {
                    assert_eq!(read_in_pieces(&bytes, piece, usize::MAX), Ok(bytes.clone()), "{len} in {piece}s");
                }
            }
        }
    }

    #[test]
    fn a_large_message_in_one_frame_is_not_copied() {
        let bytes = Bytes::from(message(&vec![7; COPY_BELOW]));
        let mut reader = Reader::new(usize::MAX, Budget::new(1 << 20).permit());
        reader.push(bytes.clone()).unwrap();
        assert_eq!(reader.finish().unwrap().chunks[0].as_ptr(), bytes.as_ptr());
    }

    #[test]
    fn a_small_message_in_one_frame_does_not_keep_the_read_buffer() {
        let bytes = Bytes::from(message(b"small"));
        let mut reader = Reader::new(usize::MAX, Budget::new(1 << 20).permit());
        reader.push(bytes.clone()).unwrap();
        assert_ne!(reader.finish().unwrap().chunks[0].as_ptr(), bytes.as_ptr());
    }

    #[test]
    fn an_announced_size_above_the_limit_is_refused_at_once() {
        let mut reader = Reader::new(1000, Budget::new(1 << 20).permit());
        assert_eq!(reader.push(Bytes::from_static(&[0, 0, 0, 0x03, 0xe9])), Err(BodyError::TooLarge));
        let mut reader = Reader::new(1000, Budget::new(1 << 20).permit());
        assert_eq!(reader.push(Bytes::from_static(&[0, 0, 0, 0x03, 0xe8])), Ok(()));
        let mut reader = Reader::new(64 << 20, Budget::new(1 << 20).permit());
        assert_eq!(reader.push(Bytes::from_static(&[1, 0xff, 0xff, 0xff, 0xff])), Err(BodyError::TooLarge));
    }

    #[test]
    fn buffers_grow_with_what_came_and_not_with_what_was_announced() {
        let budget = Budget::new(1 << 30);
        let mut reader = Reader::new(64 << 20, budget.permit());
        reader.push(Bytes::from_static(&[0, 0x04, 0, 0, 0, 1, 2])).unwrap();
        assert_eq!(budget.used(), 0, "more may have arrived");
        reader.pause().unwrap();
        assert_eq!(budget.used(), LEAST);
        let mut came = 7;
        while came < 4 * MOST {
            reader.push(Bytes::from(vec![7; 1_000])).unwrap();
            reader.pause().unwrap();
            came += 1_000;
            assert!((came..=(2 * came).min(came + MOST)).contains(&budget.used()), "{} of {came}", budget.used());
        }
        drop(reader);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn frames_that_came_together_lie_in_one_buffer_of_their_length() {
        let bytes = message(&vec![7; 150_000]);
        let budget = Budget::new(1 << 30);
        let mut reader = Reader::new(usize::MAX, budget.permit());
        for frame in bytes.chunks(16 << 10) {
            reader.push(Bytes::copy_from_slice(frame)).unwrap();
        }
        let received = reader.finish().unwrap();
        assert_eq!(received.chunks.len(), 1);
        assert_eq!(budget.used(), bytes.len());
    }

    #[test]
    fn a_full_budget_ends_the_reading_and_is_given_back() {
        let budget = Budget::new(4 * MOST);
        let mut reader = Reader::new(64 << 20, budget.permit());
        let bytes = message(&vec![1; 2 * MOST]);
        let others = budget.take(3 * MOST).unwrap();
        let read = bytes.chunks(1_000).try_for_each(|frame| reader.push(Bytes::copy_from_slice(frame)));
        assert_eq!(read, Err(BodyError::NoRoom(bytes.len())));
        drop(reader);
        assert_eq!(budget.used(), others.bytes());
    }

    #[test]
    fn a_message_that_fits_exactly_is_read() {
        let bytes = message(&vec![1; 3 * MOST / 2 + 7]);
        let budget = Budget::new(bytes.len());
        let mut reader = Reader::new(64 << 20, budget.permit());
        bytes.chunks(1_000).for_each(|frame| {
            reader.push(Bytes::copy_from_slice(frame)).unwrap();
            reader.pause().unwrap();
        });
        assert_eq!(reader.finish().unwrap().chunks.concat(), bytes);
    }

    #[test]
    fn a_message_that_can_never_fit_is_refused_at_its_prefix() {
        let mut reader = Reader::new(64 << 20, Budget::new(1000).permit());
        assert_eq!(reader.push(Bytes::from_static(&[0, 0, 0, 0x03, 0xe4])), Err(BodyError::NoRoom(1001)));
    }

    #[test]
    fn a_body_that_is_not_exactly_one_message_is_refused() {
        let whole = message(b"abc");
        assert_eq!(read_in_pieces(&[], 1, 10), Err(BodyError::Missing));
        assert_eq!(read_in_pieces(&whole[..3], 1, 10), Err(BodyError::Truncated));
        assert_eq!(read_in_pieces(&whole[..7], 9, 10), Err(BodyError::Truncated));
        assert_eq!(read_in_pieces(&[&whole[..], b"x"].concat(), 99, 10), Err(BodyError::Excess));
        assert_eq!(read_in_pieces(&[&whole[..], b"x"].concat(), 1, 10), Err(BodyError::Excess));
        assert_eq!(read_in_pieces(&[&whole[..], &whole[..]].concat(), 8, 10), Err(BodyError::Excess));
        assert_eq!(read_in_pieces(&[2, 0, 0, 0, 0], 5, 10), Err(BodyError::Flag));
        assert_eq!(read_in_pieces(&[2, 0, 0, 0, 0], 1, 10), Err(BodyError::Flag));
    }
}
