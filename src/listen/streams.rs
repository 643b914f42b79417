//! A stream layer that follows the client's HTTP/2 frames. It repairs header blocks whose `:authority` h2 cannot parse
//! (see [`super::hpack`]), counts the streams that they open, and reports unfinished header blocks.
//!
//! It asks [`super::admission`] for room before h2 reads the headers of a new stream. The bytes behind a stream without
//! room wait in this layer until that stream was refused.
//!
//! Other bytes pass unchanged. Only the heads of frames are parsed, so a DATA frame costs the same whatever its length.
//! A header block that arrived in several pieces is held back until it is complete; otherwise h2 would hold it. A
//! stream that is not HTTP/2 passes through and is not parsed.

mod block;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use metrics::Counter;
use tokio::io::{AsyncRead, ReadBuf};

use self::block::{Block, CONTINUATION, END_HEADERS, HEADERS, block};
pub(super) use self::block::{HEAD, length_of};
use super::{
    admission::Admission,
    layers::{Backlog, Layer},
    pins::{Pins, Standing},
    progress::Progress,
};

/// The client's connection preface, which is not a frame (RFC 9113, 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The longest header block that is held back, in bytes, with the heads of its frames. It is four times the usual limit
/// of listeners. A longer one passes unchanged.
const LARGEST_BLOCK: usize = 64 << 10;

/// How many bytes are read at a time while a block is held back.
const PIECE: usize = 4 << 10;

/// The layer that parses what is read with [`FrameParser`].
#[derive(Debug)]
pub(super) struct Streams {
    parser: FrameParser,
    /// A header block that is held back, without the head of its first frame. Once it is complete, these bytes are
    /// passed to h2.
    held: Vec<u8>,
    /// The bytes of `held` that h2 has read.
    taken: usize,
    /// The bytes that arrived behind a stream without room. They are parsed once that stream was refused.
    behind: Backlog,
    pins: Pins,
    tally: Arc<Tally>,
    admission: Arc<Admission>,
    progress: Arc<Progress>,
    /// Whether bytes have come since `progress` was updated.
    has_read: bool,
}

/// Counts the streams of one connection: how many were opened, how many reached the service and how many have ended.
/// Only the connection's task writes to it, except for `ended`.
#[derive(Debug)]
pub(super) struct Tally {
    /// The metric of streams that ended before a service saw them.
    refused: Counter,
    /// The highest stream identifier so far.
    last: AtomicU32,
    /// The number of streams that the client has opened.
    opened: AtomicU64,
    /// The number of them whose header blocks h2 has read.
    read: AtomicU64,
    /// The number of requests that the service was given.
    served: AtomicU64,
    /// The number of them whose tasks have ended, with an answer or without. HTTP/1 requests have no tasks.
    ended: AtomicU64,
    /// How many of this connection's streams `refused` has counted.
    counted: AtomicU64,
}

/// Parses the client's frames. The variant says where the next byte belongs.
#[derive(Debug)]
enum FrameParser {
    /// In the preface, of which this many bytes have arrived.
    Preface(usize),
    /// In a frame's head.
    Head {
        head: [u8; HEAD],
        have: usize,
        /// Whether the client has to finish this frame in time: the first frame, or one that continues a header block.
        must_end: bool,
    },
    /// In a payload of `len` bytes, of which `left` are still to come.
    Payload {
        len: usize,
        left: usize,
        /// Whether the client has to finish this frame in time.
        must_end: bool,
        /// Whether the next frame continues a header block.
        more: bool,
    },
    /// In a header block that is held back, with the length, flags and stream of its first frame.
    Block { len: usize, flags: u8, stream: u32 },
    /// Not HTTP/2, or malformed so that h2 ends the connection: nothing more is parsed.
    Unparsed,
    /// A header block is too long. h2 might skip it and go on, which this layer could not follow.
    Ended,
}

/// How far the bytes of a read were parsed.
#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    /// To their end.
    All,
    /// To the end of a frame's head, at this position. An incomplete header block follows, which has to be held back.
    Block(usize),
    /// To the end of a header block, at this position. The stream that it opens has no room, so what follows has to wait.
    NoRoom(usize),
}

