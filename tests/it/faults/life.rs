//! The process and its environment: request smuggling, clocks, shutdown, clients that disconnect, loops.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    backend::Answer,
    fixture::{Account, ExtraConfig, Fixture, Reply, span},
    wire::{self, DATA, END_HEADERS, HEADERS, Raw},
};

/// Sends bytes to the admin port; returns the response up to the end of the connection or a pause.
fn admin_says(fixture: &Fixture, request: &str) -> Result<String> {
    let mut stream = TcpStream::connect(fixture.admin)?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    // The server may close the connection before everything is sent.
    drop(stream.write_all(request.as_bytes()));
    let mut reply = Vec::new();
    drop(stream.read_to_end(&mut reply));
    Ok(String::from_utf8_lossy(&reply).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_33_requests_cannot_be_smuggled() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig::default()).await?;
    let smuggled = "GET /livez HTTP/1.1\r\nhost: a\r\n\r\n";
    let both = format!(
        "POST /nowhere HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}",
        smuggled.len() + 5
    );
    let answers = admin_says(&fixture, &both)?.matches("HTTP/1.1 200").count();
    ensure!(answers == 0, "a request hidden behind two lengths was answered");
    let twice = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 40\r\n\r\nabc{smuggled}");
    ensure!(
        !admin_says(&fixture, &twice)?.contains("HTTP/1.1 200"),
        "a request with two different lengths was accepted"
    );
    let large = format!("GET /livez HTTP/1.1\r\nhost: a\r\nx-large: {}\r\n\r\n", "y".repeat(1 << 20));
    ensure!(!admin_says(&fixture, &large)?.contains("HTTP/1.1 200"), "a header of 1 MiB was accepted");
    let pipelined = "GET /livez HTTP/1.1\r\nhost: a\r\n\r\n".repeat(3);
    ensure!(
        admin_says(&fixture, &pipelined)?.matches("HTTP/1.1 200").count() == 3,
        "pipelined requests are each answered"
    );
    let expecting = "POST /livez HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    ensure!(!admin_says(&fixture, expecting)?.is_empty(), "a client that expects 100 waits for ever");
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_33_http_1_on_the_grpc_port_is_closed() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig::default()).await?;
    let mut stream = TcpStream::connect(fixture.grpc)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")?;
    let mut reply = Vec::new();
    // The connection may be closed by FIN or RST, but must not stay open.
    match stream.read_to_end(&mut reply) {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => return Err(error.into()),
        _ => {}
    }
    fixture.serves().await
}

/// Collects the Rust sources in a directory.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

