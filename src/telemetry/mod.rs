//! What the process says about itself: every metric on one page, the recorder behind `/metrics`, logs.

mod buckets;
pub mod logs;
pub mod metrics;
pub mod panics;
mod process;
mod quota;
pub mod recorder;
mod seldom;
mod series;

pub use quota::Quota;
pub use recorder::{Recorder, RecorderError};
pub use seldom::Seldom;
#[cfg(test)]
pub(crate) use series::LINGER;
