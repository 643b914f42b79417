//! The compared proxies, each configured for this one task: they accept gRPC over cleartext HTTP/2, forward it
//! round-robin (Spanring: by trace) to the same sinks, keep connections open and write no access log. nginx and HAProxy
//! are measured twice: with the buffer sizes of Debian's packages, and with buffer sizes tuned for this load. Spanring can
//! speak OTLP/HTTP on each side instead, and nginx on both.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{
    harness::{Process, Ready, metric, on_free_ports, until},
    measure::{Protocol, Sides},
    usage::Usage,
};

/// The kinds of proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Spanring,
    Nginx,
    Haproxy,
}

/// The configuration of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setup {
    pub(crate) workers: Workers,
    pub(crate) buffers: Buffers,
}

/// Number of threads or worker processes. Which number is cheaper depends on the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workers {
    One,
    /// One per CPU, the default of all three proxies.
    Auto,
}

/// Sizes of a proxy's buffers and windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Buffers {
    /// The defaults, with only the settings needed to forward such requests over kept connections.
    Packaged,
    /// Larger ones, for large requests.
    Tuned,
}

/// A running proxy.
pub(crate) struct Proxy {
    pub(crate) kind: Kind,
    pub(crate) setup: Setup,
    pub(crate) protocol: Protocol,
    pub(crate) address: SocketAddr,
    /// Where Spanring has its metrics.
    admin: SocketAddr,
    config: PathBuf,
    process: Process,
}

/// The paths of the programs.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// `SPANRING_BIN`, or the binary that Cargo built for this bench.
    pub(crate) spanring: PathBuf,
    /// `SPANRING_BEFORE`: an earlier build to compare with.
    pub(crate) before: Option<PathBuf>,
    /// Folders to search for the other proxies: `$SPANRING_PEERS/bin`, then `PATH`, then Debian's folder for servers.
    folders: Vec<PathBuf>,
}

impl Programs {
    pub(crate) fn find() -> Self {
        let built = PathBuf::from(env!("CARGO_BIN_EXE_spanring"));
        let spanring = std::env::var_os("SPANRING_BIN").map_or(built, PathBuf::from);
        let peers = std::env::var_os("SPANRING_PEERS").map(|dir| PathBuf::from(dir).join("bin"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = peers.into_iter().chain(std::env::split_paths(&path)).chain([PathBuf::from("/usr/sbin")]);
        let before = std::env::var_os("SPANRING_BEFORE").map(PathBuf::from);
        Self { spanring, before, folders: folders.collect() }
    }

    /// Returns the program of a proxy, if it is installed.
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

    /// The buffer sizes to measure. Spanring has no setting for them.
    pub(crate) fn buffers(self) -> &'static [Buffers] {
        match self {
            Self::Spanring => &[Buffers::Packaged],
            Self::Nginx | Self::Haproxy => &[Buffers::Packaged, Buffers::Tuned],
        }
    }

    fn config(self, setup: Setup, listen: [SocketAddr; 2], sinks: &[SocketAddr], dir: &Path) -> Result<String> {
        let mut text = String::new();
        match self {
            Self::Spanring => spanring_config(&mut text, setup, listen, sinks)?,
            Self::Nginx => nginx_config(&mut text, setup, listen, sinks, dir)?,
            Self::Haproxy => haproxy_config(&mut text, setup, listen, sinks)?,
        }
        Ok(text)
    }
}

impl Workers {
    pub(crate) const ALL: [Self; 2] = [Self::One, Self::Auto];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::One => "1",
            Self::Auto => "auto",
        }
    }
}

impl Buffers {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Packaged => "as packaged",
            Self::Tuned => "tuned",
        }
    }
}

impl Proxy {
    /// Writes the configuration into `dir`, starts the proxy and waits until it is ready.
    pub(crate) fn start(
        programs: &Programs,
        kind: Kind,
        setup: Setup,
        protocol: Protocol,
        sinks: &[SocketAddr],
        dir: &Path,
    ) -> Result<Self> {
        let pki = dir;
        let name = kind.name();
        let program =
            programs.get(kind).with_context(|| format!("{name} is not installed: see tests/peers/proxies.sh"))?;
        let config_of = |address: SocketAddr| dir.join(format!("{name}-{}", address.port())).join("config");
        let (process, [address, admin]) = on_free_ports(|[address, admin]| {
            let dir = dir.join(format!("{name}-{}", address.port()));
            fs::create_dir_all(&dir)?;
            let config = config_of(address);
            let mut text = kind.config(setup, [address, admin], sinks, &dir)?;
            text = match (protocol, kind) {
                (Protocol::Plain, _) => text,
                (Protocol::Tls, Kind::Spanring) => with_tls(&text, address, pki),
                (Protocol::Http(_), Kind::Spanring) => with_http(&text, protocol.are_http()),
                (Protocol::Http(Sides::Both), Kind::Nginx) => nginx_with_http(&text),
                _ => bail!("{name} is not set up for {protocol:?} here"),
            };
            fs::write(&config, text)?;
            let mut command = Command::new(&program);
            match kind {
                Kind::Spanring => command.arg("run").arg("--config").arg(&config),
                Kind::Nginx => command.arg("-p").arg(&dir).arg("-c").arg(&config),
                Kind::Haproxy => command.arg("-db").arg("-f").arg(&config),
            };
            let ready = match kind {
                Kind::Spanring => Ready::Page(format!("http://{admin}/readyz")),
                Kind::Nginx | Kind::Haproxy => Ready::Listening(vec![address]),
            };
            Ok((Process::start(name, &mut command)?, ready))
        })?;
        Ok(Self { kind, setup, protocol, address, admin, config: config_of(address), process })
    }

