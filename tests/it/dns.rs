//! Tests of discovery with the binary, the system's `resolv.conf` and a name server on port 53.
//!
//! The tests need root. They print a line when they are skipped, and must not be skipped in CI (see
//! [`NameServer::start`]).

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hickory_proto::rr::RecordType;
use spanring::{
    endpoint::Endpoint,
    ring::{Algorithm, Table},
};
use tokio::time::{Instant, sleep};
use tonic_types::StatusExt;

use super::{
    backend::Backend,
    harness::{POLL_INTERVAL, Proxy, TIME_LIMIT, http_get, metric, until},
    nameserver::{NXDOMAIN, NameServer, REFUSED, Reply, SERVFAIL, loopback},
    rig::{client, request, span},
};

const NAME: &str = "collectors.test.";

/// The resolver as in the example configuration.
const RESOLVER: &str = "hostname: collectors.test, port: 4317, interval: 5s, timeout: 1s";

/// The same with a short interval, for tests that wait for many rounds.
const SHORT_INTERVAL: &str = "hostname: collectors.test, port: 4317, interval: 100ms, timeout: 300ms";

/// Starts backends that listen on the same port of different addresses.
async fn backends(count: usize) -> Result<Vec<Backend>> {
    // Port 4317 as in the example, unless another process listens on it at all addresses.
    let mut first = Backend::start_at((loopback(), 4317).into()).await;
    if first.is_err() {
        first = Backend::start_at((loopback(), 0).into()).await;
    }
    let mut backends = vec![first?];
    let port = port_of(&backends)?;
    for _ in 1..count {
        backends.push(Backend::start_at((loopback(), port).into()).await?);
    }
    Ok(backends)
}

fn port_of(backends: &[Backend]) -> Result<u16> {
    Ok(backends.first().context("no backend")?.address.port())
}

fn ips(backends: &[Backend]) -> Vec<IpAddr> {
    backends.iter().map(|backend| backend.address.ip()).collect()
}

/// Starts a proxy that uses `server` as the system's name server, and waits until `page` answers 200.
fn proxy(server: &NameServer, resolver: &str, port: u16, page: &str) -> Result<Proxy> {
    proxy_held(server, resolver, port, page, "hold_down: 5s")
}

/// The same with these keys of the pool.
fn proxy_held(server: &NameServer, resolver: &str, port: u16, page: &str, keys: &str) -> Result<Proxy> {
    let resolver = resolver.replace("4317", &port.to_string());
    let command = || server.command(env!("CARGO_BIN_EXE_spanring"));
    Proxy::start_by("spanring", command, page, |grpc, admin| {
        format!(
            "receivers: {{ otlp: {{ protocols: {{ grpc: {{ endpoint: {grpc} }} }} }} }}
pools:
  tail: {{ {keys}, ring: {{ handoff: {{ mode: immediate }} }}, resolver: {{ dns: {{ {resolver} }} }} }}
routes: [{{ signals: [traces], routing_key: trace_id, pool: tail }}]
admin: {{ endpoint: {admin} }}
"
        )
    })
}

fn has_members(proxy: &Proxy, count: usize) -> Result<()> {
    until(&format!("{count} backends are members"), || {
        let members = metric(proxy.admin, "spanring_ring_members", &["state=\"active\""])?;
        Ok((members == count as f64).then_some(()))
    })
}

/// Sends spans of many traces and checks that each arrives at the backend that owns its trace.
async fn spans_arrive(proxy: &Proxy, backends: &[Backend]) -> Result<()> {
    static TRACES: AtomicU64 = AtomicU64::new(1);
    let endpoint = |at: SocketAddr| Endpoint::new(at.to_string(), Some(at));
    let mut endpoints: Vec<Endpoint> = backends.iter().map(|backend| endpoint(backend.address)).collect();
    endpoints.sort();
    let table = Table::of(1, Algorithm::SlotsV1, &Arc::from(endpoints))?;
    let first = TRACES.fetch_add(100, Relaxed);
    let spans: Vec<_> = (0..100).flat_map(|n| [1, 2].map(|id| span(u128::from(first + n), id))).collect();
    let reply = client(proxy.grpc).await?.export(request(spans.clone())).await?.into_inner();
    ensure!(reply.partial_success.is_none(), "{reply:?}");
    let delivered: Vec<_> = backends.iter().map(|backend| (backend.address, backend.delivered())).collect();
    for span in spans {
        let owner = table.backends().get(table.owner(&span.trace_id) as usize).and_then(|owner| owner.address);
        let key = (span.trace_id, span.span_id);
        let at: Vec<SocketAddr> =
            delivered.iter().filter(|(_, spans)| spans.contains_key(&key)).map(|(at, _)| *at).collect();
        ensure!(at == Vec::from_iter(owner), "{key:?} went to {at:?} and belongs to {owner:?}");
    }
    Ok(())
}

