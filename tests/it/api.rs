//! The admin API compared with what the proxy does: look-ups over every interface, differing replicas, and changes
//! while they happen.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::Value;
use spanring::{
    admin::pb::v1::{Cause, LookupRequest, WatchRingRequest, ring_client::RingClient},
    tools::sink::SinkConfig,
};
use tokio::net::TcpSocket;
use tonic::transport::Channel;

use super::{
    harness::{Process, Proxy, Ready, on_free_ports, until},
    rig::{self, Sinks, client, request, span},
};

/// Number of look-ups in the large comparison.
const TRACES: u128 = 10_000;

/// An address where nothing listens. The port stays taken as long as this value exists.
struct Dead(SocketAddr, #[expect(dead_code, reason = "it holds the port")] TcpSocket);

impl Dead {
    fn new(sinks: &Sinks) -> Result<Self> {
        let _context = sinks.runtime.enter();
        let socket = TcpSocket::new_v4()?;
        socket.bind("127.0.0.1:0".parse()?)?;
        Ok(Self(socket.local_addr()?, socket))
    }
}

fn proxy(name: &str, backends: &[SocketAddr]) -> Result<Proxy> {
    Proxy::start(name, |grpc, admin| rig::config(grpc, admin, backends, "", ""))
}

fn trace(number: u128) -> u128 {
    (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
}

/// Sends one span of each of these traces.
fn send(sinks: &Sinks, proxy: &Proxy, traces: impl Iterator<Item = u128>) -> Result<()> {
    let spans: Vec<_> = traces.map(|number| span(trace(number), 1)).collect();
    sinks.runtime.block_on(async {
        let mut client = client(proxy.grpc).await?;
        for some in spans.chunks(500) {
            client.export(request(some.to_vec())).await?;
        }
        Ok(())
    })
}

/// The addresses where each trace's spans arrived.
fn arrivals(sinks: &Sinks) -> BTreeMap<String, BTreeSet<String>> {
    let mut arrivals = BTreeMap::<_, BTreeSet<_>>::new();
    for sink in &sinks.sinks {
        for trace in sink.seen().into_keys() {
            let trace = format!("{:032x}", u128::from_be_bytes(trace));
            arrivals.entry(trace).or_default().insert(sink.addr.to_string());
        }
    }
    arrivals
}

/// Runs `spanring ring` with these words and returns its output.
fn ring(words: &[&str], input: &str) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spanring"));
    command.arg("ring").args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    child.stdin.take().context("a pipe")?.write_all(input.as_bytes())?;
    Ok(child.wait_with_output()?)
}

/// Runs `spanring ring` and returns its exit code and its output, stdout before stderr.
fn run_ring(words: &[&str]) -> Result<(i32, String)> {
    let output = ring(words, "")?;
    let text = String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?;
    Ok((output.status.code().context("a code")?, text))
}

/// The trace and its only owner in an answer.
fn owner_in(answer: &Value) -> Result<(String, String)> {
    let owners = answer["pools"][0]["owners"].as_array().context("owners")?;
    ensure!(owners.len() == 1, "{answer}");
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a text");
    Ok((text(&answer["trace_id"])?, text(&owners[0]["identity"])?))
}

/// Looks up owners by JSON, over one connection.
fn by_json(admin: SocketAddr, ids: &[String]) -> Result<BTreeMap<String, String>> {
    let mut stream = BufReader::new(TcpStream::connect(admin)?);
    stream.get_ref().set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut ask = |id: &String| {
        // Sent in one write: several small ones would wait for TCP acknowledgements.
        let question = format!("GET /api/v1/lookup?trace_id={id} HTTP/1.1\r\nhost: {admin}\r\n\r\n");
        stream.get_mut().write_all(question.as_bytes())?;
        let mut length = None;
        loop {
            let mut line = String::new();
            ensure!(stream.read_line(&mut line)? > 0, "the connection ended");
            match line.trim_end().split_once(": ") {
                Some(("content-length", value)) => length = Some(value.parse::<usize>()?),
                None if line.trim_end().is_empty() => break,
                _ => {}
            }
        }
        let mut body = vec![0; length.context("a length")?];
        stream.read_exact(&mut body)?;
        owner_in(&serde_json::from_slice(&body)?)
    };
    ids.iter().map(&mut ask).collect()
}

/// Looks up owners by gRPC, several at a time.
fn by_grpc(sinks: &Sinks, admin: SocketAddr, ids: &[String]) -> Result<BTreeMap<String, String>> {
    sinks.runtime.block_on(async {
        let client = ring_client(admin).await?;
        let questions = ids.iter().map(|id| {
            let (mut client, trace_id) = (client.clone(), id.clone());
            async move {
                let answer = client.lookup(LookupRequest { trace_id, ..LookupRequest::default() }).await?.into_inner();
                let owner = answer.pools.first().and_then(|pool| pool.owners.first()).context("an owner")?;
                anyhow::Ok((answer.trace_id, owner.identity.clone()))
            }
        });
        stream::iter(questions).buffer_unordered(16).try_collect().await
    })
}

/// Looks up owners by the command.
fn by_command(words: &[&str], ids: &[String]) -> Result<BTreeMap<String, String>> {
    let output = ring(&[&["lookup", "-", "--json"], words].concat(), &ids.join("\n"))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)?.lines().map(|line| owner_in(&serde_json::from_str(line)?)).collect()
}

