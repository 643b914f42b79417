//! The paths at which signals are taken.

use std::fmt;

use crate::{otlp::Signal, settings::Http};

/// The path of each signal, in the order of [`Signal::ALL`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths([String; Signal::ALL.len()]);

impl Paths {
    /// Returns the paths that the section `http` sets.
    pub fn of(keys: &Http) -> Self {
        Self(Signal::ALL.map(|signal| keys.path(signal).1.to_owned()))
    }

    /// Returns the signal that is taken at `path`.
    pub(super) fn signal(&self, path: &str) -> Option<Signal> {
        Signal::ALL.into_iter().zip(&self.0).find(|(_, of_signal)| *of_signal == path).map(|(signal, _)| signal)
    }
}

impl fmt::Display for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}