/// The beginning of a frame.
enum Begun {
    /// So many of the bytes behind the frame's head were handled.
    Handled(usize),
    /// They are the beginning of a header block that has to be held back.
    Block,
    /// So many of them are a header block, whose stream has no room.
    NoRoom(usize),
}

// === impl Streams ===

impl Streams {
    pub(super) fn new(tally: Arc<Tally>, admission: Arc<Admission>, progress: Arc<Progress>) -> Self {
        Self {
            parser: FrameParser::Preface(0),
            held: Vec::new(),
            taken: 0,
            behind: Backlog::default(),
            pins: Pins::new(admission.account().cloned()),
            tally,
            admission,
            progress,
            has_read: false,
        }
    }

    /// Reads into `buf`, and holds back incomplete header blocks.
    fn poll_repaired<I>(&mut self, stream: &mut I, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>>
    where
        I: AsyncRead + Unpin,
    {
        loop {
            while let Some(missing) = self.missing() {
                let mut room = [0; PIECE];
                let mut piece = ReadBuf::new(room.get_mut(..missing.min(PIECE)).unwrap_or_default());
                ready!(self.poll_more(stream, cx, &mut piece))?;
                if piece.filled().is_empty() {
                    // The client closed the stream inside of the block: h2 gets the bytes so far, and then the end.
                    self.parser = FrameParser::Unparsed;
                }
                self.held.extend_from_slice(piece.filled());
            }
            if self.pins.has_just_no_room() {
                self.progress.pinned.notify_one();
            }
            let too_much = match self.pins.standing() {
                _ if matches!(self.parser, FrameParser::Ended) => Some("a header block is too long"),
                Standing::TooMuch => Some("headers keep too much memory"),
                Standing::Well | Standing::NoRoom => None,
            };
            if let Some(what) = too_much {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, what)));
            }
            if !self.held.is_empty() {
                self.hand_over(buf);
                return Poll::Ready(Ok(()));
            }
            ready!(self.admission.poll_open(cx));
            self.pins.reads_into(buf, self.parser.payload_len());
            let before = buf.filled().len();
            ready!(self.poll_more(stream, cx, buf))?;
            let read = buf.filled_mut().get_mut(before..).unwrap_or_default();
            let until = match self.parser.parse(read, &mut self.pins, &self.tally, &self.admission) {
                Parsed::All => return Poll::Ready(Ok(())),
                Parsed::Block(until) => {
                    self.held.extend_from_slice(read.get(until..).unwrap_or_default());
                    until
                }
                Parsed::NoRoom(until) => {
                    self.behind.put_back(read.get(until..).unwrap_or_default());
                    until
                }
            };
            buf.set_filled(before + until);
            if until > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Reads the bytes that waited behind a stream without room, or else from the stream.
    fn poll_more<I>(&mut self, stream: &mut I, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>>
    where
        I: AsyncRead + Unpin,
    {
        let polled = self.behind.poll_read(stream, cx, buf);
        self.has_read |= polled.is_ready();
        polled
    }

    /// Reports after a read what the client has begun and not finished.
    fn note_progress(&self) {
        let Progress { unfinished, frame, .. } = &*self.progress;
        if self.parser.is_unfinished() {
            unfinished.begin();
        } else {
            unfinished.end();
        }
        if self.parser.is_in_frame() {
            frame.set();
        } else {
            frame.end();
        }
    }

    /// Copies held bytes to `buf`. Called for a block that is complete or cannot be completed.
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

    /// Returns how many bytes are missing from the block that is held back. If the block is complete, repairs it and
    /// returns `None`.
    fn missing(&mut self) -> Option<usize> {
        let FrameParser::Block { len, flags, stream } = self.parser else { return None };
        match block(&self.held, len, flags) {
            Block::Incomplete(missing) if self.held.len() + missing <= LARGEST_BLOCK => return Some(missing),
            Block::Complete(pieces, _) => {
                let inserted = pieces.repair(&mut self.held, &mut self.pins.names);
                self.pins.note(inserted);
                // Nothing is read behind this block before the gate is open.
                let _has_room = opens(stream, &self.tally, &self.admission);
                self.parser = FrameParser::head(false);
            }
            Block::Incomplete(_) | Block::TooLong => {
                self.tally.opens(stream);
                self.parser = FrameParser::Ended;
            }
            Block::Malformed => {
                // h2 ends the connection.
                self.tally.opens(stream);
                self.parser = FrameParser::Unparsed;
            }
        }
        None
    }
}

impl<I: AsyncRead + Unpin> Layer<I> for Streams {
    fn poll_read(&mut self, stream: &mut I, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // h2 handles all frames that it has before it reads on, so it has handled all that was read before.
        if self.held.is_empty() {
            self.tally.is_read();
        }
        let polled = self.poll_repaired(stream, cx, buf);
        if std::mem::take(&mut self.has_read) {
            self.note_progress();
        }
        polled
    }
}

// === impl FrameParser ===

impl FrameParser {
    fn head(must_end: bool) -> Self {
        Self::Head { head: [0; HEAD], have: 0, must_end }
    }