async fn ring_client(admin: SocketAddr) -> Result<RingClient<Channel>> {
    Ok(RingClient::new(Channel::from_shared(format!("http://{admin}"))?.connect().await?))
}

#[test]
fn every_kind_of_lookup_names_the_backend_that_got_the_trace() -> Result<()> {
    let sinks = Sinks::start(4, &SinkConfig::default())?;
    let dead = Dead::new(&sinks)?;
    let backends = [sinks.addresses(), vec![dead.0]].concat();
    let proxy = proxy("spanring", &backends)?;
    // The first requests eject the backend that is down. From then on the table does not change.
    send(&sinks, &proxy, TRACES..TRACES + 50)?;
    let before = arrivals(&sinks);
    send(&sinks, &proxy, 0..TRACES)?;
    let ids: Vec<String> = (0..TRACES).map(|number| format!("{:032x}", trace(number))).collect();
    let mut went = BTreeMap::new();
    for (trace, sinks) in arrivals(&sinks).into_iter().filter(|(trace, _)| !before.contains_key(trace)) {
        ensure!(sinks.len() == 1, "{trace} is at {sinks:?}");
        went.extend(sinks.into_iter().map(|sink| (trace.clone(), sink)));
    }
    ensure!(went.len() == TRACES as usize, "{} traces arrived", went.len());

    let admin = proxy.admin.to_string();
    ensure!(by_json(proxy.admin, &ids)? == went, "JSON names other backends than the traces went to");
    ensure!(by_grpc(&sinks, proxy.admin, &ids)? == went, "gRPC names other backends than the traces went to");
    ensure!(by_command(&["--admin", &admin], &ids)? == went, "the command names others than the traces went to");
    // Computed from a list alone, without a proxy, the dead backend keeps its slots; all other owners agree.
    let list: Vec<String> = backends.iter().map(ToString::to_string).collect();
    let listed = by_command(&["--members", &list.join(",")], &ids)?;
    let dead = dead.0.to_string();
    ensure!(listed.values().filter(|owner| **owner == dead).count() > 1_000, "the dead backend owns a fifth");
    ensure!(
        listed.iter().all(|(trace, owner)| *owner == dead || went.get(trace) == Some(owner)),
        "the list gives other owners"
    );

    let substitute = listed.iter().find(|(_, owner)| **owner == dead).context("one of them")?.0;
    let (code, text) = run_ring(&["lookup", substitute, "--admin", &admin])?;
    ensure!(code == 0 && text.contains(&format!("substitute for {dead} (ejected)")), "{text}");
    Ok(())
}

#[test]
fn sixteen_questions_at_once_are_answered_on_a_new_connection() -> Result<()> {
    let sinks = Sinks::start(1, &SinkConfig::default())?;
    let proxy = proxy("spanring", &sinks.addresses())?;
    let ids: Vec<String> = (0..16).map(|number| format!("{:032x}", trace(number))).collect();
    for _ in 0..50 {
        ensure!(by_grpc(&sinks, proxy.admin, &ids)?.len() == 16, "some were not answered");
    }
    Ok(())
}

