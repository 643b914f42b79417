//! Tests of inflating: round trips, limits, broken data.

use std::io::Write;

use super::*;

const MIB: usize = 1 << 20;

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 1).unwrap()
}

fn snappy(data: &[u8]) -> Vec<u8> {
    let mut encoder = snap::write::FrameEncoder::new(Vec::new());
    encoder.write_all(data).unwrap();
    encoder.into_inner().unwrap()
}

fn text(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * i / 7) % 64).unwrap()).collect()
}

fn run(encoding: Encoding, input: &[u8], limit: usize, budget: usize) -> Result<Vec<u8>, InflateError> {
    let budget = Budget::new(budget);
    let mut permit = budget.take(input.len()).expect("the budget must hold the input");
    let Inflated { message: framed, held, .. } = inflate(encoding, input, limit, &mut permit)?;
    assert!(budget.used() >= input.len() + framed.payload_len(), "both must be in the budget while both live");
    permit.shrink_to(held);
    assert_eq!(budget.used(), held);
    assert!(held >= framed.framed_len());
    Ok(framed.payload().to_vec())
}

#[test]
fn what_was_deflated_comes_back() {
    for len in [0, 1, 100, 4096, LONG, 5 * MIB + 3] {
        let data = text(len);
        assert_eq!(run(Encoding::Gzip, &gzip(&data), len, 64 * MIB), Ok(data.clone()), "gzip of {len}");
        assert_eq!(run(Encoding::Zstd, &zstd(&data), len, 64 * MIB), Ok(data.clone()), "zstd of {len}");
        assert_eq!(run(Encoding::Snappy, &snappy(&data), len, 64 * MIB), Ok(data.clone()), "snappy of {len}");
    }
}

#[test]
fn one_byte_above_the_limit_is_too_large() {
    let data = text(10_000);
    let inputs = [(Encoding::Gzip, gzip(&data)), (Encoding::Zstd, zstd(&data)), (Encoding::Snappy, snappy(&data))];
    for (encoding, input) in inputs {
        assert_eq!(run(encoding, &input, 9_999, MIB), Err(InflateError::TooLarge), "{encoding:?}");
    }
}

/// Zstd data that states its size. A client that compresses while it writes does not know it, as in [`zstd`].
fn zstd_stated(data: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(data, 1).unwrap()
}

fn random(len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    std::iter::repeat_with(|| random.u8(b'0'..=b'9')).take(len).collect()
}

#[test]
fn a_bomb_never_holds_more_than_the_limit() {
    let zeros = vec![0; 64 * MIB];
    let bombs = [(Encoding::Gzip, gzip(&zeros)), (Encoding::Zstd, zstd(&zeros)), (Encoding::Snappy, snappy(&zeros))];
    for (encoding, bomb) in bombs {
        // Snappy inflates to about twenty times its size at most.
        assert!(bomb.len() < 4 * MIB, "{encoding:?}");
        assert_eq!(run(encoding, &bomb, 4 * MIB, 512 * MIB), Err(InflateError::TooLarge), "{encoding:?}");
        // The budget is used up before the limit is reached.
        let budget = bomb.len() + 2 * MIB;
        let refused = run(encoding, &bomb, 64 * MIB, budget);
        let Err(InflateError::NoRoom(needs)) = refused else { panic!("{encoding:?} {refused:?}") };
        assert!(needs > budget && needs <= bomb.len() + 65 * MIB, "{encoding:?}: {needs}");
    }
}

#[test]
fn a_size_that_is_stated_decides_before_anything_is_inflated() {
    let data = random(3 * MIB);
    for (encoding, mut input) in [(Encoding::Gzip, gzip(&data)), (Encoding::Zstd, zstd_stated(&data))] {
        let needs = |budget: usize| match run(encoding, &input, 64 * MIB, budget) {
            Err(InflateError::NoRoom(needs)) => needs,
            other => panic!("{encoding:?} {other:?}"),
        };
        let all = input.len() + data.len() + 6;
        assert_eq!([needs(input.len()), needs(all - 1)], [all; 2], "{encoding:?}");
        assert_eq!(run(encoding, &input, 64 * MIB, all), Ok(data.clone()), "{encoding:?}");
        // Broken right behind the headers, which is not found any more.
        input[30..60].fill(0xff);
        let refused = run(encoding, &input, data.len() - 1, 64 * MIB);
        // The size is at the end of gzip data, where truncated data has any other bytes.
        let expected = match encoding {
            Encoding::Gzip => matches!(refused, Err(InflateError::Corrupt(_))),
            _ => refused == Err(InflateError::TooLarge),
        };
        assert!(expected, "{encoding:?}: {refused:?}");
    }
}