    /// Replaces all of Spanring's backends by others, and waits until the hand-off's window is open. It stays open for
    /// longer than any bench takes.
    pub(crate) fn replace_backends(&self, before: &[SocketAddr], after: &[SocketAddr]) -> Result<()> {
        let mut text = fs::read_to_string(&self.config)?;
        for (before, after) in before.iter().zip(after) {
            text = text.replace(&format!("\"{before}\""), &format!("\"{after}\""));
        }
        let keys = "compression: none\n    hold_down: 0s\n    ring: { handoff: { mode: dual, window: 1h } }";
        fs::write(&self.config, text.replacen("compression: none", keys, 1))?;
        self.process.signal("HUP")?;
        until("the window is open", || {
            let windows = metric(self.admin, "spanring_handoff_windows", &[])?;
            let members = metric(self.admin, "spanring_ring_members", &["state=\"active\""])?;
            Ok((windows > 0.0 && members == after.len() as f64).then_some(()))
        })
    }

    /// Changes the compression of Spanring's calls, and waits until it has taken the change.
    pub(crate) fn compress(&self, compression: &str) -> Result<()> {
        if compression == "none" {
            return Ok(());
        }
        let text = fs::read_to_string(&self.config)?;
        fs::write(&self.config, text.replacen("compression: none", &format!("compression: {compression}"), 1))?;
        self.process.signal("HUP")?;
        until("the compression is changed", || {
            let reloads = metric(self.admin, "spanring_config_reloads_total", &["result=\"success\""])?;
            Ok((reloads > 0.0).then_some(()))
        })
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of(self.process.id())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Stopped by a signal instead of killed, since nginx's workers outlive a killed master.
        drop(self.process.stop());
    }
}

fn spanring_config(
    text: &mut String,
    setup: Setup,
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
shutdown: {{ delay: 0s, timeout: 1s }}
worker_threads: {}",
        hostnames.join(", "),
        setup.workers.name(),
    )?;
    Ok(())
}

/// Adds TLS to Spanring's configuration on both sides, with client certificates.
fn with_tls(text: &str, address: SocketAddr, pki: &Path) -> String {
    let pki = pki.display();
    let (listen, pool) = (format!("endpoint: {address}"), "compression: none");
    let server = format!(
        "{listen}, tls: {{ cert_file: {pki}/server.crt, key_file: {pki}/server.key, client_ca_file: {pki}/ca.crt }}"
    );
    let client = format!(
        "{pool}\n    tls: {{ ca_file: {pki}/ca.crt, cert_file: {pki}/client.crt, key_file: {pki}/client.key }}"
    );
    text.replacen(&listen, &server, 1).replacen(pool, &client, 1)
}

/// Makes Spanring's configuration speak OTLP/HTTP with clients, backends, or both.
fn with_http(text: &str, [clients, backends]: [bool; 2]) -> String {
    let mut text = text.to_owned();
    if clients {
        text = text.replacen("grpc: {", "grpc: { endpoint: \"127.0.0.1:0\" }, http: {", 1);
    }
    if backends {
        text = text.replacen("compression: none", "compression: none\n    protocol: { otlp_http: {} }", 1);
    }
    text
}

/// Makes nginx's configuration forward HTTP/1.1 over kept connections. As packaged, nginx writes requests above 16 KiB to a
/// file before it forwards them.
fn nginx_with_http(text: &str) -> String {
    let forward = "proxy_pass http://sinks; proxy_http_version 1.1; proxy_set_header Connection \"\";";
    text.replacen(" http2 reuseport", " reuseport", 1).replacen("grpc_pass grpc://sinks;", forward, 1)
}

/// nginx does not multiplex requests to its upstreams and opens one upstream connection for each request in flight.
/// Enough connections for all requests are kept open, without a limit of age. The default limit of bodies, 1 MiB, is
/// lifted. Body buffers larger than the tuned ones make no difference.
fn nginx_config(
    text: &mut String,
    setup: Setup,
    [address, _]: [SocketAddr; 2],
    sinks: &[SocketAddr],
    dir: &Path,
) -> Result<()> {
    let body = match setup.buffers {
        Buffers::Packaged => "",
        Buffers::Tuned => "\n  client_body_buffer_size 512k;",
    };
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
  client_max_body_size 0;{body}
  keepalive_requests 1000000000;
  keepalive_time 24h;
  upstream sinks {{",
        dir = dir.display(),
        workers = setup.workers.name(),
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

/// HAProxy copies bodies through buffers. Its default of 16 KiB is cheaper for small requests and more expensive for
/// large ones.
fn haproxy_config(text: &mut String, setup: Setup, [address, _]: [SocketAddr; 2], sinks: &[SocketAddr]) -> Result<()> {
    let threads = match setup.workers {
        Workers::One => "  nbthread 1\n",
        Workers::Auto => "",
    };
    let buffers = match setup.buffers {
        Buffers::Packaged => "",
        Buffers::Tuned => "  tune.bufsize 65536\n  tune.h2.initial-window-size 1048576\n",
    };
    writeln!(
        text,
        "global
{threads}{buffers}  maxconn 4096
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
