//! Tests of dispatch against scripted backends.

mod faults;
mod merging;
mod queueing;
mod support;
