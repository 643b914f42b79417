//! Compressed requests and compressed calls: what goes on as it came, what is compressed anew, and that nothing is lost.

use std::{collections::BTreeSet, io::Write as _};

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};
use opentelemetry_proto::tonic::trace::v1::Span;

use super::{
    backend::{Answer, SpanKey},
    fixture::{ExtraConfig, Fixture, encoded, keys_of, padded, span},
    http::{
        bodies,
        wire::{Request, send},
    },
    rig::{framed, send_raw},
};

const GZIP: ExtraConfig = with_pool("compression: gzip,");
const ZSTD: ExtraConfig = with_pool("compression: zstd,");
const NONE: ExtraConfig = with_pool("compression: none,");
const AS_RECEIVED: ExtraConfig = with_pool("compression: as_received,");

const fn with_pool(pool: &'static str) -> ExtraConfig {
    ExtraConfig { http: Some(" "), pool, grpc: "", deadline: "", top: "", descriptors: None }
}

/// Gzip data that no proxy writes: with the highest level and a time.
fn odd_gzip(bytes: &[u8]) -> Vec<u8> {
    let builder = GzBuilder::new().mtime(7);
    let mut encoder = builder.write(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("a Vec takes all");
    encoder.finish().expect("a Vec takes all")
}

/// Zstandard data with a checksum and without a size.
fn odd_zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 7).expect("a level");
    encoder.include_checksum(true).expect("a parameter");
    encoder.write_all(bytes).expect("a Vec takes all");
    encoder.finish().expect("a Vec takes all")
}

/// Sends a compressed message by gRPC, and returns the status.
async fn by_grpc(fixture: &Fixture, encoding: &str, packed: &[u8]) -> Result<i32> {
    let flag = u8::from(!encoding.is_empty());
    let headers = [("grpc-encoding", encoding)];
    let headers = if encoding.is_empty() { &[][..] } else { &headers[..] };
    Ok(send_raw(fixture.grpc, headers, framed(flag, packed)?).await?.code)
}

/// Sends a compressed message by HTTP, and returns the status.
fn by_http(fixture: &Fixture, encoding: &str, packed: &[u8]) -> Result<u16> {
    let mut request = Request::post("/v1/traces", "application/x-protobuf", packed);
    if !encoding.is_empty() {
        request = request.with("content-encoding", encoding);
    }
    Ok(send(fixture.http()?, &request.bytes(), false)?.status)
}

/// Returns spans of a new trace of backend `n`, of some 20 KB.
fn spans_at(fixture: &Fixture, n: usize) -> Result<Vec<Span>> {
    Ok(fixture.spans_at(n, 40)?.into_iter().map(|span| padded(span, 400)).collect())
}

/// Returns the last message that backend `n` acknowledged, and its encoding.
fn last(fixture: &Fixture, n: usize) -> Result<(String, Vec<u8>)> {
    let backend = fixture.backends.get(n).context("no such backend")?;
    let encoding = backend.encodings().pop().context("no message")?;
    Ok((encoding, backend.messages().pop().context("no message")?.to_vec()))
}

