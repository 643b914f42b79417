//! (room: dispatch)
