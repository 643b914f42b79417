//! Tests of the HTTP door: the bounds of its connections and of refused bodies, the headers that go on, and what is counted.

use std::sync::atomic::Ordering;

use http::{HeaderName, HeaderValue};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep},
};

use super::{
    connections::waiting,
    over_http::{BODY, account, head, serve},
    *,
};
use crate::{
    budget::Use,
    codec::{Encoding, compress},
    lifecycle::{INSTANCE_HEADER, instance},
    otlp::framed::PREFIX_LEN,
    receive::{Cors, HttpConfig},
    settings::{self, values::ByteSize},
};

#[tokio::test(start_paused = true)]
async fn of_a_refused_body_no_more_is_read_than_a_request_may_have() {
    let (tasks, budget) = (Tasks::new(), Budget::new(1 << 30));
    let mut config = HttpConfig::default();
    config.keys.max_request_body_size = ByteSize(100_000);
    let mut client = serve(StandIn::ok(), &config, &budget, &tasks);
    client.send(head(30 << 20, "").replace("/v1/traces", "/v1/trace").as_bytes()).await;
    assert_eq!(client.reply().await.unwrap().status(), 404);
    let mut sent = 0;
    while client.0.write_all(&[7; 10_000]).await.is_ok() {
        sent += 10_000;
    }
    // The in-memory connection holds 1 MiB, and 1 MiB is read while it ends.
    assert!((100_000..3 << 20).contains(&sent), "{sent}");
    tasks.drain();
    tasks.wait().await;
    assert_eq!((budget.used(), budget.clients_used()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_refused_body_that_comes_slowly_is_read_for_ten_seconds() {
    let (tasks, budget) = (Tasks::new(), Budget::new(1 << 30));
    let mut client = serve(StandIn::ok(), &HttpConfig::default(), &budget, &tasks);
    client.send(head(30 << 20, "").replace("/v1/traces", "/v1/trace").as_bytes()).await;
    assert_eq!(client.reply().await.unwrap().status(), 404);
    let started = Instant::now();
    while client.0.write_all(b"x").await.is_ok() {
        sleep(Duration::from_millis(100)).await;
    }
    let lived = started.elapsed().as_secs_f64();
    assert!((10.0..12.5).contains(&lived), "{lived}");
    tasks.drain();
    tasks.wait().await;
    assert_eq!((budget.used(), budget.clients_used()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_short_request_that_is_refused_while_memory_is_short_does_not_cost_the_connection() {
    let (tasks, budget) = (Tasks::new(), account(1 << 20, 1 << 20));
    let others = budget.take_for(Use::Streams, 600 << 10).unwrap();
    let mut client = serve(StandIn::ok(), &HttpConfig::default(), &budget, &tasks);
    for (kind, status) in [("xml", 415), ("x-protobuf", 200)] {
        let chunked =
            head(0, "").replace("content-length: 0", "transfer-encoding: chunked").replace("x-protobuf", kind);
        // Its end is a chunk of its own.
        client.send(&[chunked.as_bytes(), b"2\r\n", &BODY, b"\r\n0\r\n\r\n"].concat()).await;
        let reply = client.reply().await.expect("the connection stays");
        assert!(reply.status() == status && !reply.has("connection: close"), "{reply:?}");
    }
    drop(others);
    tasks.stop();
}

#[tokio::test(start_paused = true)]
async fn while_memory_is_short_clients_whose_requests_were_answered_are_served() {
    let (tasks, budget) = (Tasks::new(), account(1 << 20, 1 << 20));
    let [mut known, mut unknown] = [(); 2].map(|()| serve(StandIn::ok(), &HttpConfig::default(), &budget, &tasks));
    let whole = [head(BODY.len(), "").as_bytes(), &BODY].concat();
    known.send(&whole).await;
    assert_eq!(known.reply().await.unwrap().status(), 200);
    // More than three quarters of the share.
    let others = budget.take_for(Use::Streams, 800 << 10).unwrap();
    for (client, status) in [(&mut known, 200), (&mut unknown, 503)] {
        client.send(&whole).await;
        assert_eq!(client.reply().await.unwrap().status(), status);
    }
    drop(others);
    tasks.stop();
}

#[tokio::test]
async fn a_compressed_document_does_not_go_on_as_it_came() {
    let (tasks, budget, export) = (Tasks::new(), Budget::new(1 << 30), StandIn::ok());
    let mut client = serve(Arc::clone(&export), &HttpConfig::default(), &budget, &tasks);
    for (format, document, passes_on) in
        [("json", &br#"{"resourceSpans":[{}]}"#[..], false), ("x-protobuf", &BODY[..], true)]
    {
        let packed = compress(Encoding::Gzip, 1, [document].into_iter(), document.len()).unwrap().split_off(PREFIX_LEN);
        let head = head(packed.len(), "content-encoding: gzip\r\n").replace("x-protobuf", format);
        client.send(&[head.as_bytes(), &packed].concat()).await;
        assert_eq!(client.reply().await.unwrap().status(), 200);
        let request = export.take().remove(0);
        assert_eq!(request.message.payload().as_ref(), BODY);
        assert_eq!((request.encoding, request.original.is_some()), (Some(Encoding::Gzip), passes_on), "{format}");
        let both = request.message.framed_len() + request.original.map_or(0, |original| original.bytes.len());
        assert!(request.permit.bytes() >= both, "both are in the account: {} of {both}", request.permit.bytes());
    }
    tasks.stop();
}

#[tokio::test]
async fn pages_may_read_refusals_too() {
    let (tasks, budget) = (Tasks::new(), Budget::new(1 << 30));
    let keys = settings::Cors { allowed_origins: vec!["https://a.test".to_owned()], ..settings::Cors::default() };
    let config = HttpConfig { cors: Some(Cors::new(&keys).unwrap()), ..HttpConfig::default() };
    let mut client = serve(StandIn::ok(), &config, &budget, &tasks);
    for (from, to, status) in [("", "", 200), ("x-protobuf", "xml", 415), ("POST", "OPTIONS", 405)] {
        let request = head(BODY.len(), "origin: https://a.test\r\n").replacen(from, to, 1);
        client.send(&[request.as_bytes(), &BODY].concat()).await;
        let reply = client.reply().await.unwrap();
        assert_eq!(reply.status(), status, "{reply:?}");
        assert!(reply.has("access-control-allow-origin: https://a.test"), "{reply:?}");
    }
    tasks.stop();
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_is_closed_after_its_grace_even_if_a_request_is_in_flight() {
    let (tasks, budget) = (Tasks::new(), Budget::new(1 << 30));
    let mut config = HttpConfig::default();
    config.keys.max_connection_age = Some(Duration::from_secs(100));
    config.keys.max_connection_age_grace = Some(Duration::from_secs(30));
    let (export, _gate, alive) = waiting();
    let mut client = serve(export, &config, &budget, &tasks);
    client.send(&[head(BODY.len(), "").as_bytes(), &BODY].concat()).await;
    until("the request is in flight", || alive.load(Ordering::SeqCst) == 1).await;
    let lived = client.end().await.as_secs_f64();
    assert!((119.0..141.0).contains(&lived), "{lived}");
    assert_eq!(alive.load(Ordering::SeqCst), 0, "the request is dropped");
    tasks.stop();
}

#[tokio::test]
async fn connections_above_the_limit_of_the_door_are_closed() {
    let tasks = Tasks::new();
    let mut config = HttpConfig { endpoint: SocketAddr::from(([127, 0, 0, 1], 0)), ..HttpConfig::default() };
    config.keys.max_connections = 1;
    let config = Config { grpc: None, http: Some(config) };
    let listeners = crate::receive::start(&config, StandIn::ok(), Budget::new(1 << 30), &tasks).unwrap();
    let connect = || TcpStream::connect(listeners.http.unwrap());
    let ask = async |stream: &mut TcpStream| {
        stream.write_all(&[head(BODY.len(), "").as_bytes(), &BODY].concat()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await?);
        }
        std::io::Result::Ok(answer.starts_with(b"HTTP/1.1 200"))
    };
    let mut first = connect().await.unwrap();
    assert!(ask(&mut first).await.unwrap());
    let mut second = connect().await.unwrap();
    assert!(ask(&mut second).await.is_err(), "nothing must be served on it");
    assert!(ask(&mut first).await.unwrap());
    tasks.stop();
}

#[tokio::test]
async fn named_headers_go_on_and_requests_that_go_round_in_circles_do_not() {
    let (tasks, budget, export) = (Tasks::new(), Budget::new(1 << 30), StandIn::ok());
    let config = HttpConfig { include_metadata: vec![HeaderName::from_static("x-tenant")], ..HttpConfig::default() };
    let mut client = serve(Arc::clone(&export), &config, &budget, &tasks);
    let more = "x-tenant: a\r\nx-other: b\r\nspanring-hops: 3\r\n";
    client.send(&[head(BODY.len(), more).as_bytes(), &BODY].concat()).await;
    assert_eq!(client.reply().await.unwrap().status(), 200);
    let mut headers = HeaderMap::new();
    export.take().remove(0).metadata.expect("headers").add_to(&mut headers);
    let expected = [("x-tenant", "a"), ("spanring-hops", "4")];
    let expected = expected.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    assert_eq!(headers, expected.into_iter().collect::<HeaderMap>());
    for (more, status) in [
        (format!("{INSTANCE_HEADER}: {}\r\n", instance()), 500),
        ("spanring-hops: 4\r\n".to_owned(), 500),
        (format!("x-tenant: {}\r\n", "v".repeat(5_000)), 413),
    ] {
        client.send(&[head(BODY.len(), &more).as_bytes(), &BODY].concat()).await;
        let reply = client.reply().await.unwrap();
        assert_eq!(reply.status(), status, "{reply:?}");
        assert!(!reply.head.contains("retry-after"), "{reply:?}");
    }
    assert_eq!(export.take().len(), 0);
    tasks.stop();
}

#[tokio::test]
async fn requests_that_are_none_are_counted_by_reason() {
    let (tasks, budget) = (Tasks::new(), Budget::new(1 << 30));
    let (recorder, mut client) =
        Recorder::scoped(|recorder| (recorder.clone(), serve(StandIn::ok(), &HttpConfig::default(), &budget, &tasks)));
    for (from, to) in [("x-protobuf", "xml"), ("/v1/traces", "/v1/trace"), ("POST", "PUT")] {
        client.send(&[head(BODY.len(), "").replace(from, to).as_bytes(), &BODY].concat()).await;
        client.reply().await.expect("an answer");
    }
    client.send(&[head(BODY.len(), "content-encoding: br\r\n").as_bytes(), &BODY].concat()).await;
    client.reply().await.expect("an answer");
    let page = recorder.render();
    for line in [
        "spanring_receiver_refused_requests_total{signal=\"none\",reason=\"framing\"} 2",
        "spanring_receiver_refused_requests_total{signal=\"none\",reason=\"unimplemented\"} 1",
        "spanring_receiver_refused_requests_total{signal=\"traces\",reason=\"unimplemented\"} 1",
        "spanring_receiver_requests_total{signal=\"traces\",code=\"INVALID_ARGUMENT\"} 1",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is missing in\n{page}");
    }
    tasks.stop();
}
