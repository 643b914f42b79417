//! Checks third-party code: actions are pinned by commit, images by digest; yanked and unmaintained crates are refused.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// Images that are built here, or whose digest `.ci/pins` asks the registry for.
const WITHOUT_DIGEST: [&str; 2] =
    ["spanring:dev", "ghcr.io/open-telemetry/opentelemetry-collector-contrib/telemetrygen:v0.155.0"];

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(repository(path)).with_context(|| path.to_owned())
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn has_digest(image: &str) -> bool {
    image.split_once("@sha256:").is_some_and(|(name, digest)| name.contains(':') && is_hex(digest, 64))
}

#[test]
fn actions_are_pinned_by_commit_with_their_version() -> Result<()> {
    for entry in fs::read_dir(repository(".github/workflows"))? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        for used in text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("uses: ")) {
            let pinned = used.split_once('@').and_then(|(_, rest)| rest.split_once(" # v"));
            ensure!(pinned.is_some_and(|(commit, _)| is_hex(commit, 40)), "{}: {used}", path.display());
        }
    }
    Ok(())
}

#[test]
fn images_are_pinned_by_digest() -> Result<()> {
    for line in read("deploy/Dockerfile")?.lines() {
        ensure!(!line.starts_with("# syntax="), "the frontend is an image too: {line}");
        if let Some(image) = line.strip_prefix("FROM ") {
            ensure!(image.split_whitespace().next().is_some_and(has_digest), "{line}");
        }
    }
    for image in read("deploy/compose.yaml")?.lines().filter_map(|line| line.trim().strip_prefix("image: ")) {
        ensure!(has_digest(image) || WITHOUT_DIGEST.contains(&image), "{image}");
    }
    Ok(())
}

#[test]
fn yanked_and_unmaintained_crates_are_refused() -> Result<()> {
    let rules = read(".deny.toml")?;
    for rule in ["yanked = \"deny\"", "unmaintained = \"all\""] {
        ensure!(rules.lines().any(|line| line == rule), "{rule} must be in .deny.toml");
    }
    Ok(())
}

/// Runs `.ci/advisories` with stand-ins for cargo and git; returns its exit code and output.
fn advisories(cargo: &str, git: &str, on_github: bool) -> Result<(Option<i32>, String)> {
    let stand_ins = tempfile::tempdir()?;
    for (name, body) in [("cargo", cargo), ("git", git)] {
        let path = stand_ins.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    let mut command = Command::new("bash");
    command.arg(repository(".ci/advisories"));
    command.env("PATH", format!("{}:/usr/bin:/bin", stand_ins.path().display())).env_remove("GITHUB_ACTIONS");
    if on_github {
        command.env("GITHUB_ACTIONS", "true");
    }
    let output = command.output()?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned()))
}

#[test]
fn the_advisory_check_is_skipped_only_if_its_database_is_unavailable() -> Result<()> {
    let (fine, finding) = ("echo advisories ok", "echo 'error[vulnerability]: a hole'; exit 1");
    let (lost, late) = ("echo 'failed to fetch advisory database'; exit 1", "exit 124");
    let (reached, not_reached) = ("exit 0", "exit 128");
    let cases = [
        (fine, not_reached, false, 0),
        (finding, not_reached, false, 1),
        (lost, reached, false, 1),
        (late, reached, false, 1),
        (lost, not_reached, true, 1),
        (lost, not_reached, false, 77),
        (late, not_reached, false, 77),
    ];
    for (cargo, git, on_github, expected) in cases {
        let (code, said) = advisories(cargo, git, on_github)?;
        ensure!(code == Some(expected), "{cargo} and {git}, on GitHub: {on_github}: {code:?}, {said}");
    }
    Ok(())
}
