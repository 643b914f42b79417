//! Tests of the structure of `src`: which module uses which, how long files may be, and that each begins with a doc
//! comment.
//!
//! A *room* is a module at the top of `src`, or a module inside of one that has its own place in the order. The table
//! of rooms states the order: a room uses only rooms that are listed before it. So there are no cycles, and a reader
//! who follows the table knows every name before it is used.

mod imports;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// A room and the rooms that it uses.
type Room = (&'static str, &'static [&'static str]);

/// All rooms, each after those that it uses.
const ROOMS: &[Room] = &[
    // The vocabulary, and modules that depend on nothing.
    ("otlp", &[]),
    ("settings", &["otlp"]),
    ("budget", &[]),
    ("json", &["budget", "otlp"]),
    ("spare", &[]),
    ("places", &[]),
    ("codec", &["budget", "otlp", "places", "settings", "spare"]),
    ("lifecycle", &[]),
    ("shortage", &[]),
    ("signals", &[]),
    ("wall_clock", &[]),
    ("descriptors", &["shortage"]),
    ("telemetry", &["lifecycle", "settings"]),
    ("tls", &["lifecycle", "settings", "telemetry"]),
    ("access", &["telemetry", "tls"]),
    ("endpoint", &["access"]),
    ("health", &["access", "shortage", "telemetry"]),
    // Connections of clients, independent of their protocol.
    ("listen", &["budget", "descriptors", "lifecycle", "shortage", "telemetry", "tls"]),
    // Which backend owns which trace.
    ("split", &["otlp"]),
    ("ring", &["endpoint", "settings", "wall_clock"]),
    ("route", &["otlp", "ring", "settings", "split", "wall_clock"]),
    ("discovery", &["access", "endpoint", "lifecycle", "settings", "telemetry"]),
    (
        "membership",
        &["access", "budget", "endpoint", "health", "lifecycle", "ring", "settings", "telemetry", "wall_clock"],
    ),
    // The path of the data, beginning at its end.
    // Calls on one connection, without queues.
    (
        "dispatch::transport",
        &["access", "codec", "endpoint", "health", "lifecycle", "otlp", "settings", "shortage", "tls"],
    ),
    (
        "dispatch",
        &[
            "budget",
            "codec",
            "descriptors",
            "dispatch::transport",
            "endpoint",
            "health",
            "lifecycle",
            "otlp",
            "ring",
            "settings",
            "shortage",
            "telemetry",
            "tls",
        ],
    ),
    (
        "pipeline",
        &[
            "budget",
            "codec",
            "dispatch",
            "otlp",
            "places",
            "ring",
            "route",
            "settings",
            "spare",
            "split",
            "telemetry",
            "wall_clock",
        ],
    ),
    (
        "receive",
        &[
            "budget",
            "codec",
            "descriptors",
            "json",
            "lifecycle",
            "listen",
            "otlp",
            "pipeline",
            "places",
            "settings",
            "telemetry",
            "tls",
        ],
    ),
    // Dispatch knows what each backend has to do, the vocabulary which signals a pool takes.
    (
        "admin",
        &[
            "budget",
            "descriptors",
            "dispatch",
            "endpoint",
            "lifecycle",
            "listen",
            "membership",
            "otlp",
            "ring",
            "settings",
            "telemetry",
            "wall_clock",
        ],
    ),
    // From the configuration file to the settings of each room.
    ("config", &["admin", "budget", "discovery", "dispatch", "membership", "otlp", "receive", "settings", "tls"]),
    (
        "proxy",
        &[
            "access",
            "admin",
            "budget",
            "config",
            "descriptors",
            "discovery",
            "dispatch",
            "health",
            "lifecycle",
            "listen",
            "membership",
            "otlp",
            "pipeline",
            "receive",
            "settings",
            "telemetry",
            "tls",
        ],
    ),
    // The other commands.
    ("tools", &["admin", "codec", "config", "discovery", "endpoint", "lifecycle", "otlp", "ring", "settings", "tls"]),
    ("cli", &["config", "settings", "tools"]),
    ("lib", &[]),
    ("main", &["cli", "config", "descriptors", "proxy", "settings", "signals", "telemetry", "tools"]),
];

/// The greatest length of a file, in lines.
const MAX_LINES: usize = 500;

#[test]
fn a_room_uses_only_rooms_before_it() {
    let files: Vec<_> = sources("src")
        .into_iter()
        .map(|file| (file.strip_prefix(root().join("src")).unwrap().to_str().unwrap().to_owned(), read(&file)))
        .collect();
    let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let wrong = complaints(ROOMS, &files);
    assert!(wrong.is_empty(), "rooms must be listed and use only rooms before them:\n{}", wrong.join("\n"));
}

#[test]
fn files_are_short_and_begin_with_a_doc_comment() {
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

/// Returns the errors in files with these paths (relative to `src`) and texts, for this table of rooms.
fn complaints(rooms: &[Room], files: &[(&str, &str)]) -> Vec<String> {
    let mut wrong = against_the_order(rooms);
    let read: Vec<_> = files.iter().map(|(path, text)| (*path, imports::read(&module_of(path), text))).collect();
    let mut for_tests: BTreeSet<Vec<String>> = BTreeSet::new();
    for (path, imports) in &read {
        let inside = |name: &String| [module_of(path), vec![name.clone()]].concat();
        for_tests.extend(imports.test_modules.iter().map(inside));
    }
    let is_test = |module: &[String]| {
        module.iter().any(|name| name == "tests") || for_tests.iter().any(|tests| module.starts_with(tests))
    };
    let mut used: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (path, imports) in &read {
        let module = module_of(path);
        let name = if module.is_empty() { vec![path.trim_end_matches(".rs").to_owned()] } else { module };
        if is_test(&name) {
            continue;
        }
        let Some((room, may)) = room_of(rooms, &name) else {
            wrong.push(format!("{path}: is in no listed room"));
            continue;
        };
        let mut others = BTreeSet::new();
        for import in &imports.paths {
            match room_of(rooms, import) {
                Some((other, _)) => drop(others.insert(*other)),
                None => {
                    wrong.push(format!("{path}: uses crate::{}, which is in no listed room", import.join("::")));
                }
            }
        }
        let above = others.iter().filter(|other| *other != room && !may.contains(other));
        wrong.extend(above.map(|other| format!("{path}: {room} uses {other}")));
        used.entry(room).or_default().extend(others);
    }
    for (room, may) in rooms {
        let unused = may.iter().filter(|other| !used.get(room).is_some_and(|used| used.contains(*other)));
        wrong.extend(unused.map(|other| format!("{room} may use {other} and does not")));
    }
    wrong
}

/// Returns the errors in the table itself: rooms that may use a room which is listed after them or not at all.
fn against_the_order(rooms: &[Room]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (at, (room, may)) in rooms.iter().enumerate() {
        let is_below = |other: &&str| rooms[..at].iter().any(|(below, _)| below == other);
        wrong.extend(may.iter().filter(|other| !is_below(other)).map(|other| format!("{room} is not above {other}")));
    }
    wrong
}

/// Returns the innermost room that contains a module.
fn room_of<'r>(rooms: &'r [Room], module: &[String]) -> Option<&'r Room> {
    let is_in = |(room, _): &&Room| {
        let names: Vec<&str> = room.split("::").collect();
        module.len() >= names.len() && names.iter().zip(module).all(|(name, of)| name == of)
    };
    rooms.iter().filter(is_in).max_by_key(|(room, _)| room.len())
}

/// Returns the module of a file: `a/b.rs` and `a/b/mod.rs` are `a::b`; `lib.rs` and `main.rs` are the root.
fn module_of(path: &str) -> Vec<String> {
    let mut names: Vec<String> = path.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if names.last().is_some_and(|name| name == "mod") || matches!(&names[..], [name] if name == "lib" || name == "main")
    {
        names.pop();
    }
    names
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

// === The check itself, on text that is made up ===

#[test]
fn cycles_are_found_whether_declared_or_not() {
    let files =
        [("low.rs", "use crate::high::Name;"), ("high/mod.rs", "mod part;"), ("high/part.rs", "use crate::low::f;")];
    let declared: &[Room] = &[("low", &["high"]), ("high", &["low"])];
    assert_eq!(complaints(declared, &files), ["low is not above high"]);
    let undeclared: &[Room] = &[("low", &[]), ("high", &["low"])];
    assert_eq!(complaints(undeclared, &files), ["low.rs: low uses high"]);
    assert_eq!(complaints(undeclared, &files[1..]), [""; 0]);
    let far: &[Room] = &[("a", &["c"]), ("b", &["a"]), ("c", &["b"])];
    assert_eq!(against_the_order(far), ["a is not above c"], "a circle of three");
}

#[test]
fn every_kind_of_path_to_another_room_is_found() {
    let rooms: &[Room] = &[("low", &[]), ("high", &[])];
    for text in [
        "use crate::high::Name;",
        "use crate::{low::{a, b}, high};",
        "use crate::{low, high::{self, Name as Other}};",
        "pub use crate :: /* there */ high :: *;",
        "use super::high::Name;",
        "mod inner { use super::super::high::Name; }",
        "fn f() -> crate::high::Name { todo!() }",
        "fn f() { let text = \"\\\"//\"; let quote = '\"'; crate::high::f::<u8>() }",
        "fn f<'a>(name: &'a str) { g(r#\"\"#, 'x', self::super::high::f) }",
        "macro_rules! m { () => { $crate::high::f() } }",
        "mod messages;\n#[cfg(test)]\nmod tests { fn f() {} }\nuse crate::high::Name;",
        "#[cfg(test)]\nuse crate::low::Name;\n#[cfg(test)]\nmod messages;\nuse crate::high::Name;",
        "struct S {\n #[cfg(test)]\n seen: u8,\n other: crate::high::Name }",
        "#[cfg(not(test))]\nuse crate::high::Name;",
    ] {
        assert_eq!(complaints(rooms, &[("low.rs", text)]), ["low.rs: low uses high"], "{text}");
    }
}

#[test]
fn code_that_does_not_use_another_room_is_accepted() {
    let rooms: &[Room] = &[("low", &[]), ("high", &[])];
    let files = [
        (
            "low/mod.rs",
            "//! See crate::high.\nuse self::part::f; use crate::low::part; #[cfg(test)] mod messages; mod part;",
        ),
        (
            "low/part.rs",
            "pub(in crate::high) fn f() { \"crate::high\"; /* crate::high /* */ crate::high */ super::g() }",
        ),
        ("low/messages.rs", "use crate::high::Name;"),
        ("low/tests.rs", "use crate::high::Name;"),
        ("low/tests/deep.rs", "use crate::high::Name;"),
        (
            "low/inner.rs",
            "#[cfg(test)]\nmod tests { use crate::high::{a, b}; }\n#[cfg(test)]\nuse crate::high::{a, b};",
        ),
        (
            "low/fields.rs",
            "struct S {\n #[cfg(test)]\n seen: crate::high::Name,\n}\n#[cfg(all(test, unix))]\nfn f<A, B>() { crate::high::f() }",
        ),
        ("low/std.rs", "use std::high::Name; use other::crate_high; fn f(self) { self.high() }"),
    ];
    assert_eq!(complaints(rooms, &files), [""; 0]);
}

#[test]
fn an_inner_room_does_not_use_its_outer_room() {
    let rooms: &[Room] = &[("calls::wire", &[]), ("calls", &["calls::wire"])];
    let above = ("calls/mod.rs", "mod wire; use self::wire::send; use crate::calls::wire::Name;");
    for text in ["use super::Config;", "use crate::calls::queue::f;", "use crate::{calls::{wire::a, queue}};"] {
        let wrong = complaints(rooms, &[above, ("calls/wire/mod.rs", text)]);
        assert_eq!(wrong, ["calls/wire/mod.rs: calls::wire uses calls"], "{text}");
    }
    let wrong = complaints(rooms, &[above, ("calls/wire/frames.rs", "use super::super::Config; use super::Name;")]);
    assert_eq!(wrong, ["calls/wire/frames.rs: calls::wire uses calls"]);
    assert_eq!(complaints(rooms, &[above, ("calls/wire/frames.rs", "use super::Name;")]), [""; 0]);
}

#[test]
fn unlisted_rooms_and_unused_entries_are_found() {
    let rooms: &[Room] = &[("low", &[]), ("lib", &[]), ("high", &["low"])];
    let files = [
        ("lib.rs", "pub mod low; pub mod high;"),
        ("new.rs", ""),
        ("low.rs", "use crate::new::Name; use crate::{self as all};"),
    ];
    let wrong = complaints(rooms, &files);
    assert_eq!(
        wrong,
        [
            "new.rs: is in no listed room",
            "low.rs: uses crate::, which is in no listed room",
            "low.rs: uses crate::new::Name, which is in no listed room",
            "high may use low and does not",
        ]
    );
}
