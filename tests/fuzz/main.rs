//! Fuzz targets that run briefly as tests, on stable Rust: `cargo test --test fuzz`. With `cargo bolero test`, a
//! coverage-guided engine runs them for any length of time.
//!
//! Properties for any input: nothing panics, the parts that are built match their plan, and no record is lost or
//! duplicated; a document of JSON is refused or becomes the message that it stands for; for a client that is gone, nothing
//! is held.

#![expect(clippy::expect_used, clippy::indexing_slicing, clippy::unwrap_used, reason = "a test fails by a panic")]

#[path = "../../src/json/tests/documents.rs"]
mod documents;
mod json;
#[path = "../../src/split/tests/messy.rs"]
mod messy;
mod server;
mod split;
