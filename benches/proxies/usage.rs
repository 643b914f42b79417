//! The resources used by a process and its children, as reported by the kernel.

use std::{fs, time::Duration};

use anyhow::{Context, Result};

/// The resources that a process and its children have used so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// User and system time.
    pub(crate) cpu: Duration,
    /// Peak resident set in KiB, summed over the processes.
    pub(crate) peak_kib: u64,
    /// Current resident set in KiB, summed over the processes.
    pub(crate) rss_kib: u64,
}

impl Usage {
    /// Reads /proc for a process and its children, such as nginx's workers.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
            .context("the process is gone; is this Linux?")?;
        let mut sum = Self::default();
        for pid in std::iter::once(pid).chain(children.split_whitespace().flat_map(str::parse)) {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            sum.peak_kib += field_kib(&status, "VmHWM:");
            sum.rss_kib += field_kib(&status, "VmRSS:");
            sum.cpu += cpu_time(&fs::read_to_string(format!("/proc/{pid}/stat"))?)?;
        }
        Ok(sum)
    }
}

/// Returns a field of /proc/PID/status, in KiB.
fn field_kib(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Returns utime + stime of /proc/PID/stat. The kernel counts 100 ticks a second (USER_HZ) on every Linux that Rust
/// supports.
fn cpu_time(stat: &str) -> Result<Duration> {
    // The program's name is in parentheses and may contain spaces, so fields are counted after it; the first is field
    // 3, `state`.
    let (_, fields) = stat.rsplit_once(')').context("unreadable /proc/PID/stat")?;
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).flat_map(str::parse::<u64>).sum();
    Ok(Duration::from_millis(ticks * 10))
}
