//! Reads one length-prefixed message from a request's frames, within the size limit and the memory budget.
//!
//! Large frames stay in the buffers that h2 read them into; small frames are copied together. So the bytes of a large
//! request are not touched before they are split.

use bytes::{Buf, Bytes};
use http_body::Body;
use http_body_util::BodyExt;

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

/// The capacity of the first buffer that small frames are copied to, and of further ones. No buffer is larger, whatever
/// size the prefix announces, so a peer that announces the largest size on many streams takes no more memory than this
/// for each of them.
const FIRST: usize = 64 << 10;
const FURTHER: usize = 256 << 10;

/// Reads one message. Its permit covers the bytes read so far.
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
    /// `len` of `total` bytes have arrived, prefix included.
    Filling { chunks: Vec<Bytes>, open: Buffer, len: usize, total: usize },
    /// The whole message, with its prefix.
    Whole(Vec<Bytes>),
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
    /// The memory budget is used up.
    Budget,
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
    while let Some(frame) = body.frame().await {
        // Any other frame is trailers, which OTLP requests do not use.
        if let Ok(data) = frame.map_err(|_| BodyError::Gone)?.into_data() {
            reader.push(data)?;
        }
    }
    reader.finish()
}

// === impl Reader ===

impl Reader {
    pub(super) fn new(limit: usize, permit: Permit) -> Self {
        Self { limit, permit, state: State::Prefix { have: [0; PREFIX_LEN], len: 0 } }
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
            State::Prefix { .. } | State::Filling { .. } => Err(BodyError::Truncated),
        }
    }

    /// Starts a message of `total` bytes. `first` is its beginning, prefix included.
    fn begin(&mut self, total: usize, first: Bytes) -> Result<(), BodyError> {
        if first.len() == total && total >= COPY_BELOW {
            if !self.permit.grow(total) {
                return Err(BodyError::Budget);
            }
            self.state = State::Whole(vec![first]);
            return Ok(());
        }
        self.state = State::Filling { chunks: Vec::new(), open: Buffer::default(), len: 0, total };
        self.fill(first)
    }

    fn fill(&mut self, data: Bytes) -> Result<(), BodyError> {
        let State::Filling { chunks, open, len, total } = &mut self.state else {
            // Empty frames after the message are legal: some clients end the stream with one.
            return if data.is_empty() { Ok(()) } else { Err(BodyError::Excess) };
        };
        let left = *total - *len;
        if data.len() > left {
            return Err(BodyError::Excess);
        }
        *len += data.len();
        if data.len() >= KEEP_FROM {
            if !self.permit.grow(data.len()) {
                return Err(BodyError::Budget);
            }
            close(open, chunks, &mut self.permit);
            chunks.push(data);
        } else {
            if open.bytes.capacity() - open.bytes.len() < data.len() {
                close(open, chunks, &mut self.permit);
                let most = if chunks.is_empty() { FIRST } else { FURTHER };
                if !open.reach(left.min(most), &mut self.permit) && !open.reach(data.len(), &mut self.permit) {
                    return Err(BodyError::Budget);
                }
            }
            open.bytes.extend_from_slice(&data);
        }
        if *len == *total {
            close(open, chunks, &mut self.permit);
            self.state = State::Whole(std::mem::take(chunks));
        }
        Ok(())
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

/// Moves the bytes of a buffer to `chunks`, and leaves an empty buffer for the next ones.
fn close(open: &mut Buffer, chunks: &mut Vec<Bytes>, permit: &mut Permit) {
    let mut bytes = std::mem::take(&mut open.bytes);
    let capacity = bytes.capacity();
    if bytes.len() < capacity / 2 {
        bytes.shrink_to_fit();
        permit.shrink_to(permit.bytes().saturating_sub(capacity - bytes.capacity()));
    }
    if !bytes.is_empty() {
        chunks.push(Bytes::from(bytes));
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

    fn read_in_pieces(bytes: &[u8], piece: usize, limit: usize) -> Result<Vec<u8>, BodyError> {
        let budget = Budget::new(1 << 30);
        let mut reader = Reader::new(limit, budget.permit());
        for piece in bytes.chunks(piece.max(1)) {
            reader.push(Bytes::copy_from_slice(piece))?;
        }
        let received = reader.finish()?;
        assert_eq!(budget.used(), received.permit.bytes());
        let bytes = received.chunks.concat();
        assert!(received.permit.bytes() >= bytes.len(), "the permit must cover the bytes");
        assert!(received.permit.bytes() <= 2 * bytes.len() + 64, "{} for {}", received.permit.bytes(), bytes.len());
        assert!(received.chunks.iter().all(|chunk| !chunk.is_empty()));
        Ok(bytes)
    }

    #[test]
    fn a_message_is_the_same_in_whatever_pieces_it_arrives() {
        for len in [0, 1, 4, 5, 6, 100, COPY_BELOW, KEEP_FROM, FIRST - 5, FIRST, FURTHER + FIRST - 5, 3 * FURTHER + 17]
        {
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
    fn a_large_announced_size_does_not_take_the_memory_in_advance() {
        let budget = Budget::new(1 << 30);
        let mut reader = Reader::new(64 << 20, budget.permit());
        reader.push(Bytes::from_static(&[0, 0x04, 0, 0, 0, 1, 2, 3])).unwrap();
        // A reused buffer may have up to twice the capacity.
        assert!((FIRST..=2 * FIRST).contains(&budget.used()), "{}", budget.used());
        drop(reader);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_full_budget_ends_reading_and_the_memory_is_given_back() {
        let budget = Budget::new(FIRST + FURTHER);
        let mut reader = Reader::new(64 << 20, budget.permit());
        let mut bytes = message(&vec![1; 2 * FURTHER]);
        bytes.truncate(FIRST + FURTHER + 1);
        assert_eq!(reader.push(Bytes::from(bytes)), Err(BodyError::Budget));
        drop(reader);
        assert_eq!(budget.used(), 0);
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
