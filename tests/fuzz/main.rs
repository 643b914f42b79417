//! Fuzz targets that run for a short while as tests, on stable: `cargo test --test fuzz`. With `cargo bolero test` they
//! run under a coverage-guided engine for as long as you like.
//!
//! What must hold of whatever arrives: nothing panics; what is announced is what is built; no record is lost or doubled.

#![expect(clippy::expect_used, clippy::indexing_slicing, clippy::unwrap_used, reason = "a test fails by a panic")]

#[path = "../../src/split/tests/messy.rs"]
mod messy;
mod split;
