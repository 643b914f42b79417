//! Reads one message from a request's frames, within the size limit and the memory budget.
//!
//! A gRPC body has a prefix before its message. An HTTP body has none: it is written here, so that every message leaves
//! with one.
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

use bytes::{Buf, Bytes, BytesMut};
use http_body::Body;

use crate::{
    budget::{Buffer, Permit},
    otlp::framed::{PREFIX_LEN, prefix_of},
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

/// The longest message that a prefix can state.
const LONGEST: usize = 0xffff_ffff;

/// How the message lies in the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// The body is the message after its prefix (gRPC).
    Prefixed,
    /// The body is the message (HTTP).
    Bare {
        /// Its length, if `Content-Length` states it.
        length: Option<u64>,
        /// Whether it is compressed.
        is_compressed: bool,
    },
}

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
    /// Its length, prefix included. If that is not stated, this is the longest one that is accepted.
    total: usize,
    /// The first byte of the prefix, if the length is not stated: then the prefix is written at the end of the body.
    unstated: Option<u8>,
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
pub(super) async fn read<B>(body: &mut B, framing: Framing, limit: usize, permit: Permit) -> Result<Received, BodyError>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut reader = Reader::new(limit, permit);
    if let Framing::Bare { length, is_compressed } = framing {
        reader.begin_bare(length, is_compressed)?;
    }
    poll_fn(|context| reader.poll(body, context)).await?;
    reader.finish()
}

// === impl Reader ===

impl Reader {
    pub(super) fn new(limit: usize, permit: Permit) -> Self {
        Self { limit, permit, state: State::Prefix { have: [0; PREFIX_LEN], len: 0 } }
    }

    /// Starts a message that has no prefix in the body.
    fn begin_bare(&mut self, length: Option<u64>, is_compressed: bool) -> Result<(), BodyError> {
        let flag = u8::from(is_compressed);
        let Some(length) = length else {
            let total = self.limit.min(LONGEST).saturating_add(PREFIX_LEN);
            let filling = Filling { total, unstated: Some(flag), ..Filling::default() };
            self.state = State::Filling(filling);
            return self.fill(Bytes::from_static(&[0; PREFIX_LEN]));
        };
        let length = u32::try_from(length).map_err(|_| BodyError::TooLarge)?;
        let [_, len @ ..] = prefix_of(length);
        let [a, b, c, d] = len;
        self.push(Bytes::copy_from_slice(&[flag, a, b, c, d]))
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
        let mut permit = self.permit;
        match self.state {
            State::Whole(chunks) => Ok(Received { chunks, permit }),
            State::Filling(filling) if filling.unstated.is_some() => {
                let chunks = filling.complete(&mut permit)?;
                Ok(Received { chunks, permit })
            }
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
            return Err(if self.unstated.is_some() { BodyError::TooLarge } else { BodyError::Excess });
        }
        let is_last = data.len() == left && self.unstated.is_none();
        if data.len() >= KEEP_FROM {
            self.copy(permit)?;
            if !permit.grow(data.len()) {
                return Err(self.no_room(data.len()));
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
            return Err(self.no_room(least));
        }
        self.open.bytes.extend_from_slice(rest);
        self.buffered += rest.len();
        Ok(())
    }

    /// Returns the error for a message that needs `more` bytes which there is no room for.
    fn no_room(&self, more: usize) -> BodyError {
        BodyError::NoRoom(if self.unstated.is_some() { self.buffered + more } else { self.total })
    }

    /// Returns the buffers of a message whose length was not stated, at the end of the body. The first one begins with
    /// room for the prefix.
    fn complete(mut self, permit: &mut Permit) -> Result<Vec<Bytes>, BodyError> {
        self.copy(permit)?;
        self.close(permit);
        let length = self.buffered.checked_sub(PREFIX_LEN).and_then(|length| u32::try_from(length).ok());
        let [_, len @ ..] = prefix_of(length.ok_or(BodyError::TooLarge)?);
        let first = self.chunks.first_mut().ok_or(BodyError::Missing)?;
        // Only this reader has the buffer, so it is not copied.
        let mut bytes = BytesMut::from(std::mem::take(first));
        if let (Some((room, _)), Some(flag)) = (bytes.split_first_chunk_mut::<PREFIX_LEN>(), self.unstated) {
            let [a, b, c, d] = len;
            *room = [flag, a, b, c, d];
        }
        *first = bytes.freeze();
        Ok(self.chunks)
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
mod tests;
