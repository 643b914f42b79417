//! Readiness for clients: a list of conditions, each cheap to evaluate.

use std::{
    fmt,
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

/// Evaluates a condition: `None` when it is met, else the reason why not.
type Check = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// A condition of the list.
struct Entry {
    name: String,
    check: Check,
    note: Check,
}

/// All conditions of one proxy. Without any condition, it is ready. Clones share them.
///
/// The health of backends is never a condition. A proxy that is taken out of service because its backends fail would
/// move its load to replicas that have the same backends.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Inner>);

#[derive(Default)]
struct Inner {
    conditions: RwLock<Vec<Entry>>,
    draining: AtomicBool,
}

/// A condition and its state at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Name of the condition.
    pub name: String,
    /// Why it is not met; `None` when it is.
    pub unmet: Option<String>,
    /// What an operator should know although the condition is met.
    pub note: Option<String>,
}

/// A condition that is set explicitly. Clones share it.
#[derive(Clone, Debug)]
pub struct Flag(Arc<AtomicBool>);

impl Readiness {
    /// Creates a list without conditions.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition. `check` returns why it is not met; it must neither wait nor read a file.
    pub fn require(&self, name: impl Into<String>, check: impl Fn() -> Option<String> + Send + Sync + 'static) {
        self.require_and_note(name, check, || None);
    }

    /// Adds a condition, as [`Readiness::require`] does. `note` returns what an operator should know although the condition is
    /// met; it must neither wait nor read a file.
    pub fn require_and_note(
        &self,
        name: impl Into<String>,
        check: impl Fn() -> Option<String> + Send + Sync + 'static,
        note: impl Fn() -> Option<String> + Send + Sync + 'static,
    ) {
        let mut conditions = self.0.conditions.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        conditions.push(Entry { name: name.into(), check: Box::new(check), note: Box::new(note) });
    }

    /// Removes the conditions with this name.
    pub fn forget(&self, name: &str) {
        let mut conditions = self.0.conditions.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        conditions.retain(|entry| entry.name != name);
    }

    /// Adds a condition that is met only after [`Flag::set`] was called. Until then, `unmet` is the reason.
    pub fn flag(&self, name: impl Into<String>, unmet: impl Into<String>) -> Flag {
        let flag = Flag(Arc::default());
        let (shared, unmet) = (flag.clone(), unmet.into());
        self.require(name, move || (!shared.is_set()).then(|| unmet.clone()));
        flag
    }

    /// Makes the proxy not ready, permanently.
    pub fn drain(&self) {
        if !self.0.draining.swap(true, Ordering::AcqRel) {
            self.require("draining", || Some("the process is ending".to_owned()));
        }
    }

    /// Evaluates every condition.
    pub fn conditions(&self) -> Vec<Condition> {
        let conditions = self.0.conditions.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let evaluated = |Entry { name, check, note }: &Entry| {
            let unmet = check();
            let note = if unmet.is_none() { note() } else { None };
            Condition { name: name.clone(), unmet, note }
        };
        conditions.iter().map(evaluated).collect()
    }

    /// Returns whether all conditions are met.
    pub fn is_ready(&self) -> bool {
        self.conditions().iter().all(|condition| condition.unmet.is_none())
    }
}

impl Flag {
    /// Marks the condition as met.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Marks the condition as not met.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Release);
    }

    /// Returns whether the condition is met.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.conditions()).finish()
    }
}
