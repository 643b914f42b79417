//! The metrics of the process itself. They are read from `/proc` when the page is asked for. Their names and meanings are those
//! that every Prometheus client uses.

use std::{
    fs,
    sync::OnceLock,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{metrics as page, panics};

/// Clock ticks a second in `/proc/self/stat`: `USER_HZ`, which is 100 on every architecture that Rust has for Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// The values that can be read now, by the names of their metrics. They are not held in the store: its counters are whole
/// numbers, and seconds of CPU time are not.
pub(super) fn observe() -> Vec<(&'static str, f64)> {
    let values = [
        (page::RUNTIME_TASKS, tasks()),
        (page::PROCESS_START_TIME_SECONDS, Some(note_start())),
        (page::PROCESS_CPU_SECONDS_TOTAL, cpu_seconds()),
        (page::PROCESS_RESIDENT_MEMORY_BYTES, kibibytes("VmRSS:")),
        (page::PROCESS_VIRTUAL_MEMORY_BYTES, kibibytes("VmSize:")),
        (page::PROCESS_OPEN_FDS, open_fds()),
        (page::PROCESS_MAX_FDS, max_fds()),
        (page::PROCESS_THREADS, status("Threads:")),
        (page::PROCESS_PANICS_TOTAL, Some(panics())),
    ];
    values.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// Returns the memory that the process holds now, in bytes, if `/proc` says so.
pub(crate) fn resident_memory() -> Option<usize> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size in memory fits")]
    kibibytes("VmRSS:").map(|bytes| bytes as usize)
}

/// Returns when the process started. Where `/proc` does not say so, it is the time of the first call.
pub(super) fn note_start() -> f64 {
    static STARTED: OnceLock<f64> = OnceLock::new();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |now| now.as_secs_f64());
    *STARTED.get_or_init(|| start_time().unwrap_or_else(now))
}

/// A field of `/proc/self/stat` by its number in proc_pid_stat(5), from 3 on. Field 2 is the command's name, which may hold
/// anything and ends at the last parenthesis.
fn stat_field(number: usize) -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

fn cpu_seconds() -> Option<f64> {
    Some((stat_field(14)? + stat_field(15)?) / TICKS_PER_SECOND)
}

fn start_time() -> Option<f64> {
    let since_boot = stat_field(22)? / TICKS_PER_SECOND;
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + since_boot)
}

/// Open descriptors, without the one that this reads the directory with.
fn open_fds() -> Option<f64> {
    let count = fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1);
    u32::try_from(count).ok().map(f64::from)
}

/// A number of `/proc/self/status`.
fn status(key: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().trim_end_matches("kB").trim_end().parse().ok()
}

/// A number of `/proc/self/status` that stands there in KiB, in bytes.
fn kibibytes(key: &str) -> Option<f64> {
    status(key).map(|kibibytes| kibibytes * 1024.0)
}

fn max_fds() -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// The runtime's tasks; 0 outside of a runtime.
fn tasks() -> Option<f64> {
    let count = tokio::runtime::Handle::try_current().map_or(0, |runtime| runtime.metrics().num_alive_tasks());
    u32::try_from(count).ok().map(f64::from)
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn panics() -> f64 {
    panics::count() as f64
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn linux_tells_what_the_process_uses() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
        let started = start_time().expect("a start time");
        assert!(started <= now + 1.0 && started > now - 86_400.0, "{started} against {now}");
        assert!(cpu_seconds().is_some());
        assert!(open_fds().is_some_and(|count| count >= 3.0));
        assert!(kibibytes("VmRSS:").is_some_and(|bytes| bytes > 1e6));
        assert!(status("Threads:").is_some_and(|threads| threads >= 1.0));
        assert!(max_fds().is_some_and(|limit| limit > 0.0));
    }
}
