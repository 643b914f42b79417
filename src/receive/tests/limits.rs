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
async fn a_full_budget_is_a_retryable_refusal() {
    let receiver = Receiver::with(StandIn::ok(), GrpcConfig::default(), Budget::new(MIB));
    for encoding in [None, Some(CompressionEncoding::Gzip), Some(CompressionEncoding::Zstd)] {
        let mut client = receiver.client().await;
        if let Some(encoding) = encoding {
            client = client.send_compressed(encoding);
        }
        let status = client.export(request(1, 3 * MIB)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{encoding:?}: {status}");
        let delay = status.get_details_retry_info().and_then(|info| info.retry_delay).unwrap();
        assert!((Duration::from_secs(1)..=Duration::from_secs(5)).contains(&delay), "{delay:?}");
        assert_eq!(receiver.budget.used(), 0);
    }
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
    // Each stream gets a buffer of 64 KiB, whose unwritten pages use no memory.
    until("all streams are being read", || receiver.budget.used() >= 200 * (64 << 10)).await;
    assert_eq!(receiver.budget.used(), 200 * (64 << 10));
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
