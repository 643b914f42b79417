//! An incremental parser that finds the records of an export request, and the IDs of each span. It stores none of the
//! request's bytes.
//!
//! It is used to check `split` and therefore shares no code with it. Input may arrive in chunks cut anywhere, such as
//! HTTP/2 frames; the chunks are never joined.

use crate::otlp::Signal;

/// For each depth, the fields that lead from a request down to its records (opentelemetry-proto 1.11).
type Path = &'static [&'static [u64]];

/// Request → `Resource*` → `Scope*` → span, log record or profile.
const RECORDS: Path = &[&[1], &[2], &[2]];

/// … → `Metric` → gauge, sum, histogram, exponential histogram or summary → data point.
const DATA_POINTS: Path = &[&[1], &[2], &[2], &[5, 7, 9, 10, 11], &[1]];

/// The length of the longest path.
const MAX_DEPTH: usize = 5;

/// Largest size of a protobuf field's tag and length together, in bytes.
const MAX_HEADER: usize = 20;

/// The first 16 bytes of an ID, and its length on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Id {
    bytes: [u8; 16],
    held: usize,
    len: u64,
}

impl Id {
    /// Returns the ID if it has exactly `N` bytes.
    pub(crate) fn exactly<const N: usize>(&self) -> Option<[u8; N]> {
        if self.len != N as u64 {
            return None;
        }
        self.bytes.get(..N)?.try_into().ok()
    }

    fn extend(&mut self, piece: &[u8]) {
        let room = self.bytes.get_mut(self.held..).unwrap_or_default();
        let n = room.len().min(piece.len());
        for (to, from) in room.iter_mut().zip(piece) {
            *to = *from;
        }
        self.held += n;
    }
}

/// The fields of a span that are read. If a field is repeated, the last occurrence counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SpanIds {
    /// Field 1, `trace_id`.
    pub(crate) trace: Id,
    /// Field 2, `span_id`.
    pub(crate) span: Id,
    /// Field 8, `end_time_unix_nano`, in wire format.
    pub(crate) end: Id,
}

/// The bytes are not a valid export request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed protobuf near byte {0}")]
pub(crate) struct Malformed(u64);

/// State of the parser.
#[derive(Debug)]
pub(crate) struct Walker {
    path: Path,
    read_ids: bool,
    pos: u64,
    ends: [u64; MAX_DEPTH + 1],
    depth: usize,
    groups: u32,
    /// Number of bytes of the current field's value still to come.
    pending: u64,
    capture: Capture,
    ids: SpanIds,
    carry: [u8; MAX_HEADER],
    carried: usize,
}

#[derive(Clone, Copy, Debug)]
enum Capture {
    End,
    Nothing,
    Trace,
    Span,
}

struct Header {
    field: u64,
    wire: u64,
    value: u64,
    size: usize,
}

impl Walker {
    /// Creates a parser for requests of `signal`. With `read_ids`, it reads the IDs of spans; without, it only counts
    /// records, which is much cheaper. Records of signals other than traces are only counted. The records of metrics
    /// are data points, as in OTLP's `partial_success`.
    pub(crate) fn new(signal: Signal, read_ids: bool) -> Self {
        Self {
            path: if signal == Signal::Metrics { DATA_POINTS } else { RECORDS },
            read_ids: read_ids && signal == Signal::Traces,
            pos: 0,
            ends: [u64::MAX; MAX_DEPTH + 1],
            depth: 0,
            groups: 0,
            pending: 0,
            capture: Capture::Nothing,
            ids: SpanIds::default(),
            carry: [0; MAX_HEADER],
            carried: 0,
        }
    }

    /// Parses the next chunk. `found` is called for every span that ends in it, or, when records are only counted, for
    /// every record that begins in it.
    pub(crate) fn feed(&mut self, mut piece: &[u8], mut found: impl FnMut(&SpanIds)) -> Result<(), Malformed> {
        loop {
            if self.pending > 0 {
                piece = self.consume(piece);
                if self.pending > 0 {
                    return Ok(());
                }
            }
            self.close(&mut found)?;
            if piece.is_empty() {
                return Ok(());
            }
            let Some(header) = self.header(&mut piece)? else {
                return Ok(());
            };
            self.enter(&header, &mut found)?;
        }
    }

