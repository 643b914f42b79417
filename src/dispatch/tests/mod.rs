//! Tests of dispatch against scripted backends.

mod failover;
mod faults;
mod merging;
mod queueing;
mod series;
pub(crate) mod support;
