//! Tests of reading messages from frames.

use super::*;
use crate::budget::Budget;

fn message(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Reads a message that comes in frames of `piece` bytes. Each comes by itself, or `at_once` all together.
fn read_frames(bytes: &[u8], piece: usize, limit: usize, at_once: bool) -> Result<Vec<u8>, BodyError> {
    let budget = Budget::new(1 << 30);
    let mut reader = Reader::new(limit, budget.permit());
    for piece in bytes.chunks(piece.max(1)) {
        reader.push(Bytes::copy_from_slice(piece))?;
        if !at_once {
            reader.pause()?;
        }
    }
    let received = reader.finish()?;
    assert_eq!(budget.used(), received.permit.bytes());
    let bytes = received.chunks.concat();
    assert!(received.permit.bytes() >= bytes.len(), "the permit must cover the bytes");
    assert!(received.permit.bytes() <= 2 * bytes.len(), "{} for {}", received.permit.bytes(), bytes.len());
    assert!(received.chunks.iter().all(|chunk| !chunk.is_empty()));
    assert!(received.chunks.len() <= 12 + bytes.len() / KEEP_FROM, "{} buffers", received.chunks.len());
    Ok(bytes)
}

fn read_in_pieces(bytes: &[u8], piece: usize, limit: usize) -> Result<Vec<u8>, BodyError> {
    let read = read_frames(bytes, piece, limit, true);
    assert_eq!(read_frames(bytes, piece, limit, false), read);
    read
}

#[test]
fn a_message_is_the_same_however_it_is_cut() {
    for len in [0, 1, 4, 5, 6, 100, LEAST - 5, LEAST, COPY_BELOW, KEEP_FROM, MOST - 5, MOST, 3 * MOST + 17] {
        let payload: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let bytes = message(&payload);
        for piece in [1, 2, 3, 4, 5, 6, 7, 1000, 16_384, KEEP_FROM, 50_000, bytes.len()] {
            if bytes.len() / piece < 200_000 {
                assert_eq!(read_in_pieces(&bytes, piece, usize::MAX), Ok(bytes.clone()), "{len} in {piece}s");
            }
        }
    }
}

#[test]
fn a_large_message_in_one_frame_is_not_copied() {
    let bytes = Bytes::from(message(&vec![7; COPY_BELOW]));
    let mut reader = Reader::new(usize::MAX, Budget::new(1 << 20).permit());
    reader.push(bytes.clone()).unwrap();
    assert_eq!(reader.finish().unwrap().chunks[0].as_ptr(), bytes.as_ptr());
}

#[test]
fn a_small_message_in_one_frame_does_not_keep_the_read_buffer() {
    let bytes = Bytes::from(message(b"small"));
    let mut reader = Reader::new(usize::MAX, Budget::new(1 << 20).permit());
    reader.push(bytes.clone()).unwrap();
    assert_ne!(reader.finish().unwrap().chunks[0].as_ptr(), bytes.as_ptr());
}

#[test]
fn an_announced_size_above_the_limit_is_refused_at_once() {
    let mut reader = Reader::new(1000, Budget::new(1 << 20).permit());
    assert_eq!(reader.push(Bytes::from_static(&[0, 0, 0, 0x03, 0xe9])), Err(BodyError::TooLarge));
    let mut reader = Reader::new(1000, Budget::new(1 << 20).permit());
    assert_eq!(reader.push(Bytes::from_static(&[0, 0, 0, 0x03, 0xe8])), Ok(()));
    let mut reader = Reader::new(64 << 20, Budget::new(1 << 20).permit());
    assert_eq!(reader.push(Bytes::from_static(&[1, 0xff, 0xff, 0xff, 0xff])), Err(BodyError::TooLarge));
}

#[test]
fn buffers_grow_with_what_came_and_not_with_what_was_announced() {
    let budget = Budget::new(1 << 30);
    let mut reader = Reader::new(64 << 20, budget.permit());
    reader.push(Bytes::from_static(&[0, 0x04, 0, 0, 0, 1, 2])).unwrap();
    assert_eq!(budget.used(), 0, "more may have arrived");
    reader.pause().unwrap();
    assert_eq!(budget.used(), LEAST);
    let mut came = 7;
    while came < 4 * MOST {
        reader.push(Bytes::from(vec![7; 1_000])).unwrap();
        reader.pause().unwrap();
        came += 1_000;
        assert!((came..=(2 * came).min(came + MOST)).contains(&budget.used()), "{} of {came}", budget.used());
    }
    drop(reader);
    assert_eq!(budget.used(), 0);
}

#[test]
fn frames_that_came_together_lie_in_one_buffer_of_their_length() {
    let bytes = message(&vec![7; 150_000]);
    let budget = Budget::new(1 << 30);
    let mut reader = Reader::new(usize::MAX, budget.permit());
    for frame in bytes.chunks(16 << 10) {
        reader.push(Bytes::copy_from_slice(frame)).unwrap();
    }
    let received = reader.finish().unwrap();
    assert_eq!(received.chunks.len(), 1);
    assert_eq!(budget.used(), bytes.len());
}

#[test]
fn a_full_budget_ends_the_reading_and_is_given_back() {
    let budget = Budget::new(4 * MOST);
    let mut reader = Reader::new(64 << 20, budget.permit());
    let bytes = message(&vec![1; 2 * MOST]);
    let others = budget.take(3 * MOST).unwrap();
    let read = bytes.chunks(1_000).try_for_each(|frame| reader.push(Bytes::copy_from_slice(frame)));
    assert_eq!(read, Err(BodyError::NoRoom(bytes.len())));
    drop(reader);
    assert_eq!(budget.used(), others.bytes());
}

#[test]
fn a_message_that_fits_exactly_is_read() {
    let bytes = message(&vec![1; 3 * MOST / 2 + 7]);
    let budget = Budget::new(bytes.len());
    let mut reader = Reader::new(64 << 20, budget.permit());
    bytes.chunks(1_000).for_each(|frame| {
        reader.push(Bytes::copy_from_slice(frame)).unwrap();
        reader.pause().unwrap();
    });
    assert_eq!(reader.finish().unwrap().chunks.concat(), bytes);
}

#[test]
fn a_message_that_can_never_fit_is_refused_at_its_prefix() {
    let mut reader = Reader::new(64 << 20, Budget::new(1000).permit());
    assert_eq!(reader.push(Bytes::from_static(&[0, 0, 0, 0x03, 0xe4])), Err(BodyError::NoRoom(1001)));
}

#[test]
fn a_body_that_is_not_exactly_one_message_is_refused() {
    let whole = message(b"abc");
    assert_eq!(read_in_pieces(&[], 1, 10), Err(BodyError::Missing));
    assert_eq!(read_in_pieces(&whole[..3], 1, 10), Err(BodyError::Truncated));
    assert_eq!(read_in_pieces(&whole[..7], 9, 10), Err(BodyError::Truncated));
    assert_eq!(read_in_pieces(&[&whole[..], b"x"].concat(), 99, 10), Err(BodyError::Excess));
    assert_eq!(read_in_pieces(&[&whole[..], b"x"].concat(), 1, 10), Err(BodyError::Excess));
    assert_eq!(read_in_pieces(&[&whole[..], &whole[..]].concat(), 8, 10), Err(BodyError::Excess));
    assert_eq!(read_in_pieces(&[2, 0, 0, 0, 0], 5, 10), Err(BodyError::Flag));
    assert_eq!(read_in_pieces(&[2, 0, 0, 0, 0], 1, 10), Err(BodyError::Flag));
}

/// Reads a body that has no prefix, in frames of `piece` bytes.
fn read_bare(body: &[u8], length: Option<u64>, piece: usize, limit: usize) -> Result<Vec<u8>, BodyError> {
    let budget = Budget::new(1 << 30);
    let mut reader = Reader::new(limit, budget.permit());
    reader.begin_bare(length, true)?;
    for piece in body.chunks(piece) {
        reader.push(Bytes::copy_from_slice(piece))?;
        reader.pause()?;
    }
    let received = reader.finish()?;
    assert_eq!(budget.used(), received.permit.bytes());
    assert!(received.chunks.iter().all(|chunk| !chunk.is_empty()));
    Ok(received.chunks.concat())
}

#[test]
fn a_body_without_a_prefix_gets_one_whether_its_length_is_stated_or_not() {
    for len in [0, 1, 100, LEAST, COPY_BELOW, KEEP_FROM + 1, 3 * MOST + 17] {
        let body: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let mut expected = message(&body);
        expected[0] = 1;
        for piece in [1_000, 16_384, KEEP_FROM, body.len().max(1)] {
            for length in [None, Some(body.len() as u64)] {
                assert_eq!(read_bare(&body, length, piece, len), Ok(expected.clone()), "{len} in {piece}s, {length:?}");
            }
        }
    }
}

#[test]
fn a_body_without_a_prefix_has_the_same_limits() {
    assert_eq!(read_bare(&[1; 11], Some(11), 11, 10), Err(BodyError::TooLarge));
    assert_eq!(read_bare(&[1; 11], None, 3, 10), Err(BodyError::TooLarge));
    assert_eq!(read_bare(&[1; 10], Some(u64::MAX), 10, usize::MAX), Err(BodyError::TooLarge));
    assert_eq!(read_bare(&[1; 10], Some(11), 10, 100), Err(BodyError::Truncated));
    assert_eq!(read_bare(&[1; 10], Some(9), 10, 100), Err(BodyError::Excess));
    let budget = Budget::new(1_000);
    let mut reader = Reader::new(1 << 20, budget.permit());
    reader.begin_bare(None, false).unwrap();
    let read = (0..20).try_for_each(|_| {
        reader.push(Bytes::from_static(&[7; 100]))?;
        reader.pause()
    });
    assert!(matches!(read, Err(BodyError::NoRoom(needs)) if needs > 500), "{read:?}");
    drop(reader);
    assert_eq!(budget.used(), 0);
}
