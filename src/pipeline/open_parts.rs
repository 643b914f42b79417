//! Counts the open parts of each cut of a request. The memory of a cut is free once its last part is done.

/// The cuts of a request by number: the first one, and one for each part that was cut again by another table.
#[derive(Debug)]
pub(super) struct OpenParts {
    /// The number of open parts of the first cut.
    first: usize,
    further: Vec<usize>,
}

impl OpenParts {
    /// Creates the count of a request that was cut into `parts` parts.
    pub(super) fn new(parts: usize) -> Self {
        Self { first: parts, further: Vec::new() }
    }

    /// Adds a cut into `parts` parts, and returns its number.
    pub(super) fn add(&mut self, parts: usize) -> usize {
        self.further.push(parts);
        self.further.len()
    }

    /// Records that one part of a cut is done. Returns whether it was the last one.
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
