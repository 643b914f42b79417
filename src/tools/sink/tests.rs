//! Tests of a sink on a real socket, with our own client.

use std::time::Duration;

use bytes::Bytes;
use tonic::Code;

use super::*;
use crate::{
    otlp::{Framed, Signal},
    settings::Compression,
    tools::{
        h2client::{Answer, Channel},
        otlp_body::{Bodies, BodySpec},
    },
};

/// A sink with a client.
struct Pair {
    sink: Sink,
    channel: Channel,
    tasks: Tasks,
}

impl Pair {
    async fn new(config: SinkConfig, compression: Compression) -> Self {
        Self::of(Signal::Traces, config, compression).await
    }

    async fn of(signal: Signal, config: SinkConfig, compression: Compression) -> Self {
        let tasks = Tasks::new();
        let sink = Sink::start(config, &tasks).await.unwrap();
        let (addr, path) = (sink.addr.to_string(), signal.grpc_path());
        let channel = Channel::new(&addr, path, compression, Duration::from_secs(10), None, &tasks).unwrap();
        Self { sink, channel, tasks }
    }

    async fn send(&self, message: Bytes) -> Option<u64> {
        match self.channel.call(message).await {
            Answer::Accepted { rejected } => Some(rejected),
            _ => None,
        }
    }

    async fn refusal(&self, message: Bytes) -> tonic::Status {
        match self.channel.call(message).await {
            Answer::Status(status) => *status,
            other => panic!("not refused: {other:?}"),
        }
    }

    async fn end(self) {
        self.tasks.stop();
        self.tasks.wait().await;
    }
}

fn bodies(spec: BodySpec) -> Bodies {
    Bodies::generate(BodySpec { bodies: 8, ..spec }).unwrap()
}

#[tokio::test]
async fn every_span_is_counted_and_partial_traces_are_recognised() {
    let pair = Pair::new(SinkConfig::default(), Compression::None).await;
    let bodies = bodies(BodySpec::default());
    for ticket in 0..6 {
        assert_eq!(pair.send(bodies.compose(ticket, None)).await, Some(0));
    }
    let report = pair.sink.report();
    assert_eq!((report.requests, report.spans, report.foreign_spans), (6, 600, 0));
    let tracked = TrackedReport { traces: 24, traces_partial: 12, ..TrackedReport::default() };
    assert_eq!(report.tracked, Some(tracked), "one group of 12 traces is whole, of the other half came");
    let seen = pair.sink.seen();
    assert_eq!(seen.values().map(Vec::len).sum::<usize>(), 600);
    for ticket in 0..6 {
        for (key, place) in bodies.spans(ticket) {
            assert!(seen[&key.to_bytes()].contains(&key.span_id(place)));
        }
    }
    pair.end().await;
}

#[tokio::test]
async fn the_same_port_takes_otlp_http() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let pair = Pair::new(SinkConfig::default(), Compression::None).await;
    let message = bodies(BodySpec::default()).compose(0, None);
    let body = Framed::from_prefixed(message).unwrap();
    let mut stream = tokio::net::TcpStream::connect(pair.sink.addr).await.unwrap();
    let posts = [("/v1/traces", body.payload().into_owned()), ("/v1/traces", vec![0xff]), ("/nowhere", vec![])];
    for (path, body) in posts {
        let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
    }
    stream.write_all(b"HEAD /v1/traces HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answers = Vec::new();
    stream.read_to_end(&mut answers).await.unwrap();
    let answers = String::from_utf8_lossy(&answers);
    let statuses: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).filter_map(|answer| answer.get(..3)).collect();
    assert_eq!(statuses, ["200", "500", "404", "405"], "{answers}");
    let report = pair.sink.report();
    assert_eq!((report.requests, report.spans, report.invalid_requests), (3, 100, 2));
    pair.end().await;
}

