//! A pool changes backends and credentials while it delivers. No backend may see credentials meant for others.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::{Context, Result, ensure};
use spanring::lifecycle::Tasks;
use tokio::task::JoinHandle;

use super::{
    backend::{Backend, SpanKey},
    fixture::keys_of,
    harness::{Proxy, http_get, metric, until},
    nameserver::NameServer,
    reload::reload,
    rig::{self, client, request, span},
    tls::World,
};

/// Clients that send until they are stopped.
struct Load {
    clients: Vec<JoinHandle<Result<BTreeSet<SpanKey>>>>,
    over: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    tasks: Tasks,
}

impl Load {
    async fn start(proxy: &Proxy) -> Result<Self> {
        let (over, answered, tasks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Tasks::new());
        let mut clients = Vec::new();
        for number in 1..=4 {
            let mut client = client(proxy.grpc).await?;
            let (over, answered) = (Arc::clone(&over), Arc::clone(&answered));
            clients.push(tasks.spawn(async move {
                let mut acknowledged = BTreeSet::new();
                for round in 0..u64::MAX {
                    if over.load(Relaxed) {
                        break;
                    }
                    let spans: Vec<_> = (1..20).map(|n| span(u128::from(number << 40 | round << 8 | n), n)).collect();
                    acknowledged.extend(keys_of(&spans));
                    let reply = client.export(request(spans)).await.with_context(|| format!("request {round}"))?;
                    ensure!(reply.into_inner().partial_success.is_none(), "all of request {round} must be taken");
                    answered.fetch_add(1, Relaxed);
                }
                Ok(acknowledged)
            }));
        }
        Ok(Self { clients, over, answered, tasks })
    }

    /// Waits for `more` further answers.
    fn continues(&self, more: u64) -> Result<()> {
        let goal = self.answered.load(Relaxed) + more;
        until("requests are answered", || Ok((self.answered.load(Relaxed) >= goal).then_some(())))
    }

    /// Stops the clients. Checks that no request failed and that these backends received everything.
    async fn stop(self, backends: &[&Backend]) -> Result<()> {
        self.over.store(true, Relaxed);
        for client in self.clients {
            let acknowledged = client.await??;
            let delivered: Vec<_> = backends.iter().map(|backend| backend.delivered()).collect();
            let lost =
                acknowledged.iter().filter(|key| !delivered.iter().any(|spans| spans.contains_key(*key))).count();
            ensure!(lost == 0, "{lost} of {} spans are nowhere", acknowledged.len());
        }
        self.tasks.stop();
        Ok(())
    }
}

fn is_ready(proxy: &Proxy) -> Result<()> {
    let (status, page) = http_get(&format!("http://{}/readyz", proxy.admin))?;
    ensure!(status == 200, "must stay ready: {status} {page}");
    Ok(())
}

fn members(proxy: &Proxy, state: &str) -> Result<f64> {
    metric(proxy.admin, "spanring_ring_members", &[&format!("state=\"{state}\"")])
}

fn bearing(authorizations: &[&str]) -> BTreeSet<String> {
    authorizations.iter().map(|&text| text.to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_reveals_neither_new_credentials_nor_plaintext_to_the_previous_backends() -> Result<()> {
    let world = World::new()?;
    let (before, after) = (Backend::start().await?, Backend::start().await?);
    before.speak(Some(world.backend(&world.good())?));
    let pool = |settings: &str| format!("hold_down: 1s\n    {settings}");
    let old = pool(&format!("{}\n    headers: {{ authorization: old }}", world.pool().trim_end_matches(',')));
    let proxy = Proxy::start("spanring", |grpc, admin| rig::config(grpc, admin, &[before.address], &old, ""))?;
    let load = Load::start(&proxy).await?;
    load.continues(20)?;

    let config = |settings: &str| rig::config(proxy.grpc, proxy.admin, &[after.address], &pool(settings), "");
    reload(&proxy, &config("headers: { authorization: new }"), "success")?;
    until("the new backend takes over", || Ok((after.calls() > 0).then_some(())))?;
    until("the old backend has left", || {
        Ok((members(&proxy, "draining")? == 0.0 && members(&proxy, "active")? == 1.0).then_some(()))
    })?;
    load.continues(20)?;
    ensure!(after.authorizations() == bearing(&["new"]), "{:?}", after.authorizations());

    // The same backend with a new credential gets connections of its own.
    reload(&proxy, &config("headers: { authorization: newer }"), "success")?;
    until("the newest credential is used", || Ok(after.authorizations().contains("newer").then_some(())))?;
    load.continues(20)?;

    ensure!(before.plaintext() == 0, "{} connections to the TLS backend were plaintext", before.plaintext());
    ensure!(before.authorizations() == bearing(&["old"]), "{:?}", before.authorizations());
    ensure!(after.authorizations() == bearing(&["new", "newer"]), "{:?}", after.authorizations());
    load.stop(&[&before, &after]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_do_not_resolve_change_nothing_until_they_do() -> Result<()> {
    let Some(server) = NameServer::start()? else { return Ok(()) };
    let (before, after) = (Backend::start().await?, Backend::start().await?);
    let config = |grpc, admin, hostname: &str, headers: &str| {
        let list = format!("static: {{ hostnames: [\"{hostname}\"], interval: 100ms, timeout: 300ms }}");
        rig::config(grpc, admin, &[], &format!("hold_down: 0s\n    headers: {{ authorization: {headers} }}"), "")
            .replace("static: { hostnames: [] }", &list)
    };
    let command = || server.command(env!("CARGO_BIN_EXE_spanring"));
    let first = before.address.to_string();
    let proxy = Proxy::start_by("spanring", command, "readyz", |grpc, admin| config(grpc, admin, &first, "old"))?;
    let load = Load::start(&proxy).await?;
    load.continues(20)?;

    let named = format!("later.test:{}", after.address.port());
    reload(&proxy, &config(proxy.grpc, proxy.admin, &named, "new"), "success")?;
    let pending = || metric(proxy.admin, "spanring_discovery_change_pending", &["pool=\"tail\""]);
    until("it says that it waits", || {
        let is_logged = proxy.process.log().contains("discovery has no good answer by the new configuration yet");
        Ok((is_logged && pending()? == 1.0).then_some(()))
    })?;
    let asked =
        || metric(proxy.admin, "spanring_discovery_lookups_total", &["family=\"static\"", "result=\"nxdomain\""]);
    let goal = asked()? + 5.0;
    until("the name was asked for again and again", || Ok((asked()? >= goal).then_some(())))?;
    is_ready(&proxy)?;
    load.continues(20)?;
    ensure!(members(&proxy, "active")? == 1.0 && members(&proxy, "unresolved")? == 0.0, "nothing may have changed");
    ensure!(before.authorizations() == bearing(&["old"]), "{:?}", before.authorizations());
    // A header that changes meanwhile applies to the awaited backends too.
    reload(&proxy, &config(proxy.grpc, proxy.admin, &named, "newer"), "success")?;
    load.continues(20)?;
    ensure!(before.authorizations() == bearing(&["old"]) && pending()? == 1.0, "{:?}", before.authorizations());

    server.resolves("later.test.", &[after.address.ip()]);
    until("the change happens", || Ok((after.calls() > 0 && pending()? == 0.0).then_some(())))?;
    load.continues(20)?;
    is_ready(&proxy)?;
    ensure!(after.authorizations() == bearing(&["newer"]), "{:?}", after.authorizations());
    load.stop(&[&before, &after]).await
}
