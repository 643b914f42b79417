//! Tests of the limits on requests: too large, malformed, slow, or with a false length.

use std::time::Duration;

use tonic::{Code, codec::CompressionEncoding};
use tonic_types::StatusExt;

use super::*;

const MIB: usize = 1 << 20;

fn limited(max_recv_msg_size: usize) -> GrpcConfig {
    let mut config = GrpcConfig::default();
    config.keys.max_recv_msg_size_mib.bytes = max_recv_msg_size;
    config
}

#[tokio::test]
async fn a_message_above_the_limit_is_refused_permanently() {
    let receiver = Receiver::with(StandIn::ok(), limited(1_000), Budget::new(MIB));
    let mut client = receiver.client().await;
    let status = client.export(request(100, 100)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.get_details_retry_info().is_none(), "the client would retry it for ever");
    assert!(status.message().ends_with("raise max_recv_msg_size_mib"), "{status}");
    client.export(request(1, 100)).await.unwrap();
    assert_eq!(receiver.budget.used(), receiver.export.take()[0].permit.bytes());
}

#[tokio::test]
async fn if_the_memory_budget_is_the_limit_the_message_says_to_raise_it() {
    let receiver = Receiver::with(StandIn::ok(), limited(MIB), Budget::new(MIB));
    let status = receiver.client().await.export(request(1, 3 * MIB)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().ends_with("send smaller batches or raise memory_limiter"), "{status}");
}

#[tokio::test]
async fn a_decompression_bomb_is_refused_permanently() {
    let receiver = Receiver::with(StandIn::ok(), limited(MIB), Budget::new(8 * MIB));
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        let mut client = receiver.client().await.send_compressed(encoding);
        let status = client.export(request(1, 32 * MIB)).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{encoding}: {status}");
        assert!(status.get_details_retry_info().is_none(), "{encoding}");
    }
    assert_eq!(receiver.budget.used(), 0);
}

