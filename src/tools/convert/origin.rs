//! Where in the Collector's file a value of ours comes from: findings name the file that the operator has.

use super::{Cost, Note, yaml::Yaml};
use crate::config::{
    ConfigError, path_of,
    tree::{Node, Place, Step, Value},
};

/// Which sections of ours were made of which of the Collector's.
#[derive(Debug, Default)]
pub(super) struct Origins(Vec<(Vec<Step>, Vec<Step>)>);

/// A place in the Collector's file.
pub(super) struct Origin {
    path: Vec<Step>,
    place: Place,
    /// The key that is not there, if the complaint is about one.
    missing: Option<String>,
}

impl Origins {
    /// What stands at `ours` was made of what stands at `theirs`.
    pub(super) fn add(&mut self, ours: &[&str], theirs: &[&str]) {
        let steps = |path: &[&str]| path.iter().map(|key| Step::Key((*key).to_owned())).collect();
        self.0.push((steps(ours), steps(theirs)));
    }

    /// Where `path`, which holds `value`, comes from in `file`.
    pub(super) fn of(&self, path: &[Step], value: Option<&Yaml>, file: &Node) -> Origin {
        let nearest = self.0.iter().filter(|(ours, _)| path.starts_with(ours)).max_by_key(|(ours, _)| ours.len());
        let mut theirs = match nearest {
            Some((ours, theirs)) => [theirs, path.get(ours.len()..).unwrap_or_default()].concat(),
            None => path.to_vec(),
        };
        // Of a list something may be left out already.
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
        Origin { place: file.place_of(&theirs), path: theirs, missing }
    }
}

impl Origin {
    /// A finding there.
    pub(super) fn note(self, message: &str, cost: Cost) -> Note {
        let line = if self.path.is_empty() { 0 } else { self.place.line };
        Note { path: path_of(&self.path), line, message: self.say(message), cost }
    }

    /// An error there.
    pub(super) fn error(self, message: &str) -> ConfigError {
        let message = self.say(message);
        ConfigError::elsewhere(self.place, self.path, message)
    }

    fn say(&self, message: &str) -> String {
        self.missing.as_ref().map_or_else(|| message.to_owned(), |key| format!("{key} {message}"))
    }
}