    fn payload(len: usize, left: usize, must_end: bool, more: bool) -> Self {
        if left == 0 { Self::head(more) } else { Self::Payload { len, left, must_end, more } }
    }

    /// Returns the length of the payload that the next byte belongs to; 0 if it belongs to none.
    fn payload_len(&self) -> usize {
        match self {
            Self::Payload { len, .. } | Self::Block { len, .. } => *len,
            Self::Preface(_) | Self::Head { .. } | Self::Unparsed | Self::Ended => 0,
        }
    }

    /// Returns whether the client has begun a handshake or header block that it has to finish.
    fn is_unfinished(&self) -> bool {
        match self {
            Self::Preface(_) | Self::Block { .. } => true,
            Self::Head { must_end, .. } | Self::Payload { must_end, .. } => *must_end,
            Self::Unparsed | Self::Ended => false,
        }
    }

    /// Returns whether the client has begun a frame and not finished it.
    fn is_in_frame(&self) -> bool {
        match self {
            Self::Payload { .. } | Self::Block { .. } => true,
            Self::Head { have, .. } => *have > 0,
            Self::Preface(_) | Self::Unparsed | Self::Ended => false,
        }
    }

    /// Parses what was read and repairs the header blocks in it.
    fn parse(&mut self, mut bytes: &mut [u8], pins: &mut Pins, tally: &Tally, admission: &Admission) -> Parsed {
        let all = bytes.len();
        while !bytes.is_empty() {
            let taken = match self {
                Self::Unparsed | Self::Ended | Self::Block { .. } => return Parsed::All,
                Self::Preface(seen) => {
                    let expected = PREFACE.get(*seen..).unwrap_or_default();
                    let len = expected.len().min(bytes.len());
                    if expected.get(..len) != bytes.get(..len) {
                        *self = Self::Unparsed;
                        return Parsed::All;
                    }
                    *seen += len;
                    if *seen == PREFACE.len() {
                        *self = Self::head(true);
                    }
                    len
                }
                Self::Payload { len, left, must_end, more } => {
                    let now = bytes.len().min(*left);
                    *self = Self::payload(*len, *left - now, *must_end, *more);
                    now
                }
                Self::Head { head, have, must_end } => {
                    let len = bytes.len().min(HEAD - *have);
                    if let (Some(place), Some(now)) = (head.get_mut(*have..*have + len), bytes.get(..len)) {
                        place.copy_from_slice(now);
                    }
                    *have += len;
                    if *have == HEAD {
                        let (head, must_end) = (*head, *must_end);
                        let (_, rest) = bytes.split_at_mut(len);
                        let at = all - rest.len();
                        match self.begin(head, must_end, rest, pins, tally, admission) {
                            Begun::Handled(taken) => bytes = rest.get_mut(taken..).unwrap_or_default(),
                            Begun::Block => return Parsed::Block(at),
                            Begun::NoRoom(taken) => return Parsed::NoRoom(at + taken),
                        }
                        continue;
                    }
                    len
                }
            };
            bytes = bytes.get_mut(taken..).unwrap_or_default();
        }
        Parsed::All
    }

