//! Tests of the layer, with frames that arrive in many ways, and with bytes that are not frames.

use std::collections::VecDeque;

use tokio::io::AsyncReadExt;

use super::{
    super::{hpack::tests::string, layers::Layered, tests::Client},
    block::{PADDED, PRIORITY, PRIORITY_LEN},
    *,
};
use crate::budget::{Budget, Division};

const DATA: u8 = 0x0;
const SETTINGS: u8 = 0x4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, len @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&len[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn block_with(authority: &[u8]) -> Vec<u8> {
    [&[0x83, 0x86, 0x41][..], &string(authority, false), &[0x5f], &string(b"application/grpc", true)].concat()
}

fn tally() -> Arc<Tally> {
    Arc::new(Tally::new(Counter::noop()))
}

fn progress() -> Arc<Progress> {
    Arc::new(Progress::new(tokio::time::Instant::now()))
}

fn unbounded() -> Arc<Admission> {
    Arc::new(Admission::new(None, 0))
}

/// Returns what h2 reads, a few bytes at a time, if `sent` arrives in pieces of at most `most` bytes.
async fn read(sent: &[u8], most: usize, random: &mut fastrand::Rng, tally: &Arc<Tally>) -> Vec<u8> {
    let (mut pieces, mut rest) = (VecDeque::new(), sent);
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(random.usize(1..=rest.len().min(most)));
        pieces.push_back(piece.to_vec());
        rest = later;
    }
    let (mut stream, mut seen) =
        (Layered::new(Client(pieces), Streams::new(Arc::clone(tally), unbounded(), progress())), Vec::new());
    loop {
        let mut room = vec![0; random.usize(1..3_000)];
        match stream.read(&mut room).await.unwrap() {
            0 => return seen,
            len => seen.extend_from_slice(&room[..len]),
        }
    }
}

#[tokio::test]
async fn header_blocks_are_repaired_however_they_are_split_padded_and_read() {
    let mut random = fastrand::Rng::with_seed(5);
    for _ in 0..300 {
        let (mut sent, mut expected) = (PREFACE.to_vec(), PREFACE.to_vec());
        let mut opened = 0;
        for stream in (1..).step_by(2).take(random.usize(1..5)) {
            let settings = frame(SETTINGS, 0, 0, &vec![0; 6 * random.usize(..2)]);
            let body = frame(DATA, 1, stream, &(0..random.usize(..9_000)).map(|_| random.u8(..)).collect::<Vec<_>>());
            let (good, bad): (&[u8], &[u8]) = match random.bool() {
                true => (b"10.0.0.1-3A4317,10.0.0.2-3A4317", b"10.0.0.1%3A4317,10.0.0.2%3A4317"),
                false => (b"collector:4317", b"collector:4317"),
            };
            let cuts = (random.usize(1..20), random.usize(20..30), random.u8(..8));
            let headers = |authority| {
                let (block, (first, second, shape)) = (block_with(authority), cuts);
                let whole = if shape & 1 == 0 { END_HEADERS } else { 0 };
                let (now, later) = if whole == 0 { block.split_at(first) } else { (&block[..], &[][..]) };
                let (mut payload, mut flags) = (now.to_vec(), whole);
                if shape & 2 != 0 {
                    (payload, flags) = ([&[0; PRIORITY_LEN][..], &payload].concat(), flags | PRIORITY);
                }
                if shape & 4 != 0 {
                    (payload, flags) = ([&[7][..], &payload, &[0; 7]].concat(), flags | PADDED);
                }
                let mut bytes = frame(HEADERS, flags, stream, &payload);
                if whole == 0 {
                    let (middle, last) = later.split_at(second - first);
                    bytes.extend(frame(CONTINUATION, 0, stream, middle));
                    bytes.extend(frame(CONTINUATION, END_HEADERS, stream, last));
                }
                bytes
            };
            let trailers = frame(HEADERS, END_HEADERS | 1, stream, &[]);
            sent.extend([settings.clone(), headers(bad), body.clone(), trailers.clone()].concat());
            expected.extend([settings, headers(good), body, trailers].concat());
            opened += 1;
        }
        let tally = tally();
        let most = [3, 40, 20_000][random.usize(..3)];
        assert!(read(&sent, most, &mut random, &tally).await == expected);
        assert_eq!(tally.opened.load(Relaxed), opened, "trailers must not count as a stream");
    }
}

