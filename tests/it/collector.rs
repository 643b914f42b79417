//! Real Collectors that sample by trace, behind three proxies; telemetrygen and OTLP clients in front.

use std::{collections::BTreeMap, fs, net::SocketAddr, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, status::StatusCode},
};
use serde_json::Value;
use tempfile::TempDir;
use tonic::codec::CompressionEncoding;

use super::harness::{self, Process, Proxy, Ready, until};

/// Traces of our own client, the half of them with one failed span, and spans in each.
const OWN_TRACES: u64 = 300;
const OWN_SPANS: u64 = 7;
/// Traces that each telemetrygen sends, and child spans of each.
const GENERATED_TRACES: u64 = 100;
const GENERATED_CHILDREN: u64 = 4;
/// Spans of all, and of the traces with a failed span: half of our own and those of two generators of three.
const SENT: u64 = OWN_TRACES * OWN_SPANS + 3 * GENERATED_TRACES * (1 + GENERATED_CHILDREN);
const FAILED: u64 = OWN_TRACES / 2 * OWN_SPANS + 2 * GENERATED_TRACES * (1 + GENERATED_CHILDREN);

/// A Collector that writes all spans that it gets to one file and those of traces that it keeps to another.
struct Collector {
    grpc: SocketAddr,
    process: Process,
    dir: TempDir,
}

/// Spans by trace ID.
type Traces = BTreeMap<String, u64>;

impl Collector {
    fn start(program: &Path) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("collector.yaml");
        let (process, [grpc, _]) = harness::on_free_ports(|[grpc, health]| {
            fs::write(&file, Self::config(grpc, health, dir.path()))?;
            let process = Process::start("otelcol", Command::new(program).arg("--config").arg(&file))?;
            Ok((process, Ready::Page(format!("http://{health}/"))))
        })?;
        Ok(Self { grpc, process, dir })
    }

    /// Keeps a trace when one of its spans failed: all its spans must have come here, and within the wait.
    fn config(grpc: SocketAddr, health: SocketAddr, dir: &Path) -> String {
        let dir = dir.display();
        format!(
            "receivers:
  otlp: {{ protocols: {{ grpc: {{ endpoint: {grpc} }} }} }}
processors:
  tail_sampling:
    decision_wait: 5s
    policies: [{{ name: failed, type: status_code, status_code: {{ status_codes: [ERROR] }} }}]
exporters:
  file/all: {{ path: {dir}/all.jsonl, flush_interval: 100ms }}
  file/kept: {{ path: {dir}/kept.jsonl, flush_interval: 100ms }}
extensions:
  health_check: {{ endpoint: {health} }}
service:
  extensions: [health_check]
  telemetry: {{ metrics: {{ level: none }} }}
  pipelines:
    traces/all: {{ receivers: [otlp], exporters: [file/all] }}
    traces/kept: {{ receivers: [otlp], processors: [tail_sampling], exporters: [file/kept] }}
"
        )
    }

    fn all(&self) -> Result<Traces> {
        read(&self.dir.path().join("all.jsonl"))
    }

    fn kept(&self) -> Result<Traces> {
        read(&self.dir.path().join("kept.jsonl"))
    }
}

/// Counts the spans of a file of OTLP JSON, one request a line; a line that is still being written is left out.
fn read(path: &Path) -> Result<Traces> {
    let mut traces = Traces::new();
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    for line in lines {
        let request: Value = serde_json::from_str(line).with_context(|| format!("{}: {line}", path.display()))?;
        let scopes = list(&request, "resourceSpans").flat_map(|resource| list(resource, "scopeSpans"));
        for span in scopes.flat_map(|scope| list(scope, "spans")) {
            let id = span.get("traceId").and_then(Value::as_str).context("a span without trace ID")?;
            *traces.entry(id.to_owned()).or_default() += 1;
        }
    }
    Ok(traces)
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn total<'a>(traces: impl IntoIterator<Item = &'a Traces>) -> u64 {
    traces.into_iter().flat_map(Traces::values).sum()
}