#[test]
fn a_message_of_unstated_size_grows_without_counting_twice() {
    let data = random(9 * MIB);
    for (encoding, input) in [(Encoding::Zstd, zstd(&data)), (Encoding::Snappy, snappy(&data))] {
        let budget = input.len() + data.len() + (256 << 10);
        assert_eq!(run(encoding, &input, 64 * MIB, budget), Ok(data.clone()), "{encoding:?}");
    }
}

#[test]
fn more_than_a_thousand_times_the_size_is_refused_from_8_mib_on() {
    let zeros = vec![0; 9 * MIB];
    for (input, what) in [(zstd_stated(&zeros), "stated"), (zstd(&zeros), "unstated")] {
        assert!(input.len() * 1_000 < 8 * MIB);
        assert_eq!(run(Encoding::Zstd, &input, 64 * MIB, 64 * MIB), Err(InflateError::Ratio), "{what}");
        let short = &zeros[..8 * MIB - 10];
        assert_eq!(run(Encoding::Zstd, &zstd(short), 64 * MIB, 64 * MIB), Ok(short.to_vec()), "{what}");
    }
    assert!(run(Encoding::Snappy, &snappy(&zeros), 64 * MIB, 64 * MIB).is_ok(), "a twentieth is much");
}

#[test]
fn truncated_gzip_data_is_not_called_too_large() {
    let data = random(600_000);
    let good = gzip(&data);
    let mut called = [0; 2];
    for len in (good.len() - 3_000..good.len()).step_by(7) {
        let cut = &good[..len];
        called[usize::from(gzip_size(cut).is_some_and(|size| size > MIB))] += 1;
        let refused = run(Encoding::Gzip, cut, MIB, 64 * MIB);
        assert!(matches!(refused, Err(InflateError::Corrupt(_))), "{len}: {:?}", refused.map(|data| data.len()));
    }
    assert!(called.iter().all(|count| *count > 10), "both kinds of ends must occur: {called:?}");
    // What is whole and too large is called that, and holds no more than a piece meanwhile.
    let budget = good.len() + (64 << 10);
    assert_eq!(run(Encoding::Gzip, &good, 599_999, budget), Err(InflateError::TooLarge));
    assert_eq!(run(Encoding::Gzip, &good, 600_000, 64 * MIB), Ok(data));
}

#[test]
fn a_trailer_of_gzip_that_lies_is_found_out() {
    let data = text(100_000);
    for stated in [0_u32, 1, 99_999, 100_001, 1_000_000, u32::MAX] {
        let mut input = gzip(&data);
        let at = input.len() - 4;
        input[at..].copy_from_slice(&stated.to_le_bytes());
        let result = run(Encoding::Gzip, &input, MIB, 64 * MIB);
        assert!(matches!(result, Err(InflateError::Corrupt(_))), "{stated}: {:?}", result.map(|data| data.len()));
    }
}

#[test]
fn the_expected_length_is_the_one_that_is_stated_or_a_guess() {
    let data = random(100_000);
    assert_eq!(expected_len(Encoding::Gzip, &gzip(&data)), 100_000);
    assert_eq!(expected_len(Encoding::Zstd, &zstd_stated(&data)), 100_000);
    let unstated = zstd(&random(MIB));
    assert_eq!(expected_len(Encoding::Zstd, &unstated), 4 * unstated.len());
    assert_eq!(expected_len(Encoding::Snappy, &[0; 100]), 400);
    assert_eq!(expected_len(Encoding::Gzip, &[0xff; 100]), 400, "no data of 100 bytes inflates to 4 GiB");
    assert_eq!(expected_len(Encoding::Gzip, b"x"), 4);
}

#[test]
fn several_members_are_one_message_and_garbage_after_them_is_not() {
    let two = [gzip(b"one, "), gzip(b"two")].concat();
    assert_eq!(run(Encoding::Gzip, &two, 100, MIB), Ok(b"one, two".to_vec()));
    let two = [zstd(b"one, "), zstd(b"two")].concat();
    assert_eq!(run(Encoding::Zstd, &two, 100, MIB), Ok(b"one, two".to_vec()));
    for (encoding, good) in [(Encoding::Gzip, gzip(b"good")), (Encoding::Zstd, zstd(b"good"))] {
        for garbage in [&b"\0"[..], b"garbage, and more of it", &good[..good.len() - 1]] {
            let input = [&good[..], garbage].concat();
            let result = run(encoding, &input, 1 << 30, 4 << 30);
            assert!(matches!(result, Err(InflateError::Corrupt(_))), "{encoding:?} {garbage:?}");
        }
    }
    let many: Vec<u8> = std::iter::repeat_n(gzip(b""), GZIP_MEMBERS + 1).flatten().collect();
    assert!(matches!(run(Encoding::Gzip, &many, 100, MIB), Err(InflateError::Corrupt(_))));
}

