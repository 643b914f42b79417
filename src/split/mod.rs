//! (room: split)
