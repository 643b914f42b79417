//! A low limit of file descriptors: clients are refused, and everything else still has enough descriptors.

use std::{net::TcpStream, process::Command, time::Duration};

use anyhow::{Result, bail, ensure};
use tokio::time::Instant;

use crate::{
    backend::Answer,
    fixture::{ExtraConfig, Fixture, Reply},
    harness::{self, Process},
    wire::{Frame, GOAWAY, Raw},
};

const LISTENER: &str = "listener=\"otlp_grpc\"";

fn with(descriptors: u32) -> ExtraConfig {
    ExtraConfig { descriptors: Some(descriptors), ..ExtraConfig::default() }
}

/// Opens connections that send only the preface; returns those that were not refused meanwhile.
fn crowd(fixture: &Fixture, clients: usize) -> Vec<Raw> {
    (0..clients).filter_map(|_| Raw::connect(fixture.grpc, &[]).ok()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_40_many_idle_clients_block_neither_probes_nor_deliveries() -> Result<()> {
    let fixture = Fixture::start(2, with(256)).await?;
    let mut client = fixture.client().await?;
    let mut crowd = crowd(&fixture, 300);
    // Those that have been idle for a second make room for the others.
    harness::until("many were refused or closed", || {
        let refused = fixture.metric("spanring_receiver_connections_total", &[LISTENER, "result=\"refused\""])?;
        let closed = fixture.metric("spanring_receiver_closed_connections_total", &[LISTENER, "reason=\"room\""])?;
        Ok((refused + closed >= 50.0).then_some(()))
    })?;
    let (status, _) = harness::http_get(&format!("http://{}/livez", fixture.admin))?;
    ensure!(status == 200, "/livez answered {status}");
    // The proxy had no connections to its backends before.
    for n in [0, 1, 0, 1] {
        client.export(fixture.spans_at(n, 2)?).await.ok()?;
    }
    let open = fixture.bare_metric("process_open_fds")?;
    ensure!(open < 256.0, "{open} descriptors are open");
    let log = fixture.process.log();
    ensure!(log.contains("instead of 10000: of 256 open files 24 are kept"), "no warning with the numbers: {log}");
    ensure!(!log.contains("cannot accept connections"), "descriptors ran out: {log}");
    let lines = log.matches("connection refused").count();
    ensure!((1..=2).contains(&lines), "the same shortage was logged {lines} times");
    crowd.clear();
    fixture.until_metric("spanring_receiver_connections", &[LISTENER], |open| open <= 2.0)?;
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_40_busy_clients_above_the_limit_do_not_affect_backends() -> Result<()> {
    let fixture = Fixture::start(3, with(64)).await?;
    for backend in &fixture.backends {
        backend.answer(|_| Answer::After(Duration::from_millis(20), Box::new(Answer::Accept)));
    }
    // No connection to a backend is open when the clients arrive.
    let mut early = fixture.client().await?;
    let mut crowd = crowd(&fixture, 100);
    for n in [0, 1, 2, 0, 1, 2] {
        let reply = early.export(fixture.spans_at(n, 2)?).await;
        let log = fixture.process.log();
        ensure!(!log.contains("backend ejected") && !log.contains("backend fails"), "a backend was ejected: {log}");
        reply.ok()?;
    }
    crowd.clear();
    let mut clients = Vec::new();
    for n in 0..100 {
        // Clients that were refused connect again.
        let (endpoint, spans) = (fixture.endpoint()?, fixture.spans_at(n % 3, 2)?);
        clients.push(fixture.tasks.spawn(async move {
            let mut accepted = 0;
            for _ in 0..40 {
                let Ok(mut client) = crate::fixture::Client::connect(&endpoint).await else { continue };
                accepted += usize::from(matches!(client.export(spans.clone()).await, Reply::Accepted { .. }));
            }
            accepted
        }));
    }
    let mut accepted = 0;
    for client in clients {
        accepted += client.await?;
    }
    ensure!(accepted >= 100, "only {accepted} requests were accepted");
    let ejections = fixture.metric("spanring_membership_ejections_total", &[])?;
    ensure!(ejections < 1.0, "{ejections} backends were ejected: {}", fixture.process.log());
    ensure!(fixture.metric("spanring_receiver_connections_total", &[LISTENER, "result=\"refused\""])? >= 1.0);
    fixture.until_metric("spanring_receiver_connections", &[LISTENER], |open| open <= 2.0)?;
    fixture.serves().await
}

/// Sets the soft limit of file descriptors of a running process.
fn limit(process: &Process, descriptors: usize) -> Result<()> {
    let (pid, limit) = (process.id().to_string(), format!("--nofile={descriptors}:"));
    ensure!(Command::new("prlimit").args(["--pid", &pid, &limit]).status()?.success(), "prlimit failed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_gets_no_goaway_while_it_could_not_connect_again() -> Result<()> {
    const ENOUGH: usize = 256;
    let grpc = "keepalive: { server_parameters: { max_connection_age: 2s } },";
    let fixture = Fixture::start(1, ExtraConfig { grpc, ..with(u32::try_from(ENOUGH)?) }).await?;
    let mut client = Raw::connect(fixture.grpc, &[])?;
    let open = std::fs::read_dir(format!("/proc/{}/fd", fixture.process.id()))?.count();
    limit(&fixture.process, open)?;
    // Clients take the remaining descriptors below the limit. They are not silent, so their connections stay open.
    let crowd = crowd(&fixture, 20);
    client.set_timeout(Duration::from_secs(4))?;
    while let Some(Frame { kind, .. }) = client.next().unwrap_or(None) {
        ensure!(kind != GOAWAY, "the client was told to go, but a new connection would not be accepted");
    }
    limit(&fixture.process, ENOUGH)?;
    drop(crowd);
    client.set_timeout(Duration::from_secs(20))?;
    ensure!(client.dismissal()?.is_some(), "an old connection was closed without GOAWAY");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_make_room_for_a_client_when_no_descriptor_is_left() -> Result<()> {
    let fixture = Fixture::start(1, with(256)).await?;
    // From here on, the connection to the backend is open.
    fixture.serves().await?;
    let open = std::fs::read_dir(format!("/proc/{}/fd", fixture.process.id()))?.count();
    limit(&fixture.process, open + 3)?;
    let crowd: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(fixture.grpc)).collect::<Result<_, _>>()?;
    fixture.client().await?.export(fixture.spans_at(0, 2)?).await.ok()?;
    drop(crowd);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_make_room_for_a_client_at_the_limit_of_connections() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig { grpc: "max_connections: 4,", ..ExtraConfig::default() }).await?;
    let _crowd: Vec<TcpStream> = (0..50).map(|_| TcpStream::connect(fixture.grpc)).collect::<Result<_, _>>()?;
    // A client that is refused connects again, as clients do; the crowd stays.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(8) {
        if fixture.client().await?.export(fixture.spans_at(0, 2)?).await.ok().is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("a crowd of silent clients keeps out all others")
}

/// Starts a proxy with these limits of a shell. Returns its log up to its end or until it listens.
fn says(limits: &str) -> Result<String> {
    let addresses = "--otlp-grpc 127.0.0.1:0 --otlp-http 127.0.0.1:0 --admin 127.0.0.1:0";
    let script = format!("{limits}; exec \"$0\" --backends static://127.0.0.1:9 {addresses}");
    let process = Process::start("spanring", Command::new("sh").args(["-c", &script, env!("CARGO_BIN_EXE_spanring")]))?;
    harness::until("it starts or ends", || {
        let log = process.log();
        Ok(["listening", "error: "].iter().any(|word| log.contains(word)).then_some(()))
    })?;
    Ok(process.log())
}

#[test]
fn the_soft_limit_is_raised_to_the_hard_one() -> Result<()> {
    let log = says("ulimit -Sn 100 && ulimit -Hn 512")?;
    ensure!(log.contains("raised the soft limit of open files"), "{log}");
    ensure!(log.contains("of 512 open files"), "{log}");
    Ok(())
}

#[test]
fn a_limit_that_is_too_low_is_an_error_with_advice() -> Result<()> {
    let log = says("ulimit -n 30")?;
    ensure!(log.contains("the limit of open files is 30, and no fewer than 36 will do"), "{log}");
    Ok(())
}
