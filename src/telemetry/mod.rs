//! Metrics and logs: the declarations of all metrics, the recorder behind `/metrics`, the log and its limits.

mod buckets;
mod log_limit;
pub mod logs;
pub mod metrics;
pub mod panics;
pub(crate) mod process;
pub mod recorder;
mod series;

pub use log_limit::LogLimit;
pub use recorder::{Recorder, RecorderError};
#[cfg(test)]
pub(crate) use series::LINGER;
