//! Three proxies in front of real Collectors with tail sampling, and the spans that each Collector received.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::harness::{self, Process, Proxy, Ready, until};

/// Span IDs by trace ID, sorted. A span received twice is listed twice.
pub(crate) type Traces = BTreeMap<String, Vec<String>>;

/// Three Collectors behind three proxies.
pub(crate) struct Stage {
    collectors: Vec<Collector>,
    proxies: Vec<Proxy>,
}

/// The traces that each Collector received, and those that it kept.
pub(crate) struct Outcome {
    pub(crate) all: Vec<Traces>,
    pub(crate) kept: Vec<Traces>,
}

/// A Collector that writes all received spans to one file and those of sampled traces to another.
struct Collector {
    grpc: SocketAddr,
    process: Process,
    dir: TempDir,
}

// === impl Stage ===

impl Stage {
    /// Starts all processes; `compression` is that of the proxies' calls.
    pub(crate) fn start(otelcol: &Path, compression: &str) -> Result<Self> {
        let collectors = (0..3).map(|_| Collector::start(otelcol)).collect::<Result<Vec<_>>>()?;
        let config = |grpc, admin| proxy_config(grpc, admin, &collectors, compression);
        let proxies = (0..3).map(|n| Proxy::start(&format!("spanring-{n}"), config)).collect::<Result<_>>()?;
        Ok(Self { collectors, proxies })
    }

    pub(crate) fn endpoints(&self) -> Vec<SocketAddr> {
        self.proxies.iter().map(|proxy| proxy.grpc).collect()
    }

    /// Waits until `kept` spans were kept. Checks that the proxies counted `sent` spans. Ends all processes.
    pub(crate) fn finish(mut self, sent: u64, kept: u64) -> Result<Outcome> {
        until("the failed traces are decided on", || Ok((count(&self.read("kept.jsonl")?) >= kept).then_some(())))
            .context(format!("expected {kept} spans to be kept"))?;
        let labels = ["signal=\"traces\"", "outcome=\"accepted\""];
        let accepted =
            self.proxies.iter().map(|proxy| harness::metric(proxy.admin, "spanring_receiver_records_total", &labels));
        let accepted: f64 = accepted.sum::<Result<_>>()?;
        ensure!(accepted.round() == sent as f64, "the proxies must count what they took: {accepted} of {sent}");
        for proxy in &mut self.proxies {
            // No client is connected any more, so a drain that waits for its timeout would be a defect.
            let status = proxy.process.stop()?;
            ensure!(status.success(), "a proxy must end well when asked to: {status}");
        }
        for collector in &mut self.collectors {
            collector.process.stop()?;
        }
        Ok(Outcome { all: self.read("all.jsonl")?, kept: self.read("kept.jsonl")? })
    }

    fn read(&self, file: &str) -> Result<Vec<Traces>> {
        self.collectors.iter().map(|collector| read(&collector.dir.path().join(file))).collect()
    }
}

// === impl Outcome ===

impl Outcome {
    /// Returns the traces received by all Collectors. Checks that each received some and that no trace came to two of
    /// them.
    pub(crate) fn all_whole(&self) -> Result<Traces> {
        ensure!(self.all.iter().all(|traces| !traces.is_empty()), "a Collector got nothing");
        let mut seen = BTreeSet::new();
        for id in self.all.iter().flat_map(BTreeMap::keys) {
            ensure!(seen.insert(id), "trace {id} came to two Collectors");
        }
        Ok(joined(&self.all))
    }

    /// Returns the traces kept by all Collectors.
    pub(crate) fn all_kept(&self) -> Traces {
        joined(&self.kept)
    }
}

fn joined(parts: &[Traces]) -> Traces {
    let mut traces = Traces::new();
    for (id, spans) in parts.iter().flatten() {
        traces.entry(id.clone()).or_default().extend_from_slice(spans);
    }
    traces.values_mut().for_each(|spans| spans.sort());
    traces
}

/// Returns the number of spans.
pub(crate) fn count<'a>(traces: impl IntoIterator<Item = &'a Traces>) -> u64 {
    traces.into_iter().flat_map(BTreeMap::values).map(|spans| spans.len() as u64).sum()
}

// === impl Collector ===

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

    /// The Collector keeps a trace if one of its spans failed, so all spans must come to the same Collector before its
    /// decision.
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
}

/// Reads a file of OTLP JSON with one request per line; an incomplete last line is ignored.
fn read(path: &Path) -> Result<Traces> {
    let mut traces = Traces::new();
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    for line in lines {
        let request: Value = serde_json::from_str(line).with_context(|| format!("{}: {line}", path.display()))?;
        let scopes = list(&request, "resourceSpans").flat_map(|resource| list(resource, "scopeSpans"));
        for span in scopes.flat_map(|scope| list(scope, "spans")) {
            let id = |key| span.get(key).and_then(Value::as_str).with_context(|| format!("a span without {key}"));
            traces.entry(id("traceId")?.to_owned()).or_default().push(id("spanId")?.to_owned());
        }
    }
    traces.values_mut().for_each(|spans| spans.sort());
    Ok(traces)
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
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
