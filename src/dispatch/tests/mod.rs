//! Tests of dispatch against scripted backends.

mod failover;
mod faults;
mod links;
mod merging;
mod queueing;
mod series;
mod silence;