#[test]
fn replicas_with_different_memberships_differ_by_backend() -> Result<()> {
    let sinks = Sinks::start(3, &SinkConfig::default())?;
    let dead = Dead::new(&sinks)?;
    let (all, dead) = (sinks.addresses(), dead.0);
    let [one, two, three] = all[..] else { anyhow::bail!("three") };
    let a = proxy("a", &[one, two, dead])?;
    let [b, c] = [proxy("b", &[one, three, dead])?, proxy("c", &[dead, two, one])?];
    let [at_a, at_b, at_c] = [&a, &b, &c].map(|proxy| proxy.admin.to_string());

    let (code, text) = run_ring(&["diff", &at_a, &format!("http://{at_b}/")])?;
    ensure!(code == 1 && text.contains("pool tail: DIFFER"), "{code}: {text}");
    ensure!(text.contains(&format!("only in A: {two}\n  only in B: {three}\n")), "{text}");
    let (code, text) = run_ring(&["diff", &at_a, &at_c])?;
    ensure!(code == 0 && text.contains("pool tail: agree"), "{code}: {text}");
    // One proxy meets a failing backend, the other has no traffic.
    send(&sinks, &a, 0..100)?;
    let text = until("one has ejected what the other has not", || {
        let (code, text) = run_ring(&["diff", &at_a, &at_c])?;
        Ok((code == 1).then_some(text))
    })?;
    ensure!(text.contains(&format!("{dead} is ejected in A and active in B\n")), "{text}");
    ensure!(text.contains("  membership ") && text.contains(" in both\n"), "the membership is the same: {text}");

    let list = format!("static://{one},{two}");
    let (code, text) = run_ring(&["diff", &at_a, &list, "--json"])?;
    let diff: Value = serde_json::from_str(&text)?;
    ensure!(code == 1 && diff["pools"][0]["only_in_a"][0] == dead.to_string(), "{text}");
    let (code, text) = run_ring(&["show", "--admin", &at_a])?;
    ensure!(code == 0 && text.contains("by ejection: moved ") && text.contains("ejected"), "{text}");
    let (code, text) = run_ring(&["plan", "--admin", &at_b, "--add", "10.0.0.1", "--remove", &dead.to_string()])?;
    ensure!(code == 0 && text.contains("the fair shares change by 33.33 %"), "{text}");
    let grpc = a.grpc.to_string();
    let (code, text) = run_ring(&["diff", &at_a, &grpc])?;
    ensure!(code == 2 && text.contains("is it a spanring's admin.endpoint?"), "{code}: {text}");
    Ok(())
}

#[test]
fn changes_are_reported_at_once_with_their_cause() -> Result<()> {
    let sinks = Sinks::start(2, &SinkConfig::default())?;
    let dead = Dead::new(&sinks)?;
    let proxy = proxy("spanring", &[sinks.addresses(), vec![dead.0]].concat())?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_spanring"));
    command.args(["ring", "watch", "--admin", &proxy.admin.to_string()]);
    let watch = Process::start("watch", &mut command)?;
    until("the ring is shown", || Ok(watch.log().contains("pool tail: generation 1, 3 backends").then_some(())))?;

    let mut stream = sinks.runtime.block_on(async {
        let request = WatchRingRequest { pool: "tail".to_owned() };
        anyhow::Ok(ring_client(proxy.admin).await?.watch_ring(request).await?.into_inner())
    })?;
    let mut next = || sinks.runtime.block_on(stream.message())?.context("a message");
    let first = next()?;
    ensure!(first.changes.is_empty() && first.ring.is_some_and(|ring| ring.generation == 1), "the ring comes at once");
    send(&sinks, &proxy, 0..100)?;
    let second = next()?;
    let change = second.changes.first().context("a change")?;
    ensure!(change.cause() == Cause::Ejection && change.ejected == [dead.0.to_string()], "{change:?}");
    let line = format!("generation 2 by ejection, moved {:.2} %, ejected 1 ({})", change.moved_share * 100.0, dead.0);
    until("the change is printed", || Ok(watch.log().contains(&line).then_some(())))?;

    Ok(())
}