#[tokio::test]
async fn a_header_block_that_is_too_long_ends_the_connection() {
    let block = block_with(b"a%b");
    let request = frame(HEADERS, END_HEADERS, 3, &block);
    for rest in [
        [frame(CONTINUATION, 0, 1, &[]).repeat(20), frame(CONTINUATION, END_HEADERS, 1, &[])].concat(),
        frame(HEADERS, END_HEADERS, 5, &[0x20; 70_000]),
        [frame(CONTINUATION, 0, 1, &[0x20; 16_000]).repeat(5), frame(CONTINUATION, END_HEADERS, 1, &[])].concat(),
    ] {
        let begun = if rest[3] == HEADERS { vec![] } else { frame(HEADERS, 0, 1, &block) };
        let sent = [PREFACE, &begun, &rest, &request, &request].concat();
        for most in [100, 200_000] {
            let pieces = sent.chunks(most).map(<[u8]>::to_vec).collect();
            let mut stream = Layered::new(Client(pieces), Streams::new(tally(), unbounded(), progress()));
            let error = loop {
                match stream.read(&mut [0; 1_000]).await {
                    Ok(0) => panic!("the end must not be reached"),
                    Ok(_) => {}
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}

#[tokio::test]
async fn bytes_that_are_not_valid_http2_pass_unchanged() {
    let mut random = fastrand::Rng::with_seed(6);
    let block = block_with(b"a%b");
    let torn = [PREFACE, &frame(HEADERS, END_HEADERS, 1, &block)].concat();
    let mut rows = vec![
        b"GET / HTTP/1.1\r\nhost: a%b\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n".to_vec(),
        [PREFACE, &frame(HEADERS, 0, 1, &block), &frame(DATA, 0, 1, &block)].concat(),
        [PREFACE, &frame(HEADERS, END_HEADERS | PADDED, 1, &[200, 0x41, 1, b'%'])].concat(),
        [PREFACE, &[0xff; 9], &[1; 100]].concat(),
    ];
    rows.extend((PREFACE.len()..torn.len()).map(|len| torn[..len].to_vec()));
    for sent in rows {
        for most in [1, 50_000] {
            assert!(
                read(&sent, most, &mut random, &tally()).await == sent,
                "{}",
                String::from_utf8_lossy(&sent[..30.min(sent.len())])
            );
        }
    }
}

#[test]
fn a_stream_counts_as_refused_if_h2_read_it_and_the_service_did_not_get_it() {
    let tally = tally();
    let count = || tally.counted.load(Relaxed);
    tally.opens(1);
    tally.settle();
    assert_eq!(count(), 0, "h2 has not read the stream yet");
    tally.is_read();
    tally.serves();
    for stream in [3, 5, 5, 3] {
        tally.opens(stream);
    }
    tally.settle();
    assert_eq!(count(), 0);
    tally.is_read();
    tally.serves();
    tally.settle();
    tally.settle();
    assert_eq!(count(), 1, "stream 5 was refused");
    tally.opens(7);
    tally.close();
    assert_eq!(count(), 2);
}

#[tokio::test]
async fn a_stream_is_refused_only_once_h2_has_its_whole_header_block() {
    let (mut far, near) = tokio::io::duplex(1 << 16);
    let tally = tally();
    let mut stream = Layered::new(near, Streams::new(Arc::clone(&tally), unbounded(), progress()));
    let bytes = [PREFACE, &frame(HEADERS, END_HEADERS, 1, &block_with(b"a%b"))].concat();
    let half = bytes.len() - 10;
    let refused = || {
        tally.settle();
        tally.counted.load(Relaxed)
    };
    let mut seen = 0;
    for (piece, until) in [(&bytes[..half], PREFACE.len() + HEAD), (&bytes[half..], bytes.len())] {
        tokio::io::AsyncWriteExt::write_all(&mut far, piece).await.unwrap();
        while seen < until {
            seen += stream.read(&mut [0; 5]).await.unwrap();
            assert_eq!(refused(), 0, "h2 has {seen} bytes of {}", bytes.len());
        }
        assert!(futures_util::FutureExt::now_or_never(stream.read(&mut [0; 5])).is_none(), "nothing more can arrive");
        assert_eq!(refused(), u64::from(seen == bytes.len()), "h2 has {seen} bytes of {}", bytes.len());
    }
}

#[tokio::test]
async fn the_bytes_behind_a_stream_without_room_wait_until_it_was_refused() {
    let account = Budget::divided(Division { fixed: 0, clients: 80 << 10, requests: 0 });
    let admission = Arc::new(Admission::new(Some(account), 0));
    let mut sent = PREFACE.to_vec();
    let body = frame(DATA, 1, 1, &[7; 100]);
    for stream in [1, 3, 5, 7, 9] {
        sent.extend(frame(HEADERS, END_HEADERS, stream, &block_with(b"a%b")));
        sent.extend(&body);
    }
    let (mut far, near) = tokio::io::duplex(1 << 16);
    tokio::io::AsyncWriteExt::write_all(&mut far, &sent).await.unwrap();
    let tally = tally();
    let mut stream = Layered::new(near, Streams::new(Arc::clone(&tally), Arc::clone(&admission), progress()));
    let (mut seen, mut served) = (0, Vec::new());
    for opened in [3, 4, 5] {
        let mut room = [0; 1_000];
        while let Some(read) = futures_util::FutureExt::now_or_never(stream.read(&mut room)) {
            seen += read.unwrap();
        }
        assert_eq!(tally.opened.load(Relaxed), opened, "two have room, and one more is passed at a time");
        let refused = loop {
            let stream = admission.serve();
            if stream.has_no_room() {
                break stream;
            }
            served.push(stream);
        };
        drop(refused);
    }
    assert_eq!(served.len(), 2);
    let mut room = [0; 1_000];
    assert_eq!(stream.read(&mut room).await.unwrap(), body.len(), "the rest");
    assert_eq!(seen + body.len(), sent.len());
}
