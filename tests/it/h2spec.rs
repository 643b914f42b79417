//! Runs h2spec, a conformance test of HTTP/2, against the ports of OTLP. Only the tests explained in `deploy/docs/http2.md`
//! may fail.

use std::{fs, io::Write, net::SocketAddr, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use spanring::tools::sink::SinkConfig;

use super::{
    fixture::listens,
    harness::{self, Process, Proxy},
    rig::{self, Sinks},
};

/// Number of tests of `h2spec` 2.2.1.
const TESTS: usize = 145;

/// A test of h2spec.
struct Case {
    /// `PACKAGE NAME`
    name: String,
    passed: bool,
}

/// Reads the tests in a report, which is XML with one element per line.
fn cases(report: &str) -> Result<Vec<Case>> {
    let lines = report.lines().filter(|line| line.trim_start().starts_with("<testcase "));
    let attribute = |line: &str, name: &str| {
        let value = line.split(&format!(" {name}=\"")).nth(1).and_then(|rest| rest.split('"').next());
        value.map(str::to_owned).with_context(|| format!("no {name} in {line}"))
    };
    let case = |line: &str| {
        let name = format!("{} {}", attribute(line, "package")?, attribute(line, "classname")?);
        // Elements of failed and skipped tests have content.
        let passed = line.ends_with("></testcase>");
        Ok(Case { name: name.replace("&#34;", "\"").replace("&gt;", ">").replace("&lt;", "<"), passed })
    };
    lines.map(case).collect()
}

/// Reads the tests that the document explains, and whether they are expected to pass.
fn explained() -> Result<Vec<Case>> {
    let document = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/docs/http2.md"))?;
    let rows = document.lines().filter(|line| line.starts_with("| `"));
    let case = |row: &str| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        ensure!(cells.len() == 5, "a row has five cells: {row}");
        ensure!(["passes", "fails", "may fail"].contains(&cells[4]), "{row}");
        Ok(Case { name: cells[0].replace('`', ""), passed: cells[4] == "passes" })
    };
    rows.map(case).collect()
}

#[test]
fn the_document_about_h2spec_has_a_valid_table() -> Result<()> {
    let rows = explained()?;
    ensure!(rows.iter().filter(|row| row.passed).count() >= 12 && rows.iter().any(|row| !row.passed), "{}", rows.len());
    Ok(())
}

/// Runs h2spec against a port of the proxy, which the function chooses.
fn reports_only_documented_failures(port: impl Fn(&Proxy) -> Result<SocketAddr>) -> Result<()> {
    let Some(h2spec) = harness::peer("h2spec")? else { return Ok(()) };
    let explained = explained()?;
    let sinks = Sinks::start(1, &SinkConfig::default())?;
    let proxy = Proxy::start("spanring", |grpc, admin| {
        let config = rig::config(grpc, admin, &sinks.addresses(), "", "");
        config.replace("protocols: { ", "protocols: { http: { endpoint: \"127.0.0.1:0\" }, ")
    })?;
    let address = port(&proxy)?;
    let dir = tempfile::tempdir()?;
    let report = dir.path().join("report.xml");
    let mut command = Command::new(h2spec);
    command.args(["--host", &address.ip().to_string(), "--port", &address.port().to_string()]);
    command.args(["--timeout", "5", "--junit-report"]).arg(&report);
    let mut run = Process::start("h2spec", &mut command)?;
    // It ends with 1 if a test failed; the report has the results.
    run.wait()?;
    let cases = cases(&fs::read_to_string(&report).with_context(|| run.log())?)?;
    ensure!(cases.len() == TESTS, "{} tests", cases.len());
    for row in &explained {
        ensure!(cases.iter().any(|case| case.name == row.name), "h2spec has no test {}", row.name);
    }
    let may_fail = |name: &str| explained.iter().any(|row| !row.passed && row.name == name);
    let failed: Vec<&str> = cases.iter().filter(|case| !case.passed).map(|case| &*case.name).collect();
    let unexplained: Vec<&&str> = failed.iter().filter(|name| !may_fail(name)).collect();
    ensure!(unexplained.is_empty(), "not explained in deploy/docs/http2.md: {unexplained:?}\n{}", run.log());
    // Written to stderr directly, since output of tests is captured.
    writeln!(std::io::stderr(), "\nh2spec: {} of {TESTS} passed; explained: {failed:?}", TESTS - failed.len())?;
    Ok(())
}

#[test]
fn h2spec_reports_only_documented_failures_of_the_grpc_port() -> Result<()> {
    reports_only_documented_failures(|proxy| Ok(proxy.grpc))
}

#[test]
fn h2spec_reports_only_documented_failures_of_the_http_port() -> Result<()> {
    reports_only_documented_failures(|proxy| listens(&proxy.process, "otlp_http"))
}