#[test]
fn a_watch_survives_the_restart_of_its_proxy_and_the_failure_of_another() -> Result<()> {
    let sinks = Sinks::start(2, &SinkConfig::default())?;
    let dead = Dead::new(&sinks)?;
    let other = proxy("other", &sinks.addresses())?;
    let (at_other, down) = (other.admin.to_string(), dead.0.to_string());
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("spanring.yaml");
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spanring"));
        Process::start("spanring", command.arg("run").arg("--config").arg(&file))
    };
    let (mut proxy, [_, admin]) = on_free_ports(|free| {
        // Clients get no ports of 127.0.0.2, so the ports are still free when the proxy restarts.
        let [grpc, admin] = free.map(|free| SocketAddr::from(([127, 0, 0, 2], free.port())));
        std::fs::write(&file, rig::config(grpc, admin, &sinks.addresses(), "", ""))?;
        Ok((start()?, Ready::Page(format!("http://{admin}/readyz"))))
    })?;
    let at = SocketAddr::from(([127, 0, 0, 2], admin.port())).to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_spanring"));
    command.args(["ring", "watch", "--admin", &at, "--admin", &at_other, "--admin", &down]);
    let mut watch = Process::start("watch", &mut command)?;
    let seen =
        |what: &str, times: usize| until(what, || Ok((watch.log().matches(what).count() >= times).then_some(())));
    let found = |at: &str| format!("{at} pool tail: generation 1, 2 backends");
    seen(&found(&at), 1)?;
    seen(&found(&at_other), 1)?;
    seen(&format!("cannot reach the admin listener at {down};"), 1)?;

    ensure!(proxy.stop()?.success(), "it drains");
    seen(&format!("the watch of {at} ended: the connection was closed; trying again"), 1)?;
    let _proxy = start()?;
    seen(&format!("{at} is watched again"), 1)?;
    // It may be watched again before it has its first table, which is then reported as a change.
    seen(&format!("{at} pool tail: generation 1"), 2)?;
    ensure!(watch.log().matches(&found(&at_other)).count() == 1, "the other was watched all along: {}", watch.log());
    ensure!(watch.log().matches(&down).count() == 1, "a continuing failure is reported once");
    watch.signal("TERM")?;
    watch.wait()?;

    let (code, text) = run_ring(&["watch", "--admin", &down, "--admin", &down])?;
    ensure!(code == 2 && text.contains("cannot reach the admin listener"), "no proxy was ever there: {code}: {text}");
    Ok(())
}

#[test]
fn one_replica_that_is_down_hides_no_other() -> Result<()> {
    let sinks = Sinks::start(2, &SinkConfig::default())?;
    let dead = Dead::new(&sinks)?.0.to_string();
    let proxy = proxy("spanring", &sinks.addresses())?;
    let at = proxy.admin.to_string();
    let id = format!("{:032x}", trace(1));
    for (words, expected) in [
        (vec!["show"], "pool tail (traces)"),
        (vec!["lookup", &id], &*format!("{id}  {at}  tail")),
        (vec!["plan", "--add", "10.0.0.1"], "1 added, 0 removed"),
    ] {
        // The dead proxy is asked first and last.
        let words = [words, vec!["--admin", &dead, "--admin", &at, "--admin", &dead]].concat();
        let output = ring(&words, "")?;
        let (text, why) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
        ensure!(text.contains(expected), "{words:?}: {text}{why}");
        ensure!(output.status.code() == Some(2), "{words:?}: {:?}", output.status);
        let named = format!("error: cannot reach the admin listener at {dead}; ");
        ensure!(why.matches(&named).count() == 2 && why.lines().count() == 2, "{words:?}: {why}");
    }
    Ok(())
}

