//! Measurements of whole traces, with real processes or in simulated time: traces, the services that export them, the
//! plans of events, the processes that play them, the rules of a hand-off and the verdict. The bench `whole` measures with
//! it; the tests in `scenarios` run some of it in compressed time.
//!
//! All times are durations since the beginning of the run.

pub(crate) mod exporter;
pub(crate) mod plan;
pub(crate) mod proxy;
pub(crate) mod rules;
pub(crate) mod run;
#[cfg(test)]
mod scenarios;
pub(crate) mod traces;
pub(crate) mod verdict;
pub(crate) mod world;
