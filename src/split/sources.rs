//! The buffers that a request lies in, addressed as if they were one; and how the walk gets them, one after the other.

use bytes::{Buf, Bytes};

use super::walk::offset;

/// What a torn field is given first if its length is not known: longer than any tag with a length.
const LEAST_JOINT: usize = 64;

/// Buffers whose places are kept for the next request.
const RETAINED: usize = 1 << 10;

/// Buffers of a request, in their order, without gaps.
#[derive(Debug, Default)]
pub(super) struct Sources(Vec<Source>);

#[derive(Debug)]
struct Source {
    /// Where it begins in the request.
    start: u32,
    bytes: Bytes,
}

/// Looks up runs that lie in one buffer each, mostly in the order of the request.
#[derive(Debug)]
pub(super) struct Lookup<'s> {
    sources: &'s Sources,
    /// The source that was found last.
    latest: usize,
}

/// Hands out a request's buffers. What is torn between two is put together first.
#[derive(Debug)]
pub(super) struct Feed<'p> {
    chunks: std::slice::Iter<'p, Bytes>,
    /// What is left of the chunk that was begun.
    rest: Bytes,
    /// The chunk that a joint took its end from, and where that begins in the request.
    lent: Option<(usize, Bytes)>,
    /// What was handed out last, and where it begins in the request.
    latest: (usize, Bytes),
    /// Where it is torn, and where the torn field ends, if that is known.
    torn: Option<(usize, Option<usize>)>,
    joined: usize,
}

// === impl Sources ===

impl Sources {
    pub(super) fn clear(&mut self) {
        self.0.clear();
        self.0.shrink_to(RETAINED);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds the buffer that begins at `start`.
    pub(super) fn push(&mut self, start: usize, bytes: Bytes) {
        self.0.push(Source { start: offset(start), bytes });
    }

    /// Ends the last buffer at `end`, or takes it back if it begins there.
    pub(super) fn end_at(&mut self, end: usize) {
        let Some(last) = self.0.last_mut() else { return };
        last.bytes.truncate(end.saturating_sub(last.start as usize));
        if last.bytes.is_empty() {
            self.0.pop();
        }
    }

    pub(super) fn chunks(&self) -> impl ExactSizeIterator<Item = Bytes> {
        self.0.iter().map(|source| source.bytes.clone())
    }

    pub(super) fn lookup(&self) -> Lookup<'_> {
        Lookup { sources: self, latest: 0 }
    }
}

// === impl Lookup ===

impl<'s> Lookup<'s> {
    /// The number of the buffer that holds this run, and where the run lies in it.
    #[inline]
    pub(super) fn find(&mut self, start: u32, end: u32) -> (u32, u32, u32) {
        let begin = match self.holds(start) {
            Some(begin) => begin,
            None => self.search(start),
        };
        (offset(self.latest), start - begin, end - begin)
    }

    /// The bytes of this run.
    #[inline]
    pub(super) fn bytes(&mut self, start: u32, end: u32) -> &'s [u8] {
        let (number, start, end) = self.find(start, end);
        let source = self.sources.0.get(number as usize);
        source.and_then(|source| source.bytes.get(start as usize..end as usize)).unwrap_or_default()
    }

    /// Where the latest source begins, if it holds `at`.
    #[inline]
    fn holds(&self, at: u32) -> Option<u32> {
        let source = self.sources.0.get(self.latest)?;
        let within = at.checked_sub(source.start)?;
        ((within as usize) < source.bytes.len()).then_some(source.start)
    }

    #[cold]
    fn search(&mut self, at: u32) -> u32 {
        self.latest = self.sources.0.partition_point(|source| source.start <= at).saturating_sub(1);
        self.sources.0.get(self.latest).map_or(0, |source| source.start)
    }
}

// === impl Feed ===

impl<'p> Feed<'p> {
    pub(super) fn new(chunks: &'p [Bytes]) -> Self {
        let (rest, latest) = (Bytes::new(), (0, Bytes::new()));
        Self { chunks: chunks.iter(), rest, lent: None, latest, torn: None, joined: 0 }
    }

    /// The next buffer and where it begins in the request.
    pub(super) fn next(&mut self) -> Option<(usize, Bytes)> {
        let (start, bytes) = &self.latest;
        let next = match self.torn.take() {
            Some((at, end)) => (at, self.join(at, bytes.slice(at - start..), end.map(|end| end - at))),
            None => {
                let start = start + bytes.len();
                self.lent = None;
                (start, self.chunk()?)
            }
        };
        self.latest = next;
        Some(self.latest.clone())
    }

    /// What was handed out last cannot be read from `at` on; the field that begins there ends at `end`, if that is known.
    /// Returns how many bytes will be put together.
    pub(super) fn tear(&mut self, at: usize, end: Option<usize>) -> usize {
        let (start, bytes) = &mut self.latest;
        if let Some((lent_at, chunk)) = self.lent.take()
            && at >= lent_at
        {
            // What is torn is the joint: in the chunk that its end came from, the field goes on.
            bytes.truncate(at - *start);
            self.rest = chunk.slice(at - lent_at..);
            return 0;
        }
        self.torn = Some((at, end));
        joint_len((*start + bytes.len()).saturating_sub(at), end.map(|end| end - at))
    }

    /// Bytes that were put together.
    pub(super) fn joined(&self) -> usize {
        self.joined
    }

    /// A piece, which begins at `at`, and what follows it.
    fn join(&mut self, at: usize, head: Bytes, len: Option<usize>) -> Bytes {
        let len = joint_len(head.len(), len);
        let mut joint = Vec::with_capacity(len);
        joint.extend_from_slice(&head);
        while joint.len() < len
            && let Some(mut chunk) = self.chunk()
        {
            self.lent = Some((at + joint.len(), chunk.clone()));
            let more = chunk.split_to(chunk.len().min(len - joint.len()));
            joint.extend_from_slice(&more);
            self.rest = chunk;
        }
        self.joined += joint.len();
        joint.into()
    }

    /// What is left of the chunk that was begun, or the next one that is not empty.
    fn chunk(&mut self) -> Option<Bytes> {
        let rest = std::mem::take(&mut self.rest);
        if rest.has_remaining() { Some(rest) } else { self.chunks.find(|chunk| !chunk.is_empty()).cloned() }
    }
}

/// How much is put together of a torn field of which so much is here: all, or twice as much where its length is not known.
fn joint_len(here: usize, len: Option<usize>) -> usize {
    len.unwrap_or_else(|| here.saturating_mul(2).max(LEAST_JOINT))
}
