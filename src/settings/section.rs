//! The macro [`section!`], which declares a section of the configuration file.
//!
//! A section is declared once: each key with its name, its type, its default and its documentation. The macro generates
//! the struct and its `Default`, the code that reads the section from a file and prints it, and the rows of the table
//! in `deploy/docs/configuration.md`. A test compares that table with the generated rows, or writes it.

use std::{collections::BTreeMap, fmt, marker::PhantomData, ops::Deref};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, DeserializeSeed, MapAccess, Visitor},
    ser::SerializeMap,
};

#[cfg(test)]
use super::reference::Row;

/// The type of a key: a value, a section, or several sections.
pub(crate) trait Setting: Sized {
    /// Reads the setting from a file.
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error>;

    /// Writes the setting in the form in which it can be read. Secrets are replaced by a placeholder.
    fn print<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error>;

    /// Returns whether its key is left out when the section is printed.
    fn is_left_out(&self) -> bool {
        false
    }

    /// Adds its rows to the reference: one row for a value, or one for each key of a section.
    #[cfg(test)]
    fn document(default: Option<&Self>, path: &str, help: &str, rows: &mut Vec<Row>) {
        rows.push(Row::new(path, default.map(Printed), help));
    }
}

/// A section that [`section!`] declares. It can include the keys of another section as if they were its own.
pub(crate) trait Section: Setting + Default {
    /// Adds the names of its keys, in the order in which they are printed.
    fn add_keys(keys: &mut Vec<&'static str>);

    /// Takes the value of `key` from `values`. Returns `false` if the section has no such key.
    fn read_key<'de, A: MapAccess<'de>>(&mut self, key: &str, values: &mut A) -> Result<bool, A::Error>;

    /// Writes the keys and their values.
    fn print_keys<M: SerializeMap>(&self, to: &mut M) -> Result<(), M::Error>;

    /// Adds the rows of its keys to the reference; `path` is the path of the section.
    #[cfg(test)]
    fn document_keys(&self, path: &str, rows: &mut Vec<Row>);
}

/// Declares sections of the file.
///
/// Each field is a key of the same name. Its documentation becomes its row in the reference. Its default is the
/// expression after `=`, or else the default of its type. A field `as included` is a section whose keys are written
/// directly in this section, together with its other keys.
macro_rules! section {
    ($(
        $(#[$attribute:meta])*
        $vis:vis struct $Section:ident {
            $($(#[doc = $help:literal])+ $key:ident: $Type:ty $(as $included:ident)? $(= $default:expr)?,)*
        }
    )*) => {$(
        $(#[$attribute])*
        #[derive(Clone, Debug, PartialEq)]
        $vis struct $Section {
            $($(#[doc = $help])+ pub $key: $Type,)*
        }

        impl Default for $Section {
            fn default() -> Self {
                Self { $($key: section!(@default $($default)?),)* }
            }
        }

        impl $crate::settings::section::Section for $Section {
            fn add_keys(keys: &mut Vec<&'static str>) {
                $(section!(@name keys, $key, $Type $(, $included)?);)*
            }

            fn read_key<'de, A: serde::de::MapAccess<'de>>(
                &mut self,
                key: &str,
                values: &mut A,
            ) -> Result<bool, A::Error> {
                $(section!(@read self, key, values, $key, $Type $(, $included)?);)*
                Ok(false)
            }

            fn print_keys<M: serde::ser::SerializeMap>(&self, to: &mut M) -> Result<(), M::Error> {
                $(section!(@print self, to, $key $(, $included)?);)*
                Ok(())
            }

            #[cfg(test)]
            fn document_keys(&self, path: &str, rows: &mut Vec<$crate::settings::reference::Row>) {
                $(section!(@document self, path, rows, $key, [$($help)+] $(, $included)?);)*
            }
        }

        impl $crate::settings::section::Setting for $Section {
            fn read<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                static KEYS: std::sync::LazyLock<Vec<&'static str>> =
                    std::sync::LazyLock::new($crate::settings::section::keys_of::<$Section>);
                $crate::settings::section::read(from, &KEYS)
            }

            fn print<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                $crate::settings::section::print(self, to)
            }

            #[cfg(test)]
            fn document(
                default: Option<&Self>,
                path: &str,
                _help: &str,
                rows: &mut Vec<$crate::settings::reference::Row>,
            ) {
                let section = default.cloned().unwrap_or_default();
                $crate::settings::section::Section::document_keys(&section, path, rows);
            }
        }
    )*};

    (@default) => { Default::default() };
    (@default $default:expr) => { $default };

    (@name $keys:ident, $key:ident, $Type:ty) => {
        $keys.push($crate::settings::section::name(stringify!($key)))
    };
    (@name $keys:ident, $key:ident, $Type:ty, included) => {
        <$Type as $crate::settings::section::Section>::add_keys($keys)
    };

    (@read $section:tt, $wanted:ident, $values:ident, $key:ident, $Type:ty) => {
        if $wanted == $crate::settings::section::name(stringify!($key)) {
            $section.$key = $values.next_value::<$crate::settings::section::Read<$Type>>()?.0;
            return Ok(true);
        }
    };
    (@read $section:tt, $wanted:ident, $values:ident, $key:ident, $Type:ty, included) => {
        if $crate::settings::section::Section::read_key(&mut $section.$key, $wanted, $values)? {
            return Ok(true);
        }
    };

    (@print $section:tt, $to:ident, $key:ident) => {
        if !$crate::settings::section::Setting::is_left_out(&$section.$key) {
            let name = $crate::settings::section::name(stringify!($key));
            $to.serialize_entry(name, &$crate::settings::section::Printed(&$section.$key))?;
        }
    };
    (@print $section:tt, $to:ident, $key:ident, included) => {
        $crate::settings::section::Section::print_keys(&$section.$key, $to)?
    };

    (@document $section:tt, $path:ident, $rows:ident, $key:ident, [$($help:literal)+]) => {{
        let path = $crate::settings::reference::below($path, $crate::settings::section::name(stringify!($key)));
        $crate::settings::section::Setting::document(Some(&$section.$key), &path, concat!($($help),+), $rows);
    }};
    (@document $section:tt, $path:ident, $rows:ident, $key:ident, [$($help:literal)+], included) => {
        $crate::settings::section::Section::document_keys(&$section.$key, $path, $rows)
    };
}
pub(super) use section;

/// Returns the key of a field: its name without the `r#` of raw identifiers.
pub(crate) fn name(field: &'static str) -> &'static str {
    field.trim_start_matches("r#")
}

/// Returns the names of a section's keys.
pub(crate) fn keys_of<T: Section>() -> Vec<&'static str> {
    let mut keys = Vec::new();
    T::add_keys(&mut keys);
    keys
}

/// Reads a section. Missing keys have their defaults. A key that is not in `keys` is an error.
pub(crate) fn read<'de, T: Section, D: Deserializer<'de>>(
    from: D,
    keys: &'static [&'static str],
) -> Result<T, D::Error> {
    from.deserialize_struct("section", keys, SectionVisitor { keys, section: PhantomData })
}

/// Writes a section.
pub(crate) fn print<T: Section, S: Serializer>(section: &T, to: S) -> Result<S::Ok, S::Error> {
    let mut map = to.serialize_map(None)?;
    section.print_keys(&mut map)?;
    map.end()
}

/// Lets serde read a [`Setting`].
pub(crate) struct Read<T>(pub(crate) T);

/// Lets serde write a [`Setting`].
pub(crate) struct Printed<'a, T>(pub(crate) &'a T);

impl<'de, T: Setting> Deserialize<'de> for Read<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::read(deserializer).map(Self)
    }
}

impl<T: Setting> Serialize for Printed<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.print(serializer)
    }
}