#[test]
fn one_member_or_frame_is_told_from_several() {
    let is_one = |encoding, input: &[u8]| {
        inflate(encoding, input, MIB, &mut Budget::new(64 * MIB).permit()).map(|inflated| inflated.is_one)
    };
    let (text, empty) = (text(100_000), Vec::new());
    for pack in [zstd, zstd_stated] {
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &pack(&text)].concat();
        assert_eq!(is_one(Encoding::Zstd, &skipped), Ok(false), "a skippable frame is one of two");
        assert_eq!(is_one(Encoding::Zstd, &pack(&text)), Ok(true));
        assert_eq!(is_one(Encoding::Zstd, &[pack(&text), pack(&text)].concat()), Ok(false));
        assert_eq!(is_one(Encoding::Zstd, &[pack(&text), pack(&empty)].concat()), Ok(false));
    }
    assert_eq!(is_one(Encoding::Gzip, &gzip(&text)), Ok(true));
    assert_eq!(is_one(Encoding::Gzip, &gzip(&empty)), Ok(true));
    // Readers differ in what they take of a name.
    let mut named = gzip(&text);
    named[3] = 1 << 3;
    named.splice(10..10, *b"spans\0");
    assert_eq!(is_one(Encoding::Gzip, &named), Ok(false));
    for second in [&text, &empty, &text[..5].to_vec()] {
        assert_eq!(is_one(Encoding::Gzip, &[gzip(&text), gzip(second)].concat()), Ok(false));
    }
}

#[test]
fn every_truncation_and_every_broken_byte_is_an_error_or_the_same_data() {
    let data = text(600);
    for (encoding, good) in [(Encoding::Gzip, gzip(&data)), (Encoding::Zstd, zstd(&data))] {
        for len in 0..good.len() {
            // The end of truncated gzip data may state any size up to the highest ratio.
            let result = run(encoding, &good[..len], MIB, 4 * MIB);
            assert!(matches!(result, Err(InflateError::Corrupt(_))), "{encoding:?} {len}");
        }
        for at in 0..good.len() {
            let mut broken = good.clone();
            broken[at] ^= 0x55;
            if let Ok(inflated) = run(encoding, &broken, 1000, MIB) {
                // Only bytes that do not affect the data may change: a time stamp, an operating system.
                assert!(inflated == data || encoding == Encoding::Zstd, "{encoding:?} at {at}");
            }
        }
    }
    assert_eq!(run(Encoding::Gzip, &gzip(&data), 1000, MIB), Ok(data), "a decoder must survive broken input");
}

#[test]
fn a_block_of_snappy_is_read_too_and_takes_no_more_than_it_can_hold() {
    for len in [0, 1, 100, 70_000, 3 * MIB] {
        let data = text(len);
        let block = snap::raw::Encoder::new().compress_vec(&data).unwrap();
        let all = block.len() + len + 6;
        assert_eq!(run(Encoding::Snappy, &block, len, all), Ok(data), "{len}");
        assert_eq!(run(Encoding::Snappy, &block, len, all - 1), Err(InflateError::NoRoom(all)), "{len}");
        if len > 0 {
            assert_eq!(run(Encoding::Snappy, &block, len - 1, all), Err(InflateError::TooLarge), "{len}");
            for cut in [1, block.len() / 2, block.len() - 1] {
                let cut = run(Encoding::Snappy, &block[..cut], len, all);
                assert!(matches!(cut, Err(InflateError::Corrupt(_))), "{len}: {cut:?}");
            }
        }
    }
    // It states 64 MiB, for which its few bytes cannot suffice: nothing is allocated.
    let lie = [&[0x80, 0x80, 0x80, 0x20][..], &[0; 100]].concat();
    assert!(matches!(run(Encoding::Snappy, &lie, 64 * MIB, lie.len()), Err(InflateError::Corrupt(_))));
}

#[test]
fn snappy_is_read_in_chunks_and_whatever_is_broken_in_them_is_found() {
    let data = text(200_000);
    let good = snappy(&data);
    // A stream may have a second stream identifier, padding and skippable chunks.
    let odd = [&good[..], &[0xfe, 3, 0, 0, 1, 2, 3], &[0x80, 0, 0, 0], &good].concat();
    assert_eq!(run(Encoding::Snappy, &odd, MIB, 64 * MIB), Ok([&data[..], &data].concat()));
    assert_eq!(run(Encoding::Snappy, b"", 100, MIB), Ok(Vec::new()), "an empty message");
    for broken in [b"\xff\x06\0\0sNaPpX", &[&good[..], &[0x02, 0, 0, 0]].concat()[..], &[&good[..], b"x"].concat()] {
        assert!(matches!(run(Encoding::Snappy, broken, MIB, 64 * MIB), Err(InflateError::Corrupt(_))));
    }
    let good = snappy(&text(600));
    for len in 1..good.len() {
        let cut = run(Encoding::Snappy, &good[..len], 1000, MIB);
        // A stream that is cut after the first chunk, the stream identifier, is an empty message.
        assert!(matches!(cut, Err(InflateError::Corrupt(_))) || (len == 10 && cut == Ok(Vec::new())), "{len}");
    }
    for at in 0..good.len() {
        let mut broken = good.clone();
        broken[at] ^= 0x55;
        if let Ok(inflated) = run(Encoding::Snappy, &broken, 1000, MIB) {
            assert!(inflated == text(600) || inflated.is_empty(), "a chunk may have become one that is skipped: {at}");
        }
    }
}

