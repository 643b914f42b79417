//! The start of a proxy: with the example configuration, with flags instead of a file, and with names that do not
//! resolve.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use spanring::tools::sink::{SinkConfig, SinksReport};
use tonic_types::StatusExt;

use super::{
    harness::{self, Process, Proxy, Ready, http_get, metric, until},
    http::wire::{self, Request},
    rig::{Sinks, client, request, send_raw, span},
};

/// The complete configuration shown in the README.
pub(crate) const EXAMPLE: &str = r#"receivers:
  otlp: { protocols: { grpc: { endpoint: 127.0.0.1:14317 } } }
pools:
  tail:
    resolver: { static: { hostnames: ["127.0.0.1:15001", "127.0.0.1:15002", "127.0.0.1:15003", "127.0.0.1:15004"] } }
    compression: none
routes:
  - { signals: [traces], routing_key: trace_id, pool: tail }
admin: { endpoint: 127.0.0.1:18888 }
"#;

fn spanring() -> Command {
    Command::new(env!("CARGO_BIN_EXE_spanring"))
}

/// Sends a request with spans of many traces. Checks that each trace reaches one sink and every span arrives once.
fn traces_stay_whole(sinks: &Sinks, proxy: std::net::SocketAddr) -> Result<()> {
    use spanring::tools::load::{LoadConfig, Until, run_load};
    let load = LoadConfig {
        endpoints: vec![proxy.to_string()],
        until: Until { requests: Some(40), elapsed: None },
        body: spanring::tools::otlp_body::BodySpec { bodies: 40, unique: true, ..Default::default() },
        ..LoadConfig::default()
    };
    let tasks = spanring::lifecycle::Tasks::new();
    let run = sinks.runtime.block_on(run_load(load, &indicatif::ProgressBar::hidden(), &tasks))?;
    ensure!(run.sent >= 40, "{} requests", run.sent);
    let report = SinksReport::of(&sinks.sinks);
    ensure!(report.traces_split == Some(0), "{report:?}");
    ensure!(report.traces_whole.is_some_and(|whole| whole >= 100), "{report:?}");
    ensure!(sinks.spans() == 4000, "{} spans", sinks.spans());
    ensure!(report.sinks.iter().all(|sink| sink.tracked.is_some_and(|tracked| tracked.duplicates == 0)), "{report:?}");
    Ok(())
}

#[test]
fn the_example_of_the_readme_runs() -> Result<()> {
    let sinks = Sinks::start(4, &SinkConfig::default())?;
    // Only the ports are replaced, since those of the example may be in use on this machine.
    let proxy = Proxy::start("spanring", |grpc, admin| {
        let ports =
            EXAMPLE.replace("127.0.0.1:14317", &grpc.to_string()).replace("127.0.0.1:18888", &admin.to_string());
        sinks
            .addresses()
            .iter()
            .zip(15001..)
            .fold(ports, |text, (sink, port)| text.replace(&format!("127.0.0.1:{port}"), &sink.to_string()))
    })?;
    traces_stay_whole(&sinks, proxy.grpc)?;
    let threads = fs::read_to_string(Path::new("/proc").join(proxy.process.id().to_string()).join("status"))?;
    ensure!(threads.contains("Threads:"), "{threads}");
    proxy.process.signal("INT")?;
    becomes_unready_in_the_default_delay(&proxy)?;
    Ok(())
}

/// The example does not configure a drain. By default the proxy serves for another 5 s while it is not ready.
fn becomes_unready_in_the_default_delay(proxy: &Proxy) -> Result<()> {
    until("/readyz answers 503", || Ok((http_get(&format!("http://{}/readyz", proxy.admin))?.0 == 503).then_some(())))
}

#[test]
fn flags_can_replace_a_file() -> Result<()> {
    let sinks = Sinks::start(3, &SinkConfig::default())?;
    let list: Vec<String> = sinks.addresses().iter().map(ToString::to_string).collect();
    let (_process, [grpc, _]) = harness::on_free_ports(|[grpc, admin]| {
        let mut command = spanring();
        command.arg("--backends").arg(format!("static://{}", list.join(",")));
        command.arg("--otlp-grpc").arg(grpc.to_string()).arg("--admin").arg(admin.to_string());
        command.args(["--otlp-http", "127.0.0.1:0"]);
        Ok((Process::start("spanring", &mut command)?, Ready::Page(format!("http://{admin}/readyz"))))
    })?;
    traces_stay_whole(&sinks, grpc)
}

