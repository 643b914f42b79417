//! Compression: the names of encodings on the wire, compressing, and inflating within bounds.
//!
//! Contexts of the libraries are kept per thread, because setting one up costs more than a small message.

mod compress;
mod inflate;
mod output;

use bytes::Bytes;

pub use self::{
    compress::compress,
    inflate::{InflateError, Inflated, expected_len, inflate, inflate_uncounted},
};
use crate::{budget::Permit, settings::Compression};

/// The largest window of zstd data that is accepted, as a power of two: 8 MiB, which RFC 8878 (3.1.1.1.2) asks decoders to
/// support and no usual compression level exceeds. The decoder of a thread keeps no more memory than this.
const ZSTD_WINDOW_LOG: u32 = 23;

/// A message as its sender compressed it, in one member of gzip or one frame of zstd, with gRPC's prefix before it.
#[derive(Clone, Debug)]
pub struct Original {
    /// The prefix and the message.
    pub bytes: Bytes,
    /// The share of the request's permit that covers it, in bytes.
    pub held: usize,
}

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

impl Original {
    /// Frees the message, and its share of the permit.
    pub fn release(self, permit: &mut Permit) {
        permit.shrink_to(permit.bytes().saturating_sub(self.held));
    }
}

impl Compression {
    /// The encoding of all messages that are compressed in this way, if they have the same one.
    pub fn encoding(self) -> Option<Encoding> {
        match self {
            Self::AsReceived | Self::None => None,
            Self::Gzip => Some(Encoding::Gzip),
            Self::Zstd => Some(Encoding::Zstd),
        }
    }

    /// The encoding in which a message goes to a backend that came in the encoding `received`. Encodings that are only
    /// read become gzip, which every OTLP server reads.
    pub fn encoding_for(self, received: Option<Encoding>) -> Option<Encoding> {
        match (self, received) {
            (Self::AsReceived, Some(Encoding::Deflate | Encoding::Gzip | Encoding::Snappy)) => Some(Encoding::Gzip),
            (Self::AsReceived, Some(Encoding::Zstd)) => Some(Encoding::Zstd),
            (Self::AsReceived, None) => None,
            (Self::Gzip | Self::None | Self::Zstd, _) => self.encoding(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_has_one_encoding_or_that_of_each_message() {
        use Encoding::{Deflate, Gzip, Snappy, Zstd};
        for received in [None, Some(Deflate), Some(Gzip), Some(Snappy), Some(Zstd)] {
            assert_eq!(Compression::None.encoding_for(received), None);
            assert_eq!(Compression::Gzip.encoding_for(received), Some(Gzip));
            assert_eq!(Compression::Zstd.encoding_for(received), Some(Zstd));
            let expected = received.map(|received| if received == Zstd { Zstd } else { Gzip });
            assert_eq!(Compression::AsReceived.encoding_for(received), expected);
        }
    }
}
