//! The vocabulary of OTLP: signals, levels, wire format, framed messages, a client's connection and its
//! forwarded headers, outcomes. Depends on nothing of ours.

mod client;
pub mod framed;
pub mod metadata;
pub mod outcome;
pub mod rope;
pub mod shortcuts;
pub mod signal;
pub mod wire;

pub use client::ClientConnection;
pub use framed::{Chunk, Framed};
pub use metadata::Metadata;
pub use outcome::{Outcome, Reason, Refusal};
pub use signal::{Level, RecordFields, Signal};
