//! OTLP/gRPC as a client sees it: encodings, refusals, invalid IDs, and requests of every size.

use std::{collections::BTreeMap, io::Write as _};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{ExportLogsServiceRequest, logs_service_client::LogsServiceClient},
        trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    },
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message;
use spanring::{
    lifecycle::Tasks,
    tools::sink::{Sink, SinkConfig},
};
use tokio::runtime::Runtime;
use tonic::{Code, codec::CompressionEncoding};
use tonic_types::StatusExt;

use super::{
    harness::{Proxy, metric, until},
    rig::{Keeper, Sinks, client, config, framed, request, send_raw, span},
};

/// Starts a proxy in front of `count` keepers, with additional lines for the pool and the file.
fn with_keepers(count: usize, pool: &str, more: &str) -> Result<(Runtime, Vec<Keeper>, Proxy)> {
    let runtime = Runtime::new()?;
    let tasks = Tasks::new();
    let keepers = vec![(); count].into_iter().map(|()| Keeper::default()).collect::<Vec<_>>();
    let addresses = keepers.iter().map(|keeper| runtime.block_on(keeper.start(&tasks)));
    let addresses = addresses.collect::<Result<Vec<_>>>()?;
    let proxy = Proxy::start("spanring", |grpc, admin| config(grpc, admin, &addresses, pool, more))?;
    Ok((runtime, keepers, proxy))
}

/// Counts every span together with its resource and scope.
fn spans_of<'a>(requests: impl IntoIterator<Item = &'a ExportTraceServiceRequest>) -> BTreeMap<Vec<u8>, usize> {
    let mut spans = BTreeMap::new();
    for resource in requests.into_iter().flat_map(|request| &request.resource_spans) {
        let around = resource.resource.as_ref().map(Message::encode_to_vec).unwrap_or_default();
        for scope in &resource.scope_spans {
            let within = scope.scope.as_ref().map(Message::encode_to_vec).unwrap_or_default();
            for span in &scope.spans {
                let mut key = around.clone();
                key.extend_from_slice(&within);
                key.extend_from_slice(scope.schema_url.as_bytes());
                key.extend(span.encode_to_vec());
                *spans.entry(key).or_default() += 1;
            }
        }
    }
    spans
}

