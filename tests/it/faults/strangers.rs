//! Clients that use another protocol on the gRPC port, and probes with unusual requests.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    fixture::{ExtraConfig, Fixture, encoded, span},
    harness,
    tls::World,
    wire::{self, PREFACE},
};

const CAME: &str = "spanring_receiver_connections_total";
const FOREIGN: &str = "spanring_receiver_foreign_connections_total";

/// Sends bytes and returns what the proxy sends until the connection ends; nothing if the connection is reset.
fn said(address: SocketAddr, bytes: &[u8]) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(bytes)?;
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => return Err(error).context("the connection must be closed"),
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_http2_are_answered_or_closed_counted_and_logged_once() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig::default()).await?;
    let accepted = ["listener=\"otlp_grpc\"", "result=\"accepted\""];
    let before = fixture.metric(CAME, &accepted)?;
    let body = "{\"resourceSpans\":[]}".repeat(2_000);
    let post = format!("POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    for request in ["GET /livez HTTP/1.1\r\nhost: a\r\n\r\n", "GET / HTTP/1.0\r\n\r\n", &post] {
        let said = said(fixture.grpc, request.as_bytes())?;
        let (head, body) = said.split_once("\r\n\r\n").with_context(|| format!("an answer of HTTP/1: {said:?}"))?;
        ensure!(head.starts_with("HTTP/1.1 400 ") && head.contains("connection: close"), "{head}");
        ensure!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        ensure!(body.starts_with("this port speaks gRPC (HTTP/2 without TLS)"), "{body}");
    }
    for bytes in [
        &b"\x16\x03\x01\x00\xf8\x01\x00\x00\xf4\x03\x03"[..],
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 4317\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c",
        b"SSH-2.0-OpenSSH_9.6\r\n",
    ] {
        ensure!(said(fixture.grpc, bytes)?.is_empty(), "{bytes:?} must be closed without an answer");
    }
    for (kind, count) in [("http1", 3.0), ("tls", 1.0), ("proxy", 2.0), ("garbage", 1.0)] {
        fixture.until_metric(FOREIGN, &["listener=\"otlp_grpc\"", &format!("kind=\"{kind}\"")], |n| n == count)?;
    }
    ensure!(fixture.metric(CAME, &accepted)? == before, "none of them was accepted");
    let log = fixture.process.log();
    ensure!(log.matches("connection closed: ").count() == 1, "one line in ten seconds: {log}");
    ensure!(log.contains("the client speaks HTTP/1") && log.contains("kind=\"http1\""), "{log}");
    fixture.serves().await?;
    ensure!(fixture.metric(CAME, &accepted)? > before, "connections that speak gRPC must be counted as accepted");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plaintext_at_a_port_with_tls_gets_an_answer() -> Result<()> {
    let world = World::new()?;
    let fixture = world.fixture(1, "").await?;
    let said_http1 = said(fixture.grpc, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")?;
    ensure!(said_http1.starts_with("HTTP/1.1 400 ") && said_http1.contains("gRPC over TLS"), "{said_http1}");
    ensure!(said(fixture.grpc, PREFACE)?.is_empty(), "HTTP/2 in plaintext must be closed without an answer");
    let failures = "spanring_receiver_tls_handshake_failures_total";
    fixture.until_metric(failures, &["listener=\"otlp_grpc\"", "reason=\"not_tls\""], |n| n == 2.0)?;
    // Of the two failures, the one that is handled first is logged at once.
    harness::until("the failure is logged", || {
        Ok(fixture.process.log().contains(" in plaintext: let ").then_some(()))
    })?;
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snappy_is_accepted_and_its_bombs_are_refused() -> Result<()> {
    let fixture =
        Fixture::start(1, ExtraConfig { grpc: "max_recv_msg_size_mib: 4,", ..ExtraConfig::default() }).await?;
    fixture.serves().await?;
    let snappy = |message: &[u8]| -> Result<Vec<u8>> {
        let mut encoder = snap::write::FrameEncoder::new(Vec::new());
        encoder.write_all(message)?;
        let mut framed = wire::grpc(&encoder.into_inner()?);
        framed.splice(..1, [1]);
        Ok(framed)
    };
    let message = encoded(vec![span(&fixture.trace(), 1), span(&fixture.trace(), 2)]);
    let (status, said) = wire::call(fixture.grpc, Some("snappy"), snappy(&message)?).await?;
    ensure!(status == "0", "{status}: {said}");
    let (status, said) = wire::call(fixture.grpc, Some("snappy"), snappy(&vec![0; 5 << 20])?).await?;
    ensure!(status == "8" && said.contains("larger%20than"), "{status}: {said}");
    let mut raw = wire::grpc(&snap::raw::Encoder::new().compress_vec(&message)?);
    raw.splice(..1, [1]);
    let (status, said) = wire::call(fixture.grpc, Some("snappy"), raw).await?;
    ensure!(status == "0", "a block without frames: {status}: {said}");
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_work_with_the_binary_and_with_options_requests() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig::default()).await?;
    let check = |admin: SocketAddr, more: &[&str]| -> Result<(Option<i32>, String)> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spanring"));
        let output =
            command.args(["healthcheck", "--admin", &admin.to_string(), "--timeout", "30s"]).args(more).output()?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned()))
    };
    ensure!(check(fixture.admin, &[])? == (Some(0), "ready\n".to_owned()));
    ensure!(check(fixture.admin, &["--live"])? == (Some(0), "alive\n".to_owned()));
    let (code, line) = check(fixture.grpc, &[])?;
    ensure!(code == Some(1) && line.contains("is it a spanring's admin port?"), "{code:?}: {line}");
    let options = said(fixture.admin, b"OPTIONS /readyz HTTP/1.0\r\n\r\n")?;
    ensure!(options.starts_with("HTTP/1.0 200 ") && options.contains("allow: GET, HEAD, OPTIONS"), "{options}");
    Ok(())
}
