//! The room of one queue, in bytes. It is taken before the queue's lock is, so that a full queue costs no lock.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Room for what waits.
#[derive(Debug)]
pub(super) struct Room {
    used: AtomicUsize,
    limit: usize,
}

impl Room {
    /// Room for `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { used: AtomicUsize::new(0), limit }
    }

    /// Takes room for `bytes`, or nothing. Something larger than the whole room fits while it is empty.
    pub(super) fn take(&self, bytes: usize) -> bool {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| used == 0 || *sum <= self.limit)
            })
            .is_ok()
    }

    /// Takes room, whether there is any or not: for what was admitted before.
    pub(super) fn take_again(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives back room.
    pub(super) fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes that were taken.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether nothing waits.
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
