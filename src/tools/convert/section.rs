//! One section of the Collector's file. Callers take its keys one by one; the keys that no caller took are reported.

use super::{Cost, Note, yaml::Yaml};
use crate::config::node::{Entry, Node, Value, is_plain_name};

/// A section with the keys that were not taken yet.
pub(super) struct Section<'a> {
    path: String,
    line: u64,
    /// Cost of leaving out one of its keys.
    cost: Cost,
    left: Vec<&'a Entry>,
}

impl<'a> Section<'a> {
    /// Returns the whole file as a section.
    pub(super) fn root(node: &'a Node) -> Self {
        Self::of(String::new(), node)
    }

    /// Returns `node` as a section. Anything that is not a map (`otlp:` with nothing below it) becomes an empty
    /// section.
    fn of(path: String, node: &'a Node) -> Self {
        let left = match &node.value {
            Value::Map(entries) => entries.iter().collect(),
            _ => Vec::new(),
        };
        Self { path, line: node.position.line, cost: Cost::Setting, left }
    }

    /// Returns whether a key exists and is not empty.
    pub(super) fn has(&self, key: &str) -> bool {
        let is_empty = |node: &Node| match &node.value {
            Value::Map(entries) => entries.is_empty(),
            value => *value == Value::Null,
        };
        self.left.iter().any(|entry| entry.key == key && !is_empty(&entry.node))
    }

    /// Takes a key.
    pub(super) fn take(&mut self, key: &str) -> Option<&'a Entry> {
        let at = self.left.iter().position(|entry| entry.key == key)?;
        Some(self.left.remove(at))
    }

    /// Sets the cost of leaving out a key, for all findings from here on.
    pub(super) fn set_cost(&mut self, cost: Cost) {
        self.cost = cost;
    }

    /// Takes a key that holds a section.
    pub(super) fn section(&mut self, key: &str) -> Option<Self> {
        let entry = self.take(key)?;
        Some(Self { line: entry.position.line, cost: self.cost, ..Self::of(self.path_of(key), &entry.node) })
    }

    /// Takes all keys whose component type is one of `kinds`: both `otlp` and `otlp/2` have the type `otlp`.
    pub(super) fn components(&mut self, kinds: &[&str]) -> Vec<(&'a str, Self)> {
        let keys: Vec<&'a Entry> =
            self.left.iter().copied().filter(|entry| kinds.contains(&kind_of(&entry.key))).collect();
        keys.into_iter().filter_map(|entry| Some((entry.key.as_str(), self.section(&entry.key)?))).collect()
    }

    /// Takes all remaining keys as components.
    pub(super) fn others(&mut self) -> Vec<(&'a str, Self)> {
        let keys = self.left.clone();
        keys.into_iter().filter_map(|entry| Some((entry.key.as_str(), self.section(&entry.key)?))).collect()
    }

    /// Takes a key and its value unchanged. Returns an empty [`Yaml`] if the key does not exist.
    pub(super) fn pass(&mut self, key: &str) -> Yaml {
        self.take(key).map_or(Yaml::Scalar(Value::Null), |entry| Yaml::from(&entry.node))
    }

    /// Takes those of the keys that are set, with their values unchanged. An empty text counts as not set, as in the
    /// Collector.
    pub(super) fn pass_all(&mut self, keys: &[&str]) -> Vec<(String, Yaml)> {
        keys.iter()
            .filter_map(|key| {
                Some(((*key).to_owned(), Yaml::from(&self.take(key).filter(|entry| is_set(&entry.node))?.node)))
            })
            .collect()
    }

    /// Returns whether a key is set. An empty text counts as not set, as in the Collector.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.left.iter().any(|entry| entry.key == key && is_set(&entry.node))
    }

    /// Takes a key and returns its value as text; numbers and booleans are converted.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        self.take(key).and_then(|entry| text_of(&entry.node))
    }

    /// Takes keys that have no equivalent here, and adds a finding with the given reason for each that exists.
    pub(super) fn leave(&mut self, reasons: &[(&str, &str)], notes: &mut Vec<Note>) {
        for (key, reason) in reasons {
            if let Some(entry) = self.take(key) {
                notes.push(self.note_of(entry, format!("is left out: {reason}")));
            }
        }
    }

    /// Takes keys without a finding, because they would change nothing.
    pub(super) fn ignore(&mut self, keys: &[&str]) {
        self.left.retain(|entry| !keys.contains(&entry.key.as_str()));
    }

    /// Adds a finding for each key that was not taken.
    pub(super) fn rest(self, notes: &mut Vec<Note>) {
        for entry in &self.left {
            notes.push(self.note_of(entry, "is left out: Spanring has no equivalent"));
        }
    }

    /// Returns a finding about the section itself.
    pub(super) fn note(&self, message: impl Into<String>) -> Note {
        Note { path: self.path.clone(), line: self.line, message: message.into(), cost: self.cost }
    }

    /// Returns a finding about a key that was taken.
    pub(super) fn note_of(&self, entry: &Entry, message: impl Into<String>) -> Note {
        Note { path: self.path_of(&entry.key), line: entry.position.line, message: message.into(), cost: self.cost }
    }

    fn path_of(&self, key: &str) -> String {
        // A key that is not a plain name may be a misplaced value, such as a secret, so it is not shown.
        let key = if is_plain_name(key) { key } else { "…" };
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

fn is_set(node: &Node) -> bool {
    text_of(node).is_none_or(|text| !text.is_empty()) && !matches!(node.value, Value::Null)
}

/// Returns the type of a component, which is its name up to the slash.
pub(super) fn kind_of(name: &str) -> &str {
    name.split('/').next().unwrap_or_default()
}

/// Returns a scalar as text.
pub(super) fn text_of(node: &Node) -> Option<String> {
    match &node.value {
        Value::Text(text) | Value::Expanded(text, _) => Some(text.clone()),
        Value::Unsigned(number) => Some(number.to_string()),
        Value::Signed(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Null | Value::List(_) | Value::Map(_) => None,
    }
}

/// Formats a value for a finding. Values with references are not shown, since they may hold secrets.
pub(super) fn shown(node: &Node) -> String {
    match text_of(node) {
        Some(text) if !node.is_hidden() => format!("\"{text}\""),
        _ => "this value".to_owned(),
    }
}

/// Returns the members of a list as texts; a scalar counts as a list with one member.
pub(super) fn texts_of(node: &Node) -> Vec<String> {
    match &node.value {
        Value::List(items) => items.iter().filter_map(text_of).collect(),
        _ => text_of(node).into_iter().collect(),
    }
}

impl Note {
    /// Returns the same finding with another cost.
    pub(super) fn costing(self, cost: Cost) -> Self {
        Self { cost, ..self }
    }
}