fn attribute(key: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

/// A request with two services and two scopes in each; every trace has spans in all of them.
fn of_services(traces: u128, filler: usize) -> ExportTraceServiceRequest {
    let mut id = 0;
    let mut scope = |name: &str| {
        let spans = (1..=traces).map(|trace| {
            id += 1;
            let attributes = vec![attribute("filler", &"x".repeat(filler))];
            Span { attributes, ..span(trace << 64 | trace, id) }
        });
        let spans = spans.collect();
        let scope = Some(InstrumentationScope { name: name.to_owned(), ..InstrumentationScope::default() });
        ScopeSpans { scope, spans, schema_url: format!("https://schemas.test/{name}") }
    };
    let mut service = |name: &str| ResourceSpans {
        resource: Some(Resource { attributes: vec![attribute("service.name", name)], ..Resource::default() }),
        scope_spans: vec![scope("first"), scope("second")],
        schema_url: "https://schemas.test/resource".to_owned(),
    };
    ExportTraceServiceRequest { resource_spans: vec![service("shop"), service("bank")] }
}

#[test]
fn every_encoding_of_clients_works_with_every_encoding_of_pools() -> Result<()> {
    for (name, pool) in [("", "compression: none"), ("gzip", "compression: gzip"), ("zstd", "compression: zstd")] {
        let (runtime, keepers, proxy) = with_keepers(3, pool, "")?;
        let sent = of_services(40, 10);
        runtime.block_on(async {
            for encoding in [None, Some(CompressionEncoding::Gzip), Some(CompressionEncoding::Zstd)] {
                let mut client = client(proxy.grpc).await?;
                if let Some(encoding) = encoding {
                    client = client.send_compressed(encoding).accept_compressed(encoding);
                }
                let reply = client.export(sent.clone()).await?.into_inner();
                ensure!(reply == ExportTraceServiceResponse::default(), "{reply:?}");
            }
            anyhow::Ok(())
        })?;
        let kept: Vec<_> = keepers.iter().flat_map(Keeper::kept).collect();
        ensure!(kept.iter().all(|(encoding, _)| encoding.as_deref().unwrap_or_default() == name), "{name}: {kept:?}");
        let mut expected = spans_of([&sent]);
        expected.values_mut().for_each(|times| *times = 3);
        ensure!(spans_of(kept.iter().map(|(_, request)| request)) == expected, "every span three times, {pool}");
    }
    Ok(())
}

#[test]
fn twelve_mib_reach_backends_that_accept_four_mib() -> Result<()> {
    let (runtime, keepers, proxy) = with_keepers(2, "", "")?;
    // One trace has more than 4 MiB, so its owner gets it in several calls. Another has a single large span.
    let mut sent = of_services(1200, 2300);
    let attributes = vec![attribute("large", &"y".repeat(3 << 20))];
    sent.resource_spans.push(ResourceSpans {
        scope_spans: vec![ScopeSpans {
            spans: vec![Span { attributes, ..span(7, 7_000_000) }],
            ..ScopeSpans::default()
        }],
        ..ResourceSpans::default()
    });
    ensure!(sent.encoded_len() > 12 << 20, "{}", sent.encoded_len());
    runtime.block_on(async {
        let mut client = client(proxy.grpc).await?;
        let reply = client.export(sent.clone()).await?.into_inner();
        ensure!(reply == ExportTraceServiceResponse::default(), "{reply:?}");
        anyhow::Ok(())
    })?;
    let kept: Vec<_> = keepers.iter().flat_map(Keeper::kept).map(|(_, request)| request).collect();
    ensure!(kept.iter().all(|request| request.encoded_len() <= 4 << 20), "no call is larger than its backend takes");
    ensure!(kept.len() >= 4, "{} calls", kept.len());
    ensure!(spans_of(&kept) == spans_of([&sent]), "every span must arrive once, in its own resource and scope");
    Ok(())
}

#[test]
fn an_empty_request_is_a_success_and_goes_nowhere() -> Result<()> {
    let (runtime, keepers, proxy) = with_keepers(2, "", "")?;
    let empty_envelopes = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans { scope_spans: vec![ScopeSpans::default()], ..ResourceSpans::default() }],
    };
    runtime.block_on(async {
        let mut client = client(proxy.grpc).await?;
        for empty in [ExportTraceServiceRequest::default(), empty_envelopes] {
            let reply = client.export(empty).await?.into_inner();
            ensure!(reply == ExportTraceServiceResponse::default(), "{reply:?}");
        }
        anyhow::Ok(())
    })?;
    ensure!(keepers.iter().all(|keeper| keeper.kept().is_empty()), "there is nothing to send");
    ensure!(metric(proxy.admin, "spanring_split_requests_total", &["kind=\"empty\""])?.round() == 2.0);
    Ok(())
}

#[test]
fn malformed_protobuf_is_refused_with_its_offset_and_the_connection_stays_open() -> Result<()> {
    let (runtime, keepers, proxy) = with_keepers(2, "", "")?;
    let mut broken = request(vec![span(1, 1), span(2, 2)]).encode_to_vec();
    let at = broken.len();
    // Another field 1 of the request, with a length of 99 bytes that are missing.
    broken.extend([0x0a, 99, 1, 2, 3]);
    let reply = runtime.block_on(send_raw(proxy.grpc, &[], framed(0, &broken)?))?;
    ensure!(reply.code == Code::InvalidArgument as i32, "{reply:?}");
    let offsets = at..=at + 2;
    let named = offsets.into_iter().any(|at| reply.message.contains(&format!("at byte {at}:")));
    ensure!(named, "the fault is at byte {at}: {reply:?}");
    ensure!(keepers.iter().all(|keeper| keeper.kept().is_empty()), "no part of it may be sent");
    let reply = runtime.block_on(send_raw(proxy.grpc, &[], framed(0, &broken[..at])?))?;
    ensure!(reply.code == 0, "{reply:?}");
    Ok(())
}

