//! The body of one call: gRPC's prefix over the sum of its parts, then their payloads.
//!
//! Requests of one signal, one after the other, are one request: the first prefix carries the sum, the parts skip theirs.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Compression, codec, queue::Batch};
use crate::otlp::framed::{PREFIX_LEN, prefix_of};

/// Length of a buffer that small parts are joined in: one DATA frame of HTTP/2's smallest maximum.
const JOINED: usize = 16 << 10;

/// Parts from this length go as they are: a frame of their own costs less than their copy.
const LARGE: usize = 8 << 10;

/// Fills `chunks` with the body of `batch`.
pub(super) fn build(batch: &Batch, compression: Compression, chunks: &mut Vec<Bytes>) -> io::Result<()> {
    chunks.clear();
    match (compression, batch.parts.as_slice()) {
        (Compression::None, [only]) => chunks.push(only.message.as_bytes().clone()),
        (Compression::None, _) => join(batch, chunks)?,
        (compression, parts) => {
            let payloads = parts.iter().map(|part| part.message.payload());
            chunks.push(codec::compress(compression, payloads, batch.bytes)?);
        }
    }
    Ok(())
}

fn join(batch: &Batch, chunks: &mut Vec<Bytes>) -> io::Result<()> {
    let len = u32::try_from(batch.bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut left = PREFIX_LEN + batch.bytes;
    let mut buffer = BytesMut::with_capacity(left.min(JOINED));
    buffer.put_slice(&prefix_of(len));
    for part in &batch.parts {
        let payload = part.message.payload();
        if !buffer.is_empty() && (payload.len() >= LARGE || buffer.len() + payload.len() > JOINED) {
            left -= buffer.len();
            chunks.push(std::mem::take(&mut buffer).freeze());
        }
        if payload.len() >= LARGE {
            left -= payload.len();
            chunks.push(part.message.payload_bytes());
        } else {
            if buffer.capacity() == 0 {
                buffer.reserve(left.min(JOINED));
            }
            buffer.extend_from_slice(payload);
        }
    }
    if !buffer.is_empty() {
        chunks.push(buffer.freeze());
    }
    Ok(())
}
