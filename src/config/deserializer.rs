//! A serde deserializer that reads a [`Node`]. It adds the position and the path to every error, and the most similar
//! known name to an error about an unknown one.

use std::fmt::{self, Display};

use serde::de::{self, DeserializeSeed, Expected, IntoDeserializer, Unexpected, Visitor};

use super::{
    ConfigError,
    node::{Entry, Node, Origin, Step, Value, is_plain_name},
};
use crate::settings::section::Setting;

/// The least similarity (Jaro-Winkler, 1 is equal) of a name that is suggested: `endpoint` is suggested for `endpiont`, but
/// `tls` is not for `dns`.
const SUGGEST_ABOVE: f64 = 0.75;

/// Planned keys. The error for them says that they are not supported yet.
const NOT_YET: [&str; 2] = ["handoff", "health"];

/// Keys of the Collector's exporter that do not exist here, and advice on what to write instead.
const INSTEAD: [(&str, &str); 2] = [
    (
        "aws_cloud_map",
        "a namespace of a DNS kind gives its services names: write dns: { hostname: SERVICE_NAME.NAMESPACE }",
    ),
    ("srv", "write dns: { hostname: NAME, port: PORT }, with a name that has A or AAAA records"),
];

impl Node {
    /// Reads a setting from the tree.
    pub(super) fn read<T: Setting>(&self) -> Result<T, ConfigError> {
        T::read(NodeDeserializer(self))
    }
}

impl ConfigError {
    /// Sets the position, unless a more exact one is known. For a value that must not be shown, `expected` replaces the
    /// message.
    fn at(mut self, node: &Node, expected: Option<String>) -> Self {
        if self.position.is_none() {
            self.position = Some(node.position);
            if let Some(expected) = expected {
                self.message = format!("this value does not fit (it is not shown); expected {expected}");
            }
        }
        self
    }

    fn below(mut self, step: Step) -> Self {
        self.path.insert(0, step);
        self
    }
}

impl de::Error for ConfigError {
    fn custom<T: Display>(message: T) -> Self {
        Self { position: None, path: Vec::new(), message: message.to_string(), is_local: false }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(format_args!("expected {}, found {}", plain(expected), Found(found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(format_args!("{} is not possible, expected {}", Found(found), plain(expected)))
    }

    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        Self::custom(unknown_name("value", found, known))
    }

    fn unknown_field(found: &str, known: &'static [&'static str]) -> Self {
        if !is_plain_name(found) {
            return Self::custom(format_args!("unknown key (it is not shown); known keys: {}", known.join(", ")));
        }
        if known.is_empty() {
            // The Collector's exporter has the keys of calls in `protocol.otlp`.
            let advice = "tls, timeout, compression, headers, … belong in the pool itself";
            return Self::custom(format_args!("unknown key \"{found}\"; this section has no keys: {advice}"));
        }
        if let Some((_, advice)) = INSTEAD.iter().find(|(name, _)| *name == found) {
            return Self::custom(format_args!("\"{found}\" is not supported yet; {advice}"));
        }
        if NOT_YET.contains(&found) {
            return Self::custom(format_args!("\"{found}\" is not supported yet; known keys: {}", known.join(", ")));
        }
        Self::custom(unknown_name("key", found, known))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::custom(format_args!("\"{field}\" is missing"))
    }
}

/// Returns the message about an unknown name, with the name that was probably meant and all known ones.
pub(super) fn unknown_name(what: &str, found: &str, known: &[&str]) -> String {
    let known: Vec<&str> = known.iter().copied().filter(|name| !name.is_empty()).collect();
    let list = known.join(", ");
    match nearest(found, &known) {
        Some(near) => format!("unknown {what} \"{found}\", did you mean \"{near}\"? known {what}s: {list}"),
        None => format!("unknown {what} \"{found}\"; known {what}s: {list}"),
    }
}

fn nearest<'a>(found: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|name| (strsim::jaro_winkler(&found.to_lowercase(), &name.to_lowercase()), *name))
        .filter(|(likeness, _)| *likeness > SUGGEST_ABOVE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// Returns the description of an expected value, without names of Rust types.
fn plain(expected: &dyn Expected) -> String {
    match expected.to_string().as_str() {
        "u8" => "a whole number up to 255".to_owned(),
        "u16" => "a whole number up to 65535".to_owned(),
        "u32" | "u64" | "usize" => "a whole number".to_owned(),
        "f64" => "a number".to_owned(),
        "a string" => "text".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "a section of keys".to_owned(),
        other if other.starts_with("struct ") => "a section of keys".to_owned(),
        other => other.to_owned(),
    }
}

/// The description of the value that was found, without names of Rust types.
struct Found<'a>(Unexpected<'a>);

impl Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Unexpected::Str(text) => write!(f, "\"{text}\""),
            Unexpected::Unsigned(number) => write!(f, "{number}"),
            Unexpected::Signed(number) => write!(f, "{number}"),
            Unexpected::Float(number) => write!(f, "{number}"),
            Unexpected::Bool(value) => write!(f, "{value}"),
            Unexpected::Unit => f.write_str("nothing"),
            Unexpected::Seq => f.write_str("a list"),
            Unexpected::Map => f.write_str("a section of keys"),
            other => write!(f, "{other}"),
        }
    }
}

