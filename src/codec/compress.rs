//! Compresses messages.
//!
//! Both libraries get a message as a whole, which is faster than piece by piece. So a message in several buffers is
//! copied to one first. The contexts and the buffers for this are kept per thread, since making them costs more than a
//! small message.
//!
//! A message that takes long is compressed off the threads that serve connections. No more of these run at a time than
//! there are processors, and the less the longer they are; any other one is compressed where it is sent.

use std::{cell::RefCell, io, num::NonZeroUsize, sync::OnceLock, thread::available_parallelism};

use bytes::Bytes;
use libdeflater::{CompressionLvl, Compressor};
use zstd::zstd_safe::{self, CCtx, CParameter};

use super::Encoding;
use crate::{
    otlp::framed::{PREFIX_LEN, prefix_of},
    places::off_worker,
    spare::Few,
};

/// The highest level of gzip.
const GZIP_LEVELS: u32 = 9;

thread_local! {
    static PACKER: RefCell<Packer> = RefCell::default();
}

/// The most memory in bytes for the buffers of messages that take long: each needs about twice its length.
const MOST_BUFFERS: usize = 32 << 20;

/// The packers of messages that take long.
static LONG: Few<Packer> = Few::new();

/// The lowest level of zstd whose tables are bounded by [`TABLES`]. Contexts of lower levels have up to 11 MiB (level 9).
const LARGE_LEVEL: u32 = 10;

/// The binary logarithms of zstd's window in bytes, and of the lengths of its two tables, for large levels. A
/// context has 4.5 MiB with these. Each thread keeps one: with zstd's own values a proxy of four threads took 168 MiB at level 15.
const TABLES: [CParameter; 3] = [CParameter::WindowLog(20), CParameter::HashLog(18), CParameter::ChainLog(19)];

/// The same parameters with their defaults, which depend on the level and the message's length.
const DEFAULT_TABLES: [CParameter; 3] = [CParameter::WindowLog(0), CParameter::HashLog(0), CParameter::ChainLog(0)];

/// The number of gzip's levels whose contexts are kept: pools with different levels take turns.
const KEPT_LEVELS: usize = 2;

/// The contexts of both libraries, and buffers.
#[derive(Default)]
struct Packer {
    /// One for each of the levels that were used last, the last one first.
    gzip: Vec<(u32, Compressor)>,
    /// One for all levels, and its level.
    zstd: Option<(u32, CCtx<'static>)>,
    /// The message, if it came in several buffers.
    joined: Vec<u8>,
    /// What the libraries write to. Its bytes beyond the last message are old ones.
    output: Vec<u8>,
}

/// Compresses payloads as one message, with gRPC's prefix before it. `len` is the sum of their lengths.
pub fn compress<'a>(
    encoding: Encoding,
    level: u32,
    payloads: impl Iterator<Item = &'a [u8]>,
    len: usize,
) -> io::Result<Bytes> {
    if len <= most_on_worker(encoding, level) {
        return PACKER.with_borrow_mut(|packer| packer.pack(encoding, level, payloads, len));
    }
    // The thread is handed over only with a turn at hand. If it waited for one, the thread that takes its place would be the
    // next to wait.
    match LONG.turn(turns(len)) {
        Some(turn) => off_worker(|| {
            turn.with(Packer::default, |packer| {
                let packed = packer.pack(encoding, level, payloads, len);
                (packer.joined, packer.output) = (Vec::new(), Vec::new());
                packed
            })
        }),
        None => Packer::default().pack(encoding, level, payloads, len),
    }
}

/// Returns how many messages of this length may be compressed off the threads that serve connections: as many as there are
/// processors, and as their buffers fit in [`MOST_BUFFERS`], but at least one.
fn turns(len: usize) -> NonZeroUsize {
    let fitting = MOST_BUFFERS / len.saturating_mul(2).max(1);
    NonZeroUsize::new(fitting).map_or(NonZeroUsize::MIN, |fitting| fitting.min(processors()))
}

/// Returns the length of the longest message that is compressed where it is sent, on the thread that serves a
/// connection. It takes 1 to 2 ms: with level 1, gzip compresses 390 MB/s of telemetry and zstd 790 on a slow core
/// (`deploy/docs/performance.md`). Most calls are shorter. On another thread they would cost more, because what was just
/// inflated and cut is in the cache of this one. Higher levels take longer.
fn most_on_worker(encoding: Encoding, level: u32) -> usize {
    match (encoding, level) {
        (Encoding::Zstd, 0..=1) => 1 << 20,
        (_, 0..=1) => 512 << 10,
        (Encoding::Zstd, 2) => 256 << 10,
        (_, 2..=5) => 64 << 10,
        (_, 6..=9) => 16 << 10,
        (_, 10..) => 4 << 10,
    }
}

fn processors() -> NonZeroUsize {
    static COUNT: OnceLock<NonZeroUsize> = OnceLock::new();
    *COUNT.get_or_init(|| available_parallelism().unwrap_or(NonZeroUsize::MIN))
}

