//! Tests of the `k8s` resolver with a real API server: 1,000 endpoints in 10 slices, and what goes wrong on the way to
//! them. `tests/peers/kubernetes.sh` installs the API server.
//!
//! There are no controllers: the test writes the EndpointSlices itself. The proxy uses the token of a service account
//! with the Role that `deploy/` has for it.

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use spanring::lifecycle::Tasks;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::{
    harness::{self, Process, Proxy, Ready, http_get, metric, peer, until},
    memory::beside::Memory,
};

/// The namespace of everything.
const NAMESPACE: &str = "observability";

/// The backends: as many as the Service has in a large cluster, in slices of the usual size.
const SLICES: usize = 10;
const SLICE_SIZE: usize = 100;

/// The most memory of an idle proxy, in MiB, without the pages of the binary's file, of which a debug build has many.
const MOST_IDLE_MIB: u64 = 14;

/// An API server and its store. Both end with the test.
struct Cluster {
    apiserver: Process,
    _etcd: Process,
    programs: Programs,
    address: SocketAddr,
    store: SocketAddr,
    dir: tempfile::TempDir,
}

#[derive(Clone)]
struct Programs {
    apiserver: PathBuf,
    etcd: PathBuf,
    kubectl: PathBuf,
}

impl Cluster {
    /// Starts an API server with a service account that may read EndpointSlices; `None` if it is not installed.
    fn start() -> Result<Option<Self>> {
        let (Some(apiserver), Some(etcd), Some(kubectl)) = (peer("kube-apiserver")?, peer("etcd")?, peer("kubectl")?)
        else {
            return Ok(None);
        };
        let programs = Programs { apiserver, etcd, kubectl };
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("tokens.csv"), "admin-of-a-test,admin,admin,\"system:masters\"\n")?;
        // The server reads no public key from a private one in this format.
        let key = rcgen::KeyPair::generate()?;
        fs::write(dir.path().join("accounts.key"), key.serialize_pem())?;
        fs::write(dir.path().join("accounts.pub"), key.public_key_pem())?;
        let (store, [clients, _]) = harness::on_free_ports(|[clients, peers]| {
            let [clients_url, peers_url] = [clients, peers].map(|address| format!("http://{address}"));
            let mut command = Command::new(&programs.etcd);
            command.arg("--data-dir").arg(dir.path().join("etcd")).args(["--unsafe-no-fsync", "--log-level=error"]);
            command.args(["--listen-client-urls", &clients_url, "--advertise-client-urls", &clients_url]);
            command.args(["--listen-peer-urls", &peers_url, "--initial-advertise-peer-urls", &peers_url]);
            command.args(["--initial-cluster", &format!("default={peers_url}")]);
            Ok((Process::start("etcd", &mut command)?, Ready::Page(format!("{clients_url}/health"))))
        })?;
        let (apiserver, [address]) = harness::on_free_ports(|[address]| {
            Ok((serve(&programs, dir.path(), clients, address)?, Ready::Listening(vec![address])))
        })?;
        let cluster = Self { apiserver, _etcd: store, programs, address, store: clients, dir };
        cluster.is_ready()?;
        cluster.kubectl(&["create", "namespace", NAMESPACE], None)?;
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes");
        for file in ["proxy/serviceaccount.yaml", "overlays/endpointslices/rbac.yaml"] {
            cluster.kubectl(&["apply", "-f", &deploy.join(file).display().to_string()], None)?;
        }
        Ok(Some(cluster))
    }

    fn is_ready(&self) -> Result<()> {
        until("the API server is ready", || Ok(self.kubectl(&["get", "--raw", "/readyz"], None).ok()))?;
        Ok(())
    }

    /// Kills the API server. Its store stays.
    fn kill(&mut self) -> Result<()> {
        self.apiserver.signal("KILL")?;
        self.apiserver.wait()?;
        Ok(())
    }

    /// Starts the API server again at the same address.
    fn start_again(&mut self) -> Result<()> {
        self.apiserver = serve(&self.programs, self.dir.path(), self.store, self.address)?;
        self.is_ready()
    }

    /// Runs kubectl as an administrator, with `input` if there is any, and returns what it prints.
    fn kubectl(&self, arguments: &[&str], input: Option<&Value>) -> Result<String> {
        let mut command = Command::new(&self.programs.kubectl);
        command.args(["--server", &format!("https://{}", self.address), "--token=admin-of-a-test"]);
        command.arg("--certificate-authority").arg(self.authority()).arg("--cache-dir").arg(self.dir.path());
        command.args(["--namespace", NAMESPACE]).args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().context("no input")?;
        if let Some(input) = input {
            stdin.write_all(input.to_string().as_bytes())?;
        }
        drop(stdin);
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    fn authority(&self) -> PathBuf {
        self.dir.path().join("certs/apiserver.crt")
    }

    /// Writes these slices.
    fn put(&self, slices: Vec<Value>) -> Result<()> {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": slices });
        self.kubectl(&["apply", "-f", "-"], Some(&list)).map(drop)
    }

    /// Writes a kubeconfig with the token of the service account, for a server at `address`.
    fn kubeconfig(&self, address: SocketAddr) -> Result<PathBuf> {
        let token = self.dir.path().join("token");
        fs::write(&token, self.kubectl(&["create", "token", "spanring"], None)?.trim())?;
        let of = |key: &str, value: Value| json!([{ "name": "test", key: value }]);
        let server = format!("https://{address}");
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": of("cluster", json!({ "server": server, "certificate-authority": self.authority() })),
            "users": of("user", json!({ "tokenFile": token })),
            "contexts": of("context", json!({ "cluster": "test", "user": "test", "namespace": NAMESPACE })),
        });
        let path = self.dir.path().join("kubeconfig");
        fs::write(&path, config.to_string())?;
        Ok(path)
    }
}

