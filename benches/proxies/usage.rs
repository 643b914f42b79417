//! What the kernel says that a process and its children used.

use std::{fs, time::Duration};

use anyhow::{Context, Result};

/// What a process and its children used so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// User and system time.
    pub(crate) cpu: Duration,
    /// Largest resident set in KiB, summed over the processes.
    pub(crate) peak_kib: u64,
    /// Resident set now in KiB, summed over the processes.
    pub(crate) rss_kib: u64,
}

impl Usage {
    /// Reads /proc for a process and its children, such as the workers of nginx.
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
