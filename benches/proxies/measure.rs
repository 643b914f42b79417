//! A single measurement: load sent through a proxy, or directly, to sinks.

use std::{net::SocketAddr, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tempfile::TempDir;

use super::{
    harness::{Process, Ready, on_free_ports},
    pki,
    proxy::{Kind, Programs, Proxy, Setup},
};

/// The programs to measure, and for how long.
pub(crate) struct Bench {
    programs: Programs,
    /// Number of measurements per proxy.
    pub(crate) turns: usize,
    turn: Duration,
    dir: TempDir,
}

/// A closed loop of identical requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) spans: usize,
    pub(crate) traces: usize,
    pub(crate) connections: usize,
    pub(crate) in_flight: usize,
}

/// The protocol on both sides of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// gRPC over cleartext HTTP/2.
    Plain,
    /// gRPC with TLS. Clients and servers both present certificates.
    Tls,
    /// OTLP/HTTP over cleartext HTTP/1.1 on these sides, and gRPC on the other one.
    Http(Sides),
}

/// Sides of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sides {
    Clients,
    Backends,
    Both,
}

/// A process with sinks.
pub(crate) struct Sinks {
    protocol: Protocol,
    pub(crate) addresses: Vec<SocketAddr>,
    _process: Process,
}

/// The fields of `spanring load --json` that are needed here.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Report {
    pub(crate) spans: u64,
    pub(crate) spans_acknowledged: u64,
    pub(crate) latency_ms: Latency,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

impl Protocol {
    /// Whether clients and backends speak OTLP/HTTP.
    pub(crate) fn are_http(self) -> [bool; 2] {
        match self {
            Self::Plain | Self::Tls => [false, false],
            Self::Http(Sides::Clients) => [true, false],
            Self::Http(Sides::Backends) => [false, true],
            Self::Http(Sides::Both) => [true, true],
        }
    }

    /// The names of what clients and backends speak.
    pub(crate) fn names(self) -> [&'static str; 2] {
        self.are_http().map(|is_http| if is_http { "HTTP/1.1" } else { "gRPC" })
    }
}