#[test]
fn row_39_no_decision_depends_on_the_wall_clock() -> Result<()> {
    // These files may use the wall clock: to report it, to stamp generated spans, and to compare it with the times of
    // files, certificates and spans. No wait may depend on it.
    const MAY: [&str; 9] = [
        "admin/api/facts.rs",
        "discovery/metrics.rs",
        "discovery/system.rs",
        "membership/record.rs",
        "proxy/reload.rs",
        "telemetry",
        "tls/files.rs",
        "tools",
        "wall_clock.rs",
    ];
    let (root, mut files) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), Vec::new());
    sources(&root, &mut files)?;
    for file in files {
        let text = fs::read_to_string(&file)?;
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let name = file.strip_prefix(&root)?;
        let may = MAY.iter().any(|allowed| name.starts_with(allowed));
        ensure!(may || !code.contains("SystemTime"), "{} reads the wall clock", name.display());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_41_a_drain_under_load_answers_every_request_and_loses_nothing() -> Result<()> {
    let mut fixture = Fixture::start(3, ExtraConfig::default()).await?;
    for backend in &fixture.backends {
        backend.answer(|_| Answer::After(Duration::from_millis(20), Box::new(Answer::Accept)));
    }
    let load = fixture.load(6).await?;
    load.goes_on(60)?;
    fixture.process.signal("TERM")?;
    let status = fixture.process.wait()?;
    ensure!(status.success(), "a drained process ends with {status}");
    let (acknowledged, _refused) = load.stop().await?;
    let account = fixture.account(&acknowledged);
    ensure!(account.missing == 0 && account.duplicates == 0 && account.split == 0, "{account:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_41_a_drain_ends_in_time_whatever_backends_and_clients_do() -> Result<()> {
    let extra = ExtraConfig { deadline: "60s", pool: "timeout: 60s,", ..ExtraConfig::default() };
    let mut fixture = Fixture::start(1, extra).await?;
    fixture.backends[0].answer(|_| Answer::Hang);
    let (mut client, spans) = (fixture.client().await?, fixture.spans_at(0, 1)?);
    let waiting = fixture.tasks.spawn(async move { client.export(spans).await });
    let mut half = Raw::connect(fixture.grpc, &[])?;
    half.send(&wire::frame(HEADERS, END_HEADERS, 1, &wire::export_headers(&[])))?;
    fixture.until_metric("spanring_dispatch_in_flight_calls", &[], |calls| calls >= 1.0)?;
    fixture.process.signal("TERM")?;
    let start = tokio::time::Instant::now();
    let status = fixture.process.wait()?;
    // shutdown.timeout is 5 s; connections to backends get 2 s more.
    ensure!(status.success() && start.elapsed() < Duration::from_secs(9), "{status} after {:?}", start.elapsed());
    ensure!(matches!(waiting.await?, Reply::Refused(_)), "no backend had acknowledged it");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_45_clients_that_disconnect_leave_nothing_behind() -> Result<()> {
    let fixture =
        Fixture::start(2, ExtraConfig { deadline: "20s", pool: "timeout: 20s,", ..ExtraConfig::default() }).await?;
    fixture.backends[0].answer(|_| Answer::After(Duration::from_millis(400), Box::new(Answer::Accept)));
    let mut clients = Vec::new();
    for n in 0..30 {
        let mut raw = Raw::connect(fixture.grpc, &[])?;
        raw.send(&wire::frame(HEADERS, END_HEADERS, 1, &wire::export_headers(&[])))?;
        let spans = fixture.spans_at(0, 20)?;
        let message = wire::grpc(&crate::fixture::encoded(spans));
        let end = if n % 3 == 0 { message.len() / 2 } else { message.len() };
        let is_whole = u8::from(end == message.len());
        raw.send(&wire::frame(DATA, is_whole, 1, message.get(..end).context("a part of it")?))?;
        if n % 3 == 1 {
            raw.send(&wire::frame(wire::RST_STREAM, 0, 1, &8_u32.to_be_bytes()))?;
        }
        clients.push(raw);
    }
    // Wait until the clients that sent half a message are known, then disconnect all.
    fixture.until_metric("spanring_receiver_in_flight_requests", &[], |n| n >= 10.0)?;
    drop(clients);
    fixture.until_metric("spanring_receiver_abandoned_requests_total", &[], |n| n > 0.0)?;
    for name in [
        "spanring_receiver_in_flight_requests",
        "spanring_memory_budget_used_bytes",
        "spanring_dispatch_queue_bytes",
        "spanring_dispatch_in_flight_calls",
    ] {
        fixture.until_metric(name, &[], |value| value == 0.0).with_context(|| format!("{name} is not back"))?;
    }
    fixture.until_metric("spanring_receiver_connections", &["listener=\"otlp_grpc\""], |n| n == 0.0)?;
    fixture.serves().await?;
    let account = fixture.account([]);
    ensure!(account == Account { missing: 0, duplicates: 0, split: 0 }, "{account:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_47_a_proxy_in_its_own_pool_leaves_itself_out() -> Result<()> {
    let other = crate::backend::Backend::start().await?;
    let fixture = Fixture::before_itself(other, ExtraConfig { deadline: "1s", ..ExtraConfig::default() })?;
    let mut client = fixture.client().await?;
    let looped = fixture.trace_of(fixture.grpc);
    let (took, reply) = client.timed(vec![span(&looped, 0)]).await;
    reply.ok()?;
    ensure!(took < Duration::from_secs(1), "answered after {took:?}");
    let (_, reply) = client.timed(fixture.spans_at(0, 2)?).await;
    reply.ok()?;
    let requests = fixture.metric("spanring_receiver_requests_total", &[])?;
    ensure!(requests < 10.0, "one request became {requests}");
    let log = fixture.process.log();
    ensure!(log.contains("discovery leaves out this proxy itself"), "{log}");
    Ok(())
}

/// With a window open, each proxy on the way sends a span to two owners.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxies_in_each_others_pools_do_not_pass_requests_on_for_ever() -> Result<()> {
    // Nothing listens at port 1.
    let first = Fixture::before(&["127.0.0.1:1".parse()?], Vec::new(), ExtraConfig::default())?;
    let second = Fixture::before(&[first.grpc], Vec::new(), ExtraConfig::default())?;
    let third = Fixture::before(&[first.grpc, second.grpc], Vec::new(), ExtraConfig::default())?;
    second.reload_before(&[first.grpc, third.grpc], ExtraConfig::default())?;
    first.reload_before(&[second.grpc, third.grpc], ExtraConfig::default())?;
    let mut client = first.client().await?;
    let (_, reply) = client.timed(vec![span(&first.trace(), 0)]).await;
    let Reply::Refused(status) = reply else { anyhow::bail!("there is no backend, yet the answer is {reply:?}") };
    ensure!(status.message().contains("other Spanrings") || status.message().contains("itself"), "{status:?}");
    let mut refused = 0.0;
    let mut requests = 0.0;
    for proxy in [&first, &second, &third] {
        requests += proxy.metric("spanring_receiver_requests_total", &[])?;
        refused += proxy.metric("spanring_receiver_refused_requests_total", &["reason=\"loop\""])?;
    }
    ensure!(refused > 0.0 && requests < 40.0, "one request became {requests}, {refused} of them refused as a loop");
    Ok(())
}
