//! Secrets of a configuration must reach their backend and must not appear in any output.

use std::{fs, net::SocketAddr, path::Path, process::Command};

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
fn secrets_reach_their_backend_and_appear_in_no_output() -> Result<()> {
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

    // A reference where none is allowed: the error names the place but does not show the value.
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

/// A secret that must not appear in any output.
const CANARY: &str = "hunter2-canary";

/// Invalid lines of a pool, each with the secret in another place. The file `${file:TOKEN}` contains it.
const IN_POOL: [&str; 34] = [
    // References whose value is invalid at this place.
    "timeout: ${env:CANARY}",
    "connections: ${env:CANARY}",
    "compression: ${env:CANARY}",
    "resolver: ${env:CANARY}",
    "tls: ${env:CANARY}",
    "tls: { cert_file: \"/nowhere/${env:CANARY}\", key_file: k }",
    "tls: { ca_file: \"/nowhere/${env:CANARY}\" }",
    "tls: { ca_file: CA, server_name_override: \"${env:CANARY} x\" }",
    "sending_queue: { queue_size: \"${env:CANARY}\" }",
    "sending_queue: { sizer: \"${env:CANARY}\" }",
    "ring: { algorithm: \"${env:CANARY}\" }",
    "connections: ${env:UNSET:-hunter2-canary}",
    "connections: ${file:TOKEN}",
    "timeout: a${file:TOKEN}b",
    "compression: ${file:TOKEN}",
    "headers: ${file:TOKEN}",
    // Malformed references.
    "headers: { authorization: \"Bearer hunter2-canary ${env:TOKEN\" }",
    "headers: { authorization: \"hunter2-canary${UNSET}\" }",
    "headers: { authorization: \"${hunter2-canary}\" }",
    "headers: { authorization: \"${env:hunter2-canary}\" }",
    "headers: { authorization: \"${hunter2-canary:x}\" }",
    "headers: { authorization: \"${file:/nowhere/hunter2-canary}\" }",
    "timeout: ${env:${hunter2-canary}}",
    // Values of headers, and values instead of a section of headers.
    "headers: hunter2-canary",
    "headers: [hunter2-canary]",
    "headers: { authorization: [hunter2-canary] }",
    "headers: { authorization: { bearer: hunter2-canary } }",
    "headers: { authorization: \"hunter2-canary\\u0001\" }",
    "headers: { hunter2-canary }",
    "headers: { Bearer hunter2-canary: x }",
    "headers: { authorization: hunter2-canary, authorization: hunter2-canary }",
    "headers: { authorization: hunter2-canary, te: x }",
    // YAML that ends too early on the line of a secret.
    "headers: { authorization: \"hunter2-canary }",
    "headers: { authorization: Bearer: hunter2-canary, x",
];

/// Invalid lines at the top level of the file.
const AT_THE_TOP: [&str; 11] = [
    "health_check: { path: \"${env:CANARY}\" }",
    "health_check: { endpoint: \"${env:CANARY}\" }",
    "health_check: { endpoint: \"${env:CANARY}:1\" }",
    "telemetry: { logs: { level: \"${env:CANARY}\" } }",
    "memory_limiter: { limit_mib: \"${env:CANARY}\" }",
    "invalid_trace_id: ${file:TOKEN}",
    "worker_threads: ${env:CANARY}",
    "shutdown: \"${env:CANARY}\"",
    "\"${hunter2-canary}\": 1",
    "authorization hunter2-canary: x",
    "zzz: { headers: { authorization: hunter2-canary } }",
];

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Returns invalid files, each with the line it tests.
fn bad_files(grpc: SocketAddr, admin: SocketAddr, dir: &Path) -> Vec<(&'static str, String)> {
    let backend = "127.0.0.1:1".parse().expect("an address");
    let fill = |text: &str| {
        let [token, ca] = ["token", "ca.crt"].map(|name| dir.join(name).display().to_string());
        text.replace("TOKEN}", &format!("{token}}}")).replace("ca_file: CA", &format!("ca_file: {ca}"))
    };
    let pools = IN_POOL.map(|line| (line, super::rig::config(grpc, admin, &[backend], &fill(line), "")));
    let tops = AT_THE_TOP.map(|line| (line, super::rig::config(grpc, admin, &[backend], "", &fill(line))));
    pools.into_iter().chain(tops).collect()
}

fn has_canary(text: &str) -> bool {
    // Finds the whole secret, in any case, and most parts of it.
    text.to_lowercase().contains("hunter2")
}

#[test]
fn no_message_shows_a_secret_at_any_place_in_the_file() -> Result<()> {
    let dir = tempfile::tempdir()?;
    super::pki::folder(dir.path());
    fs::write(dir.path().join("token"), CANARY)?;
    let file = dir.path().join("spanring.yaml");
    let (grpc, admin) = ("127.0.0.1:0".parse()?, "127.0.0.1:0".parse()?);
    for (index, (what, text)) in bad_files(grpc, admin, dir.path()).into_iter().enumerate() {
        fs::write(&file, text)?;
        let level = LEVELS[index % LEVELS.len()];
        for words in [&["validate"][..], &["print-config"], &["run", "--log-level", level], &["ring", "show"]] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_spanring"));
            let output = command.args(words).arg("--config").arg(&file).env("CANARY", CANARY).output()?;
            let said = format!("{}{}", String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
            ensure!(output.status.code() == Some(2), "{words:?} of {what}: {said}");
            ensure!(said.contains("spanring.yaml:") && !has_canary(&said), "{words:?} of {what}: {said}");
        }
    }
    Ok(())
}

#[test]
fn nothing_of_a_certificate_or_key_file_is_shown() -> Result<()> {
    let dir = tempfile::tempdir()?;
    super::pki::folder(dir.path());
    let [cert, key] = ["server.crt", "server.key"].map(|name| dir.path().join(name));
    let texts = [fs::read_to_string(&cert)?, fs::read_to_string(&key)?];
    let file = dir.path().join("spanring.yaml");
    let tls = format!("cert_file: {}, key_file: {}", cert.display(), key.display());
    let text = super::rig::config("127.0.0.1:0".parse()?, "127.0.0.1:0".parse()?, &["127.0.0.1:1".parse()?], "", "");
    fs::write(&file, text.replacen("grpc: {", &format!("grpc: {{ tls: {{ {tls} }},"), 1))?;
    for (path, text) in [&cert, &key].into_iter().zip(&texts) {
        for spoilt in [text.replace('\n', ""), text.replace('\n', " "), text.replacen('\n', "", 1)] {
            fs::write(path, &spoilt)?;
            for words in [["validate", "--log-level", "trace"], ["run", "--log-level", "trace"]] {
                let mut command = Command::new(env!("CARGO_BIN_EXE_spanring"));
                let output = command.args(words).arg("--config").arg(&file).output()?;
                let said = format!("{}{}", String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
                ensure!(output.status.code() == Some(2) && said.contains("cannot use "), "{words:?}: {said}");
                let content = text.lines().nth(1).context("a second line")?.get(..8).context("eight letters")?;
                let numbers = content.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
                ensure!(!said.contains(content) && !said.contains(&numbers), "{words:?}: {said}");
            }
        }
        fs::write(path, text)?;
    }
    Ok(())
}

#[test]
fn a_reload_shows_no_secret_at_any_level() -> Result<()> {
    let dir = tempfile::tempdir()?;
    super::pki::folder(dir.path());
    fs::write(dir.path().join("token"), CANARY)?;
    let file = dir.path().join("spanring.yaml");
    let good = |grpc: SocketAddr, admin: SocketAddr, delay: &str| {
        let headers = "headers: { authorization: \"${env:CANARY}\", x-plain: hunter2-canary }";
        let more = format!("telemetry: {{ logs: {{ level: trace }} }}\nshutdown: {{ delay: {delay} }}");
        super::rig::config(grpc, admin, &["127.0.0.1:1".parse().expect("an address")], headers, &more)
    };
    let (process, [grpc, admin]) = harness::on_free_ports(|[grpc, admin]| {
        fs::write(&file, good(grpc, admin, "0s"))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_spanring"));
        command.args(["--watch-config=100ms", "--config"]).arg(&file).env("CANARY", CANARY);
        Ok((Process::start("spanring", &mut command)?, Ready::Page(format!("http://{admin}/livez"))))
    })?;
    let failed = || metric(admin, "spanring_config_reloads_total", &["result=\"failed\""]);
    // Reload by signal, one file after another. The last file is found by `--watch-config`.
    for (what, text) in bad_files(grpc, admin, dir.path()).into_iter().step_by(4) {
        let before = failed()?;
        fs::write(&file, text)?;
        process.signal("HUP")?;
        until("the reload is refused", || Ok((failed()? > before).then_some(()))).context(what)?;
        ensure!(!has_canary(&process.log()), "{what}: {}", process.log());
    }
    let (_, text) = bad_files(grpc, admin, dir.path()).swap_remove(1);
    let before = failed()?;
    fs::write(&file, text)?;
    until("the change is found and refused", || Ok((failed()? > before).then_some(())))?;
    // The log names the changed key without its old and new values.
    fs::write(&file, good(grpc, admin, "1s").replace("x-plain: hunter2-canary", "x-plain: hunter2-other"))?;
    process.signal("HUP")?;
    until("the reload is taken over", || {
        Ok((metric(admin, "spanring_config_reloads_total", &["result=\"success\""])? >= 1.0).then_some(()))
    })?;
    let log = process.log();
    ensure!(log.contains("configuration refused") && log.contains("configuration taken over"), "{log}");
    ensure!(!has_canary(&log), "{log}");
    Ok(())
}

/// Keys of an exporter in a Collector's file, each with the secret in another place.
const COLLECTORS: [&str; 12] = [
    "protocol: { otlp: { headers: { te: hunter2-canary } } }",
    "protocol: { otlp: { headers: hunter2-canary } }",
    "protocol: { otlp: { headers: [hunter2-canary] } }",
    "protocol: { otlp: { headers: { hunter2-canary } } }",
    "protocol: { otlp: { headers: { authorization: \"hunter2-canary\\u0001\" } } }",
    "protocol: { otlp: { headers: { Bearer hunter2-canary: x } } }",
    "protocol: { otlp: { timeout: \"${hunter2-canary}\", compression: \"${hunter2-canary:x}\" } }",
    "protocol: { otlp: { tls: { ca_file: \"${env:hunter2-canary\" } } }",
    "protocol: { otlp: { sending_queue: { sizer: \"${env:hunter2-canary\" } } }",
    "routing_key: \"${env:hunter2-canary}\"",
    "\"${hunter2-canary}\": 1",
    "protocol: { otlp: { headers: { authorization: \"hunter2-canary } } }",
];

#[test]
fn findings_of_a_conversion_show_no_secret() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("collector.yaml");
    let convert = |exporter: &str| {
        let text =
            format!("exporters:\n  loadbalancing:\n    resolver: {{ dns: {{ hostname: a }} }}\n    {exporter}\n");
        fs::write(&file, text)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_spanring"));
        let output = command.arg("convert").arg(&file).env("CANARY", CANARY).output()?;
        anyhow::Ok((String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
    };
    for exporter in COLLECTORS {
        let (stdout, stderr) = convert(exporter)?;
        ensure!(!has_canary(&stdout) && !has_canary(&stderr), "{exporter}: {stdout}{stderr}");
    }
    // A value that the new file must contain appears only under its key.
    let (stdout, stderr) =
        convert("protocol: { otlp: { headers: { authorization: hunter2-canary, x: \"${env:CANARY}\" } } }")?;
    let shown: Vec<&str> = stdout.lines().filter(|line| has_canary(line)).map(str::trim).collect();
    ensure!(shown == ["authorization: hunter2-canary"] && !has_canary(&stderr), "{stdout}{stderr}");
    ensure!(stdout.contains("${env:CANARY}"), "{stdout}");
    Ok(())
}
