//! Listeners and their connections, for every port of the process: receivers, admin pages and probes.
//!
//! A room above binds a port ([`bind`]) and serves it ([`Bound::serve`]) with a [`hyper::service::Service`] for each
//! connection. This room does what comes before a request: it accepts within the limits, shakes hands over TLS, recognises
//! what the client speaks, repairs header blocks that h2 would refuse, and ends connections that are old, late or drained.
//! It knows nothing of OTLP.
//!
//! The way through the room: `accept` takes a connection, `secure` shakes hands, `opening` reads the first bytes, and
//! `connection` serves it to its end. HTTP runs on a stream with three `layers`: `opening` gives back the bytes that were read
//! first, `streams` follows the client's frames (`hpack` repairs their header blocks, `progress` holds what the client owes
//! the end of), and `turns` divides reading and writing into turns.

mod accept;
mod connection;
mod hpack;
mod layers;
mod metrics;
mod opening;
mod progress;
mod secure;
mod silent;
mod streams;
#[cfg(test)]
pub(crate) mod tests;
mod turns;

pub use self::{
    accept::{BindError, Bound, Connector, Handle, Limits, Plain, Protocol, bind},
    secure::Tls,
};
