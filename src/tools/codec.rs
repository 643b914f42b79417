//! Compression and decompression of single gRPC messages with gzip and zstd.

use std::io::{self, Read, Write};

/// Compression of messages on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// No compression.
    #[default]
    None,
    /// gzip at level 1.
    Gzip,
    /// Zstandard at level 1.
    Zstd,
}

impl Compression {
    /// Returns the value of `grpc-encoding`, or `None` for no compression.
    pub(crate) fn encoding(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
        }
    }

    /// Returns the codec named by a `grpc-encoding` header, or `None` if it is unknown.
    pub(crate) fn from_encoding(encoding: Option<&[u8]>) -> Option<Self> {
        match encoding {
            None | Some(b"identity") => Some(Self::None),
            Some(b"gzip") => Some(Self::Gzip),
            Some(b"zstd") => Some(Self::Zstd),
            Some(_) => None,
        }
    }

    /// Compresses a message.
    pub(crate) fn compress(self, message: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::None => Ok(message.to_vec()),
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(message)?;
                encoder.finish()
            }
            Self::Zstd => zstd::bulk::compress(message, 1),
        }
    }

    /// Decompresses a message and passes it to `each` in chunks of up to 64 KiB, so that it is never held in memory
    /// whole.
    pub(crate) fn inflate(self, compressed: &[u8], mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut reader: Box<dyn Read + '_> = match self {
            Self::None => return each(compressed),
            Self::Gzip => Box::new(flate2::bufread::GzDecoder::new(compressed)),
            Self::Zstd => Box::new(zstd::Decoder::with_buffer(compressed)?),
        };
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(()),
                n => each(buffer.get(..n).unwrap_or_default())?,
            }
        }
    }
}
