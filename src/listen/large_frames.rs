//! A stream layer that cuts a client's large DATA frames into small ones while the account has no room for large ones.
//!
//! h2 reserves a buffer of a frame's length as soon as it reads the frame's head, and keeps it for as long as the connection
//! lives. So the length is taken from the account first. Without room for it h2 gets the same bytes in frames of [`PIECE`]
//! bytes, the size that HTTP/2 allows in any case. The payload and its use of the flow-control windows stay the same.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

use super::{
    admission,
    layers::{Backlog, Layer},
    streams::{HEAD, PREFACE, length_of},
};
use crate::budget::{Budget, Permit, Use};

/// The longest frame that needs no room: the smallest maximum that HTTP/2 allows (RFC 9113, 6.5.2).
const PIECE: usize = 16 << 10;

/// The type of DATA frames, and their flags (RFC 9113, 6.1).
const DATA: u8 = 0x0;
const END_STREAM: u8 = 0x1;
const PADDED: u8 = 0x8;

/// The layer of one connection.
#[derive(Debug)]
pub(super) struct LargeFrames {
    /// `None` if frames are not accounted for: then all bytes pass unchanged.
    account: Option<Budget>,
    /// The memory of the longest frame so far.
    permit: Option<Permit>,
    /// The bytes until the next head: of the preface or of a payload.
    left: usize,
    /// The beginning of a head that has not arrived whole.
    torn: Vec<u8>,
    /// A head that is to be read next.
    head: Vec<u8>,
    /// The head of a frame that is being cut, with the length that is still to be sent in further frames.
    cut: Option<([u8; HEAD], usize)>,
    /// The bytes that arrived behind the head of a frame that is being cut.
    behind: Backlog,
}

impl LargeFrames {
    pub(super) fn new(account: Option<Budget>) -> Self {
        Self {
            account,
            permit: None,
            left: PREFACE.len(),
            torn: Vec::new(),
            head: Vec::new(),
            cut: None,
            behind: Backlog::default(),
        }
    }

    /// Takes the memory of a frame of `len` bytes, unless a frame as long has come before. Returns whether there is room.
    fn has_room(&mut self, len: usize) -> bool {
        let Some(account) = &self.account else { return true };
        let permit = self.permit.get_or_insert_with(|| account.permit_for(Use::Frames));
        let more = len.saturating_sub(permit.bytes());
        admission::has_room_for_frame(account, more) && permit.grow(more)
    }

    /// Follows the frames in `read`. Returns how many of its bytes may pass: all but a torn head at the end, or those before
    /// a frame that has to be cut. What may not pass is kept.
    fn follow(&mut self, read: &[u8]) -> io::Result<usize> {
        let mut at = 0;
        loop {
            let now = self.left.min(read.len() - at);
            at += now;
            self.left -= now;
            let rest = read.get(at..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(at);
            }
            let Some(head) = rest.first_chunk::<HEAD>() else {
                self.torn.extend_from_slice(rest);
                return Ok(at);
            };
            let (len, kind, flags) = (length_of(head), head[3], head[4]);
            if len > PIECE && !self.has_room(len) {
                if kind != DATA || flags & PADDED != 0 {
                    let what = "there is no memory for a large frame that cannot be cut";
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
                self.cut = Some((*head, len));
                self.behind.put_back(rest.get(HEAD..).unwrap_or_default());
                return Ok(at);
            }
            self.left = len;
            at += HEAD;
        }
    }

    /// Begins the next frame of the one that is being cut.
    fn begin_piece(&mut self) {
        let Some((head, len)) = self.cut.take() else { return };
        let piece = len.min(PIECE);
        let [_, _, _, kind, flags, stream @ ..] = head;
        let flags = if piece < len { flags & !END_STREAM } else { flags };
        let [_, high, middle, low] = u32::try_from(piece).unwrap_or(0).to_be_bytes();
        self.head = [&[high, middle, low, kind, flags][..], &stream].concat();
        self.left = piece;
        self.cut = (piece < len).then_some((head, len - piece));
    }

    /// Reads the rest of a torn head. At the end of the stream the head passes as it is.
    fn poll_torn<I>(&mut self, stream: &mut I, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        I: AsyncRead + Unpin,
    {
        while self.torn.len() < HEAD {
            let mut room = [0; HEAD];
            let mut rest = ReadBuf::new(room.get_mut(self.torn.len()..).unwrap_or_default());
            ready!(self.behind.poll_read(stream, cx, &mut rest))?;
            if rest.filled().is_empty() {
                self.head = std::mem::take(&mut self.torn);
                return Poll::Ready(Ok(()));
            }
            self.torn.extend_from_slice(rest.filled());
        }
        let head = std::mem::take(&mut self.torn);
        if self.follow(&head)? > 0 {
            self.head = head;
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + Unpin> Layer<I> for LargeFrames {
    fn poll_read(&mut self, stream: &mut I, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.account.is_none() {
            return Pin::new(stream).poll_read(cx, buf);
        }
        loop {
            if !self.torn.is_empty() {
                ready!(self.poll_torn(stream, cx))?;
            }
            if self.head.is_empty() && self.left == 0 {
                self.begin_piece();
            }
            if !self.head.is_empty() {
                let len = self.head.len().min(buf.remaining());
                buf.put_slice(self.head.get(..len).unwrap_or_default());
                self.head.drain(..len);
                return Poll::Ready(Ok(()));
            }
            if self.cut.is_some() {
                // Not beyond the end of this piece, since the head of the next one comes first.
                let most = self.left.min(buf.remaining());
                let mut piece = ReadBuf::new(buf.initialize_unfilled_to(most));
                ready!(self.behind.poll_read(stream, cx, &mut piece))?;
                let len = piece.filled().len();
                buf.advance(len);
                self.left -= len;
                return Poll::Ready(Ok(()));
            }
            let before = buf.filled().len();
            ready!(self.behind.poll_read(stream, cx, buf))?;
            let read = buf.filled().get(before..).unwrap_or_default();
            let (len, until) = (read.len(), self.follow(read)?);
            buf.set_filled(before + until);
            if until > 0 || len == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

#[cfg(test)]
mod tests;
