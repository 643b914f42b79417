//! HTTP/2: unusual but valid use, and abuse.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{
    backend::{Answer, Welcome},
    fixture::{Account, ExtraConfig, Fixture, keys_of},
    wire::{self, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, Raw, SETTINGS},
};

/// Error codes NO_ERROR and ENHANCE_YOUR_CALM of HTTP/2.
const NO_ERROR: u32 = 0;
const CALM: u32 = 11;

/// Limit for the memory that a flood may add to the proxy, in MiB, in a debug build.
const FLAT: u64 = 48;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_06_goaway_after_each_call_does_not_count_as_a_failure() -> Result<()> {
    let fixture = Fixture::start(2, ExtraConfig::default()).await?;
    fixture.backends[0].answer(|_| Answer::AcceptAndGo);
    let load = fixture.load(4).await?;
    load.goes_on(60)?;
    let (acknowledged, refused) = load.stop().await?;
    ensure!(refused.is_empty(), "{refused:?}");
    let account = fixture.account(&acknowledged);
    ensure!(account == Account { missing: 0, duplicates: 0, split: 0 }, "{account:?}");
    ensure!(fixture.backends[0].connections() > 3, "it must have closed connections");
    let failed = fixture.metric("spanring_dispatch_calls_total", &["outcome=\"transport\""])?;
    ensure!(failed == 0.0, "{failed} calls failed by transport");
    Ok(())
}

