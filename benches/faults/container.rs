//! A proxy in a container: a memory cgroup with a limit, all settings at their defaults, waves of connections and then
//! far more load than fits.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use spanring::tools::load::{FailureKind, LoadRun, Pace as LoadPace};
use tokio::time::sleep;

use crate::{
    Pace,
    beside::Memory,
    hostile::{self, Attack},
    plan::{Load, Plan},
    table::Findings,
    world::World,
};

/// The limits of the containers in MiB. 512 is the chart's default.
const LIMITS_MIB: [u64; 3] = [512, 256, 128];

/// The share of the limit that may be used, in percent, and the resident set 10 s later in MiB.
const PEAK_PERCENT: u64 = 92;
const LATER_MIB: u64 = 60;

/// The clients of a wave.
const WAVE: usize = 9_900;

/// Runs the overload in containers of each size.
pub(crate) async fn container(pace: Pace) -> Result<Findings> {
    let mut findings = Findings::default();
    for limit_mib in LIMITS_MIB {
        findings.section(&format!("{limit_mib} MiB"));
        let group = match Group::new(limit_mib) {
            Ok(group) => group,
            Err(error) => return Ok(Findings::skipped(&format!("no memory cgroup here: {error:#}"))),
        };
        overload(pace, limit_mib, &group, &mut findings).await?;
    }
    Ok(findings)
}

async fn overload(pace: Pace, limit_mib: u64, group: &Group, findings: &mut Findings) -> Result<()> {
    hostile::room_for(WAVE)?;
    let plan = Plan { sinks: 3, journals: false, proxies: 1, limit_mib: None, ..Plan::default() };
    let mut world = World::start_after(plan, format!("echo $$ > {}/cgroup.procs", group.path.display()))?;
    (0..3).try_for_each(|n| world.behave(n, r#"{"delay_ms": 500}"#))?;
    let Some(proxy) = world.proxies.first() else { bail!("no proxy") };
    let (grpc, process) = (proxy.grpc, proxy.process.id());
    let idle = group.used_mib()?;
    let waves = Attack::IdleConnections { connections: WAVE, waves: 3 };
    waves.run(grpc, pace.seconds(18, 9)).await?;
    let after_waves = group.peak_mib()?;
    findings
        .fact("memory of the idle group, and its peak in waves of connections", format!("{idle}, {after_waves} MiB"));
    world.load(Load {
        pace: LoadPace::Closed,
        spans: 4_000,
        connections: 50,
        in_flight: 400,
        bodies: 100,
        unique: false,
        ..Load::default()
    });
    sleep(pace.seconds(60, 8)).await;
    match world.end().await {
        Ok(run) => answers(&run, findings),
        // It could not connect.
        Err(error) => findings.fact("the load failed", error.root_cause()),
    }
    sleep(Duration::from_secs(10)).await;
    let later = Memory::of(process).map(|memory| memory.mib().0);
    let (peak, sockets) = (group.peak_mib()?, group.sockets_mib());
    let counted = sockets.map_or("unknown".to_owned(), |mib| format!("{mib} MiB"));
    findings.fact("most buffers of sockets, where they are counted apart", counted);
    let kills = group.kills()?;
    findings.check("killed by the kernel", "0", kills, kills == 0 && later.is_ok());
    let most = limit_mib * PEAK_PERCENT / 100;
    // Where buffers of sockets are counted apart, they are added, as if both had their peak at the same time.
    let all = peak + sockets.unwrap_or(0);
    findings.check("most memory of the group", &format!("≤ {most} MiB"), all, all <= most);
    let later = later.unwrap_or(u64::MAX);
    findings.check("resident set 10 s later", &format!("≤ {LATER_MIB} MiB"), later, later <= LATER_MIB);
    Ok(())
}

fn answers(run: &LoadRun, findings: &mut Findings) {
    let refused = run.failed.iter().filter(|failed| failed.kind == FailureKind::Unavailable).count();
    findings.fact("requests of 4000 spans", run.report.requests);
    findings.fact("of these requests, acknowledged", run.accepted.len());
    findings.fact("of these requests, refused with UNAVAILABLE", refused);
    let other = run.failed.iter().find(|failed| failed.kind != FailureKind::Unavailable);
    findings.fact("first other failure", other.map_or("none", |failed| failed.answer.as_str()));
}

/// A memory cgroup below the one that the bench runs in. Dropping it removes it.
struct Group {
    path: PathBuf,
    version: Version,
}

/// The version of the cgroup hierarchy that bounds memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

// === impl Group ===

impl Group {
    /// Creates a group with this limit.
    fn new(limit_mib: u64) -> Result<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup")?;
        let mut why_not = None;
        for line in groups.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            let (mount, version) = match controllers {
                "" => ("/sys/fs/cgroup", Version::Two),
                _ if controllers.split(',').any(|name| name == "memory") => ("/sys/fs/cgroup/memory", Version::One),
                _ => continue,
            };
            match Self::below(&Path::new(mount).join(path.trim_start_matches('/')), version, limit_mib) {
                Ok(group) => return Ok(group),
                Err(error) => why_not = Some(error),
            }
        }
        Err(why_not.context("no cgroup bounds memory")?)
    }

    fn below(parent: &Path, version: Version, limit_mib: u64) -> Result<Self> {
        let path = parent.join(format!("spanring-faults-{}-{limit_mib}", std::process::id()));
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        let group = Self { path, version };
        let (limit, sockets) = match version {
            Version::One => ("memory.limit_in_bytes", Some("memory.kmem.tcp.limit_in_bytes")),
            Version::Two => ("memory.max", None),
        };
        let bytes = (limit_mib << 20).to_string();
        // With version 2, the file exists only if the parent hands the controller down.
        fs::write(group.path.join(limit), &bytes).with_context(|| format!("cannot set {limit}"))?;
        // Version 1 counts buffers of sockets apart, and only if they have a limit, too.
        if let Some(sockets) = sockets {
            drop(fs::write(group.path.join(sockets), &bytes));
        }
        Ok(group)
    }

    fn read(&self, one: &str, two: &str) -> Result<String> {
        let name = if self.version == Version::One { one } else { two };
        fs::read_to_string(self.path.join(name)).with_context(|| format!("cannot read {name}"))
    }

    fn used_mib(&self) -> Result<u64> {
        Ok(self.read("memory.usage_in_bytes", "memory.current")?.trim().parse::<u64>()? >> 20)
    }

    fn peak_mib(&self) -> Result<u64> {
        Ok(self.read("memory.max_usage_in_bytes", "memory.peak")?.trim().parse::<u64>()? >> 20)
    }

    /// The most buffers of sockets, where they are counted apart.
    fn sockets_mib(&self) -> Option<u64> {
        let bytes = fs::read_to_string(self.path.join("memory.kmem.tcp.max_usage_in_bytes")).ok()?;
        Some(bytes.trim().parse::<u64>().ok()? >> 20)
    }

    /// The number of processes that the kernel has killed for want of memory.
    fn kills(&self) -> Result<u64> {
        let events = self.read("memory.oom_control", "memory.events")?;
        let line = events.lines().find_map(|line| line.strip_prefix("oom_kill ")).context("no count of kills")?;
        Ok(line.trim().parse()?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group whose last process has just ended can be busy for a moment.
        for _ in 0..50 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
