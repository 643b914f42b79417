//! Collects errors and warnings, and has the checks that many keys share.

use std::{fmt::Display, time::Duration};

use super::super::{ConfigError, error::path_of, message::Message, node::Step};

/// The shortest time between two rounds of something that repeats: a shorter one is a typing error, and a load on others.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// The longest time that a backend may be ejected or held: a longer one is a typing error.
const MAX_HOLD: Duration = Duration::from_secs(24 * 60 * 60);

/// Returns whether the value at a path of the file must not be shown.
pub(in crate::config) type IsHidden<'a> = &'a dyn Fn(&[Step]) -> bool;

/// Returns the place of the key at a path of the file, as a warning begins with it: `spanring.yaml:3:5: `.
pub(in crate::config) type Place<'a> = &'a dyn Fn(&[Step]) -> String;

/// The path of a key, from the top of the file.
#[derive(Clone, Debug)]
pub(super) struct KeyPath(Vec<Step>);

/// All errors and warnings so far.
pub(super) struct Report<'a> {
    is_hidden: IsHidden<'a>,
    place: Place<'a>,
    pub(super) errors: Vec<ConfigError>,
    pub(super) warnings: Vec<String>,
}

impl KeyPath {
    pub(super) fn of(keys: &[&str]) -> Self {
        Self(keys.iter().map(|key| Step::Key((*key).to_owned())).collect())
    }

    /// Returns the path of a key in the section at this path.
    pub(super) fn key(&self, key: &str) -> Self {
        self.below(Step::Key(key.to_owned()))
    }

    /// Returns the path of an item in the list at this path.
    pub(super) fn item(&self, index: usize) -> Self {
        self.below(Step::Index(index))
    }

    fn below(&self, step: Step) -> Self {
        Self(self.0.iter().cloned().chain([step]).collect())
    }

    pub(super) fn text(&self) -> String {
        path_of(&self.0)
    }
}

impl<'a> Report<'a> {
    pub(super) fn new(is_hidden: IsHidden<'a>, place: Place<'a>) -> Self {
        Self { is_hidden, place, errors: Vec::new(), warnings: Vec::new() }
    }

    /// Adds an error about the key at `path`. The message may show the value there.
    pub(super) fn error(&mut self, path: &KeyPath, message: impl Into<Message>) {
        self.error_about(path, &[], message);
    }

    /// Adds an error about the key at `path`. The message may show the values there and at the paths of `others`.
    pub(super) fn error_about(&mut self, path: &KeyPath, others: &[&KeyPath], message: impl Into<Message>) {
        let message = message.into();
        let is_local = message.is_local;
        let message = self.chosen(path, others, message);
        self.errors.push(ConfigError { position: None, path: path.0.clone(), message, is_local });
    }

    /// Adds a warning about the key at `path`. The message may show the value there.
    pub(super) fn warn(&mut self, path: &KeyPath, message: Message) {
        let warning = format!("{}{}: {}", (self.place)(&path.0), path.text(), self.chosen(path, &[], message));
        self.warnings.push(warning);
    }

    /// Returns the form of the message that may be shown.
    fn chosen(&self, path: &KeyPath, others: &[&KeyPath], message: Message) -> String {
        let is_hidden = others.iter().copied().chain([path]).any(|path| (self.is_hidden)(&path.0));
        if is_hidden { message.hidden } else { message.shown }
    }

    pub(super) fn within<T: PartialOrd + Display>(&mut self, path: &KeyPath, value: T, least: T, most: T) {
        if !(least <= value && value <= most) {
            let message = format!("is out of range; it must be from {least} to {most}");
            self.error(path, Message::after(value, message));
        }
    }

    pub(super) fn positive(&mut self, path: &KeyPath, duration: Duration) {
        if duration.is_zero() {
            self.error(path, "must be longer than 0s");
        }
    }

    pub(super) fn interval(&mut self, path: &KeyPath, interval: Duration) {
        if interval < MIN_INTERVAL {
            self.error(path, format!("must be at least {}ms", MIN_INTERVAL.as_millis()));
        }
    }

    pub(super) fn at_most_a_day(&mut self, path: &KeyPath, time: Duration) {
        if time > MAX_HOLD {
            self.error(path, "is longer than 24h");
        }
    }
}
