//! The proxies that are compared, each set up as someone who knows it would for this one job: gRPC in over cleartext
//! HTTP/2, round-robin (Spanring: by trace) over the same sinks, connections kept open, no access log.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::process::{Process, Usage, free_addresses};

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Spanring,
    Nginx,
    Haproxy,
}

/// How many threads or worker processes it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workers {
    One,
    /// One for each CPU: what each of the three does when nothing is said.
    Auto,
}

/// A running proxy.
pub(crate) struct Proxy {
    pub(crate) kind: Kind,
    pub(crate) workers: Workers,
    pub(crate) address: SocketAddr,
    process: Process,
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// `SPANRING_BIN`, or the one that Cargo built for this bench.
    pub(crate) spanring: PathBuf,
    /// Folders to look for the others in: `$SPANRING_PEERS/bin`, then `PATH`, then where Debian puts servers.
    folders: Vec<PathBuf>,
}

impl Programs {
    pub(crate) fn find() -> Self {
        let built = PathBuf::from(env!("CARGO_BIN_EXE_spanring"));
        let spanring = std::env::var_os("SPANRING_BIN").map_or(built, PathBuf::from);
        let peers = std::env::var_os("SPANRING_PEERS").map(|dir| PathBuf::from(dir).join("bin"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = peers.into_iter().chain(std::env::split_paths(&path)).chain([PathBuf::from("/usr/sbin")]);
        Self { spanring, folders: folders.collect() }
    }

    /// The program of a proxy, if it is installed.
    pub(crate) fn get(&self, kind: Kind) -> Option<PathBuf> {
        match kind {
            Kind::Spanring => Some(self.spanring.clone()),
            Kind::Nginx | Kind::Haproxy => {
                self.folders.iter().map(|folder| folder.join(kind.name())).find(|path| path.is_file())
            }
        }
    }
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Spanring => "spanring",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        }
    }

    fn config(self, workers: Workers, listen: [SocketAddr; 2], sinks: &[SocketAddr], dir: &Path) -> Result<String> {
        let mut text = String::new();
        match self {
            Self::Spanring => spanring_config(&mut text, workers, listen, sinks)?,
            Self::Nginx => nginx_config(&mut text, workers, listen, sinks, dir)?,
            Self::Haproxy => haproxy_config(&mut text, workers, listen, sinks)?,
        }
        Ok(text)
    }
}

impl Workers {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::One => "1",
            Self::Auto => "auto",
        }
    }
}

impl Proxy {
    /// Writes its configuration into a folder of its own under `dir`, starts it and waits until it listens.
    pub(crate) fn start(
        programs: &Programs,
        kind: Kind,
        workers: Workers,
        sinks: &[SocketAddr],
        dir: &Path,
    ) -> Result<Self> {
        let name = kind.name();
        let [address, admin] = free_addresses()?;
        let dir = dir.join(format!("{name}-{}", address.port()));
        fs::create_dir_all(&dir)?;
        let config = dir.join("config");
        fs::write(&config, kind.config(workers, [address, admin], sinks, &dir)?)?;
        let program =
            programs.get(kind).with_context(|| format!("{name} is not installed: see tests/peers/proxies.sh"))?;
        let mut command = Command::new(program);
        match kind {
            Kind::Spanring => command.arg("run").arg("--config").arg(&config),
            Kind::Nginx => command.arg("-p").arg(&dir).arg("-c").arg(&config),
            Kind::Haproxy => command.arg("-db").arg("-f").arg(&config),
        };
        let mut process = Process::start(name, &mut command, &dir)?;
        process.wait_until_listening(&[address], &dir)?;
        Ok(Self { kind, workers, address, process })
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        self.process.usage()
    }
}

fn spanring_config(
    text: &mut String,
    workers: Workers,
    [address, admin]: [SocketAddr; 2],
    sinks: &[SocketAddr],
) -> Result<()> {
    let hostnames: Vec<String> = sinks.iter().map(|sink| format!("\"{sink}\"")).collect();
    writeln!(
        text,
        "receivers:
  otlp: {{ protocols: {{ grpc: {{ endpoint: {address} }} }} }}
pools:
  tail:
    resolver: {{ static: {{ hostnames: [{}] }} }}
    compression: none
routes:
  - {{ signals: [traces], routing_key: trace_id, pool: tail }}
admin: {{ endpoint: {admin} }}
worker_threads: {}",
        hostnames.join(", "),
        workers.name(),
    )?;
    Ok(())
}

/// nginx opens one upstream connection for each request in flight, since it does not multiplex towards its upstreams:
/// enough are kept open for all, and none is retired for its age. A body goes through a buffer that a whole message fits.
fn nginx_config(
    text: &mut String,
    workers: Workers,
    [address, _]: [SocketAddr; 2],
    sinks: &[SocketAddr],
    dir: &Path,
) -> Result<()> {
    writeln!(
        text,
        "daemon off;
pid {dir}/pid;
worker_processes {workers};
worker_rlimit_nofile 20000;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi;
  scgi_temp_path {dir}/scgi;
  client_max_body_size 0;
  client_body_buffer_size 4m;
  http2_max_concurrent_streams 1024;
  keepalive_requests 1000000000;
  keepalive_time 24h;
  upstream sinks {{",
        dir = dir.display(),
        workers = workers.name(),
    )?;
    for sink in sinks {
        writeln!(text, "    server {sink};")?;
    }
    writeln!(
        text,
        "    keepalive 256;
    keepalive_requests 1000000000;
    keepalive_time 24h;
  }}
  server {{
    listen {address} http2 reuseport;
    location / {{ grpc_pass grpc://sinks; }}
  }}
}}"
    )?;
    Ok(())
}

fn haproxy_config(
    text: &mut String,
    workers: Workers,
    [address, _]: [SocketAddr; 2],
    sinks: &[SocketAddr],
) -> Result<()> {
    let threads = match workers {
        Workers::One => "  nbthread 1\n",
        Workers::Auto => "",
    };
    writeln!(
        text,
        "global
{threads}  maxconn 4096
  tune.h2.max-concurrent-streams 1024
  tune.h2.initial-window-size 1048576
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend otlp
  bind {address} proto h2
  default_backend sinks
backend sinks
  balance roundrobin
  http-reuse always"
    )?;
    for (n, sink) in sinks.iter().enumerate() {
        writeln!(text, "  server sink{n} {sink} proto h2 pool-max-conn -1")?;
    }
    Ok(())
}
