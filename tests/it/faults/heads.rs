//! Request headers that gRPC servers accept but HTTP libraries may reject.

use anyhow::{Context, Result, ensure};

use crate::{
    fixture::{ExtraConfig, Fixture, encoded, span},
    wire::{self, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, Raw},
};

/// Counts the streams that were refused before a service saw them.
const REFUSED: &str = "spanring_receiver_refused_streams_total";

/// Returns the usual headers with the encoded `:authority` in their middle.
fn head(authority: &[u8]) -> Vec<u8> {
    let before = wire::literals(&[(":method", "POST"), (":scheme", "http"), (":path", wire::TRACES)]);
    let behind = wire::literals(&[("content-type", "application/grpc"), ("te", "trailers")]);
    [&before, authority, &behind].concat()
}

/// Encodes `:authority` with its name from the static table, to be indexed, and a value without Huffman coding.
fn plain(value: &str) -> Vec<u8> {
    let len = u8::try_from(value.len()).unwrap_or(0);
    [&[0x41, len], value.as_bytes()].concat()
}

/// Returns the frames of a request with this header block.
fn request(fixture: &Fixture, stream: u32, block: &[u8]) -> Vec<u8> {
    let body = wire::grpc(&encoded(vec![span(&fixture.trace(), u64::from(stream))]));
    [wire::frame(HEADERS, END_HEADERS, stream, block), wire::frame(DATA, END_STREAM, stream, &body)].concat()
}

/// Sends requests one by one on a connection and checks that each is served.
fn serves(fixture: &Fixture, blocks: &[Vec<u8>]) -> Result<()> {
    let mut raw = Raw::connect(fixture.grpc, &[])?;
    let ok = "code=\"OK\"";
    let requests = "spanring_receiver_requests_total";
    let before = fixture.metric(requests, &[ok])?;
    for (stream, block) in (1..).step_by(2).zip(blocks) {
        raw.send(&request(fixture, stream, block))?;
        raw.stream_ended(stream).with_context(|| format!("block {stream}: {}", String::from_utf8_lossy(block)))?;
    }
    let served = fixture.metric(requests, &[ok])? - before;
    ensure!(served == f64::from(u32::try_from(blocks.len())?), "{served} of {} were served", blocks.len());
    ensure!(fixture.metric(REFUSED, &["listener=\"otlp_grpc\""])? == 0.0, "none may be counted as refused");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_that_is_not_valid_in_a_uri_is_served_as_by_other_grpc_servers() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig::default()).await?;
    fixture.serves().await?;
    // As written by gRPC's C core for several addresses and for the path of a socket; then by index from the dynamic
    // table.
    let indexed = [plain("127.0.0.1%3A4317,127.0.0.2%3A4317"), vec![0xbe], plain("%2Frun%2Fotlp.sock"), vec![0xbf]];
    serves(&fixture, &indexed.map(|authority| head(&authority)))?;
    // "10.0.0.1%3A4317" and its name as Huffman-coded literals.
    let name = [0x40, 0x88, 0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];
    let value = [0x8b, 0x08, 0x17, 0x02, 0xe0, 0x5c, 0x2a, 0xb3, 0x0b, 0x4c, 0x85, 0xdf];
    let huffman = [&name[..], &value].concat();
    serves(&fixture, &[head(&huffman), head(&[0xbe])])?;
    let others = ["::1:4317", "me@collector:4317", "m%20e@collector", "/run/otlp.sock", "a b", "[::1", "caf\u{e9}"];
    serves(&fixture, &others.map(|authority| head(&plain(authority))))?;
    let absent = [head(&[]), [head(&[]), wire::literals(&[("host", "a%b:1:2")])].concat()];
    serves(&fixture, &absent)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_in_several_frames_is_served_too() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig::default()).await?;
    fixture.serves().await?;
    let mut raw = Raw::connect(fixture.grpc, &[])?;
    let block = head(&plain("127.0.0.1%3A4317,127.0.0.2%3A4317"));
    let at = block.len() / 2;
    let (first, second) = block.split_at(at);
    let body = wire::grpc(&encoded(vec![span(&fixture.trace(), 1)]));
    let whole = [
        wire::frame(HEADERS, 0, 1, first),
        wire::frame(CONTINUATION, END_HEADERS, 1, second),
        wire::frame(DATA, END_STREAM, 1, &body),
    ]
    .concat();
    for piece in whole.chunks(7) {
        raw.send(piece)?;
    }
    raw.stream_ended(1)?;
    fixture.until_metric("spanring_receiver_requests_total", &["code=\"OK\""], |n| n >= 2.0)?;
    ensure!(fixture.metric(REFUSED, &["listener=\"otlp_grpc\""])? == 0.0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_refused_before_a_service_are_counted() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig::default()).await?;
    fixture.serves().await?;
    let mut raw = Raw::connect(fixture.grpc, &[])?;
    // An empty path, a header of HTTP/1, an empty authority, and a valid request.
    let wrong = [
        wire::literals(&[(":method", "POST"), (":scheme", "http"), (":path", ""), (":authority", "a")]),
        [head(&plain("a")), wire::literals(&[("connection", "close")])].concat(),
        head(&plain("")),
    ];
    for (stream, block) in (1..).step_by(2).zip(wrong.iter().chain([&head(&plain("a"))])) {
        raw.send(&request(&fixture, stream, block))?;
        raw.stream_ended(stream)?;
    }
    fixture.until_metric(REFUSED, &["listener=\"otlp_grpc\""], |n| n == 3.0)?;
    Ok(())
}
