//! The processes of a scenario: sinks that keep journals, proxies before them, load in front.

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
    discovery::Endpoint,
    lifecycle::Tasks,
    ring::{Algorithm, Overlay, Table},
    tools::{
        load::{LoadConfig, LoadRun, Pace, Until, run_load},
        otlp_body::BodySpec,
    },
};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::{
    harness::{self, Process, Ready, on_free_ports},
    nameserver::{NameServer, loopback},
};

/// Proxies of a scenario.
const PROXIES: usize = 3;

/// Connections of the load: each bears 100 requests at a time, and requests wait for seconds while a backend hangs.
const CONNECTIONS: usize = 60;

/// What the sinks are called where proxies ask a name server for them.
const NAME: &str = "collectors.test.";

/// Budget of each proxy, in MiB.
pub(crate) const BUDGET_MIB: u64 = 128;

/// A sink's place in the world: its process comes and goes.
pub(crate) struct SinkPlace {
    pub(crate) grpc: SocketAddr,
    http: SocketAddr,
    pub(crate) journal: PathBuf,
    process: Option<Process>,
}

/// A proxy.
pub(crate) struct ProxyPlace {
    pub(crate) grpc: SocketAddr,
    pub(crate) admin: SocketAddr,
    process: Process,
}

pub(crate) struct World {
    /// Whom proxies ask for the sinks; without it they are listed in the configuration.
    names: Option<NameServer>,
    pub(crate) sinks: Vec<SinkPlace>,
    pub(crate) proxies: Vec<ProxyPlace>,
    dir: TempDir,
    binary: PathBuf,
    tasks: Tasks,
}

/// What to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Requests of 100 spans a second: an open loop.
    pub(crate) rate: f64,
    pub(crate) retry: bool,
    pub(crate) seed: u64,
}

/// A client's connection on which nothing is ever sent.
pub(crate) type Silent = TcpStream;

/// What a process holds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Held {
    pub(crate) rss_kib: u64,
    pub(crate) peak_kib: u64,
    pub(crate) descriptors: usize,
    pub(crate) threads: u64,
}

impl World {
    /// Starts so many sinks and the proxies; `pool` has more keys of the pool, each followed by a comma.
    pub(crate) fn start(sinks: usize, pool: &str) -> Result<Self> {
        Self::start_by(None, sinks, pool)
    }

    /// The same with a name server of which proxies hear of the sinks. Needs root.
    pub(crate) fn start_with_names(sinks: usize) -> Result<Self> {
        let names = NameServer::start()?.context("a name server for processes needs root")?;
        Self::start_by(Some(names), sinks, "")
    }

