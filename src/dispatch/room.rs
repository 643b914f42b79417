//! The room of one queue, in bytes. It is an atomic counter outside of the queue's lock, so that a request that finds a queue
//! full does not lock it.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A bounded number of bytes.
#[derive(Debug)]
pub(super) struct Room {
    used: AtomicUsize,
    limit: usize,
}

impl Room {
    /// Creates room for `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { used: AtomicUsize::new(0), limit }
    }

    /// Takes `bytes`. Returns false, and takes nothing, if they do not fit. More than the limit fits if nothing is taken.
    pub(super) fn take(&self, bytes: usize) -> bool {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| used == 0 || *sum <= self.limit)
            })
            .is_ok()
    }

    /// Takes `bytes` whether they fit or not, for entries that had been admitted before.
    pub(super) fn take_again(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives `bytes` back.
    pub(super) fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The number of bytes taken.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether no bytes are taken.
    pub(super) fn is_empty(&self) -> bool {
        self.used() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_taken_up_to_its_limit_and_by_something_larger_alone() {
        let room = Room::new(10);
        assert!(room.take(6) && room.take(4) && !room.take(1));
        room.take_again(5);
        room.give_back(15);
        assert!(room.is_empty() && room.take(20), "it fits while nothing else waits");
        assert!(!room.take(1));
        assert!(!room.take(usize::MAX), "no sum may wrap");
        assert_eq!(room.used(), 20);
    }
}