impl Bench {
    pub(crate) fn new(programs: Programs, turns: usize, turn: Duration) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        pki::folder(dir.path());
        Ok(Self { programs, turns, turn, dir })
    }

    /// The installed proxies, Spanring first.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        let all = [Kind::Spanring, Kind::Nginx, Kind::Haproxy];
        all.into_iter().filter(|kind| self.programs.get(*kind).is_some()).collect()
    }

    /// Describes the measurement, for the top of the report.
    pub(crate) fn describe(&self) -> String {
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let versions = self.kinds().into_iter().map(|kind| {
            let flag = if kind == Kind::Spanring { "--version" } else { "-v" };
            let program = self.programs.get(kind).unwrap_or_default();
            let output = Command::new(program).arg(flag).output().ok();
            let text = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
            String::from_utf8_lossy(&text).lines().next().unwrap_or(kind.name()).to_owned()
        });
        let versions: Vec<String> = versions.collect();
        let missing = if versions.len() < 3 { " (others are not installed: see tests/peers/proxies.sh)" } else { "" };
        format!(
            "{cpus} CPUs; {}{missing}; {}; medians of {} turns of {:?} each\n",
            versions.join("; "),
            self.programs.spanring.display(),
            self.turns,
            self.turn
        )
    }

    pub(crate) fn sinks<const N: usize>(&self, delay: Duration) -> Result<Sinks> {
        self.sinks_by::<N>(Protocol::Plain, delay)
    }

    pub(crate) fn sinks_by<const N: usize>(&self, protocol: Protocol, delay: Duration) -> Result<Sinks> {
        let (process, addresses) = on_free_ports(|addresses: [SocketAddr; N]| {
            let mut command = Command::new(&self.programs.spanring);
            command.args(["sink", "--count-only", "--max-recv-msg-size-mib", "64"]);
            command.arg("--delay").arg(format!("{}ms", delay.as_millis()));
            if protocol == Protocol::Tls {
                self.add_files(&mut command, [("cert", "server.crt"), ("key", "server.key"), ("client-ca", "ca.crt")]);
            }
            for address in &addresses {
                command.arg("--grpc").arg(address.to_string());
            }
            Ok((Process::start("sink", &mut command)?, Ready::Listening(addresses.to_vec())))
        })?;
        Ok(Sinks { protocol, addresses: addresses.to_vec(), _process: process })
    }

    /// Starts a proxy with the same protocol as its sinks.
    pub(crate) fn proxy(&self, kind: Kind, setup: Setup, sinks: &Sinks) -> Result<Proxy> {
        Proxy::start(&self.programs, kind, setup, sinks.protocol, &sinks.addresses, self.dir.path())
    }

    /// Starts a proxy that speaks this protocol with clients and sinks, in plaintext.
    pub(crate) fn speaking(&self, kind: Kind, protocol: Protocol, setup: Setup, sinks: &Sinks) -> Result<Proxy> {
        Proxy::start(&self.programs, kind, setup, protocol, &sinks.addresses, self.dir.path())
    }

    /// Starts Spanring with this compression of its calls, to the first `count` of the sinks.
    pub(crate) fn compressing(&self, compression: &str, setup: Setup, sinks: &Sinks, count: usize) -> Result<Proxy> {
        let backends = sinks.addresses.get(..count).unwrap_or(&sinks.addresses);
        let proxy = Proxy::start(&self.programs, Kind::Spanring, setup, sinks.protocol, backends, self.dir.path())?;
        proxy.compress(compression)?;
        Ok(proxy)
    }

    /// Measures several rows in turns. Returns the costs of each.
    pub(crate) fn in_turns<R>(&self, rows: &[R], cost: impl Fn(&R) -> Result<f64>) -> Result<Vec<Vec<f64>>> {
        let mut costs: Vec<Vec<f64>> = rows.iter().map(|_| Vec::new()).collect();
        for _ in 0..self.turns {
            for (row, costs) in rows.iter().zip(&mut costs) {
                costs.push(cost(row)?);
            }
        }
        Ok(costs)
    }

    /// Whether an earlier build is to be measured, too.
    pub(crate) fn has_before(&self) -> bool {
        self.programs.before.is_some()
    }

    /// Starts a proxy of the earlier build, with the same configuration.
    pub(crate) fn proxy_before(&self, setup: Setup, sinks: &Sinks) -> Result<Proxy> {
        let mut programs = self.programs.clone();
        programs.spanring = programs.before.clone().context("SPANRING_BEFORE names no binary")?;
        Proxy::start(&programs, Kind::Spanring, setup, sinks.protocol, &sinks.addresses, self.dir.path())
    }

    fn add_files(&self, command: &mut Command, files: [(&str, &str); 3]) {
        for (flag, file) in files {
            command.arg(format!("--tls-{flag}")).arg(self.dir.path().join(file));
        }
    }

    /// Sends load for one turn. Fails unless every span was acknowledged.
    pub(crate) fn send(&self, load: Load, to: &[SocketAddr], protocol: Protocol) -> Result<Report> {
        self.send_for(self.turn, load, "none", to, protocol)
    }

    fn send_for(
        &self,
        time: Duration,
        load: Load,
        compression: &str,
        to: &[SocketAddr],
        protocol: Protocol,
    ) -> Result<Report> {
        let mut command = Command::new(&self.programs.spanring);
        command.args(["load", "--json", "--max-body-mib", "256", "--compression", compression]);
        command.arg("--duration").arg(format!("{}ms", time.as_millis()));
        let numbers = [
            ("--spans-per-batch", load.spans),
            ("--traces-per-batch", load.traces),
            ("--connections", load.connections),
            ("--in-flight", load.in_flight),
        ];
        if protocol == Protocol::Tls {
            self.add_files(&mut command, [("ca", "ca.crt"), ("cert", "client.crt"), ("key", "client.key")]);
        }
        if let [true, _] = protocol.are_http() {
            command.arg("--http");
        }
        for (flag, number) in numbers {
            command.arg(flag).arg(number.to_string());
        }
        for address in to {
            command.arg("--endpoint").arg(address.to_string());
        }
        let output = command.output().context("cannot start spanring load")?;
        let texts = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
        let [text, errors] = &texts;
        let report: Report =
            serde_json::from_str(text).with_context(|| format!("unexpected report: {text}{errors}"))?;
        let is_complete = report.spans_acknowledged > 0 && report.spans_acknowledged == report.spans;
        ensure!(is_complete, "not every span was acknowledged: {load:?}\n{text}");
        Ok(report)
    }

    /// Returns the proxy's processor time per span of one turn, in microseconds.
    pub(crate) fn cost(&self, load: Load, proxy: &Proxy) -> Result<f64> {
        self.cost_for(self.turn, load, "none", proxy)
    }

    /// The same for requests that are compressed.
    pub(crate) fn cost_of(&self, compression: &str, load: Load, proxy: &Proxy) -> Result<f64> {
        self.cost_for(self.turn, load, compression, proxy)
    }

    /// The same over half a turn, for choosing the number of workers.
    pub(crate) fn rough_cost(&self, load: Load, proxy: &Proxy) -> Result<f64> {
        self.cost_for(self.turn / 2, load, "none", proxy)
    }

    #[expect(clippy::cast_precision_loss, reason = "spans of a few seconds")]
    fn cost_for(&self, time: Duration, load: Load, compression: &str, proxy: &Proxy) -> Result<f64> {
        let before = proxy.usage()?.cpu;
        let report = self.send_for(time, load, compression, &[proxy.address], proxy.protocol)?;
        let used = proxy.usage()?.cpu.saturating_sub(before);
        Ok(used.as_secs_f64() * 1e6 / report.spans as f64)
    }
}

/// Returns the median.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
