//! Listeners and their connections, for every port of the process: receivers, admin pages and probes.
//!
//! The caller binds a port ([`bind()`]) and serves it ([`Bound::serve`]) with an [`HttpService`] for each connection.
//! This module handles everything before a request: it accepts connections within the limits, performs the TLS handshake,
//! detects the client's protocol, repairs header blocks that h2 would refuse, and ends connections that are old, stalled or
//! draining. It does not depend on OTLP.
//!
//! `bind` takes a port and `accept` accepts its connections; `silent` and `trouble` handle a lack of room and failures.
//! `secure` performs the TLS handshake, `opening` reads the first bytes, and `connection` serves a connection to its end.
//! HTTP runs on a stream with three `layers`: `opening` replays the bytes that were read first, `streams` follows the
//! client's frames (`hpack` repairs their header blocks, `progress` tracks what the client has begun and has to finish),
//! and `turns` divides reading and writing into turns.

mod accept;
mod bind;
mod connection;
mod hpack;
mod layers;
mod metrics;
mod opening;
mod progress;
mod secure;
mod service;
mod silent;
mod streams;
#[cfg(test)]
pub(crate) mod tests;
mod trouble;
mod turns;

pub use self::{
    accept::{Connector, Handle, Limits, Plain, Protocol},
    bind::{BindError, Bound, bind},
    secure::Tls,
    service::HttpService,
};
