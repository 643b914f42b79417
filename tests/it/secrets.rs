//! Secrets of a configuration: they reach the backend they are for, and nothing that anybody reads.

use std::{fs, net::SocketAddr, process::Command};

use anyhow::{Context, Result, ensure};
use spanring::lifecycle::Tasks;
use tokio::runtime::Runtime;

use super::{
    harness::{self, Process, Ready, http_get, metric, until},
    metadata::Keeper,
    rig::{client, request, span},
};

const CANARIES: [&str; 3] = ["canary-from-a-file", "canary-from-the-environment", "canary-as-written"];

fn nobody_is_told(what: &str, text: &str) -> Result<()> {
    for canary in CANARIES {
        ensure!(!text.contains(canary), "{canary} is in {what}:\n{text}");
    }
    Ok(())
}

#[test]
fn secrets_reach_their_backend_and_nothing_that_is_shown() -> Result<()> {
    let (runtime, keeper, dir) = (Runtime::new()?, Keeper::default(), tempfile::tempdir()?);
    let backend = runtime.block_on(async { keeper.start(&Tasks::new()).await })?;
    let [token, file] = ["token", "spanring.yaml"].map(|name| dir.path().join(name));
    fs::write(&token, format!("{}\n", CANARIES[0]))?;
    let token = token.display();
    let text = |grpc: SocketAddr, admin: SocketAddr, timeout: &str| {
        let headers = format!(
            "headers: {{ authorization: \"Bearer ${{file:{token}}}\", x-env: \"${{env:CANARY}}\", x-plain: {} }}",
            CANARIES[2]
        );
        let more = format!("telemetry: {{ logs: {{ level: trace }} }}\nshutdown: {{ delay: {timeout} }}");
        super::rig::config(grpc, admin, &[backend], &headers, &more)
    };
    let spanring = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spanring"));
        command.args(words).arg("--config").arg(&file).env("CANARY", CANARIES[1]);
        command
    };
    let (process, [grpc, admin]) = harness::on_free_ports(|[grpc, admin]| {
        fs::write(&file, text(grpc, admin, "0s"))?;
        Ok((Process::start("spanring", &mut spanring(&[]))?, Ready::Page(format!("http://{admin}/readyz"))))
    })?;

    runtime
        .block_on(async { client(grpc).await?.export(request(vec![span(1, 1)])).await.map_err(anyhow::Error::from) })?;
    let (headers, _) = keeper.calls().pop().context("no call")?;
    let said = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let sent = [said("authorization").replace("Bearer ", ""), said("x-env"), said("x-plain")];
    ensure!(sent == CANARIES, "{sent:?}");

    let printed = spanring(&["print-config"]).output()?;
    let printed = String::from_utf8(printed.stdout)?;
    ensure!(printed.matches("[REDACTED]").count() == 3, "{printed}");
    nobody_is_told("print-config", &printed)?;

    // In a place where it can't be: the error says where, not what.
    fs::write(&file, text(grpc, admin, &format!("\"${{file:{token}}}\"")))?;
    let refused = spanring(&["validate"]).output()?;
    let refused = String::from_utf8(refused.stderr)?;
    ensure!(refused.contains("shutdown.delay: ") && refused.contains("it is not shown"), "{refused}");
    nobody_is_told("an error", &refused)?;
    process.signal("HUP")?;
    until("the reload is refused", || {
        Ok((metric(admin, "spanring_config_reloads_total", &["result=\"failed\""])? == 1.0).then_some(()))
    })?;
    for page in ["", "metrics", "readyz?verbose", "api/v1/ring", "api/v1/backends", "api/v1/changes", "ring"] {
        nobody_is_told(page, &http_get(&format!("http://{admin}/{page}"))?.1)?;
    }
    let log = process.log();
    ensure!(log.contains("configuration refused"), "{log}");
    nobody_is_told("the log", &log)
}
