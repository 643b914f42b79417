//! Compresses messages.

use std::{cell::RefCell, io};

use bytes::Bytes;
use flate2::{Compress, FlushCompress, Status};
use zstd::stream::raw::{Encoder, InBuffer, Operation, OutBuffer};

use super::Encoding;
use crate::otlp::framed::{PREFIX_LEN, prefix_of};

/// Room beyond zlib's worst growth (5 bytes for each 16 KiB block) for headers and trailers.
const GZIP_SLACK: usize = 64;

thread_local! {
    static GZIP: RefCell<Option<(u32, Compress)>> = const { RefCell::new(None) };
    static ZSTD: RefCell<Option<(i32, Encoder<'static>)>> = const { RefCell::new(None) };
}

/// Compresses payloads as one message, with gRPC's prefix before it. `len` is the sum of their lengths.
pub fn compress<'a>(
    encoding: Encoding,
    level: u32,
    payloads: impl Iterator<Item = &'a [u8]>,
    len: usize,
) -> io::Result<Bytes> {
    let mut out = Vec::with_capacity(PREFIX_LEN + len / 4 + GZIP_SLACK);
    out.extend_from_slice(&[0; PREFIX_LEN]);
    match encoding {
        Encoding::Gzip => GZIP.with_borrow_mut(|kept| gzip(kept, level, payloads, &mut out))?,
        Encoding::Deflate | Encoding::Snappy => return Err(io::ErrorKind::Unsupported.into()),
        Encoding::Zstd => {
            let level = i32::try_from(level).unwrap_or(i32::MAX);
            ZSTD.with_borrow_mut(|kept| zstd(kept, level, payloads, len, &mut out))?;
        }
    }
    let compressed = u32::try_from(out.len() - PREFIX_LEN).map_err(|_| io::ErrorKind::InvalidInput)?;
    let [_, length @ ..] = prefix_of(compressed);
    if let Some(prefix) = out.first_chunk_mut::<PREFIX_LEN>() {
        let [flag, rest @ ..] = prefix;
        (*flag, *rest) = (1, length);
    }
    Ok(out.into())
}

fn gzip<'a>(
    kept: &mut Option<(u32, Compress)>,
    level: u32,
    payloads: impl Iterator<Item = &'a [u8]>,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    let context = match kept {
        Some((at, context)) if *at == level => context,
        other => &mut other.insert((level, Compress::new_gzip(flate2::Compression::new(level.min(9)), 15))).1,
    };
    context.reset();
    for mut payload in payloads {
        while !payload.is_empty() {
            make_room(out);
            let before = context.total_in();
            context.compress_vec(payload, out, FlushCompress::None)?;
            let left = usize::try_from(context.total_in() - before).ok().and_then(|taken| payload.get(taken..));
            payload = left.ok_or(io::ErrorKind::InvalidData)?;
        }
    }
    loop {
        make_room(out);
        if context.compress_vec(&[], out, FlushCompress::Finish)? == Status::StreamEnd {
            return Ok(());
        }
    }
}

fn zstd<'a>(
    kept: &mut Option<(i32, Encoder<'static>)>,
    level: i32,
    payloads: impl Iterator<Item = &'a [u8]>,
    len: usize,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    let context = match kept {
        Some((at, context)) if *at == level => context,
        other => &mut other.insert((level, Encoder::new(level)?)).1,
    };
    context.reinit()?;
    context.set_pledged_src_size(Some(u64::try_from(len).unwrap_or(u64::MAX)))?;
    for payload in payloads {
        let mut input = InBuffer::around(payload);
        while input.pos() < payload.len() {
            make_room(out);
            let at = out.len();
            context.run(&mut input, &mut OutBuffer::around_pos(out, at))?;
        }
    }
    loop {
        make_room(out);
        let at = out.len();
        if context.finish(&mut OutBuffer::around_pos(out, at), true)? == 0 {
            return Ok(());
        }
    }
}

/// Makes sure that there is room to write to; it grows by doubling.
fn make_room(out: &mut Vec<u8>) {
    if out.capacity() - out.len() < GZIP_SLACK {
        out.reserve(out.len().max(GZIP_SLACK));
    }
}

#[cfg(test)]
mod tests {
    use super::{super::inflate_uncounted, *};

    #[test]
    fn what_is_compressed_inflates_to_the_same() {
        let noise: Vec<u8> = (0..100_000).map(|_| fastrand::u8(..)).collect();
        let bodies: [&[&[u8]]; 4] = [&[b"one ", b"two"], &[b""], &[&noise, b"tail"], &[&[7; 1 << 20]]];
        for (encoding, level) in [(Encoding::Gzip, 6), (Encoding::Gzip, 1), (Encoding::Zstd, 1), (Encoding::Zstd, 19)] {
            for parts in bodies {
                let whole = parts.concat();
                let message = compress(encoding, level, parts.iter().copied(), whole.len()).unwrap();
                assert_eq!(message[0], 1, "the flag must be set");
                let len = u32::from_be_bytes(message[1..5].try_into().unwrap());
                assert_eq!(usize::try_from(len).unwrap(), message.len() - PREFIX_LEN);
                let inflated = inflate_uncounted(encoding, &message[5..], whole.len()).unwrap();
                assert_eq!(inflated.payload(), whole, "{encoding:?}");
            }
        }
        assert!(compress(Encoding::Snappy, 1, [].into_iter(), 0).is_err(), "it is only read");
    }
}
