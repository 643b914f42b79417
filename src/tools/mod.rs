//! (room: tools)