#[tokio::test]
async fn duplicate_spans_are_counted() {
    let pair = Pair::new(SinkConfig::default(), Compression::None).await;
    let bodies = bodies(BodySpec::default());
    for ticket in [0, 1, 1, 0, 2] {
        pair.send(bodies.compose(ticket, None)).await;
    }
    let report = pair.sink.report();
    assert_eq!((report.spans, report.tracked.unwrap().duplicates), (500, 200));
    pair.end().await;
}

#[tokio::test]
async fn spans_of_other_generators_are_tracked_too() {
    let pair = Pair::new(SinkConfig::default(), Compression::None).await;
    let span = |trace: &[u8], id: u8| {
        let mut span = vec![0x0a, u8::try_from(trace.len()).unwrap()];
        span.extend(trace);
        span.extend([0x12, 8, id, 0, 0, 0, 0, 0, 0, 1]);
        span
    };
    let mut scope = Vec::new();
    for span in [span(&[1; 16], 1), span(&[1; 16], 2), span(&[1; 16], 2), span(&[2; 16], 1), span(&[3; 5], 1)] {
        scope.extend([0x12, u8::try_from(span.len()).unwrap()]);
        scope.extend(span);
    }
    let len = u8::try_from(scope.len()).unwrap();
    assert!(len >= 0x80, "a length of two bytes");
    let scope = [&[0x12, len, 1], scope.as_slice()].concat();
    let request = [&[0x0a, u8::try_from(scope.len()).unwrap(), 1], scope.as_slice()].concat();
    pair.send(Framed::copy_from_payload(&request).unwrap().to_bytes()).await;
    let report = pair.sink.report();
    assert_eq!((report.spans, report.foreign_spans, report.invalid_ids), (5, 4, 1));
    let tracked = report.tracked.unwrap();
    assert_eq!((tracked.traces, tracked.duplicates, tracked.traces_partial), (2, 1, 0));
    pair.end().await;
}

/// Returns a message as field `number` of another message.
fn nest(number: u8, inner: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    prost::encode_length_delimiter(inner.len(), &mut field).unwrap();
    [field, inner.to_vec()].concat()
}

/// Returns a request with these records.
fn request_of(records: &[u8]) -> Bytes {
    Framed::copy_from_payload(&nest(1, &nest(2, records))).unwrap().to_bytes()
}

#[tokio::test]
async fn records_of_every_signal_are_counted() {
    // A gauge with two points; a sum, a histogram, an exponential histogram and a summary with one point each; an empty
    // metric.
    let metric = |field, points| nest(2, &nest(field, &vec![nest(1, &[]); points].concat()));
    let metrics = [metric(5, 2), metric(7, 1), metric(9, 1), metric(10, 1), metric(11, 1), nest(2, &[])].concat();
    // Field 5 of a log record is its body. Its trace ID is not read.
    let logs = [nest(2, &nest(5, &nest(1, b"said"))), nest(2, &[])].concat();
    for (signal, name, records, count) in [
        (Signal::Metrics, "data_points", metrics, 6),
        (Signal::Logs, "log_records", logs, 2),
        (Signal::Profiles, "profiles", nest(2, &nest(1, &[])), 1),
    ] {
        let pair = Pair::of(signal, SinkConfig::default(), Compression::None).await;
        assert_eq!(pair.send(request_of(&records)).await, Some(0), "{name}");
        let report = pair.sink.report();
        assert_eq!(report.records[name], RecordsReport { taken: count, rejected: 0 }, "{name}");
        assert_eq!(report.records.values().map(|of| of.taken).sum::<u64>(), count, "{name}");
        assert_eq!((report.spans, report.requests, report.invalid_requests), (0, 1, 0), "{name}");
        let malformed = Framed::copy_from_payload(&[0x0a, 9, 1]).unwrap().to_bytes();
        assert_eq!(pair.refusal(malformed).await.code(), Code::Internal, "{name}");

        pair.sink.set_behaviour(Behaviour { reject_rate: 0.5, ..Behaviour::default() });
        let many = request_of(&vec![records; 4].concat());
        let mut rejected = 0;
        for _ in 0..40 {
            rejected += pair.send(many.clone()).await.unwrap();
        }
        let RecordsReport { taken, rejected: told } = pair.sink.report().records[name];
        assert_eq!((taken, told), (count + 160 * count - rejected, rejected), "{name}");
        assert!((40 * count..120 * count).contains(&rejected), "{name}: {rejected} of {}", 160 * count);
        let sinks = SinksReport::of(std::slice::from_ref(&pair.sink));
        let mut text = Vec::new();
        sinks.write_text(&mut text).unwrap();
        let line = format!("{} rejected", name.replace('_', " "));
        assert!(String::from_utf8(text).unwrap().contains(&line), "{line}");
        pair.end().await;
    }
}

