//! The end of a running proxy: it drains after one signal, ends at once after two, and ends in time whatever its peers
//! do.

use std::{
    io::{Read, Write},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use spanring::{
    lifecycle::Tasks,
    tools::sink::{Behaviour, SinkConfig},
};
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{
    harness::{Proxy, TIME_LIMIT, http_get, until},
    rig::{Sinks, client, config, framed, head, request, span},
};

/// Additional time that a drain may take on a slow machine.
const SLACK: Duration = Duration::from_secs(4);

fn proxy(sinks: &Sinks, shutdown: &str) -> Result<Proxy> {
    let shutdown = format!("shutdown: {{ {shutdown} }}");
    Proxy::start("spanring", |grpc, admin| config(grpc, admin, &sinks.addresses(), "", &shutdown))
}

fn slow_sinks(delay_ms: u64) -> Result<Sinks> {
    Sinks::start(3, &SinkConfig { behaviour: Behaviour { delay_ms, ..Behaviour::default() }, ..SinkConfig::default() })
}

fn becomes_unready(proxy: &Proxy) -> Result<String> {
    until("/readyz answers 503", || {
        let (status, body) = http_get(&format!("http://{}/readyz", proxy.admin))?;
        Ok((status == 503).then_some(body))
    })
}

/// A request with new spans of several traces.
fn batch(number: u64) -> ExportTraceServiceRequest {
    request((0..6).map(|n| span(u128::from(number * 6 + n) << 3 | 1, number * 6 + n + 1)).collect())
}

/// Sends batches on one connection, a new one every few milliseconds, until the proxy sends GOAWAY. Returns the number
/// of successful answers; every batch that was sent must succeed. Each adds a permit to `sent_by_all`.
async fn send_until_told_to_go(proxy: &Proxy, lane: u64, sent_by_all: &Semaphore) -> Result<u64> {
    let (sender, connection) = h2::client::handshake(TcpStream::connect(proxy.grpc).await?).await?;
    let tasks = Tasks::new();
    let ended = tasks.spawn(connection);
    let mut answers = Vec::new();
    let mut sender = Some(sender);
    for number in lane * 100_000.. {
        let Some(Ok(ready)) = (match sender.take() {
            Some(sender) => Some(sender.ready().await),
            None => None,
        }) else {
            break;
        };
        let mut ready = ready;
        let Ok((response, mut body)) = ready.send_request(head(proxy.grpc, &[])?, false) else { break };
        let sent = body.send_data(framed(0, &batch(number).encode_to_vec())?, true);
        answers.push(tasks.spawn(async move {
            sent?;
            let mut body = match response.await {
                Ok(response) => response.into_body(),
                // The batch came too late and was refused by the GOAWAY. HTTP/2 guarantees that none of it was
                // processed.
                Err(error) if error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            while let Some(data) = body.data().await {
                body.flow_control().release_capacity(data?.len())?;
            }
            let trailers = body.trailers().await?.unwrap_or_default();
            anyhow::Ok(Some(trailers.get("grpc-status").is_some_and(|status| status == "0")))
        }));
        sender = Some(ready);
        sent_by_all.add_permits(1);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (sent, mut taken) = (answers.len(), 0);
    for (n, answer) in answers.into_iter().enumerate() {
        let is_ok = answer.await?.with_context(|| format!("request {n} of {sent}"))?;
        ensure!(is_ok != Some(false), "request {n} of {sent} must be answered with success");
        taken += u64::from(is_ok.is_some());
    }
    drop(sender);
    ended.await?.context("the connection must end in order")?;
    Ok(taken)
}

#[test]
fn a_drain_under_load_answers_every_request_and_loses_nothing() -> Result<()> {
    let sinks = slow_sinks(300)?;
    let mut proxy = proxy(&sinks, "delay: 1s, timeout: 2s")?;
    let begun = Instant::now();
    let sent: u64 = sinks.runtime.block_on(async {
        let sent_by_all = Semaphore::new(0);
        let lanes = (0..4).map(|lane| send_until_told_to_go(&proxy, lane, &sent_by_all));
        let lanes = futures_util::future::join_all(lanes);
        let ends = async {
            timeout(TIME_LIMIT, sent_by_all.acquire_many(100)).await??.forget();
            proxy.process.signal("TERM")?;
            let body = becomes_unready(&proxy)?;
            ensure!(body.contains("draining"), "the reason must be said: {body}");
            // Clients that have not noticed yet are still served.
            client(proxy.grpc).await?.export(batch(9_900_000)).await?;
            let (status, _) = http_get(&format!("http://{}/livez", proxy.admin))?;
            ensure!(status == 200, "it lives until it ends");
            anyhow::Ok(())
        };
        let (lanes, ends) = tokio::join!(lanes, ends);
        ends?;
        lanes.into_iter().sum::<Result<u64>>()
    })?;
    let answered = begun.elapsed();
    let status = proxy.process.wait()?;
    ensure!(status.code() == Some(0), "{status}");
    ensure!(begun.elapsed() < Duration::from_secs(3) + SLACK, "{answered:?}, {:?}", begun.elapsed());
    ensure!(sent > 40, "only {sent} requests were sent");
    let spans = (sent + 1) * 6;
    ensure!(sinks.spans() == spans, "{} of {spans} spans acknowledged", sinks.spans());
    let duplicates: u64 = sinks.sinks.iter().filter_map(|s| s.report().tracked).map(|t| t.duplicates).sum();
    ensure!(duplicates == 0, "{duplicates} duplicates");
    Ok(())
}

#[test]
fn a_drain_ends_in_time_with_a_backend_that_never_answers() -> Result<()> {
    let sinks = slow_sinks(60_000)?;
    let mut proxy = proxy(&sinks, "delay: 0s, timeout: 500ms")?;
    let address = proxy.grpc;
    let waiting = {
        let tasks = Tasks::new();
        let _entered = sinks.runtime.enter();
        tasks.spawn(async move { client(address).await?.export(batch(1)).await.map_err(anyhow::Error::from) })
    };
    until("the backend has the call", || {
        Ok((sinks.sinks.iter().map(|sink| sink.report().requests).sum::<u64>() > 0).then_some(()))
    })?;
    let begun = Instant::now();
    let status = proxy.process.stop()?;
    ensure!(status.code() == Some(0), "{status}");
    ensure!(begun.elapsed() >= Duration::from_millis(500), "it must have its time: {:?}", begun.elapsed());
    ensure!(begun.elapsed() < Duration::from_millis(500) + SLACK, "{:?}", begun.elapsed());
    ensure!(sinks.runtime.block_on(waiting)?.is_err(), "what was not delivered must not be acknowledged");
    Ok(())
}

#[test]
fn a_drain_does_not_wait_for_clients_that_do_not_answer() -> Result<()> {
    let sinks = slow_sinks(0)?;
    let mut proxy = proxy(&sinks, "delay: 0s, timeout: 45s")?;
    // These clients send the preface and an empty SETTINGS and then nothing, not even answers to PINGs.
    let mut mute = Vec::new();
    for _ in 0..2 {
        let mut client = std::net::TcpStream::connect(proxy.grpc)?;
        client.set_read_timeout(Some(TIME_LIMIT))?;
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")?;
        client.read_exact(&mut [0; 9])?;
        mute.push(client);
    }
    let begun = Instant::now();
    let status = proxy.process.stop()?;
    ensure!(status.code() == Some(0), "{status}");
    // The proxy gives them 5 s; the rest is tolerance for a slow machine.
    ensure!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    for mut client in mute {
        let mut rest = Vec::new();
        client.read_to_end(&mut rest)?;
        ensure!(!rest.is_empty(), "they must be told to go");
    }
    Ok(())
}

#[test]
fn a_second_signal_ends_the_process_at_once() -> Result<()> {
    let sinks = slow_sinks(0)?;
    for (first, second, code) in [("TERM", "TERM", 143), ("INT", "INT", 130), ("TERM", "INT", 130)] {
        let mut proxy = proxy(&sinks, "delay: 60s, timeout: 60s")?;
        proxy.process.signal(first)?;
        becomes_unready(&proxy)?;
        let begun = Instant::now();
        proxy.process.signal(second)?;
        let status = proxy.process.wait()?;
        ensure!(status.code() == Some(code), "{first}, {second}: {status}");
        ensure!(begun.elapsed() < SLACK, "{:?}", begun.elapsed());
    }
    Ok(())
}
