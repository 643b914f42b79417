//! curl with a body that is written and compressed here.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Result, ensure};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;

use super::{Compression, Protocol, Task, compare::Expected, rich};
use crate::http::bodies::{gzip, zlib, zstd};

/// Returns curl if it is in `PATH`.
pub(super) fn program() -> Result<Option<PathBuf>> {
    let is_there = Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_ok_and(|it| it.success());
    Ok(is_there.then(|| PathBuf::from("curl")))
}

pub(super) fn send(task: &Task<'_>, version: &str) -> Result<Expected> {
    // What writes JSON here cannot write NaN and infinities.
    let is_json = task.cell.protocol == Protocol::HttpJson;
    let sent = rich::traces(task.number, !is_json);
    let request = ExportTraceServiceRequest { resource_spans: sent.clone() };
    let body = if is_json { serde_json::to_vec(&request)? } else { request.encode_to_vec() };
    let (encoding, body) = match task.cell.compression {
        Compression::None => (None, body),
        Compression::Gzip => (Some("gzip"), gzip(&body)),
        Compression::Zstd => (Some("zstd"), zstd(&body)),
        Compression::Deflate => (Some("deflate"), zlib(&body)),
        Compression::Snappy => unreachable!("not of OTLP/HTTP"),
    };
    let [file, answer] = ["body", "answer"].map(|name| task.dir.join(format!("{name}-{}", task.number)));
    fs::write(&file, body)?;
    let content_type = if is_json { "application/json" } else { "application/x-protobuf" };
    let mut command = Command::new(task.program);
    command.args(["--silent", "--show-error", "--write-out", "%{http_code} %{http_version} %{content_type}"]);
    command.arg(if version == "2" { "--http2-prior-knowledge" } else { "--http1.1" });
    command.arg("--header").arg(format!("content-type: {content_type}"));
    if let Some(encoding) = encoding {
        command.arg("--header").arg(format!("content-encoding: {encoding}"));
    }
    command.arg("--data-binary").arg(format!("@{}", file.display())).arg("--output").arg(&answer);
    command.arg(format!("http://{}/v1/traces", task.proxies[task.number % task.proxies.len()]));
    let output = command.output()?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let answer = fs::read(&answer).unwrap_or_default();
    ensure!(
        output.status.success() && printed == format!("200 {version} {content_type}"),
        "{printed} {}{}",
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&answer)
    );
    ensure!(answer == if is_json { b"{}".as_slice() } else { b"" }, "the answer is {answer:?}");
    Ok(Expected::equal(sent))
}
