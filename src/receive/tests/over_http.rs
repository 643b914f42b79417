//! Tests of the HTTP door on connections: keep-alive, slow and silent clients, ages and the drain, memory, HTTP/2.

use std::sync::atomic::Ordering;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    time::{Instant, sleep, timeout},
};

use super::{connections::waiting, *};
use crate::{
    budget::{Division, Use},
    receive::{HttpConfig, exchange::Exchange, http::OtlpHttp},
};

/// A client's end of a connection.
pub(super) struct Client(pub(super) DuplexStream);

/// The head of an answer, without its empty line, and the body.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

/// Serves an in-memory connection.
pub(super) fn serve(export: Arc<StandIn>, config: &HttpConfig, budget: &Budget, tasks: &Tasks) -> Client {
    let exchange = Arc::new(Exchange::new(export, budget.clone(), tasks));
    let service = OtlpHttp::new(exchange, config, Some(4317));
    let limits = config.limits(budget, listen::OpenConnections::default());
    Client(listen::tests::serve_in_memory(limits, service.for_connection(), tasks))
}

pub(super) fn head(length: usize, more: &str) -> String {
    format!(
        "POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-protobuf\r\ncontent-length: {length}\r\n{more}\r\n"
    )
}

/// An empty message of a resource, so that there is a body.
pub(super) const BODY: [u8; 2] = [0x0a, 0];

impl Client {
    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("the connection is open");
    }

    async fn ask(&mut self) -> Reply {
        self.send(&[head(BODY.len(), "").as_bytes(), &BODY].concat()).await;
        self.reply().await.expect("an answer")
    }

    /// Reads an answer; `None` if the connection ends instead.
    pub(super) async fn reply(&mut self) -> Option<Reply> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.ok()?);
        }
        let head = String::from_utf8(head).unwrap();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |it| it.parse().unwrap());
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.ok()?;
        Some(Reply { head: head.trim_end().to_owned(), body })
    }

    /// Waits until the server closes the connection. Returns how long that took.
    pub(super) async fn end(&mut self) -> Duration {
        let started = Instant::now();
        let mut rest = Vec::new();
        let closed = timeout(Duration::from_secs(3_600), self.0.read_to_end(&mut rest)).await;
        closed.expect("it must be closed").expect("it ends");
        assert!(rest.is_empty(), "{}", rest.escape_ascii());
        started.elapsed()
    }
}

