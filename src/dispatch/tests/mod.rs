//! Tests of dispatch against scripted backends.

mod compression;
mod failover;
mod faults;
mod links;
mod merging;
mod over_http;
pub(crate) mod played;
mod queueing;
mod series;
mod silence;
