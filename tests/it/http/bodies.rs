//! Compressed bodies.

use std::io::Write as _;

use flate2::{
    Compress, Compression, FlushCompress,
    write::{DeflateEncoder, GzEncoder, ZlibEncoder},
};

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("a Vec takes all");
    encoder.finish().expect("a Vec takes all")
}

/// Deflate data in zlib's format, which HTTP calls `deflate`.
pub(crate) fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("a Vec takes all");
    encoder.finish().expect("a Vec takes all")
}

/// Deflate data without a format around it.
pub(crate) fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("a Vec takes all");
    encoder.finish().expect("a Vec takes all")
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).expect("it is compressed")
}

/// Ten MiB of gzip, in one member, that inflate to ten GiB of zeros. The checksum is wrong, which nobody gets to see.
pub(crate) fn gzip_of_10_gib() -> Vec<u8> {
    const MIB: usize = 1 << 20;
    let mut encoder = Compress::new(Compression::best(), false);
    let mut mib = Vec::with_capacity(MIB);
    // It ends at a whole byte and refers to nothing before it, so it can follow itself.
    encoder.compress_vec(&vec![0; MIB], &mut mib, FlushCompress::Full).expect("it is compressed");
    let bomb = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff][..], &mib.repeat(10 << 10), &[3, 0], &[0; 8]].concat();
    assert!((8 * MIB..16 * MIB).contains(&bomb.len()), "{} bytes", bomb.len());
    bomb
}

/// snappy's framing format.
pub(crate) fn snappy_framed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = snap::write::FrameEncoder::new(Vec::new());
    encoder.write_all(bytes).expect("a Vec takes all");
    encoder.into_inner().expect("a Vec takes all")
}

/// snappy's block format.
pub(crate) fn snappy_block(bytes: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(bytes).expect("it is compressed")
}
