//! A Collector as the client: it gets spans from here and sends them on by its exporter.

use std::{fs, net::SocketAddr, process::Command};

use anyhow::{Result, ensure};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, trace_service_client::TraceServiceClient,
};

use super::{Protocol, Task, compare::Expected, rich};
use crate::harness::{self, Process, Ready};

pub(super) fn send(task: &Task<'_>) -> Result<Expected> {
    let file = task.dir.join(format!("client-{}.yaml", task.number));
    let (mut process, [grpc, _]) = harness::on_free_ports(|[grpc, health]| {
        fs::write(&file, config(task, grpc, health))?;
        let process = Process::start(&task.cell.to_string(), Command::new(task.program).arg("--config").arg(&file))?;
        Ok((process, Ready::Page(format!("http://{health}/"))))
    })?;
    let sent = rich::traces(task.number, true);
    let request = ExportTraceServiceRequest { resource_spans: sent.clone() };
    let reply = tokio::runtime::Runtime::new()?.block_on(async {
        let mut client = TraceServiceClient::connect(format!("http://{grpc}")).await?;
        anyhow::Ok(client.export(request).await?.into_inner())
    })?;
    let is_whole = reply.partial_success.as_ref().is_none_or(|partial| partial.rejected_spans == 0);
    ensure!(is_whole, "every span must be taken: {reply:?}");
    process.stop()?;
    Ok(Expected::equal(sent))
}

/// Without queue and retries the Collector answers what the proxy answered.
fn config(task: &Task<'_>, grpc: SocketAddr, health: SocketAddr) -> String {
    let proxy = task.proxies[task.number % task.proxies.len()];
    let exporter = match task.cell.protocol {
        Protocol::Grpc => format!("otlp_grpc: {{ endpoint: \"{proxy}\", tls: {{ insecure: true }}"),
        Protocol::HttpProtobuf => format!("otlp_http: {{ endpoint: \"http://{proxy}\", encoding: proto"),
        Protocol::HttpJson => format!("otlp_http: {{ endpoint: \"http://{proxy}\", encoding: json"),
    };
    let name = exporter.split(':').next().unwrap_or_default();
    let compression = task.cell.compression.name();
    format!(
        "receivers:
  otlp: {{ protocols: {{ grpc: {{ endpoint: \"{grpc}\" }} }} }}
exporters:
  {exporter}, compression: {compression}, sending_queue: {{ enabled: false }}, retry_on_failure: {{ enabled: false }} }}
extensions:
  health_check: {{ endpoint: \"{health}\" }}
service:
  extensions: [health_check]
  telemetry: {{ metrics: {{ level: none }} }}
  pipelines:
    traces: {{ receivers: [otlp], exporters: [{name}] }}
"
    )
}
