//! The vocabulary of OTLP: signals, levels, wire format, framed messages, forwarded headers, the state of a client's
//! connection, and outcomes. Imports no other room.

mod client;
pub mod framed;
pub mod metadata;
pub mod outcome;
pub mod rope;
pub mod shortcuts;
pub mod signal;
mod span;
pub mod text;
pub mod wire;

pub use client::ClientConnection;
pub use framed::{Chunk, Framed};
pub use metadata::Metadata;
pub use outcome::{Outcome, Reason, Refusal};
pub use signal::{Level, RecordFields, Signal};
pub use span::is_root_span;
