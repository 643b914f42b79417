//! Tests of dispatch against scripted backends.

mod failover;
mod faults;
mod merging;
mod queueing;
mod series;
mod silence;
pub(crate) mod support;
