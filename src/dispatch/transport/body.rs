//! Builds the body of one call: one gRPC prefix with the total length, then the payloads of all parts.
//!
//! Two serialized export requests of the same signal, one after the other, are one valid request. So parts are merged by
//! concatenation of their payloads, and their own prefixes are left out.

use std::io;

use bytes::{Bytes, BytesMut};

use super::Contents;
use crate::{
    codec::{self, Encoding},
    otlp::{
        Chunk, Framed,
        framed::{PREFIX_LEN, prefix_of},
        rope::Rope,
    },
};

/// Size of the buffers that small parts are copied to: the longest DATA frame that every HTTP/2 peer accepts.
const JOINED: usize = 16 << 10;

/// Parts of at least this size are sent from their own buffers: one more DATA frame costs less than copying them.
const LARGE: usize = 8 << 10;

/// Returns the body of a call with these `contents`, as a list of buffers. What came in the encoding of the call goes on as
/// it came.
pub(super) fn build(contents: &impl Contents, encoding: Option<Encoding>, level: u32) -> io::Result<Vec<Bytes>> {
    let mut messages = contents.messages();
    match encoding {
        None if messages.len() == 1 => Ok(messages.next().map(Framed::buffers).unwrap_or_default()),
        None => join(contents),
        Some(encoding) => {
            if let Some(original) = contents.as_it_came(encoding) {
                return Ok(vec![original]);
            }
            let payloads = messages.flat_map(Framed::payload_runs);
            Ok(vec![codec::compress(encoding, level, payloads, contents.payload_len())?])
        }
    }
}

/// Turns a body's buffers into one chunk, because h2 does much work for each chunk.
pub(super) fn one_chunk(buffers: Vec<Bytes>) -> Chunk {
    match <[Bytes; 1]>::try_from(buffers) {
        Ok([only]) => Chunk::Bytes(only),
        Err(buffers) => Chunk::Rope(Rope::of(buffers)),
    }
}

fn join(contents: &impl Contents) -> io::Result<Vec<Bytes>> {
    let payload = contents.payload_len();
    let len = u32::try_from(payload).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut body = Body { expected: PREFIX_LEN + payload, len: 0, buffers: Vec::new(), open: BytesMut::new() };
    body.copy(&prefix_of(len));
    for message in contents.messages() {
        if message.payload_len() < LARGE {
            message.payload_runs().for_each(|run| body.copy(run));
            continue;
        }
        for bytes in message.payload_chunks() {
            if bytes.len() < LARGE { body.copy(&bytes) } else { body.share(bytes) }
        }
    }
    body.end_buffer();
    // A body whose length differs from its prefix is malformed and must not be sent.
    if body.len == PREFIX_LEN + payload { Ok(body.buffers) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// A body under construction.
struct Body {
    /// The length of the finished body.
    expected: usize,
    /// The length so far.
    len: usize,
    /// The finished buffers.
    buffers: Vec<Bytes>,
    /// The current buffer, which small parts are copied to.
    open: BytesMut,
}

impl Body {
    fn copy(&mut self, bytes: &[u8]) {
        if self.open.len() + bytes.len() > JOINED {
            self.end_buffer();
        }
        if self.open.capacity() == 0 {
            let left = self.expected.saturating_sub(self.len);
            self.open.reserve(left.min(JOINED));
        }
        self.open.extend_from_slice(bytes);
        self.len += bytes.len();
    }

    fn share(&mut self, bytes: Bytes) {
        self.end_buffer();
        self.len += bytes.len();
        self.buffers.push(bytes);
    }

    fn end_buffer(&mut self) {
        if !self.open.is_empty() {
            self.buffers.push(std::mem::take(&mut self.open).freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Buf, Bytes};

    use super::{super::tests::Messages, *};

    /// A message of `len` bytes, in one buffer or in several.
    fn message(len: u32, in_one: bool) -> Framed {
        let payload: Bytes = (0..len).map(|at| at.to_le_bytes()[0]).collect();
        let all = Framed::copy_from_payload(&payload).unwrap().to_bytes();
        if in_one {
            return Framed::from_prefixed(all).unwrap();
        }
        Framed::from_chunks([0..3, 3..7, 7..all.len()].map(|range| all.slice(range)).into()).unwrap()
    }

    #[test]
    fn a_body_is_the_concatenation_of_its_parts_however_they_are_buffered() {
        let sizes = [10, 20_000, 3, 9_000, 8_000, 8_000, 8_000, 40_000];
        for count in 1..=sizes.len() {
            for in_one in 0..1_u32 << count {
                let messages: Vec<Framed> = (0..count).map(|at| message(sizes[at], in_one >> at & 1 == 1)).collect();
                let expected: Vec<u8> = messages.iter().flat_map(|message| message.payload().into_owned()).collect();
                for encoding in [None, Some(Encoding::Zstd)] {
                    let buffers = build(&Messages(messages.clone()), encoding, 1).unwrap();
                    let large = buffers.iter().filter(|buffer| buffer.len() >= LARGE).count();
                    assert!(large > 0 || buffers.len() <= 3, "{} buffers", buffers.len());
                    let mut chunk = one_chunk(buffers);
                    let body = chunk.copy_to_bytes(chunk.remaining());
                    let (prefix, payload) = body.split_at(PREFIX_LEN);
                    if encoding.is_none() {
                        assert_eq!(prefix, prefix_of(u32::try_from(expected.len()).unwrap()));
                        assert!(payload == expected, "{count} parts, {in_one:b}");
                    } else {
                        let inflated = codec::inflate_uncounted(Encoding::Zstd, payload, expected.len()).unwrap();
                        assert!(inflated.payload() == expected, "{count} parts, {in_one:b}");
                    }
                }
            }
        }
    }

    #[test]
    fn small_parts_share_a_buffer_and_large_ones_are_not_copied() {
        let messages = [message(100, true), message(100, true), message(9_000, true), message(100, true)];
        let buffers = build(&Messages(messages.to_vec()), None, 1).unwrap();
        assert_eq!(buffers.iter().map(Bytes::len).collect::<Vec<_>>(), [PREFIX_LEN + 200, 9_000, 100]);
        let large = messages[2].to_bytes();
        assert_eq!(buffers[1].as_ptr(), large[PREFIX_LEN..].as_ptr(), "the part's own buffer is sent");
    }
}
