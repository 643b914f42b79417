//! mTLS from an SDK to Spanring, and from Spanring to a real Collector.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use anyhow::{Result, ensure};

use super::{World, client_keys};
use crate::harness::{self, Process, Proxy, Ready, until};

/// Number of traces that telemetrygen (which uses the Go SDK) sends, and of child spans in each.
const TRACES: u64 = 200;
const CHILDREN: u64 = 4;

fn collector_config(grpc: SocketAddr, health: SocketAddr, dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "receivers:
  otlp:
    protocols:
      grpc:
        endpoint: {grpc}
        tls: {{ cert_file: {dir}/server.crt, key_file: {dir}/server.key, client_ca_file: {dir}/ca.crt }}
exporters:
  file: {{ path: {dir}/spans.jsonl, flush_interval: 100ms }}
extensions:
  health_check: {{ endpoint: {health} }}
service:
  extensions: [health_check]
  telemetry: {{ metrics: {{ level: none }} }}
  pipelines:
    traces: {{ receivers: [otlp], exporters: [file] }}
"
    )
}

fn proxy_config(grpc: SocketAddr, admin: SocketAddr, collector: SocketAddr, world: &World) -> String {
    let receiver = world.grpc().trim_end_matches(',');
    format!(
        "receivers:
  otlp: {{ protocols: {{ grpc: {{ endpoint: {grpc}, {receiver} }} }} }}
pools:
  tail:
    resolver: {{ static: {{ hostnames: [\"localhost:{}\"] }} }}
    tls: {{ {} }}
routes:
  - {{ signals: [traces], routing_key: trace_id, pool: tail }}
admin: {{ endpoint: {admin} }}
shutdown: {{ delay: 0s, timeout: 10s }}
",
        collector.port(),
        client_keys(world.dir.path()),
    )
}

#[test]
fn an_sdk_reaches_a_collector_by_mtls_on_both_sides() -> Result<()> {
    let (Some(otelcol), Some(telemetrygen)) = (harness::peer("otelcol")?, harness::peer("telemetrygen")?) else {
        return Ok(());
    };
    let world = World::new()?;
    let dir = world.dir.path();
    let (_collector, [collector, _]) = harness::on_free_ports(|[grpc, health]| {
        let file = dir.join("collector.yaml");
        fs::write(&file, collector_config(grpc, health, dir))?;
        let process = Process::start("otelcol", Command::new(&otelcol).arg("--config").arg(&file))?;
        Ok((process, Ready::Page(format!("http://{health}/"))))
    })?;
    let proxy = Proxy::start("spanring", |grpc, admin| proxy_config(grpc, admin, collector, &world))?;
    let generate = |certificate: bool| {
        let mut command = Command::new(&telemetrygen);
        command.args(["traces", "--rate", "0", "--batch-size", "32"]);
        command.arg("--otlp-endpoint").arg(format!("localhost:{}", proxy.grpc.port()));
        command.arg("--traces").arg(TRACES.to_string()).arg("--child-spans").arg(CHILDREN.to_string());
        command.arg("--ca-cert").arg(dir.join("ca.crt"));
        if certificate {
            command.arg("--mtls").arg("--client-cert").arg(dir.join("client.crt"));
            command.arg("--client-key").arg(dir.join("client.key"));
        }
        Process::start("telemetrygen", &mut command)
    };
    let mut generator = generate(true)?;
    ensure!(generator.wait()?.success(), "telemetrygen must end well");
    let sent = TRACES * (1 + CHILDREN);
    until("the Collector has every span", || {
        let text = fs::read_to_string(dir.join("spans.jsonl")).unwrap_or_default();
        Ok((text.matches("\"spanId\"").count() as u64 >= sent).then_some(()))
    })?;
    let labels = ["signal=\"traces\"", "outcome=\"accepted\""];
    let accepted = harness::metric(proxy.admin, "spanring_receiver_records_total", &labels)?;
    ensure!(accepted == sent as f64, "{accepted} spans were taken of {sent}");
    let failures = harness::metric(proxy.admin, "spanring_dispatch_tls_handshake_failures_total", &["pool=\"tail\""])?;
    ensure!(failures == 0.0, "{failures} handshakes with the Collector failed");
    // A client without a certificate is refused; it retries until it is stopped.
    let _stranger = generate(false)?;
    until("the stranger is counted", || {
        let labels = ["reason=\"no_certificate\""];
        let count = harness::metric(proxy.admin, "spanring_receiver_tls_handshake_failures_total", &labels)?;
        Ok((count >= 1.0).then_some(()))
    })
}
