//! Reloads while clients send: no request fails, connections stay, and an invalid file changes nothing.

use std::{fs, net::SocketAddr, os::unix::fs::symlink, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use spanring::{
    lifecycle::Tasks,
    tools::{
        load::{LoadConfig, LoadRun, run_load},
        otlp_body::BodySpec,
        sink::SinkConfig,
    },
};

use super::{
    harness::{self, Process, Proxy, Ready, http_get, metric, until},
    rig::{Sinks, client, request, span},
};

const RELOADS: &str = "spanring_config_reloads_total";

/// The value of a metric without labels.
fn bare_metric(admin: SocketAddr, name: &str) -> Result<f64> {
    let (_, page) = http_get(&format!("http://{admin}/metrics"))?;
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.with_context(|| format!("no {name}"))
}

pub(crate) fn reloads(admin: SocketAddr, result: &str) -> Result<f64> {
    metric(admin, RELOADS, &[&format!("result=\"{result}\"")])
}

/// A configuration file whose pools are separate lines.
struct File {
    grpc: SocketAddr,
    admin: SocketAddr,
    pools: Vec<String>,
    routes: &'static str,
    more: String,
}

impl File {
    fn text(&self) -> String {
        let Self { grpc, admin, pools, routes, more } = self;
        let pools = pools.concat();
        format!(
            "receivers: {{ otlp: {{ protocols: {{ grpc: {{ endpoint: {grpc} }} }} }} }}\npools:\n{pools}routes: {routes}\n\
             admin: {{ endpoint: {admin} }}\n{more}\n"
        )
    }
}

fn pool(name: &str, backends: &[SocketAddr], settings: &str) -> String {
    let hostnames: Vec<String> = backends.iter().map(|backend| format!("\"{backend}\"")).collect();
    let hostnames = hostnames.join(", ");
    // Without a hand-off each span arrives once.
    let ring = "ring: { handoff: { mode: immediate } }";
    format!("  {name}: {{ {ring}, resolver: {{ static: {{ hostnames: [{hostnames}] }} }}, {settings} }}\n")
}

/// Writes `text`, asks for a reload, and waits until the count of `result` has risen.
pub(crate) fn reload(proxy: &Proxy, text: &str, result: &str) -> Result<()> {
    let before = reloads(proxy.admin, result)?;
    proxy.rewrite(text)?;
    proxy.process.signal("HUP")?;
    until(&format!("a reload is counted as {result}"), || Ok((reloads(proxy.admin, result)? > before).then_some(())))
        .with_context(|| proxy.process.log())
}

/// Waits for `more` further answered requests, so that requests run during a change.
fn traffic(proxy: &Proxy, more: f64) -> Result<()> {
    let answered = || metric(proxy.admin, "spanring_receiver_requests_total", &["code=\"OK\""]);
    let goal = answered()? + more;
    until("requests are answered", || Ok((answered()? >= goal).then_some(())))
}

/// Load on two connections until `tasks` drain.
fn load(sinks: &Sinks, proxy: &Proxy, tasks: &Tasks) -> tokio::task::JoinHandle<Result<LoadRun>> {
    let config = LoadConfig {
        endpoints: vec![proxy.grpc.to_string()],
        connections: 2,
        in_flight: 8,
        body: BodySpec { unique: true, bodies: 200, ..BodySpec::default() },
        keep_accepted: true,
        ..LoadConfig::default()
    };
    let until = tasks.clone();
    let _entered = sinks.runtime.enter();
    tasks.spawn(async move { Ok(run_load(config, &indicatif::ProgressBar::hidden(), &until).await?) })
}

#[test]
fn reloads_under_load_fail_no_request_and_close_no_connection() -> Result<()> {
    let sinks = Sinks::start(4, &SinkConfig::default())?;
    let addresses = sinks.addresses();
    let (three, all) = (&addresses[..3], &addresses[..]);
    let file = |grpc, admin| File {
        grpc,
        admin,
        pools: vec![pool("tail", three, "")],
        routes: "[{ signals: [traces], pool: tail }]",
        more: String::new(),
    };
    let proxy = Proxy::start("spanring", |grpc, admin| file(grpc, admin).text())?;
    let mut file = file(proxy.grpc, proxy.admin);
    let count = |name: &str, label: &str| metric(proxy.admin, name, &[label]);
    let tasks = Tasks::new();
    let loaded = load(&sinks, &proxy, &tasks);
    traffic(&proxy, 50.0)?;
    let clients = || count("spanring_receiver_connections_total", "listener=\"otlp_grpc\"");
    let open = || count("spanring_receiver_connections", "listener=\"otlp_grpc\"");
    let connects = |pool: &str| count("spanring_dispatch_connects_total", &format!("pool=\"{pool}\""));
    let generation = |pool: &str| count("spanring_ring_generation", &format!("pool=\"{pool}\""));
    let before = (clients()?, open()?, connects("tail")?, generation("tail")?);

    // Reloading the same file keeps tables and connections.
    reload(&proxy, &file.text(), "unchanged")?;
    traffic(&proxy, 50.0)?;
    ensure!((clients()?, open()?, connects("tail")?, generation("tail")?) == before, "nothing may change");

    // A pool is added, and logs are routed to it.
    file.pools.push(pool("more", all, ""));
    file.routes = "[{ signals: [traces], pool: tail }, { signals: [logs], pool: more }]";
    reload(&proxy, &file.text(), "success")?;
    traffic(&proxy, 50.0)?;
    ensure!(generation("more")? == 1.0 && generation("tail")? == 1.0, "one table each");
    ensure!(connects("tail")? == before.2, "the pool that was there keeps its connections");
    let (_, readiness) = http_get(&format!("http://{}/readyz?verbose", proxy.admin))?;
    ensure!(readiness.contains("[+] pool more: ok"), "{readiness}");

    // An invalid file changes nothing.
    proxy.rewrite("pools: { tail: { resolver: { static: { hostnames: [] } } }\n")?;
    reload(&proxy, "pools: { tail: { hold_down: 25h } }\n", "failed")?;
    ensure!(bare_metric(proxy.admin, "spanring_config_last_reload_successful")? == 0.0, "must be said");
    let log = proxy.process.log();
    ensure!(log.contains("configuration refused") && log.contains("hold_down: is longer than 24h"), "{log}");
    traffic(&proxy, 50.0)?;

    // A change of dispatch settings opens new connections and keeps the table.
    file.pools[0] = pool("tail", three, "compression: gzip, timeout: 4s, sending_queue: { queue_size: 8MiB }");
    reload(&proxy, &file.text(), "success")?;
    ensure!(bare_metric(proxy.admin, "spanring_config_last_reload_successful")? == 1.0, "must be over");
    until("new connections take over", || Ok((connects("tail")? > before.2).then_some(())))?;
    traffic(&proxy, 100.0)?;
    ensure!(generation("tail")? == 1.0, "the table must stay");

    // A changed resolver only adds a backend; the pool does not start anew.
    file.pools[0] = pool("tail", all, "compression: gzip");
    reload(&proxy, &file.text(), "success")?;
    until("the fourth backend joins", || Ok((generation("tail")? == 2.0).then_some(())))?;
    traffic(&proxy, 100.0)?;

    // The pool with all traffic is removed, and traces are routed to the other one.
    file.pools.remove(0);
    file.routes = "[{ signals: [traces, logs], pool: more }]";
    reload(&proxy, &file.text(), "success")?;
    until("the removed pool has ended", || Ok(proxy.process.log().contains("pool removed").then_some(())))?;
    until("its connections are closed", || {
        Ok((count("spanring_dispatch_connections", "pool=\"tail\"")? == 0.0).then_some(()))
    })?;
    traffic(&proxy, 100.0)?;
    let (_, readiness) = http_get(&format!("http://{}/readyz?verbose", proxy.admin))?;
    ensure!(!readiness.contains("tail"), "{readiness}");

    ensure!((clients()?, open()?) == (before.0, before.1), "no client may have lost its connection");
    tasks.drain();
    let run = sinks.runtime.block_on(loaded)??;
    ensure!(run.failed.is_empty(), "{} requests failed: {:?}", run.failed.len(), run.failed.first());
    ensure!(run.accepted.len() as u64 == run.sent && run.accepted.iter().all(|one| one.rejected == 0), "all accepted");
    let duplicates: u64 = sinks.sinks.iter().filter_map(|s| s.report().tracked).map(|t| t.duplicates).sum();
    ensure!(duplicates == 0, "{duplicates} duplicates");
    ensure!(sinks.spans() == run.sent * 100, "{} of {} spans", sinks.spans(), run.sent * 100);
    Ok(())
}

#[test]
fn keys_that_need_a_restart_are_reported_and_the_others_are_applied() -> Result<()> {
    let sinks = Sinks::start(1, &SinkConfig::default())?;
    let file = |grpc, admin| File {
        grpc,
        admin,
        pools: vec![pool("tail", &sinks.addresses(), "")],
        routes: "[{ signals: [traces], pool: tail }]",
        more: "worker_threads: 1".to_owned(),
    };
    let proxy = Proxy::start("spanring", |grpc, admin| file(grpc, admin).text())?;
    let large = || request((1..30_000).map(|id| span(u128::from(id), id)).collect());
    let client = || client(proxy.grpc);
    sinks.runtime.block_on(async { client().await?.export(large()).await.map_err(anyhow::Error::from) })?;

    let mut other = file(proxy.grpc, proxy.admin);
    other.more =
        "worker_threads: 2\ntelemetry: { logs: { encoding: json, level: debug } }\nshutdown: { delay: 0s }".to_owned();
    let text = other.text().replacen("{ endpoint:", "{ max_recv_msg_size_mib: 1, endpoint:", 1);
    let text = text.replace(&proxy.admin.to_string(), "127.0.0.1:1");
    reload(&proxy, &text, "success")?;
    let required = |key: &str| metric(proxy.admin, "spanring_config_restart_required", &[&format!("key=\"{key}\"")]);
    ensure!(required("worker_threads")? == 1.0 && required("admin.endpoint")? == 1.0, "must be named");
    ensure!(required("receivers.otlp.protocols.grpc.endpoint")? == 0.0, "is the same");
    let log = proxy.process.log();
    ensure!(log.contains("keys=\"admin.endpoint,worker_threads,telemetry.logs.encoding\""), "{log}");
    let changed = "keys=\"admin.endpoint,receivers.otlp.protocols.grpc.max_recv_msg_size_mib,shutdown.delay,\
                   telemetry.logs.encoding,telemetry.logs.level,worker_threads\"";
    ensure!(log.contains(changed), "what changed is named: {log}");
    let refused = sinks.runtime.block_on(async { anyhow::Ok(client().await?.export(large()).await.err()) })?;
    let refused = refused.context("the new limit must hold")?;
    ensure!(refused.code() == tonic::Code::ResourceExhausted, "{refused:?}");
    ensure!(refused.message().contains("max_recv_msg_size_mib"), "{refused:?}");
    // A connection that breaks HTTP/2 is logged only at level debug.
    let broken = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[b'x'; 64]].concat();
    std::io::Write::write_all(&mut std::net::TcpStream::connect(proxy.grpc)?, &broken)?;
    until("the new level holds", || Ok(proxy.process.log().contains("DEBUG").then_some(())))?;

    // The same file again, which still differs in a key that needs a restart.
    reload(&proxy, &text, "unchanged")?;
    ensure!(required("worker_threads")? == 1.0, "still");
    let log = proxy.process.log();
    ensure!(log.contains("only in keys that need a restart: nothing was changed"), "{log}");
    ensure!(!log.contains("configuration unchanged"), "not that, too: {log}");
    reload(&proxy, &file(proxy.grpc, proxy.admin).text(), "success")?;
    ensure!(required("worker_threads")? == 0.0, "no more");
    Ok(())
}

