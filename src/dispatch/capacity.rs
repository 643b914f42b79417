//! The room in one queue: a count of its bytes, with a limit. The count is atomic and outside of the queue's lock, so that a
//! request that finds the queue full does not lock it.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A bounded number of bytes.
#[derive(Debug)]
pub(super) struct Capacity {
    used: AtomicUsize,
    limit: usize,
}

impl Capacity {
    /// Creates room for `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { used: AtomicUsize::new(0), limit }
    }

    /// Takes `bytes`. Returns false, and takes nothing, if they do not fit. If nothing is taken yet, any number fits.
    pub(super) fn take(&self, bytes: usize) -> bool {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| used == 0 || *sum <= self.limit)
            })
            .is_ok()
    }

    /// Takes `bytes` if half of the room stays free with them.
    pub(super) fn take_of_half(&self, bytes: usize) -> bool {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= self.limit / 2)
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
    fn room_is_taken_up_to_the_limit_and_a_larger_part_fits_an_empty_queue() {
        let capacity = Capacity::new(10);
        assert!(capacity.take(6) && capacity.take(4) && !capacity.take(1));
        capacity.take_again(5);
        capacity.give_back(15);
        assert!(capacity.is_empty() && capacity.take(20), "more than the limit must fit an empty queue");
        assert!(!capacity.take(1));
        assert!(!capacity.take(usize::MAX), "sums must not wrap");
        assert_eq!(capacity.used(), 20);
    }

    #[test]
    fn half_of_the_room_can_be_left_free() {
        let capacity = Capacity::new(10);
        assert!(!capacity.take_of_half(6) && capacity.take_of_half(5) && !capacity.take_of_half(1));
        assert!(capacity.take(5));
        assert!(!capacity.take_of_half(usize::MAX), "sums must not wrap");
        assert_eq!(capacity.used(), 10);
    }
}
