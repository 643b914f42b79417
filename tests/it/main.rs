//! Tests of whole processes: the binary that is shipped, real sockets, real peers.
//!
//! `SPANRING_PEERS` names a folder that the scripts of `tests/peers/` filled; tests that need a peer which is not there
//! say that they are skipped, and pass.

mod collector;
mod harness;
mod layout;