#[test]
fn gzip_headers_with_every_field_are_skipped() {
    let plain = gzip(b"named");
    let mut input = plain[..10].to_vec();
    input[3] = 0b1_1110;
    input.extend_from_slice(b"\x03\0abc");
    input.extend_from_slice(b"name\0comment\0\x12\x34");
    input.extend_from_slice(&plain[10..]);
    assert_eq!(run(Encoding::Gzip, &input, 100, MIB), Ok(b"named".to_vec()));
    // Several members are inflated piece by piece, by another decoder.
    let two = [&input[..], &input].concat();
    assert_eq!(run(Encoding::Gzip, &two, 100, MIB), Ok(b"namednamed".to_vec()));
    for reserved in [1 << 5, 1 << 6, 1 << 7] {
        let mut input = plain.clone();
        input[3] = reserved;
        assert_eq!(run(Encoding::Gzip, &input, 100, MIB), Err(InflateError::Corrupt("not a gzip header")));
    }
}

#[test]
fn a_zstd_window_above_the_cap_is_refused() {
    let data = text(10_000);
    let deflate = |window_log| {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.window_log(window_log).unwrap();
        // Written in pieces, so that the frame states its window and not its size.
        for piece in data.chunks(1000) {
            encoder.write_all(piece).unwrap();
            encoder.flush().unwrap();
        }
        encoder.finish().unwrap()
    };
    assert_eq!(run(Encoding::Zstd, &deflate(23), MIB, 64 * MIB), Ok(data.clone()));
    assert!(matches!(run(Encoding::Zstd, &deflate(24), MIB, 64 * MIB), Err(InflateError::Corrupt(_))));
}

/// A zstd frame that states this window and a size of 4 MiB, and has one empty block (RFC 8878, 3.1.1).
fn zstd_with_window(descriptor: u8) -> Vec<u8> {
    let flags = 0b1000_0000;
    [&[0x28, 0xb5, 0x2f, 0xfd, flags, descriptor][..], &(4_u32 << 20).to_le_bytes(), &[1, 0, 0]].concat()
}

#[test]
fn a_huge_zstd_window_is_refused_before_anything_is_allocated_for_it() {
    const MIB_8: u8 = 13 << 3;
    for (descriptor, mib) in [(MIB_8 + 1, 9), (17 << 3, 128), (21 << 3, 2 << 10), (0xff, 3_932_160)] {
        let (input, budget) = (zstd_with_window(descriptor), Budget::new(64 * MIB));
        let (mut permit, mut decoder) = (budget.take(input.len()).unwrap(), new_zstd_decoder());
        let mut output = Output::new(input.len(), 64 * MIB, &mut permit);
        assert_eq!(unzstd(&mut decoder, &input, &mut output), Err(BROKEN_ZSTD), "{mib} MiB");
        assert_eq!(output.open.bytes.capacity(), 0, "{mib} MiB: no room for the message");
        assert_eq!(budget.used(), input.len(), "{mib} MiB: nothing was taken");
        let size = decoder.expect("the decoder stays").sizeof();
        assert!(size < MIB, "{mib} MiB: the decoder has {size} bytes");
        // Behind another frame, it is the decoder that refuses it.
        let behind = [zstd(b"first"), input].concat();
        let mut decoder = new_zstd_decoder();
        let mut permit = budget.take(behind.len()).unwrap();
        let mut output = Output::new(behind.len(), 64 * MIB, &mut permit);
        assert!(unzstd(&mut decoder, &behind, &mut output).is_err(), "{mib} MiB");
        let size = decoder.expect("the decoder stays").sizeof();
        assert!(size < 3 * MIB, "{mib} MiB behind another frame: the decoder has {size} bytes");
    }
    // 8 MiB are accepted: this frame lacks its content.
    let refused = run(Encoding::Zstd, &zstd_with_window(MIB_8), 64 * MIB, 64 * MIB);
    assert!(matches!(refused, Err(InflateError::Corrupt(_)) | Ok(_)), "{refused:?}");
}
