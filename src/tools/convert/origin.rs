//! Maps the sections of our configuration to those of the Collector's file, because findings refer to the file that the
//! operator has.

use super::{Cost, Note, yaml::Yaml};
use crate::config::{
    ConfigError,
    node::{Node, Position, Step, Value},
    path_of,
};

/// Pairs of paths: a section of our configuration, and the section of the Collector's file that it was made from.
#[derive(Debug, Default)]
pub(super) struct Origins(Vec<(Vec<Step>, Vec<Step>)>);

/// A place in the Collector's file.
pub(super) struct Origin {
    path: Vec<Step>,
    position: Position,
    /// The missing key, if the problem is that a key does not exist.
    missing: Option<String>,
}

impl Origins {
    /// Records that the section at `ours` was made from the section at `theirs`.
    pub(super) fn add(&mut self, ours: &[&str], theirs: &[&str]) {
        let steps = |path: &[&str]| path.iter().map(|key| Step::Key((*key).to_owned())).collect();
        self.0.push((steps(ours), steps(theirs)));
    }

    /// Returns the place in `file` from which the value at `path` was made.
    pub(super) fn of(&self, path: &[Step], value: Option<&Yaml>, file: &Node) -> Origin {
        let nearest = self.0.iter().filter(|(ours, _)| path.starts_with(ours)).max_by_key(|(ours, _)| ours.len());
        let mut theirs = match nearest {
            Some((ours, theirs)) => [theirs, path.get(ours.len()..).unwrap_or_default()].concat(),
            None => path.to_vec(),
        };
        // Earlier members of the list may have been removed already, so find the member by its value.
        if let Some((Step::Index(index), list)) = theirs.split_last_mut()
            && let Some(Node { value: Value::List(items), .. }) = file.at(list)
            && let Some(found) = items.iter().position(|item| Some(&Yaml::from(item)) == value)
        {
            *index = found;
        }
        let mut missing = None;
        while file.at(&theirs).is_none() {
            missing = match theirs.pop() {
                Some(Step::Key(key)) => Some(key),
                _ => None,
            };
        }
        Origin { position: file.position_of(&theirs), path: theirs, missing }
    }
}

impl Origin {
    /// Returns a finding at this place.
    pub(super) fn note(self, message: &str, cost: Cost) -> Note {
        let line = if self.path.is_empty() { 0 } else { self.position.line };
        Note { path: path_of(&self.path), line, message: self.say(message), cost }
    }

    /// Returns an error at this place.
    pub(super) fn error(self, message: &str) -> ConfigError {
        let message = self.say(message);
        ConfigError::new(self.position, self.path, message)
    }

    fn say(&self, message: &str) -> String {
        self.missing.as_ref().map_or_else(|| message.to_owned(), |key| format!("{key} {message}"))
    }
}
