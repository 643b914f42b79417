//! Tests of the `srv` resolver with the binary and a name server on port 53: backends are identified by the names of SRV
//! records.
//!
//! The tests need root. They print a line when they are skipped, and must not be skipped in CI (see
//! [`NameServer::start`]).

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::{Context, Result, ensure};
use hickory_proto::rr::RecordType;
use spanring::{
    endpoint::Endpoint,
    ring::{Algorithm, Table},
};
use tokio::time::{Instant, sleep};

use super::{
    backend::Backend,
    harness::{POLL_INTERVAL, Proxy, TIME_LIMIT, http_get, metric, until},
    nameserver::{NameServer, Reply, Target, loopback},
    rig::{client, request, span},
};

const NAME: &str = "_otlp-grpc._tcp.collectors.test.";

/// The collectors of a StatefulSet, and the name server that lists them.
struct Collectors {
    server: NameServer,
    backends: Vec<Backend>,
}

impl Collectors {
    /// Lists the collectors with these numbers. Each gets 100 ÷ n as its weight, as CoreDNS does it.
    fn list(&self, numbers: &[usize]) -> Result<()> {
        let weight = u16::try_from(100 / numbers.len())?;
        let target = |number: &usize| Target {
            name: format!("collector-{number}.collectors.test."),
            weight,
            address: self.backends[*number].address,
        };
        self.server.set_reply(NAME, RecordType::SRV, Reply::Services(numbers.iter().map(target).collect()));
        Ok(())
    }

    fn identity(&self, number: usize) -> String {
        // All collectors listen on the same port.
        format!("collector-{number}.collectors.test:{}", self.backends[0].address.port())
    }

    /// Returns the table of all collectors by their names.
    fn table(&self) -> Result<Table> {
        let endpoint = |number| Endpoint::new(self.identity(number), Some(self.backends[number].address));
        let endpoints: Vec<Endpoint> = (0..self.backends.len()).map(endpoint).collect();
        Ok(Table::of(1, Algorithm::SlotsV1, &Arc::from(endpoints))?)
    }

    /// Sends spans of many traces. Checks that those of collectors that are up arrive at their owners, and those of
    /// `down` at another one.
    async fn only_its_traces_moved(&self, proxy: &Proxy, down: Option<usize>) -> Result<()> {
        static TRACES: AtomicU64 = AtomicU64::new(1);
        let table = self.table()?;
        let first = TRACES.fetch_add(100, Relaxed);
        let spans: Vec<_> = (0..100).map(|n| span(u128::from(first + n), 1)).collect();
        let reply = client(proxy.grpc).await?.export(request(spans.clone())).await?.into_inner();
        ensure!(reply.partial_success.is_none(), "{reply:?}");
        let delivered: Vec<_> = self.backends.iter().map(Backend::delivered).collect();
        for span in spans {
            let owner = table.owner(&span.trace_id) as usize;
            let key = (span.trace_id, span.span_id);
            let at: Vec<usize> = (0..delivered.len()).filter(|number| delivered[*number].contains_key(&key)).collect();
            match down {
                Some(down) if down == owner => ensure!(at.len() == 1 && at != [down], "{key:?} is at {at:?}"),
                _ => ensure!(at == [owner], "{key:?} went to {at:?} and belongs to {owner}, which is up"),
            }
        }
        Ok(())
    }