struct SectionVisitor<T> {
    keys: &'static [&'static str],
    section: PhantomData<T>,
}

impl<'de, T: Section> Visitor<'de> for SectionVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a section of keys")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut values: A) -> Result<T, A::Error> {
        let mut section = T::default();
        while let Some(key) = values.next_key_seed(KnownKey(self.keys))? {
            section.read_key(key, &mut values)?;
        }
        Ok(section)
    }
}

/// Reads the name of a key, which must be one of these.
struct KnownKey(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for KnownKey {
    type Value = &'static str;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<&'static str, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for KnownKey {
    type Value = &'static str;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<&'static str, E> {
        let known = self.0.iter().find(|known| **known == key);
        known.copied().ok_or_else(|| E::unknown_field(key, self.0))
    }
}

/// Sections by names that the operator chooses.
impl<T: Section> Setting for BTreeMap<String, T> {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let named = BTreeMap::<String, Read<T>>::deserialize(from)?;
        Ok(named.into_iter().map(|(name, Read(section))| (name, section)).collect())
    }

    fn print<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.iter().map(|(name, section)| (name, Printed(section))))
    }

    #[cfg(test)]
    fn document(_: Option<&Self>, path: &str, help: &str, rows: &mut Vec<Row>) {
        T::document(None, &format!("{path}.NAME"), help, rows);
    }
}

