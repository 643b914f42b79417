//! The body of one call: gRPC's prefix over the sum of its parts, then their payloads.
//!
//! Requests of one signal, one after the other, are one request: the first prefix carries the sum, the parts skip theirs.

use std::io;

use bytes::{BufMut, BytesMut};

use super::{Compression, codec, queue::Batch};
use crate::otlp::{
    Chunk,
    framed::{PREFIX_LEN, prefix_of},
    rope::Rope,
};

/// Length of a buffer that small parts are joined in: one DATA frame of HTTP/2's smallest maximum.
const JOINED: usize = 16 << 10;

/// Parts from this length go as they are: a frame of their own costs less than their copy.
const LARGE: usize = 8 << 10;

/// Fills `chunks` with the body of `batch`.
pub(super) fn build(batch: &Batch, compression: Compression, chunks: &mut Vec<Chunk>) -> io::Result<()> {
    chunks.clear();
    match (compression, batch.parts.as_slice()) {
        (Compression::None, [only]) => chunks.extend(only.message.chunk().pieces()),
        (Compression::None, _) => join(batch, chunks)?,
        (compression, parts) => {
            let payloads = parts.iter().flat_map(|part| part.message.payload_runs());
            chunks.push(codec::compress(compression, payloads, batch.bytes)?.into());
        }
    }
    Ok(())
}

/// Makes one of several chunks, if they are buffers: h2 does much for each chunk.
pub(super) fn string(chunks: &mut Vec<Chunk>) {
    let buffer = |chunk: &Chunk| match chunk {
        Chunk::Bytes(bytes) => Some(bytes.clone()),
        Chunk::Rope(_) => None,
    };
    if chunks.len() > 1
        && let Some(rope) = chunks.iter().map(buffer).collect::<Option<_>>().and_then(Rope::of)
    {
        chunks.clear();
        chunks.push(Chunk::Rope(rope));
    }
}

fn join(batch: &Batch, chunks: &mut Vec<Chunk>) -> io::Result<()> {
    let len = u32::try_from(batch.bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut left = PREFIX_LEN + batch.bytes;
    let mut buffer = BytesMut::with_capacity(left.min(JOINED));
    buffer.put_slice(&prefix_of(len));
    for part in &batch.parts {
        let len = part.message.payload_len();
        if !buffer.is_empty() && (len >= LARGE || buffer.len() + len > JOINED) {
            left -= buffer.len();
            chunks.push(std::mem::take(&mut buffer).freeze().into());
        }
        if len >= LARGE {
            left -= len;
            chunks.extend(part.message.payload_chunk().pieces());
        } else {
            if buffer.capacity() == 0 {
                buffer.reserve(left.min(JOINED));
            }
            part.message.payload_runs().for_each(|run| buffer.extend_from_slice(run));
        }
    }
    if !buffer.is_empty() {
        chunks.push(buffer.freeze().into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::{Buf, Bytes};
    use tokio::time::Instant;

    use super::*;
    use crate::{
        dispatch::{Join, Part, piece::Queued},
        otlp::{Framed, Signal, rope::Weaver},
    };

    /// A message of `len` bytes: runs of another one's, or bytes of its own, in several buffers if they are many.
    fn message(len: u32, woven: bool) -> Framed {
        let source: Bytes = (0..len).map(|at| at.to_le_bytes()[0]).collect();
        if !woven && len >= 9_000 {
            let all = Framed::copy_from_payload(&source).unwrap().to_bytes();
            return Framed::from_chunks(
                [0..8_500, 8_500..8_502, 8_502..all.len()].map(|range| all.slice(range)).into(),
            )
            .unwrap();
        }
        if !woven {
            return Framed::copy_from_payload(&source).unwrap();
        }
        let mut weaver = Weaver::new([source].into_iter(), 1, 5, PREFIX_LEN).unwrap();
        weaver.headers().extend_from_slice(&prefix_of(len));
        for run in [0..1, 1..len / 2, len / 2..len] {
            weaver.share(0, run.start, run.end);
        }
        weaver.end();
        Framed::from_rope(weaver.finish().next().unwrap()).unwrap()
    }

    fn batch(messages: &[Framed]) -> Batch {
        let join = Join::new(Instant::now(), Arc::default());
        let queued = |message: &Framed| {
            let part = Part {
                message: message.clone(),
                records: 1,
                signal: Signal::Traces,
                backend: 0,
                alone: false,
                index: 0,
            };
            Queued::from_part(part, join.inbox(), Instant::now())
        };
        let bytes = messages.iter().map(Framed::payload_len).sum();
        Batch { parts: messages.iter().map(queued).collect(), bytes }
    }

    #[test]
    fn a_call_is_its_parts_one_after_the_other_whether_they_share_a_request_or_not() {
        let sizes = [10, 20_000, 3, 9_000, 8_000, 8_000, 8_000, 40_000];
        for count in 1..=sizes.len() {
            for woven in 0..1_u32 << count {
                let messages: Vec<Framed> = (0..count).map(|at| message(sizes[at], woven >> at & 1 == 1)).collect();
                let expected: Vec<u8> = messages.iter().flat_map(|message| message.payload().into_owned()).collect();
                for compression in [Compression::None, Compression::Zstd { level: 1 }] {
                    let mut chunks = Vec::new();
                    build(&batch(&messages), compression, &mut chunks).unwrap();
                    let has_runs = chunks.iter().any(|chunk| matches!(chunk, Chunk::Rope(_)));
                    string(&mut chunks);
                    assert!(has_runs || chunks.len() == 1, "{} chunks", chunks.len());
                    let body: Vec<u8> =
                        chunks.into_iter().flat_map(|mut chunk| chunk.copy_to_bytes(chunk.remaining())).collect();
                    let (prefix, payload) = body.split_at(PREFIX_LEN);
                    if compression == Compression::None {
                        assert_eq!(prefix, prefix_of(u32::try_from(expected.len()).unwrap()));
                        assert!(payload == expected, "{count} parts, {woven:b}");
                    } else {
                        assert!(codec::inflate(b"zstd", payload).unwrap() == expected, "{count} parts, {woven:b}");
                    }
                }
            }
        }
    }
}