/// Checks that all of these spans, and no others, were delivered, each once and at its owner.
fn arrived(fixture: &Fixture, keys: &BTreeSet<SpanKey>) -> Result<()> {
    let account = fixture.account(keys);
    ensure!((account.missing, account.duplicates, account.split) == (0, 0, 0), "{account:?}");
    fixture.memory_is_given_back()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_one_owner_goes_on_as_it_came() -> Result<()> {
    let fixture = Fixture::start(2, NONE).await?;
    let mut keys = BTreeSet::new();
    for (extra, encoding, pack) in
        [(GZIP, "gzip", odd_gzip as fn(&[u8]) -> Vec<u8>), (ZSTD, "zstd", odd_zstd), (AS_RECEIVED, "gzip", odd_gzip)]
    {
        fixture.reload(extra)?;
        for n in [0, 1] {
            let spans = spans_at(&fixture, n)?;
            keys.extend(keys_of(&spans));
            let packed = pack(&encoded(spans));
            ensure!(by_grpc(&fixture, encoding, &packed).await? == 0);
            ensure!(last(&fixture, n)? == (encoding.to_owned(), packed), "{encoding} by gRPC, {}", extra.pool);
            let spans = spans_at(&fixture, n)?;
            keys.extend(keys_of(&spans));
            let packed = pack(&encoded(spans));
            ensure!(by_http(&fixture, encoding, &packed)? == 200);
            ensure!(last(&fixture, n)? == (encoding.to_owned(), packed), "{encoding} by HTTP, {}", extra.pool);
        }
        arrived(&fixture, &keys)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_go_on_as_it_came_is_compressed_anew_and_complete() -> Result<()> {
    let fixture = Fixture::start(2, GZIP).await?;
    let mut keys = BTreeSet::new();
    // Two owners.
    let spans = [spans_at(&fixture, 0)?, spans_at(&fixture, 1)?].concat();
    keys.extend(keys_of(&spans));
    let packed = odd_gzip(&encoded(spans));
    ensure!(by_grpc(&fixture, "gzip", &packed).await? == 0);
    for n in [0, 1] {
        let (encoding, message) = last(&fixture, n)?;
        ensure!(encoding == "gzip" && message != packed);
    }
    // Several members, of which many servers read the first one only.
    let (first, second) = (spans_at(&fixture, 0)?, spans_at(&fixture, 0)?);
    keys.extend(keys_of(&first).into_iter().chain(keys_of(&second)));
    let packed = [odd_gzip(&encoded(first)), odd_gzip(&encoded(second))].concat();
    ensure!(by_grpc(&fixture, "gzip", &packed).await? == 0);
    ensure!(last(&fixture, 0)?.1 != packed, "two members");
    // Another encoding, or none.
    for (encoding, pack) in [("zstd", odd_zstd as fn(&[u8]) -> Vec<u8>), ("", <[u8]>::to_vec)] {
        let spans = spans_at(&fixture, 1)?;
        keys.extend(keys_of(&spans));
        ensure!(by_grpc(&fixture, encoding, &pack(&encoded(spans))).await? == 0);
        ensure!(last(&fixture, 1)?.0 == "gzip", "from {encoding}");
    }
    for (encoding, pack) in [("deflate", bodies::zlib as fn(&[u8]) -> Vec<u8>), ("deflate", bodies::deflate)] {
        let spans = spans_at(&fixture, 1)?;
        keys.extend(keys_of(&spans));
        ensure!(by_http(&fixture, encoding, &pack(&encoded(spans)))? == 200);
        ensure!(last(&fixture, 1)?.0 == "gzip");
    }
    arrived(&fixture, &keys)?;
    // A pool without compression gets nothing compressed.
    fixture.reload(NONE)?;
    let spans = spans_at(&fixture, 0)?;
    keys.extend(keys_of(&spans));
    let message = encoded(spans);
    ensure!(by_grpc(&fixture, "gzip", &odd_gzip(&message)).await? == 0);
    ensure!(last(&fixture, 0)? == (String::new(), message));
    arrived(&fixture, &keys)
}

#[tokio::test(flavor = "multi_thread")]
async fn as_received_compresses_what_came_compressed() -> Result<()> {
    let fixture = Fixture::start(2, AS_RECEIVED).await?;
    let mut keys = BTreeSet::new();
    let two_owners = || Ok::<_, anyhow::Error>([spans_at(&fixture, 0)?, spans_at(&fixture, 1)?].concat());
    for (encoding, pack) in [("gzip", odd_gzip as fn(&[u8]) -> Vec<u8>), ("", <[u8]>::to_vec), ("zstd", odd_zstd)] {
        let spans = two_owners()?;
        keys.extend(keys_of(&spans));
        ensure!(by_grpc(&fixture, encoding, &pack(&encoded(spans))).await? == 0);
        for n in [0, 1] {
            ensure!(last(&fixture, n)?.0 == encoding, "{encoding}");
        }
    }
    // What is only read becomes gzip.
    let spans = two_owners()?;
    keys.extend(keys_of(&spans));
    ensure!(by_http(&fixture, "deflate", &bodies::zlib(&encoded(spans)))? == 200);
    ensure!(last(&fixture, 0)?.0 == "gzip");
    arrived(&fixture, &keys)
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_behind_a_message_and_truncated_ones_are_refused_whatever_the_pool_gets() -> Result<()> {
    const INTERNAL: i32 = 13;
    for extra in [GZIP, AS_RECEIVED, NONE] {
        let fixture = Fixture::start(1, extra).await?;
        for (encoding, pack) in [("gzip", odd_gzip as fn(&[u8]) -> Vec<u8>), ("zstd", odd_zstd)] {
            let packed = pack(&encoded(spans_at(&fixture, 0)?));
            for broken in [[&packed[..], b"garbage"].concat(), packed[..packed.len() - 3].to_vec()] {
                let status = by_grpc(&fixture, encoding, &broken).await?;
                ensure!(status == INTERNAL, "{encoding} {status}");
                ensure!(by_http(&fixture, encoding, &broken)? == 400);
            }
        }
        ensure!(fixture.backends[0].messages().is_empty(), "nothing of it may reach a backend");
        fixture.memory_is_given_back()?;
        fixture.serves().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_tried_again_goes_on_as_it_came() -> Result<()> {
    let fixture = Fixture::start(1, GZIP).await?;
    fixture.backends[0].answer(|call| match call.number {
        1 => Answer::Status(tonic::Status::unavailable("not now")),
        _ => Answer::Accept,
    });
    let spans = spans_at(&fixture, 0)?;
    let keys: BTreeSet<_> = keys_of(&spans).into_iter().collect();
    let packed = odd_gzip(&encoded(spans));
    ensure!(by_grpc(&fixture, "gzip", &packed).await? == 0);
    ensure!(last(&fixture, 0)? == ("gzip".to_owned(), packed));
    arrived(&fixture, &keys)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_takes_long_to_compress_arrives() -> Result<()> {
    for extra in [GZIP, ZSTD] {
        let fixture = Fixture::start(2, extra).await?;
        let trace = fixture.trace_at(1)?;
        let spans: Vec<Span> = (0..300).map(|number| padded(span(&trace, number), 10_000)).collect();
        let keys: BTreeSet<_> = keys_of(&spans).into_iter().collect();
        ensure!(by_grpc(&fixture, "", &encoded(spans)).await? == 0);
        arrived(&fixture, &keys)?;
    }
    Ok(())
}
