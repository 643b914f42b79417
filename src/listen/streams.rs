//! A client connection's stream as h2 is to read it: header blocks with an `:authority` that h2 can read (see
//! [`super::hpack`]), and a count of the streams that they open.
//!
//! The bytes pass as they are read. Frames are followed by their heads, so that a DATA frame costs the same whatever its
//! length. A header block that did not come in one piece is held back until it is whole; it is h2 that would hold it
//! otherwise. What is no HTTP/2 is not followed.

use std::{
    io,
    ops::Range,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use metrics::Counter;
use tokio::io::{AsyncRead, ReadBuf};

use super::{hpack, layers::Layer, progress::Progress};

/// What an HTTP/2 client sends first, which is no frame (RFC 9113, 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Length of a frame's head: length, type, flags and stream (RFC 9113, 4.1).
const HEAD: usize = 9;

/// Types of frames (RFC 9113, 6).
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;

/// Flags of HEADERS (RFC 9113, 6.2).
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// Length of a stream's priority in HEADERS.
const PRIORITY_LEN: usize = 5;

/// The longest header block that is held back, its frames' heads included: four times what a listener takes. A longer one
/// goes on as it came.
const LARGEST: usize = 64 << 10;

/// The most frames that a header block which is held back may have: more than twice what h2 bears.
const MOST_PIECES: usize = 16;

/// What is read at a time of a block that is held back.
const PIECE: usize = 4 << 10;

/// The layer whose reads pass through [`Walk`].
#[derive(Debug)]
pub(super) struct Streams {
    walk: Walk,
    /// A header block that is not whole, from behind the head of its first frame on; then what of it is still to be read.
    held: Vec<u8>,
    /// Bytes of `held` that were read.
    taken: usize,
    tally: Arc<Tally>,
    progress: Arc<Progress>,
    /// What `progress` was told last.
    owes: bool,
}

/// The streams of one connection, from their header blocks to the service and the ends of their answers. Only the connection's
/// task writes to it, but for `ended`.
#[derive(Debug)]
pub(super) struct Tally {
    /// Streams that ended before a service saw them.
    refused: Counter,
    /// The highest number of a stream so far.
    last: AtomicU32,
    /// Streams that the client has opened.
    opened: AtomicU64,
    /// Those of them whose header blocks h2 has read.
    read: AtomicU64,
    /// Requests that the service was given.
    served: AtomicU64,
    /// Those of them whose tasks have ended: they were answered or given up. Those of HTTP/1 have no tasks.
    ended: AtomicU64,
    /// What `refused` has of this connection.
    counted: AtomicU64,
}

/// Where in the client's frames the next byte is.
#[derive(Debug)]
enum Walk {
    /// So many bytes of the preface were seen.
    Preface(usize),
    /// In a frame's head.
    Head {
        head: [u8; HEAD],
        have: usize,
        /// Whether this frame is owed: the first of all, or one that goes on with a header block.
        owed: bool,
    },
    /// So many bytes of a payload, or of one that is held, are to come.
    Payload {
        left: usize,
        /// Whether the frame is owed.
        owed: bool,
        /// Whether the one that follows is.
        more: bool,
    },
    /// In a header block that is held back: length, flags and stream of its first frame.
    Block { len: usize, flags: u8, stream: u32 },
    /// It is no HTTP/2, or none that can be followed.
    Lost,
}

/// What there is of a header block.
enum Block {
    /// Its pieces, and where the frame of the last one ends.
    Whole(Pieces, usize),
    /// So many more bytes are needed to know more.
    Torn(usize),
    /// No frames go on like this.
    Broken,
}

/// Where the pieces of a header block are: that of HEADERS, and those of CONTINUATION. There is seldom one of these.
struct Pieces {
    first: Range<usize>,
    more: Vec<Range<usize>>,
}

// === impl Streams ===

impl Streams {
    pub(super) fn new(tally: Arc<Tally>, progress: Arc<Progress>) -> Self {
        Self { walk: Walk::Preface(0), held: Vec::new(), taken: 0, tally, progress, owes: true }
    }

    /// Reads on, and holds back what is to be held back.
    fn poll_pass<I>(&mut self, stream: &mut I, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>>
    where
        I: AsyncRead + Unpin,
    {
        loop {
            while let Some(missing) = self.missing() {
                let mut room = [0; PIECE];
                let mut piece = ReadBuf::new(room.get_mut(..missing.min(PIECE)).unwrap_or_default());
                ready!(Pin::new(&mut *stream).poll_read(cx, &mut piece))?;
                if piece.filled().is_empty() {
                    // The client is gone in the middle of it: h2 hears that after what came.
                    self.walk = Walk::Lost;
                }
                self.held.extend_from_slice(piece.filled());
            }
            if !self.held.is_empty() {
                self.hand_over(buf);
                return Poll::Ready(Ok(()));
            }
            let before = buf.filled().len();
            ready!(Pin::new(&mut *stream).poll_read(cx, buf))?;
            let read = buf.filled_mut().get_mut(before..).unwrap_or_default();
            let Some(torn) = self.walk.pass(read, &self.tally) else { return Poll::Ready(Ok(())) };
            self.held.extend_from_slice(read.get(torn..).unwrap_or_default());
            buf.set_filled(before + torn);
            if torn > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Says what the client owes by what was read of it.
    fn note_progress(&mut self) {
        let owes = self.walk.owes();
        if owes != self.owes {
            self.owes = owes;
            self.progress.owes(owes);
        }
    }

    /// Hands over what was held back and is whole, or as whole as it gets.
    fn hand_over(&mut self, buf: &mut ReadBuf<'_>) {
        let rest = self.held.get(self.taken..).unwrap_or_default();
        let now = rest.get(..buf.remaining()).unwrap_or(rest);
        buf.put_slice(now);
        self.taken += now.len();
        if self.taken == self.held.len() {
            self.held = Vec::new();
            self.taken = 0;
        }
    }

    /// How many bytes are missing of the block that is held back; it is mended and goes on once it is whole.
    fn missing(&mut self) -> Option<usize> {
        let Walk::Block { len, flags, stream } = self.walk else { return None };
        match block(&self.held, len, flags) {
            Block::Torn(missing) if self.held.len() + missing <= LARGEST => return Some(missing),
            Block::Whole(pieces, _) => {
                pieces.mend(&mut self.held);
                self.tally.opens(stream);
                self.walk = Walk::head(false);
            }
            Block::Torn(_) | Block::Broken => {
                self.tally.opens(stream);
                self.walk = Walk::Lost;
            }
        }
        None
    }
}

impl<I: AsyncRead + Unpin> Layer<I> for Streams {
    fn poll_read(&mut self, stream: &mut I, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // Whoever reads on is done with what was read: h2 takes all frames that it has first.
        if self.held.is_empty() {
            self.tally.is_read();
        }
        let polled = self.poll_pass(stream, cx, buf);
        self.note_progress();
        polled
    }
}

// === impl Walk ===

impl Walk {
    fn head(owed: bool) -> Self {
        Self::Head { head: [0; HEAD], have: 0, owed }
    }

    fn payload(left: usize, owed: bool, more: bool) -> Self {
        if left == 0 { Self::head(more) } else { Self::Payload { left, owed, more } }
    }

    /// Whether the client has begun what it has to end.
    fn owes(&self) -> bool {
        match self {
            Self::Preface(_) | Self::Block { .. } => true,
            Self::Head { owed, .. } | Self::Payload { owed, .. } => *owed,
            Self::Lost => false,
        }
    }

    /// Follows what was read, and mends the header blocks in it. Returns where one begins, behind its first frame's head, that
    /// is not whole.
    fn pass(&mut self, mut bytes: &mut [u8], tally: &Tally) -> Option<usize> {
        let all = bytes.len();
        while !bytes.is_empty() {
            let taken = match self {
                Self::Lost | Self::Block { .. } => return None,
                Self::Preface(seen) => {
                    let expected = PREFACE.get(*seen..).unwrap_or_default();
                    let len = expected.len().min(bytes.len());
                    if expected.get(..len) != bytes.get(..len) {
                        *self = Self::Lost;
                        return None;
                    }
                    *seen += len;
                    if *seen == PREFACE.len() {
                        *self = Self::head(true);
                    }
                    len
                }
                Self::Payload { left, owed, more } => {
                    let len = bytes.len().min(*left);
                    *self = Self::payload(*left - len, *owed, *more);
                    len
                }
                Self::Head { head, have, owed } => {
                    let len = bytes.len().min(HEAD - *have);
                    if let (Some(place), Some(now)) = (head.get_mut(*have..*have + len), bytes.get(..len)) {
                        place.copy_from_slice(now);
                    }
                    *have += len;
                    if *have == HEAD {
                        let (head, owed) = (*head, *owed);
                        let (_, rest) = bytes.split_at_mut(len);
                        let Some(taken) = self.begin(head, owed, rest, tally) else { return Some(all - rest.len()) };
                        bytes = rest.get_mut(taken..).unwrap_or_default();
                        continue;
                    }
                    len
                }
            };
            bytes = bytes.get_mut(taken..).unwrap_or_default();
        }
        None
    }

    /// Begins a frame, of which `rest` is here. Returns how much of that is done with; `None` for a header block that has to be
    /// held back.
    fn begin(&mut self, head: [u8; HEAD], owed: bool, rest: &mut [u8], tally: &Tally) -> Option<usize> {
        let [_, _, _, kind, flags, stream @ ..] = head;
        let len = length_of(&head);
        let more = matches!(kind, HEADERS | CONTINUATION) && flags & END_HEADERS == 0;
        *self = Self::payload(len, owed || matches!(kind, HEADERS | CONTINUATION), more);
        if kind != HEADERS {
            return Some(0);
        }
        let stream = u32::from_be_bytes(stream) & 0x7fff_ffff;
        match block(rest, len, flags) {
            Block::Whole(pieces, end) => {
                pieces.mend(rest);
                tally.opens(stream);
                *self = Self::head(false);
                Some(end)
            }
            Block::Torn(_) if len <= LARGEST => {
                *self = Self::Block { len, flags, stream };
                None
            }
            // Too long to be held: nothing is mended in it, and its frames are followed as others are.
            Block::Torn(_) => {
                // It is too long for h2 too, which refuses it.
                tally.opens(stream);
                Some(0)
            }
            Block::Broken => {
                tally.opens(stream);
                *self = Self::Lost;
                Some(rest.len())
            }
        }
    }
}

fn length_of([high, middle, low, ..]: &[u8; HEAD]) -> usize {
    usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low)
}

/// Finds a header block whose first frame has that length and those flags and is followed by its CONTINUATIONs; `bytes` begin
/// behind that frame's head.
fn block(bytes: &[u8], len: usize, flags: u8) -> Block {
    let Some(payload) = bytes.get(..len) else { return Block::Torn(len - bytes.len()) };
    // A head that lies about its padding is an error of the connection, which h2 finds.
    let Some(first) = fragment(payload, flags) else { return Block::Broken };
    let mut pieces = Pieces { first, more: Vec::new() };
    let (mut end, mut flags) = (len, flags);
    while flags & END_HEADERS == 0 {
        let rest = bytes.get(end..).unwrap_or_default();
        let Some(head) = rest.first_chunk::<HEAD>() else { return Block::Torn(HEAD - rest.len()) };
        let [_, _, _, CONTINUATION, its_flags, ..] = *head else { return Block::Broken };
        let (start, len) = (end + HEAD, length_of(head));
        end = start + len;
        if bytes.len() < end {
            return Block::Torn(end - bytes.len());
        }
        flags = its_flags;
        pieces.more.push(start..end);
        if pieces.more.len() == MOST_PIECES {
            return Block::Broken;
        }
    }
    Block::Whole(pieces, end)
}

/// Where the piece of the header block is in the payload of HEADERS (RFC 9113, 6.2).
fn fragment(payload: &[u8], flags: u8) -> Option<Range<usize>> {
    let (mut start, mut end) = (0, payload.len());
    if flags & PADDED != 0 {
        start += 1;
        end = end.checked_sub(usize::from(*payload.first()?))?;
    }
    if flags & PRIORITY != 0 {
        start += PRIORITY_LEN;
    }
    (start <= end).then_some(start..end)
}

// === impl Pieces ===

impl Pieces {
    fn mend(&self, bytes: &mut [u8]) {
        if self.more.is_empty() {
            hpack::mend(bytes.get_mut(self.first.clone()).unwrap_or_default());
            return;
        }
        let all = || std::iter::once(&self.first).chain(&self.more);
        let mut whole: Vec<u8> = all().filter_map(|piece| bytes.get(piece.clone())).flatten().copied().collect();
        hpack::mend(&mut whole);
        let mut rest = &whole[..];
        for piece in all() {
            let (now, later) = rest.split_at(piece.len().min(rest.len()));
            if let Some(place) = bytes.get_mut(piece.clone()).filter(|place| place.len() == now.len()) {
                place.copy_from_slice(now);
            }
            rest = later;
        }
    }
}

// === impl Tally ===

impl Tally {
    /// Nothing yet; `refused` counts what is refused before a service sees it.
    pub(super) fn new(refused: Counter) -> Self {
        let zero = AtomicU64::default;
        let last = AtomicU32::default();
        Self { refused, last, opened: zero(), read: zero(), served: zero(), ended: zero(), counted: zero() }
    }

    /// A header block came. Further ones of a stream are trailers, which open nothing.
    fn opens(&self, stream: u32) {
        if stream > self.last.load(Relaxed) {
            self.last.store(stream, Relaxed);
            self.opened.store(self.opened.load(Relaxed) + 1, Relaxed);
        }
    }

    /// h2 has read all of it.
    fn is_read(&self) {
        self.read.store(self.opened.load(Relaxed), Relaxed);
    }

    /// The service is given a request.
    pub(super) fn serves(&self) {
        self.served.store(self.served.load(Relaxed) + 1, Relaxed);
    }

    /// The task of a request that the service was given has ended.
    pub(super) fn ends(&self) {
        self.ended.fetch_add(1, Relaxed);
    }

    /// How many such tasks have ended.
    pub(super) fn ended(&self) -> u64 {
        self.ended.load(Relaxed)
    }

    /// Whether no request has been in hand since so many had ended: the service was not given more.
    pub(super) fn is_idle_since(&self, ended: u64) -> bool {
        self.served.load(Relaxed) == ended
    }

    /// Counts what was refused: h2 was polled, and gave the service all requests of the header blocks that it has read.
    pub(super) fn settle(&self) {
        self.count(self.read.load(Relaxed));
    }

    /// The same at the connection's end, when nothing that was opened can reach the service any more.
    pub(super) fn close(&self) {
        self.count(self.opened.load(Relaxed));
    }

    fn count(&self, opened: u64) {
        let counted = self.counted.load(Relaxed);
        let refused = opened.saturating_sub(self.served.load(Relaxed) + counted);
        if refused > 0 {
            self.refused.increment(refused);
            self.counted.store(counted + refused, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