#[tokio::test]
async fn a_full_budget_is_a_reason_to_retry_later() {
    let receiver = Receiver::with(StandIn::ok(), GrpcConfig::default(), Budget::new(8 * MIB));
    let others = receiver.budget.take(6 * MIB).unwrap();
    for encoding in [None, Some(CompressionEncoding::Gzip), Some(CompressionEncoding::Zstd)] {
        let mut client = receiver.client().await;
        if let Some(encoding) = encoding {
            client = client.send_compressed(encoding);
        }
        let status = client.export(request(1, 3 * MIB)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{encoding:?}: {status}");
        let delay = status.get_details_retry_info().and_then(|info| info.retry_delay).unwrap();
        assert!((Duration::from_secs(1)..=Duration::from_secs(5)).contains(&delay), "{delay:?}");
        assert_eq!(receiver.budget.used(), others.bytes());
    }
}

/// A request whose spans have names of 30 KiB. Every `repeat` names are the same.
fn large(len: usize, repeat: usize) -> ExportTraceServiceRequest {
    let mut request = request(len / (30 << 10), 0);
    for (at, span) in request.resource_spans[0].scope_spans[0].spans.iter_mut().enumerate() {
        let mut random = fastrand::Rng::with_seed((at / repeat) as u64);
        span.name = std::iter::repeat_with(|| random.alphanumeric()).take(30 << 10).collect();
    }
    request
}

#[tokio::test]
async fn what_fits_alone_is_taken_and_what_never_fits_is_refused_for_good_compressed_or_not() {
    let receiver = Receiver::with(StandIn::ok(), limited(16 * MIB), Budget::new(16 * MIB));
    for encoding in [None, Some(CompressionEncoding::Gzip), Some(CompressionEncoding::Zstd)] {
        let client = || async {
            let client = receiver.client().await.max_encoding_message_size(64 * MIB);
            match encoding {
                None => client,
                Some(encoding) => client.send_compressed(encoding),
            }
        };
        let taken = client().await.export(large(9 * MIB, 50)).await;
        assert!(taken.is_ok(), "{encoding:?}: {taken:?}");
        drop(receiver.export.take());
        // Compressed, these names have three fourths of their length; both forms are needed while they are inflated.
        let len = if encoding.is_some() { 10 * MIB } else { 17 * MIB };
        let status = client().await.export(large(len, 1)).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{encoding:?}: {status}");
        assert!(status.get_details_retry_info().is_none(), "{encoding:?}: it would be sent again for ever");
        assert!(status.message().ends_with("raise memory_limiter"), "{encoding:?}: {status}");
        until("all is given back", || receiver.budget.used() == 0).await;
    }
}

#[tokio::test]
async fn one_connection_gets_its_share_and_others_theirs() {
    let (export, gate, _) = connections::waiting();
    let receiver = Receiver::with(export, GrpcConfig::default(), Budget::new(MIB));
    let mut greedy = receiver.client().await;
    let mut sending = Vec::new();
    for _ in 0..6 {
        let mut client = greedy.clone();
        sending.push(receiver.tasks.spawn(async move { client.export(request(1, 60_000)).await }));
    }
    // Four of them fit in 256 KiB.
    until("its share is used up", || receiver.budget.used() >= 240_000).await;
    let status = greedy.export(request(1, 60_000)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.get_details_retry_info().is_some());
    assert!(receiver.budget.used() <= MIB / 4, "{}", receiver.budget.used());
    let mut other = receiver.client().await;
    let other = receiver.tasks.spawn(async move { other.export(request(1, MIB / 2)).await });
    until("the only request of a connection is read", || receiver.budget.used() >= 240_000 + MIB / 2).await;
    gate.add_permits(10);
    other.await.unwrap().unwrap();
    let mut taken = 0;
    for sending in sending {
        taken += usize::from(sending.await.unwrap().is_ok());
    }
    assert_eq!(taken, 4);
}

#[tokio::test]
async fn what_inflates_to_more_than_it_states_or_seems_to_is_inflated_in_a_place() {
    let receiver = Receiver::start(StandIn::ok());
    // Short once compressed and states no size, so it is first taken for a short one.
    let mut client = receiver.client().await.send_compressed(CompressionEncoding::Zstd);
    client.export(request(1, 3 * MIB)).await.unwrap();
    let [request] = &receiver.export.take()[..] else { panic!("one request") };
    assert!(request.place.is_some() && request.message.payload_len() > 3 * MIB);
    assert_eq!(receiver.budget.used(), request.permit.bytes());
    assert!(request.permit.bytes() < 4 * MIB, "what was inflated at first is given back");
}

#[tokio::test]
async fn small_requests_need_no_place() {
    let receiver = Receiver::start(StandIn::ok());
    let mut client = receiver.client().await;
    client.export(request(1, 200_000)).await.unwrap();
    let mut compressed = client.clone().send_compressed(CompressionEncoding::Zstd);
    compressed.export(large(70_000, 1)).await.unwrap();
    client.export(request(1, 2_000_000)).await.unwrap();
    assert!(receiver.export.take().iter().all(|request| request.place.is_none()));
    client.export(request(1, 2_200_000)).await.unwrap();
    assert!(receiver.export.take()[0].place.is_some(), "it is long");
    compressed.export(request(1, 200_000)).await.unwrap();
    assert!(receiver.export.take()[0].place.is_some(), "it inflates to more than 100 times its size");
}

#[tokio::test]
async fn streams_that_announce_much_and_send_little_take_little_memory() {
    let receiver = Receiver::start(StandIn::ok());
    let mut streams = Vec::new();
    for _ in 0..2 {
        let client = receiver.h2().await;
        for _ in 0..100 {
            let mut client = client.clone().ready().await.unwrap();
            let (response, mut body) = client.send_request(traces(), false).unwrap();
            body.send_data(Bytes::from_static(&[0, 0x04, 0, 0, 0, 1, 2, 3]), false).unwrap();
            streams.push((response, body));
        }
    }
    // Each stream gets the smallest buffer.
    until("all streams are being read", || receiver.budget.used() >= 200 * 256).await;
    assert_eq!(receiver.budget.used(), 200 * 256);
    drop(streams);
    until("all memory is given back", || receiver.budget.used() == 0).await;
    assert!(receiver.export.take().is_empty());
}

#[tokio::test]
async fn a_body_that_is_not_one_message_is_refused() {
    let receiver = Receiver::start(StandIn::ok());
    let client = receiver.h2().await;
    let cases: [(&str, &'static [u8], Code); 6] = [
        ("half a prefix", &[0, 0, 0], Code::Internal),
        ("half a message", &[0, 0, 0, 0, 9, 1], Code::Internal),
        ("an unknown flag", &[7, 0, 0, 0, 0], Code::Internal),
        ("compressed without an encoding", &[1, 0, 0, 0, 1, 0], Code::Internal),
        ("two messages", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Code::Unimplemented),
        ("no message", &[], Code::Unimplemented),
    ];
    for (what, bytes, code) in cases {
        let mut client = client.clone().ready().await.unwrap();
        let (response, mut body) = client.send_request(traces(), false).unwrap();
        body.send_data(Bytes::from_static(bytes), true).unwrap();
        let status = grpc_status(&finish(response).await.2);
        assert_eq!(status.code(), code, "{what}: {status}");
        assert!(status.get_details_retry_info().is_none(), "{what}");
    }
    for encoding in ["gzip", "zstd"] {
        let mut client = client.clone().ready().await.unwrap();
        let mut head = traces();
        head.headers_mut().insert("grpc-encoding", encoding.parse().unwrap());
        let (response, mut body) = client.send_request(head, false).unwrap();
        body.send_data(Bytes::from_static(&[1, 0, 0, 0, 3, 1, 2, 3]), true).unwrap();
        assert_eq!(grpc_status(&finish(response).await.2).code(), Code::Internal, "{encoding}");
    }
    assert!(receiver.export.take().is_empty());
    assert_eq!(receiver.budget.used(), 0);
}

#[tokio::test]
async fn a_message_in_many_small_frames_is_put_together() {
    let receiver = Receiver::start(StandIn::ok());
    let mut client = receiver.h2().await;
    let (response, mut body) = client.send_request(traces(), false).unwrap();
    let message: Vec<u8> = [0, 0, 0, 0, 60].into_iter().chain(1..=60).collect();
    for byte in &message {
        body.send_data(Bytes::copy_from_slice(&[*byte]), false).unwrap();
        tokio::task::yield_now().await;
    }
    body.send_data(Bytes::new(), true).unwrap();
    let (_, reply, trailers) = finish(response).await;
    assert_eq!((reply.as_slice(), grpc_status(&trailers).code()), (&[0; 5][..], Code::Ok));
    assert_eq!(receiver.export.take()[0].message.to_bytes(), message);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_answered_at_its_deadline() {
    let tasks = Tasks::new();
    let stream = serve_in_memory(StandIn::ok(), &GrpcConfig::default(), &tasks);
    let mut client = h2_over(stream, &tasks).await;
    let mut head = traces();
    head.headers_mut().insert("grpc-timeout", "2S".parse().unwrap());
    let started = tokio::time::Instant::now();
    let (response, mut body) = client.send_request(head, false).unwrap();
    body.send_data(Bytes::from_static(&[0, 0, 0]), false).unwrap();
    let status = grpc_status(&finish(response).await.2);
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.get_details_retry_info().is_some());
    let waited = started.elapsed().as_millis();
    assert!((1_900..=1_902).contains(&waited), "{waited} ms");
    tasks.stop();
}

#[tokio::test]
async fn headers_above_their_limit_are_refused() {
    let receiver = Receiver::start(StandIn::ok());
    let mut client = receiver.h2().await;
    let mut head = traces();
    head.headers_mut().insert("x-large", "x".repeat(20_000).parse().unwrap());
    let (response, _) = client.send_request(head, true).unwrap();
    assert_eq!(response.await.unwrap().status(), 431);
}
