//! A YAML file as a tree of nodes. Each node has its position in the file, so that every later error can name it.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeMap};
use serde_saphyr::Spanned;

use super::ConfigError;
use crate::settings::headers::REDACTED;

/// The key whose values are secrets, in our files and in the Collector's.
const HEADERS: &str = "headers";

/// A position in a file. Lines and columns are counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: u64,
    /// The column, in characters.
    pub column: u64,
}

/// A value and its position.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) position: Position,
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

/// The origin of a value, which decides whether it may be shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It is written in the file.
    #[default]
    Written,
    /// It contains a reference (`${…}`). No message shows it, neither before nor after the reference is replaced.
    Reference,
    /// It is a value of `headers`. No message shows it, and it is printed as `[REDACTED]`.
    Header,
    /// It is the content of another file. It is never shown.
    File,
}

/// A value of YAML.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    /// The result of a reference: the text, for keys whose value is text, and the value that YAML reads in it.
    Expanded(String, Box<Self>),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) position: Position,
    pub(crate) node: Node,
}

/// One step from a node to one of its children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Key(String),
    Index(usize),
}

impl Node {
    pub(crate) fn new(position: Position, value: Value) -> Self {
        Self { position, value, origin: Origin::default() }
    }

    /// Reads YAML.
    pub(crate) fn parse(text: &str) -> Result<Self, ConfigError> {
        // An empty file is an empty configuration. The check reports the missing keys.
        if text.lines().all(|line| line.trim_start().starts_with('#') || line.trim().is_empty()) {
            return Ok(Self::new(Position { line: 1, column: 1 }, Value::Map(Vec::new())));
        }
        let node: Spanned<Value> = serde_saphyr::from_str(text).map_err(|error| {
            let position = error.location().map(|at| position(&at));
            let (position, message) = match (known_message(&error), position) {
                (Some(message), position) => (position, message),
                (None, position) => match tab_near(text, position.unwrap_or_default().line) {
                    Some(tab) => (Some(tab), TAB.to_owned()),
                    None => (position, NO_YAML.to_owned()),
                },
            };
            ConfigError { position, path: Vec::new(), message, is_local: false }
        })?;
        let mut node = Self::from(node);
        node.mark(Origin::Written);
        Ok(node)
    }

    /// Sets the origin of each value. This happens before any error can be about one.
    fn mark(&mut self, origin: Origin) {
        self.origin = origin;
        match &mut self.value {
            Value::Text(text) if origin == Origin::Written && text.contains("${") => self.origin = Origin::Reference,
            Value::List(items) => items.iter_mut().for_each(|item| item.mark(origin)),
            Value::Map(entries) => {
                for entry in entries {
                    entry.node.mark(if entry.key == HEADERS { Origin::Header } else { origin });
                }
            }
            _ => {}
        }
    }

    /// Returns the position of the value at `path`, or of the nearest section around it that exists in the file.
    pub(crate) fn position_of(&self, path: &[Step]) -> Position {
        let mut at = self.position;
        let mut node = self;
        for step in path {
            let child = match (step, &node.value) {
                (Step::Key(key), Value::Map(entries)) => entries.iter().find(|entry| entry.key == *key),
                (Step::Index(index), Value::List(items)) => {
                    let Some(item) = items.get(*index) else { break };
                    at = item.position;
                    node = item;
                    continue;
                }
                _ => None,
            };
            let Some(entry) = child else { break };
            // The position of a scalar is that of its value, the position of a section that of its key.
            at = if entry.node.is_scalar() { entry.node.position } else { entry.position };
            node = &entry.node;
        }
        at
    }

    /// Returns whether this node, or a node in it, must not be shown in a message.
    pub(crate) fn is_hidden(&self) -> bool {
        self.any(&|origin| origin != Origin::Written)
    }

    /// Returns whether this node, or a node in it, contains a reference.
    pub(super) fn has_reference(&self) -> bool {
        self.any(&|origin| origin == Origin::Reference)
    }

    /// Removes every value that contains a reference.
    pub(super) fn drop_references(&mut self) {
        let is_known = |node: &Self| node.origin != Origin::Reference;
        match &mut self.value {
            Value::List(items) => {
                items.retain(is_known);
                items.iter_mut().for_each(Self::drop_references);
            }
            Value::Map(entries) => {
                entries.retain(|entry| is_known(&entry.node));
                entries.iter_mut().for_each(|entry| entry.node.drop_references());
            }
            _ => {}
        }
    }

    /// Converts a path in the tree after [`Node::drop_references`] to a path in this tree, in which the items of a list
    /// that contain references count too.
    pub(super) fn with_references(&self, path: &[Step]) -> Vec<Step> {
        let mut node = Some(self);
        let mut counted = Vec::with_capacity(path.len());
        for step in path {
            let step = match (step, node.map(|node| &node.value)) {
                (Step::Index(index), Some(Value::List(items))) => {
                    let mut known = items.iter().enumerate().filter(|(_, item)| item.origin != Origin::Reference);
                    Step::Index(known.nth(*index).map_or(*index, |(at, _)| at))
                }
                _ => step.clone(),
            };
            node = node.and_then(|node| node.at(std::slice::from_ref(&step)));
            counted.push(step);
        }
        counted
    }

    /// Returns whether this node, or a node in it, must not be printed.
    pub(super) fn has_secret(&self) -> bool {
        self.any(&|origin| origin == Origin::File)
    }

    fn any(&self, holds: &dyn Fn(Origin) -> bool) -> bool {
        holds(self.origin)
            || match &self.value {
                Value::List(items) => items.iter().any(|item| item.any(holds)),
                Value::Map(entries) => entries.iter().any(|entry| entry.node.any(holds)),
                _ => false,
            }
    }