/// Starts kube-apiserver.
fn serve(programs: &Programs, dir: &Path, store: SocketAddr, address: SocketAddr) -> Result<Process> {
    let mut command = Command::new(&programs.apiserver);
    command.arg("--cert-dir").arg(dir.join("certs")).arg("--token-auth-file").arg(dir.join("tokens.csv"));
    command.arg("--service-account-key-file").arg(dir.join("accounts.pub"));
    command.arg("--service-account-signing-key-file").arg(dir.join("accounts.key"));
    command.args([
        &format!("--etcd-servers=http://{store}"),
        &format!("--secure-port={}", address.port()),
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--authorization-mode=RBAC",
        "--disable-admission-plugins=ServiceAccount",
        "--endpoint-reconciler-type=none",
    ]);
    Process::start("kube-apiserver", &mut command)
}

/// Returns slice `n` of `count` endpoints. `change` gets each endpoint and its number in the slice.
fn slice(n: usize, count: usize, change: impl Fn(usize, &mut Value)) -> Value {
    let endpoint = |number: usize| {
        let pod = format!("c-{}", n * SLICE_SIZE + number);
        let mut endpoint = json!({
            "addresses": [format!("10.1.{n}.{}", number + 1)],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "hostname": pod,
            "targetRef": { "kind": "Pod", "namespace": NAMESPACE, "name": pod, "uid": format!("uid-{pod}") },
        });
        change(number, &mut endpoint);
        endpoint
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "name": format!("collectors-{n}"), "labels": { "kubernetes.io/service-name": "collectors" } },
        "addressType": "IPv4",
        "ports": [{ "name": "otlp-grpc", "port": 4317, "protocol": "TCP" }],
        "endpoints": (0..count).map(endpoint).collect::<Vec<_>>(),
    })
}

fn as_it_is(_: usize, _: &mut Value) {}

/// Passes connections on to the API server, unless it is closed.
struct Relay {
    address: SocketAddr,
    is_open: watch::Sender<bool>,
    tasks: Tasks,
}

