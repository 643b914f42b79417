//! Slow and hostile senders, the drain, and reloads that add and remove the section.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Result, ensure};
use spanring::tools::sink::SinkConfig;
use tokio::time::Instant;

use super::{
    super::{
        backend::Answer,
        fixture::{ExtraConfig, Fixture, encoded, listens, span},
        harness::{Proxy, until},
        reload::reload,
        rig::{self, Sinks},
    },
    bodies::{gzip, gzip_of_10_gib, zstd},
    wire::{self, Request},
};

const PROTOBUF: &str = "application/x-protobuf";
const TRACES: &str = "/v1/traces";

/// The number of slow senders, and of connections of hostile ones.
const SLOW: usize = 200;

/// How long a good client beside bombs may wait for an answer, on a busy machine.
const SOON: Duration = Duration::from_secs(2);

/// Returns a request with one span.
fn request(fixture: &Fixture) -> Request {
    Request::post(TRACES, PROTOBUF, encoded(vec![span(&fixture.trace(), 1)]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_senders_are_cut_off_and_others_are_served_meanwhile() -> Result<()> {
    let http = Some("read_header_timeout: 2s,");
    let fixture = Fixture::start(1, ExtraConfig { http, deadline: "3s", ..ExtraConfig::default() }).await?;
    let address = fixture.http()?;
    tokio::task::block_in_place(|| {
        let started = Instant::now();
        let mut slow = Vec::new();
        for n in 0..SLOW {
            let mut stream = wire::connect(address)?;
            // Half of them stop in their headers, and half in their bodies.
            let bytes = request(&fixture).without_length().with("content-length", "5000").bytes();
            let part = if n % 2 == 0 { &bytes[..60] } else { &bytes[..] };
            stream.write_all(part)?;
            slow.push(stream);
        }
        let answer = wire::send(address, &request(&fixture).bytes(), false)?;
        ensure!(answer.status == 200, "{answer:?}");
        for (n, mut stream) in slow.into_iter().enumerate() {
            if n % 2 == 0 {
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).ok();
                ensure!(rest.is_empty(), "{n}: {}", rest.escape_ascii());
            } else {
                let answer = wire::Answer::read(&mut stream, false)?;
                ensure!(answer.status == 503, "{n}: {answer:?}");
            }
        }
        ensure!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
        until("no connection is left", || {
            let open = fixture.metric("spanring_receiver_connections", &["listener=\"otlp_http\""])?;
            Ok((open == 0.0).then_some(()))
        })
    })?;
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bombs_are_refused_within_the_memory_limit() -> Result<()> {
    let top = "memory_limiter: { limit_mib: 128 }";
    let fixture = Fixture::start(1, ExtraConfig { http: Some(""), top, ..ExtraConfig::default() }).await?;
    let address = fixture.http()?;
    let large = vec![0; 200 << 20];
    let twice = gzip(&gzip(&large));
    // A frame of zstd with a window of 1 GiB (RFC 8878, 3.1.1.1.2: exponent 20).
    let window = [&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 20 << 3][..], &[0; 100]].concat();
    let one = request(&fixture).body;
    let garbage = vec![0x5a; 10 << 20];
    let bombs = [
        ("gzip", gzip(&large), 413),
        ("gzip", gzip_of_10_gib(), 413),
        ("zstd", zstd(&large), 413),
        ("zstd", window, 400),
        // Inflated once it is no message.
        ("gzip", twice, 400),
        ("gzip", [gzip(&one), garbage.clone()].concat(), 400),
        ("zstd", [zstd(&one), garbage].concat(), 400),
    ];
    drop(large);
    let good = request(&fixture).bytes();
    let over = AtomicBool::new(false);
    let beside = || {
        let mut served = 0;
        while !over.load(Ordering::Relaxed) {
            let asked = Instant::now();
            let answer = wire::send(address, &good, false)?;
            ensure!(answer.status == 200 && asked.elapsed() < SOON, "{:?}: {answer:?}", asked.elapsed());
            served += 1;
        }
        ensure!(served > 10, "only {served} requests beside the bombs");
        anyhow::Ok(())
    };
    let throw = || {
        for round in 0..2 {
            for (encoding, body, status) in &bombs {
                let request = Request::post(TRACES, PROTOBUF, body.clone()).with("content-encoding", encoding);
                let answer = wire::send(address, &request.bytes(), false)?;
                ensure!(answer.status == *status, "{round} {encoding}: {answer:?}");
                ensure!(answer.header("retry-after").is_none(), "{answer:?}");
            }
        }
        anyhow::Ok(())
    };
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let beside = scope.spawn(beside);
            let thrown = throw();
            over.store(true, Ordering::Relaxed);
            thrown.and(beside.join().expect("a panic of the good client"))
        })
    })?;
    let peak = fixture.peak_mib()?;
    ensure!(peak <= 128 + 64, "{peak} MiB");
    fixture.memory_is_given_back()?;
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_answers_what_is_in_flight_and_ends_idle_connections() -> Result<()> {
    let mut fixture = Fixture::start(1, ExtraConfig { http: Some(""), ..ExtraConfig::default() }).await?;
    let address = fixture.http()?;
    let keep_alive = |fixture: &Fixture| request(fixture).without("connection").bytes();
    let (mut idle, mut busy) = (wire::connect(address)?, wire::connect(address)?);
    tokio::task::block_in_place(|| {
        idle.write_all(&keep_alive(&fixture))?;
        let answer = wire::Answer::read(&mut idle, false)?;
        ensure!(answer.status == 200 && answer.header("connection").is_none(), "{answer:?}");
        fixture.backends[0].answer(|_| Answer::After(Duration::from_secs(2), Box::new(Answer::Accept)));
        busy.write_all(&keep_alive(&fixture))?;
        until("the request is in flight", || {
            Ok((fixture.metric("spanring_receiver_in_flight_requests", &["traces"])? == 1.0).then_some(()))
        })?;
        fixture.process.signal("TERM")?;
        let answer = wire::Answer::read(&mut busy, false)?;
        ensure!(answer.status == 200 && answer.header("connection") == Some("close"), "{answer:?}");
        ensure!(idle.read(&mut [0])? == 0, "it is closed");
        let status = fixture.process.wait()?;
        ensure!(status.code() == Some(0), "{status}");
        ensure!(!fixture.process.log().contains("not drained in time"), "{}", fixture.process.log());
        Ok(())
    })
}

