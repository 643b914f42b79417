//! Tests of the resolver with an API server in the same process.

mod faults;
mod server;

use std::{path::PathBuf, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use self::server::ApiServer;
use super::{Pace, Place, resolve_at, start_at};
use crate::{
    access::Access,
    discovery::{DiscoveryError, Resolvers},
    endpoint::EndpointsReceiver,
    lifecycle::Tasks,
    settings::{IfWritten, KubernetesResolver},
    telemetry::Recorder,
};

/// The longest time for anything that must happen.
const LIMIT: Duration = Duration::from_secs(60);

/// Short waits before retries; watches are long.
const PACE: Pace = Pace {
    watch: Duration::from_secs(60),
    grace: Duration::from_secs(60),
    first_retry: Duration::from_millis(20),
    longest_retry: Duration::from_millis(100),
    shortest: Duration::from_millis(20),
};

/// A resolver and its API server.
struct Rig {
    server: ApiServer,
    resolvers: Resolvers,
    endpoints: EndpointsReceiver,
    recorder: Recorder,
    tasks: Tasks,
    dir: TempDir,
}

fn keys() -> KubernetesResolver {
    let timeout = Duration::from_secs(20);
    KubernetesResolver { service: "collectors.observability".into(), timeout, ..KubernetesResolver::default() }
}

/// Ready endpoints of these addresses, each of a pod of its own.
fn ready(ips: &[&str]) -> Option<Value> {
    let of = |ip: &&str| json!({ "addresses": [ip], "conditions": { "ready": true }, "targetRef": { "uid": ip } });
    Some(ips.iter().map(of).collect())
}

impl Rig {
    /// Starts a resolver for a server with two slices of one endpoint each.
    async fn start(pace: Pace, keys: &KubernetesResolver) -> Self {
        let server = ApiServer::start().await;
        server.put("a", ready(&["10.0.0.1"]));
        server.put("b", ready(&["10.0.0.2"]));
        let dir = tempfile::tempdir().unwrap();
        let config = server.kubeconfig(dir.path(), "http");
        Self::begin(server, dir, config, pace, keys)
    }

    fn begin(server: ApiServer, dir: TempDir, config: PathBuf, pace: Pace, keys: &KubernetesResolver) -> Self {
        let tasks = Tasks::new();
        let (recorder, (resolvers, endpoints)) = Recorder::scoped(|recorder| {
            let (resolvers, endpoints) = Resolvers::new("tail");
            let place = Place::Kubeconfig(config);
            start_at(place, pace, &resolvers, "tail", keys, Access::default(), &tasks).unwrap();
            (recorder.clone(), (resolvers, endpoints))
        });
        Self { server, resolvers, endpoints, recorder, tasks, dir }
    }

    /// The same with the two endpoints published.
    async fn running(pace: Pace) -> Self {
        let mut rig = Self::start(pace, &keys()).await;
        rig.has(&["10.0.0.1:4317", "10.0.0.2:4317"]).await;
        rig
    }

    /// Returns the identities that are published now.
    fn published(&self) -> Vec<String> {
        self.endpoints.borrow().iter().flat_map(|set| set.iter().map(|one| one.identity.to_string())).collect()
    }

    /// Waits until the set is this one. All sets on the way must not be empty.
    async fn has(&mut self, expected: &[&str]) {
        let end = Instant::now() + LIMIT;
        loop {
            let published = self.published();
            if published == expected {
                return;
            }
            assert!(self.endpoints.borrow().as_ref().is_none_or(|set| !set.is_empty()), "an empty set was published");
            let left = end.saturating_duration_since(Instant::now());
            let changed = timeout(left, self.endpoints.changed()).await;
            changed.unwrap_or_else(|_| panic!("{published:?} instead of {expected:?}")).unwrap();
        }
    }

    /// Waits until a condition holds, which nothing announces.
    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = Instant::now() + LIMIT;
        while !holds(self) {
            assert!(Instant::now() < end, "{what} never happened; {}", self.recorder.render());
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Returns the number of answers with this result.
    fn counted(&self, result: &str) -> u64 {
        let series =
            format!("spanring_discovery_lookups_total{{pool=\"tail\",family=\"kubernetes\",result=\"{result}\"}} ");
        let rendered = self.recorder.render();
        let line = rendered.lines().find_map(|line| line.strip_prefix(&series));
        line.unwrap_or_else(|| panic!("no {series} in {rendered}")).parse().unwrap()
    }

    /// Waits until there were more answers with this result than `before`.
    async fn counts(&self, result: &str, before: u64) {
        self.until(&format!("another {result}"), |rig| rig.counted(result) > before).await;
    }
}

#[tokio::test]
async fn changes_are_published_as_they_happen() {
    let mut rig = Rig::running(PACE).await;
    rig.server.put("c", ready(&["10.0.0.3", "10.0.0.4"]));
    rig.has(&["10.0.0.1:4317", "10.0.0.2:4317", "10.0.0.3:4317", "10.0.0.4:4317"]).await;
    rig.server.put("a", ready(&["10.0.0.5"]));
    rig.has(&["10.0.0.2:4317", "10.0.0.3:4317", "10.0.0.4:4317", "10.0.0.5:4317"]).await;
    rig.server.put("c", None);
    rig.has(&["10.0.0.2:4317", "10.0.0.5:4317"]).await;
    assert_eq!((rig.server.requests("limit="), rig.server.requests("watch=1")), (1, 1), "one list and one watch");
}

#[tokio::test]
async fn a_pod_that_ends_is_published_as_draining() {
    let mut rig = Rig::running(PACE).await;
    let ends = json!({ "ready": false, "serving": true, "terminating": true });
    rig.server.put("b", Some(json!([{ "addresses": ["10.0.0.2"], "conditions": ends }])));
    rig.until("draining", |rig| {
        let draining = |set: &crate::endpoint::Endpoints| set.iter().map(|one| one.is_draining).collect::<Vec<_>>();
        rig.endpoints.borrow().as_ref().map(draining) == Some(vec![false, true])
    })
    .await;
    rig.server.put("b", None);
    rig.has(&["10.0.0.1:4317"]).await;
}

#[tokio::test]
async fn an_endpoint_without_readiness_for_a_moment_is_published_so_and_held_by_membership() {
    let mut rig = Rig::running(PACE).await;
    for _ in 0..3 {
        rig.server.put("b", Some(json!([{ "addresses": ["10.0.0.2"], "conditions": { "ready": false } }])));
        rig.has(&["10.0.0.1:4317"]).await;
        rig.server.put("b", ready(&["10.0.0.2"]));
        rig.has(&["10.0.0.1:4317", "10.0.0.2:4317"]).await;
    }
}

#[tokio::test]
async fn pods_that_become_unready_one_after_another_stay_with_the_last_one() {
    let mut rig = Rig::running(PACE).await;
    let unready =
        |ip: &str| Some(json!([{ "addresses": [ip], "conditions": { "ready": false }, "targetRef": { "uid": ip } }]));
    rig.server.put("a", unready("10.0.0.1"));
    rig.has(&["10.0.0.2:4317"]).await;
    rig.server.put("b", unready("10.0.0.2"));
    rig.has(&["10.0.0.1:4317", "10.0.0.2:4317"]).await;
    let missing =
        || rig.endpoints.borrow().iter().flat_map(|set| set.iter().map(|one| one.is_missing)).collect::<Vec<_>>();
    assert_eq!(missing(), [true, false]);
    rig.server.put("b", ready(&["10.0.0.2"]));
    rig.has(&["10.0.0.2:4317"]).await;
}

#[tokio::test]
async fn nothing_is_published_before_the_last_page_of_a_list() {
    let server = ApiServer::start().await;
    for n in 1..=5 {
        server.put(&format!("s{n}"), ready(&[&format!("10.0.0.{n}")]));
    }
    server.script(|script| (script.page, script.holds_pages) = (2, true));
    let dir = tempfile::tempdir().unwrap();
    let config = server.kubeconfig(dir.path(), "http");
    let mut rig = Rig::begin(server, dir, config, PACE, &keys());
    rig.until("the second page is asked for", |rig| rig.server.requests("continue=2") == 1).await;
    assert_eq!(rig.published(), [""; 0]);
    rig.server.script(|script| script.holds_pages = false);
    let all = ["10.0.0.1:4317", "10.0.0.2:4317", "10.0.0.3:4317", "10.0.0.4:4317", "10.0.0.5:4317"];
    rig.has(&all).await;
    assert_eq!(rig.server.requests("continue=4"), 1);

    // The same for a list that takes the place of a set.
    rig.server.script(|script| script.holds_pages = true);
    rig.server.forget();
    rig.server.put("s1", ready(&["10.0.0.9"]));
    rig.until("the second page is asked for again", |rig| rig.server.requests("continue=2") == 2).await;
    assert_eq!(rig.published(), all, "a part of a list must change nothing");
    rig.server.script(|script| script.holds_pages = false);
    rig.has(&["10.0.0.2:4317", "10.0.0.3:4317", "10.0.0.4:4317", "10.0.0.5:4317", "10.0.0.9:4317"]).await;
}

#[tokio::test]
async fn host_names_identify_the_pods_of_a_stateful_set() {
    let mut rig = Rig::start(PACE, &KubernetesResolver { return_hostnames: IfWritten(Some(true)), ..keys() }).await;
    rig.counts("empty", 0).await;
    assert_eq!(rig.published(), [""; 0], "pods without a host name are left out");
    rig.server.put("b", Some(json!([{ "addresses": ["10.0.0.2"], "hostname": "c-0" }])));
    rig.has(&["c-0.collectors.observability:4317"]).await;
    rig.server.put("b", Some(json!([{ "addresses": ["10.0.0.7"], "hostname": "c-0" }])));
    let address = || rig.endpoints.borrow().as_ref().and_then(|set| set.first()?.address);
    rig.until("the new address", |_| address() == Some("10.0.0.7:4317".parse().unwrap())).await;
}

#[tokio::test]
async fn a_service_without_a_namespace_is_that_of_the_context() {
    let mut rig = Rig::start(PACE, &KubernetesResolver { service: "collectors".into(), ..keys() }).await;
    rig.has(&["10.0.0.1:4317", "10.0.0.2:4317"]).await;
}

#[tokio::test]
async fn asked_once_it_returns_the_set_or_the_reason() {
    let server = ApiServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let place = || Place::Kubeconfig(server.kubeconfig(dir.path(), "http"));
    let asked = || async { resolve_at(place(), &keys(), LIMIT).await };
    let reason = |error: DiscoveryError| error.to_string();
    let empty = asked().await.map_err(reason).unwrap_err();
    assert!(empty.starts_with("cannot resolve \"collectors.observability\": the Service has no endpoint"), "{empty}");
    server.put("a", ready(&["10.0.0.1"]));
    assert_eq!(asked().await.unwrap().len(), 1);
    server.script(|script| script.refuse = Some((403, "forbidden: no")));
    let denied = asked().await.map_err(reason).unwrap_err();
    assert!(denied.ends_with("denied by the API server (403): forbidden: no"), "{denied}");
}

#[tokio::test]
async fn everything_ends_with_the_pool() {
    let rig = Rig::running(PACE).await;
    rig.until("the watch", |rig| rig.server.requests("watch=1") == 1).await;
    assert!(!rig.tasks.is_empty());
    rig.tasks.stop();
    timeout(LIMIT, rig.tasks.wait()).await.expect("the task and its connections must end");

    let Rig { endpoints, tasks, server: _server, dir: _dir, .. } = Rig::running(PACE).await;
    drop(endpoints);
    timeout(LIMIT, tasks.wait()).await.expect("without receivers too");
}
