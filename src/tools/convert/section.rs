//! A section of the Collector's file that hands each of its keys out once and names what is left.

use super::{Cost, Note, yaml::Yaml};
use crate::config::tree::{Entry, Node, Value, is_plain_name};

/// The keys of a section that nobody took yet.
pub(super) struct Section<'a> {
    path: String,
    line: u64,
    /// What it costs that a key of it is left out.
    cost: Cost,
    left: Vec<&'a Entry>,
}

impl<'a> Section<'a> {
    /// The whole file.
    pub(super) fn root(node: &'a Node) -> Self {
        Self::of(String::new(), node)
    }

    /// `node` as a section; what is no section (`otlp:` with nothing below it) is an empty one.
    fn of(path: String, node: &'a Node) -> Self {
        let left = match &node.value {
            Value::Map(entries) => entries.iter().collect(),
            _ => Vec::new(),
        };
        Self { path, line: node.place.line, cost: Cost::Setting, left }
    }

    /// Whether a key is there and holds something.
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

    /// What it costs that a key of it is left out, from here on.
    pub(super) fn costs(&mut self, cost: Cost) {
        self.cost = cost;
    }

    /// Takes a key that holds a section.
    pub(super) fn section(&mut self, key: &str) -> Option<Self> {
        let entry = self.take(key)?;
        Some(Self { line: entry.place.line, cost: self.cost, ..Self::of(self.path_of(key), &entry.node) })
    }

    /// Takes all keys whose component type is one of `kinds`: `otlp` and `otlp/2` are of the type `otlp`.
    pub(super) fn components(&mut self, kinds: &[&str]) -> Vec<(&'a str, Self)> {
        let keys: Vec<&'a Entry> =
            self.left.iter().copied().filter(|entry| kinds.contains(&kind_of(&entry.key))).collect();
        keys.into_iter().filter_map(|entry| Some((entry.key.as_str(), self.section(&entry.key)?))).collect()
    }

    /// Takes all keys that are left, as components.
    pub(super) fn others(&mut self) -> Vec<(&'a str, Self)> {
        let keys = self.left.clone();
        keys.into_iter().filter_map(|entry| Some((entry.key.as_str(), self.section(&entry.key)?))).collect()
    }

    /// Takes a key as it is; [`Yaml::is_empty`] when it is not there.
    pub(super) fn pass(&mut self, key: &str) -> Yaml {
        self.take(key).map_or(Yaml::Scalar(Value::Null), |entry| Yaml::from(&entry.node))
    }

    /// Takes keys as they are, those that are there and say something: to the Collector an empty text is none.
    pub(super) fn pass_all(&mut self, keys: &[&str]) -> Vec<(String, Yaml)> {
        keys.iter()
            .filter_map(|key| {
                Some(((*key).to_owned(), Yaml::from(&self.take(key).filter(|entry| says(&entry.node))?.node)))
            })
            .collect()
    }

    /// Whether a key is there and says something: to the Collector an empty text is none.
    pub(super) fn says(&self, key: &str) -> bool {
        self.left.iter().any(|entry| entry.key == key && says(&entry.node))
    }

    /// Takes a key that holds text; a number is text too.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        self.take(key).and_then(|entry| text_of(&entry.node))
    }

    /// Takes keys that mean nothing here, each for a reason; not being there is fine.
    pub(super) fn leave(&mut self, reasons: &[(&str, &str)], notes: &mut Vec<Note>) {
        for (key, reason) in reasons {
            if let Some(entry) = self.take(key) {
                notes.push(self.note_of(entry, format!("is left out: {reason}")));
            }
        }
    }

    /// Takes keys that say nothing that is not so anyway.
    pub(super) fn ignore(&mut self, keys: &[&str]) {
        self.left.retain(|entry| !keys.contains(&entry.key.as_str()));
    }

    /// Names what nobody took.
    pub(super) fn rest(self, notes: &mut Vec<Note>) {
        for entry in &self.left {
            notes.push(self.note_of(entry, "is left out: Spanring has nothing like it"));
        }
    }

    /// Says something of the section itself.
    pub(super) fn note(&self, message: impl Into<String>) -> Note {
        Note { path: self.path.clone(), line: self.line, message: message.into(), cost: self.cost }
    }

    /// Says something of a key that was taken.
    pub(super) fn note_of(&self, entry: &Entry, message: impl Into<String>) -> Note {
        Note { path: self.path_of(&entry.key), line: entry.place.line, message: message.into(), cost: self.cost }
    }

    fn path_of(&self, key: &str) -> String {
        // What is no plain name may be a value that went astray: it is not to be in a finding.
        let key = if is_plain_name(key) { key } else { "…" };
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

fn says(node: &Node) -> bool {
    text_of(node).is_none_or(|text| !text.is_empty()) && !matches!(node.value, Value::Null)
}

/// A component's type: what stands before the slash.
pub(super) fn kind_of(name: &str) -> &str {
    name.split('/').next().unwrap_or_default()
}

/// A scalar as text.
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

/// A value as a finding may show it: not where it has a reference.
pub(super) fn shown(node: &Node) -> String {
    match text_of(node) {
        Some(text) if !node.is_hidden() => format!("\"{text}\""),
        _ => "this value".to_owned(),
    }
}

/// The members of a list, as text.
pub(super) fn texts_of(node: &Node) -> Vec<String> {
    match &node.value {
        Value::List(items) => items.iter().filter_map(text_of).collect(),
        _ => text_of(node).into_iter().collect(),
    }
}

impl Note {
    /// The same, at another cost.
    pub(super) fn costing(self, cost: Cost) -> Self {
        Self { cost, ..self }
    }
}
