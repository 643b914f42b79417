//! Contents of messages: malformed protobuf, deep nesting, invalid UTF-8, invalid IDs, unknown fields.

use anyhow::{Result, ensure};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

use crate::{
    fixture::{ExtraConfig, Fixture, Reply, keys_of, span},
    wire,
};

/// gRPC codes in wire format.
const OK: &str = "0";
const INVALID_ARGUMENT: &str = "3";

/// Returns a length-delimited field; `number` must be below 16.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    prost::encoding::encode_varint(bytes.len() as u64, &mut out);
    out.extend_from_slice(bytes);
    out
}

/// Returns a request with these encoded spans in one scope.
fn request(spans: &[Vec<u8>]) -> Vec<u8> {
    let spans: Vec<u8> = spans.iter().flat_map(|span| field(2, span)).collect();
    field(1, &field(2, &spans))
}

/// Sends a message unchanged; returns the gRPC status and its message.
async fn send(fixture: &Fixture, message: &[u8]) -> Result<(String, String)> {
    wire::call(fixture.grpc, None, wire::grpc(message)).await
}

/// Returns whether a backend received these bytes unchanged.
fn arrived(fixture: &Fixture, bytes: &[u8]) -> bool {
    let messages = fixture.backends.iter().flat_map(|backend| backend.messages());
    messages.into_iter().any(|message| message.windows(bytes.len()).any(|window| window == bytes))
}

