//! What the process says about itself: every metric on one page, the recorder behind `/metrics`, logs.

pub mod logs;
pub mod metrics;
mod process;
pub mod recorder;

pub use recorder::{Recorder, RecorderError};
