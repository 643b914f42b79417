//! Spanring: a trace-ID-aware load-balancing proxy for OpenTelemetry.
//!
//! (The map is completed by the lead; modules stand in the order of the data's way.)

// The heart, and its assembly.
pub mod pipeline;
pub mod proxy;
// Vocabulary: depends on nothing of ours.
pub mod budget;
pub mod lifecycle;
pub mod otlp;
// The way of the data: receive → split → route → dispatch.
pub mod dispatch;
pub mod receive;
pub mod ring;
pub mod split;
// Side rooms.
pub mod admin;
pub mod cli;
pub mod config;
pub mod discovery;
pub mod membership;
pub mod signals;
pub mod telemetry;
pub mod tools;
