//! Frames of HTTP/2 as the peer takes them, made of longer ones.
//!
//! h2 does much for each frame that it sends, and Collectors take no frame above 16 KiB, the least that HTTP/2 allows: a call
//! of 200 KiB is 13 of them. So h2 hears that the peer takes [`LONGEST`], and its frames are cut here as the peer really said:
//! at 512 spans a batch a span then costs 6 % less, at 8,192 8 %. What is sent, its order and what it takes of the windows
//! stay the same.

/// What h2 hears that a peer takes, in bytes: so long may one call keep the others of its connection waiting.
const LONGEST: u32 = 256 << 10;

/// The least that a peer may allow, and what it allows as long as it has said nothing (RFC 9113, 6.5.2).
const LEAST: u32 = 16 << 10;

/// The most that a peer may allow (RFC 9113, 6.5.2).
const MOST: u32 = (1 << 24) - 1;

/// What the client sends first, which is no frame (RFC 9113, 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Length of a frame's head: length, type, flags and stream (RFC 9113, 4.1).
const HEAD: usize = 9;

/// Types of frames (RFC 9113, 6).
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const SETTINGS: u8 = 0x4;
const CONTINUATION: u8 = 0x9;

/// Flags of frames.
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// The setting that says how long a frame may be (RFC 9113, 6.5.2).
const MAX_FRAME_SIZE: u16 = 0x5;

/// Cuts the frames that one connection sends.
#[derive(Debug)]
pub(super) struct Frames {
    /// The longest frame that the peer takes.
    longest: u32,
    /// The head of the frame that is sent.
    head: [u8; HEAD],
    /// Bytes of the head that are here.
    have: usize,
    /// Bytes of the frame that h2 has still to hand over.
    left: u32,
    /// Bytes until the next head is due.
    room: u32,
}

impl Default for Frames {
    fn default() -> Self {
        let preface = u32::try_from(PREFACE.len()).unwrap_or(0);
        Self { longest: LEAST, head: [0; HEAD], have: HEAD, left: preface, room: preface }
    }
}

impl Frames {
    /// Looks at what was read first of a peer: its settings (RFC 9113, 3.4). What they say of the length of frames is noted and,
    /// for h2, made [`LONGEST`]. If they are not whole, or say nothing of it, h2's frames are as long as the peer takes anyway.
    pub(super) fn hear(&mut self, first: &mut [u8]) {
        let Some((head, rest)) = first.split_first_chunk_mut::<HEAD>() else { return };
        let [_, _, _, SETTINGS, ..] = *head else { return };
        let len = usize::try_from(length_of(head)).unwrap_or(usize::MAX);
        for setting in rest.get_mut(..len).unwrap_or_default().chunks_exact_mut(6) {
            let [id, id_low, value @ ..] = setting else { continue };
            let allowed = value.first_chunk().map_or(0, |value| u32::from_be_bytes(*value));
            if u16::from_be_bytes([*id, *id_low]) == MAX_FRAME_SIZE && (LEAST..=MOST).contains(&allowed) {
                self.longest = allowed.min(LONGEST);
                value.copy_from_slice(&LONGEST.to_be_bytes());
            }
        }
    }

    /// Passes on what h2 hands over, with further heads where frames are too long. h2 pads none.
    pub(super) fn cut(&mut self, mut bytes: &[u8], mut write: impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            if self.have < HEAD {
                bytes = self.begin(bytes, &mut write);
                continue;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(usize::try_from(self.room).unwrap_or(usize::MAX)));
            write(now);
            let sent = u32::try_from(now.len()).unwrap_or(u32::MAX);
            self.left -= sent;
            self.room -= sent;
            if self.left == 0 {
                self.have = 0;
            } else if self.room == 0 {
                self.go_on(&mut write);
            }
            bytes = rest;
        }
    }

    /// Takes what is here of a head. Returns what follows it.
    fn begin<'b>(&mut self, bytes: &'b [u8], write: &mut impl FnMut(&[u8])) -> &'b [u8] {
        let (now, rest) = bytes.split_at(bytes.len().min(HEAD - self.have));
        if let Some(place) = self.head.get_mut(self.have..self.have + now.len()) {
            place.copy_from_slice(now);
        }
        self.have += now.len();
        if self.have == HEAD {
            self.left = length_of(&self.head);
            self.write_head(write);
            if self.left == 0 {
                self.have = 0;
            }
        }
        rest
    }

    /// Begins the next piece of a frame.
    fn go_on(&mut self, write: &mut impl FnMut(&[u8])) {
        if let [_, _, _, kind @ HEADERS, flags, ..] = &mut self.head {
            (*kind, *flags) = (CONTINUATION, *flags & END_HEADERS);
        }
        self.write_head(write);
    }

    /// Writes the head of as much of a frame as the peer takes. What ends with the frame ends with its last piece.
    fn write_head(&mut self, write: &mut impl FnMut(&[u8])) {
        let mut head = self.head;
        let [high, middle, low, kind, flags, ..] = &mut head;
        self.room = match *kind {
            DATA | HEADERS | CONTINUATION => self.left.min(self.longest),
            // The others are short.
            _ => self.left,
        };
        if self.room < self.left {
            *flags &= !if *kind == DATA { END_STREAM } else { END_HEADERS };
        }
        [_, *high, *middle, *low] = self.room.to_be_bytes();
        write(&head);
    }
}

