//! The compression of answers: what a client accepts, and when it is used.
//!
//! Nearly all answers are empty or `{}`, and the longest, errors and partial successes, have some 300 bytes. Collectors
//! compress none. So an answer is compressed only if that makes it shorter, or if the client takes no other.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::{Compression, write::ZlibEncoder};
use http::{
    HeaderMap, HeaderValue, Response,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING},
};

use crate::{
    codec::{Encoding, compress},
    otlp::framed::PREFIX_LEN,
};

/// Shorter answers are sent as they are: the header and the trailer of gzip alone have 18 bytes (RFC 1952, 2.2), and
/// `content-encoding: gzip` as many again.
const SHORTEST: usize = 128;

/// The fastest level, since answers are short.
const LEVEL: u32 = 1;

/// The encodings of answers. Of those that a client likes equally, it gets the first.
const ENCODINGS: [Encoding; 3] = [Encoding::Gzip, Encoding::Zstd, Encoding::Deflate];

/// What a client accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Accepted {
    /// The encoding that it likes best.
    pub(super) encoding: Option<Encoding>,
    /// Whether it takes no answer without one.
    pub(super) is_needed: bool,
}

/// The weights that a client gives (RFC 9110, 12.4.2); `None` for a name that it leaves out.
#[derive(Default)]
struct Weights {
    /// In the order of [`ENCODINGS`].
    encodings: [Option<f32>; ENCODINGS.len()],
    identity: Option<f32>,
    /// That of all other names.
    others: Option<f32>,
}

// === impl Accepted ===

impl Accepted {
    /// Reads `accept-encoding` (RFC 9110, 12.5.3). Without that header, a client gets what every client takes.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(ACCEPT_ENCODING).iter().peekable();
        if values.peek().is_none() {
            return Self::default();
        }
        let mut weights = Weights::default();
        values.for_each(|value| weights.note(value.as_bytes()));
        weights.best()
    }

    /// Compresses an answer, if the client accepts that and it is of use.
    pub(super) fn compress(self, answer: Response<Bytes>) -> Response<Bytes> {
        let body = answer.body();
        let Some(encoding) = self.encoding.filter(|_| !body.is_empty() && (self.is_needed || body.len() >= SHORTEST))
        else {
            return answer;
        };
        match compressed(encoding, body) {
            Ok(shorter) if self.is_needed || shorter.len() < body.len() => {
                let (mut head, _plain) = answer.into_parts();
                head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding.as_str()));
                Response::from_parts(head, shorter)
            }
            // It was not compressed, or not shorter by that.
            _ => answer,
        }
    }
}

fn compressed(encoding: Encoding, body: &[u8]) -> io::Result<Bytes> {
    if encoding == Encoding::Deflate {
        // HTTP calls zlib's format deflate (RFC 9110, 8.4.1.2).
        let mut encoder = ZlibEncoder::new(Vec::with_capacity(body.len()), Compression::new(LEVEL));
        encoder.write_all(body)?;
        return encoder.finish().map(Bytes::from);
    }
    // What is before the body is gRPC's.
    Ok(compress(encoding, LEVEL, [body].into_iter(), body.len())?.slice(PREFIX_LEN..))
}

// === impl Weights ===

impl Weights {
    fn note(&mut self, value: &[u8]) {
        for item in value.split(|byte| *byte == b',') {
            let mut parts = item.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let name = parts.next().unwrap_or_default();
            let weight = Some(parts.next().map_or(1.0, weight));
            let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
            if is("*") {
                self.others = weight;
            } else if is("identity") {
                self.identity = weight;
            } else if let Some(at) = ENCODINGS.iter().position(|known| is(known.as_str()))
                && let Some(found) = self.encodings.get_mut(at)
            {
                *found = weight;
            }
        }
    }

    fn best(&self) -> Accepted {
        let mut best: Option<(Encoding, f32)> = None;
        for (encoding, weight) in ENCODINGS.into_iter().zip(self.encodings) {
            let weight = weight.or(self.others).unwrap_or_default();
            if weight > best.map_or(0.0, |(_, best)| best) {
                best = Some((encoding, weight));
            }
        }
        // One that it likes less than a plain answer is of no use.
        let best = best.filter(|(_, weight)| self.identity.is_none_or(|identity| identity <= *weight));
        let is_needed = self.identity.or(self.others) == Some(0.0);
        Accepted { encoding: best.map(|(encoding, _)| encoding), is_needed }
    }
}

/// Reads `q=0.5`. A weight that is none counts as 0: a plain answer is never wrong.
fn weight(text: &[u8]) -> f32 {
    let [b'q' | b'Q', b'=', number @ ..] = text else { return 1.0 };
    let number = str::from_utf8(number).ok().and_then(|number| number.parse().ok());
    number.filter(|number| (0.0..=1.0).contains(number)).unwrap_or_default()
}