/// The same, repeated until the proxy uses the table that was published a moment ago.
async fn spans_arrive_eventually(proxy: &Proxy, backends: &[Backend]) -> Result<()> {
    has_members(proxy, backends.len())?;
    let end = Instant::now() + TIME_LIMIT;
    while let Err(error) = spans_arrive(proxy, backends).await {
        ensure!(Instant::now() < end, "{error:#}");
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_waits_for_its_name_and_then_serves() -> Result<()> {
    let Some(server) = NameServer::start()? else { return Ok(()) };
    let backends = backends(3).await?;
    let mut proxy = proxy(&server, RESOLVER, port_of(&backends)?, "livez")?;
    until("it has asked", || Ok(server.asked().contains(&format!("{NAME} A")).then_some(())))?;
    let (status, reasons) = http_get(&format!("http://{}/readyz", proxy.admin))?;
    ensure!(status == 503 && reasons.contains("tail"), "the pool without backends must be named: {status} {reasons}");
    let refused = client(proxy.grpc).await?.export(request(vec![span(1, 1)])).await.err().context("must be refused")?;
    ensure!(refused.code() == tonic::Code::Unavailable, "{refused:?}");
    ensure!(refused.get_details_retry_info().and_then(|info| info.retry_delay).is_some(), "{refused:?}");

    server.resolves(NAME, &ips(&backends));
    until("it is ready", || Ok((http_get(&format!("http://{}/readyz", proxy.admin))?.0 == 200).then_some(())))?;
    spans_arrive(&proxy, &backends).await.context("ready, but not of use")?;
    has_members(&proxy, 3)?;
    ensure!(proxy.process.ended()?.is_none(), "it must be the same process");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aaaa_records_become_backends_too() -> Result<()> {
    let Some(server) = NameServer::start()? else { return Ok(()) };
    let Ok(sixth) = Backend::start_at((Ipv6Addr::LOCALHOST, 0).into()).await else {
        // The machine has no IPv6.
        return Ok(());
    };
    let port = sixth.address.port();
    let mut all = vec![sixth];
    server.resolves(NAME, &ips(&all));
    let only = proxy(&server, SHORT_INTERVAL, port, "readyz")?;
    spans_arrive_eventually(&only, &all).await.context("a name with AAAA records only")?;

    all.push(Backend::start_at((loopback(), port).into()).await?);
    server.resolves(NAME, &ips(&all));
    let both = proxy(&server, &format!("{SHORT_INTERVAL}, ip_family: both"), port, "readyz")?;
    spans_arrive_eventually(&both, &all).await.context("both families")?;
    let auto = proxy(&server, SHORT_INTERVAL, port, "readyz")?;
    spans_arrive_eventually(&auto, &all[1..]).await.context("A records go before AAAA records")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_search_list_is_used_unless_the_name_ends_with_a_dot() -> Result<()> {
    let Some(server) = NameServer::start()? else { return Ok(()) };
    let backends = backends(2).await?;
    let (short, long) = backends.split_at(1);
    let port = port_of(short)?;
    // As in a pod: a name with fewer than five dots is looked up in the search domains first.
    server.resolv_conf("search other.test obs.test\noptions ndots:5")?;
    server.resolves(NAME, &ips(short));
    server.resolves("collectors.test.obs.test.", &ips(long));
    let listed = proxy(&server, SHORT_INTERVAL, port, "readyz")?;
    spans_arrive_eventually(&listed, long).await.context("without a dot")?;
    drop(listed);
    let asked = server.asked();
    let first = asked.iter().filter(|question| question.ends_with(" A")).take(2);
    ensure!(first.eq(["collectors.test.other.test. A", "collectors.test.obs.test. A"]), "{asked:?}");

    let absolute = SHORT_INTERVAL.replace("collectors.test", "collectors.test.");
    let dotted = proxy(&server, &absolute, port, "readyz")?;
    spans_arrive_eventually(&dotted, short).await.context("with a dot")?;
    let asked = server.asked();
    ensure!(asked.iter().all(|question| question.starts_with("collectors.test. ")), "{asked:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_search_domain_affects_neither_the_start_nor_the_next_change() -> Result<()> {
    let Some(server) = NameServer::start()? else { return Ok(()) };
    let backends = backends(2).await?;
    let port = port_of(&backends)?;
    server.resolv_conf("search corp.test obs.test\noptions ndots:5")?;
    for (bad, all) in [(SERVFAIL, &backends[..1]), (Reply::NoData, &backends[..])] {
        server.set_both_replies("collectors.test.corp.test.", &bad);
        server.resolves(NAME, &ips(all));
        let proxy = proxy(&server, SHORT_INTERVAL, port, "readyz")?;
        spans_arrive_eventually(&proxy, all).await.with_context(|| format!("after {bad:?}"))?;
        server.resolves(NAME, &ips(&backends[1..]));
        spans_arrive_eventually(&proxy, &backends[1..]).await.with_context(|| format!("a change after {bad:?}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_parts_of_the_set_do_not_change_the_ring_once_they_are_recognised() -> Result<()> {
    let Some(server) = NameServer::start()? else { return Ok(()) };
    let backends = backends(6).await?;
    let all = ips(&backends);
    let part = || fastrand::choose_multiple(all.iter().copied(), 3);
    server.resolves(NAME, &part());
    let proxy = proxy(&server, SHORT_INTERVAL, port_of(&backends)?, "readyz")?;
    let partial = || metric(proxy.admin, "spanring_discovery_partial_answers", &[]);
    until("the parts are recognised and complete", || {
        server.resolves(NAME, &part());
        let members = metric(proxy.admin, "spanring_discovery_endpoints", &[])?;
        Ok((partial()? == 1.0 && members == 6.0).then_some(()))
    })?;
    spans_arrive_eventually(&proxy, &backends).await?;
    let generation = || metric(proxy.admin, "spanring_ring_generation", &[]);
    let rounds = || metric(proxy.admin, "spanring_discovery_lookups_total", &["ipv4", "success"]);
    let (before, end) = (generation()?, rounds()? + 30.0);
    until("30 further rounds", || {
        server.resolves(NAME, &part());
        Ok((rounds()? >= end).then_some(()))
    })?;
    ensure!(generation()? == before, "the ring was built anew");
    let warned = proxy.process.log().matches("changing parts of a larger set").count();
    ensure!(warned == 1, "{warned} warnings:\n{}", proxy.process.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_too_long_for_udp_is_fetched_over_tcp() -> Result<()> {
    let Some(server) = NameServer::start()? else { return Ok(()) };
    let backends = backends(3).await?;
    // The reply with 200 A records has more than 3 kB. Three of the addresses are backends, the others refuse
    // connections.
    let others = (0..197).map(|_| IpAddr::from(loopback()));
    let mut all: Vec<IpAddr> = ips(&backends).into_iter().chain(others).collect();
    all.sort_unstable();
    all.dedup();
    server.set_reply(NAME, RecordType::A, Reply::OverTcp(all.clone()));
    server.set_reply(NAME, RecordType::AAAA, Reply::NoData);
    let proxy = proxy(&server, SHORT_INTERVAL, port_of(&backends)?, "readyz")?;
    until("every address is known", || {
        Ok((metric(proxy.admin, "spanring_discovery_endpoints", &[])? == all.len() as f64).then_some(()))
    })?;
    let asked = server.asked();
    ensure!(asked.contains(&format!("{NAME} A")) && asked.contains(&format!("{NAME} A tcp")), "{asked:?}");
    server.set_reply(NAME, RecordType::A, Reply::OverTcp(ips(&backends)));
    let named: Vec<String> = backends.iter().map(|backend| backend.address.to_string()).collect();
    until("the three are left", || {
        Ok((metric(proxy.admin, "spanring_discovery_endpoints", &[])? == named.len() as f64).then_some(()))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_away_for_three_seconds_again_and_again_moves_nothing() -> Result<()> {
    let Some(server) = NameServer::start()? else { return Ok(()) };
    let backends = backends(3).await?;
    server.set_ttl(0);
    server.resolves(NAME, &ips(&backends));
    // Two looks that are 5 s apart can both be into a gap. The hold_down leaves time to machines under load.
    let proxy = proxy_held(&server, RESOLVER, port_of(&backends)?, "readyz", "hold_down: 8s")?;
    spans_arrive_eventually(&proxy, &backends).await?;
    let generation = || metric(proxy.admin, "spanring_ring_generation", &[]);
    let (before, flap) = (generation()?, Duration::from_secs(3));
    for _ in 0..5 {
        server.resolves(NAME, &ips(&backends[..2]));
        sleep(flap).await;
        server.resolves(NAME, &ips(&backends));
        sleep(flap).await;
    }
    ensure!(generation()? == before, "the ring was built anew:\n{}", proxy.process.log());
    ensure!(proxy.process.log().contains("held for a while"), "no answer lacked it:\n{}", proxy.process.log());
    spans_arrive(&proxy, &backends).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absence_is_believed_only_after_the_ttl_of_the_answer() -> Result<()> {
    let Some(server) = NameServer::start()? else { return Ok(()) };
    let backends = backends(4).await?;
    server.resolves(NAME, &ips(&backends));
    let proxy = proxy_held(&server, SHORT_INTERVAL, port_of(&backends)?, "readyz", "hold_down: 0s")?;
    has_members(&proxy, 4)?;
    let members = || metric(proxy.admin, "spanring_ring_members", &[]);
    for (ttl, left) in [(4, 3), (0, 2)] {
        server.set_ttl(ttl);
        let listed_until = Instant::now();
        server.resolves(NAME, &ips(&backends[..left]));
        until("it is removed", || Ok((members()? == left as f64).then_some(())))?;
        let after = listed_until.elapsed();
        ensure!(after >= Duration::from_secs(ttl.into()), "{after:?} is before the TTL of {ttl} s is over");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_removed_below_min_backends() -> Result<()> {
    let Some(server) = NameServer::start()? else { return Ok(()) };
    let backends = backends(4).await?;
    server.set_ttl(0);
    server.resolves(NAME, &ips(&backends[..3]));
    let keys = "hold_down: 0s, min_backends: 3";
    let proxy = proxy_held(&server, SHORT_INTERVAL, port_of(&backends)?, "readyz", keys)?;
    spans_arrive_eventually(&proxy, &backends[..3]).await?;
    server.resolves(NAME, &ips(&backends[..2]));
    until("it says so", || Ok(proxy.process.log().contains("fewer than min_backends").then_some(())))?;
    spans_arrive(&proxy, &backends[..3]).await.context("the third one stays")?;
    let mut other = ips(&backends);
    let third = other.remove(2);
    server.resolves(NAME, &other);
    has_members(&proxy, 3)?;
    let gone = format!("{third}:");
    until("the third one is removed", || {
        let (_, page) = http_get(&format!("http://{}/api/v1/backends", proxy.admin))?;
        Ok((!page.contains(&gone)).then_some(()))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_good_set_stays_whatever_the_name_server_answers() -> Result<()> {
    let Some(server) = NameServer::start()? else { return Ok(()) };
    let backends = backends(3).await?;
    let (two, port) = (&backends[..2], port_of(&backends)?);
    server.resolves(NAME, &ips(two));
    let proxy = proxy(&server, SHORT_INTERVAL, port, "readyz")?;
    spans_arrive_eventually(&proxy, two).await?;
    let bad = [
        (SERVFAIL, "servfail"),
        (NXDOMAIN, "nxdomain"),
        (Reply::NoData, "empty"),
        (REFUSED, "refused"),
        (Reply::Silence, "timeout"),
    ];
    for (reply, result) in bad {
        let label = format!("result=\"{result}\"");
        let labels = ["family=\"ipv4\"", label.as_str()];
        let heard = || metric(proxy.admin, "spanring_discovery_lookups_total", &labels);
        let before = heard()?;
        server.set_both_replies(NAME, &reply);
        until(&format!("{result} is heard twice"), || Ok((heard()? >= before + 2.0).then_some(())))?;
        has_members(&proxy, 2).context(result)?;
        spans_arrive(&proxy, two).await.context(result)?;
        ensure!(http_get(&format!("http://{}/readyz", proxy.admin))?.0 == 200, "not ready after {result}");
    }
    ensure!(proxy.process.log().contains("the last good set stays"), "the log must say it:\n{}", proxy.process.log());
    server.resolves(NAME, &ips(&backends));
    spans_arrive_eventually(&proxy, &backends).await.context("the next good answer must be used")
}
