//! Three proxies in front of real Collectors with tail sampling, and the spans that each Collector received.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::{collector::trace::v1::ExportTraceServiceRequest, trace::v1::ResourceSpans};
use prost::Message;
use tempfile::TempDir;

use super::harness::{self, Process, Proxy, Ready, until};

/// Span IDs by trace ID, sorted. A span received twice is listed twice.
pub(crate) type Traces = BTreeMap<String, Vec<String>>;

/// How the proxies call the Collectors.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Calls {
    Grpc,
    Http,
}

/// Three Collectors behind three proxies.
pub(crate) struct Stage {
    collectors: Vec<Collector>,
    fronts: Vec<Front>,
}

/// What each Collector received, and what it kept.
pub(crate) struct Outcome {
    pub(crate) all: Vec<Vec<ResourceSpans>>,
    pub(crate) kept: Vec<Vec<ResourceSpans>>,
}

/// A proxy and the address of its OTLP/HTTP receiver.
struct Front {
    proxy: Proxy,
    http: SocketAddr,
}

/// A Collector that writes all received spans to one file and those of sampled traces to another.
struct Collector {
    address: SocketAddr,
    process: Process,
    dir: TempDir,
}

// === impl Stage ===

impl Stage {
    /// Starts all processes; `compressions` has that of each proxy's calls. The Collectors take nothing but such `calls`.
    pub(crate) fn start(otelcol: &Path, calls: Calls, compressions: [&str; 3]) -> Result<Self> {
        let collectors = (0..3).map(|_| Collector::start(otelcol, calls)).collect::<Result<Vec<_>>>()?;
        let fronts =
            compressions.iter().enumerate().map(|(n, compression)| Front::start(n, &collectors, calls, compression));
        let fronts = fronts.collect::<Result<_>>()?;
        Ok(Self { collectors, fronts })
    }

    /// Returns the addresses of the OTLP/gRPC receivers.
    pub(crate) fn grpc(&self) -> Vec<SocketAddr> {
        self.fronts.iter().map(|front| front.proxy.grpc).collect()
    }

    /// Returns the addresses of the OTLP/HTTP receivers.
    pub(crate) fn http(&self) -> Vec<SocketAddr> {
        self.fronts.iter().map(|front| front.http).collect()
    }

    /// Returns the sum of a metric's series over all proxies.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        self.fronts.iter().map(|front| harness::metric(front.proxy.admin, name, labels)).sum()
    }

    /// Waits until `sent` spans were written and `kept` of them kept. Checks that the proxies counted `sent` spans. Ends
    /// all processes.
    pub(crate) fn finish(self, sent: u64, kept: u64) -> Result<Outcome> {
        self.wait(sent, kept)?;
        let accepted =
            self.metric("spanring_receiver_records_total", &["signal=\"traces\"", "outcome=\"accepted\""])?;
        ensure!(accepted.round() == sent as f64, "the proxies must count what they took: {accepted} of {sent}");
        self.end()
    }

    /// Waits until the Collectors wrote `sent` spans and kept `kept` of them.
    pub(crate) fn wait(&self, sent: u64, kept: u64) -> Result<()> {
        for (file, spans) in [("kept", kept), ("all", sent)] {
            until("the Collectors have decided on all traces", || {
                Ok((self.read(file)?.iter().map(|batches| count([&ids(batches)])).sum::<u64>() >= spans).then_some(()))
            })
            .with_context(|| format!("{file}: expected {spans} spans"))?;
        }
        Ok(())
    }

    /// Ends all processes, and returns what came.
    pub(crate) fn end(mut self) -> Result<Outcome> {
        for front in &mut self.fronts {
            // No client is connected any more, so a drain that waits for its timeout would be a defect.
            let status = front.proxy.process.stop()?;
            ensure!(status.success(), "a proxy must end well when asked to: {status}");
        }
        for collector in &mut self.collectors {
            collector.process.stop()?;
        }
        Ok(Outcome { all: self.read("all")?, kept: self.read("kept")? })
    }

    fn read(&self, file: &str) -> Result<Vec<Vec<ResourceSpans>>> {
        self.collectors.iter().map(|collector| read(&collector.dir.path().join(file))).collect()
    }
}

impl Front {
    fn start(number: usize, collectors: &[Collector], calls: Calls, compression: &str) -> Result<Self> {
        let http = Cell::new(None);
        let proxy = Proxy::start(&format!("spanring-{number}"), |grpc, admin| {
            let [address] = harness::free_addresses().expect("a free port");
            http.set(Some(address));
            proxy_config([grpc, address, admin], collectors, calls, compression)
        })?;
        Ok(Self { proxy, http: http.get().context("the file was made")? })
    }
}