fn length_of([high, middle, low, ..]: &[u8; HEAD]) -> u32 {
    u32::from_be_bytes([0, *high, *middle, *low])
}

#[cfg(test)]
mod tests {
    use super::*;

    const PADDED: u8 = 0x8;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let [_, len @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&len[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    fn setting(id: u16, value: u32) -> Vec<u8> {
        [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
    }

    /// Frames that were told of `longest` and have sent the preface.
    fn frames(longest: u32) -> Frames {
        let mut frames = Frames::default();
        frames.hear(&mut frame(SETTINGS, 0, 0, &setting(MAX_FRAME_SIZE, longest)));
        frames.cut(PREFACE, |_| {});
        frames
    }

    /// Type, flags, stream and payload of the frames in `bytes`.
    fn parse(mut bytes: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>)> {
        let mut found = Vec::new();
        while let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() {
            let (payload, rest) = rest.split_at(length_of(head) as usize);
            let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
            found.push((head[3], head[4], stream, payload.to_vec()));
            bytes = rest;
        }
        assert!(bytes.is_empty(), "half a head is left");
        found
    }

    #[test]
    fn the_length_of_frames_is_noted_and_made_longer_for_h2() {
        let others = [setting(1, 20_000), setting(3, 100), setting(4, 1 << 20)].concat();
        for says in [LEAST, 20_000, LONGEST, 1 << 20, MOST] {
            let sent = frame(SETTINGS, 0, 0, &[&others[..], &setting(MAX_FRAME_SIZE, says)].concat());
            let mut read = [&sent[..], &frame(SETTINGS, 1, 0, &[])].concat();
            let mut frames = Frames::default();
            frames.hear(&mut read);
            let expected = frame(SETTINGS, 0, 0, &[&others[..], &setting(MAX_FRAME_SIZE, LONGEST)].concat());
            assert_eq!(read, [expected, frame(SETTINGS, 1, 0, &[])].concat());
            assert_eq!(frames.longest, says.min(LONGEST));
        }
    }

    #[test]
    fn what_is_torn_or_wrong_is_left_to_h2() {
        let good = frame(SETTINGS, 0, 0, &setting(MAX_FRAME_SIZE, 16_384));
        let torn = (0..good.len()).map(|len| good[..len].to_vec());
        let wrong = [16_383, 1 << 24, 0].map(|size| frame(SETTINGS, 0, 0, &setting(MAX_FRAME_SIZE, size)));
        let others =
            [frame(DATA, 0, 1, &setting(MAX_FRAME_SIZE, 16_384)), b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()];
        for read in torn.chain(wrong).chain(others) {
            let (mut heard, mut frames) = (read.clone(), Frames::default());
            frames.hear(&mut heard);
            assert_eq!((heard, frames.longest), (read, LEAST));
        }
    }

    #[test]
    fn frames_are_cut_as_the_peer_takes_them_and_say_the_same() {
        let mut random = fastrand::Rng::with_seed(11);
        for _ in 0..200 {
            let longest = LEAST + random.u32(..3_000);
            let (mut cut, mut sent, mut expected) = (frames(longest), Vec::new(), Vec::new());
            for _ in 0..random.usize(1..6) {
                let kind = [DATA, HEADERS, SETTINGS, 0x6, 0x8][random.usize(..5)];
                let most = if kind <= HEADERS { 100_000 } else { 100 };
                let len = if random.bool() { random.usize(..most) } else { random.usize(..3) * longest as usize };
                let payload: Vec<u8> = (0..len.min(most)).map(|_| random.u8(..)).collect();
                let (flags, stream) = (random.u8(..) & !PADDED, random.u32(1..1 << 31));
                sent.extend(frame(kind, flags, stream, &payload));
                expected.push((kind, flags, stream, payload));
            }
            let (mut written, mut rest) = (Vec::new(), &sent[..]);
            while !rest.is_empty() {
                let most = if random.bool() { 12 } else { 50_000 };
                let (now, later) = rest.split_at(random.usize(1..=rest.len().min(most)));
                cut.cut(now, |bytes| written.extend_from_slice(bytes));
                rest = later;
            }
            let mut pieces = parse(&written).into_iter().peekable();
            for (kind, flags, stream, payload) in expected {
                let mut whole = pieces.next().unwrap();
                let (of_end, of_rest) = if kind == DATA { (END_STREAM, DATA) } else { (END_HEADERS, CONTINUATION) };
                assert_eq!(whole.1 & !of_end, flags & !of_end);
                while whole.3.len() < payload.len() {
                    assert_eq!((whole.1 & of_end, whole.3.len() % longest as usize), (0, 0), "it goes on");
                    let piece = pieces.next().unwrap();
                    assert_eq!((piece.0, piece.2), (of_rest, stream));
                    whole.1 |= piece.1 & of_end;
                    whole.3.extend(piece.3);
                }
                assert!(whole == (kind, flags, stream, payload));
            }
            assert!(pieces.next().is_none());
            assert!(parse(&written).iter().all(|piece| piece.3.len() <= longest as usize));
        }
    }

    #[test]
    fn what_the_peer_takes_whole_and_the_preface_pass_as_they_are() {
        let sent =
            [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(DATA, 1, 1, &[7; 16_384]), &frame(DATA, 1, 3, &[])].concat();
        let (mut frames, mut written) = (Frames::default(), Vec::new());
        for bytes in sent.chunks(5) {
            frames.cut(bytes, |bytes| written.extend_from_slice(bytes));
        }
        assert!(written == sent);
    }
}