    fn start_by(names: Option<NameServer>, sinks: usize, pool: &str) -> Result<Self> {
        let binary = std::env::var_os("SPANRING_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_spanring").into()).into();
        let dir = tempfile::tempdir()?;
        let mut world = Self { names, sinks: Vec::new(), proxies: Vec::new(), dir, binary, tasks: Tasks::new() };
        for n in 0..sinks {
            let journal = world.dir.path().join(format!("sink-{n}.journal"));
            // By names all sinks have one port, and each an address of its own.
            let port = world.names.as_ref().and_then(|_| Some(world.sinks.first()?.grpc.port()));
            let ip = if world.names.is_some() { loopback().into() } else { IpAddr::from([127, 0, 0, 1]) };
            let at = |free: SocketAddr| SocketAddr::new(ip, port.unwrap_or(free.port()));
            let (process, [grpc, http]) = on_free_ports(|[grpc, http]| {
                let process = world.start_sink(n, at(grpc), http, &journal)?;
                Ok((process, Ready::Listening(vec![at(grpc), http])))
            })?;
            world.sinks.push(SinkPlace { grpc: at(grpc), http, journal, process: Some(process) });
        }
        world.list(|_| true);
        for n in 0..PROXIES {
            let (process, [grpc, admin]) = on_free_ports(|[grpc, admin]| {
                let process = world.start_proxy(n, grpc, admin, pool)?;
                Ok((process, Ready::Page(format!("http://{admin}/readyz"))))
            })?;
            world.proxies.push(ProxyPlace { grpc, admin, process });
        }
        Ok(world)
    }

    fn start_proxy(&self, n: usize, grpc: SocketAddr, admin: SocketAddr, pool: &str) -> Result<Process> {
        let hostnames: Vec<String> = self.sinks.iter().map(|sink| format!("\"{}\"", sink.grpc)).collect();
        let resolver = match (&self.names, self.sinks.first()) {
            (Some(_), Some(first)) => format!("dns: {{ hostname: {NAME}, port: {} }}", first.grpc.port()),
            _ => format!("static: {{ hostnames: [{}] }}", hostnames.join(", ")),
        };
        let file = self.dir.path().join(format!("proxy-{n}.yaml"));
        fs::write(
            &file,
            format!(
                "receivers: {{ otlp: {{ protocols: {{ grpc: {{ endpoint: \"{grpc}\" }} }} }} }}
pools:
  tail: {{ {pool} resolver: {{ {resolver} }} }}
routes: [{{ signals: [traces], routing_key: trace_id, pool: tail }}]
memory_limiter: {{ limit_mib: {BUDGET_MIB} }}
admin: {{ endpoint: \"{admin}\" }}
shutdown: {{ delay: 0s, timeout: 10s }}
"
            ),
        )?;
        let binary = self.binary.to_str().context("the binary's path is not UTF-8")?;
        let mut command = self.names.as_ref().map_or_else(|| Command::new(binary), |names| names.command(binary));
        Process::start(&format!("proxy-{n}"), command.arg("run").arg("--config").arg(file))
    }

    fn start_sink(&self, n: usize, grpc: SocketAddr, http: SocketAddr, journal: &Path) -> Result<Process> {
        let mut command = Command::new(&self.binary);
        command.args(["sink", "--grpc", &grpc.to_string(), "--http", &http.to_string(), "--journal"]);
        Process::start(&format!("sink-{n}"), command.arg(journal))
    }

    /// Starts a sink where it was; its journal goes on.
    pub(crate) fn revive(&mut self, n: usize) -> Result<()> {
        let place = self.sinks.get(n).context("no such sink")?;
        let (grpc, address) = (place.grpc, place.http);
        let process = self.start_sink(n, grpc, address, &place.journal)?;
        harness::until("the sink is back", || Ok(TcpStream::connect(address).ok()))?;
        if let Some(place) = self.sinks.get_mut(n) {
            place.process = Some(process);
        }
        Ok(())
    }

    /// From now on names resolve to the sinks that `are_listed`.
    pub(crate) fn list(&self, are_listed: impl Fn(usize) -> bool) {
        let listed = self.sinks.iter().enumerate().filter(|(n, _)| are_listed(*n));
        let addresses: Vec<IpAddr> = listed.map(|(_, sink)| sink.grpc.ip()).collect();
        if let Some(names) = &self.names {
            names.resolves(NAME, &addresses);
        }
    }

    /// kill -9.
    pub(crate) fn kill(&mut self, n: usize) {
        if let Some(place) = self.sinks.get_mut(n) {
            place.process = None;
        }
    }

    /// Sends a sink a signal by its name.
    pub(crate) fn signal(&self, n: usize, signal: &str) -> Result<()> {
        let process = self.sinks.get(n).and_then(|place| place.process.as_ref()).context("no such sink")?;
        process.signal(signal)
    }

    /// Tells a sink how to behave: JSON of [`spanring::tools::sink::Behaviour`].
    pub(crate) fn behave(&self, n: usize, behaviour: &str) -> Result<()> {
        let place = self.sinks.get(n).context("no such sink")?;
        let reply = http(place.http, "PUT", "/behaviour", behaviour)?;
        ensure!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        Ok(())
    }

    fn endpoints(&self, are_members: impl Fn(usize) -> bool) -> Arc<[Endpoint]> {
        let members = self.sinks.iter().enumerate().filter(|(n, _)| are_members(*n));
        let mut endpoints: Vec<Endpoint> =
            members.map(|(_, sink)| Endpoint::new(sink.grpc.to_string(), Some(sink.grpc))).collect();
        endpoints.sort_by(|a, b| a.identity.cmp(&b.identity));
        endpoints.into()
    }

    /// The proxies' table once a sink has left.
    pub(crate) fn table_without(&self, gone: usize) -> Result<Table> {
        Ok(Table::of(1, Algorithm::SlotsV1, &self.endpoints(|n| n != gone))?)
    }

    /// The proxies' table while nothing is ejected, or with these sinks away.
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

    /// Which sink a table means.
    pub(crate) fn sink_of(&self, table: &Table, trace: &[u8]) -> Option<usize> {
        let owner = table.backends().get(table.owner(trace) as usize)?;
        self.sinks.iter().position(|sink| Some(sink.grpc) == owner.address)
    }

    /// Begins load; it ends when [`World::end`] is called.
    pub(crate) fn load(&self, load: Load) -> JoinHandle<Result<LoadRun>> {
        let config = LoadConfig {
            endpoints: self.proxies.iter().map(|proxy| proxy.grpc.to_string()).collect(),
            connections: CONNECTIONS,
            in_flight: 5_000,
            pace: Pace::Open { rate: load.rate },
            body: BodySpec { seed: load.seed, unique: true, bodies: 200, ..BodySpec::default() },
            until: Until::default(),
            retry: load.retry,
            keep_accepted: true,
            ..LoadConfig::default()
        };
        let tasks = self.tasks.clone();
        self.tasks.spawn(async move { Ok(run_load(config, &indicatif::ProgressBar::hidden(), &tasks).await?) })
    }

    /// Ends the load and waits for its last answers.
    pub(crate) async fn end(&mut self, load: JoinHandle<Result<LoadRun>>) -> Result<LoadRun> {
        self.tasks.drain();
        let run = load.await??;
        self.tasks.stop();
        self.tasks = Tasks::new();
        Ok(run)
    }

    /// Connects so many clients to each proxy that say nothing.
    pub(crate) fn silent_clients(&self, each: usize) -> Result<Vec<Silent>> {
        let addresses = self.proxies.iter().flat_map(|proxy| std::iter::repeat_n(proxy.grpc, each));
        Ok(addresses.map(TcpStream::connect).collect::<Result<_, _>>()?)
    }

    /// What each proxy holds.
    pub(crate) fn held(&self) -> Result<Vec<Held>> {
        self.proxies.iter().map(|proxy| held(proxy.process.id())).collect()
    }

    /// A metric's sum over its series and the proxies; `None` while there is no such metric.
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

fn held(pid: u32) -> Result<Held> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    Ok(Held {
        rss_kib: field("VmRSS:"),
        peak_kib: field("VmHWM:"),
        descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
        threads: field("Threads:"),
    })
}

/// One HTTP/1 request; the whole reply.
pub(crate) fn http(address: SocketAddr, method: &str, path: &str, body: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len())?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    Ok(reply)
}
