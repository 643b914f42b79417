//! YAML output. Maps keep the order of their entries.

use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::config::node::{Node, Step, Value};

/// A value of the output.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Yaml {
    /// A scalar copied from the Collector's file, or one of ours.
    Scalar(Value),
    List(Vec<Self>),
    Map(Vec<(String, Self)>),
}

impl Yaml {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Scalar(Value::Text(text.into()))
    }

    /// Converts a number that was written as text (the Collector's `port: "4317"`) to a number; returns anything else
    /// unchanged.
    pub(super) fn numeric(self) -> Self {
        match &self {
            Self::Scalar(Value::Text(text)) => {
                text.parse().map_or(self, |number| Self::Scalar(Value::Unsigned(number)))
            }
            _ => self,
        }
    }

    /// Returns a map of the entries that are not empty.
    pub(super) fn map<const N: usize>(entries: [(&str, Self); N]) -> Self {
        let kept = entries.into_iter().filter(|(_, value)| !value.is_empty());
        Self::Map(kept.map(|(key, value)| (key.to_owned(), value)).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Scalar(value) => *value == Value::Null,
            Self::List(items) => items.is_empty(),
            Self::Map(entries) => entries.is_empty(),
        }
    }

    /// Returns the value of a key, if this is a map that has it.
    pub(super) fn at(&self, key: &str) -> Option<&Self> {
        let Self::Map(entries) = self else { return None };
        entries.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// Returns the value at `path`.
    pub(super) fn get(&self, path: &[Step]) -> Option<&Self> {
        let Some((step, rest)) = path.split_first() else { return Some(self) };
        let child = match (self, step) {
            (_, Step::Key(key)) => self.at(key),
            (Self::List(items), Step::Index(index)) => items.get(*index),
            _ => None,
        };
        child?.get(rest)
    }

    /// Returns whether this value or any map in it has `key`.
    pub(super) fn holds(&self, key: &str) -> bool {
        match self {
            Self::Scalar(_) => false,
            Self::List(items) => items.iter().any(|item| item.holds(key)),
            Self::Map(entries) => entries.iter().any(|(name, value)| name == key || value.holds(key)),
        }
    }

    /// Returns the number of members of a list or map; 0 for a scalar.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Scalar(_) => 0,
            Self::List(items) => items.len(),
            Self::Map(entries) => entries.len(),
        }
    }

    /// Removes the value at `path`; returns whether it existed.
    pub(super) fn remove(&mut self, path: &[Step]) -> bool {
        match (self, path) {
            (Self::Map(entries), [Step::Key(key)]) => {
                let before = entries.len();
                entries.retain(|(name, _)| name != key);
                entries.len() < before
            }
            (Self::List(items), [Step::Index(index)]) if *index < items.len() => {
                items.remove(*index);
                true
            }
            (Self::Map(entries), [Step::Key(key), rest @ ..]) => {
                entries.iter_mut().find(|(name, _)| name == key).is_some_and(|(_, value)| value.remove(rest))
            }
            (Self::List(items), [Step::Index(index), rest @ ..]) => {
                items.get_mut(*index).is_some_and(|item| item.remove(rest))
            }
            _ => false,
        }
    }

    pub(super) fn print(&self) -> Result<String, String> {
        serde_saphyr::to_string(self).map_err(|error| error.to_string())
    }
}

impl From<&Node> for Yaml {
    fn from(node: &Node) -> Self {
        match &node.value {
            Value::List(items) => Self::List(items.iter().map(Self::from).collect()),
            Value::Map(entries) => {
                Self::Map(entries.iter().map(|entry| (entry.key.clone(), Self::from(&entry.node))).collect())
            }
            scalar => Self::Scalar(scalar.clone()),
        }
    }
}

impl Serialize for Yaml {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Scalar(Value::Bool(value)) => serializer.serialize_bool(*value),
            Self::Scalar(Value::Unsigned(number)) => serializer.serialize_u64(*number),
            Self::Scalar(Value::Signed(number)) => serializer.serialize_i64(*number),
            Self::Scalar(Value::Float(number)) => serializer.serialize_f64(*number),
            Self::Scalar(Value::Text(text) | Value::Expanded(text, _)) => serializer.serialize_str(text),
            // Unreachable for lists and maps, which have variants of their own.
            Self::Scalar(Value::Null | Value::List(_) | Value::Map(_)) => serializer.serialize_unit(),
            Self::List(items) => serializer.collect_seq(items),
            Self::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}
