//! What hostile clients do at the HTTP port, and clients that only do what few others do.

use std::{
    io::{Read, Write},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use tokio::time::Instant;

use super::{
    super::{
        backend::Answer,
        fixture::{ExtraConfig, Fixture, encoded, span},
        harness::until,
    },
    bodies::gzip,
    wire::{self, Request},
};

const PROTOBUF: &str = "application/x-protobuf";
const TRACES: &str = "/v1/traces";

const SERVED: ExtraConfig =
    ExtraConfig { http: Some(""), grpc: "", deadline: "", pool: "", top: "", descriptors: None };

/// Returns a request with the span of this number, on a connection that stays.
fn request(fixture: &Fixture, number: u64) -> Request {
    Request::post(TRACES, PROTOBUF, encoded(vec![span(&fixture.trace(), number)])).without("connection")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_come_at_once_are_answered_one_after_the_other() -> Result<()> {
    let fixture = Fixture::start(1, SERVED).await?;
    let mut stream = wire::connect(fixture.http()?)?;
    tokio::task::block_in_place(|| {
        let good: Vec<_> = (0..20).map(|number| request(&fixture, number).bytes()).collect();
        let wrong = request(&fixture, 99).line("POST /v1/nothing HTTP/1.1").bytes();
        stream.write_all(&[good.concat(), wrong, request(&fixture, 20).bytes()].concat())?;
        for number in 0..22 {
            let status = wire::Answer::read(&mut stream, false)?.status;
            ensure!(status == if number == 20 { 404 } else { 200 }, "{number}: {status}");
        }
        // The head of a request that never ends came together with a whole request.
        let begun = request(&fixture, 21).bytes();
        stream.write_all(&[&request(&fixture, 22).bytes(), &begun[..40]].concat())?;
        ensure!(wire::Answer::read(&mut stream, false)?.status == 200);
        stream.write_all(&begun[40..])?;
        ensure!(wire::Answer::read(&mut stream, false)?.status == 200);
        Ok(())
    })?;
    ensure!(fixture.backends[0].delivered().len() == 23, "{:?}", fixture.backends[0].delivered());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_came_with_another_request_and_never_ends_is_idle() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig { http: Some("idle_timeout: 1s,"), ..SERVED }).await?;
    let mut stream = wire::connect(fixture.http()?)?;
    tokio::task::block_in_place(|| {
        let begun = request(&fixture, 2).bytes();
        stream.write_all(&[&request(&fixture, 1).bytes(), &begun[..40]].concat())?;
        ensure!(wire::Answer::read(&mut stream, false)?.status == 200);
        let started = Instant::now();
        let mut rest = Vec::new();
        drop(stream.read_to_end(&mut rest));
        ensure!(rest.is_empty(), "{}", rest.escape_ascii());
        ensure!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        Ok(())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_without_end_are_refused_at_the_limit() -> Result<()> {
    // Small, since a busy machine takes long for so many chunks, and a request has a deadline.
    let http = Some("max_request_body_size: 10KiB,");
    let fixture = Fixture::start(1, ExtraConfig { http, ..SERVED }).await?;
    let address = fixture.http()?;
    tokio::task::block_in_place(|| {
        for size in [1, 100, 60_000] {
            let mut stream = wire::connect(address)?;
            let request = Request::post(TRACES, PROTOBUF, "").without_length().with("transfer-encoding", "chunked");
            stream.write_all(&request.bytes())?;
            let chunk = [format!("{size:x}\r\n").as_bytes(), &vec![0; size], b"\r\n"].concat();
            let many = chunk.repeat(60_000_usize.div_ceil(size));
            // Once it is refused, the rest is read for a while; then the connection ends.
            let mut sent = 0;
            while sent < 8 << 20 && stream.write_all(&many).is_ok() {
                sent += many.len();
            }
            let answer = wire::Answer::read(&mut stream, false).with_context(|| format!("chunks of {size} bytes"))?;
            ensure!(answer.status == 413, "chunks of {size} bytes: {answer:?}");
        }
        fixture.memory_is_given_back()
    })?;
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_before_the_end_of_a_body_is_not_followed_by_a_reset() -> Result<()> {
    let http = Some("max_request_body_size: 100KiB,");
    let fixture = Fixture::start(1, ExtraConfig { http, ..SERVED }).await?;
    let address = fixture.http()?;
    tokio::task::block_in_place(|| {
        let mut stream = wire::connect(address)?;
        // The client reads nothing until all is sent, which is more than is read of a refused body.
        stream.write_all(&Request::post(TRACES, PROTOBUF, vec![0; 800_000]).without("connection").bytes())?;
        let answer = wire::Answer::read(&mut stream, false)?;
        ensure!(answer.status == 413, "{answer:?}");
        ensure!(stream.read(&mut [0])? == 0);
        anyhow::Ok(())
    })?;
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bombs_of_json_are_refused_within_the_memory_limit() -> Result<()> {
    let top = "memory_limiter: { limit_mib: 128 }";
    let fixture = Fixture::start(1, ExtraConfig { top, ..SERVED }).await?;
    let address = fixture.http()?;
    let mib = 1 << 20;
    let filled =
        |begin: &str, fill: &str, size: usize, end: &str| [begin, &fill.repeat(size / fill.len()), end].concat();
    let bombs = [
        ("spaces", filled("{", " ", 200 * mib, "}"), 413),
        ("one text", filled("{\"resourceSpans\":[{\"schemaUrl\":\"", "a", 4 * mib, "\"}]}"), 200),
        ("escapes", filled("{\"resourceSpans\":[{\"schemaUrl\":\"", "\\u0041", 4 * mib, "\"}]}"), 200),
        ("unknown lists", filled("{\"a\":[", "[],", 4 * mib, "[]]}"), 200),
        ("depth", filled("{\"a\":", "[", 4 * mib, ""), 400),
        (
            "an ID",
            filled("{\"resourceSpans\":[{\"scopeSpans\":[{\"spans\":[{\"traceId\":\"", "\\n", 4 * mib, "\"}]}]}]}"),
            400,
        ),
        (
            "a number",
            filled("{\"resourceSpans\":[{\"resource\":{\"droppedAttributesCount\":", "1", 4 * mib, "}}]}"),
            400,
        ),
        ("a name", filled("{\"", "n", 4 * mib, "\":1}"), 200),
        ("line ends before an error", filled("{", "\n", 4 * mib, "x"), 400),
    ];
    tokio::task::block_in_place(|| {
        for (name, document, status) in &bombs {
            let request = Request::post(TRACES, "application/json", document.as_bytes());
            let request = match *name {
                // Others would be above the limit of the ratio.
                "spaces" => Request { body: gzip(&request.body), ..request }.with("content-encoding", "gzip"),
                _ => request,
            };
            let started = Instant::now();
            let answer = wire::send(address, &request.bytes(), false)?;
            ensure!(answer.status == *status, "{name}: {} {}", answer.status, answer.body.escape_ascii());
            ensure!(answer.body.len() < 1_000, "{name}: {} bytes", answer.body.len());
            ensure!(started.elapsed() < Duration::from_secs(10), "{name}: {:?}", started.elapsed());
        }
        anyhow::Ok(())
    })?;
    let peak = fixture.peak_mib()?;
    ensure!(peak <= 128 + 64, "{peak} MiB");
    fixture.memory_is_given_back()?;
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_leave_and_gets_none_sends_no_body() -> Result<()> {
    let fixture = Fixture::start(1, SERVED).await?;
    let address = fixture.http()?;
    tokio::task::block_in_place(|| {
        let waiting = |request: Request, length: usize| {
            let request = request.without_length().with("content-length", &length.to_string());
            let bytes = request.with("expect", "100-continue").bytes();
            bytes.split_at(bytes.windows(4).position(|four| four == b"\r\n\r\n").map_or(0, |at| at + 4)).0.to_vec()
        };
        // Without leave the client sends nothing: neither a body that is too large, nor one of a wrong type.
        let large = waiting(request(&fixture, 1), 30 << 20);
        let other = waiting(request(&fixture, 1).without("content-type").with("content-type", "text/plain"), 10);
        for (head, expected) in [(large, 413), (other, 415)] {
            let mut stream = wire::connect(address)?;
            stream.write_all(&head)?;
            let mut answer = Vec::new();
            let started = Instant::now();
            stream.read_to_end(&mut answer)?;
            let text = String::from_utf8_lossy(&answer).into_owned();
            ensure!(text.starts_with(&format!("HTTP/1.1 {expected}")), "{text}");
            ensure!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        }
        Ok(())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_with_prior_knowledge_is_served_in_plaintext() -> Result<()> {
    let fixture = Fixture::start(1, SERVED).await?;
    let stream = tokio::net::TcpStream::connect(fixture.http()?).await?;
    let (mut client, connection) = h2::client::handshake(stream).await?;
    drop(fixture.tasks.spawn(async move { connection.await.ok() }));
    let mut answers = Vec::new();
    for number in 0..50 {
        client = client.ready().await?;
        let head = ::http::Request::post(format!("http://localhost{TRACES}")).header("content-type", PROTOBUF);
        // Each second one states a length that is wrong.
        let head = if number % 2 == 1 { head.header("content-length", "7") } else { head };
        let (answer, mut body) = client.send_request(head.body(())?, false)?;
        body.send_data(Bytes::from(encoded(vec![span(&fixture.trace(), number)])), true)?;
        answers.push(answer);
    }
    for (number, answer) in answers.into_iter().enumerate() {
        let is_ok = answer.await.is_ok_and(|answer| answer.status() == 200);
        ensure!(is_ok == (number % 2 == 0), "{number}");
    }
    ensure!(fixture.backends[0].delivered().len() == 25, "{}", fixture.backends[0].delivered().len());
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_is_counted_and_its_memory_is_given_back() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig { deadline: "3s", ..SERVED }).await?;
    let address = fixture.http()?;
    fixture.backends[0].answer(|_| Answer::Hang);
    tokio::task::block_in_place(|| {
        for number in 0..20 {
            let mut stream = wire::connect(address)?;
            let bytes = request(&fixture, number).bytes();
            let part = if number % 2 == 0 { &bytes[..bytes.len() - 5] } else { &bytes[..] };
            stream.write_all(part)?;
        }
        for name in ["spanring_receiver_in_flight_requests", "spanring_receiver_connections"] {
            let label = if name.ends_with("requests") { "traces" } else { "otlp_http" };
            until(name, || Ok((fixture.metric(name, &[label])? == 0.0).then_some(())))?;
        }
        fixture.memory_is_given_back()
    })?;
    fixture.backends[0].answer(|_| Answer::Accept);
    fixture.serves().await
}
