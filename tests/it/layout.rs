//! The shape of the tree: who imports whom, how long a file may be, how it opens.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// What each room of `src` may use of the crate; rooms that are not named may use everything.
const MAY_USE: &[(&str, &[&str])] = &[
    ("otlp", &[]),
    ("allocator", &[]),
    ("budget", &[]),
    ("buffers", &[]),
    ("lifecycle", &[]),
    ("shortage", &[]),
    ("telemetry", &["lifecycle"]),
    ("descriptors", &["shortage"]),
    ("tls", &["lifecycle", "telemetry"]),
    ("access", &["telemetry", "tls"]),
    ("endpoint", &["access"]),
    ("health", &["access", "shortage", "telemetry"]),
    ("listen", &["descriptors", "lifecycle", "telemetry", "tls"]),
    ("split", &["buffers", "otlp"]),
    ("ring", &["endpoint", "otlp"]),
    ("route", &["ring", "split", "otlp"]),
    ("discovery", &["access", "endpoint", "lifecycle", "telemetry"]),
    ("membership", &["access", "endpoint", "ring", "lifecycle", "telemetry", "health", "shortage"]),
    (
        "dispatch",
        &[
            "access",
            "endpoint",
            "ring",
            "otlp",
            "budget",
            "buffers",
            "lifecycle",
            "telemetry",
            "health",
            "shortage",
            "tls",
        ],
    ),
    ("pipeline", &["split", "ring", "route", "dispatch", "otlp", "budget", "telemetry"]),
    ("receive", &["listen", "pipeline", "otlp", "budget", "buffers", "descriptors", "telemetry", "lifecycle", "tls"]),
    // Dispatch knows what each backend has to do, the vocabulary which signals a pool takes.
    ("admin", &["listen", "membership", "ring", "dispatch", "otlp", "telemetry", "lifecycle", "descriptors"]),
];

/// Longest file, in lines.
const MAX_LINES: usize = 500;

#[test]
fn rooms_import_only_what_lies_below_them() {
    let allowed: BTreeMap<_, _> = MAY_USE.iter().copied().collect();
    let mut wrong = Vec::new();
    for file in sources("src") {
        let room = room_of(&file);
        let Some(may) = allowed.get(room.as_str()) else { continue };
        for used in rooms_used(&read(&file)) {
            if used != room && !may.contains(&used.as_str()) {
                wrong.push(format!("{} uses crate::{used}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "rooms must not import upwards:\n{}", wrong.join("\n"));
}

#[test]
fn files_are_short_and_say_what_they_own() {
    let mut wrong = Vec::new();
    for file in ["src", "tests", "benches", "proto"].into_iter().flat_map(sources) {
        let text = read(&file);
        if text.lines().count() > MAX_LINES {
            wrong.push(format!("{} is longer than {MAX_LINES} lines", file.display()));
        }
        if !text.starts_with("//!") {
            wrong.push(format!("{} does not open with //!", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn rooms_used(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let flat = code.replace('\n', " ");
    let mut used = Vec::new();
    for (at, _) in flat.match_indices("crate::") {
        let rest = flat[at + "crate::".len()..].trim_start();
        match rest.strip_prefix('{') {
            Some(group) => used.extend(top_level_names(group)),
            None => used.push(name(rest)),
        }
    }
    used.retain(|room| !room.is_empty());
    used
}

/// The first names of a braced import's members: `a::b, c::{d, e}}` gives `a` and `c`.
fn top_level_names(group: &str) -> Vec<String> {
    let (mut depth, mut names, mut start) = (0, Vec::new(), 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.push(name(group[start..at].trim()));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(name(group[start..at].trim()));
                start = at + 1;
            }
            _ => {}
        }
    }
    names
}

fn name(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn room_of(file: &Path) -> String {
    let inside = file.strip_prefix(root().join("src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

fn sources(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
