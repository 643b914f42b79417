//! Objects that are dear to make and are kept for the next one who needs such an object.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
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

/// Objects of which only a few are in use at a time.
#[derive(Debug)]
pub struct Few<T> {
    state: Mutex<FewState<T>>,
}

#[derive(Debug)]
struct FewState<T> {
    kept: Vec<T>,
    in_use: usize,
}

impl<T> Few<T> {
    /// Holds no object yet.
    pub const fn new() -> Self {
        Self { state: Mutex::new(FewState { kept: Vec::new(), in_use: 0 }) }
    }

    /// Returns a turn to use an object, if fewer than `most` are in use.
    pub fn turn(&self, most: NonZeroUsize) -> Option<Turn<'_, T>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.in_use >= most.get() {
            return None;
        }
        state.in_use += 1;
        Some(Turn { few: self, object: state.kept.pop() })
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// The turn of one who uses an object.
#[derive(Debug)]
pub struct Turn<'a, T> {
    few: &'a Few<T>,
    /// The object; `None` if it has to be made, or is in use.
    object: Option<T>,
}

impl<T> Turn<'_, T> {
    /// Passes a kept object to `work`, or one that `make` made. It is kept after that, unless `work` panics.
    pub fn with<R>(mut self, make: impl FnOnce() -> T, work: impl FnOnce(&mut T) -> R) -> R {
        let mut object = self.object.take().unwrap_or_else(make);
        let result = work(&mut object);
        self.object = Some(object);
        result
    }
}

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        let mut state = self.few.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.in_use -= 1;
        state.kept.extend(self.object.take());
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
            let turn = std::iter::repeat_with(|| few.turn(two)).find_map(|turn| {
                turn.or_else(|| {
                    thread::yield_now();
                    None
                })
            });
            turn.expect("others end").with(
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
