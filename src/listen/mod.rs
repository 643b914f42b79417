//! Listeners and their connections, for every port of the process: receivers, admin pages and probes.
//!
//! The caller binds a port ([`bind()`]) and serves it ([`Bound::serve`]) with an [`HttpService`] for each connection.
//! This module handles everything before a request: it accepts connections within the limits, performs the TLS handshake,
//! detects the client's protocol, repairs header blocks that h2 would refuse, and ends connections that are old, stalled or
//! draining. It does not depend on OTLP.
//!
//! `bind` binds a port and `accept` accepts its connections. `places` decides which connection is closed when there is no
//! room for a new one (`silent` has those on which nothing has arrived, `idle` has all others), and `accept_failures`
//! decides how long to pause. `secure` performs the TLS handshake, `first_bytes` detects the protocol, and `connection`
//! (HTTP/2) or `http1` serves a connection to its end; `deadlines` has the events that end it from the server's side.
//! HTTP/2 runs on a stream with three `layers`: `first_bytes` replays the preface, `streams` follows the client's frames
//! (`hpack` repairs their header blocks, `pins` counts the buffers that these keep, `progress` tracks what is unfinished),
//! and `yielding` lets other tasks run in between. `admission` takes connections and streams from the memory account,
//! `requests` calls the service and runs the streams' tasks, and `tracked` counts requests and answers for `idle`.

mod accept;
mod accept_failures;
mod admission;
mod bind;
mod connection;
mod deadlines;
mod first_bytes;
mod half_close;
mod hpack;
mod http1;
mod idle;
mod large_frames;
mod layers;
mod linger;
mod metrics;
mod pins;
mod places;
mod progress;
mod requests;
mod secure;
mod service;
mod silent;
mod streams;
#[cfg(test)]
pub(crate) mod tests;
mod tracked;
mod yielding;

pub use self::{
    accept::{Connector, Handle, Limits, Plain, Protocol},
    admission::{NoRoom, unfinished_stream},
    bind::{BindError, Bound, bind},
    connection::Windows,
    places::{OpenConnections, WhenFull},
    secure::Tls,
    service::{HttpService, RequestBody},
};