    /// The same, repeated until the proxy uses a table that was published a moment ago.
    async fn only_its_traces_moved_eventually(&self, proxy: &Proxy, down: Option<usize>) -> Result<()> {
        let end = Instant::now() + TIME_LIMIT;
        while let Err(error) = self.only_its_traces_moved(proxy, down).await {
            ensure!(Instant::now() < end, "{error:#}");
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }
}

/// Starts a proxy that finds its backends by `resolver`, and waits until `page` answers 200.
fn proxy(server: &NameServer, page: &str, resolver: impl Fn(SocketAddr) -> String) -> Result<Proxy> {
    let command = || server.command(env!("CARGO_BIN_EXE_spanring"));
    Proxy::start_by("spanring", command, page, |grpc, admin| {
        format!(
            "receivers: {{ otlp: {{ protocols: {{ grpc: {{ endpoint: {grpc} }} }} }} }}
pools:
  tail: {{ hold_down: 1s, ring: {{ handoff: {{ mode: immediate }} }}, resolver: {} }}
routes: [{{ signals: [traces], routing_key: trace_id, pool: tail }}]
admin: {{ endpoint: {admin} }}
",
            resolver(grpc)
        )
    })
}

fn srv(_: SocketAddr) -> String {
    "{ srv: { hostname: _otlp-grpc._tcp.collectors.test, interval: 100ms, timeout: 1s } }".to_owned()
}

fn members(proxy: &Proxy, state: &str) -> Result<f64> {
    metric(proxy.admin, "spanring_ring_members", &[&format!("state=\"{state}\"")])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_with_stable_names_moves_no_trace_of_a_backend_that_is_up() -> Result<()> {
    let Some(server) = NameServer::start()? else { return Ok(()) };
    let first = Backend::start_at((loopback(), 0).into()).await?;
    let port = first.address.port();
    let mut collectors = Collectors { server, backends: vec![first] };
    for _ in 1..3 {
        collectors.backends.push(Backend::start_at((loopback(), port).into()).await?);
    }
    collectors.list(&[0, 1, 2])?;
    let proxy = proxy(&collectors.server, "readyz", srv)?;
    collectors.only_its_traces_moved_eventually(&proxy, None).await?;
    let fingerprint = |name: &str| metric(proxy.admin, name, &[]);
    let (ring, placement) = ("spanring_ring_fingerprint", "spanring_ring_placement_fingerprint");
    let before = (fingerprint(ring)?, fingerprint(placement)?);
    for (down, fails_first) in [(2, true), (1, false), (0, true)] {
        let others: Vec<usize> = (0..3).filter(|number| *number != down).collect();
        if fails_first {
            collectors.backends[down].crash().await;
            collectors.only_its_traces_moved_eventually(&proxy, Some(down)).await?;
            ensure!(members(&proxy, "ejected")? == 1.0, "it must be ejected before discovery says so");
            collectors.list(&others)?;
            let rounds = || metric(proxy.admin, "spanring_discovery_lookups_total", &["srv\"", "success"]);
            let end = rounds()? + 20.0;
            until("discovery has said so for longer than hold_down", || Ok((rounds()? >= end).then_some(())))?;
        } else {
            collectors.list(&others)?;
            until("it is held", || Ok((members(&proxy, "draining")? == 1.0).then_some(())))?;
            until("others have its traces", || Ok((fingerprint(placement)? != before.1).then_some(())))?;
            collectors.backends[down].crash().await;
        }
        collectors.only_its_traces_moved_eventually(&proxy, Some(down)).await?;
        collectors.only_its_traces_moved(&proxy, Some(down)).await?;
        ensure!(fingerprint(ring)? == before.0, "it must stay a member");
        collectors.backends[down] = Backend::start_at((loopback(), port).into()).await?;
        collectors.list(&[0, 1, 2])?;
        until("it is back", || Ok((members(&proxy, "active")? == 3.0).then_some(())))?;
        collectors.only_its_traces_moved_eventually(&proxy, None).await?;
        ensure!((fingerprint(ring)?, fingerprint(placement)?) == before, "all must be as before");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_is_no_backend_of_its_own_pool() -> Result<()> {
    let Some(server) = NameServer::start()? else { return Ok(()) };
    let collectors = Collectors { server, backends: vec![Backend::start_at((loopback(), 0).into()).await?] };
    let proxy = proxy(&collectors.server, "livez", srv)?;
    let target = |name: &str, address| Target { name: format!("{name}.test."), weight: 1, address };
    let own = target("proxy", proxy.grpc);
    collectors.server.set_reply(NAME, RecordType::SRV, Reply::Services(vec![own.clone()]));
    until("it says so", || Ok(proxy.process.log().contains("leaves out this proxy itself").then_some(())))?;
    ensure!(http_get(&format!("http://{}/readyz", proxy.admin))?.0 == 503, "it has no backend");
    let both = vec![own, target("collector", collectors.backends[0].address)];
    collectors.server.set_reply(NAME, RecordType::SRV, Reply::Services(both));
    until("it is ready", || Ok((http_get(&format!("http://{}/readyz", proxy.admin))?.0 == 200).then_some(())))?;
    ensure!(metric(proxy.admin, "spanring_discovery_endpoints", &[])? == 1.0, "it must not be a member");
    client(proxy.grpc).await?.export(request(vec![span(1, 1)])).await.context("the other one serves")?;
    Ok(())
}
