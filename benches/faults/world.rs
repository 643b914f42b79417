//! The processes of a scenario: sinks with journals, proxies in front of them, and load.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use spanring::{
    endpoint::Endpoint,
    lifecycle::Tasks,
    ring::{Algorithm, Overlay, Table},
    tools::{
        load::{LoadConfig, LoadRun, Until, run_load},
        otlp_body::{BodySpec, default_traces},
    },
};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::{
    evidence::now,
    harness::{self, Process, Ready, on_free_ports},
    nameserver::{NameServer, loopback},
    network::{self, Node},
    plan::{Build, Load, Place, Plan},
};

/// The sinks' host name at the name server.
const NAME: &str = "collectors.test.";

/// The binary of this build.
const OURS: &str = env!("CARGO_BIN_EXE_spanring");

/// A sink. Its process can be killed and restarted.
pub(crate) struct SinkPlace {
    pub(crate) grpc: SocketAddr,
    http: SocketAddr,
    pub(crate) journal: PathBuf,
    process: Option<Process>,
    node: Option<Node>,
}

/// A proxy.
pub(crate) struct ProxyPlace {
    pub(crate) grpc: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) process: Process,
}

pub(crate) struct World {
    plan: Plan,
    /// Shell commands that run before each proxy, in its process.
    before: String,
    /// The name server that proxies ask for the sinks; without it, sinks are listed in the configuration.
    names: Option<NameServer>,
    pub(crate) sinks: Vec<SinkPlace>,
    pub(crate) proxies: Vec<ProxyPlace>,
    dir: TempDir,
    load: Option<JoinHandle<Result<LoadRun>>>,
    tasks: Tasks,
}

/// Memory for the load's requests, in bytes.
const MAX_BODIES: usize = 64 << 20;

/// A client's connection on which nothing is sent.
pub(crate) type Silent = TcpStream;

/// The resources of a process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Resources {
    pub(crate) rss_kib: u64,
    pub(crate) peak_kib: u64,
    pub(crate) descriptors: usize,
    pub(crate) threads: u64,
}

impl World {
    /// Starts the sinks and the proxies.
    pub(crate) fn start(plan: Plan) -> Result<Self> {
        Self::start_after(plan, plan.ulimit.map_or_else(String::new, |limit| format!("ulimit {limit}")))
    }

    /// Starts the sinks, and the proxies after these commands.
    pub(crate) fn start_after(plan: Plan, before: String) -> Result<Self> {
        let names = match plan.place {
            Place::Named => Some(NameServer::start()?.context("a name server for processes needs root")?),
            Place::Here | Place::Nodes => None,
        };
        let dir = tempfile::tempdir()?;
        let (sinks, proxies) = (Vec::new(), Vec::new());
        let mut world = Self { plan, before, names, sinks, proxies, dir, load: None, tasks: Tasks::new() };
        for n in 0..plan.sinks {
            let place = world.place(n)?;
            world.sinks.push(place);
        }
        world.list(|_| true);
        for n in 0..plan.proxies {
            let (process, [grpc, admin]) = on_free_ports(|[grpc, admin]| {
                let process = world.start_proxy(n, grpc, admin)?;
                Ok((process, Ready::Page(format!("http://{admin}/readyz"))))
            })?;
            world.proxies.push(ProxyPlace { grpc, admin, process });
        }
        Ok(world)
    }

    /// Starts sink number `n` where the plan wants it.
    fn place(&self, n: usize) -> Result<SinkPlace> {
        let journal = self.dir.path().join(format!("sink-{n}.journal"));
        let node = (self.plan.place == Place::Nodes).then(|| Node::add(n)).transpose()?;
        let ip = match (&node, &self.names) {
            (Some(node), _) => node.address()?,
            (None, Some(_)) => loopback().into(),
            (None, None) => IpAddr::from([127, 0, 0, 1]),
        };
        // With a name server, all sinks have the same port and different addresses.
        let port = self.names.as_ref().and_then(|_| Some(self.sinks.first()?.grpc.port()));
        let at = |free: SocketAddr| SocketAddr::new(ip, port.unwrap_or(free.port()));
        let of_page = |free: SocketAddr| SocketAddr::new(node.as_ref().map_or(free.ip(), |_| ip), free.port());
        let (process, [grpc, http]) = on_free_ports(|[grpc, http]| {
            let process = self.start_sink(n, at(grpc), of_page(http), &journal, node.as_ref())?;
            Ok((process, Ready::Listening(vec![at(grpc), of_page(http)])))
        })?;
        Ok(SinkPlace { grpc: at(grpc), http: of_page(http), journal, process: Some(process), node })
    }