#[tokio::test]
async fn gzip_and_zstd_are_accepted() {
    for compression in [Compression::Gzip, Compression::Zstd] {
        let pair = Pair::new(SinkConfig::default(), compression).await;
        for unique in [false, true] {
            let spec = BodySpec { compression, unique, seed: u64::from(unique), ..BodySpec::default() };
            assert_eq!(pair.send(bodies(spec).compose(0, None)).await, Some(0));
        }
        assert_eq!(pair.sink.report().spans, 200);
        pair.end().await;
    }
}

#[tokio::test]
async fn failures_have_their_rate_and_depend_only_on_the_seed() {
    let behaviour = Behaviour {
        failure_rate: 0.3,
        failure_code: FailureCode::ResourceExhausted,
        failure_retry_after_ms: Some(1500),
        seed: 5,
        ..Behaviour::default()
    };
    let mut runs = Vec::new();
    for _ in 0..2 {
        let config = SinkConfig { behaviour: behaviour.clone(), ..SinkConfig::default() };
        let pair = Pair::new(config, Compression::None).await;
        let bodies = bodies(BodySpec { unique: true, ..BodySpec::default() });
        let mut outcomes = Vec::new();
        for ticket in 0..40 {
            outcomes.push(match pair.channel.call(bodies.compose(ticket, None)).await {
                Answer::Accepted { .. } => None,
                Answer::Status(status) => Some(status.code()),
                other => panic!("{other:?}"),
            });
        }
        let failed = outcomes.iter().filter(|outcome| **outcome == Some(Code::ResourceExhausted)).count() as u64;
        let report = pair.sink.report();
        assert_eq!((report.failed_requests, report.spans), (failed, (40 - failed) * 100));
        assert!((4..20).contains(&failed), "{failed}");
        runs.push(outcomes);
        pair.end().await;
    }
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test]
async fn transport_failures_are_sent_in_http2_and_keep_the_connection() {
    let failing = |failure_code| Behaviour { failure_rate: 1.0, failure_code, ..Behaviour::default() };
    let pair = Pair::new(SinkConfig::default(), Compression::None).await;
    let body = bodies(BodySpec::default()).compose(0, None);
    pair.sink.set_behaviour(failing(FailureCode::RefusedStream));
    // More resets than the h2 crate tolerates by default before it closes the connection.
    for _ in 0..1_100 {
        match pair.channel.call(body.clone()).await {
            Answer::Lost(reason) => assert!(reason.contains("refused stream"), "{reason}"),
            other => panic!("not reset: {other:?}"),
        }
    }
    for (code, status) in [(FailureCode::Http502, "502"), (FailureCode::Http503, "503")] {
        pair.sink.set_behaviour(failing(code));
        let refusal = pair.refusal(body.clone()).await;
        assert!(refusal.message().contains(status), "{refusal}");
    }
    let report = pair.sink.report();
    assert_eq!((report.failed_requests, report.spans, report.connections), (1_102, 0, 1));
    pair.end().await;
}