struct NodeDeserializer<'de>(&'de Node);

impl<'de> NodeDeserializer<'de> {
    fn visit<V: Visitor<'de>>(value: &'de Value, visitor: V) -> Result<V::Value, ConfigError> {
        match value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Unsigned(number) => visitor.visit_u64(*number),
            Value::Signed(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Text(text) => visitor.visit_str(text),
            Value::Expanded(_, typed) => Self::visit(typed, visitor),
            Value::List(items) => visitor.visit_seq(Items(items.iter().enumerate())),
            Value::Map(entries) => visitor.visit_map(Entries { rest: entries.iter(), current: None }),
        }
    }

    /// Reads the value with `visit`. An error gets the position, and does not show a value that must not be shown.
    fn read<V: Visitor<'de>>(
        self,
        visitor: V,
        visit: impl FnOnce(&'de Value, V) -> Result<V::Value, ConfigError>,
    ) -> Result<V::Value, ConfigError> {
        let expected = self.0.is_hidden().then(|| plain(&visitor));
        visit(&self.0.value, visitor).map_err(|error| error.at(self.0, expected))
    }

    fn text<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        self.read(visitor, |value, visitor| match value {
            Value::Expanded(text, _) => visitor.visit_str(text),
            other => Self::visit(other, visitor),
        })
    }

    /// Reads a section. An empty one (`grpc:`) has its defaults, as in the Collector.
    fn section<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        self.read(visitor, |value, visitor| match value {
            Value::Null => visitor.visit_map(Entries { rest: [].iter(), current: None }),
            Value::List(_) => Err(de::Error::invalid_type(Unexpected::Seq, &visitor)),
            other => Self::visit(other, visitor),
        })
    }
}

/// Returns the error for a value that is not text, where one of the `known` names is expected. YAML reads `off`, `no`
/// and `false` as the same value.
fn no_name(found: &Value, known: &[&str]) -> ConfigError {
    let found = match found {
        Value::Bool(false) if known.contains(&"none") => "false, as YAML reads off, no and false; write none",
        Value::Bool(false) => "false",
        Value::Bool(true) => "true",
        Value::Null => "nothing",
        Value::List(_) => "a list",
        Value::Map(_) => "a section of keys",
        _ => "a number",
    };
    de::Error::custom(format_args!("expected {}, found {found}", one_of(known)))
}

fn one_of(known: &[&str]) -> String {
    let known: Vec<&str> = known.iter().copied().filter(|name| !name.is_empty()).collect();
    format!("one of {}", known.join(", "))
}

impl<'de> de::Deserializer<'de> for NodeDeserializer<'de> {
    type Error = ConfigError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        self.read(visitor, Self::visit)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        match &self.0.value {
            Value::Null => visitor.visit_none(),
            Value::Expanded(_, typed) if **typed == Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        self.text(visitor)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        self.text(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ConfigError> {
        match &self.0.value {
            Value::Text(text) | Value::Expanded(text, _) => visitor.visit_enum(text.as_str().into_deserializer()),
            Value::Bool(false) if variants.contains(&"off") => visitor.visit_enum("off".into_deserializer()),
            other => Err(no_name(other, variants)),
        }
        .map_err(|error: ConfigError| error.at(self.0, self.0.is_hidden().then(|| one_of(variants))))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ConfigError> {
        self.section(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        self.section(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct newtype_struct seq
        tuple tuple_struct identifier ignored_any
    }
}

struct Items<'de>(std::iter::Enumerate<std::slice::Iter<'de, Node>>);

impl<'de> de::SeqAccess<'de> for Items<'de> {
    type Error = ConfigError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ConfigError> {
        let Some((index, node)) = self.0.next() else { return Ok(None) };
        seed.deserialize(NodeDeserializer(node)).map(Some).map_err(|error| error.below(Step::Index(index)))
    }
}

struct Entries<'de> {
    rest: std::slice::Iter<'de, Entry>,
    current: Option<&'de Entry>,
}

impl<'de> de::MapAccess<'de> for Entries<'de> {
    type Error = ConfigError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ConfigError> {
        let Some(entry) = self.rest.next() else { return Ok(None) };
        self.current = Some(entry);
        let key: de::value::StrDeserializer<'_, ConfigError> = entry.key.as_str().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|mut error: ConfigError| {
            error.position.get_or_insert(entry.position);
            error
        })
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ConfigError> {
        let entry = self.current.take().ok_or_else(|| de::Error::custom("a value was asked for before its key"))?;
        // A header without a value is probably a value that was written in place of a name, so it is not shown.
        let is_astray = entry.node.origin == Origin::Header && entry.node.value == Value::Null;
        let below = |error: ConfigError| if is_astray { error } else { error.below(Step::Key(entry.key.clone())) };
        seed.deserialize(NodeDeserializer(&entry.node)).map_err(below)
    }
}
