//! The failed parts of a request that wait for their next attempt, by the time at which it is due. A request whose parts
//! have thousands of owners is asked for the next time after each outcome, so that must not look at all of them.

use std::{cmp::Ordering, collections::BinaryHeap};

use tokio::time::Instant;

use super::Failed;

/// The parts that wait.
#[derive(Default)]
pub(super) struct Waiting {
    /// The part whose attempt is due first comes first.
    parts: BinaryHeap<Entry>,
    /// The number of parts so far.
    number: u64,
}

struct Entry {
    due: Instant,
    /// Of parts that are due at the same time, the one that has waited longer comes first.
    number: u64,
    failed: Failed,
}

// === impl Waiting ===

impl Waiting {
    pub(super) fn push(&mut self, failed: Failed, due: Instant) {
        self.number += 1;
        self.parts.push(Entry { due, number: self.number, failed });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Returns when the first attempt is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.parts.peek().map(|entry| entry.due)
    }

    /// Takes the parts whose attempts are due at `now`.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Failed> {
        let mut due = Vec::new();
        while self.next_due().is_some_and(|at| at <= now)
            && let Some(entry) = self.parts.pop()
        {
            due.push(entry.failed);
        }
        due
    }

    /// Takes the parts of which `which` is true. This looks at all parts.
    pub(super) fn take_if(&mut self, which: impl Fn(&Failed) -> bool) -> Vec<Failed> {
        let parts = std::mem::take(&mut self.parts).into_vec();
        let (taken, stay): (Vec<_>, Vec<_>) = parts.into_iter().partition(|entry| which(&entry.failed));
        self.parts = stay.into();
        taken.into_iter().map(|entry| entry.failed).collect()
    }

    /// Returns the indices of the parts, sorted.
    pub(super) fn indices(&self) -> Vec<u32> {
        let mut indices: Vec<u32> = self.parts.iter().map(|entry| entry.failed.part.index).collect();
        indices.sort_unstable();
        indices
    }

    /// Sets the time at which the part with this index is due.
    #[cfg(test)]
    pub(super) fn set_due(&mut self, index: u32, due: Instant) {
        let failed = self.take_if(|failed| failed.part.index == index);
        failed.into_iter().for_each(|failed| self.push(failed, due));
    }
}

// === impl Entry ===

impl Entry {
    fn key(&self) -> (Instant, u64) {
        (self.due, self.number)
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    /// The greatest entry is the one that is due first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(&self.key())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::{
        dispatch::{Cause, Part},
        otlp::{Framed, Signal},
    };

    fn failed(index: u32) -> Failed {
        let message = Framed::from_chunks(vec![Bytes::from_static(&[0; 5])]).expect("an empty message");
        let part = Part { index, ..Part::new(Signal::Traces, message, 1, 0) };
        Failed { part, owner: "a".into(), cause: Cause::Full }
    }

    fn indices(taken: &[Failed]) -> Vec<u32> {
        taken.iter().map(|failed| failed.part.index).collect()
    }

    #[tokio::test]
    async fn parts_are_taken_in_the_order_of_their_times() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        let at = |millis| now + Duration::from_millis(millis);
        for (index, millis) in [(0, 30), (1, 10), (2, 20), (3, 10), (4, 40)] {
            waiting.push(failed(index), at(millis));
        }
        assert_eq!(waiting.next_due(), Some(at(10)));
        assert_eq!(indices(&waiting.take_due(at(9))), [0; 0]);
        assert_eq!(indices(&waiting.take_due(at(20))), [1, 3, 2], "of equal times the older part comes first");
        assert_eq!(waiting.next_due(), Some(at(30)));
        assert_eq!(waiting.indices(), [0, 4]);
        assert_eq!(indices(&waiting.take_if(|failed| failed.part.index == 4)), [4]);
        assert_eq!(indices(&waiting.take_due(at(100))), [0]);
        assert!(waiting.is_empty() && waiting.next_due().is_none());
    }

    #[tokio::test]
    async fn many_parts_of_the_same_time_are_taken_in_the_order_in_which_they_came() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        (0..100).for_each(|index| waiting.push(failed(index), now));
        assert_eq!(indices(&waiting.take_due(now)), Vec::from_iter(0..100));
    }

    #[tokio::test]
    async fn entries_are_equal_where_their_order_is() {
        let now = Instant::now();
        let later = now + Duration::from_millis(1);
        let entry = |due, number| Entry { due, number, failed: failed(0) };
        for (one, other) in
            [(entry(now, 1), entry(now, 1)), (entry(now, 1), entry(now, 2)), (entry(now, 1), entry(later, 1))]
        {
            assert_eq!(one == other, one.cmp(&other) == Ordering::Equal);
            assert_eq!(one == other, one.key() == other.key());
        }
    }
}
