//! Finds out how much memory the process may use: the lowest limit of its cgroups, or the memory of the machine.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

/// Returns how many bytes this process may use, or `None` if that is unknown. `root` is the directory that contains
/// `proc` and `sys`: `/`, or that of a test.
pub(super) fn available(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().flat_map(|line| group_limits(root, line));
    limits.chain(machine_memory(root)).min()
}

/// Returns the limits of the group in one line of `/proc/self/cgroup` (cgroups(7)): `0::/path` is version 2,
/// `4:memory:/path` version 1. The limits of its parents apply too.
fn group_limits(root: &Path, line: &str) -> Vec<u64> {
    let mut fields = line.splitn(3, ':');
    let (Some(hierarchy), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
        return Vec::new();
    };
    let (mount, file) = if hierarchy == "0" && controllers.is_empty() {
        ("sys/fs/cgroup", "memory.max")
    } else if controllers.split(',').any(|name| name == "memory") {
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
    } else {
        return Vec::new();
    };
    let group: PathBuf = Path::new(path).components().filter(|part| matches!(part, Component::Normal(_))).collect();
    // In a container the path may be that of the host and not exist here. The root of the mount is then its own group.
    group.ancestors().filter_map(|parent| read_number(&root.join(mount).join(parent).join(file))).collect()
}

/// Reads a limit. Version 2 writes `max` for no limit, which is not a number; version 1 writes a number greater than
/// any memory.
fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn machine_memory(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            fs::write(path, text).expect("a file");
        }
        root
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal:       16384000 kB\nMemFree:  1 kB\n");
    const MACHINE: u64 = 16_384_000 * 1024;

    #[test]
    fn the_lowest_limit_of_a_group_and_its_parents_applies() {
        let root = tree(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/kubepods/pod1/proxy\n"),
            ("sys/fs/cgroup/kubepods/memory.max", "9000000000\n"),
            ("sys/fs/cgroup/kubepods/pod1/memory.max", "268435456\n"),
            ("sys/fs/cgroup/kubepods/pod1/proxy/memory.max", "max\n"),
        ]);
        assert_eq!(available(root.path()), Some(268_435_456));
    }

    #[test]
    fn in_a_container_the_root_is_its_own_group() {
        let root = tree(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/../../host/path\n"),
            ("sys/fs/cgroup/memory.max", "134217728\n"),
        ]);
        assert_eq!(available(root.path()), Some(134_217_728));
    }

    #[test]
    fn limits_of_cgroups_version_1_are_read() {
        let root = tree(&[
            MEMINFO,
            ("proc/self/cgroup", "5:cpu,cpuacct:/a\n4:memory:/docker/1\n1:name=systemd:/a\n"),
            ("sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", "536870912\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!(available(root.path()), Some(536_870_912));
    }

    #[test]
    fn without_a_limit_the_memory_of_the_machine_applies() {
        let root = tree(&[MEMINFO, ("proc/self/cgroup", "0::/user\n"), ("sys/fs/cgroup/user/memory.max", "max\n")]);
        assert_eq!(available(root.path()), Some(MACHINE));
        assert_eq!(available(tree(&[MEMINFO]).path()), Some(MACHINE));
    }

    #[test]
    fn without_any_of_the_files_the_memory_is_unknown() {
        assert_eq!(available(tree(&[]).path()), None);
        assert_eq!(
            available(tree(&[("proc/meminfo", "MemTotal: lots\n"), ("proc/self/cgroup", "::\nx\n")]).path()),
            None
        );
    }
}
