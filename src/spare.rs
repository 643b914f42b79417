//! Objects that are dear to make and are kept for the next one who needs such an object.

use std::sync::{Mutex, PoisonError};

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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

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
}
