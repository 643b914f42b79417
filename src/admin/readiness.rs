//! Whether clients should send here: a list of conditions, each cheap to ask.

use std::{
    fmt,
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

/// What a condition says: nothing when it is met, else why it is not.
type Check = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// All conditions of one proxy. Cloning shares them. Without conditions it is ready.
///
/// Never among them: the backends' health. A proxy that is taken out of service because its backends fail moves the
/// load to others that have the same backends.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Inner>);

#[derive(Default)]
struct Inner {
    conditions: RwLock<Vec<(String, Check)>>,
    draining: AtomicBool,
}

/// A condition at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// What it is about.
    pub name: String,
    /// Why it is not met.
    pub unmet: Option<String>,
}

/// A condition that is set by hand. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Flag(Arc<AtomicBool>);

impl Readiness {
    /// Without conditions yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition; `check` answers why it is not met, and must neither wait nor read a file.
    pub fn require(&self, name: impl Into<String>, check: impl Fn() -> Option<String> + Send + Sync + 'static) {
        let mut conditions = self.0.conditions.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        conditions.push((name.into(), Box::new(check)));
    }

    /// Takes the conditions of that name away.
    pub fn forget(&self, name: &str) {
        let mut conditions = self.0.conditions.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        conditions.retain(|(of, _)| of != name);
    }

    /// Adds a condition that is set by hand, and is not met at first; `unmet` says why not.
    pub fn flag(&self, name: impl Into<String>, unmet: impl Into<String>) -> Flag {
        let flag = Flag(Arc::default());
        let (shared, unmet) = (flag.clone(), unmet.into());
        self.require(name, move || (!shared.is_set()).then(|| unmet.clone()));
        flag
    }

    /// Not ready any more, for good.
    pub fn drain(&self) {
        if !self.0.draining.swap(true, Ordering::AcqRel) {
            self.require("draining", || Some("the process is ending".to_owned()));
        }
    }

    /// Every condition, as it is now.
    pub fn conditions(&self) -> Vec<Condition> {
        let conditions = self.0.conditions.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        conditions.iter().map(|(name, check)| Condition { name: name.clone(), unmet: check() }).collect()
    }

    /// Whether all are met.
    pub fn is_ready(&self) -> bool {
        self.conditions().iter().all(|condition| condition.unmet.is_none())
    }
}

impl Flag {
    /// The condition is met from now on.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// The condition is not met from now on.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Release);
    }

    /// Whether it is met.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.conditions()).finish()
    }
}
