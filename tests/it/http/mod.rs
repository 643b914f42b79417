//! OTLP/HTTP as clients see it: statuses, encodings, slow and hostile senders, browsers, the drain and reloads.

pub(crate) mod bodies;
mod delivery;
mod hostile;
mod json;
mod life;
mod odd;
mod slow;
mod tls;
pub(crate) mod wire;