#[test]
fn a_lookup_at_several_replicas_names_them_and_says_whether_they_differ() -> Result<()> {
    let sinks = Sinks::start(3, &SinkConfig::default())?;
    let all = sinks.addresses();
    let [one, two, three] = all[..] else { anyhow::bail!("three") };
    let (a, b, c) = (proxy("a", &[one, two])?, proxy("b", &[one, three])?, proxy("c", &[two, one])?);
    let [at_a, at_b, at_c] = [&a, &b, &c].map(|proxy| proxy.admin.to_string());
    let ids: Vec<String> = (0..8).map(|number| format!("{:032x}", trace(number))).collect();
    let list = format!("{one},{two}");
    let owners = by_command(&["--members", &list], &ids)?;
    let of = |owner: SocketAddr| owners.iter().find(|(_, it)| **it == owner.to_string()).map(|(id, _)| &**id);
    let (moves, stays) = (of(two).context("a trace of the second")?, of(one).context("a trace of the first")?);

    let (code, text) = run_ring(&["lookup", moves, "--admin", &at_a, "--admin", &at_b])?;
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    ensure!(rows[0][..5] == ["TRACE", "REPLICA", "POOL", "SLOT", "BACKEND"], "{text}");
    ensure!(rows[1][..3] == [moves, &at_a, "tail"] && rows[1][4] == two.to_string(), "{text}");
    ensure!(rows[2][..3] == [moves, &at_b, "tail"] && rows[2][4] != two.to_string(), "{text}");
    ensure!(code == 1 && text.contains("the replicas differ on 1 of 1 traces"), "{code}: {text}");

    let (code, text) = run_ring(&["lookup", moves, stays, "--admin", &at_a, "--admin", &at_c])?;
    ensure!(code == 0 && text.lines().count() == 5, "the same backends, the same owners: {code}: {text}");
    let output = ring(&["lookup", moves, "--admin", &at_a, "--admin", &at_b, "--json"], "")?;
    let lines = String::from_utf8(output.stdout)?;
    let from = lines.lines().map(|line| Ok(serde_json::from_str::<Value>(line)?["from"].clone()));
    ensure!(from.collect::<Result<Vec<_>>>()? == [&*at_a, &*at_b], "{lines}");
    ensure!(output.status.code() == Some(1), "{:?}", output.status);
    let (code, text) = run_ring(&["lookup", moves, "--admin", &at_a])?;
    ensure!(code == 0 && !text.contains("REPLICA"), "one replica needs no name: {text}");

    let (code, text) = run_ring(&["show", "--admin", &at_a, "--admin", &at_c, "--admin", &at_b])?;
    let why = format!("the rings of {at_b} differ from those of {at_a}: spanring ring diff {at_a} {at_b}\n");
    ensure!(code == 1 && text.contains(&why) && text.matches(" differ from ").count() == 1, "{code}: {text}");
    let (code, text) = run_ring(&["show", "--admin", &at_a, "--admin", &at_c])?;
    ensure!(code == 0 && !text.contains("differ"), "{code}: {text}");
    Ok(())
}

#[test]
fn one_port_speaks_http_1_and_grpc_and_says_when_it_drains() -> Result<()> {
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

    let sinks = Sinks::start(1, &SinkConfig::default())?;
    let config =
        |grpc, admin| rig::config(grpc, admin, &sinks.addresses(), "", "shutdown: { delay: 60s, timeout: 1s }");
    let proxy = Proxy::start("spanring", config)?;
    let channel = || async { anyhow::Ok(Channel::from_shared(format!("http://{}", proxy.admin))?.connect().await?) };
    let status = |channel: Channel| async {
        let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await?;
        anyhow::Ok(answer.into_inner().status())
    };
    let channel = sinks.runtime.block_on(channel())?;
    ensure!(sinks.runtime.block_on(status(channel.clone()))? == ServingStatus::Serving);
    let (code, page) = super::harness::http_get(&format!("http://{}/api/v1/ring", proxy.admin))?;
    let page: Value = serde_json::from_str(&page)?;
    ensure!(code == 200 && page["pools"][0]["pool"] == "tail", "{page}");
    proxy.process.signal("TERM")?;
    until("health says that it drains", || {
        let status = sinks.runtime.block_on(status(channel.clone()))?;
        Ok((status == ServingStatus::NotServing).then_some(()))
    })
}
