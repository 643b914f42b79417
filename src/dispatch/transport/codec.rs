//! Compression of calls and decompression of replies. Contexts are kept per thread: setting one up costs more than a call.

use std::{
    cell::RefCell,
    io::{self, Read},
};

use bytes::Bytes;
use flate2::{Compress, FlushCompress, Status};
use zstd::stream::raw::{Encoder, InBuffer, Operation, OutBuffer};

use super::reply::MAX_REPLY;
use crate::{otlp::framed::PREFIX_LEN, settings::Compression};

/// Room beyond zlib's worst growth (5 bytes for each 16 KiB block) for headers and trailers.
const GZIP_SLACK: usize = 64;

/// Largest window of a zstd reply, as a power of two: 8 MiB, what every decoder has to support (RFC 8878, 3.1.1.1.2).
const ZSTD_WINDOW_LOG: u32 = 23;

thread_local! {
    static GZIP: RefCell<Option<(u32, Compress)>> = const { RefCell::new(None) };
    static ZSTD: RefCell<Option<(i32, Encoder<'static>)>> = const { RefCell::new(None) };
}

/// Compresses payloads as one message behind a prefix that says so. `len` is their sum.
pub(super) fn compress<'a>(
    compression: Compression,
    level: u32,
    payloads: impl Iterator<Item = &'a [u8]>,
    len: usize,
) -> io::Result<Bytes> {
    let mut out = Vec::with_capacity(PREFIX_LEN + len / 4 + GZIP_SLACK);
    out.extend_from_slice(&[0; PREFIX_LEN]);
    match compression {
        Compression::Gzip => GZIP.with_borrow_mut(|kept| gzip(kept, level, payloads, &mut out))?,
        Compression::None => payloads.for_each(|payload| out.extend_from_slice(payload)),
        Compression::Zstd => {
            ZSTD.with_borrow_mut(|kept| zstd(kept, i32::try_from(level).unwrap_or(i32::MAX), payloads, len, &mut out))?
        }
    }
    let compressed = u32::try_from(out.len() - PREFIX_LEN).map_err(|_| io::ErrorKind::InvalidInput)?;
    let [a, b, c, d] = compressed.to_be_bytes();
    if let Some(prefix) = out.get_mut(..PREFIX_LEN) {
        prefix.copy_from_slice(&[u8::from(compression != Compression::None), a, b, c, d]);
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

/// Inflates a reply of the codec that its header named, up to [`MAX_REPLY`].
pub(super) fn inflate(encoding: &[u8], data: &[u8]) -> io::Result<Vec<u8>> {
    match encoding {
        b"gzip" => read_bounded(flate2::bufread::GzDecoder::new(data)),
        b"zstd" => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(data)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            read_bounded(decoder)
        }
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

fn read_bounded(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    let limit = u64::try_from(MAX_REPLY).unwrap_or(u64::MAX);
    reader.take(limit + 1).read_to_end(&mut out)?;
    if out.len() > MAX_REPLY { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(out) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_inflates_to_the_same() {
        let noise: Vec<u8> = (0..100_000).map(|_| fastrand::u8(..)).collect();
        let bodies: [&[&[u8]]; 4] = [&[b"one ", b"two"], &[b""], &[&noise, b"tail"], &[&[7; 1 << 20]]];
        for (compression, level, encoding) in [(Compression::Gzip, 6, "gzip"), (Compression::Zstd, 1, "zstd")] {
            for parts in bodies {
                let whole = parts.concat();
                let message = compress(compression, level, parts.iter().copied(), whole.len()).unwrap();
                assert_eq!(message[0], 1, "the flag must be set");
                let len = u32::from_be_bytes(message[1..5].try_into().unwrap());
                assert_eq!(usize::try_from(len).unwrap(), message.len() - PREFIX_LEN);
                assert_eq!(inflate(encoding.as_bytes(), &message[5..]).unwrap(), whole, "{encoding}");
            }
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let bomb = vec![0; MAX_REPLY + 1];
        for (compression, encoding) in [(Compression::Gzip, "gzip"), (Compression::Zstd, "zstd")] {
            let message = compress(compression, 9, [bomb.as_slice()].into_iter(), bomb.len()).unwrap();
            assert!(inflate(encoding.as_bytes(), &message[5..]).is_err(), "{encoding}");
        }
    }
}
