//! A bound on the bytes that all requests together hold in memory: bodies, inflated bytes, parts.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::buffers;

/// A process-wide bound on the bytes held by requests. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: AtomicUsize,
    used: AtomicUsize,
}

impl Budget {
    /// Creates a budget of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Inner { limit: AtomicUsize::new(limit), used: AtomicUsize::new(0) }))
    }

    /// Returns the limit in bytes.
    pub fn limit(&self) -> usize {
        self.0.limit.load(Ordering::Relaxed)
    }

    /// Changes the limit. Permits that are held keep their bytes. While they exceed a lower limit, no further bytes are
    /// granted.
    pub fn set_limit(&self, limit: usize) {
        self.0.limit.store(limit, Ordering::Relaxed);
    }

    /// Returns the number of bytes held now.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Returns an empty permit that can grow.
    pub fn permit(&self) -> Permit {
        Permit { budget: self.clone(), bytes: 0 }
    }

    /// Takes `bytes`, or returns `None` if there is no room for them.
    pub fn take(&self, bytes: usize) -> Option<Permit> {
        let mut permit = self.permit();
        permit.grow(bytes).then_some(permit)
    }

    fn try_add(&self, bytes: usize) -> bool {
        let limit = self.limit();
        self.0
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= limit)
            })
            .is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.0.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Bytes taken from a budget. They are given back on drop.
#[derive(Debug)]
pub struct Permit {
    budget: Budget,
    bytes: usize,
}

impl Permit {
    /// Takes `more` bytes in addition. Returns `false`, without any change, if there is no room for them.
    #[must_use]
    pub fn grow(&mut self, more: usize) -> bool {
        let grown = more == 0 || self.budget.try_add(more);
        if grown {
            self.bytes += more;
        }
        grown
    }

    /// Gives back all but `keep` bytes.
    pub fn shrink_to(&mut self, keep: usize) {
        if let Some(extra) = self.bytes.checked_sub(keep) {
            self.bytes = keep;
            self.budget.give_back(extra);
        }
    }

    /// Returns the number of bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the limit of the budget in bytes.
    pub fn limit(&self) -> usize {
        self.budget.limit()
    }
}

/// A buffer whose capacity is taken from a budget before it is allocated.
#[derive(Debug, Default)]
pub struct Buffer {
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Buffer {
    /// Grows to a capacity of `capacity` bytes. Returns `false`, without any change, if the budget has no room for them.
    #[must_use]
    pub fn reach(&mut self, capacity: usize, permit: &mut Permit) -> bool {
        // Growing may copy. Both buffers exist for that moment, and both are counted.
        let before = self.bytes.capacity();
        if !permit.grow(capacity) {
            return false;
        }
        self.bytes = buffers::grow(std::mem::take(&mut self.bytes), capacity);
        permit.shrink_to(permit.bytes().saturating_sub(before));
        // A pooled buffer can be larger than requested. It is in memory already.
        let extra = self.bytes.capacity().saturating_sub(capacity);
        if !permit.grow(extra) {
            self.bytes.shrink_to(capacity);
        }
        true
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_below_what_is_held_takes_nothing_back() {
        let budget = Budget::new(100);
        let held = budget.take(80);
        budget.set_limit(50);
        assert_eq!((budget.limit(), budget.used()), (50, 80));
        assert!(budget.take(1).is_none(), "nothing more while too much is held");
        drop(held);
        assert!(budget.take(51).is_none() && budget.take(50).is_some());
    }
}