/// Tests a backend whose first connection answers the first call with these bytes. Later connections are served
/// normally.
async fn resent_after(reply: Vec<u8>) -> Result<()> {
    let fixture = Fixture::start(2, ExtraConfig::default()).await?;
    let welcome = move |n| if n == 1 { Welcome::Raw(reply.clone()) } else { Welcome::Serve };
    fixture.backends[0].welcome(welcome);
    let spans = fixture.spans_at(0, 3)?;
    let keys = keys_of(&spans);
    let (took, reply) = fixture.client().await?.timed(spans).await;
    reply.ok()?;
    ensure!(took < Duration::from_secs(2), "sent again after {took:?}");
    ensure!(fixture.account(&keys) == Account { missing: 0, duplicates: 0, split: 0 });
    let possible = fixture.metric("spanring_dispatch_possible_duplicate_records_total", &[])?;
    ensure!(possible == 0.0, "the backend did not process the call: {possible}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_06_calls_above_the_last_stream_of_a_goaway_are_resent_at_once() -> Result<()> {
    resent_after(wire::goaway(0, NO_ERROR)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_07_goaway_with_enhance_your_calm_causes_no_client_error() -> Result<()> {
    resent_after(wire::goaway(0, CALM)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_07_a_refused_stream_is_resent_at_once_without_a_possible_duplicate() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig::default()).await?;
    fixture.backends[0].answer(|call| match call.number {
        1 | 2 => Answer::ResetStream(h2::Reason::REFUSED_STREAM),
        _ => Answer::Accept,
    });
    fixture.serves().await?;
    let possible = fixture.metric("spanring_dispatch_possible_duplicate_records_total", &[])?;
    ensure!(possible == 0.0, "the backend did not process the call: {possible}");
    Ok(())
}

/// Floods the proxy from one client. The proxy must use little memory and serve others. Returns whether it closed the
/// connection.
async fn flood(
    settings: &[(u16, u32)],
    begin: &[u8],
    times: usize,
    bytes: impl FnMut(usize) -> Vec<u8>,
) -> Result<bool> {
    let fixture = Fixture::start(1, ExtraConfig { grpc: "read_header_timeout: 2s,", ..ExtraConfig::default() }).await?;
    fixture.serves().await?;
    let before = fixture.peak_mib()?;
    let mut raw = Raw::connect(fixture.grpc, settings)?;
    raw.send(begin)?;
    let is_closed = raw.send_until_closed(times, bytes);
    fixture.serves().await?;
    let grown = fixture.peak_mib()?.saturating_sub(before);
    ensure!(grown <= FLAT, "the flood took {grown} MiB");
    Ok(is_closed)
}

fn stream_id(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(0) * 2 + 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_31_a_flood_of_stream_resets_ends_the_connection() -> Result<()> {
    let headers = wire::export_headers(&[]);
    let is_closed = flood(&[], &[], 20_000, |n| {
        let id = stream_id(n);
        let open = wire::frame(HEADERS, END_HEADERS, id, &headers);
        [open, wire::frame(RST_STREAM, 0, id, &8_u32.to_be_bytes())].concat()
    });
    ensure!(is_closed.await?, "20,000 resets were tolerated");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_32_a_flood_of_continuation_frames_ends_the_connection() -> Result<()> {
    let begin = wire::frame(HEADERS, 0, 1, &wire::export_headers(&[]));
    let is_closed = flood(&[], &begin, 50_000, |_| {
        wire::frame(CONTINUATION, 0, 1, &wire::literals(&[("x-filler", "0123456789012345678901234567890123456789")]))
    });
    ensure!(is_closed.await?, "50,000 CONTINUATION frames were tolerated");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_32_hpack_bombs_are_refused() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig::default()).await?;
    let before = fixture.peak_mib()?;
    let mut raw = Raw::connect(fixture.grpc, &[])?;
    // One table entry with 3,000 bytes (RFC 7541, 6.2.1, a length of two bytes), followed by 13,000 references of one
    // byte.
    let mut block = wire::export_headers(&[]);
    block.extend([0x40, 1, b'x', 0x7f, 0xb9, 0x16]);
    block.extend([b'y'; 3000]);
    block.extend([0xbe; 13_000]);
    raw.send(&wire::frame(HEADERS, END_HEADERS | END_STREAM, 1, &block))?;
    raw.stream_ended(1).or_else(|error| if error.to_string().contains("closed") { Ok(()) } else { Err(error) })?;
    let grown = fixture.peak_mib()?.saturating_sub(before);
    ensure!(grown <= FLAT, "a bomb of 16 KiB took {grown} MiB");
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_32_floods_of_ping_and_settings_take_no_memory() -> Result<()> {
    // The client does not read the answers, which the proxy must not queue without limit. It may close the connection
    // or stop reading.
    for kind in [PING, SETTINGS] {
        let frame = wire::frame(kind, 0, 0, if kind == PING { &[7; 8] } else { &[0, 3, 0, 0, 0, 9] });
        let many = frame.repeat(2000);
        let fixture = Fixture::start(1, ExtraConfig::default()).await?;
        let before = fixture.peak_mib()?;
        let mut raw = Raw::connect(fixture.grpc, &[])?;
        raw.set_timeout(Duration::from_millis(700))?;
        raw.send_until_closed(500, |_| many.clone());
        fixture.serves().await?;
        let grown = fixture.peak_mib()?.saturating_sub(before);
        ensure!(grown <= FLAT, "frames of kind {kind} took {grown} MiB");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_32_unsolicited_ping_answers_do_not_fill_the_log() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig::default()).await?;
    let lines = || fixture.process.log().lines().count();
    for port in [fixture.grpc, fixture.admin] {
        let before = lines();
        let mut raw = Raw::connect(port, &[])?;
        let many = wire::frame(PING, ACK, 0, &[7; 8]).repeat(1000);
        raw.send_until_closed(50, |_| many.clone());
        // If the connection still exists, this PING is answered after everything before it was read.
        raw.send(&wire::frame(PING, 0, 0, &[9; 8])).ok();
        while raw.next()?.is_some_and(|frame| frame.payload != [9; 8]) {}
        ensure!(lines() - before <= 40, "50,000 frames wrote {} lines:\n{}", lines() - before, fixture.process.log());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_32_a_message_in_frames_of_one_byte_is_served_or_refused_and_takes_no_memory() -> Result<()> {
    let begin = wire::frame(HEADERS, END_HEADERS, 1, &wire::export_headers(&[]));
    let announced = [0_u8, 0, 0x10, 0, 0];
    flood(&[], &begin, 60_000, |n| wire::frame(DATA, 0, 1, &[announced.get(n).copied().unwrap_or(0)])).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_32_clients_that_do_not_read_their_answers_delay_no_other() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig { deadline: "2s", ..ExtraConfig::default() }).await?;
    // With SETTINGS_INITIAL_WINDOW_SIZE 0, the body of an answer cannot be sent.
    let mut raw = Raw::connect(fixture.grpc, &[(4, 0)])?;
    for n in 0..100 {
        raw.send(&wire::frame(HEADERS, END_HEADERS, stream_id(n), &wire::export_headers(&[])))?;
        raw.send(&wire::frame(DATA, END_STREAM, stream_id(n), &wire::grpc(&[])))?;
    }
    fixture.until_metric("spanring_receiver_requests_total", &["code=\"OK\""], |n| n >= 100.0)?;
    fixture.serves().await?;
    raw.send(&wire::frame(PING, ACK, 0, &[0; 8]))?;
    drop(raw);
    fixture.until_metric("spanring_receiver_in_flight_requests", &[], |n| n == 0.0)?;
    fixture.until_metric("spanring_receiver_connections", &["listener=\"otlp_grpc\""], |n| n <= 1.0).map(drop)
}
