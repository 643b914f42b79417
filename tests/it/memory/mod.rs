//! Memory of a proxy whose peers demand much: it stays below the limit plus 64 MiB, and others are served.

mod account;
#[allow(dead_code, reason = "the bench of faults uses the rest")]
pub(crate) mod beside;
mod budget;
#[allow(dead_code, reason = "the bench of faults uses the rest")]
pub(crate) mod hostile;
mod idle;
mod rows;
mod sizes;
