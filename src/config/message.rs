//! Messages about values. Each has two forms: one that shows the value, and one that hides it because it is secret.

use std::fmt::Display;

/// A message in both forms. They are the same if the message shows no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// The form that shows values.
    pub(super) shown: String,
    /// The form that hides them.
    pub(super) hidden: String,
    /// Whether it holds on this machine only, for example because a file or a name does not exist here.
    pub(super) is_local: bool,
}

impl Message {
    /// Creates a message from its two forms.
    pub(super) fn both(shown: impl Into<String>, hidden: impl Into<String>) -> Self {
        Self { shown: shown.into(), hidden: hidden.into(), is_local: false }
    }

    /// Marks the message as one that holds on this machine only.
    pub(super) fn local(self) -> Self {
        Self { is_local: true, ..self }
    }

    /// Creates a message that contains one value. `message` is called with the value in quotes, and with the word `it`.
    pub(super) fn about(value: impl Display, message: impl Fn(&str) -> String) -> Self {
        Self::both(message(&format!("\"{value}\"")), message("it"))
    }

    /// Creates a message that begins with the value, `VALUE MESSAGE`, or is `MESSAGE` if the value is hidden.
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
