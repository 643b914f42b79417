//! Tests with frames of many lengths that arrive in many ways.

use std::collections::VecDeque;

use tokio::io::AsyncReadExt;

use super::{
    super::{layers::Layered, tests::Client},
    *,
};
use crate::budget::Division;

const HEADERS: u8 = 0x1;

fn account(clients: usize) -> Option<Budget> {
    Some(Budget::divided(Division { fixed: 0, clients, requests: 0 }))
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, len @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&len[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Returns what h2 reads in buffers of up to `room` bytes, if `sent` arrives in pieces of at most `most` bytes.
async fn read(
    account: Option<Budget>,
    sent: &[u8],
    (most, room): (usize, usize),
    random: &mut fastrand::Rng,
) -> io::Result<Vec<u8>> {
    let (mut pieces, mut rest) = (VecDeque::new(), sent);
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(random.usize(1..=rest.len().min(most)));
        pieces.push_back(piece.to_vec());
        rest = later;
    }
    let (mut stream, mut seen) = (Layered::new(Client(pieces), LargeFrames::new(account)), Vec::new());
    loop {
        // Like h2, with a buffer whose bytes are not initialized.
        let mut room = Vec::with_capacity(random.usize(1..=room));
        if stream.read_buf(&mut room).await? == 0 {
            return Ok(seen);
        }
        seen.extend_from_slice(&room);
    }
}

/// The stream of DATA frames, their payload, and whether the stream ends with it.
type Data = (u8, Vec<u8>, bool);

/// Returns all frames but those of DATA, the DATA of each stream, and the length of the longest DATA frame.
fn frames(mut bytes: &[u8]) -> (Vec<Vec<u8>>, Vec<Data>, usize) {
    let (mut others, mut data, mut longest) = (Vec::new(), Vec::<Data>::new(), 0);
    bytes = bytes.strip_prefix(PREFACE).unwrap();
    while let Some(head) = bytes.first_chunk::<HEAD>() {
        let len = length_of(head);
        let payload = bytes[HEAD..][..len].to_vec();
        if head[3] == DATA {
            longest = longest.max(len);
            match data.last_mut() {
                Some((stream, all, is_end)) if *stream == head[8] && !*is_end => {
                    all.extend(payload);
                    *is_end = head[4] & END_STREAM != 0;
                }
                _ => data.push((head[8], payload, head[4] & END_STREAM != 0)),
            }
        } else {
            others.push([&head[..], &payload].concat());
        }
        bytes = &bytes[HEAD + len..];
    }
    assert!(bytes.is_empty(), "the stream must end with a frame");
    (others, data, longest)
}

#[tokio::test]
async fn large_frames_are_cut_only_without_room_and_nothing_else_changes() {
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..200 {
        let mut sent = PREFACE.to_vec();
        for stream in 1..random.u32(2..6) {
            sent.extend(frame(HEADERS, 4, stream, &vec![1; random.usize(..300)]));
            for is_last in [false, true] {
                let len = [0, 10, PIECE, PIECE + 1, 2 * PIECE, 100_000][random.usize(..6)];
                let payload: Vec<u8> = (0..len).map(|_| random.u8(..)).collect();
                sent.extend(frame(DATA, u8::from(is_last), stream, &payload));
            }
        }
        let shape = ([5, 100, 300_000][random.usize(..3)], [7, 5_000, 300_000][random.usize(..3)]);
        assert!(read(account(1 << 30), &sent, shape, &mut random).await.unwrap() == sent, "there is room");
        assert!(read(None, &sent, shape, &mut random).await.unwrap() == sent);
        let cut = read(account(0), &sent, shape, &mut random).await.unwrap();
        let (before, after) = (frames(&sent), frames(&cut));
        assert!(before.0 == after.0 && before.1 == after.1, "{shape:?}");
        assert!(after.2 <= PIECE, "{}", after.2);
    }
}

#[tokio::test]
async fn torn_heads_and_frames_that_cannot_be_cut_do_not_pass_the_account() {
    let mut random = fastrand::Rng::with_seed(8);
    let sent = [PREFACE, &frame(DATA, 0, 1, &[7; 60_000])].concat();
    for len in PREFACE.len()..PREFACE.len() + 20 {
        let seen = read(account(0), &sent[..len], (100, 100), &mut random).await.unwrap();
        assert_eq!(seen.len(), len, "what came of it passes");
    }
    for (kind, flags) in [(DATA, PADDED), (HEADERS, 0)] {
        let large = [PREFACE, &frame(kind, flags, 1, &[7; 60_000])].concat();
        let error = read(account(0), &large, (9_000, 9_000), &mut random).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(read(account(1 << 30), &large, (9_000, 9_000), &mut random).await.unwrap() == large);
    }
}

#[test]
fn the_longest_frame_of_a_connection_is_accounted_for_until_it_ends() {
    let account = account(600_000).unwrap();
    let mut connection = LargeFrames::new(Some(account.clone()));
    for (len, used) in [(100_000, 100_000), (50_000, 100_000), (250_000, 250_000)] {
        assert!(connection.has_room(len));
        assert_eq!(account.used_for(Use::Frames), used);
    }
    let mut other = LargeFrames::new(Some(account.clone()));
    assert!(other.has_room(40_000) && !other.has_room(100_000), "a half is left for others");
    drop((connection, other));
    assert_eq!(account.clients_used(), 0);
}