impl Packer {
    fn pack<'a>(
        &mut self,
        encoding: Encoding,
        level: u32,
        mut payloads: impl Iterator<Item = &'a [u8]>,
        len: usize,
    ) -> io::Result<Bytes> {
        let Self { gzip, zstd, joined, output } = self;
        let first = payloads.next().unwrap_or_default();
        let message = match payloads.next() {
            None => first,
            Some(second) => {
                joined.clear();
                joined.reserve_exact(len);
                [first, second].into_iter().chain(payloads).for_each(|payload| joined.extend_from_slice(payload));
                joined.as_slice()
            }
        };
        let made = match encoding {
            Encoding::Gzip => self::gzip(gzip, level, message, output)?,
            Encoding::Zstd => self::zstd(zstd, level, message, output)?,
            Encoding::Deflate | Encoding::Snappy => return Err(io::ErrorKind::Unsupported.into()),
        };
        framed(output.get(..made).ok_or(io::ErrorKind::InvalidData)?)
    }
}

/// Writes the message to `output`, and returns its compressed length.
fn gzip(kept: &mut Vec<(u32, Compressor)>, level: u32, message: &[u8], output: &mut Vec<u8>) -> io::Result<usize> {
    match kept.iter().position(|(at, _)| *at == level) {
        Some(at) => kept.swap(0, at),
        None => {
            let lvl = i32::try_from(level.min(GZIP_LEVELS)).unwrap_or_default();
            let lvl = CompressionLvl::new(lvl).map_err(|_| io::ErrorKind::InvalidInput)?;
            kept.truncate(KEPT_LEVELS - 1);
            kept.insert(0, (level, Compressor::new(lvl)));
        }
    }
    let (_, compressor) = kept.first_mut().ok_or(io::ErrorKind::InvalidInput)?;
    make_room(output, compressor.gzip_compress_bound(message.len()));
    compressor.gzip_compress(message, output).map_err(io::Error::other)
}