impl Relay {
    async fn start(to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, tasks, is_open) = (listener.local_addr()?, Tasks::new(), watch::Sender::new(true));
        let (connections, open) = (tasks.clone(), is_open.subscribe());
        tasks.spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut open = open.clone();
                connections.spawn(async move {
                    if !*open.borrow_and_update() {
                        return;
                    }
                    let Ok(mut server) = TcpStream::connect(to).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = open.wait_for(|is_open| !*is_open) => {}
                    }
                });
            }
        });
        Ok(Self { address, is_open, tasks })
    }

    /// Cuts all connections, and refuses new ones while it is closed.
    fn close(&self) {
        self.is_open.send_replace(false);
    }

    fn open(&self) {
        self.is_open.send_replace(true);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// Starts a proxy that reads the slices through this address.
fn proxy(cluster: &Cluster, through: SocketAddr, hold_down: &str) -> Result<Proxy> {
    let kubeconfig = cluster.kubeconfig(through)?;
    let command = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spanring"));
        command.env("KUBECONFIG", &kubeconfig);
        command
    };
    Proxy::start_by("spanring", command, "readyz", |grpc, admin| {
        format!(
            "receivers: {{ otlp: {{ protocols: {{ grpc: {{ endpoint: {grpc} }} }} }} }}
pools:
  tail:
    resolver: {{ kubernetes: {{ service: collectors, ports: [4317], timeout: 10s, return_hostnames: true }} }}
    hold_down: {hold_down}
routes: [{{ signals: [traces], routing_key: trace_id, pool: tail }}]
admin: {{ endpoint: {admin} }}
"
        )
    })
}

/// What the proxy says about itself.
struct View<'a>(&'a Proxy);

