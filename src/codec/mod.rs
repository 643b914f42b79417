//! Compression: the names of encodings on the wire, compressing, and inflating within bounds.
//!
//! Contexts of zlib and zstd are kept per thread, because setting one up costs more than a small message.

mod compress;
mod inflate;
mod output;

pub use self::{
    compress::compress,
    inflate::{InflateError, expected_len, inflate, inflate_uncounted},
};
use crate::settings::Compression;

/// The largest window of zstd data that is accepted, as a power of two: 8 MiB, which RFC 8878 (3.1.1.1.2) asks decoders to
/// support and no usual compression level exceeds. The decoder of a thread keeps no more memory than this.
const ZSTD_WINDOW_LOG: u32 = 23;

/// How a message is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Deflate data in zlib's format or in none, which HTTP clients send. It is only read.
    Deflate,
    /// gzip (RFC 1952).
    Gzip,
    /// snappy, in its framing format, which Collectors send, or in its block format. It is only read.
    Snappy,
    /// Zstandard (RFC 8878).
    Zstd,
}

impl Encoding {
    /// Its name in `grpc-encoding` and `content-encoding`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deflate => "deflate",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Zstd => "zstd",
        }
    }

    /// The encoding of that name in HTTP's `content-encoding`, in lower case.
    pub fn from_content_encoding(name: &[u8]) -> Option<Self> {
        match name {
            b"deflate" | b"zlib" => Some(Self::Deflate),
            b"gzip" | b"x-gzip" => Some(Self::Gzip),
            b"snappy" | b"x-snappy-framed" => Some(Self::Snappy),
            b"zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The encoding of that name in `grpc-encoding`.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        [Self::Gzip, Self::Snappy, Self::Zstd].into_iter().find(|encoding| encoding.as_str().as_bytes() == name)
    }
}

impl Compression {
    /// The encoding of messages that are compressed in this way.
    pub fn encoding(self) -> Option<Encoding> {
        match self {
            Self::None => None,
            Self::Gzip => Some(Encoding::Gzip),
            Self::Zstd => Some(Encoding::Zstd),
        }
    }
}
