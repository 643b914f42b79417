//! Tests of requests and replies with a gRPC client.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use prost::Message;
use tokio::time::Instant;
use tonic::{Code, codec::CompressionEncoding};
use tonic_types::StatusExt;

use super::*;
use crate::otlp::{Reason, Refusal};

#[tokio::test]
async fn requests_are_received_in_every_encoding() {
    let receiver = Receiver::start(StandIn::ok());
    for encoding in [None, Some(CompressionEncoding::Gzip), Some(CompressionEncoding::Zstd)] {
        // A message that fits in one frame, one of several frames, and one larger than the windows.
        for (spans, name_len) in [(3, 10), (2_000, 50), (2_000, 4_000)] {
            let mut client = receiver.client().await;
            if let Some(encoding) = encoding {
                client = client.send_compressed(encoding).accept_compressed(encoding);
            }
            let sent = request(spans, name_len);
            let reply = client.export(sent.clone()).await.unwrap().into_inner();
            assert_eq!(reply, ExportTraceServiceResponse { partial_success: None });
            let [got] = receiver.export.take().try_into().expect("one request must have arrived");
            assert_eq!(got.signal, Signal::Traces);
            assert!(got.message.payload() == sent.encode_to_vec(), "{encoding:?}, {spans} spans: other bytes");
            assert!(got.permit.bytes() >= got.message.framed_len(), "its bytes must be in the budget");
            if spans == 3 && encoding == Some(CompressionEncoding::Gzip) {
                // gzip states the size, so the buffer is at most one byte too large. The compressed bytes are kept, since
                // they may go on as they came.
                let original = got.original.as_ref().expect("it is one member");
                assert_eq!(got.permit.bytes(), got.message.framed_len() + 1 + original.bytes.len());
            }
            drop(got);
            assert_eq!(receiver.budget.used(), 0);
        }
    }
}

#[tokio::test]
async fn an_empty_request_is_accepted() {
    let receiver = Receiver::start(StandIn::ok());
    let mut client = receiver.client().await;
    client.export(ExportTraceServiceRequest::default()).await.unwrap();
    assert_eq!(receiver.export.take().first().map(|request| request.message.payload_len()), Some(0));
}

#[tokio::test]
async fn clients_can_read_a_partial_success_in_every_encoding() {
    let receiver = Receiver::start(StandIn::new(|| async {
        Outcome::Accepted { rejected: 3, message: Some("three were bad".into()) }
    }));
    for encoding in [None, Some(CompressionEncoding::Gzip), Some(CompressionEncoding::Zstd)] {
        let mut client = receiver.client().await;
        if let Some(encoding) = encoding {
            client = client.send_compressed(encoding).accept_compressed(encoding);
        }
        let reply = client.export(request(5, 5)).await.unwrap();
        let encoded_as = reply.metadata().get("grpc-encoding").map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(encoded_as, encoding.map(|encoding| encoding.to_string()));
        let partial = reply.into_inner().partial_success.expect("the reply must have a partial success");
        assert_eq!((partial.rejected_spans, partial.error_message.as_str()), (3, "three were bad"));
    }
    // A client that compresses its requests but does not accept compressed replies gets uncompressed ones.
    let mut client = receiver.client().await.send_compressed(CompressionEncoding::Gzip);
    assert!(client.export(request(5, 5)).await.unwrap().into_inner().partial_success.is_some());
}

#[tokio::test]
async fn a_refusal_has_its_code_and_retry_delay() {
    let receiver = Receiver::start(StandIn::new(|| async {
        let refusal = Refusal::retryable(Reason::NotReady, "täble: 100 % away\n");
        Outcome::Refused(Refusal { retry_after: Some(Duration::from_millis(1_500)), ..refusal })
    }));
    let status = receiver.client().await.export(request(1, 1)).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "täble: 100 % away\n"));
    let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
    assert_eq!(delay, Some(Duration::from_millis(1_500)));

    let receiver = Receiver::start(StandIn::new(|| async {
        Outcome::Refused(Refusal::permanent(Code::InvalidArgument, Reason::Malformed, "malformed protobuf at byte 7"))
    }));
    let status = receiver.client().await.export(request(1, 1)).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "malformed protobuf at byte 7"));
    assert!(status.get_details_retry_info().is_none());
}

#[tokio::test]
async fn the_deadline_is_the_clients_timeout_minus_a_margin() {
    let receiver = Receiver::start(StandIn::ok());
    let mut client = receiver.client().await;
    for (timeout, expected) in [(None, 7_600), (Some(2_000), 1_900), (Some(60_000), 7_600)] {
        let mut request = tonic::Request::new(request(1, 1));
        if let Some(timeout) = timeout {
            request.set_timeout(Duration::from_millis(timeout));
        }
        let before = Instant::now();
        client.export(request).await.unwrap();
        let after = Instant::now();
        let deadline = receiver.export.take()[0].deadline;
        let margin = Duration::from_millis(expected);
        assert!(deadline >= before + margin - Duration::from_millis(1), "{timeout:?} too early");
        assert!(deadline <= after + margin, "{timeout:?} too late");
    }
}