impl View<'_> {
    fn members(&self) -> Result<f64> {
        metric(self.0.admin, "spanring_ring_members", &[])
    }

    fn changes(&self) -> Result<f64> {
        metric(self.0.admin, "spanring_ring_changes_total", &[])
    }

    fn answers(&self, result: &str) -> Result<f64> {
        metric(self.0.admin, "spanring_discovery_lookups_total", &[&format!("result=\"{result}\"")])
    }

    /// Waits until discovery reports as many backends. On the way the ring must have at least `least`.
    fn has(&self, endpoints: usize, least: usize) -> Result<()> {
        until(&format!("{endpoints} endpoints are known"), || {
            let members = self.members()?;
            ensure!(members >= least as f64, "the ring has {members} members");
            let known = metric(self.0.admin, "spanring_discovery_endpoints", &[])?;
            Ok((known == endpoints as f64 && members >= endpoints as f64).then_some(()))
        })
    }

    /// Waits until there was another answer with this result. Meanwhile all members must stay.
    fn another(&self, result: &str, members: usize) -> Result<()> {
        let before = self.answers(result)?;
        until(&format!("another answer is {result}"), || {
            ensure!(self.members()? == members as f64, "members were lost");
            Ok((self.answers(result)? > before).then_some(()))
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_endpoints_stay_through_all_that_can_happen_to_the_api_server() -> Result<()> {
    let Some(mut cluster) = Cluster::start()? else { return Ok(()) };
    let full = |n: usize| slice(n, SLICE_SIZE, as_it_is);
    cluster.put((0..SLICES).map(full).collect())?;
    let relay = Relay::start(cluster.address).await?;
    let proxy = proxy(&cluster, relay.address, "5s")?;
    let (view, all) = (View(&proxy), SLICES * SLICE_SIZE);
    ensure!(view.members()? == all as f64, "a proxy that is ready must have the whole set");
    let backends = http_get(&format!("http://{}/api/v1/backends", proxy.admin))?.1;
    ensure!(backends.contains("c-999.collectors.observability:4317"), "{backends}");

    // A readiness that flaps within the hold-down moves nothing.
    let before = view.changes()?;
    for _ in 0..3 {
        let not_ready = |number: usize, endpoint: &mut Value| {
            if number == 7 {
                endpoint["conditions"] = json!({ "ready": false, "serving": false });
            }
        };
        cluster.put(vec![slice(0, SLICE_SIZE, not_ready)])?;
        view.has(all - 1, all)?;
        cluster.put(vec![full(0)])?;
        view.has(all, all)?;
    }
    let after = view.changes()?;
    ensure!(before == after, "{} changes by a readiness that flaps", after - before);

    // Partition: the set stays, and what has changed meanwhile arrives.
    relay.close();
    view.another("error", all)?;
    cluster.put(vec![slice(SLICES, 1, as_it_is)])?;
    view.another("error", all)?;
    relay.open();
    view.has(all + 1, all)?;

    // A token that is denied. Watches that are open are not checked again, so they are cut.
    cluster.kubectl(&["delete", "rolebinding", "spanring"], None)?;
    until("the API server knows that the binding is gone", || {
        let account = format!("system:serviceaccount:{NAMESPACE}:spanring");
        // It says "no" with an exit code of 1.
        let can =
            cluster.kubectl(&["auth", "can-i", "list", "endpointslices.discovery.k8s.io", "--as", &account], None);
        Ok(can.is_err().then_some(()))
    })?;
    relay.close();
    view.another("error", all + 1)?;
    relay.open();
    view.another("denied", all + 1)?;
    let (status, page) = http_get(&format!("http://{}/readyz?verbose", proxy.admin))?;
    ensure!(status == 200, "a proxy with backends is ready: {page}");
    ensure!(page.contains("denied by the API server (403)"), "an operator must see why discovery fails: {page}");
    cluster.put(vec![slice(SLICES, 2, as_it_is)])?;
    let rbac = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes/overlays/endpointslices/rbac.yaml");
    cluster.kubectl(&["apply", "-f", &rbac.display().to_string()], None)?;
    view.has(all + 2, all + 1)?;

    // The API server is down; once it is back, it has forgotten the changes (410), so that all is listed again.
    relay.close();
    cluster.kill()?;
    view.another("error", all + 2)?;
    cluster.start_again()?;
    cluster.put(vec![slice(SLICES, 3, as_it_is)])?;
    let expired = view.answers("expired")?;
    relay.open();
    view.has(all + 3, all + 2)?;
    ensure!(view.answers("expired")? > expired, "a list must have been necessary");

    // All slices go: the last set stays.
    cluster.kubectl(&["delete", "endpointslices", "--all"], None)?;
    until("the empty Service is noticed", || Ok((view.answers("empty")? > 0.0).then_some(())))?;
    ensure!(view.members()? >= 1.0, "the ring was emptied");
    cluster.put((0..SLICES).map(full).collect())?;
    view.has(all, 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_without_permission_says_so_and_an_idle_one_needs_little_memory() -> Result<()> {
    let Some(cluster) = Cluster::start()? else { return Ok(()) };
    cluster.put(vec![slice(0, 3, as_it_is)])?;
    cluster.kubectl(&["delete", "rolebinding", "spanring"], None)?;
    let kubeconfig = cluster.kubeconfig(cluster.address)?;
    let command = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spanring"));
        command.env("KUBECONFIG", &kubeconfig);
        command
    };
    let proxy = Proxy::start_by("spanring", command, "livez", |grpc, admin| {
        format!(
            "receivers: {{ otlp: {{ protocols: {{ grpc: {{ endpoint: {grpc} }} }} }} }}
pools: {{ tail: {{ resolver: {{ k8s: {{ service: collectors.observability, timeout: 10s }} }} }} }}
routes: [{{ signals: [traces], routing_key: trace_id, pool: tail }}]
admin: {{ endpoint: {admin} }}
"
        )
    })?;
    let page = until("the reason is shown", || {
        let (status, page) = http_get(&format!("http://{}/readyz?verbose", proxy.admin))?;
        ensure!(status == 503, "{page}");
        Ok(page.contains("denied by the API server (403)").then_some(page))
    })?;
    ensure!(page.contains("cannot list resource \"endpointslices\""), "{page}");
    let rbac = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes/overlays/endpointslices/rbac.yaml");
    cluster.kubectl(&["apply", "-f", &rbac.display().to_string()], None)?;
    View(&proxy).has(3, 0)?;
    let memory = Memory::of(proxy.process.id())?;
    ensure!(memory.own_mib() <= MOST_IDLE_MIB, "{} MiB", memory.own_mib());
    Ok(())
}
