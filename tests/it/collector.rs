//! Three proxies between clients (telemetrygen and our own) and real Collectors with tail sampling.

use std::{net::SocketAddr, path::Path, process::Command};

use anyhow::{Result, ensure};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, status::StatusCode},
};
use tonic::codec::CompressionEncoding;

use super::{
    harness::{self, Process},
    otelcol::{Calls, Stage, count},
};

/// Traces of our own client, half of which have a failed span, and the number of spans of each.
const OWN_TRACES: u64 = 300;
const OWN_SPANS: u64 = 7;
/// Traces that each telemetrygen sends, and the number of child spans of each.
const GENERATED_TRACES: u64 = 100;
const GENERATED_CHILDREN: u64 = 4;
/// Total number of spans, and number of spans in traces with a failed span: half of our own traces and those of two of
/// the three generators.
const SENT: u64 = OWN_TRACES * OWN_SPANS + 3 * GENERATED_TRACES * (1 + GENERATED_CHILDREN);
const FAILED: u64 = OWN_TRACES / 2 * OWN_SPANS + 2 * GENERATED_TRACES * (1 + GENERATED_CHILDREN);

/// Sends requests with spans of many traces. The spans of a trace go to different proxies.
async fn send_own(proxies: &[SocketAddr], is_gzip: bool) -> Result<()> {
    for (turn, proxy) in proxies.iter().cycle().take(usize::try_from(OWN_SPANS)?).enumerate() {
        let mut client = TraceServiceClient::connect(format!("http://{proxy}")).await?;
        if is_gzip {
            client = client.send_compressed(CompressionEncoding::Gzip).accept_compressed(CompressionEncoding::Gzip);
        }
        let spans = (0..OWN_TRACES).map(|trace| own_span(trace, turn as u64)).collect();
        let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
        let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
        let reply = client.export(ExportTraceServiceRequest { resource_spans }).await?.into_inner();
        ensure!(reply.partial_success.is_none(), "every span must be taken: {reply:?}");
    }
    Ok(())
}

fn own_span(trace: u64, span: u64) -> Span {
    let is_failed = trace.is_multiple_of(2) && span == trace % OWN_SPANS;
    let code = if is_failed { StatusCode::Error } else { StatusCode::Unset };
    Span {
        trace_id: u128::from(0xfeed_0000 + trace).to_be_bytes().to_vec(),
        span_id: (1 + span).to_be_bytes().to_vec(),
        name: format!("step {span}"),
        start_time_unix_nano: 1_750_000_000_000_000_000 + span,
        end_time_unix_nano: 1_750_000_000_000_001_000 + span,
        status: Some(Status { code: code.into(), message: String::new() }),
        ..Span::default()
    }
}

/// Starts one telemetrygen for each proxy; those with an even index send failed spans.
fn start_generators(program: &Path, proxies: &[SocketAddr], is_gzip: bool) -> Result<Vec<Process>> {
    let generators = proxies.iter().enumerate().map(|(n, proxy)| {
        let mut command = Command::new(program);
        command.args(["traces", "--otlp-insecure", "--rate", "0", "--batch-size", "64"]);
        command.arg("--otlp-endpoint").arg(proxy.to_string());
        command.arg("--traces").arg(GENERATED_TRACES.to_string());
        command.arg("--child-spans").arg(GENERATED_CHILDREN.to_string());
        command.arg("--status-code").arg(if n % 2 == 0 { "Error" } else { "Ok" });
        command.env("OTEL_EXPORTER_OTLP_COMPRESSION", if is_gzip { "gzip" } else { "none" });
        Process::start("telemetrygen", &mut command)
    });
    generators.collect()
}

fn traces_stay_whole(calls: Calls, is_gzip: bool) -> Result<()> {
    let (Some(otelcol), Some(telemetrygen)) = (harness::peer("otelcol")?, harness::peer("telemetrygen")?) else {
        return Ok(());
    };
    let stage = Stage::start(&otelcol, calls, [if is_gzip { "gzip" } else { "none" }; 3])?;
    let proxies = stage.grpc();
    let mut generators = start_generators(&telemetrygen, &proxies, is_gzip)?;
    tokio::runtime::Runtime::new()?.block_on(send_own(&proxies, is_gzip))?;
    for generator in &mut generators {
        let status = generator.wait()?;
        ensure!(status.success(), "telemetrygen ended with {status}");
    }
    let outcome = stage.finish(SENT, FAILED)?;
    let (all, kept) = (outcome.all_whole()?, outcome.all_kept());
    ensure!(count([&all]) == SENT, "every span must arrive once: {} of {SENT}", count([&all]));
    ensure!(count([&kept]) == FAILED, "failed traces and no others are kept: {} of {FAILED}", count([&kept]));
    for (id, spans) in all.iter().chain(&kept) {
        let is_whole = [OWN_SPANS, 1 + GENERATED_CHILDREN].contains(&(spans.len() as u64));
        ensure!(is_whole, "trace {id} has {} spans", spans.len());
    }
    Ok(())
}

#[test]
fn collectors_that_sample_by_trace_get_every_trace_whole() -> Result<()> {
    traces_stay_whole(Calls::Grpc, false)
}

#[test]
fn the_same_with_gzip_on_both_sides() -> Result<()> {
    traces_stay_whole(Calls::Grpc, true)
}

#[test]
fn the_same_with_calls_by_otlp_http() -> Result<()> {
    traces_stay_whole(Calls::Http, false)
}
