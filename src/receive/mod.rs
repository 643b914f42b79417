//! (room: receive)
