//! What the process says about itself: every metric on one page, the recorder behind `/metrics`, logs.

mod buckets;
mod log_limit;
pub mod logs;
pub mod metrics;
pub mod panics;
mod process;
pub mod recorder;
mod series;

pub use log_limit::LogLimit;
pub use recorder::{Recorder, RecorderError};
#[cfg(test)]
pub(crate) use series::LINGER;
