//! What the cut keeps, changes and refuses.
