//! Errors of a configuration, each with its line, its column and the path of its key.

use std::{fmt, io, path::PathBuf};

use super::node::{Position, Step, is_plain_name};

/// An error about one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub(super) position: Option<Position>,
    pub(super) path: Vec<Step>,
    pub(super) message: String,
    /// Whether it depends on this machine, such as a missing file.
    pub(super) is_local: bool,
}

/// The reason why a configuration could not be loaded or printed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file was read and has errors. They are printed one per line.
    #[error("{}", Lines(name, problems))]
    Invalid {
        /// The file's name.
        name: String,
        /// The errors.
        problems: Vec<ConfigError>,
    },
    /// The thread that read the file failed.
    #[error("cannot read the configuration: {0}")]
    Thread(String),
    /// The settings cannot be printed.
    #[error("cannot print the configuration: {0}")]
    Print(String),
}

impl ConfigError {
    /// Creates an error at a position in a file.
    pub(crate) fn new(position: Position, path: Vec<Step>, message: String) -> Self {
        Self { position: Some(position), path, message, is_local: false }
    }

    /// Returns the path of the key, from the top of the file.
    pub(crate) fn steps(&self) -> &[Step] {
        &self.path
    }

    /// Returns the message, without its position.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }
}

/// Returns a path as text: `routes[0].pool`.
pub(crate) fn path_of(steps: &[Step]) -> String {
    let mut path = String::new();
    for step in steps {
        match step {
            Step::Index(index) => path.push_str(&format!("[{index}]")),
            Step::Key(key) => {
                if !path.is_empty() {
                    path.push('.');
                }
                // A key that is not a plain name may be a value in the wrong place.
                path.push_str(if is_plain_name(key) { key } else { "…" });
            }
        }
    }
    path
}

/// The errors of a file, one per line: `file:line:column: path: message`.
struct Lines<'a>(&'a str, &'a [ConfigError]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(name, problems) = self;
        for (index, problem) in problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            f.write_str(name)?;
            if let Some(position) = problem.position {
                write!(f, ":{}:{}", position.line, position.column)?;
            }
            write!(f, ": {problem}")?;
        }
        Ok(())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", path_of(&self.path))?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}