#[test]
fn messages_that_are_too_large_are_refused_permanently() -> Result<()> {
    let runtime = Runtime::new()?;
    let sinks = Sinks::start(2, &SinkConfig::default())?;
    let proxy = Proxy::start("spanring", |grpc, admin| {
        config(grpc, admin, &sinks.addresses(), "", "").replace(" } } } }\n", ", max_recv_msg_size_mib: 1 } } } }\n")
    })?;
    let large = request((0..400).map(|n| Span { name: "n".repeat(4096), ..span(n, 1) }).collect());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&large.encode_to_vec())?;
    let zipped = gzip.finish()?;
    ensure!(zipped.len() < 1 << 20, "small on the wire, large inflated");
    let plain = framed(0, &large.encode_to_vec())?;
    for (headers, body) in [(vec![], plain), (vec![("grpc-encoding", "gzip")], framed(1, &zipped)?)] {
        let reply = runtime.block_on(send_raw(proxy.grpc, &headers, body))?;
        ensure!(reply.code == Code::ResourceExhausted as i32, "{reply:?}");
        ensure!(reply.message.contains("max_recv_msg_size_mib"), "{reply:?}");
    }
    let status = runtime.block_on(async {
        let refused = client(proxy.grpc).await?.max_encoding_message_size(8 << 20).export(large).await;
        refused.err().context("must be refused")
    })?;
    ensure!(status.get_details_retry_info().is_none(), "no RetryInfo: it must not be sent again: {status:?}");
    Ok(())
}

/// A request with one valid span and one of each invalid kind.
fn with_invalid_ids() -> ExportTraceServiceRequest {
    let of = |id: &[u8], n| Span { trace_id: id.to_vec(), ..span(1, n) };
    request(vec![span(77, 1), of(&[], 2), of(&[0; 16], 3), of(&[9; 8], 4), of(&[9; 17], 5)])
}

fn invalid_ids_are_counted(proxy: &Proxy) -> Result<()> {
    for (kind, count) in [("empty", 1.0), ("zero", 1.0), ("wrong_length", 2.0)] {
        let label = format!("kind=\"{kind}\"");
        let counted = metric(proxy.admin, "spanring_split_invalid_ids_total", &[&label])?;
        ensure!((counted - count).abs() < 0.5, "{kind}: {counted}");
    }
    Ok(())
}

#[test]
fn spans_with_invalid_ids_are_forwarded_and_counted() -> Result<()> {
    let (runtime, keepers, proxy) = with_keepers(3, "", "invalid_trace_id: forward")?;
    let sent = with_invalid_ids();
    let reply = runtime.block_on(async { anyhow::Ok(client(proxy.grpc).await?.export(sent.clone()).await?) })?;
    ensure!(reply.into_inner().partial_success.is_none());
    let kept: Vec<_> = keepers.iter().flat_map(Keeper::kept).map(|(_, request)| request).collect();
    ensure!(spans_of(&kept) == spans_of([&sent]), "every span must be forwarded once");
    invalid_ids_are_counted(&proxy)
}