    /// Begins a frame. `rest` are the bytes that follow its head.
    fn begin(
        &mut self,
        head: [u8; HEAD],
        must_end: bool,
        rest: &mut [u8],
        pins: &mut Pins,
        tally: &Tally,
        admission: &Admission,
    ) -> Begun {
        let [_, _, _, kind, flags, stream @ ..] = head;
        let len = length_of(&head);
        let more = matches!(kind, HEADERS | CONTINUATION) && flags & END_HEADERS == 0;
        *self = Self::payload(len, len, must_end || matches!(kind, HEADERS | CONTINUATION), more);
        if kind != HEADERS {
            return Begun::Handled(0);
        }
        let stream = u32::from_be_bytes(stream) & 0x7fff_ffff;
        match block(rest, len, flags) {
            Block::Complete(pieces, end) => {
                let inserted = pieces.repair(rest, &mut pins.names);
                pins.note(inserted);
                *self = Self::head(false);
                if opens(stream, tally, admission) { Begun::Handled(end) } else { Begun::NoRoom(end) }
            }
            Block::Incomplete(_) if len <= LARGEST_BLOCK => {
                *self = Self::Block { len, flags, stream };
                Begun::Block
            }
            Block::Malformed => {
                tally.opens(stream);
                *self = Self::Unparsed;
                Begun::Handled(rest.len())
            }
            Block::Incomplete(_) | Block::TooLong => {
                tally.opens(stream);
                *self = Self::Ended;
                Begun::Handled(rest.len())
            }
        }
    }
}

/// Counts the stream of a header block that h2 reads next. Returns `false` if it is a new one and has no room.
fn opens(stream: u32, tally: &Tally, admission: &Admission) -> bool {
    !tally.opens(stream) || admission.admit()
}

// === impl Tally ===

impl Tally {
    /// Creates the counts of a new connection. `refused` is the metric of streams that are refused before a service
    /// sees them.
    pub(super) fn new(refused: Counter) -> Self {
        let zero = AtomicU64::default;
        let last = AtomicU32::default();
        Self { refused, last, opened: zero(), read: zero(), served: zero(), ended: zero(), counted: zero() }
    }

    /// Counts a header block's stream. Further blocks of the same stream are trailers, which open nothing.
    fn opens(&self, stream: u32) -> bool {
        let is_new = stream > self.last.load(Relaxed);
        if is_new {
            self.last.store(stream, Relaxed);
            self.opened.store(self.opened.load(Relaxed) + 1, Relaxed);
        }
        is_new
    }

    /// Records that h2 has read all header blocks so far.
    fn is_read(&self) {
        self.read.store(self.opened.load(Relaxed), Relaxed);
    }

    /// Counts a request that the service is given.
    pub(super) fn serves(&self) {
        self.served.store(self.served.load(Relaxed) + 1, Relaxed);
    }

    /// Counts the end of a task that handled a request.
    pub(super) fn ends(&self) {
        self.ended.fetch_add(1, Relaxed);
    }

    /// Returns how many such tasks have ended.
    pub(super) fn ended(&self) -> u64 {
        self.ended.load(Relaxed)
    }

    /// Returns whether no request has been in flight since `ended` requests had ended, that is, whether the service got
    /// no more than these.
    pub(super) fn is_idle_since(&self, ended: u64) -> bool {
        self.served.load(Relaxed) == ended
    }

    /// Counts refused streams. Called after h2 was polled, when it has passed all requests whose header blocks it has
    /// read to the service.
    ///
    /// Returns whether h2 has read all header blocks so far.
    pub(super) fn settle(&self) -> bool {
        let read = self.read.load(Relaxed);
        self.count(read);
        read == self.opened.load(Relaxed)
    }

    /// Counts refused streams at the connection's end, when no further stream can reach the service.
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
