//! Tests that the size of the metrics page depends on the number of backends and not on the requests of clients, and
//! that requests do not make the log grow.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, stream};
use h2::client::SendRequest;
use http::Request;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::Span,
};
use prost::{Message, bytes::Bytes};
use spanring::{lifecycle::Tasks, tools::sink::SinkConfig};
use tokio::net::TcpStream;

use super::{
    harness::{Proxy, http_get, until},
    rig::{EXPORT, Sinks, config, framed, request, span},
};

/// Number of requests with unique names; every tenth is an export of ten traces.
const HOSTILE: u64 = 100_000;
const EXPORTS: u64 = 10;
const TRACES: u64 = 10;

/// Number of unanswered requests on one connection.
const AT_ONCE: usize = 64;

/// Number of backends, and the size limit of the page with them, in bytes.
const BACKENDS: usize = 200;
const PAGE: usize = 1 << 20;

/// The series of a page, without values.
fn series(admin: SocketAddr) -> Result<BTreeSet<String>> {
    let (status, page) = http_get(&format!("http://{admin}/metrics"))?;
    ensure!(status == 200, "{status}");
    let lines = page.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| Ok(line.rsplit_once(' ').context("a value")?.0.to_owned())).collect()
}

/// An export request in which all names are unique.
fn export(nth: u64) -> ExportTraceServiceRequest {
    let named = |trace: u64| Span {
        name: format!("evil\"}} {nth}\n"),
        trace_state: format!("evil={trace}"),
        ..span(u128::from(nth * TRACES + trace) + 1, 1)
    };
    let mut request = request((0..TRACES).map(named).collect());
    let service = AnyValue { value: Some(Value::StringValue(format!("evil-{nth}"))) };
    let attribute = KeyValue { key: "service.name".to_owned(), value: Some(service), ..KeyValue::default() };
    let resource = request.resource_spans.first_mut().map(|it| it.resource.get_or_insert_default());
    resource.into_iter().for_each(|resource| resource.attributes.push(attribute.clone()));
    request
}

fn hostile_head(proxy: SocketAddr, nth: u64) -> Result<Request<()>> {
    let path = match nth % 3 {
        _ if nth.is_multiple_of(EXPORTS) => EXPORT.to_owned(),
        0 => format!("/evil.Service{nth}/Export"),
        1 => format!("{EXPORT}{nth}"),
        _ => EXPORT.to_owned(),
    };
    let mut head = Request::post(format!("http://{proxy}{path}"))
        .header("user-agent", format!("evil/{nth}"))
        .header("x-scope-orgid", format!("evil-{nth}"))
        .header(format!("x-evil-{nth}"), "1")
        .header("te", "trailers");
    let content_type = if nth % 3 == 2 && !nth.is_multiple_of(EXPORTS) {
        format!("application/evil-{nth}")
    } else {
        "application/grpc".to_owned()
    };
    head = head.header("content-type", content_type);
    if nth % 7 == 3 && !nth.is_multiple_of(EXPORTS) {
        head = head.header("grpc-encoding", format!("evil-{nth}"));
    }
    Ok(head.body(())?)
}

/// Sends one request and reads its answer to the end. Returns whether it was `OK`.
async fn send(sender: SendRequest<Bytes>, proxy: SocketAddr, nth: u64) -> Result<bool> {
    let is_export = nth.is_multiple_of(EXPORTS);
    let mut sender = sender.ready().await?;
    let (response, mut stream) = sender.send_request(hostile_head(proxy, nth)?, !is_export)?;
    if is_export {
        stream.send_data(framed(0, &export(nth).encode_to_vec())?, true)?;
    }
    let response = response.await?;
    let in_head = response.headers().get("grpc-status").cloned();
    let mut body = response.into_body();
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data?.len())?;
    }
    let status = body.trailers().await?.and_then(|trailers| trailers.get("grpc-status").cloned()).or(in_head);
    Ok(status.is_some_and(|status| status == "0"))
}

async fn send_all(proxy: SocketAddr, tasks: &Tasks) -> Result<u64> {
    let (sender, connection) = h2::client::handshake(TcpStream::connect(proxy).await?).await?;
    tasks.spawn(async move { drop(connection.await) });
    let mut answers = stream::iter(0..HOSTILE).map(|nth| send(sender.clone(), proxy, nth)).buffer_unordered(AT_ONCE);
    let mut accepted = 0;
    while let Some(answer) = answers.next().await {
        accepted += u64::from(answer?);
    }
    Ok(accepted)
}

#[test]
fn requests_add_neither_series_nor_log_lines() -> Result<()> {
    let sinks = Sinks::start(2, &SinkConfig::default())?;
    let proxy = Proxy::start("spanring", |grpc, admin| config(grpc, admin, &sinks.addresses(), "", ""))?;
    let (before, lines_before) = (series(proxy.admin)?, proxy.process.log().lines().count());
    let tasks = Tasks::new();
    let accepted = sinks.runtime.block_on(send_all(proxy.grpc, &tasks))?;
    ensure!(accepted == HOSTILE / EXPORTS, "{accepted} exports were accepted");
    ensure!(sinks.spans() == HOSTILE / EXPORTS * TRACES, "{} spans arrived", sinks.spans());
    let after = series(proxy.admin)?;
    let new: Vec<&String> = after.difference(&before).collect();
    ensure!(new.is_empty(), "{} new series: {:?}", new.len(), new.first());
    ensure!(!after.iter().any(|line| line.contains("evil")), "a client's words are on the page");
    let lines = proxy.process.log().lines().count();
    // Each connection to a backend may add a line.
    ensure!(lines <= lines_before + 4, "{lines} lines after {lines_before}:\n{}", proxy.process.log());
    tasks.stop();
    Ok(())
}

#[test]
fn with_two_hundred_backends_the_page_is_below_a_mebibyte() -> Result<()> {
    // Names as long as those of a StatefulSet's pods. They resolve to nothing, so no backend has to listen.
    let backends: Vec<String> = (0..BACKENDS)
        .map(|nth| format!("\"collector-{nth}.collectors.observability.svc.cluster.invalid:4317\""))
        .collect();
    let proxy = Proxy::start("spanring", |grpc, admin| {
        config(grpc, admin, &[], "", "").replace("hostnames: []", &format!("hostnames: [{}]", backends.join(", ")))
    })?;
    let page = until("every backend has its series", || {
        let (_, page) = http_get(&format!("http://{}/metrics", proxy.admin))?;
        Ok((page.matches("\nspanring_dispatch_queue_bytes{").count() == BACKENDS).then_some(page))
    })?;
    ensure!(page.len() <= PAGE, "{} bytes", page.len());
    ensure!(page.matches("\nspanring_ring_ownership_ratio{").count() == BACKENDS);
    Ok(())
}
