//! gzip and zstd for one gRPC message at a time.

use std::io::{self, Read, Write};

/// How messages are compressed on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// gzip, level 1.
    Gzip,
    /// Zstandard, level 1.
    Zstd,
}

impl Compression {
    /// The value of `grpc-encoding`; `None` for identity.
    pub(crate) fn encoding(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
        }
    }

    /// The codec that a `grpc-encoding` header names.
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

    /// Inflates a message piece by piece, so that nobody holds it whole.
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