    /// Checks that the request ended at the end of a field.
    pub(crate) fn finish(&self) -> Result<(), Malformed> {
        let whole = self.depth == 0 && self.pending == 0 && self.carried == 0 && self.groups == 0;
        if whole { Ok(()) } else { Err(Malformed(self.pos)) }
    }

    fn consume<'a>(&mut self, piece: &'a [u8]) -> &'a [u8] {
        let n = usize::try_from(self.pending).unwrap_or(usize::MAX).min(piece.len());
        let (value, rest) = piece.split_at(n);
        match self.capture {
            Capture::End => self.ids.end.extend(value),
            Capture::Nothing => {}
            Capture::Trace => self.ids.trace.extend(value),
            Capture::Span => self.ids.span.extend(value),
        }
        self.pending -= n as u64;
        self.pos += n as u64;
        rest
    }

    /// Returns whether the current position is inside a record.
    fn in_record(&self) -> bool {
        self.depth == self.path.len()
    }

    fn end(&self) -> u64 {
        self.ends.get(self.depth).copied().unwrap_or(0)
    }

    fn close(&mut self, found: &mut impl FnMut(&SpanIds)) -> Result<(), Malformed> {
        while self.depth > 0 && self.carried == 0 && self.pos >= self.end() {
            if self.groups > 0 {
                return Err(Malformed(self.pos));
            }
            if self.in_record() {
                found(&self.ids);
            }
            self.depth -= 1;
        }
        Ok(())
    }

    /// Reads a tag and its varint. If the chunk ends before they do, keeps their bytes for the next call and returns
    /// `None`.
    fn header(&mut self, piece: &mut &[u8]) -> Result<Option<Header>, Malformed> {
        if self.carried == 0
            && let Some(header) = read_header(piece, self.pos)?
        {
            *piece = piece.get(header.size..).unwrap_or_default();
            return Ok(Some(header));
        }
        while let Some((byte, rest)) = piece.split_first() {
            let slot = self.carry.get_mut(self.carried).ok_or(Malformed(self.pos))?;
            *slot = *byte;
            self.carried += 1;
            *piece = rest;
            if let Some(header) = read_header(self.carry.get(..self.carried).unwrap_or_default(), self.pos)? {
                self.carried = 0;
                return Ok(Some(header));
            }
        }
        Ok(None)
    }

    fn enter(&mut self, header: &Header, found: &mut impl FnMut(&SpanIds)) -> Result<(), Malformed> {
        self.pos += header.size as u64;
        self.capture = Capture::Nothing;
        self.pending = match header.wire {
            1 => 8,
            2 => header.value,
            5 => 4,
            _ => 0,
        };
        match header.wire {
            3 => self.groups += 1,
            4 => self.groups = self.groups.checked_sub(1).ok_or(Malformed(self.pos))?,
            _ => {}
        }
        let value_end = self.pos.checked_add(self.pending).ok_or(Malformed(self.pos))?;
        if value_end > self.end() {
            return Err(Malformed(self.pos));
        }
        if header.wire == 2 && self.groups == 0 {
            self.descend(header, value_end, found);
        }
        if header.wire == 1 && header.field == 8 && self.in_record() && self.groups == 0 {
            (self.capture, self.ids.end) = (Capture::End, Id { len: 8, ..Id::default() });
        }
        Ok(())
    }

    fn descend(&mut self, header: &Header, value_end: u64, found: &mut impl FnMut(&SpanIds)) {
        if self.path.get(self.depth).is_some_and(|fields| fields.contains(&header.field)) {
            if self.depth + 1 == self.path.len() && !self.read_ids {
                found(&SpanIds::default());
                return;
            }
            self.depth += 1;
            self.pending = 0;
            self.ids = SpanIds::default();
            if let Some(end) = self.ends.get_mut(self.depth) {
                *end = value_end;
            }
        } else if self.in_record() {
            let fresh = Id { len: header.value, ..Id::default() };
            match header.field {
                1 => (self.capture, self.ids.trace) = (Capture::Trace, fresh),
                2 => (self.capture, self.ids.span) = (Capture::Span, fresh),
                _ => {}
            }
        }
    }
}

