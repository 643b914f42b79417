//! Messages about values, each in two forms: one that shows the value and one that does not, for values that are secret.

use std::fmt::Display;

/// A message in both forms. They are the same if the message shows no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// The form that shows the values.
    pub(super) shown: String,
    /// The form that does not.
    pub(super) hidden: String,
    /// Whether it is true on this machine only: on another one the file or the name may exist.
    pub(super) is_local: bool,
}

impl Message {
    /// A message whose two forms are given.
    pub(super) fn both(shown: impl Into<String>, hidden: impl Into<String>) -> Self {
        Self { shown: shown.into(), hidden: hidden.into(), is_local: false }
    }

    /// The same message, marked as true on this machine only.
    pub(super) fn local(self) -> Self {
        Self { is_local: true, ..self }
    }

    /// A message that contains one value: `message` gets the value in quotes, or the word `it`.
    pub(super) fn about(value: impl Display, message: impl Fn(&str) -> String) -> Self {
        Self::both(message(&format!("\"{value}\"")), message("it"))
    }

    /// A message that begins with the value: `VALUE MESSAGE`, or the message alone.
    pub(super) fn after(value: impl Display, message: impl Display) -> Self {
        Self::both(format!("{value} {message}"), message.to_string())
    }
}

impl From<String> for Message {
    fn from(message: String) -> Self {
        Self::both(message.clone(), message)
    }
}

impl From<&str> for Message {
    fn from(message: &str) -> Self {
        message.to_owned().into()
    }
}
