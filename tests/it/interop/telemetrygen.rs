//! telemetrygen, which does not say what it sends: its spans are recognised by their service.

use std::process::Command;

use anyhow::{Result, ensure};

use super::{Protocol, Task, compare::Expected};
use crate::harness::Process;

const TRACES: u64 = 30;
const CHILDREN: u64 = 4;

pub(super) fn send(task: &Task<'_>) -> Result<Expected> {
    let service = format!("telemetrygen-{}", task.number);
    let mut command = Command::new(task.program);
    command.args(["traces", "--otlp-insecure", "--rate", "0", "--batch-size", "64", "--status-code", "Error"]);
    command.args((task.cell.protocol != Protocol::Grpc).then_some("--otlp-http"));
    command.arg("--otlp-endpoint").arg(task.proxies[task.number % task.proxies.len()].to_string());
    command.arg("--traces").arg(TRACES.to_string()).arg("--child-spans").arg(CHILDREN.to_string());
    command.arg("--service").arg(&service).arg("--telemetry-attributes").arg("note=\"größer als nötig\"");
    command.env("OTEL_EXPORTER_OTLP_COMPRESSION", task.cell.compression.name());
    let mut generator = Process::start(&task.cell.to_string(), &mut command)?;
    let status = generator.wait()?;
    ensure!(status.success(), "it ended with {status}:\n{}", generator.log());
    Ok(Expected::OfService { service, traces: TRACES, spans: 1 + CHILDREN })
}