impl Reply {
    pub(super) fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub(super) fn has(&self, line: &str) -> bool {
        self.head.lines().any(|found| found == line)
    }
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

#[tokio::test]
async fn the_body_reaches_the_pipeline_after_a_prefix_however_it_comes() {
    let (tasks, budget, export) = (Tasks::new(), Budget::new(1 << 30), StandIn::ok());
    let mut client = serve(Arc::clone(&export), &HttpConfig::default(), &budget, &tasks);
    let message: Vec<u8> = (0..300_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let prefixed = [&[0, 0, 4, 0x93, 0xe0][..], &message].concat();
    client.send(&[head(message.len(), "").as_bytes(), &message].concat()).await;
    assert_eq!(client.reply().await.unwrap().status(), 200);
    let chunks =
        message.chunks(40_000).map(|chunk| [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
    let chunks = chunks.collect::<Vec<_>>().concat();
    let chunked = head(0, "").replace("content-length: 0", "transfer-encoding: chunked");
    client.send(&[chunked.as_bytes(), &chunks, b"0\r\n\r\n"].concat()).await;
    let reply = client.reply().await.unwrap();
    assert!(reply.has("content-type: application/x-protobuf") && reply.body.is_empty(), "{reply:?}");
    let requests = export.take();
    assert_eq!(requests.len(), 2);
    for request in &requests {
        assert!(request.message.to_bytes() == prefixed, "the message must be the same");
        assert!(request.permit.bytes() >= prefixed.len());
    }
    drop(requests);
    drop(client);
    tasks.drain();
    tasks.wait().await;
    assert_eq!((budget.used(), budget.clients_used()), (0, 0), "all is given back");
}

#[tokio::test(start_paused = true)]
async fn headers_that_do_not_end_in_time_end_the_connection() {
    let (tasks, budget) = (Tasks::new(), Budget::new(1 << 30));
    for after_a_request in [false, true] {
        let mut client = serve(StandIn::ok(), &HttpConfig::default(), &budget, &tasks);
        if after_a_request {
            client.ask().await;
            sleep(Duration::from_secs(100)).await;
        }
        let started = Instant::now();
        // The client goes on sending, but slowly.
        for byte in head(0, "").bytes().take(50) {
            if client.0.write_all(&[byte]).await.is_err() {
                break;
            }
            sleep(Duration::from_secs(1)).await;
        }
        client.end().await;
        let lived = seconds(started.elapsed());
        assert!((10.0..=51.0).contains(&lived), "{lived}");
        assert_eq!(budget.clients_used(), 0);
    }
    tasks.stop();
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_answered_at_its_deadline_and_then_the_connection_ends() {
    let (tasks, budget) = (Tasks::new(), Budget::new(1 << 30));
    let mut client = serve(StandIn::ok(), &HttpConfig::default(), &budget, &tasks);
    let started = Instant::now();
    client.send(&[head(100, "").as_bytes(), &BODY].concat()).await;
    let reply = client.reply().await.unwrap();
    assert_eq!(reply.status(), 503);
    assert!(reply.head.contains("retry-after: "), "{reply:?}");
    let waited = seconds(started.elapsed());
    assert!((7.6..7.7).contains(&waited), "{waited}");
    assert_eq!(budget.used(), 0);
    client.end().await;
    assert!(seconds(started.elapsed()) < 20.0);
    tasks.stop();
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_ends_after_its_timeout_and_a_busy_one_stays() {
    let (tasks, budget) = (Tasks::new(), Budget::new(1 << 30));
    let mut config = HttpConfig::default();
    config.keys.idle_timeout = Some(Duration::from_secs(60));
    config.keys.max_connection_age = None;
    let mut client = serve(StandIn::ok(), &config, &budget, &tasks);
    for _ in 0..10 {
        sleep(Duration::from_secs(50)).await;
        assert_eq!(client.ask().await.status(), 200);
    }
    let idle = seconds(client.end().await);
    assert!((60.0..=70.0).contains(&idle), "{idle}");
    tasks.stop();
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_is_told_to_close_in_its_next_answer() {
    let (tasks, budget) = (Tasks::new(), Budget::new(1 << 30));
    let mut config = HttpConfig::default();
    config.keys.max_connection_age = Some(Duration::from_secs(100));
    let (export, gate, alive) = waiting();
    let mut client = serve(export, &config, &budget, &tasks);
    gate.add_permits(1);
    assert!(!client.ask().await.has("connection: close"));
    sleep(Duration::from_secs(85)).await;
    client.send(&[head(BODY.len(), "").as_bytes(), &BODY].concat()).await;
    until("the request is in flight", || alive.load(Ordering::SeqCst) == 1).await;
    sleep(Duration::from_secs(30)).await;
    gate.add_permits(1);
    let reply = client.reply().await.unwrap();
    assert!(reply.status() == 200 && reply.has("connection: close"), "{reply:?}");
    assert!(client.end().await < Duration::from_secs(1));
    // One without a request ends a moment after its age.
    let mut idle = serve(StandIn::ok(), &config, &budget, &tasks);
    idle.ask().await;
    let lived = seconds(idle.end().await);
    assert!((90.0..=112.0).contains(&lived), "{lived}");
    tasks.stop();
}

#[tokio::test(start_paused = true)]
async fn a_drain_answers_requests_and_ends_idle_connections_after_a_moment() {
    let (tasks, budget) = (Tasks::new(), Budget::new(1 << 30));
    let (export, gate, alive) = waiting();
    let config = HttpConfig::default();
    let mut idle = serve(StandIn::ok(), &config, &budget, &tasks);
    idle.ask().await;
    let mut late = serve(StandIn::ok(), &config, &budget, &tasks);
    late.ask().await;
    let mut busy = serve(export, &config, &budget, &tasks);
    busy.send(&[head(BODY.len(), "").as_bytes(), &BODY].concat()).await;
    until("the request is in flight", || alive.load(Ordering::SeqCst) == 1).await;
    let started = Instant::now();
    tasks.drain();
    // A request that was in transit is answered.
    sleep(Duration::from_millis(500)).await;
    assert!(late.ask().await.has("connection: close"));
    idle.end().await;
    let lived = seconds(started.elapsed());
    assert!((0.9..=2.0).contains(&lived), "{lived}");
    sleep(Duration::from_secs(20)).await;
    gate.add_permits(1);
    let reply = busy.reply().await.unwrap();
    assert!(reply.status() == 200 && reply.has("connection: close"), "{reply:?}");
    timeout(Duration::from_secs(5), tasks.wait()).await.expect("all connections end");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_no_answers_loses_its_connection() {
    let (tasks, budget) = (Tasks::new(), Budget::new(1 << 30));
    let mut client = serve(StandIn::ok(), &HttpConfig::default(), &budget, &tasks);
    let request = [head(BODY.len(), "").as_bytes(), &BODY].concat();
    let started = Instant::now();
    // The connection holds 1 MiB of answers, and as many requests.
    while timeout(Duration::from_secs(100), client.0.write_all(&request)).await.is_ok_and(|sent| sent.is_ok()) {}
    let lived = seconds(started.elapsed());
    assert!((20.0..=40.0).contains(&lived), "{lived}");
    drop(client);
    tasks.drain();
    tasks.wait().await;
    assert_eq!((budget.used(), budget.clients_used()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn refused_requests_are_read_to_their_end_and_the_connection_stays() {
    let (tasks, budget) = (Tasks::new(), Budget::new(1 << 30));
    let mut client = serve(StandIn::ok(), &HttpConfig::default(), &budget, &tasks);
    let body = vec![7; 200_000];
    for (from, to, status) in [
        ("application/x-protobuf", "text/plain", 415),
        ("/v1/traces", "/v1/spans", 404),
        ("POST", "PUT", 405),
        ("content-length", "content-encoding: br\r\ncontent-length", 400),
    ] {
        client.send(&[head(body.len(), "").replace(from, to).as_bytes(), &body].concat()).await;
        let reply = client.reply().await.unwrap();
        assert_eq!(reply.status(), status, "{reply:?}");
        assert_eq!(reply.has("allow: POST"), status == 405);
    }
    assert_eq!(client.ask().await.status(), 200);
    tasks.stop();
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_a_refused_body_is_no_header_block() {
    let (tasks, budget) = (Tasks::new(), Budget::new(1 << 30));
    let mut client = serve(StandIn::ok(), &HttpConfig::default(), &budget, &tasks);
    let refused = [head(100_000, "").replace("/v1/traces", "/v1/trace").as_bytes(), &[7; 100_000]].concat();
    let (first, rest) = refused.split_at(1_000);
    client.send(first).await;
    assert_eq!(client.reply().await.unwrap().status(), 404);
    for part in rest.chunks(20_000) {
        client.send(part).await;
        sleep(Duration::from_secs(1)).await;
    }
    // Longer than headers may take, and shorter than a connection may be idle.
    sleep(Duration::from_secs(60)).await;
    assert_eq!(client.ask().await.status(), 200);
    tasks.stop();
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_body_is_not_read_to_its_end_may_send_it_and_still_gets_the_answer() {
    let (tasks, budget) = (Tasks::new(), account(1 << 20, 1 << 20));
    let export = StandIn::ok();
    for (more, status) in [("", 415), ("x-long: ", 431)] {
        // While memory is short, the rest of a refused body is not waited for.
        let others = (status == 415).then(|| budget.take_for(Use::Streams, 600 << 10).unwrap());
        let mut client = serve(Arc::clone(&export), &HttpConfig::default(), &budget, &tasks);
        let more = if more.is_empty() { String::new() } else { format!("{more}{}\r\n", "x".repeat(20_000)) };
        let body = vec![7; 200_000];
        client.send(head(body.len(), &more).replace("x-protobuf", "xml").as_bytes()).await;
        sleep(Duration::from_millis(500)).await;
        client.send(&body).await;
        let reply = client.reply().await.unwrap();
        assert!(reply.status() == status && reply.has("connection: close"), "{reply:?}");
        assert_eq!(client.end().await, Duration::ZERO);
        // The client that goes on sending is not read for ever.
        let started = Instant::now();
        while client.0.write_all(&[7; 1_000]).await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
        assert!(started.elapsed() <= Duration::from_secs(1), "{:?}", started.elapsed());
        drop(others);
    }
    tasks.drain();
    tasks.wait().await;
    assert_eq!((budget.used(), budget.clients_used()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_leave_to_send_a_body_gets_it_only_if_the_body_is_wanted() {
    let (tasks, budget) = (Tasks::new(), Budget::new(1 << 30));
    let mut client = serve(StandIn::ok(), &HttpConfig::default(), &budget, &tasks);
    client.send(head(BODY.len(), "expect: 100-continue\r\n").as_bytes()).await;
    assert_eq!(client.reply().await.unwrap().status(), 100);
    client.send(&BODY).await;
    assert_eq!(client.reply().await.unwrap().status(), 200);
    let refused = head(BODY.len(), "expect: 100-continue\r\n").replace("x-protobuf", "xml");
    client.send(refused.as_bytes()).await;
    let reply = client.reply().await.unwrap();
    assert!(reply.status() == 415 && reply.has("connection: close"), "{reply:?}");
    client.end().await;
    tasks.stop();
}

/// An account in which clients' connections and streams have this share, and requests the other.
pub(super) fn account(clients: usize, requests: usize) -> Budget {
    Budget::divided(Division { fixed: 0, clients, requests })
}

#[tokio::test(start_paused = true)]
async fn long_headers_and_large_buffers_are_taken_from_the_account() {
    let (tasks, budget) = (Tasks::new(), account(1 << 20, 1 << 30));
    let export = StandIn::ok();
    let mut long = serve(Arc::clone(&export), &HttpConfig::default(), &budget, &tasks);
    long.send(format!("POST /v1/traces HTTP/1.1\r\nx-long: {}", "x".repeat(9_000)).as_bytes()).await;
    sleep(Duration::from_millis(1)).await;
    let of_headers = budget.used_for(Use::Frames);
    assert!((32 << 10..=128 << 10).contains(&of_headers), "{of_headers}");
    let mut large = serve(Arc::clone(&export), &HttpConfig::default(), &budget, &tasks);
    let body = vec![0; 400_000];
    large.send(&[head(body.len(), "").as_bytes(), &body[1..]].concat()).await;
    sleep(Duration::from_millis(1)).await;
    assert_eq!(budget.used_for(Use::Frames), of_headers + (128 << 10), "two buffers of 64 KiB");
    large.send(&body[..1]).await;
    assert_eq!(large.reply().await.unwrap().status(), 200);
    sleep(Duration::from_millis(1)).await;
    let of_large = budget.used_for(Use::Frames) - of_headers;
    assert!(of_large < 128 << 10, "between requests there is one buffer: {of_large}");
    // With little room the same body is read into the smallest buffer.
    let others = budget.take_for(Use::Streams, 1 << 19).unwrap();
    let mut small = serve(Arc::clone(&export), &HttpConfig::default(), &budget, &tasks);
    small.send(&[head(body.len(), "").as_bytes(), &body].concat()).await;
    assert_eq!(small.reply().await.unwrap().status(), 200);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(budget.used_for(Use::Frames), of_headers + of_large);
    // And long headers are not read to their end.
    let mut refused = serve(export, &HttpConfig::default(), &budget, &tasks);
    refused.send(format!("POST /v1/traces HTTP/1.1\r\nx-long: {}", "x".repeat(9_000)).as_bytes()).await;
    assert!(refused.end().await < Duration::from_secs(1));
    drop((others, long, large, small, refused));
    tasks.drain();
    tasks.wait().await;
    assert_eq!(budget.clients_used(), 0);
}

#[tokio::test(start_paused = true)]
async fn idle_connections_and_small_requests_take_nothing_for_the_first_buffer() {
    let (tasks, budget) = (Tasks::new(), account(1 << 20, 1 << 30));
    let mut client = serve(StandIn::ok(), &HttpConfig::default(), &budget, &tasks);
    for _ in 0..2 {
        let request = [head(BODY.len(), "").as_bytes(), &BODY].concat();
        for part in request.chunks(request.len() - 1) {
            client.send(part).await;
            sleep(Duration::from_millis(1)).await;
            assert_eq!(budget.used_for(Use::Frames), 0);
        }
        assert_eq!(client.reply().await.unwrap().status(), 200);
    }
    tasks.stop();
}

#[tokio::test(start_paused = true)]
async fn headers_above_their_limit_get_431() {
    let (tasks, budget) = (Tasks::new(), Budget::new(1 << 30));
    let mut client = serve(StandIn::ok(), &HttpConfig::default(), &budget, &tasks);
    client.send(head(0, &format!("x-long: {}\r\n", "x".repeat(20_000))).as_bytes()).await;
    assert_eq!(client.reply().await.unwrap().status(), 431);
    tasks.stop();
}

#[tokio::test(start_paused = true)]
async fn without_memory_for_a_request_the_client_is_told_to_come_back() {
    let (tasks, budget) = (Tasks::new(), account(1 << 20, 1 << 20));
    let mut client = serve(StandIn::ok(), &HttpConfig::default(), &budget, &tasks);
    let streams = budget.take_for(Use::Streams, 1 << 20).unwrap();
    let reply = client.ask().await;
    assert_eq!(reply.status(), 503, "{reply:?}");
    drop(streams);
    let requests = budget.take(1 << 20).unwrap();
    let reply = client.ask().await;
    assert_eq!(reply.status(), 503, "{reply:?}");
    assert!(reply.head.contains("retry-after: "));
    drop(requests);
    assert_eq!(client.ask().await.status(), 200);
    tasks.stop();
}

#[tokio::test]
async fn http2_is_served_too_and_a_grpc_call_gets_a_hint() {
    let (tasks, budget, export) = (Tasks::new(), Budget::new(1 << 30), StandIn::ok());
    let Client(stream) = serve(Arc::clone(&export), &HttpConfig::default(), &budget, &tasks);
    let mut client = h2_over(stream, &tasks).await;
    let post = |content_type: &str, path: &str| {
        let url = format!("http://localhost{path}");
        HttpRequest::post(url).header("content-type", content_type).body(()).unwrap()
    };
    let (response, mut body) = client.send_request(post("application/x-protobuf", "/v1/traces"), false).unwrap();
    body.send_data(Bytes::from_static(&BODY), true).unwrap();
    let (head, bytes, _) = finish(response).await;
    assert_eq!((head.status().as_u16(), bytes.len()), (200, 0));
    assert_eq!(export.take()[0].message.payload().as_ref(), BODY);
    let mut client = client.ready().await.unwrap();
    let (response, mut body) = client.send_request(traces(), false).unwrap();
    body.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
    let status = grpc_status(&finish(response).await.2);
    assert_eq!(status.code(), tonic::Code::Unimplemented);
    assert_eq!(status.message(), "this port speaks OTLP/HTTP; OTLP/gRPC is on port 4317");
    tasks.stop();
}

fn json_head(length: usize) -> String {
    head(length, "").replace("x-protobuf", "json")
}

#[tokio::test]
async fn a_document_of_json_reaches_the_pipeline_as_protobuf() {
    let (tasks, budget, export) = (Tasks::new(), Budget::new(1 << 30), StandIn::ok());
    let mut client = serve(Arc::clone(&export), &HttpConfig::default(), &budget, &tasks);
    // A short one, and one that is converted in a place and comes in several buffers.
    for count in [1, 50_000] {
        let document = format!(r#"{{"resourceSpans":[{}{{"schemaUrl":"s"}}]}}"#, r#"{"schemaUrl":"r"},"#.repeat(count));
        client.send(&[json_head(document.len()).as_bytes(), document.as_bytes()].concat()).await;
        let reply = client.reply().await.unwrap();
        assert!(reply.status() == 200 && reply.has("content-type: application/json"), "{reply:?}");
        assert_eq!(reply.body, b"{}");
        let request = export.take().remove(0);
        let expected = [[10, 3, 26, 1, b'r'].repeat(count), vec![10, 3, 26, 1, b's']].concat();
        assert!(request.message.to_bytes()[5..] == expected, "{count}");
        let held = request.permit.bytes();
        assert!((expected.len() + 5..2 * expected.len() + 512).contains(&held), "{held} for {}", expected.len());
        assert_eq!(request.place.is_some(), count > 1, "the place is kept until the message was cut");
    }
    drop(client);
    tasks.drain();
    tasks.wait().await;
    assert_eq!((budget.used(), budget.clients_used()), (0, 0), "all is given back");
}

#[tokio::test]
async fn a_malformed_document_is_refused_with_its_place_and_one_without_room_may_come_again() {
    let (tasks, budget) = (Tasks::new(), Budget::new(1 << 20));
    let mut client = serve(StandIn::ok(), &HttpConfig::default(), &budget, &tasks);
    let document = "{\"resourceSpans\":\n [7]}";
    client.send(&[json_head(document.len()).as_bytes(), document.as_bytes()].concat()).await;
    let reply = client.reply().await.unwrap();
    assert!(reply.status() == 400 && reply.has("content-type: application/json"), "{reply:?}");
    let message = "malformed JSON: expected an object at line 2, column 3, in resourceSpans[0]";
    assert_eq!(String::from_utf8(reply.body).unwrap(), format!(r#"{{"code":3,"message":"{message}"}}"#));
    // The document has room, and the message beside it has none.
    let document = format!(r#"{{"resourceSpans":[{}{{}}]}}"#, r#"{"schemaUrl":"r"},"#.repeat(5_000));
    let others = budget.take((1 << 20) - document.len() - 4_096).unwrap();
    client.send(&[json_head(document.len()).as_bytes(), document.as_bytes()].concat()).await;
    let reply = client.reply().await.unwrap();
    assert!(reply.status() == 503 && reply.head.contains("retry-after: "), "{reply:?}");
    drop(others);
    client.send(&[json_head(document.len()).as_bytes(), document.as_bytes()].concat()).await;
    assert_eq!(client.reply().await.unwrap().status(), 200);
    tasks.stop();
}