// === impl Outcome ===

impl Outcome {
    /// Returns the traces received by all Collectors. Checks that each received some and that no trace came to two of
    /// them.
    pub(crate) fn all_whole(&self) -> Result<Traces> {
        let parts: Vec<Traces> = self.all.iter().map(|batches| ids(batches)).collect();
        ensure!(parts.iter().all(|traces| !traces.is_empty()), "a Collector got nothing");
        let mut seen = BTreeSet::new();
        for id in parts.iter().flat_map(BTreeMap::keys) {
            ensure!(seen.insert(id), "trace {id} came to two Collectors");
        }
        Ok(joined(&parts))
    }

    /// Returns the traces kept by all Collectors.
    pub(crate) fn all_kept(&self) -> Traces {
        joined(&self.kept.iter().map(|batches| ids(batches)).collect::<Vec<_>>())
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
    fn start(program: &Path, calls: Calls) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("collector.yaml");
        let (process, [address, _]) = harness::on_free_ports(|[address, health]| {
            fs::write(&file, Self::config(address, calls, health, dir.path()))?;
            let process = Process::start("otelcol", Command::new(program).arg("--config").arg(&file))?;
            Ok((process, Ready::Page(format!("http://{health}/"))))
        })?;
        Ok(Self { address, process, dir })
    }

    /// The Collector keeps a trace if one of its spans failed, so all spans must come to the same Collector before its
    /// decision.
    fn config(address: SocketAddr, calls: Calls, health: SocketAddr, dir: &Path) -> String {
        let dir = dir.display();
        let protocol = match calls {
            Calls::Grpc => "grpc",
            Calls::Http => "http",
        };
        format!(
            "receivers:
  otlp: {{ protocols: {{ {protocol}: {{ endpoint: {address} }} }} }}
processors:
  tail_sampling:
    decision_wait: 5s
    policies: [{{ name: failed, type: status_code, status_code: {{ status_codes: [ERROR] }} }}]
exporters:
  file/all: {{ path: {dir}/all, format: proto, flush_interval: 100ms }}
  file/kept: {{ path: {dir}/kept, format: proto, flush_interval: 100ms }}
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

/// Reads a file of requests in protobuf, each after its length in four bytes; an incomplete last one is ignored.
fn read(path: &Path) -> Result<Vec<ResourceSpans>> {
    let bytes = fs::read(path).unwrap_or_default();
    let mut batches = Vec::new();
    let mut rest = bytes.as_slice();
    while let Some((length, tail)) = rest.split_first_chunk() {
        let Some((request, tail)) = tail.split_at_checked(u32::from_be_bytes(*length) as usize) else { break };
        batches.extend(ExportTraceServiceRequest::decode(request)?.resource_spans);
        rest = tail;
    }
    Ok(batches)
}

/// Returns the IDs of the spans.
pub(crate) fn ids(batches: &[ResourceSpans]) -> Traces {
    let hex = |id: &[u8]| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut traces = Traces::new();
    for span in batches.iter().flat_map(|batch| &batch.scope_spans).flat_map(|scope| &scope.spans) {
        traces.entry(hex(&span.trace_id)).or_default().push(hex(&span.span_id));
    }
    traces.values_mut().for_each(|spans| spans.sort());
    traces
}

fn proxy_config(
    [grpc, http, admin]: [SocketAddr; 3],
    backends: &[Collector],
    calls: Calls,
    compression: &str,
) -> String {
    let hostnames: Vec<String> = backends.iter().map(|backend| format!("\"{}\"", backend.address)).collect();
    let protocol = match calls {
        Calls::Grpc => "otlp",
        Calls::Http => "otlp_http",
    };
    format!(
        "receivers:
  otlp: {{ protocols: {{ grpc: {{ endpoint: {grpc} }}, http: {{ endpoint: {http} }} }} }}
pools:
  tail:
    resolver: {{ static: {{ hostnames: [{}] }} }}
    protocol: {{ {protocol}: {{}} }}
    compression: {compression}
routes:
  - {{ signals: [traces], routing_key: trace_id, pool: tail }}
admin: {{ endpoint: {admin} }}
shutdown: {{ delay: 0s, timeout: 10m }}
",
        hostnames.join(", ")
    )
}