#[tokio::test]
async fn a_panic_becomes_a_retryable_refusal_and_the_next_request_is_served() {
    let panics = std::sync::atomic::AtomicBool::new(true);
    let receiver = Receiver::start(StandIn::new(move || {
        let panics = panics.swap(false, std::sync::atomic::Ordering::Relaxed);
        async move {
            assert!(!panics, "this test makes the pipeline panic");
            Outcome::OK
        }
    }));
    let mut client = receiver.client().await;
    let status = client.export(request(1, 1)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.get_details_retry_info().is_some());
    client.export(request(1, 1)).await.unwrap();
}

#[tokio::test]
async fn unknown_methods_are_unimplemented() {
    let receiver = Receiver::start(StandIn::ok());
    let mut client = receiver.h2().await;
    let (response, _) = client.send_request(head("/no.such.Service/Export"), true).unwrap();
    let (head, _, trailers) = finish(response).await;
    let status = grpc_status(&trailers);
    assert_eq!((head.status().as_u16(), status.code()), (200, Code::Unimplemented));
    assert!(status.message().contains("trace.v1.TraceService"), "{status}");
    assert!(status.message().ends_with('}'), "the list of served methods must not be cut off");
}

#[tokio::test]
async fn an_unknown_encoding_is_unimplemented_and_the_answer_lists_the_accepted_ones() {
    let receiver = Receiver::start(StandIn::ok());
    let mut client = receiver.h2().await;
    let mut head = traces();
    head.headers_mut().insert("grpc-encoding", "br".parse().unwrap());
    let (response, mut body) = client.send_request(head, false).unwrap();
    body.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
    let (head, _, trailers) = finish(response).await;
    assert_eq!(grpc_status(&trailers).code(), Code::Unimplemented);
    assert_eq!(head.headers()["grpc-accept-encoding"], "identity,gzip,zstd,snappy");
}

#[tokio::test]
async fn requests_that_are_not_grpc_get_an_http_status() {
    let receiver = Receiver::start(StandIn::ok());
    let mut client = receiver.h2().await;
    let mut get = traces();
    *get.method_mut() = http::Method::GET;
    let (response, _) = client.send_request(get, true).unwrap();
    let (head, body, _) = finish(response).await;
    assert_eq!(head.status(), 405);
    assert_eq!(head.headers()["content-type"], "text/plain; charset=utf-8");
    assert_eq!(body, b"gRPC requests have the method POST\n", "the body must tell people, too");
    let mut head_only = traces();
    *head_only.method_mut() = http::Method::HEAD;
    let (response, _) = client.send_request(head_only, true).unwrap();
    let (head, body, _) = finish(response).await;
    assert_eq!((head.status().as_u16(), body.len()), (405, 0), "the answer to HEAD has no body");
    let mut json = traces();
    json.headers_mut().insert("content-type", "application/json".parse().unwrap());
    let (response, _) = client.send_request(json, true).unwrap();
    assert_eq!(finish(response).await.0.status(), 415);
}

#[tokio::test]
async fn requests_are_counted_by_outcome() {
    let answers = std::sync::atomic::AtomicUsize::new(0);
    let export = StandIn::new(move || {
        let first = answers.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
        async move {
            match first {
                true => Outcome::OK,
                false => Outcome::Refused(Refusal::retryable(Reason::QueueFull, "full")),
            }
        }
    });
    let (recorder, receiver) = Recorder::scoped(|recorder| (recorder.clone(), Receiver::start(export)));
    let mut client = receiver.client().await;
    client.export(request(1, 1)).await.unwrap();
    client.export(request(1, 1)).await.unwrap_err();
    let len = request(1, 1).encoded_len();
    let page = recorder.render();
    for line in [
        "spanring_receiver_requests_total{signal=\"traces\",code=\"OK\"} 1",
        "spanring_receiver_requests_total{signal=\"traces\",code=\"UNAVAILABLE\"} 1",
        "spanring_receiver_requests_total{signal=\"logs\",code=\"OK\"} 0",
        "spanring_receiver_refused_requests_total{signal=\"traces\",reason=\"queue_full\"} 1",
        "spanring_receiver_refused_requests_total{signal=\"none\",reason=\"unimplemented\"} 0",
        "spanring_receiver_in_flight_requests{signal=\"traces\"} 0",
        "spanring_receiver_abandoned_requests_total{signal=\"traces\"} 0",
        "spanring_receiver_connections{listener=\"otlp_grpc\"} 1",
        "spanring_receiver_connections_total{listener=\"otlp_grpc\",result=\"accepted\"} 1",
        "spanring_memory_budget_limit_bytes 1073741824",
        &format!("spanring_receiver_bytes_total{{signal=\"traces\"}} {}", 2 * len),
        &format!("spanring_receiver_wire_bytes_total{{signal=\"traces\"}} {}", 2 * (len + 5)),
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is missing in\n{page}");
    }
}
