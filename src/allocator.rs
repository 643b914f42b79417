//! Limits the freed memory that glibc's allocator keeps. glibc reads these settings from the environment only, when a
//! process starts.

use std::{env, io};

/// Allocations of at least this size get a memory map of their own, which returns to the system when it is freed. By
/// default glibc raises this threshold (128 KiB at first) to the size of each freed map, up to 32 MiB: after a few
/// large messages, further ones come from arenas, whose fragments are memory outside the budget. A threshold set
/// explicitly stays fixed. This value is above the largest HTTP/2 frames and below decompressed requests of a few MiB.
const MMAP_THRESHOLD: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "524288");

/// Free memory at the end of an arena returns to the system when it exceeds this size. glibc's default of 128 KiB is
/// less than the parts of one request, so pages would be returned and requested again with every request (figures: `deploy/docs/performance.md`).
const TRIM_THRESHOLD: (&str, &str) = ("MALLOC_TRIM_THRESHOLD_", "4194304");

/// Restarts the program in the same process with these settings in its environment, unless one of them, or
/// `GLIBC_TUNABLES`, is set already.
///
/// Returns only when no restart is needed or when it fails.
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
    // `exec` returns only with an error.
    Err(command.args(arguments).envs([MMAP_THRESHOLD, TRIM_THRESHOLD]).exec())
}

#[cfg(not(unix))]
fn again() -> io::Result<()> {
    Ok(())
}
