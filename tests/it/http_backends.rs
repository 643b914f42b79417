//! A proxy whose backends are called by OTLP/HTTP: whole traces, faults, TLS, a reload, and a real Collector.

use std::{collections::BTreeMap, fs, net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::{Result, ensure};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::{
    backend::{Answer, Welcome},
    faults::backends::a_crash_loses_nothing,
    fixture::{ExtraConfig, Fixture, Reply, keys_of, padded, span},
    harness::{self, Process, Proxy, Ready, until},
    tls::World,
};

const POOL: &str = "protocol: { otlp_http: {} },";
const DUPLICATES: &str = "spanring_dispatch_possible_duplicate_records_total";

fn over_http(deadline: &'static str) -> ExtraConfig {
    ExtraConfig { deadline, pool: POOL, ..ExtraConfig::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_trace_is_whole_and_connections_are_kept() -> Result<()> {
    let fixture = Fixture::start(3, over_http("")).await?;
    let load = fixture.load(6).await?;
    load.goes_on(300)?;
    let (acknowledged, refused) = load.stop().await?;
    ensure!(refused.is_empty(), "{refused:?}");
    let account = fixture.account(&acknowledged);
    ensure!((account.missing, account.duplicates, account.split) == (0, 0, 0), "{account:?}");
    for backend in &fixture.backends {
        let (calls, connections) = (backend.http_calls(), backend.connections());
        ensure!(calls > 0 && calls == backend.calls(), "{calls} of {} calls by HTTP", backend.calls());
        ensure!(connections <= 16 && connections < calls, "{connections} connections for {calls} calls");
    }
    fixture.memory_is_given_back()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_under_load_loses_nothing_that_was_acknowledged() -> Result<()> {
    let fixture = Fixture::start(3, over_http("2s")).await?;
    // A backend that closes the connection after each third answer, one that sometimes closes without one.
    fixture.backends[0].answer(|call| if call.number % 3 == 0 { Answer::AcceptAndGo } else { Answer::Accept });
    fixture.backends[2].answer(|call| if call.number % 50 == 0 { Answer::Fin } else { Answer::Accept });
    a_crash_loses_nothing(fixture).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_backend_is_ejected_and_its_traces_go_elsewhere_until_it_is_back() -> Result<()> {
    let fixture = Fixture::start(3, over_http("8s")).await?;
    fixture.serves().await?;
    // It accepts connections and answers nothing.
    fixture.backends[0].answer(|_| Answer::Hang);
    fixture.backends[0].welcome(|_| Welcome::Mute);
    let mut client = fixture.client().await?;
    let spans = fixture.spans_at(0, 2)?;
    let (keys, substitute) = (keys_of(&spans), fixture.substitute(0, &spans[0].trace_id)?);
    let (took, reply) = client.timed(spans).await;
    reply.ok()?;
    // A second of silence and a second for the answer to the probe, plus the delivery on a busy machine.
    ensure!((1_900..5_000).contains(&took.as_millis()), "its substitute had the spans after {took:?}");
    let delivered = fixture.backends[substitute].delivered();
    ensure!(keys.iter().all(|key| delivered.contains_key(key)), "the substitute lacks spans");
    let duplicates = fixture.metric(DUPLICATES, &[])?;
    ensure!(duplicates >= 2.0, "the backend may have taken the spans: {duplicates}");
    fixture.backends[0].answer(|_| Answer::Accept);
    fixture.backends[0].welcome(|_| Welcome::Serve);
    let before = fixture.backends[0].calls();
    let end = tokio::time::Instant::now() + Duration::from_secs(15);
    while fixture.backends[0].calls() == before {
        ensure!(tokio::time::Instant::now() < end, "the backend that is well again got nothing");
        client.export(fixture.spans_at(0, 1)?).await.ok()?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statuses_are_retried_or_passed_on_as_otlp_http_says() -> Result<()> {
    let fixture = Fixture::start(1, over_http("3s")).await?;
    let (backend, mut client) = (&fixture.backends[0], fixture.client().await?);
    let mut export = async |answer: fn(u64) -> Answer| {
        let before = backend.calls();
        backend.answer(move |call| answer(call.number - before));
        let spans = fixture.spans_at(0, 3)?;
        let (took, reply) = client.timed(spans).await;
        anyhow::Ok((took, reply, backend.calls() - before))
    };
    let (_, reply, calls) = export(|_| Answer::Status(Status::invalid_argument("no such thing"))).await?;
    ensure!(reply.permanent()? == (Code::InvalidArgument, "no such thing") && calls == 1, "{reply:?}, {calls} calls");
    let (_, reply, calls) = export(|_| Answer::Status(Status::internal("broken"))).await?;
    ensure!(reply.permanent()?.0 == Code::Internal && calls == 1, "{reply:?}, {calls} calls");
    let (_, reply, _) = export(|_| Answer::Partial(2, "two were bad")).await?;
    ensure!(matches!(&reply, Reply::Accepted { rejected: 2, message } if message == "two were bad"), "{reply:?}");
    for once in [
        |call: u64| if call == 1 { Answer::Status(Status::unavailable("later")) } else { Answer::Accept },
        |call: u64| if call == 1 { Answer::Status(Status::resource_exhausted("later")) } else { Answer::Accept },
        |call: u64| if call == 1 { Answer::Http(502, "text/html", "<h1>no</h1>") } else { Answer::Accept },
        |call: u64| if call == 1 { Answer::Http(504, "text/html", "<h1>no</h1>") } else { Answer::Accept },
        |call: u64| if call == 1 { Answer::Fin } else { Answer::Accept },
        |call: u64| if call == 1 { Answer::Rst } else { Answer::Accept },
    ] {
        let (_, reply, calls) = export(once).await?;
        reply.ok()?;
        ensure!(calls == 2, "{calls} calls");
    }
    let later = |call: u64| {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(1)));
        let later = Status::with_error_details(Code::Unavailable, "later", details);
        if call == 1 { Answer::Status(later) } else { Answer::Accept }
    };
    let (took, reply, _) = export(later).await?;
    reply.ok()?;
    ensure!(took >= Duration::from_secs(1), "Retry-After was not awaited: {took:?}");
    // After 502, 504 and a lost connection the backend may have the spans.
    let duplicates = fixture.metric(DUPLICATES, &[])?;
    ensure!(duplicates == 4.0 * 3.0, "{duplicates} possible duplicates");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_no_backend_can_bear_ejects_one_of_them() -> Result<()> {
    let by_grpc = ExtraConfig { deadline: "3s", ..ExtraConfig::default() };
    for extra in [over_http("3s"), by_grpc] {
        let fixture = Fixture::start(5, extra).await?;
        fixture.serves().await?;
        let before = fixture.backends.iter().map(|backend| backend.calls()).collect::<Vec<_>>();
        for backend in &fixture.backends {
            backend.answer(|_| Answer::Rst);
        }
        fixture.client().await?.export(fixture.spans_at(0, 1)?).await.retryable()?;
        let tried = fixture.backends.iter().zip(before).filter(|(backend, before)| backend.calls() > *before).count();
        let ejections = fixture.metric("spanring_membership_ejections_total", &[])?;
        ensure!(tried == 2 && ejections == 1.0, "{tried} backends got it, {ejections} were ejected");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_requests_are_cut_into_calls_and_arrive_whole() -> Result<()> {
    let fixture = Fixture::start(2, over_http("10s")).await?;
    let mut client = fixture.client().await?;
    let spans: Vec<_> = (0..12).map(|_| padded(span(&fixture.trace(), 0), 1 << 20)).collect();
    let keys = keys_of(&spans);
    client.export(spans).await.ok()?;
    let account = fixture.account(&keys);
    ensure!((account.missing, account.duplicates) == (0, 0), "{account:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces_arrive_with_mtls_towards_backends() -> Result<()> {
    let world = World::new()?;
    let pool = format!("{POOL} {}", world.pool()).leak();
    let fixture = Fixture::start(2, ExtraConfig { pool, ..ExtraConfig::default() }).await?;
    for backend in &fixture.backends {
        backend.speak(Some(world.backend(&world.good())?));
    }
    fixture.serves().await?;
    ensure!(fixture.backends.iter().all(|backend| backend.http_calls() > 0 && backend.plaintext() == 0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_changes_the_protocol_under_load() -> Result<()> {
    let fixture = Fixture::start(2, ExtraConfig::default()).await?;
    let load = fixture.load(4).await?;
    load.goes_on(50)?;
    let by_http = |fixture: &Fixture| fixture.backends.iter().map(|backend| backend.http_calls()).sum::<u64>();
    ensure!(by_http(&fixture) == 0, "the default is gRPC");
    fixture.reload(over_http(""))?;
    load.goes_on(50)?;
    let before = by_http(&fixture);
    ensure!(before > 0, "no call went by HTTP");
    fixture.reload(ExtraConfig::default())?;
    load.goes_on(50)?;
    let (acknowledged, refused) = load.stop().await?;
    ensure!(refused.is_empty(), "{refused:?}");
    let account = fixture.account(&acknowledged);
    ensure!((account.missing, account.duplicates, account.split) == (0, 0, 0), "{account:?}");
    Ok(())
}

/// Traces that are sent to Collectors, and the number of spans of each. Every span comes in a request of its own.
const TRACES: u64 = 200;
const SPANS: u64 = 5;

fn collector(program: &Path, dir: &Path) -> Result<(Process, SocketAddr)> {
    let file = dir.join("collector.yaml");
    let (process, [http, _]) = harness::on_free_ports(|[http, health]| {
        let config = format!(
            "receivers:
  otlp: {{ protocols: {{ http: {{ endpoint: {http} }} }} }}
exporters:
  file: {{ path: {}/spans.jsonl, flush_interval: 100ms }}
extensions:
  health_check: {{ endpoint: {health} }}
service:
  extensions: [health_check]
  telemetry: {{ metrics: {{ level: none }} }}
  pipelines:
    traces: {{ receivers: [otlp], exporters: [file] }}
",
            dir.display()
        );
        fs::write(&file, config)?;
        let process = Process::start("otelcol", Command::new(program).arg("--config").arg(&file))?;
        Ok((process, Ready::Page(format!("http://{health}/"))))
    })?;
    Ok((process, http))
}

/// The number of spans by trace in the file of a Collector.
fn received(dir: &Path) -> Result<BTreeMap<String, u64>> {
    let text = fs::read_to_string(dir.join("spans.jsonl")).unwrap_or_default();
    let mut traces = BTreeMap::new();
    for piece in text.split("\"traceId\":\"").skip(1) {
        let id = piece.split('"').next().unwrap_or_default();
        *traces.entry(id.to_owned()).or_default() += 1;
    }
    Ok(traces)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn collectors_get_every_trace_whole_at_their_http_receiver() -> Result<()> {
    let Some(otelcol) = harness::peer("otelcol")? else { return Ok(()) };
    for compression in ["none", "gzip", "zstd"] {
        let dirs = [tempfile::tempdir()?, tempfile::tempdir()?];
        let collectors = [collector(&otelcol, dirs[0].path())?, collector(&otelcol, dirs[1].path())?];
        let backends = collectors.iter().map(|(_, http)| *http).collect::<Vec<_>>();
        let pool = format!("protocol: {{ otlp_http: {{}} }}\n    compression: {compression}");
        let proxy = Proxy::start("spanring", |grpc, admin| super::rig::config(grpc, admin, &backends, &pool, ""))?;
        let mut client = super::rig::client(proxy.grpc).await?;
        for number in 0..SPANS {
            let spans = (0..TRACES).map(|trace| super::rig::span(u128::from(0xfeed_0000 + trace), 1 + number));
            let reply = client.export(super::rig::request(spans.collect())).await?.into_inner();
            ensure!(reply.partial_success.is_none(), "every span must be taken: {reply:?}");
        }
        let traces = until("the Collectors have every span", || {
            let traces = [received(dirs[0].path())?, received(dirs[1].path())?];
            let count: u64 = traces.iter().flat_map(BTreeMap::values).sum();
            Ok((count >= TRACES * SPANS).then_some(traces))
        })?;
        for traces in &traces {
            ensure!(!traces.is_empty() && traces.values().all(|spans| *spans == SPANS), "{compression}: {traces:?}");
        }
    }
    Ok(())
}
