//! Child processes, and what the kernel says that they used.

use std::{
    fs,
    io::Read,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::time::Instant;

/// A child that is killed, and its own children with it, when this is dropped.
pub(crate) struct Process {
    name: String,
    child: Child,
}

/// What a process and its children used so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// User and system time.
    pub(crate) cpu: Duration,
    /// Largest resident set in KiB, summed over the processes.
    pub(crate) peak_kib: u64,
    /// Resident set now in KiB, summed over the processes.
    pub(crate) rss_kib: u64,
}

impl Process {
    /// Starts a command, its output into a file of that name in `dir`.
    pub(crate) fn start(name: &str, command: &mut Command, dir: &Path) -> Result<Self> {
        let log = fs::File::create(dir.join(format!("{name}.log")))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child })
    }

    /// Waits until it takes connections on all these addresses.
    pub(crate) fn wait_until_listening(&mut self, addresses: &[SocketAddr], dir: &Path) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(10);
        for address in addresses {
            while TcpStream::connect(address).is_err() {
                let ended = self.child.try_wait()?;
                if ended.is_some() || Instant::now() > end {
                    let log = fs::read_to_string(dir.join(format!("{}.log", self.name))).unwrap_or_default();
                    bail!("{} does not listen on {address} (ended: {ended:?}); its output:\n{log}", self.name);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    /// Its ID.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reads /proc for it and its children.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let mut sum = Usage { cpu: Duration::ZERO, peak_kib: 0, rss_kib: 0 };
        for pid in self.family()? {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            sum.peak_kib += field_kib(&status, "VmHWM:");
            sum.rss_kib += field_kib(&status, "VmRSS:");
            sum.cpu += cpu_time(&fs::read_to_string(format!("/proc/{pid}/stat"))?)?;
        }
        Ok(sum)
    }

    /// Its ID and its children's.
    fn family(&self) -> Result<Vec<u32>> {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
            .with_context(|| format!("{} is gone", self.name))?;
        Ok(std::iter::once(pid).chain(children.split_whitespace().flat_map(str::parse)).collect())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let family = self.family().unwrap_or_default();
        for pid in family.into_iter().rev() {
            // The workers of nginx would outlive a master that is killed.
            drop(Command::new("sh").args(["-c", &format!("kill -KILL {pid}")]).stderr(Stdio::null()).status());
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Runs a command to its end and returns what it printed.
pub(crate) fn output_of(command: &mut Command) -> Result<String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let (mut out, mut err) = (String::new(), String::new());
    if let Some(stdout) = child.stdout.as_mut() {
        stdout.read_to_string(&mut out)?;
    }
    if let Some(stderr) = child.stderr.as_mut() {
        stderr.read_to_string(&mut err)?;
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{command:?} ended with {status}:\n{out}{err}");
    }
    Ok(out)
}

/// Addresses that were free a moment ago, all different.
pub(crate) fn free_addresses<const N: usize>() -> Result<[SocketAddr; N]> {
    let addresses = many_free_addresses(N)?;
    addresses.try_into().ok().context("as many addresses as were asked for")
}

/// The same, for a number that is known only now.
pub(crate) fn many_free_addresses(count: usize) -> Result<Vec<SocketAddr>> {
    let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    Ok(listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?)
}

/// One line of /proc/PID/status, in KiB.
fn field_kib(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// utime + stime of /proc/PID/stat, in the kernel's 100 ticks a second (USER_HZ, the same on every Linux that Rust has).
fn cpu_time(stat: &str) -> Result<Duration> {
    // The program's name, in parentheses, may hold spaces: fields are counted from behind it, where `state` is field 3.
    let (_, fields) = stat.rsplit_once(')').context("unreadable /proc/PID/stat")?;
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).flat_map(str::parse::<u64>).sum();
    Ok(Duration::from_millis(ticks * 10))
}