#[test]
fn with_an_unresolvable_name_the_proxy_is_alive_but_not_ready() -> Result<()> {
    // `.invalid` never resolves (RFC 6761), with any name server or none.
    let (mut process, [grpc, admin]) = harness::on_free_ports(|[grpc, admin]| {
        let mut command = spanring();
        command.args(["run", "--backends", "dns://collectors.invalid:4317", "--otlp-http", "127.0.0.1:0"]);
        command.arg("--otlp-grpc").arg(grpc.to_string()).arg("--admin").arg(admin.to_string());
        Ok((Process::start("spanring", &mut command)?, Ready::Page(format!("http://{admin}/livez"))))
    })?;
    // The process is alive before it has backends.
    until("the pool without backends is named", || {
        let (status, body) = http_get(&format!("http://{admin}/readyz"))?;
        ensure!(status == 503, "{body}");
        Ok(body.contains("default").then_some(()))
    })?;
    let runtime = tokio::runtime::Runtime::new()?;
    let status = runtime.block_on(async {
        let refused = client(grpc).await?.export(request(vec![span(1, 1)])).await;
        refused.err().context("must be refused")
    })?;
    ensure!(status.code() == tonic::Code::Unavailable, "{status:?}");
    let delay = status.get_details_retry_info().and_then(|info| info.retry_delay).context("RetryInfo")?;
    ensure!((1..=5).contains(&delay.as_secs()), "{delay:?}");
    // The same over HTTP.
    let http = super::fixture::listens(&process, "otlp_http")?;
    let body = super::fixture::encoded(vec![super::fixture::span(&[1; 16], 1)]);
    let answer = wire::send(http, &Request::post("/v1/traces", "application/x-protobuf", body).bytes(), false)?;
    let after: Option<u64> = answer.header("retry-after").and_then(|after| after.parse().ok());
    ensure!(answer.status == 503 && after.is_some_and(|after| (1..=5).contains(&after)), "{answer:?}");
    // An empty request may be answered either way, since it has no records to lose.
    let reply = runtime.block_on(send_raw(grpc, &[], super::rig::framed(0, &[])?))?;
    ensure!(reply.code == 0 || reply.code == tonic::Code::Unavailable as i32, "{reply:?}");
    until("the refusal is counted", || {
        let labels = ["reason=\"not_ready\""];
        Ok((metric(admin, "spanring_receiver_refused_requests_total", &labels)? >= 1.0).then_some(()))
    })?;
    process.signal("TERM")?;
    process.signal("TERM")?;
    process.wait()?;
    Ok(())
}

#[test]
fn probes_can_have_their_own_port() -> Result<()> {
    let sinks = Sinks::start(1, &SinkConfig::default())?;
    let [probes] = harness::free_addresses()?;
    let mut proxy = Proxy::start("spanring", |grpc, admin| {
        let text = EXAMPLE.replace("127.0.0.1:14317", &grpc.to_string()).replace("127.0.0.1:18888", &admin.to_string());
        let backends = r#""127.0.0.1:15001", "127.0.0.1:15002", "127.0.0.1:15003", "127.0.0.1:15004""#;
        text.replace(backends, &sinks.addresses().iter().map(|sink| format!("\"{sink}\"")).collect::<String>())
            + &format!("health_check: {{ endpoint: {probes} }}\nshutdown: {{ delay: 1m, timeout: 1s }}\n")
    })?;
    let status = |page: &str| Ok::<_, anyhow::Error>(http_get(&format!("http://{probes}/{page}"))?.0);
    ensure!((status("")?, status("readyz")?, status("livez")?) == (200, 200, 200));
    ensure!(status("metrics")? == 404, "metrics must be served at the admin address only");
    proxy.process.signal("TERM")?;
    until("probes report the drain", || Ok((status("")? == 503).then_some(())))?;
    ensure!(status("livez")? == 200, "it is alive while it drains");
    proxy.process.signal("TERM")?;
    proxy.process.wait()?;
    Ok(())
}
