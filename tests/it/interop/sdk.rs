//! OpenTelemetry SDKs, by the programs of `tests/peers/sdk/`.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;

use super::{Task, compare::Expected};
use crate::harness::Process;

/// Traces of a cell. Three services create their spans, and each service sends to another proxy.
const TRACES: usize = 40;
/// Spans of a trace, a constant of the programs.
const SPANS: u64 = 7;

pub(super) fn send(task: &Task<'_>) -> Result<Expected> {
    let file = task.dir.join(format!("sent-{}", task.number));
    let mut command = Command::new(task.program);
    for proxy in &task.proxies {
        command.arg("--endpoint").arg(proxy.to_string());
    }
    command.arg("--protocol").arg(task.cell.protocol.name());
    command.arg("--compression").arg(task.cell.compression.name());
    command.arg("--traces").arg(TRACES.to_string()).arg("--sent").arg(&file);
    let mut sender = Process::start(&task.cell.to_string(), &mut command)?;
    let status = sender.wait()?;
    ensure!(status.success(), "the SDK's exporter must get everything through: {status}\n{}", sender.log());
    let sent = ExportTraceServiceRequest::decode(fs::read(&file)?.as_slice()).context("what the SDK says it sent")?;
    let expected = Expected::equal(sent.resource_spans);
    ensure!(expected.spans() == TRACES as u64 * SPANS, "the SDK says that it sent {} spans", expected.spans());
    ensure!(expected.kept() == TRACES as u64 / 2 * SPANS, "{} spans are of failed traces", expected.kept());
    Ok(expected)
}
