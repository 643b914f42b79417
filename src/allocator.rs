//! What glibc's allocator keeps of freed memory: bounded, by settings of its own, which it reads from the environment only.

use std::{env, io};

/// Allocations from this size on are maps of their own, which go back to the system when they are freed. glibc raises its
/// threshold (128 KiB at first) to the size of whatever was freed, up to 32 MiB: after a few large messages, further ones
/// come from arenas that keep their fragments, which is memory beyond the budget. Naming a threshold keeps it where it is.
/// The largest frames of HTTP/2 are below the threshold, inflated requests of some MiB above it (peaks of memory with and
/// without it: `deploy/docs/performance.md`).
const MMAP_THRESHOLD: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "524288");

/// Freed memory at the end of an arena goes back to the system once there is so much of it. glibc's own 128 KiB are less than
/// the parts of one request of 512 spans, so that pages would go back and be fetched again with each request (cost:
/// `deploy/docs/performance.md`).
const TRIM_THRESHOLD: (&str, &str) = ("MALLOC_TRIM_THRESHOLD_", "4194304");

/// Starts the program once more in this process, with these settings in its environment, unless somebody has chosen any.
///
/// Returns only where that is not needed or cannot be had.
pub fn settle() -> io::Result<()> {
    let chosen =
        [MMAP_THRESHOLD.0, TRIM_THRESHOLD.0, "GLIBC_TUNABLES"].into_iter().any(|name| env::var_os(name).is_some());
    if chosen || !cfg!(all(target_os = "linux", target_env = "gnu")) {
        return Ok(());
    }
    again()
}

#[cfg(unix)]
fn again() -> io::Result<()> {
    use std::{os::unix::process::CommandExt, process::Command};

    let mut arguments = env::args_os();
    let mut command = Command::new(env::current_exe()?);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // It comes back only with an error.
    Err(command.args(arguments).envs([MMAP_THRESHOLD, TRIM_THRESHOLD]).exec())
}

#[cfg(not(unix))]
fn again() -> io::Result<()> {
    Ok(())
}