fn read_header(bytes: &[u8], pos: u64) -> Result<Option<Header>, Malformed> {
    let Some((tag, tag_len)) = varint(bytes, pos)? else {
        return Ok(None);
    };
    let header = Header { field: tag >> 3, wire: tag & 7, value: 0, size: tag_len };
    match header.wire {
        _ if header.field == 0 => Err(Malformed(pos)),
        0 | 2 => Ok(varint(bytes.get(tag_len..).unwrap_or_default(), pos)?.map(|(value, len)| Header {
            value,
            size: tag_len + len,
            ..header
        })),
        1 | 3 | 4 | 5 => Ok(Some(header)),
        _ => Err(Malformed(pos)),
    }
}

/// Reads a varint; returns its value and length, or `None` if the bytes end before it does.
fn varint(bytes: &[u8], pos: u64) -> Result<Option<(u64, usize)>, Malformed> {
    // Fast path: nearly all tags and about half of the lengths have one byte.
    if let Some(byte) = bytes.first().filter(|byte| **byte < 0x80) {
        return Ok(Some((u64::from(*byte), 1)));
    }
    let mut value = 0;
    for (i, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Ok(Some((value, i + 1)));
        }
    }
    if bytes.len() >= 10 { Err(Malformed(pos)) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::otlp_body::{Bodies, BodySpec};

    fn walk(pieces: &[&[u8]]) -> Result<Vec<SpanIds>, Malformed> {
        let mut spans = Vec::new();
        let mut walker = Walker::new(Signal::Traces, true);
        for piece in pieces {
            walker.feed(piece, |ids| spans.push(*ids))?;
        }
        walker.finish()?;
        Ok(spans)
    }

    #[test]
    fn the_same_spans_are_found_in_whatever_chunks_they_arrive() {
        let spec = BodySpec { spans: 6, traces: 4, bodies: 4, unique: true, ..BodySpec::default() };
        let message = Bodies::generate(spec).unwrap().compose(0, Some(std::time::Duration::from_secs(7)));
        let payload = &message[5..];
        let whole = walk(&[payload]).unwrap();
        assert_eq!(whole.len(), 6);
        let end = |ids: &SpanIds| ids.end.exactly().map(u64::from_le_bytes);
        assert!(whole.iter().all(|ids| end(ids) == Some(7_000_000_000)));
        for at in 0..payload.len() {
            let (head, tail) = payload.split_at(at);
            assert_eq!(walk(&[head, tail]).unwrap(), whole, "cut at {at}");
        }
        let bytes: Vec<&[u8]> = payload.chunks(1).collect();
        assert_eq!(walk(&bytes).unwrap(), whole);
    }

    #[test]
    fn the_last_id_counts_and_groups_hide_what_is_in_them() {
        // A span with group 7 { field 1: "x" }, a trace ID of 2 bytes, a trace ID of 16 bytes and a span ID of 8 bytes.
        let mut span = vec![0x3b, 0x0a, 1, b'x', 0x3c, 0x0a, 2, 1, 1, 0x0a, 16];
        span.extend([9; 16]);
        span.extend([0x12, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
        let nest = |inner: &[u8], tag: u8| [&[tag, u8::try_from(inner.len()).unwrap()], inner].concat();
        let request = nest(&nest(&nest(&span, 0x12), 0x12), 0x0a);
        let spans = walk(&[&request]).unwrap();
        assert_eq!(spans.len(), 1);
        assert_eq!(spans[0].trace.exactly::<16>(), Some([9; 16]));
        assert_eq!(spans[0].span.exactly::<8>(), Some([1, 2, 3, 4, 5, 6, 7, 8]));
        assert_eq!(spans[0].trace.exactly::<8>(), None);
        assert_eq!(spans[0].end.exactly::<8>(), None);
    }

    #[test]
    fn truncated_and_overlong_fields_are_malformed() {
        assert!(walk(&[&[0x0a, 5, 0x12]]).is_err(), "ends early");
        assert!(walk(&[&[0x0a, 2, 0x12, 5, 0, 0, 0, 0, 0]]).is_err(), "a child longer than its parent");
        assert!(walk(&[&[0x0f]]).is_err(), "no such wire type");
        assert!(walk(&[&[0x80; 12]]).is_err(), "an endless varint");
        assert!(walk(&[&[0x3c]]).is_err(), "a group that never began");
        assert!(walk(&[&[0x0a, 0]]).unwrap().is_empty());
    }
}