#[test]
fn spans_without_an_id_are_rejected_and_log_records_without_one_are_accepted() -> Result<()> {
    let sinks = Sinks::start(2, &SinkConfig::default())?;
    let proxy = Proxy::start("spanring", |grpc, admin| {
        let by_signal = "invalid_trace_id: { traces: reject, logs: forward }";
        config(grpc, admin, &sinks.addresses(), "", by_signal).replace("[traces]", "[traces, logs]")
    })?;
    let (spans, logs) = sinks.runtime.block_on(async {
        let spans = client(proxy.grpc).await?.export(with_invalid_ids()).await?.into_inner();
        let record = |trace_id: Vec<u8>| LogRecord { trace_id, ..LogRecord::default() };
        let log_records = vec![record(vec![7; 16]), record(Vec::new()), record(Vec::new())];
        let scope_logs = vec![ScopeLogs { log_records, ..ScopeLogs::default() }];
        let resource_logs = vec![ResourceLogs { scope_logs, ..ResourceLogs::default() }];
        let mut client = LogsServiceClient::connect(format!("http://{}", proxy.grpc)).await?;
        anyhow::Ok((spans, client.export(ExportLogsServiceRequest { resource_logs }).await?.into_inner()))
    })?;
    let partial = spans.partial_success.context("a partial success")?;
    ensure!(partial.rejected_spans == 4 && partial.error_message.contains("invalid_trace_id"), "{partial:?}");
    ensure!(logs.partial_success.is_none(), "{logs:?}");
    let reports: Vec<_> = sinks.sinks.iter().map(Sink::report).collect();
    ensure!(reports.iter().map(|report| report.spans).sum::<u64>() == 1, "{reports:?}");
    ensure!(reports.iter().map(|report| report.records["log_records"].taken).sum::<u64>() == 3, "{reports:?}");
    for (signal, count) in [("traces", 1.0), ("logs", 2.0)] {
        let labels = [format!("signal=\"{signal}\""), "kind=\"empty\"".to_owned()];
        let counted = metric(proxy.admin, "spanring_split_invalid_ids_total", &labels.each_ref().map(|it| &**it))?;
        ensure!((counted - count).abs() < 0.5, "{signal}: {counted}");
    }
    Ok(())
}

#[test]
fn spans_with_invalid_ids_are_rejected_by_count_in_the_clients_own_encoding() -> Result<()> {
    let (runtime, keepers, proxy) = with_keepers(3, "", "invalid_trace_id: reject")?;
    let sent = with_invalid_ids();
    let reply = runtime.block_on(async { anyhow::Ok(client(proxy.grpc).await?.export(sent.clone()).await?) })?;
    let partial = reply.into_inner().partial_success.context("a partial success")?;
    ensure!(partial.rejected_spans == 4, "{partial:?}");
    let kept: Vec<_> = keepers.iter().flat_map(Keeper::kept).map(|(_, request)| request).collect();
    ensure!(spans_of(&kept) == spans_of([&request(vec![span(77, 1)])]), "the valid span must be forwarded");
    invalid_ids_are_counted(&proxy)?;

    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&sent.encode_to_vec())?;
    let body = framed(1, &gzip.finish()?)?;
    let headers = [("grpc-encoding", "gzip"), ("grpc-accept-encoding", "identity,gzip")];
    let reply = runtime.block_on(send_raw(proxy.grpc, &headers, body.clone()))?;
    ensure!(reply.encoding.as_deref() == Some("gzip") && reply.body.first() == Some(&1), "{reply:?}");
    let reply = runtime.block_on(send_raw(proxy.grpc, &headers[..1], body))?;
    ensure!(reply.encoding.is_none() && reply.body.first() == Some(&0), "not unless it is asked for: {reply:?}");
    Ok(())
}

#[test]
fn connections_above_the_limit_are_closed_and_counted() -> Result<()> {
    let runtime = Runtime::new()?;
    let sinks = Sinks::start(1, &SinkConfig::default())?;
    let proxy = Proxy::start("spanring", |grpc, admin| {
        config(grpc, admin, &sinks.addresses(), "", "").replace(" } } } }\n", ", max_connections: 2 } } } }\n")
    })?;
    runtime.block_on(async {
        let mut first = client(proxy.grpc).await?;
        let mut second = client(proxy.grpc).await?;
        first.export(request(vec![span(1, 1)])).await?;
        second.export(request(vec![span(1, 2)])).await?;
        ensure!(send_raw(proxy.grpc, &[], framed(0, &[])?).await.is_err(), "the third must be closed");
        first.export(request(vec![span(1, 3)])).await?;
        anyhow::Ok(())
    })?;
    until("the refused connection is counted", || {
        let labels = ["listener=\"otlp_grpc\"", "result=\"refused\""];
        Ok((metric(proxy.admin, "spanring_receiver_connections_total", &labels)? >= 1.0).then_some(()))
    })?;
    ensure!(sinks.spans() == 3);
    Ok(())
}