/// Writes the message to `output`, and returns its compressed length.
fn zstd(
    kept: &mut Option<(u32, CCtx<'static>)>,
    level: u32,
    message: &[u8],
    output: &mut Vec<u8>,
) -> io::Result<usize> {
    let error = |code| io::Error::other(zstd_safe::get_error_name(code));
    let (at, context) = match kept {
        Some(kept) => kept,
        none => none.insert((0, CCtx::try_create().ok_or(io::ErrorKind::OutOfMemory)?)),
    };
    if *at != level {
        let lvl = i32::try_from(level).unwrap_or(i32::MAX);
        context.set_parameter(CParameter::CompressionLevel(lvl)).map_err(error)?;
        for parameter in if level < LARGE_LEVEL { DEFAULT_TABLES } else { TABLES } {
            context.set_parameter(parameter).map_err(error)?;
        }
        *at = level;
    }
    make_room(output, zstd_safe::compress_bound(message.len()));
    context.compress2(output.as_mut_slice(), message).map_err(error)
}

/// Makes the buffer at least this long.
fn make_room(output: &mut Vec<u8>, len: usize) {
    if output.len() < len {
        // Without the old bytes, none are copied to a new place.
        output.clear();
        output.reserve_exact(len);
        output.resize(len, 0);
    }
}

/// Copies a compressed message to a buffer of its size, with gRPC's prefix before it.
fn framed(message: &[u8]) -> io::Result<Bytes> {
    let [_, len @ ..] = prefix_of(u32::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?);
    let mut framed = Vec::with_capacity(PREFIX_LEN + message.len());
    framed.push(1);
    framed.extend_from_slice(&len);
    framed.extend_from_slice(message);
    Ok(framed.into())
}

#[cfg(test)]
mod tests {
    use std::{io::Read, sync::mpsc, time::Duration};

    use super::{super::inflate_uncounted, *};
    use crate::lifecycle::Tasks;

    /// Inflates with other libraries than those that compressed: zlib-rs, and zstd's streams.
    fn oracle(encoding: Encoding, packed: &[u8]) -> Vec<u8> {
        let mut inflated = Vec::new();
        if encoding == Encoding::Gzip {
            flate2::bufread::MultiGzDecoder::new(packed).read_to_end(&mut inflated).unwrap();
        } else {
            zstd::stream::read::Decoder::new(packed).unwrap().read_to_end(&mut inflated).unwrap();
        }
        inflated
    }

    #[test]
    fn what_is_compressed_inflates_to_the_same() {
        let noise: Vec<u8> = (0..100_000).map(|_| fastrand::u8(..)).collect();
        let bodies: [&[&[u8]]; 6] =
            [&[b"one ", b"two"], &[b""], &[], &[&noise, b"tail"], &[&[7; 1 << 20]], &[&[8; 70_000], &noise, &noise]];
        let levels = (1..=9).map(|level| (Encoding::Gzip, level));
        for (encoding, level) in levels.chain([1, 2, 3, 6, 10, 22].map(|level| (Encoding::Zstd, level))) {
            for parts in bodies {
                let whole = parts.concat();
                let message = compress(encoding, level, parts.iter().copied(), whole.len()).unwrap();
                assert_eq!(message[0], 1, "the flag must be set");
                let len = u32::from_be_bytes(message[1..5].try_into().unwrap());
                assert_eq!(usize::try_from(len).unwrap(), message.len() - PREFIX_LEN);
                assert!(oracle(encoding, &message[5..]) == whole, "{encoding:?} {level}");
                let inflated = inflate_uncounted(encoding, &message[5..], whole.len()).unwrap();
                assert!(inflated.payload() == whole, "{encoding:?} {level}");
            }
        }
        assert!(compress(Encoding::Snappy, 1, [].into_iter(), 0).is_err(), "it is only read");
        assert!(compress(Encoding::Deflate, 1, [].into_iter(), 0).is_err(), "it is only read");
    }

    #[test]
    fn contexts_of_all_levels_are_small() {
        // Words of a small set in random order, so that each level has something to search for.
        let mut random = fastrand::Rng::with_seed(7);
        let message: Vec<u8> = (0..1 << 19).flat_map(|_| (random.u64(..5_000) * 0x9e37_79b9).to_le_bytes()).collect();
        for level in [1, 9, 10, 15, 19, 22, 3] {
            let (mut kept, mut output) = (None, Vec::new());
            let made = zstd(&mut kept, level, &message[..1 << 20], &mut output).unwrap();
            let packed = &output[..made];
            assert_eq!(zstd_safe::get_frame_content_size(packed).unwrap(), Some(1 << 20));
            let made = zstd(&mut kept, level, &message, &mut output).unwrap();
            let mut plain = vec![0; message.len()];
            assert_eq!(zstd_safe::decompress(plain.as_mut_slice(), &output[..made]).unwrap(), message.len());
            assert!(plain == message, "level {level}");
            let held = kept.map(|(_, context)| context.sizeof()).unwrap();
            assert!(held <= 12 << 20, "level {level}: {held} bytes");
        }
    }

    #[test]
    fn a_thread_keeps_a_few_contexts_and_no_buffers_of_long_messages() {
        let (short, long) = (vec![7; 1_000], vec![7; 1 << 20]);
        for level in [3, 6, 1, 6] {
            compress(Encoding::Gzip, level, [short.as_slice()].into_iter(), short.len()).unwrap();
            compress(Encoding::Zstd, level, [&short[..500], &short[500..]].into_iter(), short.len()).unwrap();
            compress(Encoding::Gzip, level, [&long[..], &long].into_iter(), 2 * long.len()).unwrap();
        }
        PACKER.with_borrow(|packer| {
            assert_eq!(packer.gzip.iter().map(|(level, _)| *level).collect::<Vec<_>>(), [6, 1]);
            assert_eq!(packer.zstd.as_ref().map(|(level, _)| *level), Some(6));
            assert!(packer.output.capacity() < 1 << 20 && packer.joined.capacity() < 1 << 20);
        });
        // Other tests of this process may have all turns for a moment.
        let turn = std::iter::repeat_with(|| LONG.turn(processors())).flatten().next();
        turn.expect("there is one in the end").with(Packer::default, |packer| {
            assert_eq!(packer.output.capacity() + packer.joined.capacity(), 0);
        });
    }

    #[test]
    fn while_a_long_message_is_compressed_other_tasks_of_its_thread_go_on() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let tasks = Tasks::new();
        let other_runs = |len: usize| {
            let (send, receive) = mpsc::channel();
            let spawner = tasks.clone();
            let working = async move {
                drop(spawner.spawn(async move { send.send(()).ok() }));
                let message = vec![7; len];
                // The message is asked for while it is compressed, and waits for the other task.
                let mut went_on = false;
                let payloads = std::iter::once_with(|| {
                    went_on = receive.recv_timeout(Duration::from_millis(500)).is_ok();
                    message.as_slice()
                });
                compress(Encoding::Gzip, 1, payloads, len).unwrap();
                went_on
            };
            runtime.block_on(async { tasks.spawn(working).await }).unwrap()
        };
        let most = most_on_worker(Encoding::Gzip, 1);
        // Other tests of this process may have all turns for a moment.
        assert!((0..20).any(|_| other_runs(most + 1)), "the other task has the same worker");
        assert!(!other_runs(most), "a short message is compressed where it is");
    }

    #[test]
    fn the_higher_the_level_the_less_is_compressed_on_a_worker() {
        for (encoding, levels) in [(Encoding::Gzip, 1..9), (Encoding::Zstd, 1..22)] {
            for level in levels {
                assert!(most_on_worker(encoding, level) >= most_on_worker(encoding, level + 1));
            }
        }
    }
}