/// Sends spans for several backends, so that the request is split, and checks that each span arrives unchanged.
async fn passes_unchanged(change: impl Fn(Vec<u8>) -> Vec<u8>) -> Result<()> {
    let fixture = Fixture::start(3, ExtraConfig::default()).await?;
    let spans: Vec<Vec<u8>> =
        (0..6).map(|n| Ok(change(span(&fixture.trace_at(n % 3)?, n as u64).encode_to_vec()))).collect::<Result<_>>()?;
    let (status, message) = send(&fixture, &request(&spans)).await?;
    ensure!(status == OK, "{status}: {message}");
    for (n, span) in spans.iter().enumerate() {
        ensure!(arrived(&fixture, span), "span {n} arrived changed or not at all");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_34_malformed_protobuf_is_refused_with_its_offset() -> Result<()> {
    let fixture = Fixture::start(2, ExtraConfig::default()).await?;
    let span = span(&fixture.trace(), 0).encode_to_vec();
    let within = |bytes: &[u8]| request(&[[span.as_slice(), bytes].concat()]);
    let broken = [
        ("a truncated varint", vec![0x0a, 0x80]),
        ("a length beyond the end", vec![0x0a, 0x7f, 0]),
        ("a length of ten gigabytes", vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x2f]),
        ("a varint of eleven bytes", [vec![0x0a], vec![0x80; 11], vec![0]].concat()),
        ("wire type 6", vec![0x0e, 0]),
        ("wire type 7", vec![0x0f, 0]),
        ("field number 0", vec![0x02, 0]),
        ("a group that ends and never began", vec![0x3c]),
        ("a group that never ends", vec![0x3b, 0x08, 1]),
        ("a group that ends as another", vec![0x3b, 0x44]),
        ("a fixed64 cut short", vec![0x79, 1, 2, 3]),
        ("a span broken in its last field", within(&[0x4a, 0x7f])),
        ("a span with a bad tag", within(&[0x00, 0x00])),
        ("a span with a length beyond its own", within(&[0x4a, 0x05, 1])),
    ];
    for (what, message) in &broken {
        let (status, said) = send(&fixture, message).await?;
        ensure!(status == INVALID_ARGUMENT, "{what} was answered {status}: {said}");
        ensure!(said.contains("byte"), "{what}: no byte is named: {said}");
    }
    let calls: u64 = fixture.backends.iter().map(|backend| backend.calls()).sum();
    ensure!(calls == 0, "broken messages were passed on");
    let refused = fixture.metric("spanring_receiver_refused_requests_total", &["reason=\"malformed\""])?;
    ensure!(refused.round() == broken.len() as f64, "counted are {refused}");
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_34_truncated_messages_do_not_harm_the_process() -> Result<()> {
    let fixture = Fixture::start(2, ExtraConfig::default()).await?;
    let spans: Vec<Vec<u8>> = (0..4).map(|n| span(&fixture.trace(), n).encode_to_vec()).collect();
    let message = request(&spans);
    for end in (1..message.len()).step_by(7) {
        let (status, said) = send(&fixture, &message[..end]).await?;
        ensure!(status == INVALID_ARGUMENT, "cut at {end}: {status}: {said}");
    }
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_34_the_last_of_repeated_ids_counts_and_padded_varints_pass() -> Result<()> {
    let fixture = Fixture::start(3, ExtraConfig::default()).await?;
    let (first, last) = (fixture.trace_at(0)?, fixture.trace_at(2)?);
    let doubled = [span(&first, 0).encode_to_vec(), field(1, &last)].concat();
    // A length encoded in five bytes instead of one.
    let other = span(&fixture.trace_at(1)?, 1).encode_to_vec();
    let [len, ..] = u32::try_from(other.len())?.to_le_bytes();
    ensure!(len < 128, "the length must fit in seven bits");
    let padded = [vec![0x12, len | 0x80, 0x80, 0x80, 0x80, 0], other.clone()].concat();
    let message = field(1, &field(2, &[field(2, &doubled), padded].concat()));
    let (status, said) = send(&fixture, &message).await?;
    ensure!(status == OK, "{status}: {said}");
    let owners: Vec<u64> = fixture.backends.iter().map(|backend| backend.calls()).collect();
    ensure!(owners == [0, 1, 1], "a span goes where its last trace ID says: {owners:?}");
    ensure!(arrived(&fixture, &doubled) && arrived(&fixture, &other), "bytes were changed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_35_values_of_any_depth_pass_unchanged() -> Result<()> {
    // AnyValue { array_value: ArrayValue { values: [AnyValue …] } }, nested 5,000 times. prost and the Collector refuse
    // far less.
    let mut deep = field(1, b"bottom");
    for _ in 0..5_000 {
        deep = field(5, &field(1, &deep));
    }
    let attribute = field(9, &[field(1, b"deep"), field(2, &deep)].concat());
    passes_unchanged(move |span| [span, attribute.clone()].concat()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_36_invalid_utf_8_passes_unchanged() -> Result<()> {
    passes_unchanged(|span| [span, field(5, b"caf\xe9 \xff\xfe\x00")].concat()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_37_bad_trace_ids_are_forwarded_and_counted() -> Result<()> {
    let fixture = Fixture::start(3, ExtraConfig::default()).await?;
    let ids: [&[u8]; 6] = [&[], &[0; 16], &[7; 8], &[7; 32], &[1], &[7; 15]];
    let spans: Vec<Span> = ids.iter().zip(0..).map(|(id, n)| span(id, n)).collect();
    let good = [fixture.spans_at(0, 2)?, fixture.spans_at(1, 2)?].concat();
    let keys = keys_of(&[spans.clone(), good.clone()].concat());
    fixture.client().await?.export([spans, good].concat()).await.ok()?;
    ensure!(fixture.account(&keys).missing == 0, "a span was dropped silently");
    ensure!(fixture.account([]).duplicates == 0);
    for (kind, count) in [("empty", 1.0), ("zero", 1.0), ("wrong_length", 4.0)] {
        let counted = fixture.metric("spanring_split_invalid_ids_total", &[&format!("kind=\"{kind}\"")])?;
        ensure!((counted - count).abs() < 0.5, "{kind}: {counted} were counted, {count} sent");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_37_an_id_that_a_backend_refuses_affects_no_other_client() -> Result<()> {
    let fixture = Fixture::start(2, ExtraConfig::default()).await?;
    for backend in &fixture.backends {
        // A Collector answers a malformed ID with INTERNAL and accepts nothing of the call.
        backend.answer(|call| {
            let is_bad = call.spans.iter().any(|(trace, _)| ![0, 16].contains(&trace.len()));
            let refusal = tonic::Status::internal("invalid length for ID");
            if is_bad { crate::backend::Answer::Status(refusal) } else { crate::backend::Answer::Accept }
        });
    }
    let good = [fixture.spans_at(0, 3)?, fixture.spans_at(1, 3)?].concat();
    let keys = keys_of(&good);
    let reply = fixture.client().await?.export([good, vec![span(&[7; 8], 0), span(&[7; 32], 1)]].concat()).await;
    ensure!(matches!(reply, Reply::Accepted { rejected: 2, .. }), "{reply:?}");
    ensure!(fixture.account(&keys).missing == 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_38_unknown_fields_pass_unchanged() -> Result<()> {
    // Field 1,000 with every wire type, including a group that contains a field.
    let unknown: Vec<u8> = [
        vec![0xc0, 0x3e, 0x96, 0x01],
        vec![0xc1, 0x3e, 1, 2, 3, 4, 5, 6, 7, 8],
        vec![0xc2, 0x3e, 3, 9, 9, 9],
        vec![0xc3, 0x3e, 0x0a, 1, 5, 0xc4, 0x3e],
        vec![0xc5, 0x3e, 1, 2, 3, 4],
    ]
    .concat();
    passes_unchanged(move |span| [unknown.clone(), span, unknown.clone()].concat()).await
}
