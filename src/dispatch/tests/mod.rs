//! Tests of dispatch against scripted backends.

mod failover;
mod faults;
mod merging;
mod queueing;
pub(crate) mod support;