    /// Returns the entry of a key.
    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|entry| entry.key == key)
    }

    /// Returns the value of a key.
    pub(super) fn child_mut(&mut self, key: &str) -> Option<&mut Self> {
        let Value::Map(entries) = &mut self.value else { return None };
        entries.iter_mut().find(|entry| entry.key == key).map(|entry| &mut entry.node)
    }

    /// Returns the node at `path`.
    pub(crate) fn at(&self, path: &[Step]) -> Option<&Self> {
        let Some((step, rest)) = path.split_first() else { return Some(self) };
        let child = match (step, &self.value) {
            (Step::Key(key), Value::Map(entries)) => entries.iter().find(|entry| entry.key == *key).map(|e| &e.node),
            (Step::Index(index), Value::List(items)) => items.get(*index),
            _ => None,
        };
        child?.at(rest)
    }

    /// Replaces the values that are secrets in `other`, a tree with the same keys.
    pub(super) fn hide_secrets_of(&mut self, other: &Self) {
        if other.origin == Origin::File {
            self.value = Value::Text(REDACTED.to_owned());
            return;
        }
        match (&mut self.value, &other.value) {
            (Value::List(mine), Value::List(others)) => {
                mine.iter_mut().zip(others).for_each(|(mine, other)| mine.hide_secrets_of(other));
            }
            (Value::Map(mine), Value::Map(others)) => {
                for entry in mine {
                    if let Some(other) = others.iter().find(|other| other.key == entry.key) {
                        entry.node.hide_secrets_of(&other.node);
                    }
                }
            }
            _ => {}
        }
    }

    fn is_scalar(&self) -> bool {
        !matches!(self.value, Value::List(_) | Value::Map(_) | Value::Null)
    }
}

/// The message about a tab that stands where only spaces may.
const TAB: &str = "a tab in the indentation of this line: YAML allows only spaces there; replace it by spaces";

/// The message about YAML that is invalid for any other reason.
const NO_YAML: &str = "this is not valid YAML: look here, and in the lines before, for a quote or bracket that is not closed, \
                       an indentation that does not fit, a missing space after a colon, or a ${…} without quotes inside { }";

/// The number of lines before an error in which a tab may be its cause: the library finds some tabs only when a value ends.
const TAB_LINES: u64 = 20;

/// Returns the position of a tab in the indentation of invalid YAML: in the line of the error or else in the nearest one before
/// it. The line behind it counts as well, since some errors are placed at the end of the line before.
fn tab_near(text: &str, line: u64) -> Option<Position> {
    let may_be = |number: u64| number <= line + 1 && number + TAB_LINES > line;
    let tab_in = |(number, line): (u64, &str)| {
        let is_indentation = |c: &char| matches!(c, ' ' | '\t' | '-');
        let has_content = !matches!(line.chars().find(|c| !is_indentation(c)), None | Some('#'));
        let (column, _) = (1..).zip(line.chars().take_while(is_indentation)).find(|(_, c)| *c == '\t')?;
        (has_content && may_be(number)).then_some(Position { line: number, column })
    };
    (1..).zip(text.lines()).filter_map(tab_in).min_by_key(|tab| tab.line.abs_diff(line))
}

/// Returns the message about a kind of error that is known. The messages of the YAML library are not used, because they quote
/// the file, which may contain secrets.
fn known_message(error: &serde_saphyr::Error) -> Option<String> {
    use serde_saphyr::Error;

    let message = match error.without_snippet() {
        Error::DuplicateMappingKey { key: Some(key), .. } if is_plain_name(key) => {
            return Some(format!("the key \"{key}\" is written twice"));
        }
        Error::DuplicateMappingKey { .. } => "a key is written twice",
        Error::MultipleDocuments { .. } => "a second document begins here; a configuration is a single document",
        Error::Eof { .. } => "the file ends inside a value",
        Error::UnknownAnchor { .. } => "this alias (*name) has no anchor (&name) before it",
        Error::MergeValueNotMapOrSeqOfMaps { .. } => "the value of << is not a section of keys",
        Error::NullIntoString { .. } | Error::TaggedScalarCannotDeserializeIntoString { .. } => {
            "a key has to be text; write it in quotes"
        }
        Error::InvalidUtf8Input => "the file is not UTF-8",
        Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. }
        | Error::RecursiveReferencesRequireWeakTypes { .. }
        | Error::Budget { .. } => "the file is nested too deep, or its aliases make too much of it",
        _ => return None,
    };
    Some(message.to_owned())
}

/// Returns whether a key can be shown in a message. A key with unusual characters may be a value that was written in
/// the wrong place.
pub(crate) fn is_plain_name(key: &str) -> bool {
    let usual = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    (1..=64).contains(&key.len()) && key.chars().all(usual)
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        Self::new(position(&spanned.referenced), spanned.value)
    }
}

fn position(at: &serde_saphyr::Location) -> Position {
    Position { line: at.line(), column: at.column() }
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Unsigned(number) => serializer.serialize_u64(*number),
            Self::Signed(number) => serializer.serialize_i64(*number),
            Self::Float(number) => serializer.serialize_f64(*number),
            Self::Text(text) | Self::Expanded(text, _) => serializer.serialize_str(text),
            Self::List(items) => serializer.collect_seq(items),
            Self::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for entry in entries {
                    map.serialize_entry(&entry.key, &entry.node)?;
                }
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> de::Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Unsigned(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(u64::try_from(value).map_or(Value::Signed(value), Value::Unsigned))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element::<Spanned<Value>>()? {
            list.push(item.into());
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = entries.next_key::<Spanned<String>>()? {
            let node = entries.next_value::<Spanned<Value>>()?.into();
            map.push(Entry { position: position(&key.referenced), key: key.value, node });
        }
        Ok(Value::Map(map))
    }
}
