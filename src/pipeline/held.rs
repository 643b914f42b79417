//! Counts the parts of each cut of a request: the bytes of a cut are gone with the last of them.

/// A request's cuts by number: the first, and one for each time that a part was placed by another table.
#[derive(Debug)]
pub(super) struct Held {
    /// Parts of the first cut that are left.
    first: usize,
    further: Vec<usize>,
}

impl Held {
    /// Of a request that was cut into so many parts.
    pub(super) fn new(parts: usize) -> Self {
        Self { first: parts, further: Vec::new() }
    }

    /// A further cut, into so many parts. Returns its number.
    pub(super) fn add(&mut self, parts: usize) -> usize {
        self.further.push(parts);
        self.further.len()
    }

    /// One part of that cut is done with. Whether it was the last.
    pub(super) fn settle(&mut self, number: usize) -> bool {
        let left = match number.checked_sub(1) {
            None => Some(&mut self.first),
            Some(further) => self.further.get_mut(further),
        };
        left.is_some_and(|left| {
            *left = left.saturating_sub(1);
            *left == 0
        })
    }
}
