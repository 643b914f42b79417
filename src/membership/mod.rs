//! (room: membership)