/// Points `link` to `to` atomically, as Kubernetes does with a ConfigMap's files.
fn relink(dir: &Path, link: &str, to: &str) -> Result<()> {
    symlink(to, dir.join("draft"))?;
    Ok(fs::rename(dir.join("draft"), dir.join(link))?)
}

#[test]
fn a_watched_file_is_applied_when_the_folder_of_its_link_is_swapped() -> Result<()> {
    let sinks = Sinks::start(2, &SinkConfig::default())?;
    let dir = tempfile::tempdir()?;
    let write = |version: &str, text: String| -> Result<()> {
        fs::create_dir_all(dir.path().join(version))?;
        Ok(fs::write(dir.path().join(version).join("spanring.yaml"), text)?)
    };
    let file = |grpc, admin, backends: &[SocketAddr]| super::rig::config(grpc, admin, backends, "", "");
    symlink("..data/spanring.yaml", dir.path().join("spanring.yaml"))?;
    let (process, [grpc, admin]) = harness::on_free_ports(|[grpc, admin]| {
        write("..1", file(grpc, admin, &sinks.addresses()[..1]))?;
        relink(dir.path(), "..data", "..1")?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_spanring"));
        command.arg("--config").arg(dir.path().join("spanring.yaml")).arg("--watch-config=100ms");
        Ok((Process::start("spanring", &mut command)?, Ready::Page(format!("http://{admin}/readyz"))))
    })?;
    write("..2", file(grpc, admin, &sinks.addresses()))?;
    relink(dir.path(), "..data", "..2")?;
    let active = || metric(admin, "spanring_ring_members", &["state=\"active\""]);
    until("the second backend joins", || Ok((active()? == 2.0).then_some(()))).with_context(|| process.log())?;
    ensure!(reloads(admin, "success")? == 1.0, "once");
    write("..3", "nothing: of use\n".to_owned())?;
    relink(dir.path(), "..data", "..3")?;
    until("a bad file is refused", || Ok((reloads(admin, "failed")? >= 1.0).then_some(())))?;
    ensure!(active()? == 2.0, "the backends must stay");
    ensure!(reloads(admin, "failed")? == 1.0, "a file that stays bad is refused once");
    Ok(())
}
