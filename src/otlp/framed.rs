//! A gRPC message with its five-byte prefix: received requests and the parts made of them have this form.

use std::{borrow::Cow, io::IoSlice};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::rope::Rope;

/// Length of gRPC's message prefix: a compression flag and a big-endian `u32` length
/// (gRPC over HTTP/2, "Length-Prefixed-Message").
pub const PREFIX_LEN: usize = 5;

/// One uncompressed protobuf message after its gRPC prefix. Cloning is cheap.
///
/// The prefix is stored with the message, so that a forwarded request and a part built by the split both go to HTTP/2
/// without another copy.
#[derive(Clone, Debug)]
pub struct Framed(Chunk);

/// Bytes for HTTP/2.
#[derive(Clone, Debug)]
pub enum Chunk {
    /// One buffer.
    Bytes(Bytes),
    /// Several buffers, one after the other.
    Rope(Rope),
}

impl Framed {
    /// Takes a buffer whose first five bytes are unused, and writes the prefix for the rest into them.
    ///
    /// Returns `None` if the buffer is shorter than the prefix or the payload's length does not fit gRPC's `u32`.
    pub fn seal(mut buffer: BytesMut) -> Option<Self> {
        let len = u32::try_from(buffer.len().checked_sub(PREFIX_LEN)?).ok()?;
        let prefix = buffer.get_mut(..PREFIX_LEN)?;
        prefix.copy_from_slice(&prefix_of(len));
        Some(Self(Chunk::Bytes(buffer.freeze())))
    }

    /// Takes bytes that are already an uncompressed, length-prefixed message.
    ///
    /// Returns `None` if the prefix has another flag or length.
    pub fn from_prefixed(bytes: Bytes) -> Option<Self> {
        let len = u32::try_from(bytes.len().checked_sub(PREFIX_LEN)?).ok()?;
        (bytes.get(..PREFIX_LEN)? == prefix_of(len)).then_some(Self(Chunk::Bytes(bytes)))
    }

    fn from_rope(rope: Rope) -> Option<Self> {
        let len = u32::try_from(rope.remaining().checked_sub(PREFIX_LEN)?).ok()?;
        let mut prefix = [0; PREFIX_LEN];
        rope.clone().copy_to_slice(&mut prefix);
        (prefix == prefix_of(len)).then_some(Self(Chunk::Rope(rope)))
    }

    /// Takes buffers whose concatenation is an uncompressed, length-prefixed message.
    ///
    /// Returns `None` if the prefix has another flag or length.
    pub fn from_chunks(mut chunks: Vec<Bytes>) -> Option<Self> {
        if chunks.len() == 1 { Self::from_prefixed(chunks.pop()?) } else { Self::from_rope(Rope::of(chunks)) }
    }

    /// Copies a protobuf message that has no prefix, and puts one in front of it.
    pub fn copy_from_payload(payload: &[u8]) -> Option<Self> {
        let mut buffer = BytesMut::with_capacity(PREFIX_LEN + payload.len());
        buffer.put_bytes(0, PREFIX_LEN);
        buffer.extend_from_slice(payload);
        Self::seal(buffer)
    }

    /// Returns the protobuf message. Several buffers are copied into one, so code on the path of requests avoids this.
    pub fn payload(&self) -> Cow<'_, [u8]> {
        match &self.0 {
            Chunk::Bytes(bytes) => Cow::Borrowed(bytes.get(PREFIX_LEN..).unwrap_or_default()),
            Chunk::Rope(_) => Cow::Owned(self.payload_runs().collect::<Vec<_>>().concat()),
        }
    }

    /// Returns the buffers of the protobuf message, without copying them.
    pub fn payload_chunks(&self) -> Vec<Bytes> {
        self.payload_chunk().buffers()
    }

    /// Iterates over the protobuf message, buffer by buffer.
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

    /// Returns the protobuf message for HTTP/2, sharing the buffers.
    pub fn payload_chunk(&self) -> Chunk {
        let mut chunk = self.0.clone();
        chunk.advance(PREFIX_LEN.min(chunk.remaining()));
        chunk
    }

    /// Returns prefix and message for HTTP/2, sharing the buffers.
    pub fn chunk(&self) -> Chunk {
        self.0.clone()
    }

    /// Returns the buffers of prefix and message, without copying them.
    pub fn buffers(&self) -> Vec<Bytes> {
        self.0.buffers()
    }

    /// Returns prefix and message in one buffer: the shared one if there is only one, else a copy.
    pub fn to_bytes(&self) -> Bytes {
        match &self.0 {
            Chunk::Bytes(bytes) => bytes.clone(),
            Chunk::Rope(rope) => rope.clone().copy_to_bytes(rope.remaining()),
        }
    }

    /// Returns a copy in a buffer of its own, which keeps no other buffer in memory.
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
    /// Returns its buffers, without copying them.
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

/// Returns the prefix of an uncompressed message of `len` bytes.
pub fn prefix_of(len: u32) -> [u8; PREFIX_LEN] {
    let [a, b, c, d] = len.to_be_bytes();
    [0, a, b, c, d]
}
