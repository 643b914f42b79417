//! The number of threads follows the CPU limit of the control group, not the number of the machine's CPUs.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Result, ensure};

use super::harness::{self, Process, Ready};

/// A control group with a limit of one CPU, removed on drop.
struct OneCpu(PathBuf);

impl OneCpu {
    /// Creates the group with the machine's version of control groups; `None` if this process may not.
    fn make() -> Option<Self> {
        let name = format!("spanring-test-{}", std::process::id());
        let second = ("/sys/fs/cgroup", vec![("cpu.max", "100000 100000")]);
        let first = ("/sys/fs/cgroup/cpu", vec![("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "100000")]);
        [second, first].into_iter().find_map(|(root, limits)| {
            let group = PathBuf::from(root).join(&name);
            fs::create_dir(&group).ok()?;
            let group = Self(group);
            // On any other file system there is no `cgroup.procs`, and the files of limits must not be created.
            let is_one = group.0.join("cgroup.procs").exists();
            let is_set = limits.iter().all(|(file, limit)| is_one && fs::write(group.0.join(file), limit).is_ok());
            is_set.then_some(group)
        })
    }
}

impl Drop for OneCpu {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).ok();
    }
}

fn worker_threads(group: Option<&OneCpu>) -> Result<usize> {
    let (mut process, _) = harness::on_free_ports(|[grpc, admin]| {
        let join = group.map_or(String::new(), |group| format!("echo $$ >{}/cgroup.procs && ", group.0.display()));
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{join}exec \"$@\"")).arg("sh").arg(env!("CARGO_BIN_EXE_spanring"));
        command.args(["--backends", "static://127.0.0.1:1", "--otlp-http", "127.0.0.1:0", "--log-format", "json"]);
        command.arg("--otlp-grpc").arg(grpc.to_string()).arg("--admin").arg(admin.to_string());
        Ok((Process::start("spanring", &mut command)?, Ready::Page(format!("http://{admin}/livez"))))
    })?;
    let log = process.log();
    process.signal("KILL")?;
    process.wait()?;
    let after = log.split("\"worker_threads\":").nth(1).unwrap_or_default();
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    ensure!(!digits.is_empty(), "the log must say how many threads serve: {log}");
    Ok(digits.parse()?)
}

#[test]
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn a_group_that_grants_one_cpu_has_one_worker_thread() -> Result<()> {
    let machine = std::thread::available_parallelism()?.get();
    let all = worker_threads(None)?;
    ensure!(all == machine, "{all} threads on {machine} CPUs");
    let Some(group) = OneCpu::make() else {
        eprintln!("skipped: this process may not make control groups");
        return Ok(());
    };
    let granted = worker_threads(Some(&group))?;
    ensure!(granted == 1, "{granted} threads for one CPU of {machine}");
    Ok(())
}
