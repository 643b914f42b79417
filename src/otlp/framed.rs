//! A gRPC message with its five-byte prefix in front: what the receiver reads, the split writes and a backend is sent.

use bytes::{BufMut, Bytes, BytesMut};

/// Length of gRPC's message prefix: a compression flag and a big-endian `u32` length
/// (gRPC over HTTP/2, "Length-Prefixed-Message").
pub const PREFIX_LEN: usize = 5;

/// One uncompressed protobuf message behind its gRPC prefix, in one contiguous buffer. Cloning is cheap.
///
/// The prefix travels with the bytes so that a message which is forwarded as it came, and a part which the split
/// built, both go to HTTP/2 without another copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Framed(Bytes);

impl Framed {
    /// Takes a buffer whose first five bytes are spare, and writes the prefix for what follows into them.
    ///
    /// Returns `None` when the buffer is shorter than the prefix or the payload does not fit gRPC's `u32` length.
    pub fn seal(mut buffer: BytesMut) -> Option<Self> {
        let len = u32::try_from(buffer.len().checked_sub(PREFIX_LEN)?).ok()?;
        let prefix = buffer.get_mut(..PREFIX_LEN)?;
        prefix.copy_from_slice(&prefix_of(len));
        Some(Self(buffer.freeze()))
    }

    /// Takes bytes that already are an uncompressed, length-prefixed message.
    ///
    /// Returns `None` when flag or length do not say so.
    pub fn from_prefixed(bytes: Bytes) -> Option<Self> {
        let len = u32::try_from(bytes.len().checked_sub(PREFIX_LEN)?).ok()?;
        (bytes.get(..PREFIX_LEN)? == prefix_of(len)).then_some(Self(bytes))
    }

    /// Copies a bare protobuf message behind a new prefix.
    pub fn copy_from_payload(payload: &[u8]) -> Option<Self> {
        let mut buffer = BytesMut::with_capacity(PREFIX_LEN + payload.len());
        buffer.put_bytes(0, PREFIX_LEN);
        buffer.extend_from_slice(payload);
        Self::seal(buffer)
    }

    /// The protobuf message.
    pub fn payload(&self) -> &[u8] {
        self.0.get(PREFIX_LEN..).unwrap_or_default()
    }

    /// The protobuf message, sharing the buffer.
    pub fn payload_bytes(&self) -> Bytes {
        if self.0.len() <= PREFIX_LEN { Bytes::new() } else { self.0.slice(PREFIX_LEN..) }
    }

    /// Prefix and message.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// Length of the message without its prefix, in bytes.
    pub fn payload_len(&self) -> usize {
        self.0.len().saturating_sub(PREFIX_LEN)
    }
}

/// The prefix of an uncompressed message of `len` bytes.
pub fn prefix_of(len: u32) -> [u8; PREFIX_LEN] {
    let [a, b, c, d] = len.to_be_bytes();
    [0, a, b, c, d]
}
