//! Objects that are dear to make and are kept for the next one who needs such an object.

use std::{
    num::NonZeroUsize,
    sync::{Condvar, Mutex, PoisonError},
};

/// A few spare objects of one kind.
#[derive(Debug)]
pub struct Spare<T> {
    kept: Mutex<Vec<T>>,
    most: usize,
}

impl<T> Spare<T> {
    /// Keeps at most `most` objects.
    pub const fn new(most: usize) -> Self {
        Self { kept: Mutex::new(Vec::new()), most }
    }

    /// Passes a kept object to `work`, or one that `make` made. It is kept after that, unless `work` panics.
    pub fn with<R>(&self, make: impl FnOnce() -> T, work: impl FnOnce(&mut T) -> R) -> R {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut object = kept.unwrap_or_else(make);
        let result = work(&mut object);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < self.most {
            kept.push(object);
        }
        result
    }
}

/// Objects of which only a few are in use at a time. Who finds none free waits, so only a thread that may block asks.
#[derive(Debug)]
pub struct Few<T> {
    state: Mutex<FewState<T>>,
    freed: Condvar,
}

#[derive(Debug)]
struct FewState<T> {
    kept: Vec<T>,
    in_use: usize,
}

impl<T> Few<T> {
    /// Holds no object yet.
    pub const fn new() -> Self {
        Self { state: Mutex::new(FewState { kept: Vec::new(), in_use: 0 }), freed: Condvar::new() }
    }

    /// Passes a kept object to `work`, or one that `make` made, once fewer than `most` are in use. It is kept after
    /// that, unless `work` panics.
    pub fn with<R>(&self, most: NonZeroUsize, make: impl FnOnce() -> T, work: impl FnOnce(&mut T) -> R) -> R {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = |state: &mut FewState<T>| state.in_use >= most.get();
        let mut state = self.freed.wait_while(state, is_full).unwrap_or_else(PoisonError::into_inner);
        state.in_use += 1;
        let kept = state.kept.pop();
        drop(state);
        let mut turn = Turn { few: self, object: None };
        let mut object = kept.unwrap_or_else(make);
        let result = work(&mut object);
        turn.object = Some(object);
        result
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// The turn of one who uses an object.
struct Turn<'a, T> {
    few: &'a Few<T>,
    /// The object, once it can be kept.
    object: Option<T>,
}

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        let mut state = self.few.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.in_use -= 1;
        state.kept.extend(self.object.take());
        drop(state);
        self.few.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        panic::{AssertUnwindSafe, catch_unwind},
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
        thread,
    };

    use super::*;

    #[test]
    fn an_object_is_used_again_and_few_are_kept() {
        let (spare, made) = (Spare::new(1), Cell::new(0));
        let make = || {
            made.set(made.get() + 1);
            made.get()
        };
        assert_eq!([spare.with(make, |object| *object), spare.with(make, |object| *object)], [1, 1]);
        spare.with(make, |first| spare.with(make, |second| assert_eq!((*first, *second), (1, 2))));
        assert_eq!(spare.kept.lock().unwrap().len(), 1, "no more than was said");
        assert_eq!(spare.with(make, |object| *object), 2);
    }

    #[test]
    fn of_few_objects_no_more_are_in_use_than_was_said_and_a_panic_takes_none_away() {
        let two = NonZeroUsize::new(2).unwrap();
        let (few, [made, now, peak]) = (Few::new(), [(); 3].map(|()| AtomicUsize::new(0)));
        let use_one = |panics: bool| {
            few.with(
                two,
                || made.fetch_add(1, SeqCst),
                |_| {
                    peak.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                    thread::yield_now();
                    now.fetch_sub(1, SeqCst);
                    assert!(!panics, "one of them panics");
                },
            );
        };
        thread::scope(|scope| {
            for at in 0..8 {
                let use_one = &use_one;
                scope.spawn(move || catch_unwind(AssertUnwindSafe(|| use_one(at == 3))).is_ok());
            }
        });
        assert!(peak.load(SeqCst) <= 2);
        assert!(made.load(SeqCst) <= 3, "they are kept, but for the one that was in use during a panic");
        assert_eq!(few.state.lock().unwrap().in_use, 0);
    }
}
