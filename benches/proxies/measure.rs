//! One measurement: a load through a proxy (or past it) onto sinks.

use std::{net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tempfile::TempDir;

use super::{
    process::{Process, many_free_addresses, output_of},
    proxy::{Kind, Programs, Proxy, Workers},
};

/// Where programs are and how long to measure.
pub(crate) struct Bench {
    programs: Programs,
    /// How often each proxy is measured.
    pub(crate) turns: usize,
    turn: Duration,
    dir: TempDir,
}

/// A closed loop of equal requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) spans: usize,
    pub(crate) traces: usize,
    pub(crate) connections: usize,
    pub(crate) in_flight: usize,
}

/// The sinks of one process.
pub(crate) struct Sinks {
    pub(crate) addresses: Vec<SocketAddr>,
    _process: Process,
}

/// What `spanring load --json` prints, as far as it is needed here.
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

impl Bench {
    pub(crate) fn new(programs: Programs, turns: usize, turn: Duration) -> Result<Self> {
        Ok(Self { programs, turns, turn, dir: tempfile::tempdir()? })
    }

    /// The proxies that are installed, Spanring first.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        let all = [Kind::Spanring, Kind::Nginx, Kind::Haproxy];
        all.into_iter().filter(|kind| self.programs.get(*kind).is_some()).collect()
    }

    /// What is measured, for the top of the report.
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
            "{cpus} CPUs; {}{missing}; medians of {} turns of {:?} each\n",
            versions.join("; "),
            self.turns,
            self.turn
        )
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn sinks(&self, count: usize, delay: Duration) -> Result<Sinks> {
        let addresses = many_free_addresses(count)?;
        let mut command = Command::new(&self.programs.spanring);
        command.args(["sink", "--count-only", "--max-recv-msg-size-mib", "64"]);
        command.arg("--delay").arg(format!("{}ms", delay.as_millis()));
        for address in &addresses {
            command.arg("--grpc").arg(address.to_string());
        }
        let mut process = Process::start("sink", &mut command, self.dir())?;
        process.wait_until_listening(&addresses, self.dir())?;
        Ok(Sinks { addresses, _process: process })
    }

    pub(crate) fn proxy(&self, kind: Kind, workers: Workers, sinks: &Sinks) -> Result<Proxy> {
        Proxy::start(&self.programs, kind, workers, &sinks.addresses, self.dir())
    }

    /// Sends for one turn; every span must have been acknowledged.
    pub(crate) fn send(&self, load: Load, to: &[SocketAddr]) -> Result<Report> {
        let mut command = Command::new(&self.programs.spanring);
        command.args(["load", "--json", "--max-body-mib", "256"]);
        command.arg("--duration").arg(format!("{}ms", self.turn.as_millis()));
        let numbers = [
            ("--spans-per-batch", load.spans),
            ("--traces-per-batch", load.traces),
            ("--connections", load.connections),
            ("--in-flight", load.in_flight),
        ];
        for (flag, number) in numbers {
            command.arg(flag).arg(number.to_string());
        }
        for address in to {
            command.arg("--endpoint").arg(address.to_string());
        }
        let report = output_of(&mut command)?;
        let report: Report = serde_json::from_str(&report).with_context(|| format!("unexpected report: {report}"))?;
        ensure!(
            report.spans_acknowledged > 0 && report.spans_acknowledged == report.spans,
            "only {} of {} spans were acknowledged: {load:?}",
            report.spans_acknowledged,
            report.spans
        );
        Ok(report)
    }

    /// Microseconds of the proxy's processor time for each span of one turn.
    #[expect(clippy::cast_precision_loss, reason = "spans of a few seconds")]
    pub(crate) fn cost(&self, load: Load, proxy: &Proxy) -> Result<f64> {
        let before = proxy.usage()?.cpu;
        let report = self.send(load, &[proxy.address])?;
        let used = proxy.usage()?.cpu.saturating_sub(before);
        Ok(used.as_secs_f64() * 1e6 / report.spans as f64)
    }
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