fn proxy_config(grpc: SocketAddr, admin: SocketAddr, backends: &[Collector], compression: &str) -> String {
    let hostnames: Vec<String> = backends.iter().map(|backend| format!("\"{}\"", backend.grpc)).collect();
    format!(
        "receivers:
  otlp: {{ protocols: {{ grpc: {{ endpoint: {grpc} }} }} }}
pools:
  tail:
    resolver: {{ static: {{ hostnames: [{}] }} }}
    compression: {compression}
routes:
  - {{ signals: [traces], routing_key: trace_id, pool: tail }}
admin: {{ endpoint: {admin} }}
shutdown: {{ delay: 0s, timeout: 10m }}
",
        hostnames.join(", ")
    )
}

/// Sends traces whose spans go out by different proxies, many traces in each request.
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

/// Starts one telemetrygen a proxy; those at even places send failed spans.
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

fn traces_stay_whole(is_gzip: bool) -> Result<()> {
    let (Some(otelcol), Some(telemetrygen)) = (harness::peer("otelcol")?, harness::peer("telemetrygen")?) else {
        return Ok(());
    };
    let mut collectors = (0..3).map(|_| Collector::start(&otelcol)).collect::<Result<Vec<_>>>()?;
    let compression = if is_gzip { "gzip" } else { "none" };
    let mut proxies = (0..3)
        .map(|n| {
            let config = |grpc, admin| proxy_config(grpc, admin, &collectors, compression);
            Proxy::start(&format!("spanring-{n}"), config)
        })
        .collect::<Result<Vec<_>>>()?;
    let addresses: Vec<SocketAddr> = proxies.iter().map(|proxy| proxy.grpc).collect();
    check(&mut collectors, &addresses, &telemetrygen, is_gzip)?;
    let labels = ["signal=\"traces\"", "outcome=\"accepted\""];
    let accepted = proxies.iter().map(|proxy| harness::metric(proxy.admin, "spanring_receiver_records_total", &labels));
    let accepted: f64 = accepted.sum::<Result<_>>()?;
    ensure!(accepted.round() == SENT as f64, "the proxies must count what they took: {accepted} of {SENT}");
    for proxy in &mut proxies {
        // Nobody is connected any more: a drain that waits for its timeout waits for something else.
        let status = proxy.process.stop()?;
        ensure!(status.success(), "a proxy must end well when asked to: {status}");
    }
    Ok(())
}

fn check(collectors: &mut [Collector], proxies: &[SocketAddr], telemetrygen: &Path, is_gzip: bool) -> Result<()> {
    let mut generators = start_generators(telemetrygen, proxies, is_gzip)?;
    tokio::runtime::Runtime::new()?.block_on(send_own(proxies, is_gzip))?;
    for generator in &mut generators {
        let status = generator.wait()?;
        ensure!(status.success(), "telemetrygen ended with {status}");
    }
    until("the failed traces are decided on", || {
        let kept = collectors.iter().map(Collector::kept).collect::<Result<Vec<_>>>()?;
        Ok((total(&kept) >= FAILED).then_some(()))
    })
    .context(format!("expected {FAILED} spans to be kept"))?;
    for collector in collectors.iter_mut() {
        collector.process.stop()?;
    }
    let all = collectors.iter().map(Collector::all).collect::<Result<Vec<_>>>()?;
    let kept = collectors.iter().map(Collector::kept).collect::<Result<Vec<_>>>()?;
    ensure!(total(&all) == SENT, "every span must arrive once: {} of {SENT}", total(&all));
    ensure!(total(&kept) == FAILED, "failed traces and no others are kept, whole: {} of {FAILED}", total(&kept));
    for (n, traces) in all.iter().enumerate() {
        ensure!(!traces.is_empty(), "Collector {n} got nothing");
        for (id, spans) in traces {
            let elsewhere = all.iter().enumerate().any(|(other, traces)| other != n && traces.contains_key(id));
            ensure!(!elsewhere, "trace {id} came to two Collectors");
            ensure!([OWN_SPANS, 1 + GENERATED_CHILDREN].contains(spans), "trace {id} has {spans} spans");
        }
    }
    for (id, spans) in kept.iter().flatten() {
        ensure!([OWN_SPANS, 1 + GENERATED_CHILDREN].contains(spans), "{spans} spans of trace {id} were kept");
    }
    Ok(())
}

#[test]
fn collectors_that_sample_by_trace_get_every_trace_whole() -> Result<()> {
    traces_stay_whole(false)
}

#[test]
fn the_same_with_gzip_on_both_sides() -> Result<()> {
    traces_stay_whole(true)
}
