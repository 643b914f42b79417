//! The table of all keys in `deploy/docs/configuration.md`. It is generated from the declarations. A test compares the
//! table with them; `UPDATE_DOCS=1 cargo test reference` rewrites it.

use std::{collections::BTreeSet, fs, path::Path};

use serde::Serialize;
use serde_json::Value;

use super::{Settings, section::Section};

/// The row of one key.
#[derive(Debug)]
pub(crate) struct Row {
    key: String,
    default: String,
    help: String,
}

impl Row {
    /// Creates the row of the key at `path`. Without a default, the cell for it is empty.
    pub(crate) fn new(path: &str, default: Option<impl Serialize>, help: &str) -> Self {
        let default = match serde_json::to_value(default).expect("a default") {
            Value::Null => String::new(),
            Value::String(text) => text,
            Value::Array(items) if items.is_empty() => String::new(),
            Value::Object(keys) if keys.is_empty() => String::new(),
            other => other.to_string(),
        };
        Self { key: path.to_owned(), default, help: help.trim().to_owned() }
    }

    /// The path of the key.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    pub(crate) fn line(&self) -> String {
        let Self { key, default, help } = self;
        let default = if default.is_empty() { String::new() } else { format!("`{default}`") };
        format!("| `{key}` | {default} | {help} |")
    }
}

/// Returns the path of a key in the section at `path`.
pub(crate) fn below(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Returns the rows of all keys of the file.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    Settings::default().document_keys("", &mut rows);
    rows
}

/// Returns the keys that are declared twice in one section: by the section itself and by one that it includes.
pub(crate) fn declared_twice(rows: &[Row]) -> Vec<&str> {
    let mut seen = BTreeSet::new();
    rows.iter().map(Row::key).filter(|key| !seen.insert(*key)).collect()
}

/// Compares the table below a heading of a document with `rows`, or rewrites it.
pub(crate) fn assert_table(document: &str, heading: &str, rows: &[String]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
    let text = fs::read_to_string(&path).expect(document);
    let lines: Vec<&str> = text.lines().collect();
    let heading = lines.iter().position(|line| *line == heading).unwrap_or_else(|| panic!("{document}: no {heading}"));
    let is_row = |line: &&str| line.starts_with('|');
    let table = heading + lines[heading..].iter().position(is_row).expect("a table");
    let (above, rest) = lines.split_at(table + 2);
    let (written, after) = rest.split_at(rest.iter().take_while(|line| is_row(line)).count());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let lines: Vec<&str> =
            above.iter().copied().chain(rows.iter().map(String::as_str)).chain(after.iter().copied()).collect();
        fs::write(&path, lines.join("\n") + "\n").expect(document);
        return;
    }
    for (written, row) in written.iter().zip(rows) {
        assert_eq!(written, row, "{document} differs from the code: UPDATE_DOCS=1 cargo test rewrites the table");
    }
    assert_eq!(written.len(), rows.len(), "rows of {document}: UPDATE_DOCS=1 cargo test rewrites the table");
}

#[test]
fn the_reference_has_every_key_with_its_default_and_meaning() {
    let rows: Vec<String> = rows().iter().map(Row::line).collect();
    assert_table("deploy/docs/configuration.md", "## Keys", &rows);
}

#[test]
fn no_section_has_a_key_twice() {
    assert_eq!(declared_twice(&rows()), [""; 0]);
}