#[tokio::test]
async fn rejected_spans_are_reported_and_not_counted_as_accepted() {
    let behaviour = Behaviour { reject_rate: 0.2, ..Behaviour::default() };
    for max_tracked_traces in [None, Some(1000)] {
        let config = SinkConfig { max_tracked_traces, behaviour: behaviour.clone(), ..SinkConfig::default() };
        let pair = Pair::new(config, Compression::None).await;
        let rejected = pair.send(bodies(BodySpec::default()).compose(0, None)).await.unwrap();
        assert!((5..40).contains(&rejected), "{rejected}");
        let report = pair.sink.report();
        assert_eq!((report.rejected_spans, report.spans), (rejected, 100 - rejected));
        pair.end().await;
    }
}

#[tokio::test]
async fn without_tracking_there_are_no_traces() {
    let config = SinkConfig { max_tracked_traces: None, ..SinkConfig::default() };
    let pair = Pair::new(config, Compression::None).await;
    pair.send(bodies(BodySpec::default()).compose(0, None)).await;
    let report = pair.sink.report();
    assert_eq!((report.spans, report.tracked), (100, None));
    pair.end().await;
}

#[tokio::test]
async fn requests_that_a_collector_refuses_are_refused() {
    let config = SinkConfig { max_recv_msg_size: 10_000, ..SinkConfig::default() };
    let pair = Pair::new(config, Compression::None).await;
    let large = bodies(BodySpec::default()).compose(0, None);
    assert_eq!(pair.refusal(large).await.code(), Code::ResourceExhausted);
    let malformed = Framed::copy_from_payload(&[0x0a, 9, 1]).unwrap().to_bytes();
    assert_eq!(pair.refusal(malformed).await.code(), Code::Internal);
    let report = pair.sink.report();
    assert_eq!((report.invalid_requests, report.spans), (2, 0));
    pair.end().await;
}

#[tokio::test]
async fn the_behaviour_can_change_while_the_sink_runs() {
    let pair = Pair::new(SinkConfig::default(), Compression::None).await;
    let body = bodies(BodySpec::default()).compose(0, None);
    assert_eq!(pair.send(body.clone()).await, Some(0));
    pair.sink.set_behaviour(Behaviour { failure_rate: 1.0, failure_keeps_spans: true, ..Behaviour::default() });
    assert_eq!(pair.refusal(body).await.code(), Code::Unavailable);
    assert_eq!(pair.sink.report().spans, 200, "it kept what it refused");
    pair.end().await;
}

#[tokio::test]
async fn the_report_is_served_over_http() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let pair = Pair::new(SinkConfig::default(), Compression::None).await;
    pair.send(bodies(BodySpec::default()).compose(0, None)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    pair.tasks.spawn(page::serve(listener, Arc::from([pair.sink.clone()]), pair.tasks.clone()));
    let ask = async |request: String| {
        let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let report = ask(get("/report")).await;
    let body: serde_json::Value = serde_json::from_str(report.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!((&body["sinks"][0]["spans"], &body["sinks"][0]["traces_partial"]), (&100.into(), &12.into()));
    assert_eq!(ask(get("/spans")).await.lines().filter(|line| line.starts_with("0 ")).count(), 100);
    let put = |path: &str, body: &str| {
        format!("PUT {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    assert!(ask(put("/behaviour?sink=0", r#"{"delay_ms": 7}"#)).await.starts_with("HTTP/1.1 200"));
    assert_eq!(pair.sink.behaviour().delay_ms, 7);
    assert!(ask(put("/behaviour?sink=1", "{}")).await.starts_with("HTTP/1.1 400"));
    assert!(ask(get("/nothing")).await.starts_with("HTTP/1.1 404"));
    pair.end().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_request_that_cannot_be_journaled_is_refused_and_may_be_retried() {
    // Every write to this device fails like one to a full disk.
    let config = SinkConfig { journal: Some("/dev/full".into()), ..SinkConfig::default() };
    let pair = Pair::new(config, Compression::None).await;
    assert_eq!(pair.refusal(bodies(BodySpec::default()).compose(0, None)).await.code(), Code::Unavailable);
    assert_eq!(pair.sink.report().spans, 0);
    pair.end().await;
}