    fn start_proxy(&self, n: usize, grpc: SocketAddr, admin: SocketAddr) -> Result<Process> {
        let hostnames: Vec<String> = self.sinks.iter().map(|sink| format!("\"{}\"", sink.grpc)).collect();
        let resolver = match (&self.names, self.sinks.first()) {
            (Some(_), Some(first)) => format!("dns: {{ hostname: {NAME}, port: {} }}", first.grpc.port()),
            _ => format!("static: {{ hostnames: [{}] }}", hostnames.join(", ")),
        };
        let file = self.dir.path().join(format!("proxy-{n}.yaml"));
        let limiter =
            self.plan.limit_mib.map_or_else(String::new, |mib| format!("memory_limiter: {{ limit_mib: {mib} }}"));
        let age = self.plan.age;
        fs::write(
            &file,
            format!(
                "receivers:
  otlp:
    protocols:
      grpc: {{ endpoint: \"{grpc}\", keepalive: {{ server_parameters: {{ max_connection_age: {age} }} }} }}
pools:
  tail: {{ resolver: {{ {resolver} }} }}
routes: [{{ signals: [traces], routing_key: trace_id, pool: tail }}]
{limiter}
admin: {{ endpoint: \"{admin}\" }}
shutdown: {{ delay: 0s, timeout: 10s }}
"
            ),
        )?;
        let binary = match self.plan.build {
            Build::Tested => std::env::var("SPANRING_BIN").unwrap_or_else(|_| OURS.to_owned()),
            Build::Before => std::env::var("SPANRING_BEFORE").context("SPANRING_BEFORE is not set")?,
        };
        let start = format!("{}\nexec \"$@\"", self.before);
        let mut command = self.names.as_ref().map_or_else(|| network::command("sh"), |names| names.command("sh"));
        command.args(["-ec", &start, "sh", &binary, "run", "--config"]).arg(file);
        Process::start(&format!("proxy-{n}"), &mut command)
    }

    fn start_sink(
        &self,
        n: usize,
        grpc: SocketAddr,
        http: SocketAddr,
        journal: &Path,
        node: Option<&Node>,
    ) -> Result<Process> {
        // Sinks always come from this build, since earlier ones lack some behaviours.
        let mut command = node.map_or_else(|| network::command(OURS), |node| node.command(OURS));
        command.args(["sink", "--grpc", &grpc.to_string(), "--http", &http.to_string()]);
        let command =
            if self.plan.journals { command.arg("--journal").arg(journal) } else { command.arg("--count-only") };
        Process::start(&format!("sink-{n}"), command)
    }

    /// Restarts a sink at its old address, with its old journal.
    pub(crate) fn revive(&mut self, n: usize) -> Result<()> {
        let place = self.sinks.get(n).context("no such sink")?;
        let (grpc, address) = (place.grpc, place.http);
        let process = self.start_sink(n, grpc, address, &place.journal, place.node.as_ref())?;
        harness::until("the sink is back", || Ok(TcpStream::connect(address).ok()))?;
        if let Some(place) = self.sinks.get_mut(n) {
            place.process = Some(process);
        }
        Ok(())
    }

    /// The node on which a sink runs.
    pub(crate) fn node(&self, n: usize) -> Result<&Node> {
        self.sinks.get(n).and_then(|place| place.node.as_ref()).context("the sink has no node of its own")
    }

    /// Makes the name server resolve to the sinks that `are_listed` selects.
    pub(crate) fn list(&self, are_listed: impl Fn(usize) -> bool) {
        let listed = self.sinks.iter().enumerate().filter(|(n, _)| are_listed(*n));
        let addresses: Vec<IpAddr> = listed.map(|(_, sink)| sink.grpc.ip()).collect();
        if let Some(names) = &self.names {
            names.resolves(NAME, &addresses);
        }
    }

    /// Kills a sink (kill -9).
    pub(crate) fn kill(&mut self, n: usize) {
        if let Some(place) = self.sinks.get_mut(n) {
            place.process = None;
        }
    }

    /// Sends a signal to a sink, by the signal's name.
    pub(crate) fn signal(&self, n: usize, signal: &str) -> Result<()> {
        let process = self.sinks.get(n).and_then(|place| place.process.as_ref()).context("no such sink")?;
        process.signal(signal)
    }

    /// Sets a sink's behaviour, JSON of [`spanring::tools::sink::Behaviour`].
    pub(crate) fn behave(&self, n: usize, behaviour: &str) -> Result<()> {
        let place = self.sinks.get(n).context("no such sink")?;
        let reply = http(place.http, "PUT", "/behaviour", behaviour)?;
        ensure!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        Ok(())
    }

    /// Number of spans that the sinks received, by their own count.
    pub(crate) fn taken(&self) -> Result<u64> {
        let mut taken = 0;
        for sink in &self.sinks {
            let reply = http(sink.http, "GET", "/report", "")?;
            let body = reply.split_once("\r\n\r\n").context("no HTTP reply")?.1;
            let report: serde_json::Value = serde_json::from_str(body)?;
            let spans = report.pointer("/sinks/0/spans").and_then(serde_json::Value::as_u64);
            taken += spans.context("a report without spans")?;
        }
        Ok(taken)
    }

    fn endpoints(&self, are_members: impl Fn(usize) -> bool) -> Arc<[Endpoint]> {
        let members = self.sinks.iter().enumerate().filter(|(n, _)| are_members(*n));
        let mut endpoints: Vec<Endpoint> =
            members.map(|(_, sink)| Endpoint::new(sink.grpc.to_string(), Some(sink.grpc))).collect();
        endpoints.sort_by(|a, b| a.identity.cmp(&b.identity));
        endpoints.into()
    }

    /// The proxies' table after a sink has left.
    pub(crate) fn table_without(&self, gone: usize) -> Result<Table> {
        Ok(Table::of(1, Algorithm::SlotsV1, &self.endpoints(|n| n != gone))?)
    }

    /// The proxies' table, with the sinks in `away` ejected.
    pub(crate) fn table(&self, away: &[usize]) -> Result<Table> {
        let endpoints = self.endpoints(|_| true);
        let table = Table::of(1, Algorithm::SlotsV1, &endpoints)?;
        if away.is_empty() {
            return Ok(table);
        }
        let identity = |n: &usize| self.sinks.get(*n).and_then(|sink| table.position(&sink.grpc.to_string()));
        let overlay: Overlay = table.base().overlay(&away.iter().filter_map(identity).collect());
        Ok(Table::new(2, Arc::clone(table.base()), overlay, endpoints))
    }

    /// The sink that owns a trace in a table.
    pub(crate) fn sink_of(&self, table: &Table, trace: &[u8]) -> Option<usize> {
        let owner = table.backends().get(table.owner(trace) as usize)?;
        self.sinks.iter().position(|sink| Some(sink.grpc) == owner.address)
    }

    /// Starts the load, which runs until [`World::end`].
    pub(crate) fn load(&mut self, load: Load) {
        let config = LoadConfig {
            endpoints: self.proxies.iter().map(|proxy| proxy.grpc.to_string()).collect(),
            connections: load.connections,
            in_flight: load.in_flight,
            pace: load.pace,
            body: BodySpec {
                seed: now(),
                spans: load.spans,
                traces: default_traces(load.spans),
                unique: load.unique,
                bodies: load.bodies,
                max_bytes: MAX_BODIES,
                ..BodySpec::default()
            },
            until: Until::default(),
            timeouts: load.timeouts.iter().copied().map(Duration::from_secs).collect(),
            retry: load.retry,
            keep_accepted: true,
            ..LoadConfig::default()
        };
        let tasks = self.tasks.clone();
        let run =
            self.tasks.spawn(async move { Ok(run_load(config, &indicatif::ProgressBar::hidden(), &tasks).await?) });
        self.load = Some(run);
    }

    /// Ends the load and waits for its last answers.
    pub(crate) async fn end(&mut self) -> Result<LoadRun> {
        self.tasks.drain();
        let run = self.load.take().context("there is no load")?.await??;
        self.tasks.stop();
        self.tasks = Tasks::new();
        Ok(run)
    }

    /// The lines of a proxy's log.
    pub(crate) fn log(&self, proxy: usize) -> Vec<String> {
        let log = self.proxies.get(proxy).map(|proxy| proxy.process.log()).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Opens this many idle client connections to each proxy.
    pub(crate) fn silent_clients(&self, each: usize) -> Result<Vec<Silent>> {
        let addresses = self.proxies.iter().flat_map(|proxy| std::iter::repeat_n(proxy.grpc, each));
        Ok(addresses.map(TcpStream::connect).collect::<Result<_, _>>()?)
    }

    /// The resources of each proxy.
    pub(crate) fn resources(&self) -> Result<Vec<Resources>> {
        self.proxies.iter().map(|proxy| resources(proxy.process.id())).collect()
    }

    /// Leaves each proxy this many free descriptors, or restores its limit.
    pub(crate) fn limit_descriptors(&self, spare: Option<usize>) -> Result<()> {
        for proxy in &self.proxies {
            let id = proxy.process.id();
            let soft = match spare {
                Some(spare) => (fs::read_dir(format!("/proc/{id}/fd"))?.count() + spare).to_string(),
                None => {
                    let limits = fs::read_to_string(format!("/proc/{id}/limits"))?;
                    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
                    files.and_then(|line| line.split_whitespace().nth(1)).context("no limit of files")?.to_owned()
                }
            };
            let mut command = Command::new("prlimit");
            let limit = command.args(["--pid", &id.to_string(), &format!("--nofile={soft}:")]);
            ensure!(limit.status()?.success(), "prlimit failed");
        }
        Ok(())
    }

    /// Sums a metric over its series and all proxies; `None` if there is no such metric.
    pub(crate) fn metric(&self, name: &str, label: &str) -> Option<f64> {
        let values = self.proxies.iter().filter_map(|proxy| {
            let page = http(proxy.admin, "GET", "/metrics", "").ok()?;
            let series = page.lines().filter(|line| line.starts_with(name) && line.contains(label));
            let values: Vec<f64> = series.filter_map(|line| line.rsplit_once(' ')?.1.parse().ok()).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>())
        });
        values.reduce(|sum, value| sum + value)
    }
}

fn resources(pid: u32) -> Result<Resources> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    Ok(Resources {
        rss_kib: field("VmRSS:"),
        peak_kib: field("VmHWM:"),
        descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
        threads: field("Threads:"),
    })
}

/// Sends one HTTP/1 request and returns the whole reply.
pub(crate) fn http(address: SocketAddr, method: &str, path: &str, body: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len())?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    Ok(reply)
}
