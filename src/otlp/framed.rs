//! A gRPC message with its five-byte prefix in front: what the receiver reads, the split writes and a backend is sent.

use std::{borrow::Cow, io::IoSlice};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::rope::Rope;

/// Length of gRPC's message prefix: a compression flag and a big-endian `u32` length
/// (gRPC over HTTP/2, "Length-Prefixed-Message").
pub const PREFIX_LEN: usize = 5;

/// One uncompressed protobuf message behind its gRPC prefix. Cloning is cheap.
///
/// The prefix travels with the bytes so that a message which is forwarded as it came, and a part which the split
/// built, both go to HTTP/2 without another copy.
#[derive(Clone, Debug, Default)]
pub struct Framed(Chunk);

/// Bytes on their way to HTTP/2: in one place, or runs of a request that is shared.
#[derive(Clone, Debug)]
pub enum Chunk {
    /// One buffer.
    Bytes(Bytes),
    /// Runs of a buffer.
    Rope(Rope),
}

impl Framed {
    /// Takes a buffer whose first five bytes are spare, and writes the prefix for what follows into them.
    ///
    /// Returns `None` when the buffer is shorter than the prefix or the payload does not fit gRPC's `u32` length.
    pub fn seal(mut buffer: BytesMut) -> Option<Self> {
        let len = u32::try_from(buffer.len().checked_sub(PREFIX_LEN)?).ok()?;
        let prefix = buffer.get_mut(..PREFIX_LEN)?;
        prefix.copy_from_slice(&prefix_of(len));
        Some(Self(Chunk::Bytes(buffer.freeze())))
    }

    /// Takes bytes that already are an uncompressed, length-prefixed message.
    ///
    /// Returns `None` when flag or length do not say so.
    pub fn from_prefixed(bytes: Bytes) -> Option<Self> {
        let len = u32::try_from(bytes.len().checked_sub(PREFIX_LEN)?).ok()?;
        (bytes.get(..PREFIX_LEN)? == prefix_of(len)).then_some(Self(Chunk::Bytes(bytes)))
    }

    /// Takes a rope that is an uncompressed, length-prefixed message.
    ///
    /// Returns `None` when flag or length do not say so.
    pub fn from_rope(rope: Rope) -> Option<Self> {
        let len = u32::try_from(rope.remaining().checked_sub(PREFIX_LEN)?).ok()?;
        let mut prefix = [0; PREFIX_LEN];
        rope.clone().copy_to_slice(&mut prefix);
        (prefix == prefix_of(len)).then_some(Self(Chunk::Rope(rope)))
    }

    /// Takes buffers that one after the other are an uncompressed, length-prefixed message.
    ///
    /// Returns `None` when flag or length do not say so.
    pub fn from_chunks(mut chunks: Vec<Bytes>) -> Option<Self> {
        if chunks.len() == 1 { Self::from_prefixed(chunks.pop()?) } else { Self::from_rope(Rope::of(chunks)?) }
    }

    /// Copies a bare protobuf message behind a new prefix.
    pub fn copy_from_payload(payload: &[u8]) -> Option<Self> {
        let mut buffer = BytesMut::with_capacity(PREFIX_LEN + payload.len());
        buffer.put_bytes(0, PREFIX_LEN);
        buffer.extend_from_slice(payload);
        Self::seal(buffer)
    }

    /// The protobuf message; runs are copied into one buffer, which callers on the way of the data avoid.
    pub fn payload(&self) -> Cow<'_, [u8]> {
        match &self.0 {
            Chunk::Bytes(bytes) => Cow::Borrowed(bytes.get(PREFIX_LEN..).unwrap_or_default()),
            Chunk::Rope(_) => Cow::Owned(self.payload_runs().collect::<Vec<_>>().concat()),
        }
    }

    /// The protobuf message in as many buffers as it has runs, shared.
    pub fn payload_chunks(&self) -> Vec<Bytes> {
        self.payload_chunk().buffers()
    }

    /// The protobuf message, run by run.
    pub fn payload_runs(&self) -> impl Iterator<Item = &[u8]> {
        let (whole, rope) = match &self.0 {
            Chunk::Bytes(bytes) => (bytes.get(PREFIX_LEN..), None),
            Chunk::Rope(rope) => (None, Some(rope)),
        };
        let mut skip = PREFIX_LEN;
        let runs = rope.into_iter().flat_map(Rope::runs).filter_map(move |run| {
            let rest = run.get(skip..);
            skip = skip.saturating_sub(run.len());
            rest
        });
        whole.into_iter().chain(runs)
    }

    /// The protobuf message on its way, sharing the buffer.
    pub fn payload_chunk(&self) -> Chunk {
        let mut chunk = self.0.clone();
        chunk.advance(PREFIX_LEN.min(chunk.remaining()));
        chunk
    }

    /// Prefix and message on their way, sharing the buffer.
    pub fn chunk(&self) -> Chunk {
        self.0.clone()
    }

    /// Prefix and message in as many buffers as they lie in, shared.
    pub fn buffers(&self) -> Vec<Bytes> {
        self.0.buffers()
    }

    /// Prefix and message in one buffer: shared if they are, else copied.
    pub fn to_bytes(&self) -> Bytes {
        match &self.0 {
            Chunk::Bytes(bytes) => bytes.clone(),
            Chunk::Rope(rope) => rope.clone().copy_to_bytes(rope.remaining()),
        }
    }

    /// A copy that keeps no buffer but its own.
    pub fn detached(&self) -> Self {
        let mut buffer = BytesMut::with_capacity(self.framed_len());
        buffer.put(self.chunk());
        Self(Chunk::Bytes(buffer.freeze()))
    }

    /// Length of prefix and message, in bytes.
    pub fn framed_len(&self) -> usize {
        self.0.remaining()
    }

    /// Length of the message without its prefix, in bytes.
    pub fn payload_len(&self) -> usize {
        self.framed_len().saturating_sub(PREFIX_LEN)
    }
}

impl PartialEq for Framed {
    fn eq(&self, other: &Self) -> bool {
        self.to_bytes() == other.to_bytes()
    }
}

impl Chunk {
    /// The buffers that it lies in, shared.
    fn buffers(&self) -> Vec<Bytes> {
        match self {
            Self::Bytes(bytes) => vec![bytes.clone()],
            Self::Rope(rope) => rope.shares().collect(),
        }
    }
}

impl Default for Chunk {
    fn default() -> Self {
        Self::Bytes(Bytes::new())
    }
}

impl From<Bytes> for Chunk {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.remaining(),
            Self::Rope(rope) => rope.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes.chunk(),
            Self::Rope(rope) => rope.chunk(),
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.chunks_vectored(slices),
            Self::Rope(rope) => rope.chunks_vectored(slices),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Bytes(bytes) => bytes.advance(count),
            Self::Rope(rope) => rope.advance(count),
        }
    }
}

/// The prefix of an uncompressed message of `len` bytes.
pub fn prefix_of(len: u32) -> [u8; PREFIX_LEN] {
    let [a, b, c, d] = len.to_be_bytes();
    [0, a, b, c, d]
}