fn accepts(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_ok()
}

#[test]
fn a_reload_adds_the_section_and_removes_it() -> Result<()> {
    let sinks = Sinks::start(1, &SinkConfig::default())?;
    let config = |grpc: SocketAddr, admin: SocketAddr| rig::config(grpc, admin, &sinks.addresses(), "", "");
    let proxy = Proxy::start("spanring", config)?;
    let without = config(proxy.grpc, proxy.admin);
    let with = |http: &str| without.replace("protocols: { ", &format!("protocols: {{ http: {{ {http} }}, "));
    let hint = || {
        let answer = wire::send(proxy.grpc, &Request::post(TRACES, PROTOBUF, "").bytes(), false)?;
        anyhow::Ok(String::from_utf8(answer.body)?)
    };
    ensure!(hint()?.contains("OTLP/HTTP is not served here"), "{}", hint()?);
    reload(&proxy, &with("endpoint: \"127.0.0.1:0\""), "success")?;
    let http = listens(&proxy.process, "otlp_http")?;
    ensure!(hint()?.contains(&format!("OTLP/HTTP is on port {}", http.port())), "{}", hint()?);
    let send = |size: usize| {
        let spans = (0..size as u64).map(|n| span(&7_u128.to_be_bytes(), n)).collect();
        let request = Request::post(TRACES, PROTOBUF, encoded(spans)).without("connection");
        let mut stream = wire::connect(http)?;
        stream.write_all(&request.bytes())?;
        anyhow::Ok((wire::Answer::read(&mut stream, false)?.status, stream))
    };
    let (status, mut kept) = send(100)?;
    ensure!(status == 200 && sinks.spans() == 100, "{status}");
    // A limit applies to the next request.
    reload(&proxy, &with("endpoint: \"127.0.0.1:0\", max_request_body_size: 1000"), "success")?;
    ensure!(send(100)?.0 == 413 && send(1)?.0 == 200);
    // A port that is taken changes nothing; the section has the same port as before, so it is removed first.
    reload(&proxy, &without, "success")?;
    until("the port is closed", || Ok((!accepts(http)).then_some(())))?;
    ensure!(kept.read(&mut [0])? == 0, "a connection that is idle ends");
    ensure!(hint()?.contains("OTLP/HTTP is not served here"), "{}", hint()?);
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    reload(&proxy, &with(&format!("endpoint: \"{}\"", taken.local_addr()?)), "failed")?;
    ensure!(proxy.process.log().contains("receivers.otlp.protocols.http.endpoint"), "{}", proxy.process.log());
    reload(&proxy, &with("endpoint: \"127.0.0.1:0\""), "success")?;
    ensure!(accepts(listens(&proxy.process, "otlp_http")?), "it is served again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_flight_are_answered_when_a_reload_removes_the_section() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig { http: Some(""), ..ExtraConfig::default() }).await?;
    let address = fixture.http()?;
    let (mut busy, mut begun) = (wire::connect(address)?, wire::connect(address)?);
    tokio::task::block_in_place(|| {
        fixture.backends[0].answer(|_| Answer::After(Duration::from_secs(2), Box::new(Answer::Accept)));
        busy.write_all(&request(&fixture).without("connection").bytes())?;
        // The body of this one comes after the reload.
        let bytes = request(&fixture).without("connection").bytes();
        let (head, body) = bytes.split_at(bytes.len() - 10);
        begun.write_all(head)?;
        until("the requests are in flight", || {
            Ok((fixture.metric("spanring_receiver_in_flight_requests", &["traces"])? == 2.0).then_some(()))
        })?;
        fixture.reload(ExtraConfig::default())?;
        until("the port is closed", || Ok((!accepts(address)).then_some(())))?;
        begun.write_all(body)?;
        for stream in [&mut busy, &mut begun] {
            let answer = wire::Answer::read(stream, false)?;
            ensure!(answer.status == 200 && answer.header("connection") == Some("close"), "{answer:?}");
            ensure!(stream.read(&mut [0])? == 0, "it is closed");
        }
        anyhow::Ok(())
    })?;
    fixture.backends[0].answer(|_| Answer::Accept);
    fixture.serves().await
}