/// A list of sections.
impl<T: Section> Setting for Vec<T> {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Vec::<Read<T>>::deserialize(from)?.into_iter().map(|Read(section)| section).collect())
    }

    fn print<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.iter().map(Printed))
    }

    #[cfg(test)]
    fn document(_: Option<&Self>, path: &str, help: &str, rows: &mut Vec<Row>) {
        T::document(None, &format!("{path}[]"), help, rows);
    }
}

/// A section that can be missing. A key without a value, or with `null`, counts as missing.
impl<T: Section> Setting for Option<T> {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Option::<Read<T>>::deserialize(from)?.map(|Read(section)| section))
    }

    fn print<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.as_ref().map(Printed).serialize(to)
    }

    fn is_left_out(&self) -> bool {
        self.is_none()
    }

    #[cfg(test)]
    fn document(_: Option<&Self>, path: &str, help: &str, rows: &mut Vec<Row>) {
        T::document(None, path, help, rows);
    }
}

/// A section or value that exists only if its key is written. A key without a value is a section with its defaults,
/// unlike a missing key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IfWritten<T>(pub Option<T>);

impl<T> Default for IfWritten<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Deref for IfWritten<T> {
    type Target = Option<T>;

    fn deref(&self) -> &Option<T> {
        &self.0
    }
}

impl<T: Setting> Setting for IfWritten<T> {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        T::read(from).map(|written| Self(Some(written)))
    }

    fn print<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.as_ref().map(Printed).serialize(to)
    }

    fn is_left_out(&self) -> bool {
        self.0.is_none()
    }

    #[cfg(test)]
    fn document(_: Option<&Self>, path: &str, help: &str, rows: &mut Vec<Row>) {
        T::document(None, path, help, rows);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::reference::declared_twice, *};

    section! {
        /// A section that a test reads.
        struct Outer {
            /// A number.
            count: u32 = 3,
            /// Keys of another section.
            inner: Inner as included,
            /// A key that is a keyword of Rust.
            r#static: IfWritten<Inner>,
            /// A list.
            several: Vec<Inner>,
        }

        /// A section that another section includes, and that it also has under a key.
        struct Inner {
            /// A flag.
            on: bool,
        }
    }

    section! {
        /// A section with a key that a section which it includes has too. A file can set only one of the two.
        struct Twice {
            /// A flag.
            on: bool,
            /// Keys of another section.
            inner: Inner as included,
            /// The same key in a section of its own.
            apart: Inner,
        }
    }

    fn read(value: Value) -> Result<Outer, String> {
        Outer::read(value).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_are_read_and_missing_ones_have_defaults() {
        let default = Outer { count: 3, ..Outer::default() };
        assert_eq!(read(json!({})), Ok(default.clone()));
        let all = json!({ "count": 4, "on": true, "static": {}, "several": [{ "on": false }, { "on": true }] });
        let expected = Outer {
            count: 4,
            inner: Inner { on: true },
            r#static: IfWritten(Some(Inner { on: false })),
            several: vec![Inner { on: false }, Inner { on: true }],
        };
        assert_eq!(read(all), Ok(expected.clone()));
        let printed = serde_json::to_value(Printed(&expected)).expect("printed");
        assert_eq!(printed["static"], json!({ "on": false }), "an empty section must have its defaults");
        assert_eq!(read(printed), Ok(expected), "the printed section must be read back");
        assert_eq!(
            serde_json::to_value(Printed(&default)).ok(),
            Some(json!({ "count": 3, "on": false, "several": [] }))
        );
    }

    #[test]
    fn an_unknown_key_is_an_error_that_lists_the_known_ones() {
        let error = "unknown field `inner`, expected one of `count`, `on`, `static`, `several`";
        assert_eq!(read(json!({ "inner": {} })), Err(error.into()));
        assert!(read(json!({ "several": [{ "off": 1 }] })).is_err_and(|error| error.contains("unknown field `off`")));
        assert!(read(json!({ "count": "x" })).is_err_and(|error| error.contains("invalid type")));
    }

    #[test]
    fn each_key_has_one_row_in_the_reference() {
        let mut rows = Vec::new();
        Outer::default().document_keys("a.b", &mut rows);
        let lines: Vec<String> = rows.iter().map(Row::line).collect();
        assert_eq!(
            lines,
            [
                "| `a.b.count` | `3` | A number. |",
                "| `a.b.on` | `false` | A flag. |",
                "| `a.b.static.on` | `false` | A flag. |",
                "| `a.b.several[].on` | `false` | A flag. |",
            ]
        );
    }

    #[test]
    fn a_key_that_an_included_section_has_too_is_found() {
        let mut rows = Vec::new();
        Twice::default().document_keys("a", &mut rows);
        assert_eq!(declared_twice(&rows), ["a.on"]);
    }
}
