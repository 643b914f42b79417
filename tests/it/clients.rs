//! Clients in Python and Go, generated from `proto/` as `deploy/docs/api.md` shows it, against a running proxy.

use std::process::Command;

use anyhow::{Result, ensure};
use spanring::tools::sink::SinkConfig;

use super::{
    harness::{self, Proxy},
    rig::{self, Sinks},
};

fn prints_the_rings(program: &str) -> Result<()> {
    let Some(client) = harness::peer(program)? else { return Ok(()) };
    let sinks = Sinks::start(2, &SinkConfig::default())?;
    let proxy = Proxy::start("spanring", |grpc, admin| rig::config(grpc, admin, &sinks.addresses(), "", ""))?;
    let output = Command::new(client).arg(proxy.admin.to_string()).output()?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    let (status, ring) = harness::http_get(&format!("http://{}/api/v1/ring", proxy.admin))?;
    ensure!(status == 200, "{status}: {ring}");
    let ring: serde_json::Value = serde_json::from_str(&ring)?;
    let fingerprint = ring["pools"][0]["membership_fingerprint"].as_str().unwrap_or_default();
    ensure!(printed == format!("tail {fingerprint} 2\n"), "{program} printed {printed:?}; the ring is {ring}");
    Ok(())
}

#[test]
fn a_generated_client_in_python_reads_the_rings() -> Result<()> {
    prints_the_rings("rings-python")
}

#[test]
fn a_generated_client_in_go_reads_the_rings() -> Result<()> {
    prints_the_rings("rings-go")
}
