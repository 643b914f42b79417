//! What a measurement of whole traces needs, whether with real processes or in simulated time: traces, the services that
//! export them, the rules of a hand-off and the verdict. The bench `whole` uses it, too.
//!
//! All times are durations since the beginning of the run.

pub(crate) mod exporter;
pub(crate) mod rules;
pub(crate) mod traces;
pub(crate) mod verdict;
