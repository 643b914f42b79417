//! Tests of what the HTTP door answers, and when: signals without a route, clients that close their side, compressed answers.

use std::sync::atomic::Ordering;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use tokio::{io::AsyncWriteExt, time::Instant};

use super::{
    connections::waiting,
    over_http::{BODY, Client, account, head, serve},
    *,
};
use crate::{
    codec::{Encoding, inflate_uncounted},
    receive::HttpConfig,
    settings::values::ByteSize,
};

fn whole() -> Vec<u8> {
    [head(BODY.len(), "").as_bytes(), &BODY].concat()
}

#[tokio::test(start_paused = true)]
async fn a_signal_without_a_route_is_refused_before_its_body_is_read() {
    let (tasks, budget) = (Tasks::new(), Budget::new(1 << 30));
    let mut client = serve(StandIn::without(Signal::Metrics), &HttpConfig::default(), &budget, &tasks);
    let started = Instant::now();
    // Its body is too large, in an unknown encoding, and never sent.
    let request = head(30 << 20, "content-encoding: br\r\n").replace("/v1/traces", "/v1/metrics");
    client.send(request.as_bytes()).await;
    let reply = client.reply().await.unwrap();
    assert_eq!((reply.status(), started.elapsed()), (404, Duration::ZERO), "{reply:?}");
    assert!(reply.has("content-type: application/x-protobuf"));
    tasks.stop();
}

#[tokio::test]
async fn a_grpc_call_of_a_signal_without_a_route_is_refused_before_its_message_is_read() {
    let receiver = Receiver::start(StandIn::without(Signal::Metrics));
    let mut client = receiver.h2().await;
    let (response, mut body) = client.send_request(super::head(Signal::Metrics.grpc_path()), false).unwrap();
    let status = grpc_status(&finish(response).await.2);
    assert_eq!((status.code(), status.message()), (tonic::Code::Unimplemented, "no route"));
    body.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
    assert_eq!(receiver.export.take().len(), 0);
}

/// Sends a request and closes the client's side.
async fn send_and_close(client: &mut Client, request: &[u8]) {
    client.send(request).await;
    client.0.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_closes_its_side_behind_a_request_is_answered_if_that_is_soon() {
    let (tasks, budget) = (Tasks::new(), Budget::new(1 << 30));
    let (export, gate, alive) = waiting();
    let chunked = head(0, "").replace("content-length: 0", "transfer-encoding: chunked");
    let chunked = [chunked.as_bytes(), b"2\r\n", &BODY, b"\r\n0\r\n\r\n"].concat();
    let long = [head(50_000, "").as_bytes(), &[0; 50_000]].concat();
    for request in [whole(), head(0, "").into_bytes(), chunked, long, [whole(), whole()].concat()] {
        let count = request.windows(5).filter(|five| five == b"POST ").count();
        let mut client = serve(Arc::clone(&export), &HttpConfig::default(), &budget, &tasks);
        send_and_close(&mut client, &request).await;
        for _ in 0..count {
            until("the request is in flight", || alive.load(Ordering::SeqCst) == 1).await;
            tokio::time::sleep(Duration::from_millis(900)).await;
            gate.add_permits(1);
            assert_eq!(client.reply().await.expect("an answer").status(), 200);
        }
        assert_eq!(client.end().await, Duration::ZERO);
    }
    // Nobody seems to wait for this one.
    let mut client = serve(Arc::clone(&export), &HttpConfig::default(), &budget, &tasks);
    send_and_close(&mut client, &whole()).await;
    until("the request is in flight", || alive.load(Ordering::SeqCst) == 1).await;
    let waited = client.end().await;
    assert!((0.9..1.1).contains(&waited.as_secs_f64()), "{waited:?}");
    assert_eq!(alive.load(Ordering::SeqCst), 0, "the request is dropped");
    // A request that is not whole will never be.
    let started = Instant::now();
    let mut client = serve(export, &HttpConfig::default(), &budget, &tasks);
    send_and_close(&mut client, &whole()[..whole().len() - 1]).await;
    assert_eq!(client.reply().await.unwrap().status(), 400);
    assert_eq!(client.end().await + started.elapsed(), Duration::ZERO);
    tasks.stop();
}

#[tokio::test(start_paused = true)]
async fn a_long_answer_is_compressed_as_the_client_asks() {
    let (tasks, budget) = (Tasks::new(), Budget::new(1 << 30));
    let export = StandIn::new(|| async { Outcome::Accepted { rejected: 3, message: Some("bad span; ".repeat(20)) } });
    for (asked, encoding) in [("gzip", Encoding::Gzip), ("br, zstd", Encoding::Zstd), ("deflate", Encoding::Deflate)] {
        let mut client = serve(Arc::clone(&export), &HttpConfig::default(), &budget, &tasks);
        client.send(&[head(BODY.len(), &format!("accept-encoding: {asked}\r\n")).as_bytes(), &BODY].concat()).await;
        let reply = client.reply().await.unwrap();
        assert!(reply.status() == 200 && reply.has(&format!("content-encoding: {}", encoding.as_str())), "{reply:?}");
        let message = inflate_uncounted(encoding, &reply.body, 1_000).unwrap();
        let partial = ExportTraceServiceResponse::decode(&message.payload()[..]).unwrap().partial_success.unwrap();
        assert_eq!((partial.rejected_spans, partial.error_message.len()), (3, 200));
    }
    tasks.stop();
}

#[tokio::test]
async fn a_document_within_the_limit_is_taken_even_if_its_message_is_larger() {
    let mut config = HttpConfig::default();
    config.keys.max_request_body_size = ByteSize(10_000);
    let counts = "0,".repeat(4_500);
    let counts = counts.trim_end_matches(',');
    let document = format!(
        r#"{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[{{"histogram":{{"dataPoints":[{{"bucketCounts":[{counts}]}}]}}}}]}}]}}]}}"#
    );
    let request = head(document.len(), "").replace("/v1/traces", "/v1/metrics").replace("x-protobuf", "json");
    let request = [request.as_bytes(), document.as_bytes()].concat();
    // The memory account still bounds it.
    for (memory, status) in [(1 << 20, 200), (30_000, 413)] {
        let (tasks, budget, export) = (Tasks::new(), account(1 << 20, memory), StandIn::ok());
        let mut client = serve(Arc::clone(&export), &config, &budget, &tasks);
        client.send(&request).await;
        let reply = client.reply().await.unwrap();
        assert_eq!(reply.status(), status, "{reply:?}");
        let lens: Vec<usize> = export.take().iter().map(|request| request.message.payload_len()).collect();
        assert!(if status == 200 { lens[0] > 36_000 } else { lens.is_empty() }, "{lens:?}");
        tasks.stop();
    }
}
